"""Say where an image lies in an input: cropped, padded, stretched, or as it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Protocol

from ..size import Size


@dataclasses.dataclass(frozen=True)
class Placement:
    """The place of an image in an input.

    Attributes:
        resized: (height, width) that the whole image is resized to.
        offset: (top, left) of the resized image in the input; negative where it is cropped.
        size: (height, width) of the input.
    """

    resized: Size
    offset: tuple[int, int]
    size: Size


class _Wanted(Protocol):
    """Facts about the inputs of a transform; see :class:`featnet.ImageTransform`."""

    @property
    def input_size(self) -> Size: ...
    @property
    def crop_pct(self) -> float: ...
    @property
    def crop_mode(self) -> str: ...
    @property
    def max_side(self) -> int | None: ...


def _centre(resized: Size, size: Size) -> Placement:
    """The middle of a resized image, or all of it in the middle."""

    def offset(have: int, want: int) -> int:
        return -round((have - want) / 2) if have > want else (want - have) // 2

    return Placement(resized, (offset(resized[0], size[0]), offset(resized[1], size[1])), size)


def _scaled(size: Size, ratio: float) -> Size:
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def _shorter_to(size: Size, side: int) -> Size:
    """A size with the aspect of another and a given shorter side; the longer one is rounded
    down."""
    short, long = min(size), max(size)
    other = int(side * long / short)
    return (side, other) if size[0] <= size[1] else (other, side)


def _crop(wanted: _Wanted, size: Size) -> Placement:
    height, width = wanted.input_size
    tall, wide = (max(1, math.floor(side / wanted.crop_pct)) for side in (height, width))
    ratios = (size[0] / tall, size[1] / wide)
    if wanted.crop_mode == "squash":
        return _centre((tall, wide), (height, width))
    if wanted.crop_mode == "border":
        return _centre(_scaled(size, max(ratios)), (height, width))
    if tall == wide:
        return _centre(_shorter_to(size, tall), (height, width))
    return _centre(_scaled(size, min(ratios)), (height, width))


def _pad(wanted: _Wanted, size: Size) -> Placement:
    height, width = wanted.input_size
    return _centre(_scaled(size, max(size[0] / height, size[1] / width)), (height, width))


def _squash(wanted: _Wanted, size: Size) -> Placement:
    del size
    return Placement(wanted.input_size, (0, 0), wanted.input_size)


def _short(wanted: _Wanted, size: Size) -> Placement:
    return _limited(_shorter_to(size, min(wanted.input_size)), wanted.max_side)


def _keep(wanted: _Wanted, size: Size) -> Placement:
    return _limited(size, wanted.max_side)


def _limited(size: Size, max_side: int | None) -> Placement:
    if max_side is not None and max(size) > max_side:
        size = _scaled(size, max(size) / max_side)
    return Placement(size, (0, 0), size)


FITS: Mapping[str, Callable[[_Wanted, Size], Placement]] = {
    "crop": _crop,
    "pad": _pad,
    "squash": _squash,
    "short": _short,
    "keep": _keep,
}
