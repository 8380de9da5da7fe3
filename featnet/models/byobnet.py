"""Bring your own blocks: networks that are a table of stages.

Papers: GPU-Efficient Networks, GERNet (https://arxiv.org/abs/2006.14090), RepVGG
(https://arxiv.org/abs/2101.03697), MobileOne (https://arxiv.org/abs/2206.04040), RegNetZ
(https://arxiv.org/abs/2103.06877), EvoNorm (https://arxiv.org/abs/2004.02967), CLIP
(https://arxiv.org/abs/2103.00020), Bottleneck Transformers (https://arxiv.org/abs/2101.11605),
HaloNet (https://arxiv.org/abs/2103.12731), LambdaNetworks (https://arxiv.org/abs/2102.08602). The
ResNets with tiered stems, and the sizes of many others, are timm's.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, InputSizeError, check_choice
from ..layers import (
    AttentionPool2d,
    AttentionPoolHead,
    BilinearAttention,
    Blocks,
    BlurPool2d,
    BottleneckAttention,
    Branches,
    ConvNormAct,
    DropBlock2d,
    DropPath,
    EvoNorm,
    GlobalContext,
    HaloAttention,
    Head,
    LambdaLayer,
    Layer,
    NormMlp,
    SelfAttention,
    SqueezeExcite,
    drop_path_rates,
    get_act,
    get_attention,
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

# What a network is made of ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stem:
    """The layers that bring the input to half or a quarter of its size.

    Attributes:
        widths: of the convolutions; the first has stride 2.
        block: a single block in place of a convolution: RepVGG, MobileOne.
        pool: to a quarter: ``"max"``, or ``"avg2"`` without overlap. Without it the last of several
            convolutions strides.
        linear: number of convolutions, from the first, that have neither norm nor activation.
    """

    widths: tuple[int, ...]
    kernel_size: int = 3
    block: Callable[..., nn.Module] | None = None
    pool: str | None = None
    linear: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """Equal blocks in a row; a stage is one of these or several.

    Attributes:
        block: ``f(args)``.
        depth, channels: how many, and what each puts out.
        stride: of the first block, if the row begins a stage.
        group_size: channels in each group of its main convolution; 0 for all in one.
        ratio: of the inner width to the channels.
        attention: channel attention in place of the network's.
    """

    block: Callable[..., nn.Module]
    depth: int
    channels: int
    stride: int = 2
    group_size: int = 0
    ratio: float = 1.0
    attention: str | Layer | None = None


@dataclasses.dataclass(frozen=True)
class ByobSettings:
    """Settings that all blocks have in common: layers, and which projection a shortcut is, if
    any."""

    act: Layer = nn.ReLU
    norm: Layer = nn.BatchNorm2d
    attention: Layer | None = None
    smooth: Callable[[int, int], nn.Module] | None = None
    shortcut: str = "conv1x1"
    drop_block: Callable[[], nn.Module] | None = None

    def conv(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: bool = True,
        drop: bool = False,
    ) -> ConvNormAct:
        """A convolution in these layers; ``drop``: where blocks drop regions."""
        return ConvNormAct(
            in_chs,
            out_chs,
            kernel_size=kernel_size,
            stride=stride,
            groups=groups,
            norm=self.norm,
            act=self.act if act else None,
            drop=self.drop_block if drop else None,
            smooth=self.smooth,
        )


@dataclasses.dataclass(frozen=True)
class BlockArgs:
    """The position of a block in its network.

    Attributes:
        size: (H, W) of the map that it is given, where the network was built for one.
    """

    settings: ByobSettings
    in_chs: int
    out_chs: int
    stride: int = 1
    group_size: int = 0
    ratio: float = 1.0
    drop_path: float = 0.0
    size: tuple[int, int] | None = None

    def width(self, *, of_input: bool = False) -> int:
        return make_divisible((self.in_chs if of_input else self.out_chs) * self.ratio)

    def groups(self, channels: int) -> int:
        return channels // self.group_size if self.group_size else 1

    def attention(self, channels: int) -> nn.Module:
        return self.settings.attention(channels) if self.settings.attention else nn.Identity()

    def shortcut(self) -> nn.Module | None:
        settings = self.settings
        if self.in_chs == self.out_chs and self.stride == 1:
            return nn.Identity()
        if settings.shortcut == "avg":
            return PoolShortcut(self)
        if settings.shortcut == "conv1x1":
            return settings.conv(self.in_chs, self.out_chs, stride=self.stride, act=False)
        return None


class PoolShortcut(nn.Module):
    """Average pooling before the projection: ResNet-D's."""

    def __init__(self, args: BlockArgs) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        if args.stride > 1:
            self.pool = nn.AvgPool2d(2, args.stride, ceil_mode=True, count_include_pad=False)
        self.conv = args.settings.conv(args.in_chs, args.out_chs, act=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.pool(x))


