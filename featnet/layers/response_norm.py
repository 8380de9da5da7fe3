"""Filter response normalisation, with its activation."""

from __future__ import annotations

import torch
from torch import nn


class FilterResponseNorm(nn.Module):
    """Divide each channel by its root mean square over the map, then cut off below a learnt value.

    Paper: https://arxiv.org/abs/1911.09737.

    Args:
        channels: of the map.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.tau: nn.Parameter | None = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        square = x.square().float().mean((2, 3), keepdim=True)
        y = x * (square + self.eps).rsqrt().to(x.dtype)
        weight, bias = (t.view(1, -1, 1, 1).to(x.dtype) for t in (self.weight, self.bias))
        y = y * weight + bias
        return y if self.tau is None else torch.maximum(y, self.tau.view(1, -1, 1, 1).to(x.dtype))
