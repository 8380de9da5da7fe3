"""Layouts of outputs, told from their shapes: maps, channels-last maps, tokens.

A map's sides grow with the input's; nothing else does so in the same way. So two runs at two input
sizes say which axes are the image's, at which reduction, and how many tokens stand in front of
those of the image. Of a network that takes one size only, one run says it, with less certainty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from ..errors import InputSizeError, MissingFeatureError
from ..features import Feature
from ..size import Size
from ..tracing.watch import tensors

# Class, distillation and register tokens; more of them than this is no image's
MOST_PREFIX_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of the image in a tensor.

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
    if len(first) != len(second) or not first or not first[0] == second[0] == 1:
        return None
    grown = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if len(first) == 4 and grown in ([2, 3], [1, 2]):
        rows, columns = (
            (new - old) / (second[axis] - first[axis])
            for new, old, axis in zip(other, size, grown, strict=True)
        )
        if min(rows, columns) < 0.75 or abs(math.log(rows / columns)) > 0.3:
            return None
        if first[grown[0]] * rows < size[0] / 2:
            return None  # it grows faster than the image: an attention from each position to each
        last = grown == [1, 2]
        reduction = round(rows)
        if abs(rows - reduction) > 0.1:  # few positions, of which the border is one
            reduction = int(2 ** round(math.log2(rows)))
        return Layout(first[3 if last else 1], reduction, "NHWC" if last else "NCHW")
    if len(first) == 3 and len(grown) == 1:
        axis = grown[0]
        area = (other[0] * other[1] - size[0] * size[1]) / (second[axis] - first[axis])
        if area < 0.75:
            return None
        reduction = round(math.sqrt(area))
        for before, after in zip(_grids(size, reduction), _grids(other, reduction), strict=True):
            prefix = first[axis] - math.prod(before)
            if 0 <= prefix <= MOST_PREFIX_TOKENS and prefix == second[axis] - math.prod(after):
                return Layout(first[3 - axis], reduction, "NLC" if axis == 1 else "NCL", prefix)
    return None


def of_places(place: torch.Tensor, size: Size) -> Layout | None:
    """Return the layout of a tensor of which it is known which pixel each element stands for (see
    :mod:`featnet.tracing.positions`); None if it is no image."""
    shape = place.shape
    if len(shape) == 4:
        for axes, at, sides in (("NCHW", 1, (2, 3)), ("NHWC", 3, (1, 2))):
            plane = place.select(at, 0)
            height, width = shape[sides[0]], shape[sides[1]]
            constant = bool((plane.unsqueeze(at) == place).all())
            if constant and height * width > 1 and _count(plane) == height * width:
                return Layout(shape[at], nominal(size, (height, width)), axes)
    if len(shape) == 3:
        for axis, axes in ((1, "NLC"), (2, "NCL")):
            line = place.select(3 - axis, 0)
            prefix = int((line[0] < 0).sum())
            length = shape[axis] - prefix
            constant = bool((line.unsqueeze(3 - axis) == place).all())
            several = length > 1 and _count(line[0, prefix:]) == length
            if constant and several and prefix <= MOST_PREFIX_TOKENS:
                reduction = round(math.sqrt(size[0] * size[1] / length))
                if any(math.prod(grid) == length for grid in _grids(size, reduction)):
                    return Layout(shape[3 - axis], reduction, axes, prefix)
    return None


def _count(values: torch.Tensor) -> int:
    """The number of different values."""
    return len({*values.flatten().tolist()})


def order_of(place: torch.Tensor, level: Feature, size: Size) -> tuple[int, ...]:
    """Return the index of each position's token, row by row; nothing where that is the order in
    which they are, or where it is not known."""
    line = place[0].amin(1 if level.layout == "NLC" else 0)[level.prefix :]
    for height, width in _grids(size, level.reduction):
        rows = line // size[1] * height // size[0]
        cells = rows * width + line % size[1] * width // size[1]
        if line.numel() == height * width and _count(cells) == line.numel():
            order = cells.argsort()
            return () if bool((cells == order).all()) else tuple(order.tolist())
    return ()


def _grids(size: Sequence[int], reduction: int) -> tuple[Size, Size]:
    """The grids that tokens at a reduction may have: patches may leave a rest, or be padded."""
    floor = size[0] // reduction, size[1] // reduction
    return floor, (-(-size[0] // reduction), -(-size[1] // reduction))


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
                if (
                    several and math.prod(_grids(size, reduction)[0]) == length
                ):  # patches may leave a rest
                    return Layout(shape[3 - axis], reduction, "NLC" if axis == 1 else "NCL", prefix)
    return None


def declared(shape: Sequence[int], size: Size, level: Feature) -> Layout | None:
    """Return the layout in which a shape is the level that was declared; None if it cannot be.

    Maps of unpadded kernels are smaller than ``size / reduction``: a factor of 1.5 is let pass.
    """
    channels, reduction = level.channels, level.reduction
    sides = [max(1.0, side / reduction) for side in size]

    def near(rows: int, columns: int) -> bool:
        ratios = (rows + 1) / (sides[0] + 1), (columns + 1) / (sides[1] + 1)
        return all(1 / 1.5 < ratio < 1.5 for ratio in ratios)

    if len(shape) == 4:
        for axes, at, top in (("NCHW", 1, 2), ("NHWC", 3, 1)):
            known = level.layout in (axes, "NCHW")  # which is the default, too
            if known and shape[at] == channels and near(shape[top], shape[top + 1]):
                return Layout(channels, reduction, axes)
    if len(shape) == 3:
        for axis, axes in ((1, "NLC"), (2, "NCL")):
            prefix = shape[axis] - math.prod(_grids(size, reduction)[0])
            if level.layout == axes:
                prefix = level.prefix
            elif level.layout != "NCHW":
                continue
            if shape[3 - axis] == channels and 0 <= prefix <= MOST_PREFIX_TOKENS:
                return Layout(channels, reduction, axes, prefix)
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


def to_map(value: object, level: Feature, shape: Sequence[int]) -> torch.Tensor:
    """Return the map (N, C, H, W) of a level in what its module put out, without prefix tokens.

    Args:
        value: what the module put out; of several tensors ``level.item`` says which.
        level: the level.
        shape: of the network's input.

    Raises:
        InputSizeError: there are not as many tokens as a grid for this input has.
    """
    y = tensor_of(value, level.item)
    if level.layout == "NHWC":
        return y.permute(0, 3, 1, 2)
    if level.layout in ("NLC", "NCL"):
        y = y.transpose(1, 2) if level.layout == "NLC" else y
        y = y[:, :, level.prefix :]
        if level.order:
            y = _in_rows(y, level, shape)
        return y.reshape(*y.shape[:2], *_grid(y.shape[2], level, shape[-2:]))
    return y


def _in_rows(y: torch.Tensor, level: Feature, shape: Sequence[int]) -> torch.Tensor:
    """Put tokens (N, C, L) that a network keeps in an order of its own row by row."""
    if y.shape[2] != len(level.order):
        raise InputSizeError(
            f"{level.module!r} keeps its tokens in an order of its own, which is known for "
            f"{len(level.order)} of them; an input of {shape[-2]} x {shape[-1]} has {y.shape[2]}: "
            "call featnet.discover with this input_size."
        )
    return y[:, :, torch.tensor(level.order, device=y.device)]


def tensor_of(value: object, item: int) -> torch.Tensor:
    """Return one of the tensors in a nested value.

    Raises:
        MissingFeatureError: it has fewer.
    """
    if isinstance(value, torch.Tensor) and item == 0:
        return value
    candidates = list(tensors(value))
    if item >= len(candidates):
        raise MissingFeatureError(
            f"A module put out {len(candidates)} tensors, and tensor {item} is the level."
        )
    return candidates[item]


def _grid(length: int, level: Feature, size: Sequence[int]) -> Size:
    for grid in _grids(size, level.reduction):
        if math.prod(grid) == length:
            return grid
    raise InputSizeError(
        f"{level.module!r} puts out {length} tokens for an input of {size[0]} x {size[1]}, which "
        f"are no grid at reduction {level.reduction}."
    )


def sides(shape: Sequence[int], level: Feature, size: Size) -> Size:
    """Return (h, w) of what a level's module puts out, whose shape this is; of vectors (1, 1)."""
    if level.layout == "NHWC":
        return shape[1], shape[2]
    if level.layout in ("NLC", "NCL"):
        length = shape[1 if level.layout == "NLC" else 2] - level.prefix
        return _grid(length, level, size) if length > 0 else (0, 0)
    if len(shape) == 3:
        return shape[1], 1
    return (shape[-2], shape[-1]) if len(shape) == 4 else (1, 1)


def feature(shape: Sequence[int], size: Size, *, module: str, index: int) -> Feature:
    """A level for whatever a module or node puts out: maps, tokens, vectors."""
    layout = of_one(shape, size)
    if layout is None:
        channels = shape[1] if len(shape) == 4 else shape[-1] if shape else 1
        side = shape[2] if len(shape) == 4 else 1
        axes = "NCHW" if len(shape) == 4 else "NC"
        layout = Layout(max(1, channels), max(1, round(size[0] / max(1, side))), axes)
    return Feature(
        layout.channels, layout.reduction, module, index, layout=layout.axes, prefix=layout.prefix
    )
