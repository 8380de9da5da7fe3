"""Inception's blocks: paths of convolutions from one map, whose ends lie side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import nn

from .blocks import Recomputed
from .conv import ConvNormAct
from .factory import Layer

Kernel = int | tuple[int, int]
NORM: Layer = partial(nn.BatchNorm2d, eps=1e-3)


def inception_conv(
    in_chs: int,
    out_chs: int,
    kernel: Kernel = 1,
    *,
    stride: int = 1,
    padded: bool | None = None,
    act: Layer = nn.ReLU,
    norm: Layer = NORM,
) -> ConvNormAct:
    """A convolution with norm and activation.

    Args:
        in_chs, out_chs: channels.
        kernel: side, or (height, width).
        stride: of it.
        padded: keep the size; by default where it does not stride.
        act, norm: layers.
    """
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    keeps = stride == 1 if padded is None else padded
    return ConvNormAct(
        in_chs,
        out_chs,
        kernel_size=(height, width),
        stride=stride,
        padding=(height // 2, width // 2) if keeps else (0, 0),
        norm=norm,
        act=act,
    )


class Inception(Recomputed):
    """Layers that form paths from one map; (N, C, H, W) -> (N, sum of the paths' channels, H', W').

    Args:
        layers: by name, in the order of their parameters.
        paths: each the names of its layers one after the other, ``"a b"``; what stands side by side
            has a bar between, ``"a b|c"``. By default each layer is a path.

    Example:
        >>> block = Inception({"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 2, 1)})
        >>> block(torch.zeros(1, 3, 5, 5)).shape
        torch.Size([1, 6, 5, 5])
    """

    def __init__(self, layers: Mapping[str, nn.Module], paths: Sequence[str] | None = None) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        split = (path.split() for path in (layers if paths is None else paths))
        self.paths = tuple(tuple(step.split("|") for step in path) for path in split)

    def concatenated(self, x: torch.Tensor) -> torch.Tensor:
        """Return the ends of the paths side by side."""
        ends = []
        for path in self.paths:
            y = x
            for step in path:
                maps = [self.get_submodule(name)(y) for name in step]
                y = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
            ends.append(y)
        return torch.cat(ends, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.run([self.concatenated], x)
        return y
