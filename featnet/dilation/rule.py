"""``output_stride``: one rule for every network made of convolutions and pools.

Let an operation of the original network read a map at reduction r_in and write one at r_out. For
output stride s it gets stride ``min(r_out, s) / min(r_in, s)`` and samples ``r_in / min(r_in, s)``
times further apart. Then the new network's map at every (32/s)-th position equals the original
network's map: the à trous algorithm (https://arxiv.org/abs/1412.7062).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from torch import nn

from ..errors import OutputStrideError
from ..features import Feature
from ..layers import Phased
from ..tracing import trace
from .windows import (
    QUICK_PADDING,
    Count,
    DilatedAvgPool2d,
    PaddedConv2d,
    PaddedMaxPool2d,
    Pair,
    has_stride,
    pair,
    side,
    stride_of,
)


@dataclasses.dataclass(frozen=True)
class Step:
    """The change of a window: of its input and output, and so of its step and its reach."""

    density: int  # r_in / min(r_in, s): how much denser the input is now
    stride: Pair
    scale: Fraction  # of an upsampling: its factor


@dataclasses.dataclass(frozen=True)
class Place:
    """A call of a window or an upsampling in the original network, and the reductions (input side
    over map side) that it reads at and writes at."""

    name: str
    module: nn.Module
    reads: Fraction
    writes: Fraction


def places(
    modules: Mapping[str, nn.Module], calls: Iterable[trace.Call], size: Pair
) -> Iterator[Place]:
    """Yield the calls of a run that an output stride may change, in their order."""
    known: set[Fraction] = {Fraction(1)}
    # What is inside runs on maps of the original's density, and stays as it is
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Phased))
    for call in calls:
        module = modules[call.name]
        if call.name.startswith(inside):
            continue
        if not call.inputs or len(call.inputs[0]) != 4 or len(call.outputs[0]) != 4:
            continue
        before, after = side(module, call.inputs[0]), side(module, call.outputs[0])
        if (1, 1) in (before, after):
            continue  # behind a global pool, or one itself: no positions are left to be apart
        if not has_stride(module):
            factors = {Fraction(a, b) for a, b in zip(before, after, strict=True)}
            if len(factors) == 1 and (factor := factors.pop()).denominator == 1:
                # one that makes channels of pixels, for instance, and that cannot do otherwise
                known |= {nearest_reduction(known, size[0], before[0]) * factor}
            continue
        stride = _ratio(module)
        if stride[0] != stride[1]:
            raise OutputStrideError(
                f"{call.name} ({type(module).__name__}) has strides {stride[0]} and {stride[1]}: "
                "an output stride is one number for rows and columns."
            )
        reads = nearest_reduction(known, size[0], before[0])
        known.add(reads * stride[0])
        yield Place(call.name, module, reads, reads * stride[0])


def nearest_reduction(known: Iterable[Fraction], height: int, rows: int) -> Fraction:
    """Return the reduction of a map: unpadded kernels make it a little smaller than it should
    be."""
    return min(known, key=lambda r: abs(math.log(height / rows / float(r))))


def plan(
    modules: Mapping[str, nn.Module], calls: Iterable[trace.Call], output_stride: int, size: Pair
) -> dict[str, Step]:
    """Return the step of every window and upsampling, by name, from a run of the original network.

    Raises:
        OutputStrideError: one of them cannot have a step.
    """
    steps: dict[str, Step] = {}
    for place in places(modules, calls, size):
        dense = min(place.reads, Fraction(output_stride))
        new = min(place.writes, Fraction(output_stride)) / dense
        density = place.reads / dense
        fits = isinstance(place.module, nn.Upsample) or (
            new.denominator == 1 and density.denominator == 1
        )
        if not fits:
            raise OutputStrideError(
                f"output_stride={output_stride}: {place.name} ({type(place.module).__name__}) "
                f"reads at reduction {place.reads} and writes at {place.writes}, which has no "
                "whole stride there."
            )
        step = Step(int(density), (int(new), int(new)), scale=1 / new)
        if steps.setdefault(place.name, step) != step:
            raise OutputStrideError(
                f"output_stride={output_stride}: {place.name} runs at two resolutions, which need "
                "different strides."
            )
    return steps


def _ratio(module: Any) -> tuple[Fraction, Fraction]:
    """By how much a map gets coarser: a window's stride; below 1 of an upsampling."""
    if isinstance(module, nn.Upsample):
        factor: Any = module.scale_factor
        rows, columns = factor if isinstance(factor, tuple) else (factor, factor)
        return 1 / Fraction(rows).limit_denominator(64), 1 / Fraction(columns).limit_denominator(64)
    rows, columns = stride_of(module)
    return Fraction(rows), Fraction(columns)


