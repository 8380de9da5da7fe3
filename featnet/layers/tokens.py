"""Levels that are sequences of tokens, and pooling of such a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..errors import check_choice, check_rate
from ..size import Size
from .pool import GlobalPool

SEQUENCE_POOLS = ("", "token", "avg", "max", "avgmax")


def as_image(x: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """(N, H * W, C) -> (N, C, H, W)."""
    return torch.unflatten(x.transpose(1, 2), 2, grid)


def as_sequence(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


class Tokens(NamedTuple):
    """A level of a transformer: tokens of patches on a grid, and others before them.

    Attributes:
        x: (N, prefix + h * w, C).
        grid: (h, w) of the patches' tokens.
        prefix: number of tokens (of the class, registers) that stand before them.
    """

    x: torch.Tensor
    grid: Size
    prefix: int = 0

    def as_map(self) -> torch.Tensor:
        """(N, C, h, w), without the prefix."""
        x = self.x[:, self.prefix :] if self.prefix else self.x
        height, width = self.grid
        return x.reshape(x.shape[0], height, width, x.shape[-1]).permute(0, 3, 1, 2).contiguous()

    def before(self) -> torch.Tensor:
        """(N, prefix, C), the tokens that belong to no position."""
        return self.x[:, : self.prefix]

    def on_map(self, layer: Callable[[torch.Tensor], torch.Tensor]) -> Tokens:
        """Run a layer over the map, (N, C, h, w) -> (N, C, h', w'); the prefix passes by."""
        image = layer(as_image(self.x[:, self.prefix :], self.grid))
        rest, grid = as_sequence(image), (image.shape[-2], image.shape[-1])
        return Tokens(
            torch.cat((self.before(), rest), 1) if self.prefix else rest, grid, self.prefix
        )


class SequencePool(GlobalPool):
    """(N, prefix + L, C) -> (N, C); unchanged for ``""``.

    Args:
        pool_type: ``""``, ``token`` (the first), or over the others ``avg``, ``max``, ``avgmax``
            (their mean). A network that pools by attention does so itself; here is no change.
        prefix: tokens before those that are reduced.
        allowed: names that the network has: no ``token`` without a class, ``map`` with attention.
    """

    def __init__(
        self, pool_type: str = "token", *, prefix: int = 0, allowed: Sequence[str] = SEQUENCE_POOLS
    ) -> None:
        nn.Module.__init__(self)
        check_choice("global_pool", pool_type, allowed)
        self.pool_type, self.multiplier = pool_type, 1
        self.skip = prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool_type == "token":
            return x[:, 0]
        rest = x[:, self.skip :] if self.skip else x
        if self.pool_type == "avg":
            return rest.mean(1)
        if self.pool_type == "max":
            return rest.amax(1)
        return 0.5 * (rest.amax(1) + rest.mean(1)) if self.pool_type == "avgmax" else x


class PatchDropout(nn.Module):
    """Keep a random share of the patches' tokens in training (https://arxiv.org/abs/2212.00794)."""

    def __init__(self, rate: float = 0.0, *, prefix: int = 0) -> None:
        super().__init__()
        check_rate("patch_drop_rate", rate)
        self.rate, self.prefix = rate, prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        first, rest = x[:, : self.prefix], x[:, self.prefix :]
        n, length = rest.shape[:2]
        order = torch.rand(n, length, device=x.device).argsort(1)
        kept = order[:, : max(1, int(length * (1 - self.rate)))]
        rest = rest.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))
        return torch.cat((first, rest), 1)
