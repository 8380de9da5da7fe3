"""Normalisation with the channel count first, so that one can stand in for another."""

from __future__ import annotations

from torch import nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` built as ``GroupNorm(channels)``, in 32 groups."""

    def __init__(self, num_channels: int, num_groups: int = 32, *, eps: float = 1e-5) -> None:
        super().__init__(num_groups, num_channels, eps=eps)
