"""Levels inside of blocks: what a module is given, beside what it puts out."""

from __future__ import annotations

import re
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, image_batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import featnet
from featnet import FeatureDictNet, FeatureHookNet, FeatureListNet
from featnet.errors import ArgumentError
from featnet.features import Feature

KINDS = (FeatureListNet, FeatureDictNet, FeatureHookNet)
# one for each kind of block that ends a resolution
NAMES = (
    "mobilenetv3_small_050",
    "test_efficientnet",
    "mnasnet_small",
    "lcnet_050",
    "efficientnet_cc_b0_4e",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_hybrid_medium_075",
)


def as_list(found: Any) -> list[torch.Tensor]:
    return list(found.values()) if isinstance(found, dict) else list(found)


@pytest.mark.parametrize("name", NAMES)
def test_expansion(timm: Any, name: str) -> None:
    model = fill_noise(featnet.create_model(name, feature_location="expansion")).eval()
    peer, info = peer_expansion(name, model.state_dict()), model.feature_info
    # a norm of the peer's holds its activation, a child of ours follows it
    names = [re.sub(r"\bbn1$", "act1", name) for name in peer.feature_info.module_name()]
    assert info.module_name() == names
    assert info.channels() == peer.feature_info.channels()
    assert info.reduction() == peer.feature_info.reduction()
    plain, x = featnet.create_model(name).eval(), image_batch(64, 96)
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert torch.equal(plain(x), model(x))
        assert all(torch.equal(a, b) for a, b in zip(maps, peer(x), strict=True))
    for kind in KINDS:
        for out_indices in (None, (3, 0), (4,)):
            net = kind(model, out_indices)
            found = as_list(net(x))
            wanted = maps if out_indices is None else [maps[i] for i in out_indices]
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
            sizes = zip(net.feature_info.channels(), net.feature_info.sizes((64, 96)), strict=True)
            assert [(y.shape[1], tuple(y.shape[2:])) for y in found] == list(sizes)
            kept = list(net.parameters())
            grads = torch.autograd.grad(sum(y.sum() for y in found), kept, allow_unused=True)
            assert all(grad is not None for grad in grads)
    deep, flat = (kind(model, (2,)).state_dict() for kind in (FeatureListNet, FeatureHookNet))
    assert list(deep) == list(flat)


def peer_expansion(name: str, weights: dict[str, torch.Tensor]) -> Any:
    """timm's extractor; where the stem is a level it cannot be built but for a missing field."""
    from timm.models._features import FeatureInfo

    kept = FeatureInfo.get_dicts

    def complete(self: Any, keys: Any = None, out_indices: Any = None) -> Any:
        return [{"hook_type": "forward", **row} for row in kept(self, None, out_indices)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureInfo, "get_dicts", complete)
        net: Any = helpers.peer_model(name, features_only=True, feature_location="expansion")
    net.load_state_dict({k: weights[k] for k in net.state_dict()})
    return net.eval()


def test_early_levels_are_cheap() -> None:
    """Two early levels hold and compute the stem and those stages, nothing else."""
    with torch.device("meta"):
        model = featnet.create_model("efficientnet_b0")
        net = featnet.create_model("efficientnet_b0", features_only=True, out_indices=(0, 1))
    stages = [model.conv_stem, model.bn1, *model.blocks[:2]]
    wanted = sum(p.numel() for m in stages for p in m.parameters())
    assert sum(p.numel() for p in net.parameters()) == wanted
    flops = []
    for module in (net, model):
        with FlopCounterMode(display=False) as counter:
            module(torch.empty(1, 3, 224, 224, device="meta"))
        flops.append(counter.get_total_flops())
    assert flops[0] < 0.25 * flops[1]


@pytest.mark.parametrize("out_indices", [[1, 2, 3, 4], None])
def test_mobilenet_levels(out_indices: Any) -> None:
    given = {} if out_indices is None else {"out_indices": out_indices}
    net = featnet.create_model("mobilenetv3_large_100", features_only=True, **given)
    first = 0 if out_indices is None else 1
    assert net.feature_info.channels() == [16, 24, 40, 112, 960][first:]
    assert net.feature_info.reduction() == [2, 4, 8, 16, 32][first:]
    sizes = [(y.shape[1], *y.shape[2:]) for y in net.eval()(image_batch(64, 64))]
    wanted = [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (960, 2, 2)]
    assert sizes == wanted[first:]


class Foreign(nn.Module):
    """A model written elsewhere, one of whose levels is what a module is given."""

    def __init__(self, hook_type: str | None = "forward_pre") -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, 2, 1)
        self.b = nn.Conv2d(4, 8, 3, 2, 1)
        self.c = nn.Conv2d(8, 2, 1)
        self.feature_info = [
            dict(num_chs=4, reduction=2, module="b", hook_type=hook_type),
            dict(num_chs=8, reduction=4, module="b"),
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu()))


@pytest.mark.parametrize("kind", KINDS)
def test_declared_by_others(kind: Any) -> None:
    model, x = Foreign(), image_batch(16, 16)
    net = kind(model, (0,))
    (found,) = as_list(net(x))
    assert torch.equal(found, model.a(x).relu())
    assert {key.partition(".")[0] for key in net.state_dict()} == {"a"}  # b does not run
    assert net.feature_info[0]["hook_type"] == "forward_pre"


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ArgumentError, match=r"hook_type 'forward_per'.*'forward_pre'"):
        FeatureListNet(Foreign("forward_per"))
    with pytest.raises(ArgumentError, match=r"feature_location='expand'.*'expansion'"):
        featnet.create_model("test_efficientnet", feature_location="expand")
    assert Feature.of(dict(num_chs=1, reduction=1, module="a"), 0).hook_type == "forward"
