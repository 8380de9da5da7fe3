"""Normalisation over the channels of each position of an (N, C, H, W) map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels (https://arxiv.org/abs/1607.06450)."""

    def __init__(self, num_channels: int, *, eps: float = 1e-6, bias: bool = True) -> None:
        super().__init__(num_channels, eps=eps, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class RmsNorm2d(nn.Module):
    """Division by the root mean square of the channels (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, num_channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))

    def power(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> what is divided by the root of, (N, 1, H, W)."""
        return x.pow(2).mean(1, keepdim=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(self.power(x) + self.eps) * self.weight.reshape(1, -1, 1, 1)


class SimpleNorm2d(RmsNorm2d):
    """Division by the standard deviation of the channels; the mean stays where it is."""

    def power(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).var(-1, keepdim=True).permute(0, 3, 1, 2)


class GlobalResponseNorm(nn.Module):
    """Scale each channel by its share in the energy of the whole map
    (https://arxiv.org/abs/2301.00808), beside the identity.

    Args:
        channels_last: (N, H, W, C) instead of (N, C, H, W).
    """

    def __init__(self, channels: int, *, channels_last: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.space = (1, 2) if channels_last else (2, 3)
        self.channel = -1 if channels_last else 1
        self.shape = (-1,) if channels_last else (-1, 1, 1)
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy = x.norm(p=2, dim=self.space, keepdim=True)
        share = energy / (energy.mean(self.channel, keepdim=True) + self.eps)
        weight, bias = self.weight.view(self.shape), self.bias.view(self.shape)
        return x + torch.addcmul(bias, weight, x * share)
