"""Windows: what an output stride acts on, and the forms that torch's own modules cannot take."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

Pair = tuple[int, int]

# A depthwise convolution that pads more than this takes a slow kernel on the CPU; on a map that is
# padded before it takes the quick one (python -m benchmarks.dilated)
QUICK_PADDING = 7


class Window(Protocol):
    """A module that slides a window: a convolution, a pool, or one with their attributes.

    One that has a method ``dilate(density, stride) -> module`` is asked for its own dilated form:
    the input is ``density`` times denser, and ``stride`` (rows, columns) is what is left of its
    stride. Self-attention, which has no kernel, needs nothing but that method. A ``channels_last``
    one reads (N, H, W, C).
    """

    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any


def pair(value: int | tuple[int, ...]) -> Pair:
    """Return (rows, columns) of a number, or of two."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def stride_of(module: nn.Module) -> Pair:
    """(rows, columns) that a window moves by."""
    window: Any = module
    return pair(getattr(window, "stride", 1) or window.kernel_size)


def side(module: nn.Module, shape: torch.Size) -> torch.Size:
    """(height, width) of a map that a window reads or writes."""
    return shape[1:3] if getattr(module, "channels_last", False) else shape[-2:]


def is_window(module: nn.Module) -> bool:
    """Say whether a module slides a window over a map."""
    if isinstance(module, (nn.Conv1d, nn.Conv3d, nn.modules.conv._ConvTransposeNd)):
        return False
    if isinstance(module, nn.AvgPool2d) or hasattr(module, "dilate"):
        return True
    return all(hasattr(module, a) for a in ("kernel_size", "stride", "padding", "dilation"))


def has_stride(module: nn.Module) -> bool:
    """Say whether an output stride may change a module."""
    return is_window(module) or (
        isinstance(module, nn.Upsample) and module.scale_factor is not None
    )


@dataclasses.dataclass(frozen=True)
class Count:
    """The number of positions that the original of a window had, along one axis.

    Attributes:
        kernel, stride, padding: of the original.
        density: positions of the map now for each that the original read.
        places: positions put out now for each that the original put out.
    """

    kernel: int
    stride: int
    padding: int
    density: int
    places: int

    def __call__(self, side: int) -> int:
        """Return the positions that are to come out, of a map with so many."""
        before = -(-side // self.density)
        after = -(-(before + 2 * self.padding - self.kernel) // self.stride) + 1
        return after * self.places


class _Padded:
    """A window that pads the map itself, and ``pad_end`` (rows, columns) more after it.

    ``counts`` is of a pool that dropped positions at the end of some maps, as an unpadded one in
    ``ceil_mode`` does: what has no place in the original is cut off.
    """

    padding: Any
    pad_end: Pair = (0, 0)
    counts: tuple[Count, Count] | None = None

    def cut(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.counts is None:
            return y
        rows, columns = self.counts
        return y[..., : rows(x.shape[-2]), : columns(x.shape[-1])]

    def pad(self, x: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        (top, left), (bottom, right) = pair(self.padding), self.pad_end
        return F.pad(x, (left, left + right, top, top + bottom), value=value)


class PaddedConv2d(_Padded, nn.Conv2d):
    """A convolution that pads the map itself.

    On a CPU a depthwise one with much padding is faster so, see ``QUICK_PADDING``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(
            self.pad(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class PaddedMaxPool2d(_Padded, nn.MaxPool2d):
    """Max pooling that pads the map itself.

    Its padding may be more than half the kernel, which a dilated kernel needs and torch's own
    does not do everywhere.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(
            self.pad(x, -math.inf),
            self.kernel_size,
            self.stride,
            0,
            self.dilation,
            ceil_mode=self.ceil_mode,
        )
        return self.cut(y, x)


class DilatedAvgPool2d(_Padded, nn.Module):
    """Average pooling whose window is dilated, which torch's cannot be.

    Counts the padding, or the positions within the map only, as the pool that it replaces does.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        *,
        pad_end: Pair,
        count_include_pad: bool,
        divisor: int | None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.padding, self.pad_end = padding, pad_end
        self.count_include_pad, self.divisor_override = count_include_pad, divisor

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pad(x)
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        height, width = x.shape[-2] - reach[0], x.shape[-1] - reach[1]
        taps = [
            x[..., i : i + height : self.stride[0], j : j + width : self.stride[1]]
            for i in range(0, reach[0] + 1, self.dilation[0])
            for j in range(0, reach[1] + 1, self.dilation[1])
        ]
        total = taps[0]
        for tap in taps[1:]:
            total = total + tap
        return total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cut(self._mean(x), x)

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        if self.divisor_override:
            return self._sum(x) / self.divisor_override
        if self.count_include_pad and not any(self.pad_end):
            return self._sum(x) / (self.kernel_size[0] * self.kernel_size[1])
        ones = torch.ones_like(x[:1, :1])
        if self.count_include_pad:  # the original's own padding counts, what was added does not
            top, left = self.padding
            ones = F.pad(ones, (left, left, top, top), value=1.0)
            count = DilatedAvgPool2d(
                self.kernel_size,
                self.stride,
                (0, 0),
                self.dilation,
                pad_end=self.pad_end,
                count_include_pad=False,
                divisor=1,
            )._sum(ones)
            return self._sum(x) / count
        return self._sum(x) / self._sum(ones)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, dilation={self.dilation}"
