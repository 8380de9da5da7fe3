"""RegNet: networks whose widths are a quantised straight line.

Papers: X and Y (https://arxiv.org/abs/2003.13678), Z (https://arxiv.org/abs/2103.06877), the SEER
checkpoints (https://arxiv.org/abs/2103.01988) and the SWAG ones (https://arxiv.org/abs/2201.08371).
V, with norms and activations first, is timm's; so is the one with group norm (sgn).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_rate
from ..layers import (
    Blocks,
    ConvNormAct,
    DropPath,
    GroupNorm,
    Layer,
    SqueezeExcite,
    build_act,
    drop_path_rates,
    get_act,
    get_layer,
    get_norm,
    he_group_fan_out,
    initialize,
    make_divisible,
    norm_and_act,
    normal,
    zero_bias,
)
from ..registry import Family, weights_table


@dataclasses.dataclass(frozen=True)
class Design:
    """A point of the design space: which widths the blocks have.

    Block j is ``w0 + wa * j`` wide, rounded to the nearest ``w0 * wm ** k`` and then to a multiple
    of 8; equal widths are a stage.

    Attributes:
        depth: blocks in all stages.
        w0, wa, wm: initial width, slope, and the ratio of stages' widths.
        group_size: channels in each group of the 3x3 convolutions.
        bottle_ratio: of the inner width to the block's.
        group_min_ratio: inner widths become the nearest multiple of the group size that is not
            below this share of them (torchvision); with 0 simply the nearest (pycls).
    """

    depth: int
    w0: int
    wa: float
    wm: float
    group_size: int
    bottle_ratio: float = 1.0
    group_min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.depth < 1 or self.w0 < 8 or self.w0 % 8 or self.wa < 0 or self.wm <= 1:
            raise ArgumentError(
                f"{self}: depth from 1, w0 a multiple of 8, wa from 0 and wm above 1 are expected."
            )

    def stages(self) -> list[tuple[int, int, int]]:
        """(depth, width, group size) of each stage."""
        widths = []
        for j in range(self.depth):
            exponent = round(math.log(1 + self.wa * j / self.w0) / math.log(self.wm))
            widths.append(round(self.w0 * self.wm**exponent / 8) * 8)
        stages = []
        for width, depth in sorted(Counter(widths).items()):
            inner = int(width * self.bottle_ratio)
            group = min(self.group_size, inner)
            if self.group_min_ratio:
                inner = make_divisible(inner, group, round_limit=self.group_min_ratio)
            else:
                inner = round(inner / group) * group
            stages.append((depth, int(inner / self.bottle_ratio), group))
        return stages


def strided_shortcut(project: Layer, in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """A strided projection."""
    return project(in_chs, out_chs, stride=stride)


def pooled_shortcut(project: Layer, in_chs: int, out_chs: int, stride: int) -> nn.Module:
    """Average pooling, then the projection: ResNet-D's."""
    pool: nn.Module = nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, project(in_chs, out_chs))


SHORTCUTS: Mapping[str, Layer] = {"conv1x1": strided_shortcut, "avg": pooled_shortcut}


