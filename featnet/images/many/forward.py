"""Inputs to results: batches of one size through the network, and each image's part of what comes
out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...errors import InputSizeError
from ...inputs import pad_to_divisor, unpad
from ..pooling import as_levels, pool_features
from .decoding import Chunk, Failure, Sample, Unit

VECTOR = "vector"  # name of a result that is no map
_WAITING = 4  # batches of inputs that may wait for others of their size


@dataclasses.dataclass(frozen=True)
class Settings:
    """The form of the results.

    Attributes:
        pool: of the vectors, or None for maps.
        normalize: give vectors the length 1.
        dtype: ``"float32"`` or ``"float16"``.
    """

    pool: str | None = None
    normalize: bool = True
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Row:
    """The result of one image.

    Attributes:
        sample: the image.
        values: ``{"vector": (C,)}``, or names of levels and their maps (C, h, w); on the CPU.
    """

    sample: Sample
    values: dict[str, torch.Tensor]


def level_names(net: nn.Module, count: int) -> list[str]:
    """The names of a network's levels: its modules', or else their numbers."""
    info: Any = getattr(net, "feature_info", None)
    names = list(info.module_name()) if hasattr(info, "module_name") else []
    return names if len(names) == count == len({*names}) else [str(i) for i in range(count)]


def forward(net: nn.Module, x: torch.Tensor, settings: Settings) -> list[dict[str, torch.Tensor]]:
    """Run a batch, and cut what comes out into the results of its images.

    Args:
        net: an extractor, or a network that returns one vector an image.
        x: inputs (N, C, H, W); they are padded to what the network takes.
        settings: the form of the results.

    Returns:
        N results, on the CPU: ``{"vector": (C,)}`` or names of levels and maps (C, h, w).

    Raises:
        InputSizeError: the network cannot take this size.
    """
    tensor = next(net.parameters(), x)
    dtype, padded = getattr(torch, settings.dtype), x
    if getattr(net, "size_divisibility", 1) > 1:
        padded = pad_to_divisor(x, net)
    with torch.inference_mode():
        outputs = net(padded.to(tensor.device, non_blocking=True))
        if settings.pool is not None:
            outputs = pool_features(outputs, settings.pool, normalize=settings.normalize)
        if isinstance(outputs, torch.Tensor) and outputs.ndim == 2:
            return [{VECTOR: vector} for vector in outputs.to(dtype).cpu()]
        if isinstance(outputs, dict):
            names, levels = list(outputs), as_levels(outputs)
        else:
            levels = as_levels(outputs)
            names = level_names(net, len(levels))
        del outputs
        maps = {}
        for name in names:  # those on a GPU are let go of one by one
            y = levels.pop(0)[0].to(dtype).cpu()
            maps[name] = y if padded is x else unpad(y, x, padded=padded)
    return [{name: y[n] for name, y in maps.items()} for n in range(len(x))]


def rows(
    net: nn.Module, units: Iterable[Unit], settings: Settings, *, batch_size: int
) -> list[Row | Failure]:
    """Run the inputs of one shard in batches of one size.

    Which inputs are in a batch follows from the units alone: those of one size wait for each other
    until they fill a batch, too many are waiting, or there are no more.

    Args:
        net: the network, in evaluation mode.
        units: decoded images.
        settings: the form of the results.
        batch_size: most inputs in a batch.

    Returns:
        A result or a failure for every image, in the order of the images.
    """
    order: list[str] = []
    results: dict[str, Row | Failure] = {}
    waiting: dict[torch.Size, list[Chunk]] = {}

    def count(shape: torch.Size) -> int:
        return sum(len(chunk.samples) for chunk in waiting[shape])

    def run(shape: torch.Size) -> None:
        chunks = waiting.pop(shape)
        samples = [sample for chunk in chunks for sample in chunk.samples]
        x = chunks[0].x if len(chunks) == 1 else torch.cat([chunk.x for chunk in chunks])
        try:
            values = forward(net, x, settings)
        except InputSizeError as error:
            failed = {s.item.name: Failure(s.item, str(error)) for s in samples}
            results.update(failed)
        else:
            pairs = zip(samples, values, strict=True)
            results.update({sample.item.name: Row(sample, value) for sample, value in pairs})

    for unit in units:
        order += [item.name for item in unit.items]
        results.update({failure.item.name: failure for failure in unit.failures})
        for chunk in unit.chunks:
            shape = chunk.x.shape[1:]
            if shape in waiting and count(shape) + len(chunk.samples) > batch_size:
                run(shape)
            waiting.setdefault(shape, []).append(chunk)
            if count(shape) == batch_size:
                run(shape)
        while sum(map(count, waiting)) > _WAITING * batch_size:
            run(max(waiting, key=count))
    for shape in list(waiting):
        run(shape)
    return [results[name] for name in order]
