"""DarkNet and its cross stage partial networks: half of a stage's channels pass its blocks by.

Papers: YOLOv3, whose backbone is DarkNet-53 (https://arxiv.org/abs/1804.02767); CSPNet
(https://arxiv.org/abs/1911.11929). The stages with one transition, and the stem that is one even
kernel (a convolution over a map from space to depth), are YOLOv5's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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
    Layer,
    SqueezeExcite,
    build_act,
    drop_path_rates,
    get_act,
    get_attention,
    get_layer,
    get_norm,
    he_fan_out,
    initialize,
    make_divisible,
    normal,
    zero_bias,
)
from ..registry import Family, weights_table

# Blocks -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layers:
    """The layers that all blocks of a network are made of.

    Attributes:
        conv: ``f(in_chs, out_chs, kernel_size=, ...)`` with norm and activation.
        down: the same, with anti-aliasing where it strides.
        act: activation.
        attention: ``f(channels)``, or None for none.
    """

    conv: Callable[..., nn.Module]
    down: Callable[..., nn.Module]
    act: Layer
    attention: Layer | None

    def gate(self, channels: int) -> nn.Module:
        """Return channel attention, if there is to be any."""
        return self.attention(channels) if self.attention else nn.Identity()


class DarkBlock(nn.Module):
    """1x1, 3x3 and a shortcut: DarkNet's.

    Args:
        layers: see :class:`Layers`.
        in_chs, mid_chs, out_chs: channels before, inside and behind.
        groups: of the 3x3 convolution.
        drop_path: rate.
    """

    kernels = (1, 3)
    last = "conv2"

    def __init__(
        self,
        layers: Layers,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        *,
        groups: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        first, second = ({"kernel_size": k, "groups": groups if k > 1 else 1} for k in self.kernels)
        self.conv1 = layers.conv(in_chs, mid_chs, **first)
        self.attn = layers.gate(mid_chs)
        self.conv2 = layers.conv(mid_chs, out_chs, **second)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop_path(self.conv2(self.attn(self.conv1(x)))) + x

    def zero_init_last(self) -> None:
        """Start as the identity."""
        nn.init.zeros_(self.get_parameter(f"{self.last}.bn.weight"))


class EdgeBlock(DarkBlock):
    """3x3, 1x1 and a shortcut."""

    kernels = (3, 1)


class Bottleneck(DarkBlock):
    """1x1, 3x3, 1x1, and an activation behind the shortcut: ResNet's."""

    last = "conv3"

    def __init__(
        self,
        layers: Layers,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        *,
        groups: int,
        drop_path: float,
    ) -> None:
        nn.Module.__init__(self)
        self.conv1 = layers.conv(in_chs, mid_chs)
        self.conv2 = layers.conv(mid_chs, mid_chs, kernel_size=3, groups=groups)
        self.attn2 = layers.gate(mid_chs)
        self.conv3 = layers.conv(mid_chs, out_chs, act=None)
        self.drop_path = DropPath(drop_path)
        self.act3 = build_act(layers.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv3(self.attn2(self.conv2(self.conv1(x))))
        return self.act3(self.drop_path(y) + x)


# Stages: (N, C, H, W) -> (N, C', H/stride, W/stride) ----------------------------------------------


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a stage: its blocks, and the way of its input to them.

    Attributes:
        block: class of the blocks.
        groups: of all 3x3 convolutions.
        block_ratio, bottle_ratio: channels that a block puts out and has inside, by the stage's.
        avg_down: stride by average pooling before a 1x1 convolution.
        expand_ratio, linear, grow: of cross stages: channels that are split, by the stage's; no
            activation before the split; the strided convolution gives the stage's channels.
    """

    block: type[DarkBlock] = DarkBlock
    groups: int = 1
    block_ratio: float = 1.0
    bottle_ratio: float = 1.0
    avg_down: bool = False
    expand_ratio: float = 1.0
    linear: bool = False
    grow: bool = False

    def down(self, layers: Layers, in_chs: int, out_chs: int, stride: int) -> nn.Module:
        """Return what strides."""
        if self.avg_down:
            pool = nn.AvgPool2d(2) if stride > 1 else nn.Identity()
            return nn.Sequential(pool, layers.conv(in_chs, out_chs, groups=self.groups))
        return layers.down(in_chs, out_chs, kernel_size=3, stride=stride, groups=self.groups)

    def blocks(self, layers: Layers, in_chs: int, out_chs: int, drops: Sequence[float]) -> Blocks:
        """Return the blocks of a stage of ``out_chs``, whose first one is given ``in_chs``."""
        width, blocks = round(out_chs * self.block_ratio), Blocks()
        inside = round(width * self.bottle_ratio)
        for rate in drops:
            block = self.block(layers, in_chs, inside, width, groups=self.groups, drop_path=rate)
            in_chs = width
            blocks.append(block)
        return blocks


class DarkStage(nn.Module):
    """A strided convolution and blocks.

    Args:
        recipe: see :class:`Recipe`.
        layers: see :class:`Layers`.
        in_chs, out_chs: channels.
        stride: of the whole.
        drops: drop path rate of each block.
    """

    def __init__(
        self,
        recipe: Recipe,
        layers: Layers,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        drops: Sequence[float],
    ) -> None:
        super().__init__()
        self.conv_down = recipe.down(layers, in_chs, out_chs, stride)
        self.blocks = recipe.blocks(layers, out_chs, out_chs, drops)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.conv_down(x))


class CrossStage(nn.Module):
    """The map is split in two by channels: one half goes through blocks, then both are joined.

    It is the first half that does so, and one transition joins them (``cs3``).

    The arguments are those of :class:`DarkStage`.
    """

    def __init__(
        self,
        recipe: Recipe,
        layers: Layers,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        drops: Sequence[float],
    ) -> None:
        super().__init__()
        chs = out_chs if recipe.grow and stride > 1 else in_chs
        down = recipe.down(layers, in_chs, chs, stride) if stride > 1 else nn.Identity()
        self.conv_down = down
        self.part = round(out_chs * recipe.expand_ratio) // 2
        linear = {"act": None} if recipe.linear else {}
        self.conv_exp = layers.conv(chs, 2 * self.part, **linear)
        self.blocks = recipe.blocks(layers, self.part, out_chs, drops)
        self.add_transition(layers, round(out_chs * recipe.block_ratio))
        self.conv_transition = layers.conv(2 * self.part, out_chs)

    def add_transition(self, layers: Layers, channels: int) -> None:
        """Add what follows the blocks, which give so many channels; here nothing does."""

    def halves(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return the two halves of the channels."""
        return self.conv_exp(self.conv_down(x)).split(self.part, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, aside = self.halves(x)
        return self.conv_transition(torch.cat((self.blocks(x), aside), 1))


class CrossStage2(CrossStage):
    """The second half goes through the blocks, and through a transition of its own."""

    def add_transition(self, layers: Layers, channels: int) -> None:
        self.conv_transition_b = layers.conv(channels, self.part)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        aside, x = self.halves(x)
        x = self.conv_transition_b(self.blocks(x))
        return self.conv_transition(torch.cat((aside, x), 1))


# The network --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stem:
    """Convolutions, and perhaps a max pool behind them.

    Attributes:
        widths: of the convolutions.
        kernel_size: of each; an even one rounds the size down.
        stride: of the first.
        pool: halve the size again; the first stage then keeps it.
    """

    widths: tuple[int, ...]
    kernel_size: int = 3
    stride: int = 2
    pool: bool = False


class CspNet(Backbone):
    """A stem, whose last convolution is a level, and stages, each of which is one.

    Args:
        depths, widths: blocks and channels of each stage.
        stem: see :class:`Stem`.
        stage: class of the stages: ``DarkStage``, ``CrossStage`` or ``CrossStage2``.
        recipe: see :class:`Recipe`; one for all stages or one for each.
        attn_layer: channel attention inside of each block: ``"se"``, ``"eca"``, ``f(channels)``.
        aa_layer: anti-aliasing ``f(channels, stride)`` in place of strides behind the stem's
            convolutions; ``"blur"``.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        zero_init_last: start each residual branch at zero.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv1.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        stem: Stem,
        *,
        stage: Callable[..., nn.Module],
        recipe: Recipe | Sequence[Recipe] = Recipe(),
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "leaky_relu",
        norm_layer: str | Layer = "batchnorm",
        attn_layer: str | Layer | None = None,
        aa_layer: str | Callable[[int, int], nn.Module] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
    ) -> None:
        super().__init__(in_chans=in_chans)
        recipes = (recipe,) * len(depths) if isinstance(recipe, Recipe) else tuple(recipe)
        check_stages(depths=depths, widths=widths, recipe=recipes)
        act = get_act(act_layer)
        conv = partial(ConvNormAct, norm=get_norm(norm_layer), act=act)
        smooth = get_layer("aa_layer", aa_layer, SMOOTH) if aa_layer else None
        gate = _with_act(get_attention(attn_layer), act) if attn_layer else None
        layers = Layers(conv, partial(conv, smooth=smooth), act, gate)
        self.stem, self.stages = nn.Sequential(), nn.Sequential()
        chs, reduction = self._add_stem(stem, layers, smooth)
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (width, kind, drops) in enumerate(zip(widths, recipes, rates, strict=True)):
            stride = 1 if stem.pool and not i else 2
            reduction *= stride
            module = stage(kind, layers, chs, width, stride=stride, drops=drops)
            self.add_stage(f"stages.{i}", module, channels=width, reduction=reduction)
            chs = width
        self.add_head(chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(
            self,
            conv=[he_fan_out, zero_bias],
            linear=[normal, zero_bias],
            zero_init_last=zero_init_last,
        )

    def _add_stem(
        self, stem: Stem, layers: Layers, smooth: Callable[[int, int], nn.Module] | None
    ) -> tuple[int, int]:
        """Returns the channels and the reduction behind it."""
        chs, stride, padding = self.in_chans, stem.stride, (stem.kernel_size - 1) // 2
        for i, width in enumerate(stem.widths, 1):
            conv = layers.conv(
                chs, width, kernel_size=stem.kernel_size, stride=stride, padding=padding
            )
            self.stem.add_module(f"conv{i}", conv)
            chs, stride = width, 1
        self.add_level(f"stem.conv{len(stem.widths)}", channels=chs, reduction=stem.stride)
        if not stem.pool:
            return chs, stem.stride
        self.stem.add_module("pool", nn.MaxPool2d(3, 1 if smooth else 2, 1))
        if smooth:
            self.stem.add_module("aa", smooth(chs, 2))
        return chs, 2 * stem.stride

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for x in self.through("stem", x):  # (N, C, H, W) or (N, C, H/2, W/2)
            yield x
        x = self.rest("stem", x)
        for x in self.through("stages", x):  # (N, 2C, H/2, W/2) or (N, 2C, H/4, W/4), ...
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\..*transition", (99999,)),
            (r"^stages\.(\d+)", (0,)),
        ]
        return {"stem": "^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}


def _with_act(attention: Layer, act: Layer) -> Layer:
    """Squeeze-excite has the network's activation inside."""
    kind = attention.func if isinstance(attention, partial) else attention
    return partial(attention, act=partial(build_act, act)) if kind is SqueezeExcite else attention


def blur(channels: int, stride: int) -> nn.Module:
    """A binomial blur as anti-aliasing."""
    return BlurPool2d(channels, stride=stride)


SMOOTH: dict[str, Callable[[int, int], nn.Module]] = {"blur": blur}


# Tables -------------------------------------------------------------------------------------------


def resnet(*stem: int, width: int, kernel_size: int = 3, **recipe: Any) -> dict[str, Any]:
    """The arguments of a ResNet's stem and bottlenecks in cross stages."""
    return dict(
        depths=(3, 3, 5, 2),
        widths=[width * 2**i for i in range(4)],
        stem=Stem(stem, kernel_size, pool=True),
        stage=CrossStage2,
        recipe=Recipe(Bottleneck, linear=True, **recipe),
    )


def dark(*depths: int, avg_down: bool = False, **more: Any) -> dict[str, Any]:
    """The arguments of a DarkNet."""
    return dict(
        depths=depths,
        widths=(64, 128, 256, 512, 1024),
        stem=Stem((32,), stride=1),
        **{"stage": DarkStage, "recipe": Recipe(bottle_ratio=0.5, avg_down=avg_down)} | more,
    )


def cs3(
    width: float = 1.0,
    depth: float = 1.0,
    *,
    focus: bool = False,
    block: type[DarkBlock] = DarkBlock,
    bottle_ratio: float = 1.0,
    **more: Any,
) -> dict[str, Any]:
    """The arguments of a network whose cross stages have one transition."""
    channels = [make_divisible(c * width) for c in (32, 64, 128, 256, 512, 1024)]
    return dict(
        depths=tuple(int(d * depth) for d in (3, 6, 9, 3)),
        widths=channels[2:],
        stem=Stem((channels[1],), kernel_size=6) if focus else Stem((channels[0], channels[1])),
        stage=CrossStage,
        recipe=Recipe(block, block_ratio=0.5, bottle_ratio=bottle_ratio),
        act_layer="silu",
        **more,
    )


S: dict[str, Any] = dict(width=0.5, depth=0.5)
M: dict[str, Any] = dict(width=0.75, depth=0.67)
X: dict[str, Any] = dict(width=1.25, depth=1.33)
EDGE: dict[str, Any] = dict(block=EdgeBlock, bottle_ratio=1.5)
SE4 = partial(SqueezeExcite, rd_ratio=0.25)
FIRST = Recipe(bottle_ratio=0.5, expand_ratio=2, grow=True)
CROSS = Recipe(block_ratio=0.5, grow=True)
XDW = Recipe(Bottleneck, bottle_ratio=0.5, block_ratio=0.5)

VARIANTS: dict[str, dict[str, Any]] = {
    "cspresnet50": resnet(64, kernel_size=7, width=128, expand_ratio=2, bottle_ratio=0.5),
    "cspresnet50d": resnet(32, 32, 64, width=128, expand_ratio=2, bottle_ratio=0.5),
    "cspresnet50w": resnet(32, 32, 64, width=256, bottle_ratio=0.25, block_ratio=0.5),
    "cspresnext50": resnet(64, kernel_size=7, width=256, groups=32, block_ratio=0.5),
    "cspdarknet53": dark(1, 2, 8, 8, 4, stage=CrossStage2, recipe=(FIRST, *[CROSS] * 4)),
    "darknet17": dark(1, 1, 1, 1, 1),
    "darknet21": dark(1, 1, 1, 2, 2),
    "sedarknet21": dark(1, 1, 1, 2, 2, attn_layer="se"),
    "darknet53": dark(1, 2, 8, 8, 4),
    "darknetaa53": dark(1, 2, 8, 8, 4, avg_down=True),
    "cs3darknet_s": cs3(**S),
    "cs3darknet_m": cs3(**M),
    "cs3darknet_l": cs3(),
    "cs3darknet_x": cs3(**X),
    "cs3darknet_focus_s": cs3(focus=True, **S),
    "cs3darknet_focus_m": cs3(focus=True, **M),
    "cs3darknet_focus_l": cs3(focus=True),
    "cs3darknet_focus_x": cs3(focus=True, **X),
    "cs3sedarknet_l": cs3(attn_layer=SE4),
    "cs3sedarknet_x": cs3(attn_layer="se", **X),
    "cs3sedarknet_xdw": dict(
        depths=(3, 6, 12, 4),
        widths=(256, 512, 1024, 2048),
        stem=Stem((32, 64)),
        stage=CrossStage2,
        recipe=(XDW, XDW, *(dataclasses.replace(XDW, groups=g) for g in (256, 512))),
        act_layer="silu",
        attn_layer="se",
    ),
    "cs3edgenet_x": cs3(**X, **EDGE),
    "cs3se_edgenet_x": cs3(attn_layer=SE4, **X, **EDGE),
}

FAMILY = Family(model=CspNet, variants=VARIANTS, weights=weights_table("cspnet"))
