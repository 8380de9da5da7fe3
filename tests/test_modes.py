"""The modes in which people run backbones: exported, compiled, traced, channels_last, half
precision.

Capturing a graph takes seconds a network, so each way of doing so sees its share of the families;
with FEATNET_EXHAUSTIVE=1 all see every representative.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import helpers
import pytest
import torch
from helpers import families, fill_noise, image_batch
from test_memory import empty
from torch import nn

import featnet
from featnet.errors import FeatnetError, InputSizeError
from featnet.tracing.structure import clone
from featnet.tracing.trace import tensors

FREE = torch.export.Dim.DYNAMIC
DYNAMIC = ({0: FREE, 2: FREE, 3: FREE},)
ALL = os.environ.get("FEATNET_EXHAUSTIVE") == "1"


def share(first: int, step: int = 6) -> tuple[str, ...]:
    """Every sixth family, so that large ones are shared too."""
    if ALL:
        return families()
    return tuple(sorted(families(), key=lambda name: helpers.facts(name).modules))[first::step]


def noisy(name: str, kind: Any = featnet.FeatureListNet) -> Any:
    """An extractor of few blocks."""
    return fill_noise(kind(empty(name), copy=False)).eval()


def assert_same(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        assert helpers.error(a.float(), b) <= tolerance


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def exported(net: nn.Module, x: torch.Tensor, *, strict: bool = True) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        program = torch.export.export(net, (x,), dynamic_shapes=DYNAMIC, strict=strict)
        return program.module()


def free_sizes(net: Any, name: str) -> list[tuple[int, int]]:
    """Sizes at which no level is one row: torch guards that it stays one."""
    sizes = [*helpers.sizes(name)]
    if 1 in net.feature_info.sizes(sizes[0])[-1]:  # a level at /64
        return [(2 * rows, 2 * columns) for rows, columns in sizes]
    return sizes


@pytest.mark.parametrize("name", share(0))
def test_strict_export(name: str) -> None:
    """Law 7: dynamo takes the whole forward as one graph, whose sizes are free: it takes all that
    the network takes, one window and several, odd branches and even ones."""
    net = noisy(name)
    sizes = [*free_sizes(net, name), *((64, 112), (96, 96))]
    found = exported(net, image_batch(*sizes[0], batch=2))
    x = image_batch(*sizes[0], batch=3)
    assert_same(found(x), net(x))
    for size in sizes[1:]:
        x = image_batch(*size)
        try:
            wanted = net(x)
        except InputSizeError:
            continue  # no size for this network at all
        if net.body.border and 1 in wanted[-1].shape[-2:]:
            continue  # torch guards that a side of more than one position is never one
        assert_same(found(x), wanted)


@pytest.mark.parametrize("name", share(2))
def test_compiled_once_for_all_sizes(name: str) -> None:
    net = noisy(name, featnet.FeatureDictNet)
    sizes = free_sizes(net, name)
    fast = torch.compile(net, fullgraph=True, backend="eager", dynamic=True)
    x = image_batch(*sizes[0], batch=2)
    assert_same(fast(x), net(x))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, size in ((3, sizes[0]), (3, sizes[-1]), (2, sizes[1 % len(sizes)])):
            x = image_batch(*size, batch=batch)
            assert_same(fast(x), net(x))


@pytest.mark.parametrize("name", share(1))
def test_hooks_export_without_dynamo(name: str) -> None:
    net = noisy(name, featnet.FeatureHookNet)
    sizes = free_sizes(net, name)
    found = exported(net, image_batch(*sizes[0], batch=2), strict=False)
    x = image_batch(*sizes[-1], batch=3)
    assert_same(found(x), net(x))


def test_taps_inside_a_stage_export_strictly() -> None:
    model = fill_noise(empty("test_resnet")).eval()
    net = featnet.FeatureHookNet(model, taps=["layer1.0.conv1", "layer2.0.bn1"])
    x = image_batch(65, 97, batch=3)
    assert_same(exported(net, image_batch(64, 96, batch=2))(x), net(x))
    with pytest.raises(FeatnetError, match=r"'layer2\.0\.bn1': use strict=True"):
        exported(net, x, strict=False)


@pytest.mark.parametrize("name", families())
def test_traced_and_in_half_precision(name: str) -> None:
    net, x = noisy(name), image_batch(*helpers.sizes(name)[0], batch=2)
    wanted = net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and what it takes for constants
        traced = torch.jit.trace(net, x, check_trace=False)
    assert_same(traced(x), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = net(x)
    assert_same(maps, wanted, _allowed(net, x, maps, wanted, 0.1))
    for dtype in (torch.bfloat16, torch.float16):
        maps = clone(net, lambda t, dtype=dtype: _as(t, dtype))(x.to(dtype))
        assert all(y.dtype == dtype for y in maps)
        if dtype == torch.bfloat16:  # the range of float16 is not for every noise
            assert_same(maps, wanted, _allowed(net, x, maps, wanted, 0.25))


def _allowed(net: Any, x: torch.Tensor, maps: Any, wanted: Any, usual: float) -> float:
    """The usual tolerance; for a network that amplifies rounding, as products of maps do, three
    times what rounded weights and a rounded image make of its float32."""
    if all(helpers.error(a.float(), b) <= usual for a, b in zip(maps, wanted, strict=True)):
        return usual
    rounded = clone(net, lambda t: _as(_as(t, torch.bfloat16), t.dtype))(x.bfloat16().float())
    return 3 * max(helpers.error(a, b) for a, b in zip(rounded, wanted, strict=True))


def _as(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    made = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made


def convolutional() -> list[str]:
    """Small convolutional networks in which every class of module occurs."""
    seen: set[type] = set()
    found = []
    for name in sorted(helpers.representatives(), key=helpers.parameter_count):
        facts = helpers.facts(name)
        if not facts.attends and (ALL or {*facts.types} - seen):
            seen |= {*facts.types}
            found.append(name)
    return found


@pytest.mark.parametrize("name", convolutional())
def test_channels_last_stay_last(name: str) -> None:
    model, last = empty(name), torch.channels_last
    x = torch.zeros(2, 3, *helpers.sizes(name)[0]).contiguous(memory_format=last)
    maps = model.forward_intermediates(x, intermediates_only=True)
    for level, y in zip(model.feature_info, maps, strict=True):
        assert y.is_contiguous(memory_format=last), level
