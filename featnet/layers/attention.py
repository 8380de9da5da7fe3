"""Channel attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def make_divisible(
    value: float, divisor: int = 8, *, minimum: int | None = None, round_limit: float = 0.9
) -> int:
    """The multiple of ``divisor`` nearest to a channel count.

    It is at least ``minimum`` (by default the divisor) and not below ``round_limit * value``.
    Source: MobileNet.
    """
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


class SqueezeExcite(nn.Module):
    """Gate each channel by what the whole map holds (https://arxiv.org/abs/1709.01507).

    Args:
        channels: of the map.
        rd_ratio: of the channels, the width of the hidden layer, a multiple of ``rd_divisor``.
        rd_channels: that width itself.
        norm: normalisation of the hidden layer.
        act: activation of the hidden layer.
        gate: activation that makes factors of the last layer's output.
        bias: of both layers.

    Class attributes:
        names: of the layers, in order; three where there is no norm.
    """

    names: tuple[str, ...] = ("fc1", "bn", "act", "fc2")

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 1 / 16,
        rd_divisor: int = 8,
        rd_channels: int | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        act: Callable[[], nn.Module] = partial(nn.ReLU, inplace=True),
        gate: Callable[[], nn.Module] = nn.Sigmoid,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        linear = partial(nn.Conv2d, kernel_size=1, bias=bias)
        layers = [linear(channels, hidden), act(), linear(hidden, channels)]
        if len(self.names) > len(layers):
            layers.insert(1, norm(hidden) if norm else nn.Identity())
        for name, layer in zip(self.names, layers, strict=True):
            self.add_module(name, layer)
        self.gate = gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        for name in self.names:
            gate = getattr(self, name)(gate)
        return x * self.gate(gate)


class EffectiveSqueezeExcite(nn.Module):
    """Squeeze-excite of one layer, which loses no channel (https://arxiv.org/abs/1911.06667)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc(x.mean((2, 3), keepdim=True)))


class EfficientChannelAttention(nn.Module):
    """Gate each channel by its neighbours' means (https://arxiv.org/abs/1910.03151).

    The kernel grows with the logarithm of the channel count, as in the paper (gamma 2, b 1).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        reach = int(abs(math.log2(channels) + 1) / 2)
        kernel = max(reach if reach % 2 else reach + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.gate = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = x.mean((2, 3))[:, None]  # (N, 1, C)
        return x * self.gate(self.conv(gate)).transpose(1, 2)[..., None]


Attention = Callable[[int], nn.Module]