# Blocks -------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Branch plus shortcut, then an activation; without a shortcut where sizes change, if the
    settings has none. The branch's children run in their order, ``last`` is its last
    convolution."""

    last: str

    def __init__(self, args: BlockArgs, *, linear_out: bool = False) -> None:
        super().__init__()
        self.shortcut = args.shortcut()
        self.branch: tuple[str, ...] = ()
        self.drop_path = DropPath(args.drop_path) if args.drop_path else nn.Identity()
        self.act = nn.Identity() if linear_out else args.settings.act(inplace=True)

    def add_branch(self, **layers: nn.Module) -> None:
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.branch = tuple(n for n, layer in layers.items() if not isinstance(layer, nn.Identity))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for name in self.branch:
            y = getattr(self, name)(y)
        y = self.drop_path(y)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return self.act(y)

    def zero_init_last(self) -> None:
        """Start as the shortcut, where there is one."""
        weight = getattr(self.get_submodule(self.last).bn, "weight", None)
        if self.shortcut is not None and weight is not None:
            nn.init.zeros_(weight)


class BasicBlock(Residual):
    """kxk, kxk: ResNet's."""

    last = "conv2_kxk"

    def __init__(self, args: BlockArgs) -> None:
        super().__init__(args)
        conv, mid, out = args.settings.conv, args.width(), args.out_chs
        self.add_branch(
            conv1_kxk=conv(args.in_chs, mid, 3, stride=args.stride),
            conv2_kxk=conv(mid, out, 3, groups=args.groups(mid), act=False, drop=True),
            attn_last=args.attention(out),
        )


class DarkBlock(Residual):
    """1x1, kxk: DarkNet's."""

    last = "conv2_kxk"

    def __init__(self, args: BlockArgs) -> None:
        super().__init__(args)
        conv, mid, out, groups = args.settings.conv, args.width(), args.out_chs, args.groups
        self.add_branch(
            conv1_1x1=conv(args.in_chs, mid),
            conv2_kxk=conv(
                mid, out, 3, stride=args.stride, groups=groups(mid), act=False, drop=True
            ),
            attn_last=args.attention(out),
        )


class EdgeBlock(Residual):
    """kxk, 1x1: EfficientNet's edge residual, with an activation at the end."""

    last = "conv2_1x1"

    def __init__(self, args: BlockArgs) -> None:
        super().__init__(args)
        conv, mid = args.settings.conv, args.width()
        self.add_branch(
            conv1_kxk=conv(
                args.in_chs, mid, 3, stride=args.stride, groups=args.groups(mid), drop=True
            ),
            attn=args.attention(mid),
            conv2_1x1=conv(mid, args.out_chs, act=False),
        )


class Bottleneck(Residual):
    """1x1, kxk, 1x1.

    Args:
        bottle_in: the inner width is in proportion to the input's, as in RegNetZ.
        linear_out: no activation at the end.
        extra_conv: a second kxk.
    """

    last = "conv3_1x1"

    def __init__(
        self,
        args: BlockArgs,
        *,
        bottle_in: bool = False,
        linear_out: bool = False,
        extra_conv: bool = False,
    ) -> None:
        super().__init__(args, linear_out=linear_out)
        mid = args.width(of_input=bottle_in)
        conv, groups = args.settings.conv, args.groups(mid)
        again = conv(mid, mid, 3, groups=groups) if extra_conv else nn.Identity()
        self.add_branch(
            conv1_1x1=conv(args.in_chs, mid),
            conv2_kxk=conv(mid, mid, 3, stride=args.stride, groups=groups, drop=True),
            conv2b_kxk=again,
            attn=args.attention(mid),
            conv3_1x1=conv(mid, args.out_chs, act=False),
        )


class SelfAttentionBlock(Residual):
    """1x1, self-attention, 1x1.

    Args:
        mixer: the self-attention, ``f(channels, stride=)``.
        sized: it has a table of positions, so that it takes the map's size as ``size=`` too.
    """

    last = "conv3_1x1"

    def __init__(
        self,
        args: BlockArgs,
        *,
        mixer: Callable[..., SelfAttention],
        sized: bool = False,
        bottle_in: bool = False,
        linear_out: bool = False,
    ) -> None:
        super().__init__(args, linear_out=linear_out)
        mid = args.width(of_input=bottle_in)
        options = {"size": args.size} if sized else {}
        if sized and args.size is None:
            raise ArgumentError("This self-attention has a table of positions: img_size is needed.")
        norm, act = norm_and_act(args.settings.norm, mid, args.settings.act)
        self.add_branch(
            conv1_1x1=args.settings.conv(args.in_chs, mid),
            self_attn=mixer(mid, stride=args.stride, **options),
            post_attn=norm,
            post_act=act,
            conv3_1x1=args.settings.conv(mid, args.out_chs, act=False),
        )


