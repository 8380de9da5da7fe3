"""ResNetV2: residual blocks that normalise and activate before they convolve.

Papers: pre-activation (https://arxiv.org/abs/1603.05027); BiT, with group norms and standardised
weights (https://arxiv.org/abs/1912.11370).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_choice, check_stages
from ..layers import (
    Blocks,
    ConvClassifier,
    DropPath,
    Head,
    Layer,
    StdConv2d,
    drop_path_rates,
    get_act,
    get_norm,
    he_fan_out,
    initialize,
    make_divisible,
    norm_and_act,
    normal,
    zero_bias,
)
from ..layers.cells import SameMaxPool2d
from ..registry import Family, weights_table

POOLS = ("centred", "fixed", "same")


def plain_conv(in_chs: int, out_chs: int, kernel: int, *, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size, up to its stride."""
    return nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)


class Stem(nn.Sequential):
    """A strided convolution of 7x7, or three of 3x3, and a pool; (N, C, H, W) -> (N, C', H/4, W/4).

    Args:
        in_chans: channels of the image.
        widths: of the convolution, or of the three.
        conv, norm, act: layers.
        preact: no norm behind the last convolution.
        pool: how the pool pads: ``"centred"``, ``"fixed"`` with zeros that may be the maximum, or
            ``"same"``.
    """

    def __init__(
        self,
        in_chans: int,
        widths: Sequence[int],
        *,
        conv: Layer,
        norm: Layer,
        act: Layer,
        preact: bool,
        pool: str,
    ) -> None:
        layers = OrderedDict[str, nn.Module]()
        for i, width in enumerate(widths):
            number = str(i + 1) if len(widths) > 1 else ""
            kernel, stride = 3 if number else 7, 1 if i else 2
            layers[f"conv{number}"] = conv(in_chans, width, kernel, stride=stride)
            if i + 1 < len(widths) or not preact:
                layers[f"norm{number}"], layers[f"act{number}"] = norm_and_act(norm, width, act)
            in_chans = width
        pools = {"centred": partial(nn.MaxPool2d, 3, 2, 1), "fixed": partial(nn.MaxPool2d, 3, 2)}
        if pool == "fixed":
            layers["pad"] = nn.ConstantPad2d(1, 0.0)
        layers["pool"] = pools.get(pool, partial(SameMaxPool2d, 3, 2))()
        super().__init__(layers)


