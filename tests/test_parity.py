"""Parity with timm: names, checkpoint tables, keys, and numbers with the same weights.

Keys of all variants; numbers of one variant for each structural signature, with every parameter
and statistic filled with noise. The dilated networks that differ from the peer's do so because
featnet holds the à trous law, which is asserted where it happens (docs/dilation.md).
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter
from typing import Any

import helpers
import pytest
import torch
from helpers import error, families, image_batch, law_error, noisy, representatives
from torch import nn

import featnet
from benchmarks.memory import peak
from featnet.checkpoints.instant import SkipInit
from featnet.dilation.rule import set_output_stride
from featnet.tracing import structure

SIZES = ((96, 64), (65, 97))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the peer's
TOLERANCE = 1e-5  # relative to the largest value, float32; measured: see docs/dilation.md


def state_shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in model.state_dict().items()]


def peer_modules(timm: Any, module: str) -> list[str]:
    """The peer's modules that one of our families covers."""
    names = featnet.list_models(module=module)
    return sorted({timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in names})


@pytest.mark.parametrize("module", featnet.list_modules())
def test_names(timm: Any, module: str) -> None:
    """Whatever of the peer's modules a family file has something of is there as a whole."""
    ours = featnet.list_models(module=module)
    theirs = sorted({timm.models._registry._model_to_module[name] for name in ours})
    assert set(ours) <= set(timm.list_models(module=theirs)) <= set(featnet.list_models())
    pretrained = {n for n in timm.list_models(module=theirs, pretrained=True) if base(n) in ours}
    assert set(featnet.list_pretrained(module=module)) == pretrained


def base(name: str) -> str:
    return name.partition(".")[0]


def renamed(module: str) -> str:
    """A norm of the peer's may hold its activation, whose name the level has here."""
    return re.sub(r"\b(bn|norm)(\d)$", r"act\2", module)


@pytest.mark.parametrize("name", featnet.list_models())
def test_keys_and_levels(timm: Any, name: str) -> None:
    """Of every variant: the state dict, and the whole list of levels, index by index."""
    with torch.device("meta"), helpers.Unset():
        peer: Any = helpers.peer_model(name)
    model: Any = helpers.full_model(name)
    assert state_shapes(model) == state_shapes(peer)
    for level, row in zip(model._levels, peer.feature_info, strict=True):
        # where the peer names no module, its reduction is that of nothing
        assert (level.channels, level.reduction) == (
            row["num_chs"],
            row["reduction"] if row["module"] else level.reduction,
        )
    if getattr(model, "feature_location", "") == "incre":
        return  # the peer names modules of its classifier, which have other maps
    modules = {name for name, _ in peer.named_modules() if name}
    named = Counter(row["module"] for row in peer.feature_info)
    for level, row in zip(model._levels, peer.feature_info, strict=True):
        other = row["module"]  # which is not always the name of a module, or of one for many levels
        assert level.module in (other, renamed(other)) or other not in modules or named[other] > 1


def plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("module", featnet.list_modules())
def test_checkpoint_tables(timm: Any, module: str) -> None:
    """Every field of every tag, and the same tag first."""
    fields = [f.name for f in dataclasses.fields(featnet.Weights)]
    derived = {"pool_size", "first_conv", "classifier", "architecture", "tag"}
    differences = []
    names = featnet.list_models(module=module)
    for name in names:
        default = timm.models.get_pretrained_cfg(name)
        weights = featnet.get_weights(name)
        assert (default is None) == (weights is None), name
        if weights is not None:
            assert weights.tag == (default.tag or ""), name
    modules = sorted({timm.models._registry._model_to_module[name] for name in names})
    every = timm.list_models(module=modules, include_tags=True)
    for full in (full for full in every if base(full) in names):
        theirs, ours = timm.models.get_pretrained_cfg(full), featnet.get_weights(full)
        if theirs is None or ours is None:
            assert theirs is ours, full
            continue
        for field in set(fields) - derived:
            wanted, got = plain(getattr(theirs, field, None)), getattr(ours, field)
            if field in ("url", "hf_hub_id") and not wanted:
                wanted = None  # the peer has "" and None for none
            if field == "hf_hub_id" and wanted == "timm/":
                wanted += full  # the peer appends the name when it downloads
            if got != wanted:
                differences.append((full, field, got, wanted))
    assert not differences


def pair(name: str) -> tuple[Any, nn.Module]:
    """Ours and the peer's, without repeats, with the same noise, through a strict load."""
    repeats = helpers.repeats(name)
    with SkipInit():
        ours = helpers.without(repeats, helpers.create(name))
    make = helpers.peer_transformer if helpers.attends(ours) else helpers.peer_model
    peer: Any = noisy(lambda: helpers.without(repeats, make(name, **helpers.small(name)))).eval()
    own = tuple(peer.pretrained_cfg["input_size"][-2:])
    for size in (helpers.sizes(name)[0], own):  # which the peer may refuse
        x = image_batch(*size, batch=4)
        if answer(peer.forward_features, x) is not None:
            helpers.settle(peer, x)
            break
    ours.load_state_dict(peer.state_dict(), strict=True)
    return ours.eval(), peer


def answer(peer: Any, x: torch.Tensor) -> Any:
    """What a function of the peer's gives; None where it cannot take an input of this size."""
    try:
        return peer(x)
    except (RuntimeError, AssertionError):
        return None


