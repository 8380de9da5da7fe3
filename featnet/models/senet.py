"""SENet and the SE-ResNets and SE-ResNeXts of its authors: residual blocks that gate channels.

Paper: https://arxiv.org/abs/1709.01507. As in the original Caffe networks, where they stride and
that pooling rounds up instead of padding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import Blocks, SqueezeExcite, he_fan_out, initialize
from ..registry import Family, weights_table
from .resnet import conv_shortcut

Conv = partial(nn.Conv2d, bias=False)


class SEBlock(nn.Module):
    """3x3, 3x3, gate.

    Args:
        groups: of the last 3x3 convolution.
        reduction: of the gate's channels.
    """

    expansion = 1

    conv1: nn.Module
    bn1: nn.Module
    conv2: nn.Module
    bn2: nn.Module

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        groups: int,
        reduction: int,
        stride: int = 1,
        shortcut: nn.Module | None = None,
    ) -> None:
        super().__init__()
        convs = self.convolutions(in_chs, planes, groups, stride)
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SqueezeExcite(
            planes * self.expansion, rd_ratio=1 / reduction, rd_divisor=1
        )
        self.downsample = shortcut

    def convolutions(self, in_chs: int, planes: int, groups: int, stride: int) -> list[nn.Conv2d]:
        return [Conv(in_chs, planes, 3, stride, 1), Conv(planes, planes, 3, 1, 1, groups=groups)]

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))  # activated once more before the gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.se_module(self.residual(x))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class SENetBottleneck(SEBlock):
    """1x1 to half of the width, grouped 3x3, 1x1, gate: SENet-154's."""

    expansion = 4

    conv3: nn.Module
    bn3: nn.Module

    def convolutions(self, in_chs: int, planes: int, groups: int, stride: int) -> list[nn.Conv2d]:
        out_chs = planes * 4
        return [
            Conv(in_chs, planes * 2, 1),
            Conv(planes * 2, out_chs, 3, stride, 1, groups=groups),
            Conv(out_chs, out_chs, 1),
        ]

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn3(self.conv3(super().residual(x)))


class SEResNetBottleneck(SENetBottleneck):
    """1x1, which strides, 3x3, 1x1, gate."""

    def convolutions(self, in_chs: int, planes: int, groups: int, stride: int) -> list[nn.Conv2d]:
        return [
            Conv(in_chs, planes, 1, stride),
            Conv(planes, planes, 3, 1, 1, groups=groups),
            Conv(planes, planes * 4, 1),
        ]


class SEResNeXtBottleneck(SENetBottleneck):
    """1x1 to 4 channels for each group per 64 planes, grouped 3x3, 1x1, gate."""

    def convolutions(self, in_chs: int, planes: int, groups: int, stride: int) -> list[nn.Conv2d]:
        width = planes * 4 // 64 * groups
        return [
            Conv(in_chs, width, 1),
            Conv(width, width, 3, stride, 1, groups=groups),
            Conv(width, planes * 4, 1),
        ]


class SENet(Backbone):
    """A stem at half size, pooling, then four stages of gated residual blocks.

    Args:
        block: :class:`SEBlock` or one of its subclasses.
        depths: blocks in each stage.
        groups, reduction: of each block.
        stem_widths: of one 7x7 convolution, or of three 3x3 ones.
        down_kernel_size: kernel of the projection shortcuts.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "layer0.conv1", "last_linear"

    layer0: nn.Module

    def __init__(
        self,
        block: type[SEBlock],
        depths: Sequence[int],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        groups: int = 1,
        reduction: int = 16,
        stem_widths: Sequence[int] = (64,),
        down_kernel_size: int = 1,
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__(in_chans=in_chans)
        in_chs = stem_widths[-1]
        self.add_stage("layer0", self._stem(stem_widths), channels=in_chs, reduction=2)
        self.pool0 = nn.MaxPool2d(3, 2, ceil_mode=True)
        for i, depth in enumerate(depths):
            blocks, planes = [], 64 * 2**i
            out_chs = planes * block.expansion
            for stride in (2 if i else 1, *(1,) * (depth - 1)):
                shortcut = None
                if stride > 1 or in_chs != out_chs:
                    shortcut = conv_shortcut(
                        down_kernel_size, in_chs, out_chs, stride, nn.BatchNorm2d
                    )
                blocks.append(
                    block(
                        in_chs,
                        planes,
                        groups=groups,
                        reduction=reduction,
                        stride=stride,
                        shortcut=shortcut,
                    )
                )
                in_chs = out_chs
            self.add_stage(f"layer{i + 1}", Blocks(*blocks), channels=out_chs, reduction=4 * 2**i)
        self.add_head(
            out_chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, conv=[he_fan_out])

    def _stem(self, widths: Sequence[int]) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        in_chs, stride, kernel = self.in_chans, 2, 7 if len(widths) == 1 else 3
        for i, width in enumerate(widths, 1):
            layers[f"conv{i}"] = Conv(in_chs, width, kernel, stride, kernel // 2)
            layers[f"bn{i}"] = nn.BatchNorm2d(width)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            in_chs, stride = width, 1
        return nn.Sequential(layers)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.layer0(x)  # (N, 64, H/2, W/2)
        yield x
        x = self.pool0(x)
        for level in self.levels[1:]:
            x = getattr(self, level.module)(x)  # (N, C, H/4, W/4), then (N, 2C, H/8, W/8), ...
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^layer0", "blocks": blocks}


VARIANTS: dict[str, dict[str, Any]] = {
    "legacy_seresnet18": dict(block=SEBlock, depths=(2, 2, 2, 2)),
    "legacy_seresnet34": dict(block=SEBlock, depths=(3, 4, 6, 3)),
    "legacy_seresnet50": dict(block=SEResNetBottleneck, depths=(3, 4, 6, 3)),
    "legacy_seresnet101": dict(block=SEResNetBottleneck, depths=(3, 4, 23, 3)),
    "legacy_seresnet152": dict(block=SEResNetBottleneck, depths=(3, 8, 36, 3)),
    "legacy_senet154": dict(
        block=SENetBottleneck,
        depths=(3, 8, 36, 3),
        groups=64,
        stem_widths=(64, 64, 128),
        down_kernel_size=3,
    ),
    "legacy_seresnext26_32x4d": dict(block=SEResNeXtBottleneck, depths=(2, 2, 2, 2), groups=32),
    "legacy_seresnext50_32x4d": dict(block=SEResNeXtBottleneck, depths=(3, 4, 6, 3), groups=32),
    "legacy_seresnext101_32x4d": dict(block=SEResNeXtBottleneck, depths=(3, 4, 23, 3), groups=32),
}

FAMILY = Family(model=SENet, variants=VARIANTS, weights=weights_table("senet"))