@dataclasses.dataclass(frozen=True)
class RegNetSettings:
    """Settings that all blocks of a network have in common.

    Attributes:
        act, norm: layers.
        bottle_ratio: of the inner width to the block's.
        se_ratio: of squeeze-excite's hidden width to the block's input; 0 for none.
        shortcut: ``f(project, in_chs, out_chs, stride)`` where a block changes sizes, or None.
    """

    act: Layer
    norm: Layer
    bottle_ratio: float = 1.0
    se_ratio: float = 0.0
    shortcut: Layer | None = strided_shortcut

    def attention(self, in_chs: int, channels: int) -> nn.Module:
        if not self.se_ratio:
            return nn.Identity()
        hidden = round(in_chs * self.se_ratio)
        return SqueezeExcite(channels, rd_channels=hidden, act=partial(build_act, self.act))

    def connect(self, project: Layer, in_chs: int, out_chs: int, stride: int) -> nn.Module | None:
        """The shortcut of a block."""
        if stride == 1 and in_chs == out_chs:
            return nn.Identity()
        return self.shortcut(project, in_chs, out_chs, stride) if self.shortcut else None


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze-excite, 1x1; then the shortcut and an activation."""

    linear = False

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        group_size: int,
        settings: RegNetSettings,
        drop_path: float,
    ) -> None:
        super().__init__()
        mid = round(out_chs * settings.bottle_ratio)
        conv = partial(ConvNormAct, norm=settings.norm, act=settings.act)
        project = partial(conv, act=None)
        self.conv1 = conv(in_chs, mid)
        self.conv2 = conv(mid, mid, kernel_size=3, stride=stride, groups=mid // group_size)
        self.se = settings.attention(in_chs, mid)
        self.conv3 = project(mid, out_chs)
        self.act3 = nn.Identity() if self.linear else build_act(settings.act)
        self.downsample = settings.connect(project, in_chs, out_chs, stride)
        self.drop_path = DropPath(drop_path)

    def zero_init_last(self) -> None:
        """Start as the identity (https://arxiv.org/abs/1706.02677)."""
        weight = getattr(self.conv3.bn, "weight", None)
        if weight is not None:
            nn.init.zeros_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(x)
        return self.act3(y)


class LinearBottleneck(Bottleneck):
    """The same without an activation at the end: Z."""

    linear = True


class PreBottleneck(nn.Module):
    """The same with norm and activation before each convolution, not after: V."""

    linear = True

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        group_size: int,
        settings: RegNetSettings,
        drop_path: float,
    ) -> None:
        super().__init__()
        mid = round(out_chs * settings.bottle_ratio)
        project = partial(nn.Conv2d, kernel_size=1, bias=False)
        norm = partial(norm_and_act, settings.norm, act=settings.act)
        self.norm1, self.act1 = norm(in_chs)
        self.conv1 = project(in_chs, mid)
        self.norm2, self.act2 = norm(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid // group_size, bias=False)
        self.se = settings.attention(in_chs, mid)
        self.norm3, self.act3 = norm(mid)
        self.conv3 = project(mid, out_chs)
        self.downsample = settings.connect(project, in_chs, out_chs, stride)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.norm1(x))
        y = self.conv2(self.act2(self.norm2(self.conv1(x))))
        y = self.conv3(self.act3(self.norm3(self.se(y))))
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(x)
        return y


