"""Convolutions of mobile networks: TensorFlow's padding, mixed kernels, mixtures of experts."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import check_choice
from .static import ceil_div, in_memory_format_of

Kernel = int | tuple[int, ...]  # several sizes: a share of the channels for each
PADDINGS = ("", "same")


def conv2d(
    in_chs: int,
    out_chs: int,
    kernel: Kernel,
    *,
    stride: int = 1,
    groups: int = 1,
    pad_type: str = "",
    experts: int = 0,
) -> nn.Module:
    """A convolution without bias.

    Args:
        kernel: one size, or several (:class:`MixedConv2d`).
        pad_type: ``""`` pads both sides alike, ``"same"`` as TensorFlow does.
        experts: kernels to mix for each sample (:class:`CondConv2d`), whose forward wants weights.
    """
    check_choice("pad_type", pad_type, PADDINGS)
    if isinstance(kernel, tuple):
        return MixedConv2d(
            in_chs, out_chs, kernel, stride=stride, depthwise=groups == in_chs, pad_type=pad_type
        )
    # Without a stride an odd kernel is padded alike on both sides by either rule
    dynamic = pad_type == "same" and (stride > 1 or kernel % 2 == 0)
    padding = 0 if dynamic else (stride + kernel - 2) // 2
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups}
    if experts:
        mixture = CondConv2dSame if dynamic else CondConv2d
        return mixture(in_chs, out_chs, kernel, experts=experts, **options)
    plain = Conv2dSame if dynamic else nn.Conv2d
    return plain(in_chs, out_chs, kernel, bias=False, **options)


class SamePadding:
    """Mixin of a window: pad as TensorFlow's SAME does, ``ceil(size / stride)`` positions come out.

    How much goes before the map and how much after depends on its size. With an output stride it
    is counted on the map as it was, so that the dilated window samples the same grid.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_value = 0.0
    density = 1  # how many times denser the map is than it was
    full_stride: tuple[int, ...] | None = None  # the stride before an output stride took it

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> the same map within zeros, or within :attr:`pad_value`."""
        if max(self.kernel_size) == 1:
            return x
        pads: list[Any] = []
        full = self.full_stride or self.stride
        for i in (1, 0):  # F.pad begins with the last dimension
            size, kernel, dilation = x.shape[i - 2], self.kernel_size[i], self.dilation[i]
            was = ceil_div(size, self.density)
            last = ceil_div(was, full[i]) * full[i] - full[i]
            reach = dilation // self.density * (kernel - 1) + 1
            missing = last + reach - was
            if reach < full[i]:  # windows with gaps between them: the end may lie in one
                missing = _positive(missing)
            before = missing // 2 * self.density
            end = ceil_div(size, self.stride[i]) * self.stride[i] - self.stride[i]
            after = end + dilation * (kernel - 1) + 1 - size - before
            if reach < full[i] or self.density > 1:
                after = _positive(after)
            pads += [before, after]
        return F.pad(x, pads, value=self.pad_value)

    def dilate(self, density: int, stride: tuple[int, int]) -> Any:
        """This window on a map that is ``density`` times denser, with what is left of its
        stride."""
        self.full_stride = self.full_stride or self.stride
        self.density *= density
        self.dilation = tuple(d * density for d in self.dilation)
        self.stride = stride
        return self


def _positive(size: object) -> Any:
    """Raise values below zero to zero; for sizes that a tracer keeps as symbols, too."""
    if isinstance(size, torch.Tensor):  # what torch.jit makes of sizes
        return size.clamp(min=0)
    return torch.sym_max(size, 0)  # type: ignore[no-untyped-call]


class Conv2dSame(SamePadding, nn.Conv2d):
    """A convolution with SAME padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pad(x))


class MixedConv2d(nn.ModuleList):
    """A share of the channels for each kernel size (MixConv, https://arxiv.org/abs/1907.09595)."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernels: tuple[int, ...],
        *,
        stride: int = 1,
        depthwise: bool = False,
        pad_type: str = "",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_chs, out_chs
        self.splits = _shares(in_chs, len(kernels))
        for kernel, i, o in zip(kernels, self.splits, _shares(out_chs, len(kernels)), strict=True):
            groups = i if depthwise else 1
            self.append(conv2d(i, o, kernel, stride=stride, groups=groups, pad_type=pad_type))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, self.splits, 1)
        return torch.cat([conv(part) for conv, part in zip(self, parts, strict=True)], 1)


def _shares(channels: int, count: int) -> list[int]:
    """Equal shares; the first one has the rest too."""
    share = channels // count
    return [channels - share * (count - 1), *[share] * (count - 1)]


class CondConv2d(nn.Module):
    """A convolution whose kernel is mixed anew for each sample (https://arxiv.org/abs/1904.04971).

    The experts' kernels are rows of ``weight``, (experts, out * in / groups * k * k).
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int,
        *,
        experts: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_chs, out_chs, groups
        self.kernel_size: tuple[int, ...] = (kernel, kernel)
        self.stride: tuple[int, ...] = (stride, stride)
        self.padding = (padding, padding)
        self.dilation: tuple[int, ...] = (1, 1)
        self.shape = (out_chs, in_chs // groups, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(experts, math.prod(self.shape)))
        bound = 1 / math.sqrt(math.prod(self.shape[1:]))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) and (N, experts), the share of each expert."""
        n, c, h, w = x.shape
        weight = torch.matmul(routing, self.weight)
        weight = weight.view(n * self.out_channels, *self.shape[1:])
        # samples as groups of one convolution: each has its own kernel
        y = F.conv2d(
            x.reshape(1, n * c, h, w),
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups * n,
        )
        return in_memory_format_of(y.reshape(n, self.out_channels, *y.shape[2:]), x)


class CondConv2dSame(SamePadding, CondConv2d):
    """A mixture of experts with SAME padding."""

    def forward(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pad(x), routing)
