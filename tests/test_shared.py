"""A network and what was extracted from it stay one: what happens to the tensors of either."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet.errors import ArgumentError

LEVELS = ["layer1", "layer3"]
MAKE: dict[str, Callable[[nn.Module], Any]] = {
    "taps": lambda model: featnet.extract(model, LEVELS),
    "levels": featnet.extract,
    "logits": lambda model: featnet.extract(model, LEVELS, logits=True),
    "list": lambda model: featnet.FeatureListNet(model, feature_info=featnet.discover(model)),
    "graph": lambda model: featnet.create_feature_extractor(
        model, LEVELS, suppress_diff_warning=True
    ),
    "stride": lambda model: featnet.set_output_stride(model, 8),
    "of an extractor": lambda model: featnet.FeatureHookNet(
        featnet.FeatureHookNet(model, taps=[*LEVELS, "layer4"], prune=False), taps=LEVELS
    ),
}
CONVERSIONS: dict[str, tuple[Callable[[nn.Module], Any], torch.dtype]] = {
    "double": (lambda net: net.double(), torch.float64),
    "to": (lambda net: net.to("cpu", torch.bfloat16), torch.bfloat16),
}


class Counts(nn.Module):
    """Puts a buffer of its own and a table of the network in front of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.tensor([0.5]), persistent=False)
        self.register_buffer("unused", torch.zeros(3))
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.layer3 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(x + self.offset))
        return self.fc(self.layer4(self.layer3(x)).mean((2, 3)))


NETWORKS: dict[str, Callable[[], Any]] = {
    "own": lambda: helpers.fill_noise(featnet.create_model("test_resnet")).eval(),
    "small": lambda: helpers.fill_noise(Counts()).eval(),
}


def first(found: Any) -> torch.Tensor:
    while not torch.is_tensor(found):
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found


@pytest.mark.parametrize("of", ["network", "extractor"])
@pytest.mark.parametrize("how", CONVERSIONS)
@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("which", NETWORKS)
@torch.no_grad()
def test_a_conversion_of_one_is_one_of_both(which: str, make: str, how: str, of: str) -> None:
    convert, dtype = CONVERSIONS[how]
    model = NETWORKS[which]()
    net = MAKE[make](model)
    x = helpers.image_batch(32, 32)
    fresh = convert(NETWORKS[which]())
    wanted = fresh(x.to(dtype)), MAKE[make](fresh)(x.to(dtype))
    assert convert(model if of == "network" else net) is (model if of == "network" else net)
    assert torch.equal(model(x.to(dtype)), wanted[0])
    found = net(x.to(dtype))
    assert first(found).dtype == dtype and torch.equal(first(found), first(wanted[1]))
    assert list(MAKE[make](fresh).state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("make", MAKE)
def test_statistics_and_freezing_are_shared_and_the_mode_is_not(make: str) -> None:
    model = NETWORKS["small"]().eval()
    net = MAKE[make](model)
    assert net.train() is net and not model.training and not model.layer1.training
    before = model.layer1[1].running_mean.clone()
    net(helpers.image_batch(32, 32, batch=2))
    assert not torch.equal(model.layer1[1].running_mean, before)
    assert int(model.layer1[1].num_batches_tracked) == 1
    net.requires_grad_(False)
    assert not model.layer1[0].weight.requires_grad
    assert model.double().layer1[1].running_mean is net.layer1[1].running_mean


def test_the_structure_of_the_callers_network_stays() -> None:
    model = NETWORKS["small"]()
    keys = list(model.state_dict())
    for make in MAKE.values():
        net = make(model)
        assert set(net.state_dict()) <= set(keys)
        assert list(model.state_dict()) == keys
        assert [name for name, _ in model.named_buffers()][:2] == ["offset", "unused"]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("make", MAKE)
@torch.no_grad()
def test_a_copy_is_another_network(make: str, way: str) -> None:
    model = NETWORKS["small"]()
    net, x = MAKE[make](model), helpers.image_batch(32, 32)
    wanted = first(net(x))
    copied = copy.deepcopy(net) if way == "deepcopy" else pickle.loads(pickle.dumps(net))
    copied.double()
    assert torch.equal(first(net(x)), wanted) and model.fc.weight.dtype == torch.float32
    assert first(copied(x.double())).dtype == torch.float64


def test_an_extractor_keeps_no_network_alive() -> None:
    import weakref

    model = NETWORKS["small"]()
    alive, net = weakref.ref(model), featnet.extract(model, ["layer1"])
    del model
    gc.collect()
    assert alive() is None
    assert net.double()(helpers.image_batch(16, 16).double())["layer1"].dtype == torch.float64


@pytest.mark.parametrize("make", [name for name in MAKE if name != "stride"])
@torch.no_grad()
def test_parameters_that_are_replaced(make: str) -> None:
    """A network that gets others is no longer the extractor's: the next call says so."""
    state = NETWORKS["small"]().state_dict()
    x = helpers.image_batch(32, 32)
    model = NETWORKS["small"]()
    net = MAKE[make](model)
    model.load_state_dict(dict(state), assign=True)  # which marks the metadata
    with pytest.raises(ArgumentError, match=r"new parameters.*make the extractor anew"):
        net(x)
    assert torch.isfinite(first(MAKE[make](model)(x))).all()
    empty: Any = NETWORKS["small"]().to("meta")
    net = MAKE[make](empty)
    net.to_empty(device="cpu")  # goes on to the network
    assert all(not tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(state)
    empty.offset.fill_(0.5)
    assert torch.equal(first(net(x)), first(MAKE[make](empty)(x)))
