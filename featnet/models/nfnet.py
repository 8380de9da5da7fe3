"""NFNet: residual networks without norms, of standardised weights and scaled signals.

Papers: signal propagation, NF-ResNet and NF-RegNet (https://arxiv.org/abs/2101.08692); NFNet
(https://arxiv.org/abs/2102.06171).
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_stages, nearest
from ..layers import (
    Blocks,
    DropPath,
    EfficientChannelAttention,
    Layer,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    SqueezeExcite,
    build_act,
    drop_path_rates,
    get_act,
    initialize,
    make_divisible,
    normal,
    zero_bias,
)
from ..registry import Family, weights_table

# One over the standard deviation of what an activation makes of standard normal values
GAINS: Mapping[str, float] = {
    "identity": 1.0,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "leaky_relu": 1.70590341091156,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "swish": 1.7881293296813965,
    "tanh": 1.5939117670059204,
}
EPS = 1e-5  # of the standardised weights


class Scaled(nn.Module):
    """An activation, times its gain."""

    def __init__(self, act: Layer, gain: float) -> None:
        super().__init__()
        self.act, self.gain = act(), gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x) * self.gain


@dataclasses.dataclass(frozen=True)
class Settings:
    """The layers and the form of all blocks.

    Attributes:
        conv: a standardised convolution, ``f(in_chs, out_chs, kernel, stride=, groups=)``.
        act: activation.
        attn: channel attention, ``f(channels)``.
        attn_gain: factor on its output.
        ratio: channels inside of a block by those of its output.
        group_size: channels of a group of the 3x3 convolutions.
        regnet: RegNet's form: ``ratio`` is of a block's input, attention before the last
            convolution.
        twice: two 3x3 convolutions in a block.
        skip_gain: a learnt factor on a block's branch, which starts at zero, in place of the last
            convolution's gain.
        alpha: factor on the branch.
    """

    conv: Layer
    act: Layer
    attn: Layer | None
    attn_gain: float
    ratio: float
    group_size: int | None
    regnet: bool
    twice: bool
    skip_gain: bool
    alpha: float

    def width(self, in_chs: int, out_chs: int) -> tuple[int, int]:
        """Channels inside of a block, and groups."""
        mid = make_divisible((in_chs if self.regnet else out_chs) * self.ratio)
        if not self.group_size:
            return mid, 1
        groups = mid // self.group_size
        return (self.group_size * groups if self.group_size % 8 == 0 else mid), groups


class Downsample(nn.Module):
    """A shortcut whose average pool strides."""

    def __init__(self, in_chs: int, out_chs: int, *, stride: int, conv: Layer) -> None:
        super().__init__()
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        self.pool = pool if stride > 1 else nn.Identity()
        self.conv = conv(in_chs, out_chs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.pool(x))


class NormFreeBlock(nn.Module):
    """1x1, 3x3 (perhaps twice) and 1x1 convolutions, each behind an activation.

    Args:
        in_chs, out_chs: channels.
        stride: of the first 3x3 convolution.
        beta: factor on the first activation: one over the standard deviation that is expected.
        settings: of all blocks.
        drop_path: rate.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        beta: float,
        settings: Settings,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.settings, self.beta = settings, beta
        mid, groups = settings.width(in_chs, out_chs)
        conv, act = settings.conv, settings.act
        inner, last = (settings.attn, None) if settings.regnet else (None, settings.attn)
        self.downsample: nn.Module | None = None
        if in_chs != out_chs or stride != 1:
            self.downsample = Downsample(in_chs, out_chs, stride=stride, conv=conv)
        self.act1, self.conv1 = act(), conv(in_chs, mid, 1)
        self.act2 = build_act(act)
        self.conv2 = conv(mid, mid, 3, stride=stride, groups=groups)
        self.act2b = build_act(act) if settings.twice else nn.Identity()
        self.conv2b = conv(mid, mid, 3, groups=groups) if settings.twice else nn.Identity()
        self.attn = inner(mid) if inner else None
        self.act3, self.conv3 = act(), conv(mid, out_chs, 1)
        self.attn_last = last(out_chs) if last else None
        self.drop_path = DropPath(drop_path)
        self.skipinit_gain = nn.Parameter(torch.zeros(())) if settings.skip_gain else None
        if not settings.skip_gain:
            nn.init.zeros_(self.conv3.get_parameter("gain"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(x) * self.beta
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2b(self.act2b(self.conv2(self.act2(self.conv1(y)))))
        if self.attn is not None:
            y = self.settings.attn_gain * self.attn(y)
        y = self.conv3(self.act3(y))
        if self.attn_last is not None:
            y = self.settings.attn_gain * self.attn_last(y)
        y = self.drop_path(y)
        if self.skipinit_gain is not None:
            y = y * self.skipinit_gain
        return y * self.settings.alpha + shortcut


class NormFreeNet(Backbone):
    """A stem, then four stages of blocks without norms.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage.
        stem_widths: channels of the stem's convolutions: of one, or of four of which the first and
            the last stride.
        stem_kernel: side of their kernels.
        stem_pool: a pool behind the stem.
        final_chs: channels of a convolution behind the last stage, whose output is then the last
            level; 0 for none.
        scaled_acts: the gain of the activations is a factor on them, as in the authors' code;
            else it is part of the weights.
        same_padding: convolutions pad as TensorFlow's.
        attn_layer: channel attention, ``f(channels)``.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    ``bottle_ratio``, ``group_size``, ``regnet``, ``twice``, ``skip_gain``, ``attn_gain`` and
    ``alpha`` are those of :class:`Settings`, the other arguments every Backbone's.
    """

    last_fc = "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        stem_widths: Sequence[int] = (64,),
        stem_kernel: int = 3,
        stem_pool: bool = False,
        final_chs: int = 0,
        bottle_ratio: float = 0.5,
        group_size: int | None = None,
        regnet: bool = False,
        twice: bool = False,
        skip_gain: bool = False,
        scaled_acts: bool = False,
        same_padding: bool = False,
        attn_layer: Layer | None = None,
        attn_gain: float = 2.0,
        alpha: float = 0.2,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str = "silu",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(4, depths=depths, widths=widths)
        gain, act = _gain(act_layer), get_act(act_layer)
        conv: Layer = ScaledStdConv2dSame if same_padding else ScaledStdConv2d
        conv = partial(conv, eps=EPS, gamma=1.0 if scaled_acts else gain)
        act = partial(Scaled, act, gain) if scaled_acts else act
        settings = Settings(
            conv=conv,
            act=act,
            attn=attn_layer,
            attn_gain=attn_gain,
            ratio=bottle_ratio,
            group_size=group_size,
            regnet=regnet,
            twice=twice,
            skip_gain=skip_gain,
            alpha=alpha,
        )
        self.stem, reduction = _stem(in_chans, stem_widths, stem_kernel, stem_pool, conv, act)
        deep = len(stem_widths) > 1
        self.first_conv = "stem.conv1" if deep else "stem.conv"
        name = f"stem.conv{len(stem_widths) - 1}" if deep else "stem.conv"
        self.add_level(name, channels=stem_widths[-2:][0], reduction=2)
        self.stages, chs, variance = nn.Sequential(), stem_widths[-1], 1.0
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks = Blocks()
            for j, rate in enumerate(rates):
                stride = 2 if not j and (i or reduction == 2) else 1
                wide = regnet and not i and not j
                block = NormFreeBlock(
                    chs,
                    widths[i],
                    stride=stride,
                    beta=variance**-0.5,
                    settings=dataclasses.replace(settings, ratio=1.0) if wide else settings,
                    drop_path=rate,
                )
                blocks.append(block)
                # A stage's first block changes the shortcut, which starts the sum anew
                variance = (variance if j else 1.0) + alpha**2
                chs, reduction = widths[i], reduction * stride
            self.stages.append(blocks)
            if i < 3 or not final_chs:
                self.add_level(f"stages.{i}", channels=chs, reduction=reduction)
        self.final_conv: nn.Module = nn.Identity()
        if final_chs:
            self.final_conv = conv(chs, final_chs, 1)
            self.add_level("final_conv", channels=final_chs, reduction=reduction)
        self.final_act = act()
        self.add_head(
            final_chs or chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, conv=[_fan_in, zero_bias], linear=[normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for name, layer in self.stem.named_children():  # here, where nobody holds what is read
            x = layer(x)
            if f"stem.{name}" == self.levels[0].module:
                yield x  # (N, C, H/2, W/2)
        for i, stage in enumerate(self.stages):
            x = stage(x)  # (N, C, H/4, W/4), then halved
            yield self.final_conv(x) if i == 3 else x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.final_act(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^final_conv", (99999,))]}


def _gain(act_layer: str) -> float:
    if act_layer not in GAINS:
        raise ArgumentError(
            f"act_layer={act_layer!r}: an activation whose gain is known is expected, one of "
            f"{', '.join(GAINS)}.{nearest(act_layer, GAINS)}"
        )
    return GAINS[act_layer]


def _stem(
    in_chans: int, widths: Sequence[int], kernel: int, pool: bool, conv: Layer, act: Layer
) -> tuple[nn.Sequential, int]:
    """The convolutions before the stages, and their reduction."""
    layers, deep = OrderedDict[str, nn.Module](), len(widths) > 1
    for i, width in enumerate(widths):
        stride = 2 if i in (0, 3) else 1
        layers[f"conv{i + 1}" if deep else "conv"] = conv(in_chans, width, kernel, stride=stride)
        if i + 1 < len(widths):  # what is a level is not activated in place
            layers[f"act{i + 2}"] = build_act(act) if i + 2 < len(widths) else act()
        in_chans = width
    if pool:
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(layers), 4 if pool or len(widths) > 3 else 2


def _fan_in(layer: Any) -> None:
    """A normal distribution by the inputs, of convolutions of maps."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")


def _se(ratio: float) -> Layer:
    return partial(SqueezeExcite, rd_ratio=ratio)


def _nfnet(factor: int, **more: Any) -> dict[str, Any]:
    """NFNet: F0 has factor 1."""
    row = dict(
        depths=tuple(factor * depth for depth in (1, 2, 6, 3)),
        widths=(256, 512, 1536, 1536),
        stem_widths=(16, 32, 64, 128),
        group_size=128,
        final_chs=3072,
        twice=True,
        act_layer="gelu",
        attn_layer=_se(0.5),
    )
    return {**row, **more}


def _light(factor: int, attn: Layer, **more: Any) -> dict[str, Any]:
    form: dict[str, Any] = dict(group_size=64, bottle_ratio=0.25, act_layer="silu")
    return _nfnet(factor, **form, attn_layer=attn, **more)


def _regnet(depths: Sequence[int], widths: Sequence[int] = (48, 104, 208, 440)) -> dict[str, Any]:
    final = 1280 * widths[-1] // 440
    *narrow, last = (make_divisible(0.75 * width) for width in (*widths, final))
    return dict(
        depths=depths,
        widths=tuple(narrow),
        stem_widths=(narrow[0],),
        group_size=8,
        bottle_ratio=2.25,
        final_chs=last,
        regnet=True,
        attn_layer=_se(0.5),
    )


def _resnet(depths: Sequence[int], attn: Layer | None = None) -> dict[str, Any]:
    return dict(
        depths=depths,
        widths=(256, 512, 1024, 2048),
        stem_kernel=7,
        stem_pool=True,
        bottle_ratio=0.25,
        act_layer="relu",
        attn_layer=attn,
    )


AUTHORS: dict[str, Any] = dict(scaled_acts=True, same_padding=True, skip_gain=True)
RESNETS = {"26": (2, 2, 2, 2), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
ATTENTIONS = {"": None, "se": _se(1 / 16), "eca": EfficientChannelAttention}

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"dm_nfnet_f{i}": _nfnet(i + 1, **AUTHORS) for i in range(7)},
    **{f"nfnet_f{i}": _nfnet(i + 1) for i in range(8)},
    "nfnet_l0": _light(1, _se(0.25), final_chs=2304),
    "eca_nfnet_l0": _light(1, EfficientChannelAttention, final_chs=2304),
    "eca_nfnet_l1": _light(2, EfficientChannelAttention),
    "eca_nfnet_l2": _light(3, EfficientChannelAttention),
    "eca_nfnet_l3": _light(4, EfficientChannelAttention),
    "nf_regnet_b0": _regnet((1, 3, 6, 6)),
    "nf_regnet_b1": _regnet((2, 4, 7, 7)),
    "nf_regnet_b2": _regnet((2, 4, 8, 8), (56, 112, 232, 488)),
    "nf_regnet_b3": _regnet((2, 5, 9, 9), (56, 128, 248, 528)),
    "nf_regnet_b4": _regnet((2, 6, 11, 11), (64, 144, 288, 616)),
    "nf_regnet_b5": _regnet((3, 7, 14, 14), (80, 168, 336, 704)),
    **{
        f"nf_{kind}resnet{size}": _resnet(depths, attn)
        for kind, attn in ATTENTIONS.items()
        for size, depths in RESNETS.items()
    },
    "test_nfnet": dict(
        depths=(1, 1, 1, 1),
        widths=(32, 64, 96, 128),
        stem_widths=(16, 32, 64, 128),
        group_size=8,
        bottle_ratio=0.25,
        final_chs=192,
        twice=True,
        attn_layer=_se(0.25),
    ),
}

FAMILY = Family(model=NormFreeNet, variants=VARIANTS, weights=weights_table("nfnet"))
