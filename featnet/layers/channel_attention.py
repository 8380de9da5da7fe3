"""Attention between channels, and the positions that it is told."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .dot_attention import head_width


class CrossCovarianceAttention(nn.Module):
    """Attention between the channels of each head, over all positions
    (https://arxiv.org/abs/2106.09681); (N, L, C) -> (N, L, C).

    Args:
        dim, num_heads: the width, and the number of heads that share it.
        qkv_bias: of the projection in.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        head_width(dim, num_heads)
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, dim = x.shape
        parts = self.qkv(x).reshape(n, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = parts.permute(2, 0, 3, 4, 1).unbind(0)  # (N, heads, C / heads, L)
        likeness = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        y = (likeness * self.temperature).softmax(-1) @ v
        return self.proj(y.permute(0, 3, 1, 2).reshape(n, length, dim))


class FourierPositions(nn.Module):
    """Sines and cosines of the row and the column, as shares of the map, projected to channels.

    Args:
        dim: channels that it gives.
        hidden: sines and cosines of each of the two.
        temperature: the longest wave, in shares of the map.
    """

    def __init__(self, dim: int, *, hidden: int = 32, temperature: float = 10000.0) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * hidden, dim, 1)
        self.hidden, self.temperature = hidden, temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The positions of a map (N, C, H, W); (1, C, H, W), in its type and on its device."""
        height, width = x.shape[-2], x.shape[-1]
        rows, columns = self._waves(x, height)[:, None], self._waves(x, width)
        grid = (height, width, self.hidden)
        waves = torch.cat((rows.expand(grid), columns.expand(grid)), -1)
        return self.token_projection(waves.permute(2, 0, 1)[None].to(x.dtype))

    def _waves(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """(length, hidden), in float32; a sine and a cosine of each frequency side by side."""
        places = x.new_ones((length,), dtype=torch.float32).cumsum(0)
        angles = places / (places[-1:] + 1e-6) * (2 * math.pi)
        index = x.new_ones((self.hidden // 2,), dtype=torch.float32).cumsum(0) - 1
        angles = angles[:, None] / self.temperature ** (2 * index / self.hidden)
        return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)
