"""HGNet: plain convolutions, aggregated once a block (PP-HGNet of PaddlePaddle; RT-DETR, D-FINE).

The networks and their successors V2 are described by their code (PaddleClas, pp_hgnet.py and
pp_hgnet_v2.py); their weights are distilled (https://arxiv.org/abs/2103.05959), the aggregation is
VoVNet's (https://arxiv.org/abs/1904.09730).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    DropPath,
    GlobalPool,
    Head,
    Layer,
    drop_path_rates,
    he_fan_out,
    initialize,
    zero_bias,
)
from ..registry import Family, weights_table


class Affine(nn.Module):
    """One learnt factor and one learnt offset for the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x + self.bias


class ConvLayer(nn.Sequential):
    """Convolution, norm, activation, learnt affine; odd kernels keep the size, even ones lose 1.

    Args:
        in_chs, out_chs: channels.
        kernel, stride, groups: of the convolution.
        act: with an activation.
        affine: with an :class:`Affine` behind it.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        affine: bool = False,
    ) -> None:
        padding = (kernel - 1) // 2
        conv = nn.Conv2d(in_chs, out_chs, kernel, stride, padding, groups=groups, bias=False)
        layers = OrderedDict[str, nn.Module](conv=conv, bn=nn.BatchNorm2d(out_chs))
        if act:
            layers["act"] = nn.ReLU(inplace=True)
        if act and affine:
            layers["lab"] = Affine()
        super().__init__(layers)


class LightConv(nn.Sequential):
    """Pointwise and depthwise convolution, activated behind the second."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, *, affine: bool) -> None:
        conv2 = ConvLayer(out_chs, out_chs, kernel, groups=out_chs, affine=affine)
        super().__init__(OrderedDict(conv1=ConvLayer(in_chs, out_chs, act=False), conv2=conv2))


class ChannelGate(nn.Module):
    """Effective squeeze-excite with a sigmoid (https://arxiv.org/abs/1911.06667)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.conv(x.mean((2, 3), keepdim=True)))


class Stem(nn.Sequential):
    """V1's: 3x3 convolutions, of which the first strides, and a pool."""

    def __init__(self, in_chans: int, widths: Sequence[int]) -> None:
        pairs = zip((in_chans, *widths), widths, strict=False)
        convs = [ConvLayer(*pair, 3, stride=1 if i else 2) for i, pair in enumerate(pairs)]
        super().__init__(OrderedDict(stem=nn.Sequential(*convs), pool=nn.MaxPool2d(3, 2, 1)))


