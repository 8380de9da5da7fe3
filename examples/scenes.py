"""A task for examples: to estimate the distance of what is seen in computed scenes."""

from __future__ import annotations

import numpy as np
import torch

SIDE = 96  # of a scene, in pixels


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3) from 0 to 1, and the distance of each pixel in metres."""
    rng, focal = np.random.default_rng(number), 0.9 * SIDE
    horizon, height, wall = rng.uniform(0.2, 0.5) * SIDE, rng.uniform(1, 2.5), rng.uniform(7, 15)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    depth = np.minimum(focal * height / (y - horizon).clip(1e-3), wall)
    across, up = (x - SIDE / 2) * depth / focal, (horizon - y) * depth / focal
    tiles = np.floor(across) + np.floor(np.where(depth < wall, depth, up))  # of one metre
    image = np.where(tiles[..., None] % 2 > 0, rng.uniform(0, 0.3, 3), rng.uniform(0.6, 1, 3))
    for far in sorted(rng.uniform(3, wall - 1, rng.integers(2, 6)), reverse=True):
        radius, left = rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.9) * SIDE
        top = horizon + focal * (height - radius) / far  # it stands on the floor
        dx, dy = (x - left) * far / (focal * radius), (y - top) * far / (focal * radius)
        ball, bulge = dx**2 + dy**2 < 1, np.sqrt((1 - dx**2 - dy**2).clip(0))
        light = 0.3 + 0.7 * (0.6 * bulge - 0.5 * dy - 0.5 * dx).clip(0, 1)
        image = np.where(ball[..., None], rng.uniform(0.1, 0.9, 3) * light[..., None], image)
        depth = np.where(ball, far - radius * bulge, depth)  # the nearer ones come later
    clear = np.exp(-0.12 * depth)[..., None]
    return clear * image + (1 - clear) * np.array([0.75, 0.8, 0.85]), depth


def batch(numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, SIDE, SIDE) from -2 to 2, and distances (N, 1, SIDE, SIDE), as log(d / 7)."""
    images, depths = map(np.stack, zip(*map(scene, numbers), strict=True))
    x = torch.tensor(images).float().permute(0, 3, 1, 2)
    return (x - 0.5) * 4, torch.tensor(depths / 7).float().log()[:, None]


def planes(depth: torch.Tensor) -> torch.Tensor:
    """The plane that fits each scene best, as a map of log distances: 1/distance is linear."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    basis = torch.stack((torch.ones_like(x), x, y), -1).flatten(0, 1)
    fit = torch.linalg.lstsq(basis, (-depth).exp().flatten(1).T).solution
    return -(basis @ fit).T.reshape(depth.shape).clamp(min=0.05).log()