def answer_of_head(peer: Any, features: torch.Tensor) -> Any:
    """The peer's logits; the final features of an encoder, which has no head."""
    try:
        return peer.forward_head(features)
    except NotImplementedError:
        return features


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
    x = image_batch(*helpers.law_sizes(original, dense)[0], dtype=torch.float64)
    levels = zip(original._levels, dense._levels, strict=True)
    steps = [a.reduction // b.reduction for a, b in levels]
    with helpers.Local(model.breaks_law):
        maps = [m.forward_intermediates(x, intermediates_only=True) for m in (dense, original)]
    assert law_error(maps[0], maps[1], steps) < 1e-10


def laid_out(y: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A map (N, C, H, W) as the peer's (N, H, W, C) or (N, H * W, C), if that is what it gives."""
    if y.ndim == 4 and like.ndim == 3:
        return y.flatten(2).transpose(1, 2)
    return y.permute(0, 2, 3, 1) if y.ndim == 4 and y.shape != like.shape else y


def gradient(net: Any, x: torch.Tensor) -> torch.Tensor:
    """Of the sum of all features with respect to the input."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(sum(y.sum() for y in net(x)), x)[0]


@pytest.mark.parametrize("name", representatives())
def test_numbers(timm: Any, name: str) -> None:
    ours, peer = pair(name)
    weights, maps = peer.state_dict(), names_of_maps(peer)
    own = tuple(peer.pretrained_cfg["input_size"][-2:])
    sizes: list[tuple[int, int]] = []
    with torch.inference_mode():
        for size in (*helpers.sizes(name)[:2], own):
            if sizes and size == own:
                continue  # for a peer that takes no other
            theirs = helpers.at_size(peer, size)
            x = image_batch(*size, batch=1 if sizes else 2)
            wanted = answer(theirs.forward_features, x)
            if wanted is None:
                continue
            if not sizes and isinstance(wanted, torch.Tensor):  # CoaT's may be three
                assert error(laid_out(ours.forward_features(x), wanted), wanted) <= TOLERANCE
            logits = answer_of_head(theirs, wanted)
            assert torch.isfinite(logits).all() and logits.std() > 1e-3
            assert error(ours(x), logits) <= TOLERANCE
            sizes.append(size)
    assert sizes
    peer = None
    few = sum(p.numel() for p in ours.parameters()) < 12_000_000  # strides of 16 and 8 are one rule
    for stride in (32, 16, 8) if few else (32, 8):
        theirs = helpers.peer_features(name, weights, stride)
        assert theirs is not None or stride < 32
        if theirs is None or (stride < 32 and stride not in helpers.strides(name)):
            continue
        dense: Any = structure.clone(ours)
        if stride < 32:
            set_output_stride(dense, stride)
        net = featnet.FeatureListNet(dense, theirs.feature_info.out_indices, norm=False)
        assert net.feature_info.reduction() == theirs.feature_info.reduction()
        assert net.feature_info.channels() == theirs.feature_info.channels()
        names = [n.feature_info.module_name() for n in (net, theirs)]
        for mine, other in zip(*names, strict=True):  # a norm of the peer's may hold its activation
            assert mine in (other, renamed(other)) or other not in maps
        worst = 0.0
        for size in sizes if stride == 32 else sizes[-1:]:
            x = image_batch(*size)
            with torch.inference_mode():
                found, wanted = net(x), answer(theirs, x)
            for a, b in zip(found, wanted or found, strict=True):
                a = laid_out(a, b)
                worst = max(worst, error(a, b) if a.shape == b.shape else float("inf"))
        if helpers.attends(ours):
            x = image_batch(*sizes[0])
            found = ours.forward_intermediates(x, norm=True, intermediates_only=True)
            try:
                wanted = theirs(x, norm=True)
            except AssertionError:  # the peer has no normed levels there
                wanted = found
            for a, b in zip(found, wanted, strict=True):
                worst = max(worst, error(a, b))
        if worst > TOLERANCE:  # where a dilated network is not the peer's it holds the law
            assert stride < 32
            check_law(ours, dense)
        elif stride == 32:
            x = image_batch(*sizes[0])
            gap = error(gradient(net, x), gradient(theirs, x))
            if gap > 10 * TOLERANCE:  # a maximum may go to another of nearly equal values
                for module in (net, getattr(theirs, "model", theirs)):
                    module.double()
                gap = error(gradient(net, x.double()), gradient(theirs, x.double()))
            assert gap <= 10 * TOLERANCE


@pytest.mark.parametrize("name", families())
def test_a_forward_takes_no_more_memory(timm: Any, name: str) -> None:
    """At its peak, but for a few percent and small tables."""
    ours, peer = pair(name)
    own = tuple(peer.pretrained_cfg["input_size"][-2:])
    with torch.inference_mode():
        for size in (helpers.sizes(name)[0], own):
            x, theirs = image_batch(*size, batch=2), helpers.at_size(peer, size)
            if answer(theirs.forward_features, x) is not None:
                break
        ours.forward_features(x)  # what is kept for all later ones is made
        mine, limit = (peak(lambda m=m: m.forward_features(x)) for m in (ours, theirs))
    assert mine <= 1.05 * limit + 50_000
