"""Positions learned for one grid, for others."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from ..size import Size
from .static import same_size

Resize = Callable[[torch.Tensor, Size], torch.Tensor]


def bicubic(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Resample (N, C, h, w) to another size, smoothed where it shrinks."""
    if torch.compiler.is_compiling() and maps.requires_grad:
        return _bicubic_by_matrices(maps, size)
    return F.interpolate(maps, size=size, mode="bicubic", antialias=True)


def _bicubic_by_matrices(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Resample rows, then columns, by a matrix each: torch cannot compile the gradient of its own
    function for sizes that are free."""
    rows, columns = (
        F.interpolate(
            torch.eye(old, dtype=maps.dtype, device=maps.device)[None, None],
            size=(new, old),
            mode="bicubic",
            antialias=True,
        )[0, 0]
        for new, old in zip(size, maps.shape[2:], strict=True)
    )
    return rows @ maps @ columns.T


def bilinear(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """(N, C, h, w) at another size, sampled from the four nearest."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resample_positions(
    table: torch.Tensor, size: Size, *, old: Size, prefix: int = 0, resize: Resize = bicubic
) -> torch.Tensor:
    """(1, prefix + h * w, C), learned for a grid of ``old``, for one of ``size``."""
    if same_size(size, old):
        return table
    first, rest = table[:, :prefix], table[:, prefix:]
    grid = resample_grid(rest.reshape(1, *old, -1), size, resize=resize).flatten(1, 2)
    return torch.cat((first, grid), 1) if prefix else grid


def resample_grid(table: torch.Tensor, size: Size, *, resize: Resize = bicubic) -> torch.Tensor:
    """(1, h, w, C) for another grid."""
    if same_size(size, (table.shape[1], table.shape[2])):
        return table
    grid = resize(table.float().permute(0, 3, 1, 2), size)
    return grid.permute(0, 2, 3, 1).to(table.dtype)


def resample_patches(weight: torch.Tensor, size: Size, *, resize: Resize = bicubic) -> torch.Tensor:
    """A patch embedding's weight (D, C, h, w) for patches of another size.

    A resized patch gives nearly what the original gave: the pseudo-inverse of resizing
    (https://arxiv.org/abs/2212.08013).
    """
    old = (weight.shape[-2], weight.shape[-1])
    if old == tuple(size):
        return weight
    basis = torch.eye(old[0] * old[1]).reshape(-1, 1, *old)
    matrix = resize(basis, size).flatten(1)  # (old, new)
    back = torch.linalg.pinv(matrix.T).to(weight.device)
    return (weight.float().flatten(2) @ back).reshape(*weight.shape[:2], *size).to(weight.dtype)
