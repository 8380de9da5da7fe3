"""Positions learned for one grid, for others."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .static import same_size

Size = tuple[int, int]


def resample_positions(
    table: torch.Tensor, size: Size, *, old: Size, prefix: int = 0
) -> torch.Tensor:
    """(1, prefix + h * w, C), learned for a grid of ``old``, for one of ``size``: bicubic."""
    if same_size(size, old):
        return table
    first, rest = table[:, :prefix], table[:, prefix:]
    grid = resample_grid(rest.reshape(1, *old, -1), size).flatten(1, 2)
    return torch.cat((first, grid), 1) if prefix else grid


def resample_grid(table: torch.Tensor, size: Size) -> torch.Tensor:
    """(1, h, w, C) for another grid."""
    if same_size(size, (table.shape[1], table.shape[2])):
        return table
    grid = table.float().permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True)
    return grid.permute(0, 2, 3, 1).to(table.dtype)


def resample_patches(weight: torch.Tensor, size: Size) -> torch.Tensor:
    """A patch embedding's weight (D, C, h, w) for patches of another size.

    A resized patch gives nearly what the original gave: the pseudo-inverse of resizing
    (https://arxiv.org/abs/2212.08013).
    """
    old = (weight.shape[-2], weight.shape[-1])
    if old == tuple(size):
        return weight
    basis = torch.eye(old[0] * old[1]).reshape(-1, 1, *old)
    resize = F.interpolate(basis, size=size, mode="bicubic", antialias=True).flatten(1)  # (old, new)
    back = torch.linalg.pinv(resize.T).to(weight.device)
    return (weight.float().flatten(2) @ back).reshape(*weight.shape[:2], *size).to(weight.dtype)