class ConvBranches(Branches):
    """Convolutions in parallel that can become one: what RepVGG and MobileOne share."""

    def __init__(self, args: BlockArgs) -> None:
        super().__init__()
        self.same = args.in_chs == args.out_chs and args.stride == 1
        self.identity = args.settings.norm(args.out_chs) if self.same else None

    def conv(self, args: BlockArgs, kernel_size: int, *, drop: bool = False) -> ConvNormAct:
        return args.settings.conv(
            args.in_chs,
            args.out_chs,
            kernel_size,
            stride=args.stride,
            groups=args.groups(args.in_chs),
            act=False,
            drop=drop,
        )

    def add_end(self, args: BlockArgs) -> None:
        drop = args.drop_path if self.same else 0.0
        self.drop_path = DropPath(drop) if drop else nn.Identity()
        self.attn = args.attention(args.out_chs)
        self.act = args.settings.act(inplace=True)

    def convolutions(self) -> list[nn.Module]:
        """Those in parallel."""
        raise NotImplementedError

    def branches(self) -> list[nn.Module]:
        return [*self.convolutions(), *([self.identity] if self.identity is not None else [])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.convolutions()
        y = first(x)
        for conv in others:
            y = y + conv(x)
        y = self.drop_path(y)
        if self.identity is not None:
            y = y + self.identity(x)
        return self.act(self.attn(y))

    def reparameterize(self) -> nn.Module:
        """One convolution for all, under the peer's names."""
        layers = {"reparam_conv": self.merged(), "attn": self.attn, "act": self.act}
        return nn.Sequential(OrderedDict(layers))


class RepVggBlock(ConvBranches):
    """kxk beside 1x1 beside nothing."""

    def __init__(self, args: BlockArgs) -> None:
        super().__init__(args)
        self.conv_kxk = self.conv(args, 3, drop=True)
        self.conv_1x1 = self.conv(args, 1)
        self.add_end(args)

    def convolutions(self) -> list[nn.Module]:
        return [self.conv_1x1, self.conv_kxk]

    def init_weights(self) -> None:
        """Small random norms, so that the branches differ from the start."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 0.1, 0.1)
                nn.init.normal_(module.bias, 0, 0.1)


class MobileOneBlock(ConvBranches):
    """Several kxk beside 1x1 beside nothing; where all are 1x1, only the several."""

    def __init__(self, args: BlockArgs, *, kernel_size: int = 3, branches: int = 1) -> None:
        super().__init__(args)
        self.conv_kxk = nn.ModuleList(self.conv(args, kernel_size) for _ in range(branches))
        self.conv_scale = self.conv(args, 1) if kernel_size > 1 else None
        self.add_end(args)

    def convolutions(self) -> list[nn.Module]:
        scale = [self.conv_scale] if self.conv_scale is not None else []
        return [*scale, *self.conv_kxk]


# The network --------------------------------------------------------------------------------


class ByobNet(Backbone):
    """A stem, stages of blocks as rows say, perhaps a convolution at the end.

    Args:
        stages: each a :class:`Row` or several.
        stem: see :class:`Stem`.
        num_features: width of a last 1x1 convolution; 0 for none.
        head: ``"classifier"``, ``"mlp"`` (of ``head_hidden_size``), or ``"attention"``, which pools
            by attention. ``global_pool`` is ``avg`` by default, and ``token`` with attention.
        shortcut: where a block changes sizes: ``"conv1x1"``, ``"avg"`` (pooled before it), or
            ``""`` for none.
        attn_layer: channel attention in each block: ``"se"``, ``"eca"``, ``f(channels)``.
        aa_layer: anti-aliasing ``f(channels, stride)`` in place of strides in the stages;
            ``"avg"``, ``"blur"``.
        img_size: size that tables of positions are made for; self-attention then takes inputs up to
            this, attention pooling interpolates.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        drop_block_rate: of the last two stages' blocks.
        zero_init_last: start each residual branch at zero.

    The other arguments are every Backbone's.
    """

    last_fc = "head.fc"
    stem: nn.Module
    final_conv: nn.Module
    head: nn.Module

    def __init__(
        self,
        stages: Sequence[Row | Sequence[Row]],
        stem: Stem,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        num_features: int = 0,
        head: str = "classifier",
        head_hidden_size: int = 1024,
        shortcut: str = "conv1x1",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        attn_layer: str | Layer | None = None,
        aa_layer: str | Callable[[int, int], nn.Module] | None = None,
        img_size: int | tuple[int, int] = 224,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_block_rate: float = 0.0,
        zero_init_last: bool = True,
    ) -> None:
        super().__init__(in_chans=in_chans)
        settings = ByobSettings(
            get_act(act_layer),
            get_norm(norm_layer),
            get_attention(attn_layer) if attn_layer else None,
            shortcut=shortcut,
        )
        self.drop_path_rate = drop_path_rate
        built = (img_size, img_size) if isinstance(img_size, int) else img_size
        rows = [(stage,) if isinstance(stage, Row) else tuple(stage) for stage in stages]
        args = self._add_stem(stem, settings, built, level=rows[0][0].stride > 1)
        smooth = get_layer("aa_layer", aa_layer, SMOOTH) if aa_layer else None
        args = dataclasses.replace(args, settings=dataclasses.replace(settings, smooth=smooth))
        args = self._add_stages(rows, args, drop_path_rate, drop_block_rate)
        channels = num_features or args.in_chs
        last = args.settings.conv(args.in_chs, channels) if num_features else nn.Identity()
        self.add_stage("final_conv", last, channels=channels, reduction=self._reduction)
        sized = any(isinstance(m, SelfAttention) and m.size for m in self.modules())
        self.img_size = built if sized else None
        pool = global_pool if global_pool is not None else "token" if head == "attention" else "avg"
        self.add_head(
            channels,
            num_classes=num_classes,
            global_pool=pool,
            drop_rate=drop_rate,
            head=self._make_head(head, channels, head_hidden_size, args),
        )
        initialize(
            self,
            conv=[he_group_fan_out, zero_bias],
            linear=[normal, zero_bias],
            zero_init_last=zero_init_last,
        )

    def _add_stem(
        self, stem: Stem, settings: ByobSettings, size: tuple[int, int], *, level: bool
    ) -> BlockArgs:
        """Returns what a first stage begins from. A stem of one layer is a level if the first stage
        strides."""
        last, in_chs = len(stem.widths) - 1, self.in_chans
        self._reduction = 2 if not last and not stem.pool else 4
        if self._reduction == 2:
            args = BlockArgs(settings, in_chs, stem.widths[0], stride=2)
            whole = (
                stem.block(args)
                if stem.block
                else settings.conv(in_chs, args.out_chs, stem.kernel_size, stride=2)
            )
            self.stem = whole
            if level:
                self.add_level("stem", channels=args.out_chs, reduction=2)
        else:
            self.stem = nn.Sequential()
            for i, width in enumerate(stem.widths):
                stride = 2 if i == 0 or (i == last and not stem.pool) else 1
                kernel = stem.kernel_size
                conv: nn.Module = settings.conv(in_chs, width, kernel, stride=stride)
                if i < stem.linear:
                    conv = nn.Conv2d(in_chs, width, kernel, stride, kernel // 2, bias=False)
                if i == (last if stem.pool else last - 1):
                    self.add_stage(f"stem.conv{i + 1}", conv, channels=width, reduction=2)
                else:
                    self.stem.add_module(f"conv{i + 1}", conv)
                in_chs = width
            if stem.pool:
                self.stem.add_module("pool", STEM_POOLS[stem.pool]())
        convs = [name for name, m in self.named_modules() if isinstance(m, nn.Conv2d)]
        branches = tuple(name for name in convs if not name.startswith("stem.attn"))
        self.first_conv = branches if stem.block else convs[0]
        height, width = (-(-side // self._reduction) for side in size)
        return BlockArgs(settings, stem.widths[-1], 0, size=(height, width))

    def _add_stages(
        self,
        stages: Sequence[tuple[Row, ...]],
        args: BlockArgs,
        drop_path: float,
        drop_block: float,
    ) -> BlockArgs:
        """Returns what comes after them. A stage is a level if the next one strides."""
        depth = sum(row.depth for stage in stages for row in stage)
        drops = iter(drop_path_rates(drop_path, depth))
        self.stages = nn.Sequential()
        for i, stage in enumerate(stages):
            ahead = len(stages) - 1 - i
            stride, blocks = stage[0].stride, []
            self._reduction *= stride
            for row in (each for each in stage for _ in range(each.depth)):
                changes: dict[str, Any] = {"drop_block": _drop_block(ahead, drop_block)}
                if row.attention:
                    changes["attention"] = get_attention(row.attention)
                here = BlockArgs(
                    dataclasses.replace(args.settings, **changes),
                    args.in_chs,
                    row.channels,
                    stride,
                    row.group_size,
                    row.ratio,
                    next(drops),
                    args.size,
                )
                blocks.append(row.block(here))
                assert args.size is not None
                size = (-(-args.size[0] // stride), -(-args.size[1] // stride))
                args = dataclasses.replace(args, in_chs=row.channels, size=size)
                stride = 1
            if ahead and stages[i + 1][0].stride > 1:
                self.add_stage(
                    f"stages.{i}", Blocks(*blocks), channels=args.in_chs, reduction=self._reduction
                )
            else:
                self.stages.add_module(str(i), Blocks(*blocks))
        return args

    def _make_head(self, kind: str, channels: int, hidden: int, args: BlockArgs) -> Head:
        check_choice("head", kind, HEADS)
        if kind == "attention":
            assert args.size is not None
            self.head, self.last_fc = AttentionPool2d(channels, size=args.size), "head.proj"
            return AttentionPoolHead()
        if kind == "mlp":
            return NormMlp(norm=args.settings.norm, hidden=hidden, act=args.settings.act)
        return Head()

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        largest = self.img_size
        if largest and (x.shape[-2] > largest[0] or x.shape[-1] > largest[1]):
            raise InputSizeError(
                f"An input of {x.shape[-2]} x {x.shape[-1]}: this network's self-attention has "
                f"positions for inputs up to {largest[0]} x {largest[1]}; build it with a larger "
                "img_size."
            )
        if self.levels[0].module == "stem":
            x = self.stem(x)  # (N, C, H/2, W/2)
            yield x
        elif self.levels[0].module.startswith("stages."):
            x = self.stem(x)
        else:
            for x in self.through("stem", x):
                yield x
            x = self.rest("stem", x)  # (N, C, H/4, W/4)
        for x in self.through("stages", x):
            yield x
        x = self.rest("stages", x)
        yield self.final_conv(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": "^stem", "blocks": [(blocks, None), ("^final_conv", (99999,))]}


def _drop_block(ahead: int, rate: float) -> Callable[[], nn.Module] | None:
    """Of the last two stages, with regions that suit their map sizes."""
    if not rate or ahead > 1:
        return None
    size, scale = ((3, 1.0), (5, 0.25))[ahead]
    return partial(DropBlock2d, rate, block_size=size, gamma_scale=scale)


def average(channels: int, stride: int) -> nn.Module:
    """Average pooling as anti-aliasing; an odd map keeps its last row, as in the shortcut."""
    del channels
    return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)


def blur(channels: int, stride: int) -> nn.Module:
    """A binomial blur as anti-aliasing."""
    return BlurPool2d(channels, stride=stride)


SMOOTH: dict[str, Callable[[int, int], nn.Module]] = {"avg": average, "blur": blur}
STEM_POOLS: dict[str, Layer] = {
    "max": partial(nn.MaxPool2d, 3, 2, 1),
    "avg2": partial(nn.AvgPool2d, 2),
}
HEADS = ("classifier", "mlp", "attention")


# Tables -------------------------------------------------------------------------------------

Block = Callable[..., nn.Module]
WIDTHS = (256, 512, 1024, 2048)


def rows(
    block: Block,
    depths: Sequence[int],
    widths: Sequence[int] = WIDTHS,
    *,
    first: int = 1,
    group_size: int = 0,
    ratio: float = 0.25,
) -> tuple[Row, ...]:
    """A row for each stage; the first one's stride is ``first``."""
    return tuple(
        Row(block, depth, width, 2 if i else first, group_size, ratio)
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True))
    )


