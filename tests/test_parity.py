"""Parity with timm: names, checkpoint tables, keys, and numbers with the same weights.

Keys of all variants; numbers of one variant for each structural signature, with every parameter
and statistic filled with noise. The dilated networks that differ from the peer's do so because
featnet holds the à trous law, which is asserted where it happens (docs/dilation.md).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import helpers
import pytest
import torch
from helpers import error, fill_noise, law_error, meta_model, picture, representatives
from torch import nn

import featnet
from featnet import FeatureListNet
from featnet.dilation import set_output_stride
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


def law_of(original: Any, dense: Any, size: tuple[int, int]) -> float:
    """By how much a net misses the à trous law, in float64 and without what sees the whole map."""
    nets = [helpers.without_global(copy.deepcopy(net)).double() for net in (dense, original)]
    infos = original.feature_info.reduction(), dense.feature_info.reduction()
    steps = [a // b for a, b in zip(*infos, strict=True)]
    maps = [net(picture(*size, dtype=torch.float64)) for net in nets]
    if any(d[..., ::m, ::m].shape != f.shape for d, f, m in zip(*maps, steps, strict=True)):
        return float("inf")
    return law_error(*maps, steps)


def check_difference(
    ours: list[Any], theirs: list[Any], sizes: Sequence[tuple[int, int]]
) -> None:
    """Where a dilated network differs from the peer's, it holds the law and the peer's does not."""
    blurs = any(isinstance(m, BlurPool2d) for m in ours[0].modules())
    assert law_of(*ours, (97, 65) if blurs else (96, 64)) < 1e-10
    if theirs[1] is not None:
        assert max(law_of(*theirs, size) for size in sizes) > 1e-3


@pytest.mark.parametrize("name", representatives())
def test_numbers(timm: Any, name: str) -> None:
    ours, peer = pair(name)
    weights = peer.state_dict()
    sizes = helpers.peer_sizes(peer, SIZES)
    with torch.inference_mode():
        for size in sizes:
            x = picture(*size, batch=2)
            logits = peer(x)
            assert torch.isfinite(logits).all() and logits.std() > 1e-3
            assert error(ours(x), logits) <= TOLERANCE
            assert error(ours.forward_features(x), peer.forward_features(x)) <= TOLERANCE
        nets: dict[int, list[Any]] = {}
        for stride in (32, 16, 8):
            dense = copy.deepcopy(ours)
            set_output_stride(dense, stride)
            net, theirs = FeatureListNet(dense), helpers.peer_features(name, weights, stride)
            nets[stride] = [net, theirs]
            assert theirs is not None or stride < 32
            worst = float("inf")
            if theirs is not None:
                info, wanted = net.feature_info, theirs.feature_info
                assert info.reduction() == wanted.reduction()
                assert info.channels() == wanted.channels()
                assert info.module_name() == wanted.module_name()
                pairs = [
                    pair for x in (picture(*size) for size in sizes)
                    for pair in zip(net(x), theirs(x), strict=True)
                ]  # fmt: skip
                same = all(a.shape == b.shape for a, b in pairs)
                worst = max(error(a, b) for a, b in pairs) if same else worst
            if worst > TOLERANCE:
                assert stride < 32
                check_difference(*zip(nets[32], nets[stride], strict=True), sizes)
