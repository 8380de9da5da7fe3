"""Convolutions whose weights are standardised on each call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .mobile_conv import Conv2dSame, SamePadding


class StdConv2d(nn.Conv2d):
    """A convolution without bias whose kernels have mean 0 and variance 1 over their inputs
    (https://arxiv.org/abs/1903.10520).

    It pads to keep the size, up to its stride. Re-parameterised it is a plain convolution.

    Args:
        in_chs, out_chs: channels.
        kernel: side of the kernel.
        stride: of it.
        groups: of the channels.
        bias: add one.
        eps: added to the variance.
    """

    plain: type[nn.Conv2d] = nn.Conv2d

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        eps: float = 1e-6,
    ) -> None:
        padding = 0 if isinstance(self, SamePadding) else kernel // 2
        super().__init__(in_chs, out_chs, kernel, stride, padding, groups=groups, bias=bias)
        self.eps = eps

    def scales(self) -> torch.Tensor | None:
        """Return the standard deviation of each kernel; None is 1."""
        return None

    def standardized(self) -> torch.Tensor:
        """Return the weight that is convolved with."""
        flat = self.weight.reshape(1, self.out_channels, -1)
        flat = F.batch_norm(
            flat, None, None, self.scales(), training=True, momentum=0.0, eps=self.eps
        )
        return flat.reshape_as(self.weight)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map; a SAME form pads it."""
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(self.pad(x), self.standardized(), self.bias)

    def reparameterize(self) -> nn.Conv2d:
        """Return a convolution that has the standardised weight."""
        conv = self.plain.__new__(self.plain)
        conv.__dict__.update(self.__dict__)
        conv._parameters = {
            "weight": nn.Parameter(self.standardized().detach()),
            "bias": self._parameters["bias"],
        }
        return conv


class StdConv2dSame(SamePadding, StdConv2d):
    """With SAME padding."""

    plain = Conv2dSame


class ScaledStdConv2d(StdConv2d):
    """A standardised convolution with a learnt gain for each output channel, for networks without
    norms (https://arxiv.org/abs/2101.08692).

    Args:
        gamma: gain of the activation before it.

    The other arguments are :class:`StdConv2d`'s.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        eps: float = 1e-6,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(in_chs, out_chs, kernel, stride=stride, groups=groups, bias=bias, eps=eps)
        self.gain = nn.Parameter(torch.ones(out_chs, 1, 1, 1))
        self.scale = gamma * self.weight[0].numel() ** -0.5

    def scales(self) -> torch.Tensor:
        return (self.gain * self.scale).view(-1)


class ScaledStdConv2dSame(SamePadding, ScaledStdConv2d):
    """With SAME padding."""

    plain = Conv2dSame
