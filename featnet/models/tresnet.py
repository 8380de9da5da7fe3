"""TResNet: a ResNet for GPUs, whose stem turns 4x4 pixels into channels, and whose blurs stride.

Paper: https://arxiv.org/abs/2003.13630.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    BlurPool2d,
    ConvNormAct,
    DropPath,
    Size,
    SqueezeExcite,
    drop_path_rates,
    fit_to_patches,
    he_fan_out,
    initialize,
    normal,
    zero_weight,
)
from ..layers.static import in_memory_format_of
from ..registry import Family, weights_table

PATCH = 4  # side of the pixels that become channels
conv = partial(
    ConvNormAct,
    act=partial(nn.LeakyReLU, negative_slope=1e-3),
    smooth=lambda channels, stride: BlurPool2d(channels, stride=stride),
)


class SpaceToDepth(nn.Module):
    """(N, C, H, W) -> (N, 16 C, H/4, W/4): the pixels of a patch one after the other.

    An image without whole patches is padded with zeros at the end.
    """

    stride = PATCH

    def dilate(self, density: int, stride: Size) -> SpaceToDepth:
        """Stay as it is: no level is finer than what it puts out."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x
        x = fit_to_patches(x, (PATCH, PATCH), pad=True)
        x = torch.unflatten(torch.unflatten(x, 3, (-1, PATCH)), 2, (-1, PATCH))
        x = x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        return in_memory_format_of(x, image)


def shortcut(in_chs: int, out_chs: int, stride: int) -> nn.Module | None:
    """The way around a block that changes the channels or the size; None where it changes none."""
    if stride == 1 and in_chs == out_chs:
        return None
    pool = [nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)] if stride > 1 else []
    return nn.Sequential(*pool, conv(in_chs, out_chs, act=None))


class Block(nn.Module):
    """A residual block, whose last norm starts at zero.

    Args:
        in_chs, width: channels of the input and of the convolutions; a bottleneck puts out four
            times as many.
        stride: of the 3x3 convolution's blur, and of the shortcut.
        gated: squeeze-excite.
        drop_path: rate.
    """

    expansion, last = 1, "conv2"

    def __init__(
        self, in_chs: int, width: int, *, stride: int, gated: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.downsample = shortcut(in_chs, width * self.expansion, stride)
        self.build(in_chs, width, stride, gated)
        self.drop_path = DropPath(drop_path)
        self.act = nn.ReLU(inplace=True)

    def build(self, in_chs: int, width: int, stride: int, gated: bool) -> None:
        """Add the convolutions."""
        raise NotImplementedError

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Compute what is added to the shortcut."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        return self.act(self.drop_path(self.residual(x)) + kept)


class BasicBlock(Block):
    """Two 3x3 convolutions."""

    def build(self, in_chs: int, width: int, stride: int, gated: bool) -> None:
        self.conv1 = conv(in_chs, width, kernel_size=3, stride=stride)
        self.conv2 = conv(width, width, kernel_size=3, act=None)
        self.se = SqueezeExcite(width, rd_channels=max(width // 4, 64)) if gated else nn.Identity()

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.se(self.conv2(self.conv1(x)))


class Bottleneck(Block):
    """1x1, 3x3, 1x1 convolutions."""

    expansion, last = 4, "conv3"

    def build(self, in_chs: int, width: int, stride: int, gated: bool) -> None:
        self.conv1 = conv(in_chs, width)
        self.conv2 = conv(width, width, kernel_size=3, stride=stride)
        self.se = SqueezeExcite(width, rd_channels=max(width // 2, 64)) if gated else nn.Identity()
        self.conv3 = conv(width, width * self.expansion, act=None)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(self.se(self.conv2(self.conv1(x))))


class TResNet(Backbone):
    """Patches as channels, a convolution, four stages; all but the last stage are gated.

    Args:
        depths: blocks in each stage.
        width: channels of the stem and of the first stage's convolutions.
        bottlenecks: of all stages; else of the last two only.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "body.conv1.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        width: int = 64,
        *,
        bottlenecks: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "fast",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(4, depths=depths)
        self.body = nn.Sequential()
        self.body.add_module("s2d", SpaceToDepth())
        stem = conv(in_chans * PATCH**2, width, kernel_size=3, act=nn.LeakyReLU)
        self.add_stage("body.conv1", stem, channels=width, reduction=4)
        chs = width
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            stage, wide = Blocks(), width * 2**i
            block: type[Block] = Bottleneck if bottlenecks or i > 1 else BasicBlock
            for j, rate in enumerate(rates):
                stride = 2 if i and not j else 1
                stage.append(block(chs, wide, stride=stride, gated=i < 3, drop_path=rate))
                chs = wide * block.expansion
            self.add_stage(f"body.layer{i + 1}", stage, channels=chs, reduction=4 * 2**i)
        self.add_head(chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_fan_out], linear=[normal])
        for module in self.modules():
            if isinstance(module, Block):
                zero_weight(module.get_submodule(f"{module.last}.bn"))

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from self.through("body", x)  # (N, C, H/4, W/4) twice, then halved

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert the authors' files: layers by number, norms whose weights have no sign."""
        if "body.conv1.conv.weight" in state:
            return dict(state)
        converted = {}
        for key, value in state.items():
            name = re.sub(
                r"(conv\d+|downsample\.\d+)\.(?:0\.)?([01])\.",
                lambda m: f"{m[1]}.{('conv', 'bn')[int(m[2])]}.",
                key,
            )
            converted[name] = value.abs() + 1e-5 if name.endswith("bn.weight") else value
        return converted

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^body\.layer(\d+)" if coarse else r"^body\.layer(\d+)\.(\d+)"
        return {"stem": r"^body\.conv1", "blocks": blocks}


VARIANTS: dict[str, dict[str, Any]] = {
    "tresnet_m": dict(depths=(3, 4, 11, 3)),
    "tresnet_l": dict(depths=(4, 5, 18, 3), width=76),
    "tresnet_xl": dict(depths=(4, 5, 24, 3), width=83),
    "tresnet_v2_l": dict(depths=(3, 4, 23, 3), bottlenecks=True),
}

FAMILY = Family(model=TResNet, variants=VARIANTS, weights=weights_table("tresnet"))
