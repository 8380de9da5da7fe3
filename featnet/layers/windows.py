"""A map in windows: for attention within each, with tables of relative positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..size import Size
from .static import ceil_div, crop, same_size

MASKED = -100.0  # added to the products of positions that are not to see each other


def pad_to_windows(
    x: torch.Tensor, window: Size, *, value: float = 0.0, repeat: bool = False
) -> torch.Tensor:
    """(N, H, W, C), filled up after the last row and column to whole windows, with a value or with
    the last row and column again."""
    # whole windows first: symbols of sizes then stay short
    below, right = (
        ceil_div(length, side) * side - length
        for length, side in zip(x.shape[1:3], window, strict=True)
    )
    if same_size((below, right), (0, 0)):
        return x
    if repeat:
        return F.pad(x[None], (0, 0, 0, right, 0, below), mode="replicate")[0]
    return F.pad(x, (0, 0, 0, right, 0, below), value=value)


def split_windows(x: torch.Tensor, window: Size) -> torch.Tensor:
    """(N, H, W, ...) of whole windows -> (N * windows, h, w, ...), row by row."""
    n, height, width, *rest = x.shape
    down, right = window
    rows, columns = height // down, width // right
    if torch.compiler.is_compiling():
        # In a graph for all sizes no dimension may count rows or columns alone: it would be 1 for
        # some, which graphs take for another kind. The copies become part of what comes next.
        x = _copy(_divide(x, n * rows, down).transpose(1, 2))
        return _copy(_divide(x, n * rows * columns, right).transpose(1, 2))
    x = x.view(n, rows, down, columns, right, *rest)
    return x.transpose(2, 3).flatten(0, 2)


def overlapping_windows(x: torch.Tensor, side: int, *, step: int) -> torch.Tensor:
    """(N, H, W, C) -> (N * windows, side, side, C); a window begins every ``step`` positions."""
    if torch.compiler.is_compiling():  # see :func:`split_windows`
        for axis in (1, 2):
            count = (x.shape[axis] - side) // step + 1
            place = torch.arange(count * side, device=x.device)
            x = x.index_select(axis, place // side * step + place % side)
        return split_windows(x, (side, side))
    x = x.unfold(1, side, step).unfold(2, side, step)  # (N, rows, columns, C, side, side)
    return x.permute(0, 1, 2, 4, 5, 3).flatten(0, 2)


def join_windows(y: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """(N * windows, h, w, C) -> (N, H, W, C) for a shape (N, H, W), without what filled it up."""
    n, height, width = shape
    down, right, channels = y.shape[1:]
    rows, columns = ceil_div(height, down), ceil_div(width, right)
    if torch.compiler.is_compiling():  # see :func:`split_windows`
        y = _divide(_copy(y.transpose(1, 2)), n * rows, columns * right)
        y = _divide(_copy(y.transpose(1, 2)), n, rows * down)
    else:
        y = y.view(n, rows, columns, down, right, channels)
        y = y.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return crop(y, (height, width))


def split_blocks(x: torch.Tensor, count: int, side: Size, *, value: float = 0.0) -> torch.Tensor:
    """A map in a number of blocks, of sides that follow from its size.

    (N, H, W, C), filled up after the last row and column -> (N * count * count, h * w, C).

    Args:
        count: blocks along each side; in a graph for all sizes it stays a number.
        side: (height, width) of a block.
        value: of what fills up.
    """
    below, right = count * side[0] - x.shape[1], count * side[1] - x.shape[2]
    if not _whole(x, count, side):
        x = F.pad(x, (0, 0, 0, right, 0, below), value=value)
    x = torch.unflatten(torch.unflatten(x, 2, (count, side[1])), 1, (count, side[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def join_blocks(y: torch.Tensor, shape: Sequence[int], count: int, side: Size) -> torch.Tensor:
    """(N * count * count, h * w, C) -> (N, H, W, C) for a shape (N, H, W, ...), without what filled
    it up."""
    n, height, width = shape[:3]
    y = torch.unflatten(torch.unflatten(y, 0, (n, count, count)), 3, side)
    return crop(y.transpose(2, 3).flatten(3, 4).flatten(1, 2), (height, width))


def block_mask(
    x: torch.Tensor, count: int, side: Size, *, bias: torch.Tensor | None = None
) -> torch.Tensor | None:
    """(N * count * count, 1, 1, h * w), to be added to products, so that what fills up a map
    (N, H, W, C) is not seen. With a bias, (..., h * w, h * w), their sum; that alone where nothing
    fills up."""
    if _whole(x, count, side):
        return bias
    there = split_blocks(torch.zeros_like(x[..., :1]), count, side, value=MASKED)
    mask = there.transpose(1, 2)[:, None]
    return mask if bias is None else bias + mask


def block_side(x: torch.Tensor, count: int) -> Size:
    """(height, width) of the blocks that a map (N, H, W, C) is split into."""
    height, width = x.shape[1:3]
    return (height, width) if count == 1 else (ceil_div(height, count), ceil_div(width, count))


def _whole(x: torch.Tensor, count: int, side: Size) -> bool | None:
    """Tell if a map is blocks alone; None where a graph leaves that open."""
    size = (x.shape[1], x.shape[2])
    return count == 1 or same_size(size, (count * side[0], count * side[1]))


def _divide(x: torch.Tensor, first: int, second: int) -> torch.Tensor:
    """(A, B, ...) -> (first, second, ...); by way of one dimension, so that none of these is
    compared with another."""
    return torch.unflatten(x.flatten(0, 1), 0, (first, second))


def _copy(x: torch.Tensor) -> torch.Tensor:
    """Contiguous memory, without asking whether it is so already."""
    return x.clone(memory_format=torch.contiguous_format)


def shift_mask(
    size: Size, window: Size, shift: Size, *, like: torch.Tensor, count: int = 1
) -> torch.Tensor:
    """A mask that keeps apart the positions that only a cyclic shift brought into one window.

    Args:
        size: (height, width) of the shifted map, whole windows.
        count: number of maps.

    Returns:
        (count * windows, h * w, h * w), to be added to the products.
    """
    region = torch.zeros((), device=like.device)
    for side, by in zip(size, shift, strict=True):
        place = torch.arange(side, device=like.device)
        part = (
            (place >= side - by).to(like.dtype) if by else torch.zeros_like(place, dtype=like.dtype)
        )
        region = region[..., None] * 2 + part
    region = split_windows(region.expand(count, -1, -1), window).flatten(1)
    return (region[:, :, None] != region[:, None, :]).to(like.dtype) * MASKED


def relative_bias(table: torch.Tensor, window: Size) -> torch.Tensor:
    """(2h - 1, 2w - 1, heads), of each distance -> (heads, h * w, h * w), of each query and key.

    The row of a distance is ``query - key + h - 1``; columns alike.
    """
    height, width = window
    pairs = table.unfold(0, height, 1).unfold(1, width, 1)  # (h, w, heads, h, w), keys backwards
    pairs = pairs.permute(2, 0, 1, 3, 4).flip(3, 4)
    return pairs.reshape(-1, height * width, height * width)
