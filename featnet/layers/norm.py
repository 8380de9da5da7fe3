"""Normalisation with the channel count first, so that one can stand in for another."""

from __future__ import annotations

from torch import nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` built as ``GroupNorm(channels)``, in 32 groups, or in ones of a size."""

    def __init__(
        self,
        num_channels: int,
        num_groups: int = 32,
        *,
        group_size: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        groups = num_channels // group_size if group_size else num_groups
        super().__init__(groups, num_channels, eps=eps)
