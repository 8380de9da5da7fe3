"""Files to inputs: read, turned upright, resized, normalised, stacked; in worker processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from ...errors import FeatnetError
from ...size import Size
from ..finding import Item, printable
from ..fits import Placement
from ..reading import read_image
from ..transform import ImageTransform

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image that was read.

    Attributes:
        item: the image.
        size: (height, width) of it.
        place: where it lies in its input.
    """

    item: Item
    size: Size
    place: Placement


@dataclasses.dataclass(frozen=True)
class Failure:
    """An image that has no result.

    Attributes:
        item: the image.
        reason: why, in words.
    """

    item: Item
    reason: str


@dataclasses.dataclass
class Chunk:
    """Inputs of one size.

    Attributes:
        samples: their images.
        x: the inputs (N, C, H, W).
    """

    samples: list[Sample]
    x: torch.Tensor


@dataclasses.dataclass
class Unit:
    """The images that were decoded together.

    Attributes:
        items: all of them, in order.
        chunks: the inputs, those of one size together.
        failures: the images that could not be read.
    """

    items: tuple[Item, ...]
    chunks: list[Chunk]
    failures: list[Failure]

    def pin_memory(self) -> Unit:
        """Move the inputs to memory that a GPU copies from; torch's loader calls it."""
        for chunk in self.chunks:
            chunk.x = chunk.x.pin_memory()
        return self


Decoded = tuple[Sample, torch.Tensor] | Failure


def _read_file(item: Item) -> Image:
    assert item.path is not None
    return read_image(item.path)


def decode(
    item: Item, transform: ImageTransform, *, read: Callable[[Item], Image] = _read_file
) -> Decoded:
    """Read one image and make its input (C, H, W).

    Whatever a file makes a decoder raise is that file's failure.
    """
    try:
        image = read(item)
        size = (image.height, image.width)
        return Sample(item, size, transform.placement(size)), transform.normalize(image)
    except FeatnetError as error:
        return Failure(item, printable(str(error)))
    except Exception as error:
        name = "the image" if item.path is None else f"image {str(item.path)!r}"
        words = f"{name} cannot be read: {type(error).__name__}: {error}"
        return Failure(item, printable(words))


def decode_unit(items: Sequence[Item], transform: ImageTransform) -> Unit:
    """Read images, and stack the inputs that have one size."""
    return stack(items, [decode(item, transform) for item in items])


def stack(items: Sequence[Item], results: Sequence[Decoded]) -> Unit:
    """Make a unit of images that were decoded: the inputs that have one size are stacked.

    In a worker that is done in the memory from which the network's process reads. A stack of its
    own, freed when it was copied there, made every worker grow: glibc before 2.38 seldom takes the
    place of a tensor for the next one.
    """
    failures: list[Failure] = []
    by_size: dict[torch.Size, list[tuple[Sample, torch.Tensor]]] = {}
    for result in results:
        if isinstance(result, Failure):
            failures.append(result)
        else:
            by_size.setdefault(result[1].shape, []).append(result)
    chunks = [
        Chunk([sample for sample, _ in pairs], default_collate([x for _, x in pairs]))
        for pairs in by_size.values()
    ]
    return Unit(tuple(items), chunks, failures)


class WorkerError(FeatnetError, RuntimeError):
    """A process that decodes images, and died."""


class _Units(Dataset[Unit]):
    """Units by their number, decoded when asked for."""

    def __init__(self, units: Sequence[tuple[Item, ...]], transform: ImageTransform) -> None:
        self.units, self.transform = units, transform

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, index: int) -> Unit:
        return decode_unit(self.units[index], self.transform)


def _same(unit: Any) -> Any:
    return unit


def count_cpus() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load(
    units: Sequence[tuple[Item, ...]],
    transform: ImageTransform,
    *,
    workers: int = 0,
    start: str | None = None,
    pin: bool = False,
) -> Iterator[Unit]:
    """Decode units, in their order.

    Args:
        units: images that are decoded together.
        transform: from an image to an input.
        workers: processes that decode; 0: this one does.
        start: how they are started, ``"fork"`` or ``"spawn"``; None: as the system does.
        pin: put the inputs where a GPU copies from.

    Raises:
        WorkerError: a process died.
    """
    context = multiprocessing.get_context(start) if workers else None
    loader: DataLoader[Any] = DataLoader(
        _Units(units, transform),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=_same,
        pin_memory=pin,
        generator=torch.Generator(),  # the caller's random numbers stay as they are
    )
    try:
        yield from loader
    except (OSError, EOFError) as error:  # a tensor's memory went away with the process
        raise WorkerError(f"DataLoader worker: {type(error).__name__}: {error}") from error
