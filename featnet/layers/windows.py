"""A map in windows: for attention within each, with tables of relative positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .static import same_size

Size = tuple[int, int]

MASKED = -100.0  # added to the products of positions that are not to see each other


def pad_to_windows(
    x: torch.Tensor, window: Size, *, value: float = 0.0, repeat: bool = False
) -> torch.Tensor:
    """(N, H, W, C), filled up after the last row and column to whole windows, with a value or with
    the last row and column again."""
    # whole windows first: symbols of sizes then stay short
    below, right = (
        (length + side - 1) // side * side - length
        for length, side in zip(x.shape[1:3], window, strict=True)
    )
    if same_size((below, right), (0, 0)):
        return x
    if repeat:
        return F.pad(x[None], (0, 0, 0, right, 0, below), mode="replicate")[0]
    return F.pad(x, (0, 0, 0, right, 0, below), value=value)


def split_windows(x: torch.Tensor, window: Size) -> torch.Tensor:
    """(N, H, W, ...) of whole windows -> (N, rows, columns, h, w, ...), a view."""
    n, height, width, *rest = x.shape
    x = x.view(n, height // window[0], window[0], width // window[1], window[1], *rest)
    return x.transpose(2, 3)


def join_windows(y: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns, h, w, C) -> (N, rows * h, columns * w, C)."""
    return y.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def crop(x: torch.Tensor, size: Size) -> torch.Tensor:
    """(N, H, W, C) without what :func:`pad_to_windows` added to a map of ``size``."""
    if same_size((x.shape[1], x.shape[2]), size) is None and torch.compiler.is_compiling():
        # In a graph for all sizes nobody may ask whether a view is the whole
        rows, columns = (torch.arange(side, device=x.device) for side in size)
        return x.index_select(1, rows).index_select(2, columns)
    return x[:, : size[0], : size[1]]


def shift_mask(size: Size, window: Size, shift: Size, *, like: torch.Tensor) -> torch.Tensor:
    """What keeps apart the positions that only a cyclic shift brought into one window.

    Args:
        size: (height, width) of the shifted map, whole windows.

    Returns:
        (windows, h * w, h * w), to be added to the products.
    """
    region = torch.zeros((), device=like.device)
    for side, length, by in zip(size, window, shift, strict=True):
        place = torch.arange(side, device=like.device)
        part = (place >= side - by).to(like.dtype) if by else torch.zeros_like(place, dtype=like.dtype)
        region = region[..., None] * 2 + part
    region = split_windows(region[None], window).reshape(-1, window[0] * window[1])
    return (region[:, :, None] != region[:, None, :]).to(like.dtype) * MASKED


def relative_bias(table: torch.Tensor, window: Size) -> torch.Tensor:
    """(2h - 1, 2w - 1, heads), of each distance -> (heads, h * w, h * w), of each query and key.

    The row of a distance is ``query - key + h - 1``; columns alike.
    """
    height, width = window
    found = table.unfold(0, height, 1).unfold(1, width, 1)  # (h, w, heads, h, w), keys backwards
    found = found.permute(2, 0, 1, 3, 4).flip(3, 4)
    return found.reshape(-1, height * width, height * width)
