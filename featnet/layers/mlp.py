"""The second half of a transformer's block: each token for itself."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from .factory import Layer

pointwise: Layer = partial(nn.Conv2d, kernel_size=1)


class Mlp(nn.Module):
    """Two linear layers, each position for itself; (..., C) -> (..., out).

    Args:
        dim, hidden: widths outside and inside.
        out: of the output, by default ``dim``.
        act: activation.
        norm: norm ``f(channels)`` of the hidden values.
        drop: dropout rate of hidden and output values.
        linear: ``f(in, out, bias=)``; with ``pointwise`` (N, C, H, W) -> (N, out, H, W).

    Example:
        >>> Mlp(4, 8, linear=pointwise)(torch.rand(1, 4, 5, 6)).shape
        torch.Size([1, 4, 5, 6])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        out: int | None = None,
        act: Layer = nn.GELU,
        norm: Layer | None = None,
        bias: bool = True,
        drop: float = 0.0,
        linear: Layer = nn.Linear,
    ) -> None:
        super().__init__()
        self.fc1: Any = linear(dim, hidden, bias=bias)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2: Any = linear(hidden, out or dim, bias=bias)
        self.drop2: nn.Module = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)  # the input is not held while the wide map is
        x = self.norm(self.drop1(self.act(x)))
        return self.drop2(self.fc2(x))


class GluMlp(nn.Module):
    """A gated MLP (https://arxiv.org/abs/2002.05202): one half of the hidden values opens the
    other.

    Args:
        dim, hidden: widths outside and inside; half of ``hidden`` is left behind the gate.
        gate_last: the second half is the gate, not the first.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: Layer = nn.Sigmoid,
        norm: Layer | None = None,
        bias: bool = True,
        drop: float = 0.0,
        gate_last: bool = True,
    ) -> None:
        super().__init__()
        self.gate_last = gate_last
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.norm = norm(hidden // 2) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden // 2, dim, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def init_gate(self) -> None:
        """A gate that starts nearly shut to the input, and open by its bias."""
        half = self.fc1.out_features // 2
        nn.init.normal_(self.fc1.weight[half:], std=1e-6)
        if self.fc1.bias is not None:
            nn.init.ones_(self.fc1.bias[half:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, last = self.fc1(x).chunk(2, -1)
        x = first * self.act(last) if self.gate_last else self.act(first) * last
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class SwiGlu(nn.Module):
    """A gated MLP whose gate and values have a projection each.

    Args:
        dim, hidden: widths outside and inside.
        align_to: ``hidden`` is rounded up to a multiple of it; 0 leaves it.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: Layer = nn.SiLU,
        norm: Layer | None = None,
        bias: bool = True,
        drop: float = 0.0,
        align_to: int = 0,
    ) -> None:
        super().__init__()
        hidden += -hidden % align_to if align_to else 0
        self.fc1_g = nn.Linear(dim, hidden, bias=bias)
        self.fc1_x = nn.Linear(dim, hidden, bias=bias)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def init_gate(self) -> None:
        """A gate that starts nearly shut to the input, and open by its bias."""
        nn.init.normal_(self.fc1_g.weight, std=1e-6)
        if self.fc1_g.bias is not None:
            nn.init.ones_(self.fc1_g.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.fc1_g(x)) * self.fc1_x(x)
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


class LayerScale(nn.Module):
    """A learnt factor for each channel of a branch (https://arxiv.org/abs/2103.17239).

    Args:
        init_value: the factors' first value.
        channels_last: (..., C); False for (N, C, H, W).
    """

    def __init__(self, dim: int, init_value: float = 1e-5, *, channels_last: bool = True) -> None:
        super().__init__()
        self.shape = (dim,) if channels_last else (dim, 1, 1)
        self.gamma = nn.Parameter(torch.full((dim,), float(init_value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma.view(self.shape)
