"""Selective Kernel ResNets: each channel chooses between kernels of different reach.

Paper: https://arxiv.org/abs/1903.06586. The split of the input over the kernels, which keeps the
small networks small, is timm's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import nn

from ..layers import make_divisible
from ..registry import Family, weights_table
from .resnet import Residual, ResNet, ResNetSettings, Stem


def conv_norm(
    in_chs: int,
    out_chs: int,
    kernel: int,
    settings: ResNetSettings,
    *,
    stride: int = 1,
    dilation: int = 1,
    after: tuple[tuple[str, nn.Module], ...] = (),
) -> nn.Module:
    """A convolution that keeps the size, its norm, and what comes ``after`` under these names."""
    conv = nn.Conv2d(
        in_chs,
        out_chs,
        kernel,
        settings.conv_stride(stride),
        dilation * (kernel // 2),
        dilation,
        groups=settings.cardinality if kernel > 1 else 1,
        bias=False,
    )
    return nn.Sequential(OrderedDict([("conv", conv), ("bn", settings.norm(out_chs)), *after]))


class SelectiveAttention(nn.Module):
    """Maps (N, C, H, W) -> (N, paths, C, 1, 1): for each channel the share of each path."""

    def __init__(self, channels: int, paths: int, squeezed: int, settings: ResNetSettings) -> None:
        super().__init__()
        self.fc_reduce = nn.Conv2d(channels, squeezed, 1, bias=False)
        self.bn = settings.norm(squeezed)
        self.act = settings.act(inplace=True)
        self.fc_select = nn.Conv2d(squeezed, channels * paths, 1, bias=False)

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        gate = reduce(torch.add, maps).mean((2, 3), keepdim=True)
        gate = self.fc_select(self.act(self.bn(self.fc_reduce(gate))))
        width = gate.shape[1] // len(maps)  # no -1: a batch may be empty
        return gate.view(gate.shape[0], len(maps), width, 1, 1).softmax(1)


class SelectiveKernel(nn.Module):
    """3x3 convolutions of several reaches over the same map, mixed by attention.

    Args:
        rd_ratio, rd_divisor: width of the attention, by the output's, and what divides it.
        split_input: each path sees its share of the input channels only.
        dilations: of each path; 2 stands in for a 5x5 kernel.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        settings: ResNetSettings,
        rd_ratio: float = 1 / 16,
        rd_divisor: int = 8,
        split_input: bool = True,
        dilations: tuple[int, ...] = (1, 2),
    ) -> None:
        super().__init__()
        count = len(dilations)
        self.split = in_chs // count if split_input else 0
        self.paths = nn.ModuleList()
        for dilation in dilations:
            after = (
                ("drop", settings.drop_block()),
                ("act", settings.act(inplace=True)),
                ("aa", settings.smoothing(out_chs, stride)),
            )
            self.paths.append(
                conv_norm(
                    self.split or in_chs,
                    out_chs,
                    3,
                    settings,
                    stride=stride,
                    dilation=dilation,
                    after=after,
                )
            )
        squeezed = make_divisible(out_chs * rd_ratio, rd_divisor)
        self.attn = SelectiveAttention(out_chs, count, squeezed, settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x, self.split, 1) if self.split else (x,) * len(self.paths)
        maps = [path(parts[i]) for i, path in enumerate(self.paths)]
        shares = self.attn(*maps)  # (N, paths, C, 1, 1)
        return reduce(torch.add, (y * shares[:, i] for i, y in enumerate(maps)))


class SelectiveBasic(Residual):
    """Selective 3x3, 3x3."""

    expansion, last_norm, last_act = 1, "conv2.bn", "act"

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        settings: ResNetSettings = ResNetSettings(),
        drop_path: float = 0.0,
        select: Callable[..., nn.Module] = SelectiveKernel,
    ) -> None:
        super().__init__()
        settings.refuse(self, "cardinality", "base_width")
        first = planes // settings.reduce_first
        self.conv1 = select(in_chs, first, stride=stride, settings=settings)
        self.conv2 = conv_norm(first, planes, 3, settings)
        self.add_end(planes, shortcut, settings, drop_path)
        self.act = settings.act(inplace=True)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x))


class SelectiveBottleneck(Residual):
    """1x1, selective (and grouped) 3x3, 1x1."""

    expansion, last_norm, last_act = 4, "conv3.bn", "act"

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        settings: ResNetSettings = ResNetSettings(),
        drop_path: float = 0.0,
        select: Callable[..., nn.Module] = SelectiveKernel,
    ) -> None:
        super().__init__()
        width = planes * settings.base_width // 64 * settings.cardinality
        first, out_chs = width // settings.reduce_first, planes * self.expansion
        act = ("act", settings.act(inplace=True))
        self.conv1 = conv_norm(in_chs, first, 1, settings, after=(act,))
        self.conv2 = select(first, width, stride=stride, settings=settings)
        self.conv3 = conv_norm(width, out_chs, 1, settings)
        self.add_end(out_chs, shortcut, settings, drop_path)
        self.act = settings.act(inplace=True)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


def _selective(**options: Any) -> dict[str, Any]:
    return {"block_args": {"select": partial(SelectiveKernel, **options)}, "zero_init_last": False}


SMALL = _selective(rd_ratio=1 / 8, rd_divisor=16)
SPLIT = _selective()
WHOLE = _selective(rd_divisor=32, split_input=False)

VARIANTS: dict[str, dict[str, Any]] = {
    "skresnet18": dict(block=SelectiveBasic, depths=(2, 2, 2, 2), **SMALL),
    "skresnet34": dict(block=SelectiveBasic, depths=(3, 4, 6, 3), **SMALL),
    "skresnet50": dict(block=SelectiveBottleneck, depths=(3, 4, 6, 3), **SPLIT),
    "skresnet50d": dict(
        block=SelectiveBottleneck,
        depths=(3, 4, 6, 3),
        stem=Stem((32, 32, 64)),
        avg_down=True,
        **SPLIT,
    ),
    "skresnext50_32x4d": dict(
        block=SelectiveBottleneck, depths=(3, 4, 6, 3), cardinality=32, base_width=4, **WHOLE
    ),
}

FAMILY = Family(model=ResNet, variants=VARIANTS, weights=weights_table("sknet"))
