"""What is alive at once: an extractor holds what was asked for, and recomputing keeps less."""

from __future__ import annotations

import weakref
from typing import Any

import helpers
import pytest
import torch
from helpers import families
from torch import nn

import featnet
from benchmarks.memory import held, peak
from featnet.errors import ArgumentError
from featnet.tracing.structure import clone

KINDS = (featnet.FeatureListNet, featnet.FeatureHookNet)


def zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Memory that nobody pays for before it is written."""
    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made


def empty(name: str) -> Any:
    return clone(helpers.shallow_model(name), zeros)


def batch(name: str) -> torch.Tensor:
    return torch.zeros(2, 3, *helpers.sizes(name)[0])


def test_a_level_is_gone_while_the_next_is_made() -> None:
    """The stem's map of a ResNet, from the second block after it on."""
    net = featnet.FeatureListNet(empty("resnet18"), (4,), copy=False)
    stem: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    net.act1.register_forward_hook(lambda m, args, y: stem.append(weakref.ref(y)))
    net.layer1[1].register_forward_pre_hook(lambda m, args: alive.append(stem[0]() is not None))
    with torch.inference_mode():
        net(batch("resnet18"))
    assert alive == [False]


@pytest.mark.parametrize("name", families())
def test_one_late_level_takes_what_the_forward_takes(name: str) -> None:
    model, x = empty(name), batch(name)
    with torch.inference_mode():
        model.forward_features(x)  # tables that are kept are made
        plain = peak(lambda: model.forward_features(x))
        for kind in KINDS:
            net = kind(model, (-1,))
            last = net(x)[0]  # a map made of tokens is a copy of them
            assert peak(lambda net=net: net(x)) <= plain + last.nbytes * helpers.attends(model), (
                kind
            )
    early = featnet.FeatureListNet(model, (0,))
    with torch.inference_mode():
        early(x)
        assert peak(lambda: early(x)) <= plain


@pytest.mark.parametrize("name", families())
def test_recomputing_keeps_less_and_gives_the_same_gradients(name: str) -> None:
    model = helpers.fill_noise(empty(name)).train()
    for module in model.modules():  # a second pass in training moves statistics a second time
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    x = helpers.image_batch(*helpers.sizes(name)[0], batch=2)
    net = featnet.FeatureListNet(model)
    found: dict[str, Any] = {}
    for per in ("", "block", "stage"):
        net.set_grad_checkpointing(bool(per), per=per or "block")
        maps: list[torch.Tensor] = []
        torch.manual_seed(0)  # some drop paths
        kept = held(lambda maps=maps: maps.extend(net(x)))
        net.zero_grad()
        sum(y.square().mean() for y in maps).backward()
        found[per] = kept, [p.grad for p in net.parameters()]
    assert found["stage"][0] <= found["block"][0] < found[""][0]
    for per in ("block", "stage"):
        for a, b in zip(found[per][1], found[""][1], strict=True):
            assert helpers.error(a, b) <= 1e-4 or b.abs().max() < 1e-6  # sums in another order


def test_only_blocks_and_stages_are_recomputed() -> None:
    with pytest.raises(ArgumentError, match="per='stages'.*'stage'"):
        featnet.create_model("test_resnet").set_grad_checkpointing(per="stages")