def dilate(module: nn.Module, step: Step) -> nn.Module:
    """The module with another stride and reach; a new one that shares its tensors if need be."""
    window: Any = module
    density, stride = step.density, stride_of(module)
    lost = step.stride != stride
    kernel = pair(getattr(window, "kernel_size", 0))
    if not lost and (density == 1 or kernel == (1, 1)):
        return module
    if hasattr(window, "dilate"):  # it knows better: its padding depends on the map, for instance
        dilated = window.dilate(density, step.stride)
        assert isinstance(dilated, nn.Module)
        return dilated
    before, dilation = _padding(window), pair(getattr(window, "dilation", 1))
    padding = (before[0] * density, before[1] * density)
    # A kernel of one position has no reach: it is computed as it was
    dilated = (
        dilation[0] * density if kernel[0] > 1 else dilation[0],
        dilation[1] * density if kernel[1] > 1 else dilation[1],
    )
    end = (0, 0)
    # An unpadded kernel longer than its stride drops border positions: then nothing is added
    drops = any(
        d * (k - 1) + 1 - s > 2 * p
        for d, k, s, p in zip(dilation, kernel, stride, before, strict=True)
    )
    ceil = getattr(module, "ceil_mode", False)
    if ceil or (lost and not drops):  # keep the size: what is missing goes after
        reach = [d * (k - 1) + 1 - s for d, k, s in zip(dilated, kernel, step.stride, strict=True)]
        end = (max(0, reach[0] - 2 * padding[0]), max(0, reach[1] - 2 * padding[1]))
    counts = _counts(kernel, stride, before, step) if ceil and lost and drops else None
    if isinstance(module, nn.AvgPool2d):
        average = DilatedAvgPool2d(
            kernel,
            step.stride,
            padding,
            dilated,
            pad_end=end,
            count_include_pad=module.count_include_pad,
            divisor=module.divisor_override,
        ).train(module.training)
        average.counts = counts
        return average
    deep = isinstance(module, nn.MaxPool2d) and max(padding) > min(kernel) // 2
    slow = (
        type(module) is nn.Conv2d
        and module.groups == module.in_channels > 1
        and max(padding) > QUICK_PADDING
    )
    if end != (0, 0) or counts or deep or slow:
        kinds: dict[type, Any] = {nn.Conv2d: PaddedConv2d, nn.MaxPool2d: PaddedMaxPool2d}
        if type(module) not in kinds:
            raise OutputStrideError(
                f"{type(module).__name__} with kernel {kernel} cannot pad on one side, which "
                "losing its stride needs."
            )
        padded: Any = kinds[type(module)].__new__(kinds[type(module)])
        padded.__dict__.update(module.__dict__)
        padded.pad_end, padded.counts, window = end, counts, padded
    window.stride, window.padding, window.dilation = step.stride, padding, dilated
    return window


def _counts(kernel: Pair, stride: Pair, padding: Pair, step: Step) -> tuple[Count, Count]:
    """Rows and columns that a pool put out, by its own kernel, stride and padding."""
    rows, columns = (
        Count(k, s, p, step.density, s * step.density // new)
        for k, s, p, new in zip(kernel, stride, padding, step.stride, strict=True)
    )
    return rows, columns


def _padding(window: Any) -> Pair:
    """(rows, columns) that a window pads by on either side."""
    if window.padding == "same":
        reach = [d * (k - 1) for d, k in zip(window.dilation, window.kernel_size, strict=True)]
        return reach[0] // 2, reach[1] // 2
    return (0, 0) if window.padding == "valid" else pair(window.padding)


def check_stride(output_stride: object, allowed: list[int], model: nn.Module) -> None:
    """Refuse what is not one of the strides that a network can have.

    Raises:
        OutputStrideError: with those, and the nearest.
    """
    if isinstance(output_stride, bool) or not isinstance(output_stride, int):
        raise OutputStrideError(
            f"output_stride={output_stride!r} is a {type(output_stride).__name__}; "
            f"{type(model).__name__} can have the ints {allowed}."
        )
    if not allowed:
        raise OutputStrideError(
            f"output_stride={output_stride}: {type(model).__name__} has no convolution, pool or "
            "upsampling on maps that grow with its input, so no stride that could be set."
        )
    if output_stride not in allowed:
        near = min(allowed, key=lambda stride: abs(stride - output_stride))
        raise OutputStrideError(
            f"output_stride={output_stride}: {type(model).__name__} can have {allowed}; the "
            f"nearest is {near}."
        )


def apply(model: nn.Module, steps: Mapping[str, Step]) -> None:
    """Give the modules of these names other strides, in place.

    Raises:
        OutputStrideError: a module that cannot have another; it names the module.
    """
    done: dict[int, nn.Module] = {}  # one module may have several names, in several parents
    for name, step in steps.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Upsample):
            module.scale_factor = float(step.scale)
            continue
        try:
            dilated = done[id(module)] if id(module) in done else dilate(module, step)
        except OutputStrideError as error:
            raise OutputStrideError(f"{name}: {error}") from None
        done |= {id(module): dilated, id(dilated): dilated}
        if dilated is not module:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, dilated)


def set_output_stride(model: Any, output_stride: int) -> None:
    """Give a Backbone an output stride, in place; parameters and their names stay.

    Raises:
        OutputStrideError: not one of the network's ``output_strides``, or one that an operation
            outside of its modules does not let it hold.
    """
    levels: list[Feature] = list(model._levels)
    allowed: list[int] = model.output_strides
    check_stride(output_stride, allowed, model)
    if output_stride >= allowed[-1]:
        return
    size = trace.probe_size(model)
    before = trace.run(model, size, watched=has_stride)
    modules = dict(model.named_modules(remove_duplicate=False))
    apply(model, plan(modules, before.calls, output_stride, size))
    held = trace.run(model, size, watched=trace.no_modules).levels
    for index, level in enumerate(levels):
        old, new = before.levels[index], held[index]
        reduction = min(level.reduction, output_stride)
        wanted = old[-2] * level.reduction / reduction
        # Unpadded kernels lose a few positions at the border, now as many times more of them
        if abs(new[-2] - wanted) > level.reduction / reduction * 2:
            raise OutputStrideError(
                f"output_stride={output_stride} does not hold at {level.module}: its map is "
                f"{new[-2]} high for an input of {size[0]}, {wanted:g} were expected. Something "
                "in its forward strides without a module."
            )
        levels[index] = dataclasses.replace(level, reduction=reduction)
    model._levels = tuple(levels)
