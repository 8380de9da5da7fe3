"""Parity with timm: names, checkpoint tables, keys, and numbers with the same weights.

Keys of all variants; numbers of one variant for each structural signature, with every parameter
and statistic filled with noise. The dilated networks that differ from the peer's do so because
featnet holds the à trous law, which is asserted where it happens (docs/dilation.md).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import helpers
import pytest
import torch
from helpers import error, fill_noise, law_error, meta_model, picture, representatives
from torch import nn

import featnet
from featnet.dilation import DilatedAvgPool2d, set_output_stride
from featnet.layers import BlurPool2d

SIZES = ((96, 64), (65, 97))
TOLERANCE = 1e-5  # relative to the largest value, float32; measured: see docs/dilation.md


def state_shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


@pytest.mark.parametrize("module", featnet.list_modules())
def test_names(timm: Any, module: str) -> None:
    assert featnet.list_models(module=module) == timm.list_models(module=module)
    ours = set(featnet.list_pretrained(module=module))
    assert ours == set(timm.list_models(module=module, pretrained=True))


@pytest.mark.parametrize("name", featnet.list_models())
def test_keys(timm: Any, name: str) -> None:
    with torch.device("meta"):
        peer = helpers.peer_model(name)
    assert state_shapes(meta_model(name)) == state_shapes(peer)


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("module", featnet.list_modules())
def test_checkpoint_tables(timm: Any, module: str) -> None:
    """Every field of every tag, and the same tag first."""
    fields = [f.name for f in dataclasses.fields(featnet.Weights)]
    derived = {"pool_size", "first_conv", "classifier", "architecture", "tag"}
    differences = []
    for name in timm.list_models(module=module):
        default = timm.models.get_pretrained_cfg(name)
        weights = featnet.get_weights(name)
        assert (default is None) == (weights is None), name
        if weights is not None:
            assert weights.tag == (default.tag or ""), name
    for full in timm.models.list_models(module=module, include_tags=True):
        theirs, ours = timm.models.get_pretrained_cfg(full), featnet.get_weights(full)
        if theirs is None or ours is None:
            assert theirs is ours, full
            continue
        for field in set(fields) - derived:
            wanted, got = plain(getattr(theirs, field, None)), getattr(ours, field)
            if field == "url" and not wanted:
                wanted = None  # the peer has "" and None for none
            if field == "hf_hub_id" and wanted == "timm/":
                wanted += full  # the peer appends the name when it downloads
            if got != wanted:
                differences.append((full, field, got, wanted))
    assert not differences


def pair(name: str) -> tuple[Any, nn.Module]:
    """Ours and the peer's with the same noise, through a strict load."""
    peer = fill_noise(helpers.peer_model(name)).eval()
    ours = featnet.create_model(name)
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours.eval(), peer


def rewritten(model: nn.Module) -> list[nn.Module]:
    """Windows to which an output stride did what the peer's code does not: those that the peer
    has no dilation for."""
    found: list[nn.Module] = [m for m in model.modules() if isinstance(m, DilatedAvgPool2d)]
    blurs = [m for m in model.modules() if isinstance(m, BlurPool2d)]
    return found + [m for m in blurs if m.stride not in (2, (2, 2)) or m.dilation not in (1, (1, 1))]


def peer_features(name: str, weights: dict[str, torch.Tensor], stride: int) -> Any:
    """The peer's extractor, or None where it refuses the output stride."""
    try:
        dilated = {} if stride == 32 else {"output_stride": stride}
        net: Any = helpers.peer_model(name, features_only=True, **dilated)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError):
        if stride == 32:
            raise
        return None
    return helpers.load_features(net, weights)


def answer(peer: nn.Module, x: torch.Tensor) -> Any:
    """What the peer gives; None where it cannot take an input of this size."""
    try:
        return peer(x)
    except RuntimeError:
        return None


def names_of_maps(peer: nn.Module) -> set[str]:
    """Filled by the peer's next forward: the modules that put out one tensor. Some of the names of
    its levels are no such modules."""
    found: set[str] = set()
    for name, module in peer.named_modules():
        module.register_forward_hook(
            lambda _module, _args, out, name=name: (
                found.add(name) if isinstance(out, torch.Tensor) else None
            )
        )
    return found


def check_law(model: Any, dense: Any) -> None:
    """In float64, without what sees the whole map, exactly."""
    original = helpers.without_global(copy.deepcopy(model)).double()
    dense = helpers.without_global(copy.deepcopy(dense)).double()
    x = picture(*helpers.law_sizes(original, dense)[0], dtype=torch.float64)
    levels = zip(original._levels, dense._levels, strict=True)
    steps = [a.reduction // b.reduction for a, b in levels]
    with helpers.Local():
        maps = [m.forward_intermediates(x, intermediates_only=True) for m in (dense, original)]
    assert law_error(maps[0], maps[1], steps) < 1e-10


@pytest.mark.parametrize("name", representatives())
def test_numbers(timm: Any, name: str) -> None:
    ours, peer = pair(name)
    weights, maps = peer.state_dict(), names_of_maps(peer)
    with torch.inference_mode():
        for size in SIZES:
            x = picture(*size, batch=2)
            logits = answer(peer, x)
            if logits is None and size != SIZES[0]:
                continue
            assert torch.isfinite(logits).all() and logits.std() > 1e-3
            assert error(ours(x), logits) <= TOLERANCE
            assert error(ours.forward_features(x), peer.forward_features(x)) <= TOLERANCE
        peer = None
        for stride in (32, 16, 8):
            dense = copy.deepcopy(ours)
            set_output_stride(dense, stride)
            theirs = peer_features(name, weights, stride)
            if theirs is None:
                continue
            net = featnet.FeatureListNet(dense)
            assert net.feature_info.reduction() == theirs.feature_info.reduction()
            assert net.feature_info.channels() == theirs.feature_info.channels()
            names = [n.feature_info.module_name() for n in (net, theirs)]
            assert all(a == b for a, b in zip(*names, strict=True) if b in maps)
            differs = rewritten(dense)
            worst = 0.0
            for size in SIZES:
                x = picture(*size)
                wanted = answer(theirs, x)
                if wanted is None:
                    continue
                for a, b in zip(net(x), wanted, strict=True):
                    assert differs or a.shape == b.shape
                    worst = max(worst, error(a, b) if a.shape == b.shape else float("inf"))
            if differs:
                check_law(ours, dense)
            else:
                assert worst <= TOLERANCE, stride
