"""EvoNorm: a normalisation and its activation, found by a search."""

from __future__ import annotations

import torch
from torch import nn


class EvoNorm(nn.Module):
    """EvoNorm-S0 (https://arxiv.org/abs/2004.02967), for groups of ``group_size`` channels, or for
    ``num_groups`` groups.

    Divides by the groups' standard deviation over the whole map. Without ``v`` it does not
    activate.

    Class attributes:
        always: divide also without ``v``.

    Args:
        act: activate, by ``x * sigmoid(v * x)``.
    """

    always = True

    def __init__(
        self,
        channels: int,
        *,
        group_size: int = 16,
        num_groups: int | None = None,
        eps: float = 1e-3,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.groups, self.eps = num_groups or channels // group_size, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels)) if act else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if self.v is not None:
            y = x * (x * self.v.view(1, -1, 1, 1).to(x.dtype)).sigmoid()
        if self.v is not None or self.always:
            n, c, h, w = x.shape
            grouped = x.reshape(n, self.groups, c // self.groups, h, w)
            variance = grouped.float().var(dim=(2, 3, 4), unbiased=False, keepdim=True)
            deviation = variance.add(self.eps).sqrt().to(x.dtype)
            y = (y.reshape(grouped.shape) / deviation).reshape(n, c, h, w)
        weight, bias = (t.view(1, -1, 1, 1).to(x.dtype) for t in (self.weight, self.bias))
        return y * weight + bias


class EvoNormS0(EvoNorm):
    """The form that without its activation is only a scale and a shift."""

    always = False