class Downsample(nn.Module):
    """The shortcut of a stage's first block.

    Args:
        in_chs, out_chs: channels.
        stride: of the convolution, or of an average pool before it.
        conv: a convolution.
        norm: behind it; None for none.
        pooled: the pool strides.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        conv: Layer,
        norm: Layer | None,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        if pooled and stride > 1:
            self.pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        self.conv = conv(in_chs, out_chs, 1, stride=1 if pooled else stride)
        self.norm = norm(out_chs) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.pool(x)))


class PreActivation(nn.Module):
    """Convolutions, each behind a norm and an activation, and a shortcut around all.

    Args:
        chs: channels of the input, between the convolutions, and of the output.
        kernels: of the convolutions.
        stride: of the first 3x3 convolution.
        conv, norm, act: layers.
        downsample: the shortcut, which is given the first activation's output; None for the input.
        drop_path: rate.
    """

    def __init__(
        self,
        chs: Sequence[int],
        kernels: Sequence[int],
        *,
        stride: int,
        conv: Layer,
        norm: Layer,
        act: Layer,
        downsample: nn.Module | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.downsample, self.count = downsample, len(kernels)
        places = [k for k, kernel in enumerate(kernels) if kernel == 3][:1]
        for i, kernel in enumerate(kernels):
            norm_layer, act_layer = norm_and_act(norm, chs[i], act)
            self.add_module(f"norm{i + 1}", norm_layer)
            self.add_module(f"act{i + 1}", act_layer)
            step = stride if i in places else 1
            self.add_module(f"conv{i + 1}", conv(chs[i], chs[i + 1], kernel, stride=step))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.get_submodule("act1")(self.get_submodule("norm1")(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.get_submodule("conv1")(y)
        for i in range(2, self.count + 1):
            y = self.get_submodule(f"act{i}")(self.get_submodule(f"norm{i}")(y))
            y = self.get_submodule(f"conv{i}")(y)
        return self.drop_path(y) + shortcut


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each before its norm; the activation is last.

    The arguments are :class:`PreActivation`'s.
    """

    def __init__(
        self,
        chs: Sequence[int],
        kernels: Sequence[int],
        *,
        stride: int,
        conv: Layer,
        norm: Layer,
        act: Layer,
        downsample: nn.Module | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        assert tuple(kernels) == (1, 3, 1)
        self.downsample = downsample
        self.conv1, self.norm1 = conv(chs[0], chs[1], 1), norm(chs[1])
        self.act1 = act(inplace=True)
        self.conv2, self.norm2 = conv(chs[1], chs[2], 3, stride=stride), norm(chs[2])
        self.act2 = act(inplace=True)
        self.conv3, self.norm3 = conv(chs[2], chs[3], 1), norm(chs[3])
        self.drop_path = DropPath(drop_path)
        self.act3 = act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        y = self.drop_path(self.norm3(self.conv3(y)))
        return self.act3(y + (x if self.downsample is None else self.downsample(x)))


class ResNetV2(Backbone):
    """A stem, then four stages; a level is the map before the next stage's first norm.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage.
        stem_widths: channels of the stem's convolution, or of its three.
        stem_pool: how the stem's pool pads, see :class:`Stem`.
        basic: two 3x3 convolutions in a block instead of 1x1, 3x3, 1x1.
        preact: blocks activate before they convolve.
        pooled_shortcuts: shortcuts stride by an average pool.
        conv: ``f(in_chs, out_chs, kernel, stride=)``.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (256, 512, 1024, 2048),
        *,
        stem_widths: Sequence[int] = (64,),
        stem_pool: str = "centred",
        basic: bool = False,
        preact: bool = True,
        pooled_shortcuts: bool = False,
        conv: Layer = plain_conv,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        widths = tuple(widths)[: len(depths)]
        check_stages(depths=depths, widths=widths)
        check_choice("stem_pool", stem_pool, POOLS)
        act, norm = get_act(act_layer), get_norm(norm_layer)
        layers: dict[str, Layer] = dict(conv=conv, norm=norm, act=act)
        self.stem = Stem(in_chans, stem_widths, preact=preact, pool=stem_pool, **layers)
        last = str(len(stem_widths)) if len(stem_widths) > 1 else ""
        self.first_conv = "stem.conv1" if last else "stem.conv"
        chs = stem_widths[-1]
        self.add_level(f"stem.{'conv' if preact else 'norm'}{last}", channels=chs, reduction=2)
        self.stages = nn.Sequential()
        block = PreActivation if preact else Bottleneck
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks, out_chs = Blocks(), widths[i]
            mid = out_chs if basic else make_divisible(out_chs / 4)
            for j, rate in enumerate(rates):
                stride = 2 if i and not j else 1
                down: nn.Module | None = None
                if not j and (not basic or stride > 1 or chs != out_chs):
                    after = None if preact else norm
                    down = Downsample(
                        chs, out_chs, stride=stride, conv=conv, norm=after, pooled=pooled_shortcuts
                    )
                blocks.append(
                    block(
                        (chs, mid, out_chs) if basic else (chs, mid, mid, out_chs),
                        (3, 3) if basic else (1, 3, 1),
                        stride=stride,
                        downsample=down,
                        drop_path=rate,
                        **layers,
                    )
                )
                chs = out_chs
            stage = nn.Sequential(OrderedDict(blocks=blocks))
            self.add_stage(f"stages.{i}", stage, channels=chs, reduction=4 * 2**i)
        last_layers = norm_and_act(norm, chs, act) if preact else (nn.Identity(), nn.Identity())
        self.norm, self.act = last_layers
        self.add_head(
            chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(classifier=ConvClassifier),
        )
        initialize(self, conv=[he_fan_out, zero_bias])
        if num_classes:
            normal(self.get_classifier())

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for x in self.through("stem", x):  # (N, C, H/2, W/2)
            yield x
        x = self.rest("stem", x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), then halved
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(y))

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert BiT's own archives: other names, and kernels whose channels come last."""
        if not any(key.endswith("root_block/standardized_conv2d/kernel") for key in state):
            return dict(state)
        converted = {}
        for key, value in state.items():
            name = _named(key.removeprefix("resnet/"))
            kernel = value.permute(3, 2, 0, 1).contiguous() if value.ndim == 4 else value
            converted[name] = kernel
        return converted

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}


LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
OUTER = {
    "root_block/standardized_conv2d": "stem.conv",
    "group_norm": "norm",
    "head/conv2d": "head.fc",
}
LAYERS = {"standardized_conv2d": "conv", "group_norm": "norm"}


def _named(key: str) -> str:
    """BiT's name of a tensor, as it is here; unknown ones stay."""
    path, _, leaf = key.rpartition("/")
    leaf = LEAVES.get(leaf, leaf)
    if path in OUTER:
        return f"{OUTER[path]}.{leaf}"
    found = re.fullmatch(r"block(\d+)/unit(\d+)/([abc])(/proj)?/(\w+)", path)
    if found is None or found[5] not in LAYERS:
        return key
    layer = f"{LAYERS[found[5]]}{'abc'.index(found[3]) + 1}" if not found[4] else "downsample.conv"
    return f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}.{layer}.{leaf}"


def _bit(depths: Sequence[int], factor: int) -> dict[str, Any]:
    widths = [factor * width for width in (256, 512, 1024, 2048)]
    return dict(
        depths=depths,
        widths=tuple(widths),
        stem_widths=(64 * factor,),
        stem_pool="fixed",
        conv=partial(StdConv2d, eps=1e-8),
        norm_layer="groupnorm",
    )


BASIC: dict[str, Any] = dict(widths=(64, 128, 256, 512), basic=True)
DEEP: dict[str, Any] = dict(stem_widths=(32, 32, 64), pooled_shortcuts=True)
R18, R34, R50, R101, R152 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)

VARIANTS: dict[str, dict[str, Any]] = {
    "resnetv2_50x1_bit": _bit(R50, 1),
    "resnetv2_50x3_bit": _bit(R50, 3),
    "resnetv2_101x1_bit": _bit(R101, 1),
    "resnetv2_101x3_bit": _bit(R101, 3),
    "resnetv2_152x2_bit": _bit(R152, 2),
    "resnetv2_152x4_bit": _bit(R152, 4),
    "resnetv2_18": dict(depths=R18, **BASIC),
    "resnetv2_18d": dict(depths=R18, **BASIC, **DEEP),
    "resnetv2_34": dict(depths=R34, **BASIC),
    "resnetv2_34d": dict(depths=R34, **BASIC, **DEEP),
    "resnetv2_50": dict(depths=R50),
    "resnetv2_50d": dict(depths=R50, **DEEP),
    "resnetv2_50t": dict(depths=R50, stem_widths=(24, 32, 64), pooled_shortcuts=True),
    "resnetv2_101": dict(depths=R101),
    "resnetv2_101d": dict(depths=R101, **DEEP),
    "resnetv2_152": dict(depths=R152),
    "resnetv2_152d": dict(depths=R152, **DEEP),
    "resnetv2_50d_gn": dict(depths=R50, **DEEP, norm_layer="groupnorm"),
    "resnetv2_50d_evos": dict(depths=R50, **DEEP, norm_layer="evonorms0"),
    "resnetv2_50d_frn": dict(depths=R50, **DEEP, norm_layer="filterresponsenorm"),
}

FAMILY = Family(model=ResNetV2, variants=VARIANTS, weights=weights_table("resnetv2"))
