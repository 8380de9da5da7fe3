"""Pooling."""

from __future__ import annotations

from math import comb

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import check_choice

POOLS = ("", "avg", "max", "avgmax", "catavgmax")


class GlobalPool(nn.Module):
    """(N, C, H, W) -> (N, C), or (N, 2C) for ``catavgmax``; unchanged for ``""``.

    Args:
        pool_type: ``""``, ``avg``, ``max``, ``avgmax`` (their mean), ``catavgmax`` (both), or one
            of these behind ``fast`` (``fast`` alone is ``fastavg``): plain reductions in place of
            adaptive pooling, the same values up to rounding.
    """

    def __init__(self, pool_type: str = "avg") -> None:
        super().__init__()
        kind = pool_type or ""
        self.fast = isinstance(kind, str) and kind.startswith("fast")
        kind = (kind[len("fast") :] or "avg") if self.fast else kind
        if kind not in POOLS:
            allowed = [*POOLS, "fast", *(f"fast{p}" for p in POOLS if p)]
            check_choice("global_pool", pool_type, allowed)
        self.kind = kind
        self.pool_type = pool_type or ""
        self.multiplier = 2 if kind == "catavgmax" else 1

    def _avg(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if self.fast else F.adaptive_avg_pool2d(x, 1).flatten(1)

    def _max(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax((2, 3)) if self.fast else F.adaptive_max_pool2d(x, 1).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "avg":
            return self._avg(x)
        if self.kind == "max":
            return self._max(x)
        if self.kind == "avgmax":
            return 0.5 * (self._avg(x) + self._max(x))
        if self.kind == "catavgmax":
            return torch.cat((self._avg(x), self._max(x)), 1)
        return x

    def extra_repr(self) -> str:
        return repr(self.pool_type)


class BlurPool2d(nn.Module):
    """Binomial blur before subsampling (https://arxiv.org/abs/1904.11486).

    (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)). The window's attributes are those of
    a convolution, so that an output stride acts on it as on one.
    """

    filt: torch.Tensor

    def __init__(
        self, channels: int, *, kernel_size: int = 3, stride: int = 2, pad_mode: str = "reflect"
    ) -> None:
        super().__init__()
        self.channels, self.pad_mode = channels, pad_mode
        self.kernel_size = kernel_size
        self.stride: int | tuple[int, int] = stride
        self.padding: int | tuple[int, int] = (stride - 1 + kernel_size - 1) // 2
        self.dilation: int | tuple[int, int] = 1
        row = torch.tensor([comb(kernel_size - 1, k) for k in range(kernel_size)]) * 1.0
        row = row / 2 ** (kernel_size - 1)
        filt = (row[:, None] * row)[None, None].repeat(channels, 1, 1, 1)
        self.register_buffer("filt", filt, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        across = self.padding if isinstance(self.padding, tuple) else (self.padding,) * 2
        x = F.pad(x, (across[1], across[1], across[0], across[0]), mode=self.pad_mode)
        return F.conv2d(
            x, self.filt, stride=self.stride, dilation=self.dilation, groups=self.channels
        )
