"""How a module's output lies in memory, told from its shape: maps, channels-last maps, tokens.

A map's sides grow with the input's; nothing else does so in the same way. So two runs at two input
sizes say which axes are the image's, at which reduction, and how many tokens stand in front of
those of the image. Of a network that takes one size only, one run says it, with less certainty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from ..features import Feature

Size = tuple[int, int]

# Class, distillation and register tokens; more of them than this is no image's
MOST_PREFIX_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the image is in a tensor.

    Attributes:
        channels: of each position.
        reduction: input pixels per position, along each side.
        axes: ``"NCHW"``, ``"NHWC"``, ``"NLC"`` or ``"NCL"``.
        prefix: tokens before those of the image.
    """

    channels: int
    reduction: int
    axes: str = "NCHW"
    prefix: int = 0


def of_two(first: Sequence[int], second: Sequence[int], size: Size, other: Size) -> Layout | None:
    """The layout of what had shape ``first`` for inputs of ``size`` and ``second`` for ``other``;
    None if it is no image."""
    if len(first) != len(second) or not first or first[0] != second[0]:
        return None
    grown = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if len(first) == 4 and grown in ([2, 3], [1, 2]):
        rows, columns = (
            (new - old) / (second[axis] - first[axis])
            for new, old, axis in zip(other, size, grown, strict=True)
        )
        if min(rows, columns) < 0.75 or abs(math.log(rows / columns)) > 0.3:
            return None
        last = grown == [1, 2]
        return Layout(first[3 if last else 1], round(rows), "NHWC" if last else "NCHW")
    if len(first) == 3 and len(grown) == 1:
        axis = grown[0]
        area = (other[0] * other[1] - size[0] * size[1]) / (second[axis] - first[axis])
        if area < 0.75:
            return None
        reduction = round(math.sqrt(area))
        prefix = first[axis] - _area(size, reduction)
        if 0 <= prefix <= MOST_PREFIX_TOKENS:
            return Layout(first[3 - axis], reduction, "NLC" if axis == 1 else "NCL", prefix)
    return None


def of_one(shape: Sequence[int], size: Size) -> Layout | None:
    """The likeliest layout of one shape; None if it is no image, a globally pooled one too."""
    if len(shape) == 4:
        for axes, channels, sides in (("NCHW", 1, shape[2:]), ("NHWC", 3, shape[1:3])):
            rows = size[0] / sides[0]
            if 1 not in sides and rows > 0.75 and abs(size[1] / rows - sides[1]) <= 1.5:
                return Layout(shape[channels], nominal(size, sides), axes)
    if len(shape) == 3:
        for prefix in range(MOST_PREFIX_TOKENS + 1):
            for axis in (1, 2):
                length = shape[axis] - prefix
                reduction = math.isqrt(size[0] * size[1] // max(1, length))
                several = length > 1 and shape[3 - axis] > 1 and reduction > 0
                if several and _area(size, reduction) == length:  # patches may leave a rest
                    return Layout(shape[3 - axis], reduction, "NLC" if axis == 1 else "NCL", prefix)
    return None


def _area(size: Size, reduction: int) -> int:
    return (size[0] // reduction) * (size[1] // reduction)


def declared(shape: Sequence[int], size: Size, *, channels: int, reduction: int) -> Layout | None:
    """The layout in which a shape is what was declared; None if it cannot be.

    Maps of unpadded kernels are smaller than ``size / reduction``: a factor of 1.5 is let pass.
    """
    sides = [max(1.0, side / reduction) for side in size]

    def near(rows: int, columns: int) -> bool:
        found = (rows + 1) / (sides[0] + 1), (columns + 1) / (sides[1] + 1)
        return all(1 / 1.5 < ratio < 1.5 for ratio in found)

    if len(shape) == 4:
        for axes, at, top in (("NCHW", 1, 2), ("NHWC", 3, 1)):
            if shape[at] == channels and near(shape[top], shape[top + 1]):
                return Layout(channels, reduction, axes)
    if len(shape) == 3:
        for axis in (1, 2):
            prefix = shape[axis] - _area(size, reduction)
            if shape[3 - axis] == channels and 0 <= prefix <= MOST_PREFIX_TOKENS:
                return Layout(channels, reduction, "NLC" if axis == 1 else "NCL", prefix)
    return None


def nominal(size: Size, sides: Sequence[int]) -> int:
    """The reduction that a map of these sides has: exact where they divide, else the power of two
    that is nearest, since borders lose a few positions. They win none: a map that is larger than
    that is of patches which leave a rest."""
    ratios = [whole // part for whole, part in zip(size, sides, strict=True)]
    exact = all(whole % part == 0 for whole, part in zip(size, sides, strict=True))
    if exact and len({*ratios}) == 1:
        return ratios[0]
    power = int(2 ** max(0, round(math.log2(size[0] / sides[0]))))
    larger = any(part > whole / power + 2 for whole, part in zip(size, sides, strict=True))
    patches = larger and [whole // ratios[0] for whole in size] == list(sides)
    return ratios[0] if patches else power


def to_map(y: torch.Tensor, level: Feature, shape: Sequence[int]) -> torch.Tensor:
    """What a level's module put out, for an input of this shape -> (N, C, H, W); prefix tokens left
    out."""
    if level.layout == "NHWC":
        return y.permute(0, 3, 1, 2)
    if level.layout in ("NLC", "NCL"):
        y = y.transpose(1, 2) if level.layout == "NLC" else y
        return y[:, :, level.prefix :].reshape(*y.shape[:2], *_grid(shape[-2:], level.reduction))
    return y


def _grid(size: Sequence[int], reduction: int) -> Size:
    return size[0] // reduction, size[1] // reduction


def sides(shape: Sequence[int], level: Feature, size: Size) -> Size:
    """(h, w) of what a level's module puts out, whose shape this is; of vectors (1, 1)."""
    if level.layout == "NHWC":
        return shape[1], shape[2]
    if level.layout in ("NLC", "NCL"):
        return _grid(size, level.reduction)
    if len(shape) == 3:
        return shape[1], 1
    return (shape[-2], shape[-1]) if len(shape) == 4 else (1, 1)


def feature(shape: Sequence[int], size: Size, *, module: str, index: int) -> Feature:
    """A level for whatever a module or node puts out: maps, tokens, vectors."""
    found = of_one(shape, size)
    if found is None:
        channels = shape[1] if len(shape) == 4 else shape[-1] if shape else 1
        side = shape[2] if len(shape) == 4 else 1
        axes = "NCHW" if len(shape) == 4 else "NC"
        found = Layout(max(1, channels), max(1, round(size[0] / max(1, side))), axes)
    return Feature(
        found.channels, found.reduction, module, index, layout=found.axes, prefix=found.prefix
    )
