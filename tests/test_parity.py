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
from featnet.dilation import DilatedAvgPool2d, PadEndConv2d, set_output_stride
from featnet.layers import BlurPool2d

SIZES = ((96, 64), (65, 97))
TOLERANCE = 1e-5  # relative to the largest value, float32; measured: see docs/dilation.md


def state_shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


def peer_modules(timm: Any, module: str) -> list[str]:
    """The peer's modules that one of our families covers."""
    names = featnet.list_models(module=module)
    return sorted({timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in names})


@pytest.mark.parametrize("module", featnet.list_modules())
def test_names(timm: Any, module: str) -> None:
    theirs = peer_modules(timm, module)
    assert featnet.list_models(module=module) == timm.list_models(module=theirs)
    ours = set(featnet.list_pretrained(module=module))
    assert ours == set(timm.list_models(module=theirs, pretrained=True))


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
    covered = peer_modules(timm, module)
    for name in timm.list_models(module=covered):
        default = timm.models.get_pretrained_cfg(name)
        weights = featnet.get_weights(name)
        assert (default is None) == (weights is None), name
        if weights is not None:
            assert weights.tag == (default.tag or ""), name
    for full in timm.models.list_models(module=covered, include_tags=True):
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
    found += [m for m in blurs if m.stride not in (2, (2, 2)) or m.dilation not in (1, (1, 1))]
    # An even kernel, which the peer pads on both sides
    evens = [m for m in model.modules() if isinstance(m, PadEndConv2d)]
    return found + [m for m in evens if m.dilation not in (1, (1, 1))]


def peer_features(name: str, weights: dict[str, torch.Tensor], stride: int) -> Any:
    """The peer's extractor; None where it has no such stride."""
    options = {"output_stride": stride} if stride < 32 else {}
    try:
        net = helpers.peer_model(name, features_only=True, **options)
    except (TypeError, ValueError, AssertionError, NotImplementedError, RuntimeError):
        if not options:
            raise
        return None
    net.load_state_dict({k: v for k, v in weights.items() if k in net.state_dict()}, strict=True)
    return net.eval()


def check_law(model: Any, dense: Any) -> None:
    """In float64, without what sees the whole map, exactly."""
    original = helpers.without_global(copy.deepcopy(model)).double()
    dense = helpers.without_global(copy.deepcopy(dense)).double()
    blurs = any(isinstance(m, BlurPool2d) for m in original.modules())
    x = picture(*((97, 65) if blurs else (96, 64)), dtype=torch.float64)
    levels = zip(original._levels, dense._levels, strict=True)
    steps = [a.reduction // b.reduction for a, b in levels]
    maps = [m.forward_intermediates(x, intermediates_only=True) for m in (dense, original)]
    assert law_error(maps[0], maps[1], steps) < 1e-10


@pytest.mark.parametrize("name", representatives())
def test_numbers(timm: Any, name: str) -> None:
    ours, peer = pair(name)
    weights = peer.state_dict()
    with torch.inference_mode():
        for size in SIZES:
            x = picture(*size, batch=2)
            logits = peer(x)
            assert torch.isfinite(logits).all() and logits.std() > 1e-3
            assert error(ours(x), logits) <= TOLERANCE
            assert error(ours.forward_features(x), peer.forward_features(x)) <= TOLERANCE
        peer = None
        for stride in (32, 16, 8):
            dense = copy.deepcopy(ours)
            set_output_stride(dense, stride)
            theirs = peer_features(name, weights, stride)
            if theirs is None:
                check_law(ours, dense)
                continue
            net = featnet.FeatureListNet(dense)
            assert net.feature_info.reduction() == theirs.feature_info.reduction()
            assert net.feature_info.channels() == theirs.feature_info.channels()
            assert net.feature_info.module_name() == theirs.feature_info.module_name()
            differs = rewritten(dense)
            worst = 0.0
            for size in SIZES:
                x = picture(*size)
                for a, b in zip(net(x), theirs(x), strict=True):
                    assert differs or a.shape == b.shape
                    worst = max(worst, error(a, b) if a.shape == b.shape else float("inf"))
            if differs:
                check_law(ours, dense)
            else:
                assert worst <= TOLERANCE, stride
