"""Levels of a model that declares none, seen in what its modules put out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import ArgumentError, TraceError
from ..features import Feature, FeatureInfo
from ..tracing import structure, trace
from . import layout
from .layout import Layout


def discover(model: nn.Module, input_size: Sequence[int] = (3, 224, 224)) -> FeatureInfo:
    """The levels of any model: at each resolution the last module that puts out a map of it.

    Modules inside a block that itself ends at a coarser resolution, or in a vector, are that block's
    business: the 1 x 1 convolution at the beginning of a stage, for instance, or the keys of a head
    that pools by attention. Maps may be
    (N, C, H, W), (N, H, W, C) or tokens, with or without prefix tokens; each level says its
    ``layout``. The model runs twice on the meta device, at this size and at twice this size, which
    tells a map from what merely has its shape; of one that takes a single size, once.

    ``FeatureListNet(model, feature_info=discover(model))`` extracts them.

    Args:
        model: any module that takes one (N, C, H, W) batch. It is not changed.
        input_size: (C, H, W), or (H, W) for as many channels as the first convolution has.

    Returns:
        a FeatureInfo, which prints as a table; ``sizes`` of it works.

    Raises:
        ArgumentError: no module puts out a map that is coarser than the input.
        TraceError: the model does not run on such an input.
    """
    structure.check_module(model)
    channels, size = _input(model, input_size)
    try:
        seen = trace.run(model, size, through=True, channels=channels)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} does not run on an input of {(channels, *size)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    levels = _levels(model, _calls(model, seen, size, channels), channels, [*seen.levels.values()])
    if not any(level.reduction > 1 for level in levels):
        shapes = {tuple(c.outputs[0]) for c in seen.calls if c.outputs}
        raise ArgumentError(
            f"{type(model).__name__} has no pyramid: none of its {len(seen.calls)} module calls "
            f"puts out a map coarser than the input. It puts out {sorted(shapes)[:8]}."
        )

    def measure(other: tuple[int, int]) -> list[tuple[int, int]]:
        calls = trace.run(model, other, through=True, channels=channels).calls
        found = {call.name: call.outputs[0] for call in calls if call.outputs}
        return [layout.sides(found[level.module], level, other) for level in levels]

    return FeatureInfo(levels, measure=measure)


def _input(model: nn.Module, given: Sequence[int]) -> tuple[int, tuple[int, int]]:
    if (
        isinstance(given, str)
        or not isinstance(given, Sequence)
        or len(given) not in (2, 3)
        or not all(isinstance(n, int) and n > 0 for n in given)
    ):
        raise ArgumentError(f"input_size={given!r}: (C, H, W) or (H, W) is expected.")
    channels = given[0] if len(given) == 3 else trace.channels_of(model)
    return channels, (given[-2], given[-1])


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a module: at which reduction it reads, and what it puts out."""

    name: str
    reads: int | None
    gives: Layout | None


def _calls(model: nn.Module, seen: trace.Run, size: tuple[int, int], channels: int) -> list[_Call]:
    double = size[0] * 2, size[1] * 2
    try:
        again = trace.run(model, double, through=True, channels=channels).calls
    except Exception:  # a network of one input size
        again = ()
    both = [call.name for call in again] == [call.name for call in seen.calls]

    def of(first: Sequence[torch.Size], second: Sequence[torch.Size]) -> Layout | None:
        if not first:
            return None
        if not both:
            return layout.of_one(first[0], size)
        return layout.of_two(first[0], second[0], size, double) if second else None

    found = []
    for call, other in zip(seen.calls, again if both else seen.calls, strict=True):
        given, gives = of(call.inputs, other.inputs), of(call.outputs, other.outputs)
        found.append(_Call(call.name, given.reduction if given else None, gives))
    return found


# They change nothing where it matters, and something in training
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)


def _levels(
    model: nn.Module, calls: list[_Call], channels: int, returned: Sequence[torch.Size]
) -> list[Feature]:
    """The last call of each resolution that is not within a step to a coarser one, or to a vector."""
    count = Counter(call.name for call in calls)
    modules = dict(model.named_modules(remove_duplicate=False))
    classes = {shape[1] for shape in returned if len(shape) == 2}
    networks = _networks(calls)
    steps = {c.name: c.gives.reduction for c in calls if c.gives and c.name not in networks}
    heads = {c.name: c.reads for c in calls if c.gives is None and c.reads and c.reads > 1}
    last: dict[int, tuple[str, Layout]] = {}
    for call in calls:
        found = call.gives
        if found is None or count[call.name] > 1 or call.name in networks:
            continue
        if found.channels in classes or isinstance(modules[call.name], _PASSING):
            continue  # maps of scores, for one
        if found.reduction == 1 and found.channels == channels:
            continue  # the image itself, normalised perhaps
        inner = any(
            steps.get(outer, 0) > found.reduction or heads.get(outer, 0) >= found.reduction
            for outer in _outer(call.name)
        )
        if not inner:
            last[found.reduction] = call.name, found
    return [
        Feature(found.channels, reduction, name, index, layout=found.axes, prefix=found.prefix)
        for index, (reduction, (name, found)) in enumerate(sorted(last.items()))
    ]


def _outer(name: str) -> list[str]:
    """Names of the modules that a module is in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _networks(calls: list[_Call]) -> set[str]:
    """Modules within which the resolution falls more than once: they hold several levels."""
    inner: dict[str, set[int]] = {}
    for call in calls:
        if call.gives is not None:
            inner.setdefault(call.name.rpartition(".")[0], set()).add(call.gives.reduction)
    return {
        call.name
        for call in calls
        if sum(r > (call.reads or 1) for r in inner.get(call.name, ())) > 1
    }