def mixed(
    pattern: str,
    channels: int,
    mixer: Block,
    *,
    block: Block = Bottleneck,
    group_size: int = 0,
    ratio: float = 0.25,
) -> tuple[Row, ...]:
    """A stage of bottlenecks (``.``) and self-attention (``@``)."""
    kinds = {".": block, "@": mixer}
    return tuple(Row(kinds[c], 1, channels, 2, group_size, ratio) for c in pattern)


def repvgg(depths: Sequence[int], widths: Sequence[int], *, groups: int = 1) -> tuple[Any, ...]:
    """With groups, every second block has them."""
    return tuple(
        tuple(
            Row(RepVggBlock, 1, width, group_size=width // groups if groups > 1 and i % 2 else 0)
            for i in range(depth)
        )
        for depth, width in zip(depths, widths, strict=True)
    )


def mobileone(
    widths: Sequence[int], *, branches: int = 1, excited: Sequence[int] = (0, 0, 0, 0)
) -> tuple[Any, ...]:
    """Pairs of a depthwise and a pointwise block; the last ``excited`` ones of a stage have SE."""
    spatial = partial(MobileOneBlock, branches=branches)
    point = partial(spatial, kernel_size=1)
    stages, in_chs = [], min(64, widths[0])
    for depth, width, count in zip((2, 8, 10, 1), widths, excited, strict=True):
        stage: list[Row] = []
        for i in range(depth):
            attention = "se" if i >= depth - count else None
            stage += [Row(spatial, 1, in_chs, group_size=1, attention=attention)]
            stage += [Row(point, 1, width, attention=attention)]
            in_chs = width
        stages.append(tuple(stage))
    return tuple(stages)


def self_attention(mixer: Callable[..., SelfAttention], **options: Any) -> Block:
    """A block of this self-attention; what has a table of positions is told the map's size."""
    sized = mixer is BottleneckAttention or options.get("reach", 0) is None
    return partial(SelfAttentionBlock, mixer=partial(mixer, **options), sized=sized)


SE4 = partial(SqueezeExcite, rd_ratio=0.25)
TIERED = Stem((24, 32, 64))
TIERED_POOL = Stem((24, 32, 64), pool="max")
REGNETZ = partial(Bottleneck, bottle_in=True, linear_out=True)

B26 = rows(Bottleneck, (2, 2, 2, 2))
B33 = rows(Bottleneck, (2, 3, 3, 2), (256, 512, 1536, 1536))
X26 = rows(Bottleneck, (2, 2, 2, 2), group_size=32)

TS26: dict[str, Any] = dict(stages=X26, stem=TIERED_POOL, act_layer="silu")
TS33: dict[str, Any] = dict(stages=B33, stem=TIERED, num_features=1280, act_layer="silu")
Z: dict[str, Any] = dict(shortcut="", act_layer="silu", attn_layer=SE4)
EVOS: dict[str, Any] = dict(norm_layer=EvoNorm, **Z)
Z_B = rows(REGNETZ, (2, 6, 12, 2), (48, 96, 192, 288), first=2, group_size=16, ratio=3)
Z_C = rows(REGNETZ, (2, 6, 12, 2), (48, 96, 192, 288), first=2, group_size=16, ratio=4)
Z_D8 = rows(REGNETZ, (3, 6, 12, 3), (64, 128, 256, 384), group_size=8, ratio=4)
Z_D32 = rows(REGNETZ, (3, 6, 12, 3), (64, 128, 256, 384), group_size=32, ratio=4)
Z_E8 = rows(REGNETZ, (3, 8, 16, 3), (96, 192, 384, 512), group_size=8, ratio=4)


def clip(depths: Sequence[int], width: int = 64, *, img_size: int = 224) -> dict[str, Any]:
    """CLIP's ResNet, ``width`` channels wide behind the stem, without its head."""
    return dict(
        stages=rows(Bottleneck, depths, [width * 4 * 2**i for i in range(4)]),
        stem=Stem((width // 2, width // 2, width), pool="avg2"),
        shortcut="avg",
        aa_layer="avg",
        img_size=img_size,
    )


CLIP: dict[str, dict[str, Any]] = {
    "resnet50_clip": clip((3, 4, 6, 3)),
    "resnet101_clip": clip((3, 4, 23, 3)),
    "resnet50x4_clip": clip((4, 6, 10, 6), 80, img_size=288),
    "resnet50x16_clip": clip((6, 8, 18, 8), 96, img_size=384),
    "resnet50x64_clip": clip((3, 15, 36, 10), 128, img_size=448),
}


def bot(**options: Any) -> Block:
    """A block of bottleneck attention."""
    return self_attention(BottleneckAttention, **options)


def halo(halo_size: int = 3, **options: Any) -> Block:
    """A block of halo attention."""
    return self_attention(HaloAttention, halo_size=halo_size, **options)


def local(reach: int | None = 9) -> Block:
    """A block of lambda layers."""
    return self_attention(LambdaLayer, reach=reach)


def stages26(mixer: Block, *, group_size: int = 0) -> tuple[Any, ...]:
    """Self-attention in the last two of four stages of two blocks."""
    plain = rows(Bottleneck, (2, 2), (256, 512), group_size=group_size)
    late = mixed(".@", 1024, mixer, group_size=group_size)
    return (*plain, late, Row(mixer, 2, 2048, 2, group_size, 0.25))


def stages33(mixer: Block) -> tuple[Any, ...]:
    """Self-attention at the end of each stage but the first, and all through the last."""
    early, late = mixed("..@", 512, mixer), mixed("..@", 1024, mixer)
    return (Row(Bottleneck, 2, 256, 1, 0, 0.25), early, late, Row(mixer, 2, 1536, 2, 0, 0.333))


def stages50(pattern: str, early: Block, middle: Block, late: Block) -> tuple[Any, ...]:
    """ResNet-50 with self-attention in the last three stages; ``pattern`` of the second."""
    return (
        Row(Bottleneck, 3, 256, 1, 0, 0.25),
        mixed(pattern, 512, early),
        mixed(".@.@.@", 1024, middle),
        mixed(".@.", 2048, late),
    )


HALO_Z = partial(halo(2, block_size=7, qk_ratio=0.33), bottle_in=True, linear_out=True)
S26: dict[str, Any] = dict(stem=TIERED_POOL)
S26S: dict[str, Any] = dict(stem=TIERED_POOL, act_layer="silu")
S26E: dict[str, Any] = dict(stem=TIERED_POOL, act_layer="silu", attn_layer="eca")
S33: dict[str, Any] = dict(stem=TIERED, num_features=1280, act_layer="silu", attn_layer="se")
S50: dict[str, Any] = dict(stem=TIERED, act_layer="silu")

VARIANTS: dict[str, dict[str, Any]] = {
    "gernet_l": dict(
        stages=(
            Row(BasicBlock, 1, 128),
            Row(BasicBlock, 2, 192),
            Row(Bottleneck, 6, 640, ratio=0.25),
            Row(Bottleneck, 5, 640, group_size=1, ratio=3),
            Row(Bottleneck, 4, 640, stride=1, group_size=1, ratio=3),
        ),
        stem=Stem((32,)),
        num_features=2560,
    ),
    "gernet_m": dict(
        stages=(
            Row(BasicBlock, 1, 128),
            Row(BasicBlock, 2, 192),
            Row(Bottleneck, 6, 640, ratio=0.25),
            Row(Bottleneck, 4, 640, group_size=1, ratio=3),
            Row(Bottleneck, 1, 640, stride=1, group_size=1, ratio=3),
        ),
        stem=Stem((32,)),
        num_features=2560,
    ),
    "gernet_s": dict(
        stages=(
            Row(BasicBlock, 1, 48),
            Row(BasicBlock, 3, 48),
            Row(Bottleneck, 7, 384, ratio=0.25),
            Row(Bottleneck, 2, 560, group_size=1, ratio=3),
            Row(Bottleneck, 1, 256, stride=1, group_size=1, ratio=3),
        ),
        stem=Stem((13,)),
        num_features=1920,
    ),
    "repvgg_a0": dict(
        stages=repvgg((2, 4, 14, 1), (48, 96, 192, 1280)), stem=Stem((48,), block=RepVggBlock)
    ),
    "repvgg_a1": dict(
        stages=repvgg((2, 4, 14, 1), (64, 128, 256, 1280)), stem=Stem((64,), block=RepVggBlock)
    ),
    "repvgg_a2": dict(
        stages=repvgg((2, 4, 14, 1), (96, 192, 384, 1408)), stem=Stem((64,), block=RepVggBlock)
    ),
    "repvgg_b0": dict(
        stages=repvgg((4, 6, 16, 1), (64, 128, 256, 1280)), stem=Stem((64,), block=RepVggBlock)
    ),
    "repvgg_b1": dict(
        stages=repvgg((4, 6, 16, 1), (128, 256, 512, 2048)), stem=Stem((64,), block=RepVggBlock)
    ),
    "repvgg_b1g4": dict(
        stages=repvgg((4, 6, 16, 1), (128, 256, 512, 2048), groups=4),
        stem=Stem((64,), block=RepVggBlock),
    ),
    "repvgg_b2": dict(
        stages=repvgg((4, 6, 16, 1), (160, 320, 640, 2560)), stem=Stem((64,), block=RepVggBlock)
    ),
    "repvgg_b2g4": dict(
        stages=repvgg((4, 6, 16, 1), (160, 320, 640, 2560), groups=4),
        stem=Stem((64,), block=RepVggBlock),
    ),
    "repvgg_b3": dict(
        stages=repvgg((4, 6, 16, 1), (192, 384, 768, 2560)), stem=Stem((64,), block=RepVggBlock)
    ),
    "repvgg_b3g4": dict(
        stages=repvgg((4, 6, 16, 1), (192, 384, 768, 2560), groups=4),
        stem=Stem((64,), block=RepVggBlock),
    ),
    "repvgg_d2se": dict(
        stages=repvgg((8, 14, 24, 1), (160, 320, 640, 2560)),
        stem=Stem((64,), block=RepVggBlock),
        attn_layer=partial(SqueezeExcite, rd_ratio=0.0625, rd_divisor=1),
    ),
    "resnet51q": dict(
        stages=(
            *rows(Bottleneck, (2, 4, 6), (256, 512, 1536), group_size=32),
            Row(Bottleneck, 4, 1536, group_size=1),
        ),
        stem=Stem((16, 32, 64, 128), linear=2),
        num_features=2048,
        act_layer="silu",
    ),
    "resnet61q": dict(
        stages=(
            Row(EdgeBlock, 1, 256, stride=1),
            Row(partial(Bottleneck, extra_conv=True), 4, 512, group_size=32, ratio=0.25),
            Row(partial(Bottleneck, extra_conv=True), 6, 1536, group_size=32, ratio=0.25),
            Row(partial(Bottleneck, extra_conv=True), 4, 1536, group_size=1),
        ),
        stem=Stem((16, 32, 64, 128)),
        num_features=2048,
        act_layer="silu",
    ),
    "resnext26ts": TS26,
    "gcresnext26ts": dict(attn_layer=GlobalContext, **TS26),
    "seresnext26ts": dict(attn_layer="se", **TS26),
    "eca_resnext26ts": dict(attn_layer="eca", **TS26),
    "bat_resnext26ts": dict(attn_layer=partial(BilinearAttention, blocks=8), **TS26),
    "resnet32ts": dict(stages=B33, stem=TIERED, act_layer="silu"),
    "resnet33ts": TS33,
    "gcresnet33ts": dict(attn_layer=GlobalContext, **TS33),
    "seresnet33ts": dict(attn_layer="se", **TS33),
    "eca_resnet33ts": dict(attn_layer="eca", **TS33),
    "gcresnet50t": dict(
        stages=rows(Bottleneck, (3, 4, 6, 3)), stem=TIERED, attn_layer=GlobalContext
    ),
    "gcresnext50ts": dict(
        stages=rows(Bottleneck, (3, 4, 6, 3), group_size=32),
        stem=TIERED_POOL,
        act_layer="silu",
        attn_layer=GlobalContext,
    ),
    "regnetz_b16": dict(stages=Z_B, stem=Stem((32,)), num_features=1536, **Z),
    "regnetz_c16": dict(stages=Z_C, stem=Stem((32,)), num_features=1536, **Z),
    "regnetz_d32": dict(stages=Z_D32, stem=TIERED, num_features=1792, **Z),
    "regnetz_d8": dict(stages=Z_D8, stem=TIERED, num_features=1792, **Z),
    "regnetz_e8": dict(stages=Z_E8, stem=TIERED, num_features=2048, **Z),
    "regnetz_b16_evos": dict(stages=Z_B, stem=Stem((32,)), num_features=1536, **EVOS),
    "regnetz_c16_evos": dict(stages=Z_C, stem=Stem((32,)), num_features=1536, **EVOS),
    "regnetz_d8_evos": dict(stages=Z_D8, stem=Stem((64, 64, 64)), num_features=1792, **EVOS),
    "mobileone_s0": dict(
        stages=mobileone((48, 128, 256, 1024), branches=4), stem=Stem((48,), block=MobileOneBlock)
    ),
    "mobileone_s1": dict(
        stages=mobileone((96, 192, 512, 1280)), stem=Stem((64,), block=MobileOneBlock)
    ),
    "mobileone_s2": dict(
        stages=mobileone((96, 256, 640, 2048)), stem=Stem((64,), block=MobileOneBlock)
    ),
    "mobileone_s3": dict(
        stages=mobileone((128, 320, 768, 2048)), stem=Stem((64,), block=MobileOneBlock)
    ),
    "mobileone_s4": dict(
        stages=mobileone((192, 448, 896, 2048), excited=(0, 0, 5, 1)),
        stem=Stem((64,), block=MobileOneBlock),
    ),
    **{name: dict(head="attention", **row) for name, row in CLIP.items()},
    **{f"{name}_gap": row for name, row in CLIP.items()},
    "resnet50_mlp": dict(head="mlp", **clip((3, 4, 6, 3))),
    "test_byobnet": dict(
        stages=(
            Row(EdgeBlock, 1, 32, ratio=0.5),
            Row(DarkBlock, 1, 64, ratio=0.5),
            Row(BasicBlock, 1, 128, group_size=32, ratio=0.25),
            Row(Bottleneck, 1, 256, group_size=64, ratio=0.25),
        ),
        stem=Stem((24,)),
        shortcut="avg",
        attn_layer=SE4,
    ),
    "botnet26t_256": dict(stages=stages26(bot()), img_size=256, **S26),
    "sebotnet33ts_256": dict(stages=stages33(bot()), img_size=256, **S33),
    "botnet50ts_256": dict(stages=stages50("...@", bot(), bot(), bot()), img_size=256, **S26S),
    "eca_botnext26ts_256": dict(
        stages=stages26(bot(dim_head=16), group_size=16), img_size=256, **S26E
    ),
    "halonet_h1": dict(
        stages=rows(halo(), (3, 3, 10, 3), (64, 128, 256, 512), ratio=1.0),
        stem=Stem((64,), kernel_size=7, pool="max"),
    ),
    "halonet26t": dict(stages=stages26(halo(2)), **S26),
    "sehalonet33ts": dict(stages=stages33(halo()), **S33),
    "halonet50ts": dict(stages=stages50("...@", halo(num_heads=4), halo(), halo()), **S26S),
    "eca_halonext26ts": dict(stages=stages26(halo(2, dim_head=16), group_size=16), **S26E),
    "lambda_resnet26t": dict(stages=stages26(local()), **S26),
    "lambda_resnet50ts": dict(stages=stages50("...@", local(), local(), local()), **S26S),
    "lambda_resnet26rpt_256": dict(stages=stages26(local(None)), img_size=256, **S26),
    "haloregnetz_b": dict(
        stages=(
            *Z_B[:2],
            mixed("...@...@...@", 192, HALO_Z, block=REGNETZ, group_size=16, ratio=3),
            Row(HALO_Z, 2, 288, 2, 16, 3),
        ),
        stem=Stem((32,)),
        num_features=1536,
        **Z,
    ),
    "lamhalobotnet50ts_256": dict(
        stages=stages50(".@.@", local(13), halo(), bot()), img_size=256, **S50
    ),
    "halo2botnet50ts_256": dict(
        stages=stages50(".@.@", halo(), halo(), bot()), img_size=256, **S50
    ),
}

FAMILY = Family(model=ByobNet, variants=VARIANTS, weights=weights_table("byobnet"))