class RegNet(Backbone):
    """A strided 3x3 convolution, then stages that halve the size, each of blocks of one width.

    Args:
        design: the widths, see :class:`Design`.
        block: class of the stages' blocks; with :class:`PreBottleneck` the stem is a convolution
            only.
        stem_width: channels of the stem.
        se_ratio: of squeeze-excite's hidden width to a block's input; 0 for none.
        downsample: the shortcut where a block changes sizes: ``"conv1x1"``, ``"avg"`` (pooled
            before it), or None for none.
        num_features: width of a last 1x1 convolution; 0 for none.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        zero_init_last: start each residual branch at zero, but for :class:`PreBottleneck`.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv", "head.fc"

    def __init__(
        self,
        design: Design,
        block: type[Bottleneck | PreBottleneck] = Bottleneck,
        *,
        stem_width: int = 32,
        se_ratio: float = 0.0,
        downsample: str | Layer | None = "conv1x1",
        num_features: int = 0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_rate("drop_path_rate", drop_path_rate)
        shortcut = get_layer("downsample", downsample, SHORTCUTS) if downsample else None
        act, norm = get_act(act_layer), get_norm(norm_layer)
        settings = RegNetSettings(act, norm, design.bottle_ratio, se_ratio, shortcut)
        conv = partial(ConvNormAct, norm=norm, act=act)
        stem: nn.Module
        if issubclass(block, PreBottleneck):
            stem = nn.Conv2d(in_chans, stem_width, 3, 2, 1, bias=False)
            self.first_conv = "stem"
        else:
            stem = conv(in_chans, stem_width, kernel_size=3, stride=2)
        self.add_stage("stem", stem, channels=stem_width, reduction=2)
        width = stem_width
        drops = iter(drop_path_rates(drop_path_rate, design.depth))
        for i, (depth, out_chs, group_size) in enumerate(design.stages(), 1):
            blocks = Blocks()
            for j in range(1, depth + 1):
                unit = block(
                    width,
                    out_chs,
                    stride=2 if j == 1 else 1,
                    group_size=group_size,
                    settings=settings,
                    drop_path=next(drops),
                )
                blocks.add_module(f"b{j}", unit)
                width = out_chs
            self.add_stage(f"s{i}", blocks, channels=width, reduction=2 * 2**i)
        self.final_conv: nn.Module = act() if block.linear else nn.Identity()
        if num_features:
            self.final_conv = conv(width, num_features)
        self.add_head(
            num_features or width,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )
        initialize(
            self,
            conv=[he_group_fan_out, zero_bias],
            linear=[normal, zero_bias],
            zero_init_last=zero_init_last,
        )

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for level in self.levels:  # stem, s1, s2, ...
            x = self.get_submodule(level.module)(x)  # (N, C, H/2, W/2), then halved and wider
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.final_conv(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^s(\d+)" if coarse else r"^s(\d+)\.b(\d+)"}


VARIANTS: dict[str, dict[str, Any]] = {
    "regnetx_002": dict(design=Design(13, 24, 36.44, 2.49, 8)),
    "regnetx_004": dict(design=Design(22, 24, 24.48, 2.54, 16)),
    "regnetx_004_tv": dict(design=Design(22, 24, 24.48, 2.54, 16, group_min_ratio=0.9)),
    "regnetx_006": dict(design=Design(16, 48, 36.97, 2.24, 24)),
    "regnetx_008": dict(design=Design(16, 56, 35.73, 2.28, 16)),
    "regnetx_016": dict(design=Design(18, 80, 34.01, 2.25, 24)),
    "regnetx_032": dict(design=Design(25, 88, 26.31, 2.25, 48)),
    "regnetx_040": dict(design=Design(23, 96, 38.65, 2.43, 40)),
    "regnetx_064": dict(design=Design(17, 184, 60.83, 2.07, 56)),
    "regnetx_080": dict(design=Design(23, 80, 49.56, 2.88, 120)),
    "regnetx_120": dict(design=Design(19, 168, 73.36, 2.37, 112)),
    "regnetx_160": dict(design=Design(22, 216, 55.59, 2.1, 128)),
    "regnetx_320": dict(design=Design(23, 320, 69.86, 2.0, 168)),
    "regnety_002": dict(design=Design(13, 24, 36.44, 2.49, 8), se_ratio=0.25),
    "regnety_004": dict(design=Design(16, 48, 27.89, 2.09, 8), se_ratio=0.25),
    "regnety_006": dict(design=Design(15, 48, 32.54, 2.32, 16), se_ratio=0.25),
    "regnety_008": dict(design=Design(14, 56, 38.84, 2.4, 16), se_ratio=0.25),
    "regnety_008_tv": dict(
        design=Design(14, 56, 38.84, 2.4, 16, group_min_ratio=0.9), se_ratio=0.25
    ),
    "regnety_016": dict(design=Design(27, 48, 20.71, 2.65, 24), se_ratio=0.25),
    "regnety_032": dict(design=Design(21, 80, 42.63, 2.66, 24), se_ratio=0.25),
    "regnety_040": dict(design=Design(22, 96, 31.41, 2.24, 64), se_ratio=0.25),
    "regnety_064": dict(design=Design(25, 112, 33.22, 2.27, 72), se_ratio=0.25),
    "regnety_080": dict(design=Design(17, 192, 76.82, 2.19, 56), se_ratio=0.25),
    "regnety_080_tv": dict(
        design=Design(17, 192, 76.82, 2.19, 56, group_min_ratio=0.9), se_ratio=0.25
    ),
    "regnety_120": dict(design=Design(19, 168, 73.36, 2.37, 112), se_ratio=0.25),
    "regnety_160": dict(design=Design(18, 200, 106.23, 2.48, 112), se_ratio=0.25),
    "regnety_320": dict(design=Design(20, 232, 115.89, 2.53, 232), se_ratio=0.25),
    "regnety_640": dict(design=Design(20, 352, 147.48, 2.4, 328), se_ratio=0.25),
    "regnety_1280": dict(design=Design(27, 456, 160.83, 2.52, 264), se_ratio=0.25),
    "regnety_2560": dict(design=Design(27, 640, 230.83, 2.53, 373), se_ratio=0.25),
    "regnety_040_sgn": dict(
        design=Design(22, 96, 31.41, 2.24, 64),
        se_ratio=0.25,
        act_layer="silu",
        norm_layer=partial(GroupNorm, group_size=16),
    ),
    "regnetv_040": dict(
        design=Design(22, 96, 31.41, 2.24, 64), block=PreBottleneck, se_ratio=0.25, act_layer="silu"
    ),
    "regnetv_064": dict(
        design=Design(25, 112, 33.22, 2.27, 72),
        block=PreBottleneck,
        se_ratio=0.25,
        downsample="avg",
        act_layer="silu",
    ),
    "regnetz_005": dict(
        design=Design(21, 16, 10.7, 2.51, 4, bottle_ratio=4.0),
        block=LinearBottleneck,
        se_ratio=0.25,
        downsample=None,
        num_features=1024,
        act_layer="silu",
        zero_init_last=False,
    ),
    "regnetz_040": dict(
        design=Design(28, 48, 14.5, 2.226, 8, bottle_ratio=4.0),
        block=LinearBottleneck,
        se_ratio=0.25,
        downsample=None,
        act_layer="silu",
        zero_init_last=False,
    ),
    "regnetz_040_h": dict(
        design=Design(28, 48, 14.5, 2.226, 8, bottle_ratio=4.0),
        block=LinearBottleneck,
        se_ratio=0.25,
        downsample=None,
        num_features=1536,
        act_layer="silu",
        zero_init_last=False,
    ),
}

FAMILY = Family(model=RegNet, variants=VARIANTS, weights=weights_table("regnet"))
