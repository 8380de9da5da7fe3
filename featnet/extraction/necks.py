"""Necks: modules behind an extractor that make maps of its maps, as FPNs do."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from ..errors import ArgumentError, InputSizeError
from ..features import Feature, FeatureInfo
from ..size import Size
from ..tracing import trace

Maps = OrderedDict[str, torch.Tensor]


def map_of(value: object) -> torch.Tensor:
    """Return the map of what an extractor gives for a level, without its prefix tokens.

    Raises:
        ArgumentError: there is no map (N, C, H, W).
    """
    x = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(x, torch.Tensor) or x.ndim != 4:
        shape = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ArgumentError(f"A map (N, C, H, W) is expected, not {shape}.")
    return x


def maps_of(output: object) -> list[torch.Tensor]:
    """Return the maps of an extractor's output: of a list, a dict, or a single map.

    Raises:
        ArgumentError: there is no map.
    """
    if isinstance(output, torch.Tensor):
        return [map_of(output)]
    values: Iterable[object] = ()
    if isinstance(output, Mapping):
        values = output.values()
    elif isinstance(output, Sequence):
        values = output
    maps = [map_of(value) for value in values]
    if not maps:
        raise ArgumentError(f"Maps are expected, a list or a dict of them, not {output!r}.")
    return maps


def run_neck(neck: nn.Module, maps: Maps) -> Maps:
    """Run a neck on named maps; what gives a list has the names "0", "1", ..."""
    output = neck(maps)
    names = output if isinstance(output, Mapping) else None
    values = maps_of(output)
    return OrderedDict(zip(names or map(str, range(len(values))), values, strict=True))


def input_size_for(net: nn.Module, info: FeatureInfo) -> Size | None:
    """Find an input size that an extractor takes; None where its levels belong to no network."""
    for size in (info.input_size, (256, 256), trace.probe_size(getattr(net, "body", net))):
        try:
            if size is not None:
                info.sizes(size)
                return size
        except InputSizeError:
            continue
        except ArgumentError:
            return None
    return None


def try_neck(neck: nn.Module, info: FeatureInfo, names: Sequence[str], size: Size) -> Maps:
    """Run a copy of a neck, on the meta device where it can, on maps like those of an extractor.

    Raises:
        ArgumentError: the neck does not take them.
    """
    shapes = [(1, c, *s) for c, s in zip(info.channels(), info.sizes(size), strict=True)]
    failures: list[Exception] = []
    for device in ("meta", "cpu"):
        maps = OrderedDict(
            (n, torch.zeros(s, device=device)) for n, s in zip(names, shapes, strict=True)
        )
        try:
            with torch.no_grad():
                return run_neck(copy.deepcopy(neck).to(device).float().eval(), maps)
        except Exception as error:  # a neck may raise anything
            failures.append(error)
    raise ArgumentError(
        f"{type(neck).__name__} does not take the maps of this extractor, {shapes} for an input "
        f"of {size[0]} x {size[1]}: {failures[-1]}"
    ) from failures[-1]


def levels_behind(neck: nn.Module, maps: Maps, size: Size) -> list[Feature]:
    """Make levels of the maps that a neck gave for an input size."""
    levels = []
    for index, (name, y) in enumerate(maps.items()):
        ratio = size[0] / y.shape[-2]
        nearest = round(ratio)
        reduction = nearest if -(-size[0] // nearest) == y.shape[-2] else ratio
        levels.append(Feature(y.shape[1], reduction, f"{type(neck).__name__}.{name}", index))  # type: ignore[arg-type]
    return levels
