"""Cells: what a search over architectures made of separable convolutions and pools."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..size import Size
from .blocks import Recomputed
from .mobile_conv import Conv2dSame, SamePadding

Source = str | int  # "a" and "b" are a cell's inputs, a number the sum of that number
Operand = tuple[nn.Module | None, Source]
norm = partial(nn.BatchNorm2d, eps=1e-3)


def cell_conv(
    in_chs: int, out_chs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution without bias, which pads as TensorFlow's SAME does."""
    if stride == 1:
        return nn.Conv2d(in_chs, out_chs, kernel, 1, kernel // 2, groups=groups, bias=False)
    return Conv2dSame(in_chs, out_chs, kernel, stride, groups=groups, bias=False)


class SameMaxPool2d(SamePadding, nn.MaxPool2d):  # type: ignore[misc]  # tuples of what are unions
    """Max pooling with SAME padding, which is never the maximum."""

    pad_value = -torch.inf

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__((kernel, kernel), (stride, stride), dilation=(1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.pad(x))


class SameAvgPool2d(SamePadding, nn.Module):
    """Average pooling with SAME padding, whose zeros count."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = (kernel,) * 2, (stride,) * 2, (1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pad(x)
        if max(self.dilation) == 1:
            return F.avg_pool2d(x, self.kernel_size, self.stride)
        rows, columns = self.kernel_size
        weight = x.new_full((x.shape[1], 1, rows, columns), 1 / (rows * columns))
        return F.conv2d(x, weight, None, self.stride, 0, self.dilation, x.shape[1])


def cell_pool(kind: str, stride: int = 1) -> nn.Module:
    """A pool of 3x3: ``"max"``, or ``"avg"``, which without a stride leaves out the padding."""
    if kind == "max":
        return SameMaxPool2d(3, stride) if stride > 1 else nn.MaxPool2d(3, 1, 1)
    if stride > 1:
        return SameAvgPool2d(3, stride)
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


class ActConvBn(nn.Module):
    """An activation, a 1x1 convolution, a norm."""

    def __init__(self, in_chs: int, out_chs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.conv, self.bn = cell_conv(in_chs, out_chs, stride=stride), norm(out_chs)

    def activated(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the output from what the activation gave."""
        return self.bn(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activated(self.act(x))


class _SeparableConv(nn.Module):
    """A depthwise convolution, then a pointwise one."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.depthwise_conv2d = cell_conv(in_chs, in_chs, kernel, stride=stride, groups=in_chs)
        self.pointwise_conv2d = cell_conv(in_chs, out_chs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv2d(self.depthwise_conv2d(x))


class Separables(nn.Module):
    """Twice an activation, a separable convolution and a norm.

    Args:
        in_chs, out_chs: channels; the first convolution changes them if ``early``.
        kernel: of both depthwise convolutions.
        stride: of the first.
        early: see above.
    """

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, stride: int = 1, *, early: bool = False
    ) -> None:
        super().__init__()
        mid = out_chs if early else in_chs
        self.act_1 = nn.ReLU()
        self.separable_1, self.bn_sep_1 = _SeparableConv(in_chs, mid, kernel, stride), norm(mid)
        self.act_2 = nn.ReLU(inplace=True)
        self.separable_2 = _SeparableConv(mid, out_chs, kernel, 1)
        self.bn_sep_2 = norm(out_chs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn_sep_1(self.separable_1(self.act_1(x)))
        return self.bn_sep_2(self.separable_2(self.act_2(x)))


class Shift(nn.Module):
    """Move a map by a position up and to the left; by more on a map that is denser than it was."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.distance = 1

    def dilate(self, density: int, stride: Size) -> Shift:
        """Move by as many positions as one has become."""
        self.distance *= density
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (-self.distance, self.distance) * 2)


class Factorized(nn.Module):
    """Halve a map by two 1x1 convolutions, of its even positions and of its odd ones.

    Args:
        in_chs: of the map.
        half: channels that each convolution gives.
    """

    def __init__(self, in_chs: int, half: int) -> None:
        super().__init__()
        add_factorized(self, in_chs, half)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return factorized(self, x)


def add_factorized(owner: nn.Module, in_chs: int, half: int) -> None:
    """Add the layers of :class:`Factorized` to another module."""
    path: dict[str, nn.Module] = OrderedDict(avgpool=nn.AvgPool2d(1, 2))
    owner.add_module("act", nn.ReLU())
    owner.add_module("path_1", nn.Sequential(OrderedDict(path, conv=cell_conv(in_chs, half))))
    path = OrderedDict(pad=Shift(), avgpool=nn.AvgPool2d(1, 2), conv=cell_conv(in_chs, half))
    owner.add_module("path_2", nn.Sequential(path))
    owner.add_module("final_path_bn", norm(2 * half))


def factorized(owner: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run the layers that :func:`add_factorized` added."""
    act, even, odd, bn = map(owner.get_submodule, ("act", "path_1", "path_2", "final_path_bn"))
    x = act(x)
    y: torch.Tensor = bn(torch.cat((even(x), odd(x)), 1))
    return y


class Cell(Recomputed):
    """Sums of two operands each, of which some lie side by side in the end.

    A family derives from this, adds the layers that make the inputs ``"a"`` and ``"b"``, then calls
    :meth:`combine` and defines :meth:`inputs`.
    """

    conv_1x1: ActConvBn

    def combine(self, sums: Sequence[tuple[Operand, Operand]], ends: Sequence[Source]) -> None:
        """Add the layers of the sums.

        Args:
            sums: the operands of each: a layer, or None, and what it is given.
            ends: what is put out.
        """
        self.ends = tuple(ends)
        self.sums: list[list[tuple[str, Source]]] = []
        for i, operands in enumerate(sums):
            names = []
            for side, (layer, source) in zip(("left", "right"), operands, strict=True):
                name = f"comb_iter_{i}_{side}" if layer is not None else ""
                if layer is not None:
                    self.add_module(name, layer)
                names.append((name, source))
            self.sums.append(names)

    def inputs(
        self, x: torch.Tensor, prev: torch.Tensor, y: torch.Tensor
    ) -> Mapping[Source, torch.Tensor]:
        """Make the inputs ``"a"`` and ``"b"``.

        Args:
            x, prev: outputs of the cell before and of the one before that.
            y: ``x`` behind the activation of ``conv_1x1``.
        """
        raise NotImplementedError

    def forward(
        self, x: torch.Tensor, prev: torch.Tensor, y: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Args as those of :meth:`inputs`; ``y`` is computed where it is not given."""
        y = self.conv_1x1.act(x) if y is None else y
        result: torch.Tensor = self.run([partial(self._sum, prev, y)], x)
        return result

    def _sum(self, prev: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        maps: dict[Source, torch.Tensor] = dict(self.inputs(x, prev, y))
        for i, operands in enumerate(self.sums):
            left, right = (
                self.get_submodule(name)(maps[source]) if name else maps[source]
                for name, source in operands
            )
            maps[i] = left + right
        return torch.cat([maps[end] for end in self.ends], 1)
