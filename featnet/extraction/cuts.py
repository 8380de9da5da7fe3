"""One side of an image, cut into parts: where they begin and end, and what is kept of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch


@dataclasses.dataclass(frozen=True)
class Cut:
    """One part of a side of an image, in pixels.

    Attributes:
        start, stop: of what the network is given.
        first, last: of what is kept; the parts' follow each other without gaps.
    """

    start: int
    stop: int
    first: int
    last: int


class Piece(NamedTuple):
    """A part's place in a map along one side.

    Attributes:
        source, target: positions of the part's map, and where they are in the whole one.
        share: of what is written there, where parts are mixed.
    """

    source: slice
    target: slice
    share: torch.Tensor | None


def plan(side: int, most: int, period: int, before: int, after: int) -> list[Cut] | None:
    """Cut a side into parts, or return None where they would have to be longer than allowed.

    Each begins at a multiple of the period, and ends at one from the end of the image: then strides
    and windows, and whatever depends on the length, are the same in it.

    Args:
        side: pixels.
        most: the longest part.
        period: pixels by which maps can be shifted.
        before, after: what the first pixel of a position sees before and after it.

    Example:
        >>> [(cut.start, cut.stop, cut.first, cut.last) for cut in plan(100, 64, 8, 5, 10)]
        [(0, 60, 0, 48), (40, 100, 48, 100)]
    """
    cuts: list[Cut] = []
    first = 0
    while first < side:
        start = max(0, first - before) // period * period
        stop = side - max(0, -(-(side - start - most) // period)) * period
        last = side if stop == side else (stop - after) // period * period
        if last <= first:
            return None
        cuts.append(Cut(start, stop, first, last))
        first = last
    return cuts


def smallest(side: int, period: int, before: int, after: int) -> int:
    """Return the shortest part with which a side can be cut; the side itself where none can.

    Example:
        >>> smallest(100, 8, 5, 10)
        28
    """
    least = period + after
    inner = -(-before // period) * period + least + (side - least) % period
    return min(side, inner)


def pieces(cuts: Sequence[Cut], step: Fraction, length: int, side: int, seam: int) -> list[Piece]:
    """Return the place of each part's map in the whole one.

    Args:
        cuts: of the side.
        step: pixels from one position to the next.
        length: positions of the whole map.
        side: pixels.
        seam: pixels over which neighbours are mixed, or 0: each position comes from one part.

    Example:
        >>> pieces(plan(64, 48, 8, 8, 15), Fraction(8), 8, 64, 0)[1][:2]
        (slice(1, 5, None), slice(4, 8, None))
    """
    parts: list[Piece] = []
    total = torch.zeros(length)
    for cut in cuts:
        offset = int(cut.start / step)
        begin, end = (offset, cut.stop) if seam else (int(cut.first / step), cut.last)
        # counted from the end: there may be a position less than the pixels have room for
        end = length - int((side - end) / step) if seam or end == side else int(end / step)
        share = None
        if seam:
            share = _ramp(cut, end - begin, step, side, seam)
            total[begin:end] += share
        parts.append(Piece(slice(begin - offset, end - offset), slice(begin, end), share))
    return [
        piece if piece.share is None else piece._replace(share=piece.share / total[piece.target])
        for piece in parts
    ]


def _ramp(cut: Cut, count: int, step: Fraction, side: int, seam: int) -> torch.Tensor:
    """Weights that fall off towards the neighbours of a part."""
    centres = (torch.arange(count) + 0.5) * float(step)
    weights = torch.ones(count)
    if cut.start > 0:
        weights = weights.minimum(centres / seam)
    if cut.stop < side:
        weights = weights.minimum((cut.stop - cut.start - centres) / seam)
    return weights.clamp(min=1e-3)
