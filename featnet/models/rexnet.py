"""ReXNet: inverted residuals whose width grows with every block.

Paper: https://arxiv.org/abs/2007.00992. The blocks are MobileNetV2's
(https://arxiv.org/abs/1801.04381) with squeeze-excite (https://arxiv.org/abs/1709.01507).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    ConvNormAct,
    DropPath,
    Layer,
    SqueezeExcite,
    get_act,
    he_group_fan_out,
    initialize,
    make_divisible,
    uniform_fan_out,
    zero_bias,
)
from ..registry import Family, weights_table

DEPTHS, STRIDES = (1, 2, 2, 3, 3, 5), (1, 2, 2, 2, 1, 2)
PENULTIMATE = 1280  # width of the last convolution


class LinearBottleneck(nn.Module):
    """1x1 to a greater width, depthwise 3x3, linear 1x1; the input is added to the first channels.

    Args:
        in_chs, out_chs: widths.
        mid_chs: width in between; without an expansion that of the input.
        stride: of the depthwise convolution.
        attention: channel attention behind it, or None.
        act, act_dw: activations behind the expansion, and behind the depthwise convolution.
        drop_path: rate at which the branch is dropped.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        mid_chs: int,
        stride: int,
        attention: nn.Module | None,
        act: Layer,
        act_dw: Layer,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.use_shortcut = stride == 1 and in_chs <= out_chs
        self.conv_exp = ConvNormAct(in_chs, mid_chs, act=act) if mid_chs != in_chs else None
        self.conv_dw = ConvNormAct(
            mid_chs, mid_chs, kernel_size=3, stride=stride, groups=mid_chs, act=None
        )
        self.se = attention
        self.act_dw = act_dw()
        self.conv_pwl = ConvNormAct(mid_chs, out_chs, act=None)
        self.drop_path = DropPath(drop_path) if drop_path else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.conv_exp is None else self.conv_exp(x)
        y = self.conv_dw(y)
        if self.se is not None:
            y = self.se(y)
        y = self.conv_pwl(self.act_dw(y))
        if not self.use_shortcut:
            return y
        if self.drop_path is not None:
            y = self.drop_path(y)
        known = x.shape[1]
        return torch.cat([y[:, :known] + x, y[:, known:]], 1)


class RexNet(Backbone):
    """A strided convolution, blocks that grow by the same number of channels each, a last 1x1.

    Args:
        width_mult, depth_mult: factors on the widths, and on the numbers of blocks.
        initial_chs, final_chs: width of the first block, and what the last one has more.
        se_ratio: hidden width of squeeze-excite, of the block's.
        ch_div: every width is a multiple of this.
        act_layer, dw_act_layer: activations, and those behind depthwise convolutions.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv", "head.fc"

    def __init__(
        self,
        *,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        initial_chs: int = 16,
        final_chs: int = 180,
        se_ratio: float = 1 / 12,
        ch_div: int = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "swish",
        dw_act_layer: str | Layer = "relu6",
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        act, act_dw = get_act(act_layer), get_act(dw_act_layer)
        depths = [math.ceil(depth * depth_mult) for depth in DEPTHS]
        strides = [
            s for d, first in zip(depths, STRIDES, strict=True) for s in (first, *(1,) * (d - 1))
        ]
        total, plain = len(strides), depths[0] + depths[1]
        shrink = width_mult if width_mult < 1.0 else 1.0  # a narrow network starts as a normal one

        in_chs = make_divisible(round(32 / shrink * width_mult), ch_div)
        self.stem = ConvNormAct(in_chans, in_chs, kernel_size=3, stride=2, act=act)
        self.features = Blocks()
        reduction, growing = 2, initial_chs / shrink
        for i, stride in enumerate(strides):
            out_chs = make_divisible(round(growing * width_mult), ch_div)
            growing += final_chs / total
            mid_chs = in_chs if i < depths[0] else make_divisible(round(in_chs * 6), ch_div)
            attention = None
            if i >= plain and se_ratio > 0:
                hidden = make_divisible(int(mid_chs * se_ratio), ch_div)
                attention = SqueezeExcite(mid_chs, rd_channels=hidden, norm=nn.BatchNorm2d)
            block = LinearBottleneck(
                in_chs,
                out_chs,
                mid_chs=mid_chs,
                stride=stride,
                attention=attention,
                act=act,
                act_dw=act_dw,
                drop_path=drop_path_rate * i / (total - 1),
            )
            in_chs, reduction = out_chs, reduction * stride
            if i + 1 == total or strides[i + 1] > 1:  # the last one at its resolution
                name = f"features.{i}"
                self.add_stage(name, block, channels=out_chs, reduction=reduction)
            else:
                self.features.append(block)
        width = make_divisible(PENULTIMATE * width_mult, ch_div)
        self.features.append(ConvNormAct(in_chs, width, act=act))
        self.add_head(width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_group_fan_out, zero_bias], linear=[uniform_fan_out, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        # (N, 32, H/2, W/2) to (N, 185, H/32, W/32)
        yield from self.through("features", self.stem(x))

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.rest("features", y)  # (N, 1280, H/32, W/32)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        del coarse
        return {"stem": r"^stem", "blocks": r"^features\.(\d+)"}


VARIANTS: dict[str, dict[str, Any]] = {
    "rexnet_100": dict(),
    "rexnet_130": dict(width_mult=1.3),
    "rexnet_150": dict(width_mult=1.5),
    "rexnet_200": dict(width_mult=2.0),
    "rexnet_300": dict(width_mult=3.0),
    "rexnetr_100": dict(ch_div=8),
    "rexnetr_130": dict(width_mult=1.3, ch_div=8),
    "rexnetr_150": dict(width_mult=1.5, ch_div=8),
    "rexnetr_200": dict(width_mult=2.0, ch_div=8),
    "rexnetr_300": dict(width_mult=3.0, ch_div=16),
}

FAMILY = Family(model=RexNet, variants=VARIANTS, weights=weights_table("rexnet"))
