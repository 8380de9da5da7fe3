"""Levels that are sequences of tokens, and pooling of such a sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..errors import ArgumentError, nearest
from .pool import GlobalPool

Size = tuple[int, int]

SEQUENCE_POOLS = ("", "token", "avg", "max", "avgmax")


class Tokens(NamedTuple):
    """What a transformer yields as a level.

    Attributes:
        x: (N, prefix + h * w, C).
        grid: (h, w) of the patches' tokens.
        prefix: how many tokens (of the class, registers) stand before them.
    """

    x: torch.Tensor
    grid: Size
    prefix: int = 0

    def as_map(self) -> torch.Tensor:
        """(N, C, h, w), without the prefix."""
        x = self.x[:, self.prefix :] if self.prefix else self.x
        height, width = self.grid
        return x.reshape(x.shape[0], height, width, -1).permute(0, 3, 1, 2).contiguous()

    def before(self) -> torch.Tensor:
        """(N, prefix, C), the tokens that belong to no position."""
        return self.x[:, : self.prefix]


class SequencePool(GlobalPool):
    """(N, prefix + L, C) -> (N, C); unchanged for ``""``.

    Args:
        pool_type: ``""``, ``token`` (the first), or over the others ``avg``, ``max``, ``avgmax``
            (their mean).
        prefix: tokens before those of the patches.
        over_prefix: reduce over them too.
        more: names of poolings that a network has beside these, by attention; they leave the
            sequence to the network.
    """

    def __init__(
        self, pool_type: str = "token", *, prefix: int = 0, over_prefix: bool = False,
        more: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        nn.Module.__init__(self)
        allowed = [p for p in SEQUENCE_POOLS if prefix or p != "token"] + list(more)
        if pool_type not in allowed:
            why = ", which needs a class token" if pool_type == "token" else ""
            raise ArgumentError(
                f"global_pool={pool_type!r}{why}: one of {allowed} is expected."
                + nearest(pool_type, allowed)
            )
        self.pool_type, self.multiplier = pool_type, 1
        self.skip = 0 if over_prefix else prefix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool_type == "token":
            return x[:, 0]
        rest = x[:, self.skip :] if self.skip else x
        if self.pool_type == "avg":
            return rest.mean(1)
        if self.pool_type == "max":
            return rest.amax(1)
        return 0.5 * (rest.amax(1) + rest.mean(1)) if self.pool_type == "avgmax" else x