class TwoWayStem(nn.Module):
    """V2's: two 2x2 convolutions beside a 2x2 pool, between strided 3x3 convolutions."""

    def __init__(self, in_chans: int, widths: Sequence[int], *, affine: bool) -> None:
        super().__init__()
        mid, out = widths
        conv = partial(ConvLayer, affine=affine)
        self.stem1 = conv(in_chans, mid, 3, stride=2)
        self.stem2a = conv(mid, mid // 2, 2)
        self.stem2b = conv(mid // 2, mid, 2)
        self.stem3 = conv(mid * 2, mid, 3, stride=2)
        self.stem4 = conv(mid, out)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))  # what a 2x2 window takes away
        self.pool = nn.MaxPool2d(2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pad(self.stem1(x))  # (N, C, H/2 + 1, W/2 + 1)
        y = self.stem2b(self.pad(self.stem2a(x)))
        return self.stem4(self.stem3(torch.cat((self.pool(x), y), 1)))


class HgBlock(nn.Module):
    """A chain of convolutions, whose input and all of whose outputs are aggregated.

    Args:
        in_chs, out_chs: channels.
        mid_chs: of the chain.
        length: of the chain.
        conv: ``f(in_chs, out_chs)``, one of the chain.
        aggregate: ``f(in_chs, out_chs)``.
        drop_path: rate of the branch beside a shortcut; None for no shortcut.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        mid_chs: int,
        length: int,
        conv: Layer,
        aggregate: Layer,
        drop_path: float | None,
    ) -> None:
        super().__init__()
        widths = [in_chs, *[mid_chs] * (length - 1)]
        self.layers = nn.ModuleList(conv(width, mid_chs) for width in widths)
        self.aggregation = aggregate(in_chs + length * mid_chs, out_chs)
        self.drop_path = None if drop_path is None else DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        y = self.aggregation(torch.cat(maps, 1))
        return y if self.drop_path is None else self.drop_path(y) + x


def gated(in_chs: int, out_chs: int) -> nn.Sequential:
    """V1's aggregation: a convolution and a gate."""
    return nn.Sequential(ConvLayer(in_chs, out_chs), ChannelGate(out_chs))


def squeezed(in_chs: int, out_chs: int, *, affine: bool) -> nn.Sequential:
    """V2's aggregation: two convolutions, half as wide between them."""
    half = out_chs // 2
    conv = partial(ConvLayer, affine=affine)
    return nn.Sequential(conv(in_chs, half), conv(half, out_chs))


class HgNet(Backbone):
    """A stem to 1/4 of the size, then four stages of one-shot aggregation.

    Args:
        depths: blocks in each stage.
        length: convolutions in each block's chain.
        stem_chs: widths of the stem, the last one that of its map.
        mid_chs, out_chs: widths of each stage's chains, and of the stage.
        v2: PP-HGNetV2: another stem, no gates, light convolutions in the last two stages.
        affine: a learnt factor and offset behind each activation, in V2.
        head_hidden_size: width of the layer before the classifier; None for none.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.stem1.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        length: int,
        *,
        stem_chs: Sequence[int],
        mid_chs: Sequence[int],
        out_chs: Sequence[int],
        v2: bool = False,
        affine: bool = False,
        head_hidden_size: int | None = 2048,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, mid_chs=mid_chs, out_chs=out_chs)
        if v2:
            self.stem: nn.Module = TwoWayStem(in_chans, stem_chs, affine=affine)
        else:
            self.stem, self.first_conv = Stem(in_chans, stem_chs), "stem.stem.0.conv"
        full = partial(ConvLayer, kernel=3, affine=affine)
        light = partial(LightConv, kernel=5, affine=affine)
        aggregate: Layer = partial(squeezed, affine=affine) if v2 else gated
        self.stages = nn.Sequential()
        width, rates = stem_chs[-1], drop_path_rates(drop_path_rate, depths)
        for i, (mid, out, drops) in enumerate(zip(mid_chs, out_chs, rates, strict=True)):
            stage, blocks = nn.Sequential(), Blocks()
            if i:
                down = ConvLayer(width, width, 3, stride=2, groups=width, act=False)
                stage.add_module("downsample", down)
            stage.add_module("blocks", blocks)
            for j, rate in enumerate(drops):
                block = HgBlock(
                    width,
                    out,
                    mid_chs=mid,
                    length=length,
                    conv=light if v2 and i > 1 else full,
                    aggregate=aggregate,
                    drop_path=rate if j else None,
                )
                blocks.append(block)
                width = out
            self.add_stage(f"stages.{i}", stage, channels=out, reduction=4 * 2**i)
        head = None
        if head_hidden_size:
            pooled = width * GlobalPool(global_pool).multiplier
            hidden = nn.Conv2d(pooled, head_hidden_size, 1, bias=False)
            more = [Affine()] if affine else []
            layers = nn.Sequential(hidden, nn.ReLU(inplace=True), *more)
            self.head = nn.Sequential(OrderedDict(last_conv=layers))
            head = Head("head.last_conv", takes=pooled, gives=head_hidden_size)
        self.add_head(
            width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate, head=head
        )
        initialize(self, conv=[he_fan_out], linear=[zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), then halved and wider
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}


LARGE = (512, 1024, 2048)  # channels of V2's later stages from B4 on
AFFINE: dict[str, Any] = dict(v2=True, affine=True)
V2: dict[str, Any] = dict(v2=True)

# fmt: off
VARIANTS: dict[str, dict[str, Any]] = {
    "hgnet_tiny": dict(depths=(1, 1, 2, 1), length=5, stem_chs=(48, 48, 96),
                       mid_chs=(96, 128, 160, 192), out_chs=(224, 448, 512, 768)),
    "hgnet_small": dict(depths=(1, 1, 2, 1), length=6, stem_chs=(64, 64, 128),
                        mid_chs=(128, 160, 192, 224), out_chs=(256, 512, 768, 1024)),
    "hgnet_base": dict(depths=(1, 2, 3, 2), length=7, stem_chs=(96, 96, 160),
                       mid_chs=(192, 224, 256, 288), out_chs=(320, 640, 960, 1280)),
    "hgnetv2_b0": dict(depths=(1, 1, 2, 1), length=3, stem_chs=(16, 16),
                       mid_chs=(16, 32, 64, 128), out_chs=(64, 256, 512, 1024), **AFFINE),
    "hgnetv2_b1": dict(depths=(1, 1, 2, 1), length=3, stem_chs=(24, 32),
                       mid_chs=(32, 48, 96, 192), out_chs=(64, 256, 512, 1024), **AFFINE),
    "hgnetv2_b2": dict(depths=(1, 1, 3, 1), length=4, stem_chs=(24, 32),
                       mid_chs=(32, 64, 128, 256), out_chs=(96, 384, 768, 1536), **AFFINE),
    "hgnetv2_b3": dict(depths=(1, 1, 3, 1), length=5, stem_chs=(24, 32),
                       mid_chs=(32, 64, 128, 256), out_chs=(128, 512, 1024, 2048), **AFFINE),
    "hgnetv2_b4": dict(depths=(1, 1, 3, 1), length=6, stem_chs=(32, 48),
                       mid_chs=(48, 96, 192, 384), out_chs=(128, *LARGE), **V2),
    "hgnetv2_b5": dict(depths=(1, 2, 5, 2), length=6, stem_chs=(32, 64),
                       mid_chs=(64, 128, 256, 512), out_chs=(128, *LARGE), **V2),
    "hgnetv2_b6": dict(depths=(2, 3, 6, 3), length=6, stem_chs=(48, 96),
                       mid_chs=(96, 192, 384, 768), out_chs=(192, *LARGE), **V2),
}
# fmt: on

FAMILY = Family(model=HgNet, variants=VARIANTS, weights=weights_table("hgnet"))
