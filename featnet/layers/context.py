"""Channel attention by context: what is added is the same everywhere, and depends on it all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .attention import make_divisible


class ContextMlp(nn.Module):
    """(N, C, 1, 1) -> (N, C, 1, 1) through a narrow, normalised layer."""

    def __init__(self, channels: int, hidden: int, act_layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm = nn.LayerNorm(hidden, eps=1e-6)
        self.act = act_layer()
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.fc1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc2(self.act(x))


def attended_mean(x: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) and a score for each position, (N, 1, H, W) -> (N, C, 1, 1)."""
    n, c, h, w = x.shape
    weights = scores.reshape(n, 1, h * w).softmax(-1).unsqueeze(3)
    return (x.reshape(n, 1, c, h * w) @ weights).view(n, c, 1, 1)


class GlobalContext(nn.Module):
    """Add what the attended mean of the map says: GCNet's (https://arxiv.org/abs/1904.11492)."""

    def __init__(self, channels: int, *, rd_ratio: float = 1 / 8) -> None:
        super().__init__()
        self.conv_attn = nn.Conv2d(channels, 1, 1)
        hidden = make_divisible(channels * rd_ratio, 1, round_limit=0.0)
        self.mlp_add = ContextMlp(channels, hidden, nn.ReLU)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as the identity."""
        nn.init.kaiming_normal_(self.conv_attn.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.mlp_add.fc2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp_add(attended_mean(x, self.conv_attn(x)))


class GatedContext(nn.Module):
    """Gate each channel by what the attended mean of the map says, as squeeze-excite does."""

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 1 / 8,
        act_layer: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.conv_attn = nn.Conv2d(channels, 1, 1)
        hidden = make_divisible(channels * rd_ratio, 1, round_limit=0.0)
        self.mlp_scale = ContextMlp(channels, hidden, act_layer)
        self.gate = nn.Sigmoid()
        nn.init.kaiming_normal_(self.conv_attn.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.mlp_scale(attended_mean(x, self.conv_attn(x))))
