"""EfficientNet, MobileNet and the searched networks that are made of their blocks.

Papers: MobileNet V1 (https://arxiv.org/abs/1704.04861), V2 (https://arxiv.org/abs/1801.04381), V3
(https://arxiv.org/abs/1905.02244), V4 (https://arxiv.org/abs/2404.10518), MnasNet
(https://arxiv.org/abs/1807.11626), FBNet (https://arxiv.org/abs/1812.03443), FBNetV3
(https://arxiv.org/abs/2006.02049), Single-Path NAS (https://arxiv.org/abs/1904.02877), MixNet
(https://arxiv.org/abs/1907.09595), HardCoRe-NAS (https://arxiv.org/abs/2102.11646), TinyNet
(https://arxiv.org/abs/2010.14819), PP-LCNet (https://arxiv.org/abs/2109.15099), EfficientNet
(https://arxiv.org/abs/1905.11946), its CondConv (https://arxiv.org/abs/1904.04971), EdgeTPU, X
(https://arxiv.org/abs/2102.05610), pruned (https://arxiv.org/abs/2002.08258) and V2
(https://arxiv.org/abs/2104.00298) forms.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_choice, nearest
from ..layers import (
    Blocks,
    BlurPool2d,
    ConvHead,
    EvoNormS0,
    GroupNorm,
    Head,
    Kernel,
    Layer,
    LayerNorm2d,
    conv2d,
    get_act,
    get_attention,
    get_layer,
    get_norm,
    he_group_fan_out,
    initialize,
    make_divisible,
    narrow,
    pruned_widths,
    uniform_fan_out,
    zero_bias,
)
from ..layers.mobile_blocks import KINDS, build_block
from ..layers.mobile_spec import Block, MobileSettings, MobileSqueezeExcite, Spec
from ..registry import Family, weights_table

# What a network is -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arch:
    """A network as text, a line a stage, and how it is scaled.

    ``"ir_r2_k3_s2_e6_c24_se0.25"`` is two inverted residuals with 3x3 kernels, the first of stride
    2, expanding 6 times, 24 channels wide, with squeeze-excite; see :class:`Spec`.

    Attributes:
        stages: the text; blocks of one line that differ are separated by blanks.
        width, depth: factors on the channels and on the blocks of each stage (or of all).
        stem, stem_kernel: of the first convolution.
        head: width of the last convolution; 0 for none.
        divisor, round_limit: of scaled channel counts; see :func:`featnet.layers.make_divisible`.
        depth_round: ``math.ceil``, or ``round`` for the nearest count of at least one block.
        fixed_ends: leave the depth of the first and the last stage.
        group_size: channels a group of what would be depthwise (or not grouped), unless said.
        se_of_input: squeeze-excite is as wide as a share of the block's input, not of its middle.
        layer_scale: first scale of the residual branches of MobileNetV4's blocks.
        head_bias, head_norm: of the last convolution where it comes after the pooling.
    """

    stages: str
    width: float = 1.0
    depth: float | tuple[float, ...] = 1.0
    stem: int = 32
    stem_kernel: int = 3
    head: int = 1280
    divisor: int = 8
    round_limit: float = 0.9
    depth_round: Callable[[float], int] = math.ceil
    fixed_ends: bool = False
    group_size: int | None = None
    se_of_input: bool = True
    layer_scale: float | None = None
    head_bias: bool = True
    head_norm: bool = False

    def channels(self, count: int) -> int:
        """A channel count at this width."""
        return make_divisible(count * self.width, self.divisor, round_limit=self.round_limit)


def _kernel(text: str) -> Kernel:
    sizes = tuple(int(k) for k in text.split("."))
    return sizes if len(sizes) > 1 else sizes[0]


OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "r": ("repeats", int),
    "k": ("kernel", _kernel),
    "s": ("stride", int),
    "c": ("channels", int),
    "e": ("expand", float),
    "se": ("se", float),
    "a": ("start", _kernel),
    "p": ("end", _kernel),
    "gs": ("group_size", int),
    "cc": ("experts", int),
    "fc": ("in_channels", int),
    "h": ("heads", int),
    "v": ("kv_stride", int),
    "d": ("d", int),
}
WORDS: dict[str, tuple[str, Any]] = {
    "skip": ("skip", True),
    "noskip": ("skip", False),
    "nre": ("act", "relu"),
    "nr6": ("act", "relu6"),
    "nhs": ("act", "hard_swish"),
    "nsw": ("act", "swish"),
    "nmi": ("act", "mish"),
}


def decode(text: str) -> Spec:
    """``"ir_r2_k3_s2_e6_c24"`` -> the block that it stands for.

    Raises:
        ArgumentError: names what cannot be read, and what can.
    """
    kind, *options = text.split("_")
    if kind not in KINDS:
        raise ArgumentError(f"Block {text!r}: {kind!r} is none of {', '.join(KINDS)}.")
    fields: dict[str, Any] = {}
    for option in options:
        parts = re.fullmatch(r"([a-z]+)(\d[\d.]*)", option)
        if option in WORDS:
            name, value = WORDS[option]
        elif parts and parts[1] in OPTIONS:
            name, parse = OPTIONS[parts[1]]
            value = parse(parts[2])
        else:
            known = [*OPTIONS, *WORDS]
            raise ArgumentError(
                f"Block {text!r}: {option!r} is no option.{nearest(option, known)} There are "
                f"{', '.join(known)}."
            )
        fields[name] = value
    return Spec(kind, **fields)


def plan(arch: Arch) -> list[list[Spec]]:
    """Every block of every stage, scaled; only the first one of a stage strides."""
    lines = arch.stages.split("\n")
    depths = arch.depth if isinstance(arch.depth, tuple) else (arch.depth,) * len(lines)
    stages: list[list[Spec]] = []
    for i, (line, depth) in enumerate(zip(lines, depths, strict=True)):
        specs = [decode(text) for text in line.split()]
        if arch.fixed_ends and i in (0, len(lines) - 1):
            depth = 1.0
        stage: list[Spec] = []
        repeats = scale_depth([spec.repeats for spec in specs], depth, arch.depth_round)
        for spec, count in zip(specs, repeats, strict=True):
            spec = dataclasses.replace(
                spec,
                channels=arch.channels(spec.channels),
                in_channels=arch.channels(spec.in_channels) if spec.in_channels else 0,
                group_size=arch.group_size if spec.group_size is None else spec.group_size,
            )
            for _ in range(count):
                stage.append(dataclasses.replace(spec, stride=1) if stage else spec)
        stages.append(stage)
    return _unfold(stages)


def scale_depth(
    repeats: Sequence[int], factor: float, rounding: Callable[[float], int]
) -> list[int]:
    """Blocks of one stage times a factor, shared out from its last kind of block to its first."""
    total = sum(repeats)
    wanted = max(1, rounding(total * factor))
    scaled: list[int] = []
    for count in reversed(repeats):
        scaled.insert(0, max(1, round(count / total * wanted)))
        total -= count
        wanted -= scaled[0]
    return scaled


def _unfold(stages: list[list[Spec]]) -> list[list[Spec]]:
    """Between a block that moves 2x2 pixels into channels and the next stride, which that one
    replaces, maps have four times the channels."""
    open_, result = False, []
    for stage in stages:
        blocks = []
        for spec in stage:
            if spec.unfolds and not open_:
                spec = dataclasses.replace(spec, channels=spec.channels * 4, se=spec.se / 4)
                open_ = True
            elif open_ and spec.stride > 1:
                spec = dataclasses.replace(spec, stride=1, expand=spec.expand / 4)
                open_ = False
            elif open_:
                spec = dataclasses.replace(spec, channels=spec.channels * 4, d=0)
            blocks.append(spec)
        result.append(blocks)
    return result


SMOOTH: dict[str, Callable[[int, int], nn.Module]] = {
    "avg": lambda channels, stride: nn.AvgPool2d(stride),
    "blur": lambda channels, stride: BlurPool2d(channels, stride=stride),
    "blurpc": lambda channels, stride: BlurPool2d(channels, stride=stride, pad_mode="constant"),
}


# The networks ----------------------------------------------------------------------------------


class HalfBlock(NamedTuple):
    """A block halfway: its hidden map, its input, and itself to go on."""

    hidden: torch.Tensor
    x: torch.Tensor
    block: Block

    def complete(self) -> torch.Tensor:
        return self.block.complete(self.hidden, self.x)


class EfficientNet(Backbone):
    """A strided convolution, stages of blocks, a last 1x1 convolution.

    A level is the last map of each resolution, or with ``feature_location="expansion"`` the hidden
    map of the block that makes it.

    Args:
        arch: see :class:`Arch`.
        pad_type: ``""``, or ``"same"`` as in TensorFlow.
        bn_eps, bn_momentum: of the norms, if not their own defaults.
        aa_layer: anti-aliasing ``f(channels, stride)`` that strides after a convolution; ``"avg"``,
            ``"blur"`` (which reflects at the border), ``"blurpc"`` (zeros there).
        se_layer: channel attention where the architecture has it: ``"se"``, ``"eca"``, ``"gc"``,
            ``f(channels, rd_ratio=, act_layer=)`` with either argument if it has it.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        feature_location: ``"bottleneck"`` or ``"expansion"``.
        widths: the channel counts of a pruned network, by its name in ``pruned.json``.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv_stem", "classifier"
    stem_level = "act1"

    def __init__(
        self,
        arch: Arch,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        pad_type: str = "",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        bn_eps: float | None = None,
        bn_momentum: float | None = None,
        aa_layer: str | Callable[[int, int], nn.Module] | None = None,
        se_layer: str | Layer = MobileSqueezeExcite,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        feature_location: str = "bottleneck",
        widths: str | None = None,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_choice("feature_location", feature_location, LOCATIONS)
        self.feature_location = feature_location
        norm = {k: v for k, v in (("eps", bn_eps), ("momentum", bn_momentum)) if v is not None}
        settings = MobileSettings(
            act=get_act(act_layer),
            norm=partial(get_norm(norm_layer), **norm),
            attention=get_attention(se_layer),
            smooth=get_layer("aa_layer", aa_layer, SMOOTH) if aa_layer else None,
            pad_type=pad_type,
            se_of_input=arch.se_of_input,
            layer_scale=arch.layer_scale,
        )
        self.add_stem(arch, settings)
        out_chs = self._add_blocks(plan(arch), arch.stem, settings, drop_path_rate, widths)
        head = self.add_tail(out_chs, arch, settings)
        self.add_head(
            self.num_features,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=head,
        )
        initialize(self, conv=[he_group_fan_out, zero_bias], linear=[uniform_fan_out, zero_bias])

    def add_stem(self, arch: Arch, settings: MobileSettings) -> None:
        """Add the layers of :meth:`run_stem`; the last of them is ``stem_level``."""
        self.conv_stem = conv2d(
            self.in_chans, arch.stem, arch.stem_kernel, stride=2, pad_type=settings.pad_type
        )
        self.bn1, self.act1 = settings.norm_act(arch.stem)

    def run_stem(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H/2, W/2)."""
        return self.act1(self.bn1(self.conv_stem(x)))

    def _add_blocks(
        self,
        stages: list[list[Spec]],
        in_chs: int,
        settings: MobileSettings,
        drop_path_rate: float,
        widths: str | None,
    ) -> int:
        """The stages, and as levels the last maps of each resolution; returns the last width."""
        self.blocks = nn.Sequential()
        self._ends: list[bool] = []  # which stages end a resolution
        total, count, reduction = sum(map(len, stages)), 0, 2
        if stages[0][0].step > 1:
            self.add_level(self.stem_level, channels=in_chs, reduction=2)
        for i, specs in enumerate(stages):
            blocks = []
            for spec in specs:
                drop_path = drop_path_rate * count / total
                blocks.append(build_block(in_chs, spec, settings=settings, drop_path=drop_path))
                in_chs, reduction, count = spec.channels, reduction * spec.step, count + 1
            self.blocks.append(Blocks(*blocks))
            name, last = f"blocks.{i}", blocks[-1]
            if widths is not None:
                narrow(self.blocks[i], pruned_widths(widths), prefix=name)
            self._ends.append(i + 1 == len(stages) or stages[i + 1][0].step > 1)
            if self._ends[i] and self.feature_location == "expansion":
                module, hook_type = last.hidden_at()
                self.add_level(
                    f"{name}.{len(blocks) - 1}.{module}",
                    channels=last.hidden_channels,
                    reduction=reduction,
                    hook_type=hook_type,
                )
            elif self._ends[i]:
                self.add_level(name, channels=last.out_channels, reduction=reduction)
        return last.out_channels

    def add_tail(self, in_chs: int, arch: Arch, settings: MobileSettings) -> Head:
        """Add what comes between the last block and the pooling; return the head behind it."""
        self.num_features = arch.head or in_chs
        self.conv_head: nn.Module | None = None
        if arch.head:
            self.conv_head = conv2d(in_chs, arch.head, 1)
            self.bn2, self.act2 = settings.norm_act(arch.head)
        return Head()

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor | HalfBlock]:
        x = self.run_stem(x)  # (N, C, H/2, W/2)
        if self.levels[0].module == self.stem_level:
            yield x
        y: torch.Tensor | HalfBlock = x
        for stage, ends in zip(self.blocks, self._ends, strict=True):
            x = y.complete() if isinstance(y, HalfBlock) else y
            if ends and self.feature_location == "expansion":
                assert isinstance(stage, Blocks)
                x, block = stage.through(x, -1), stage[-1]
                assert isinstance(block, Block)
                y = HalfBlock(block.hidden(x), x, block)
            else:
                y = stage(x)
            if ends:
                yield y

    def as_map(self, y: torch.Tensor | tuple[Any, ...]) -> torch.Tensor:
        return y[0] if isinstance(y, tuple) else y  # the hidden map, also of what a layer is given

    def finish(self, y: torch.Tensor | HalfBlock) -> torch.Tensor:
        x = y.complete() if isinstance(y, HalfBlock) else y
        return x if self.conv_head is None else self.act2(self.bn2(self.conv_head(x)))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"
        last = (r"conv_head|bn2|norm_head", (99999,))
        return {"stem": r"^conv_stem|bn1", "blocks": [(blocks, None), last]}


LOCATIONS = ("bottleneck", "expansion")


class MobileNetV3(EfficientNet):
    """The last convolution comes after the pooling, so that it costs next to nothing."""

    def add_tail(self, in_chs: int, arch: Arch, settings: MobileSettings) -> Head:
        self.num_features = in_chs
        return ConvHead(
            arch.head,
            act=settings.act,
            norm=settings.norm if arch.head_norm else None,
            bias=arch.head_bias and not arch.head_norm,
        )

    def finish(self, y: torch.Tensor | HalfBlock) -> torch.Tensor:
        return y.complete() if isinstance(y, HalfBlock) else y


# Architectures: a line a stage; see Arch and Spec
B0 = (
    "ds_r1_k3_s1_e1_c16_se0.25\n"
    "ir_r2_k3_s2_e6_c24_se0.25\n"
    "ir_r2_k5_s2_e6_c40_se0.25\n"
    "ir_r3_k3_s2_e6_c80_se0.25\n"
    "ir_r3_k5_s1_e6_c112_se0.25\n"
    "ir_r4_k5_s2_e6_c192_se0.25\n"
    "ir_r1_k3_s1_e6_c320_se0.25"
)
CONDCONV4 = (
    "ds_r1_k3_s1_e1_c16_se0.25\n"
    "ir_r2_k3_s2_e6_c24_se0.25\n"
    "ir_r2_k5_s2_e6_c40_se0.25\n"
    "ir_r3_k3_s2_e6_c80_se0.25\n"
    "ir_r3_k5_s1_e6_c112_se0.25_cc4\n"
    "ir_r4_k5_s2_e6_c192_se0.25_cc4\n"
    "ir_r1_k3_s1_e6_c320_se0.25_cc4"
)
CONDCONV8 = CONDCONV4.replace("cc4", "cc8")
EDGE = (
    "er_r1_k3_s1_e4_c24_fc24_noskip\n"
    "er_r2_k3_s2_e8_c32\n"
    "er_r4_k3_s2_e8_c48\n"
    "ir_r5_k5_s2_e8_c96\n"
    "ir_r4_k5_s1_e8_c144\n"
    "ir_r2_k5_s2_e8_c192"
)
H = (
    "ds_r1_k3_s1_e1_c16_se0.25_d1\n"
    "er_r2_k3_s2_e4_c24_se0.25_nre\n"
    "er_r2_k5_s2_e4_c40_se0.25_nre\n"
    "ir_r3_k3_s2_e4_c80_se0.25\n"
    "ir_r3_k5_s1_e6_c112_se0.25\n"
    "ir_r4_k5_s2_e6_c192_se0.25\n"
    "ir_r1_k3_s1_e6_c320_se0.25"
)
LITE = (
    "ds_r1_k3_s1_e1_c16\n"
    "ir_r2_k3_s2_e6_c24\n"
    "ir_r2_k5_s2_e6_c40\n"
    "ir_r3_k3_s2_e6_c80\n"
    "ir_r3_k5_s1_e6_c112\n"
    "ir_r4_k5_s2_e6_c192\n"
    "ir_r1_k3_s1_e6_c320"
)
X = (
    "ds_r1_k3_s1_e1_c16_se0.25_d1\n"
    "er_r2_k3_s2_e6_c24_se0.25_nre\n"
    "er_r2_k5_s2_e6_c40_se0.25_nre\n"
    "ir_r3_k3_s2_e6_c80_se0.25\n"
    "ir_r3_k5_s1_e6_c112_se0.25\n"
    "ir_r4_k5_s2_e6_c192_se0.25\n"
    "ir_r1_k3_s1_e6_c320_se0.25"
)
V2_L = (
    "cn_r4_k3_s1_e1_c32_skip\n"
    "er_r7_k3_s2_e4_c64\n"
    "er_r7_k3_s2_e4_c96\n"
    "ir_r10_k3_s2_e4_c192_se0.25\n"
    "ir_r19_k3_s1_e6_c224_se0.25\n"
    "ir_r25_k3_s2_e6_c384_se0.25\n"
    "ir_r7_k3_s1_e6_c640_se0.25"
)
V2_M = (
    "cn_r3_k3_s1_e1_c24_skip\n"
    "er_r5_k3_s2_e4_c48\n"
    "er_r5_k3_s2_e4_c80\n"
    "ir_r7_k3_s2_e4_c160_se0.25\n"
    "ir_r14_k3_s1_e6_c176_se0.25\n"
    "ir_r18_k3_s2_e6_c304_se0.25\n"
    "ir_r5_k3_s1_e6_c512_se0.25"
)
V2_RW = (
    "er_r2_k3_s1_e1_c24\n"
    "er_r4_k3_s2_e4_c48\n"
    "er_r4_k3_s2_e4_c64\n"
    "ir_r6_k3_s2_e4_c128_se0.25\n"
    "ir_r9_k3_s1_e6_c160_se0.25\n"
    "ir_r15_k3_s2_e6_c272_se0.25"
)
V2_S = (
    "cn_r2_k3_s1_e1_c24_skip\n"
    "er_r4_k3_s2_e4_c48\n"
    "er_r4_k3_s2_e4_c64\n"
    "ir_r6_k3_s2_e4_c128_se0.25\n"
    "ir_r9_k3_s1_e6_c160_se0.25\n"
    "ir_r15_k3_s2_e6_c256_se0.25"
)
V2_XL = (
    "cn_r4_k3_s1_e1_c32_skip\n"
    "er_r8_k3_s2_e4_c64\n"
    "er_r8_k3_s2_e4_c96\n"
    "ir_r16_k3_s2_e4_c192_se0.25\n"
    "ir_r24_k3_s1_e6_c256_se0.25\n"
    "ir_r32_k3_s2_e6_c512_se0.25\n"
    "ir_r8_k3_s1_e6_c640_se0.25"
)
FBNET_C = (
    "ir_r1_k3_s1_e1_c16\n"
    "ir_r1_k3_s2_e6_c24 ir_r2_k3_s1_e1_c24\n"
    "ir_r1_k5_s2_e6_c32 ir_r1_k5_s1_e3_c32 ir_r1_k5_s1_e6_c32 ir_r1_k3_s1_e6_c32\n"
    "ir_r1_k5_s2_e6_c64 ir_r1_k5_s1_e3_c64 ir_r2_k5_s1_e6_c64\n"
    "ir_r3_k5_s1_e6_c112 ir_r1_k5_s1_e3_c112\n"
    "ir_r4_k5_s2_e6_c184\n"
    "ir_r1_k3_s1_e6_c352"
)
MIXNET_M = (
    "ds_r1_k3_s1_e1_c24\n"
    "ir_r1_k3.5.7_a1.1_p1.1_s2_e6_c32 ir_r1_k3_a1.1_p1.1_s1_e3_c32\n"
    "ir_r1_k3.5.7.9_s2_e6_c40_se0.5_nsw ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw\n"
    "ir_r1_k3.5.7_s2_e6_c80_se0.25_nsw ir_r3_k3.5.7.9_a1.1_p1.1_s1_e6_c80_se0.25_nsw\n"
    "ir_r1_k3_s1_e6_c120_se0.5_nsw ir_r3_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw\n"
    "ir_r1_k3.5.7.9_s2_e6_c200_se0.5_nsw ir_r3_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw"
)
MIXNET_S = (
    "ds_r1_k3_s1_e1_c16\n"
    "ir_r1_k3_a1.1_p1.1_s2_e6_c24 ir_r1_k3_a1.1_p1.1_s1_e3_c24\n"
    "ir_r1_k3.5.7_s2_e6_c40_se0.5_nsw ir_r3_k3.5_a1.1_p1.1_s1_e6_c40_se0.5_nsw\n"
    "ir_r1_k3.5.7_p1.1_s2_e6_c80_se0.25_nsw ir_r2_k3.5_p1.1_s1_e6_c80_se0.25_nsw\n"
    "ir_r1_k3.5.7_a1.1_p1.1_s1_e6_c120_se0.5_nsw "
    "ir_r2_k3.5.7.9_a1.1_p1.1_s1_e3_c120_se0.5_nsw\n"
    "ir_r1_k3.5.7.9.11_s2_e6_c200_se0.5_nsw ir_r2_k3.5.7.9_p1.1_s1_e6_c200_se0.5_nsw"
)
MNASNET_B1 = (
    "ds_r1_k3_s1_c16_noskip\n"
    "ir_r3_k3_s2_e3_c24\n"
    "ir_r3_k5_s2_e3_c40\n"
    "ir_r3_k5_s2_e6_c80\n"
    "ir_r2_k3_s1_e6_c96\n"
    "ir_r4_k5_s2_e6_c192\n"
    "ir_r1_k3_s1_e6_c320_noskip"
)
MNASNET_SMALL = (
    "ds_r1_k3_s1_c8\n"
    "ir_r1_k3_s2_e3_c16\n"
    "ir_r2_k3_s2_e6_c16\n"
    "ir_r4_k5_s2_e6_c32_se0.25\n"
    "ir_r3_k3_s1_e6_c32_se0.25\n"
    "ir_r3_k5_s2_e6_c88_se0.25\n"
    "ir_r1_k3_s1_e6_c144"
)
EDGETPU_V1 = (
    "cn_r1_k1_s1_c16\n"
    "er_r1_k3_s2_e8_c32 er_r3_k3_s1_e4_c32\n"
    "er_r1_k3_s2_e8_c48 er_r3_k3_s1_e4_c48\n"
    "ir_r1_k3_s2_e8_c96 ir_r3_k3_s1_e4_c96\n"
    "ir_r1_k3_s1_e8_c96_noskip ir_r3_k3_s1_e4_c96\n"
    "ir_r1_k5_s2_e8_c160 ir_r3_k5_s1_e4_c160\n"
    "ir_r1_k3_s1_e8_c192"
)
EDGETPU_V2_L = (
    "cn_r1_k1_s1_c32\n"
    "er_r1_k3_s2_e8_c64 er_r1_k3_s1_e4_gs128_c64\n"
    "er_r1_k3_s2_e8_c96 er_r1_k3_s1_e4_gs128_c96 er_r1_k3_s1_e4_c96 er_r1_k3_s1_e4_gs128_c96\n"
    "er_r1_k3_s2_e8_c192 ir_r3_k3_s1_e4_c192\n"
    "ir_r1_k3_s1_e8_c240 ir_r3_k3_s1_e4_c240\n"
    "ir_r1_k3_s2_e8_c256 ir_r3_k3_s1_e4_c256\n"
    "ir_r1_k3_s1_e8_c384"
)
EDGETPU_V2_M = (
    "cn_r1_k1_s1_c32\n"
    "er_r1_k3_s2_e8_c64 er_r1_k3_s1_e4_gs64_c64\n"
    "er_r1_k3_s2_e8_c80 er_r1_k3_s1_e4_gs64_c80 er_r1_k3_s1_e4_c80 er_r1_k3_s1_e4_gs64_c80\n"
    "er_r1_k3_s2_e8_c160 ir_r3_k3_s1_e4_c160\n"
    "ir_r1_k3_s1_e8_c192 ir_r3_k3_s1_e4_c192\n"
    "ir_r1_k3_s2_e8_c240 ir_r3_k3_s1_e4_c240\n"
    "ir_r1_k3_s1_e8_c320"
)
EDGETPU_V2_S = (
    "cn_r1_k1_s1_c24\n"
    "er_r1_k3_s2_e8_c48 er_r1_k3_s1_e4_gs64_c48\n"
    "er_r1_k3_s2_e8_c64 er_r1_k3_s1_e4_gs64_c64 er_r1_k3_s1_e4_c64 er_r1_k3_s1_e4_gs64_c64\n"
    "er_r1_k3_s2_e8_c128 ir_r3_k3_s1_e4_c128\n"
    "ir_r1_k3_s1_e8_c160 ir_r3_k3_s1_e4_c160\n"
    "ir_r1_k3_s2_e8_c192 ir_r3_k3_s1_e4_c192\n"
    "ir_r1_k3_s1_e8_c256"
)
EDGETPU_V2_XS = (
    "cn_r1_k1_s1_c16\n"
    "er_r1_k3_s2_e8_c32 er_r1_k3_s1_e4_gs64_c32\n"
    "er_r1_k3_s2_e8_c48 er_r1_k3_s1_e4_gs64_c48 er_r1_k3_s1_e4_c48 er_r1_k3_s1_e4_gs64_c48\n"
    "er_r1_k3_s2_e8_c96 ir_r3_k3_s1_e4_c96\n"
    "ir_r1_k3_s1_e8_c144 ir_r3_k3_s1_e4_c144\n"
    "ir_r1_k3_s2_e8_c160 ir_r3_k3_s1_e4_c160\n"
    "ir_r1_k3_s1_e8_c192"
)
MOBILENET_V1 = (
    "dsa_r1_k3_s1_c64\ndsa_r2_k3_s2_c128\ndsa_r2_k3_s2_c256\ndsa_r6_k3_s2_c512\ndsa_r2_k3_s2_c1024"
)
MOBILENET_V2 = (
    "ds_r1_k3_s1_c16\n"
    "ir_r2_k3_s2_e6_c24\n"
    "ir_r3_k3_s2_e6_c32\n"
    "ir_r4_k3_s2_e6_c64\n"
    "ir_r3_k3_s1_e6_c96\n"
    "ir_r3_k3_s2_e6_c160\n"
    "ir_r1_k3_s1_e6_c320"
)
MNASNET_A1 = (
    "ds_r1_k3_s1_e1_c16_noskip\n"
    "ir_r2_k3_s2_e6_c24\n"
    "ir_r3_k5_s2_e3_c40_se0.25\n"
    "ir_r4_k3_s2_e6_c80\n"
    "ir_r2_k3_s1_e6_c112_se0.25\n"
    "ir_r3_k5_s2_e6_c160_se0.25\n"
    "ir_r1_k3_s1_e6_c320"
)
SPNASNET = (
    "ds_r1_k3_s1_c16_noskip\n"
    "ir_r3_k3_s2_e3_c24\n"
    "ir_r1_k5_s2_e6_c40 ir_r3_k3_s1_e3_c40\n"
    "ir_r1_k5_s2_e6_c80 ir_r3_k3_s1_e3_c80\n"
    "ir_r1_k5_s1_e6_c96 ir_r3_k5_s1_e3_c96\n"
    "ir_r4_k5_s2_e6_c192\n"
    "ir_r1_k3_s1_e6_c320_noskip"
)
TEST = (
    "cn_r1_k3_s1_e1_c16_skip\n"
    "er_r1_k3_s2_e4_c24\n"
    "er_r1_k3_s2_e4_c32\n"
    "ir_r1_k3_s2_e4_c48_se0.25\n"
    "ir_r1_k3_s2_e4_c64_se0.25"
)
V2_BASE = (
    "cn_r1_k3_s1_e1_c16_skip\n"
    "er_r2_k3_s2_e4_c32\n"
    "er_r2_k3_s2_e4_c48\n"
    "ir_r3_k3_s2_e4_c96_se0.25\n"
    "ir_r5_k3_s1_e6_c112_se0.25\n"
    "ir_r8_k3_s2_e6_c192_se0.25"
)
FBNET_V3_B = (
    "ds_r2_k3_s1_e1_c16\n"
    "ir_r1_k5_s2_e4_c24 ir_r3_k5_s1_e2_c24\n"
    "ir_r1_k5_s2_e5_c40_se0.25 ir_r4_k5_s1_e3_c40_se0.25\n"
    "ir_r1_k5_s2_e5_c72 ir_r4_k3_s1_e3_c72\n"
    "ir_r1_k3_s1_e5_c120_se0.25 ir_r5_k5_s1_e3_c120_se0.25\n"
    "ir_r1_k3_s2_e6_c184_se0.25 ir_r5_k5_s1_e4_c184_se0.25 ir_r1_k5_s1_e6_c224_se0.25\n"
    "cn_r1_k1_s1_c1344"
)
FBNET_V3_D = (
    "ds_r2_k3_s1_e1_c16\n"
    "ir_r1_k3_s2_e5_c24 ir_r5_k3_s1_e2_c24\n"
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r4_k3_s1_e3_c40_se0.25\n"
    "ir_r1_k3_s2_e5_c72 ir_r4_k3_s1_e3_c72\n"
    "ir_r1_k3_s1_e5_c128_se0.25 ir_r6_k5_s1_e3_c128_se0.25\n"
    "ir_r1_k3_s2_e6_c208_se0.25 ir_r5_k5_s1_e5_c208_se0.25 ir_r1_k5_s1_e6_c240_se0.25\n"
    "cn_r1_k1_s1_c1440"
)
FBNET_V3_G = (
    "ds_r3_k3_s1_e1_c24\n"
    "ir_r1_k5_s2_e4_c40 ir_r4_k5_s1_e2_c40\n"
    "ir_r1_k5_s2_e4_c56_se0.25 ir_r4_k5_s1_e3_c56_se0.25\n"
    "ir_r1_k5_s2_e5_c104 ir_r4_k3_s1_e3_c104\n"
    "ir_r1_k3_s1_e5_c160_se0.25 ir_r8_k5_s1_e3_c160_se0.25\n"
    "ir_r1_k3_s2_e6_c264_se0.25 ir_r6_k5_s1_e5_c264_se0.25 ir_r2_k5_s1_e6_c288_se0.25\n"
    "cn_r1_k1_s1_c1728"
)
LCNET = (
    "dsa_r1_k3_s1_c32\n"
    "dsa_r2_k3_s2_c64\n"
    "dsa_r2_k3_s2_c128\n"
    "dsa_r1_k3_s2_c256 dsa_r1_k5_s1_c256\n"
    "dsa_r4_k5_s1_c256\n"
    "dsa_r2_k5_s2_c512_se0.25"
)
V3_LARGE = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre\n"
    "ir_r3_k5_s2_e3_c40_se0.25_nre\n"
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80\n"
    "ir_r2_k3_s1_e6_c112_se0.25\n"
    "ir_r3_k5_s2_e6_c160_se0.25\n"
    "cn_r1_k1_s1_c960"
)
V3_RW = (
    "ds_r1_k3_s1_e1_c16_nre_noskip\n"
    "ir_r1_k3_s2_e4_c24_nre ir_r1_k3_s1_e3_c24_nre\n"
    "ir_r3_k5_s2_e3_c40_se0.25_nre\n"
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80\n"
    "ir_r2_k3_s1_e6_c112_se0.25\n"
    "ir_r3_k5_s2_e6_c160_se0.25\n"
    "cn_r1_k1_s1_c960"
)
V3_SMALL = (
    "ds_r1_k3_s2_e1_c16_se0.25_nre\n"
    "ir_r1_k3_s2_e4.5_c24_nre ir_r1_k3_s1_e3.67_c24_nre\n"
    "ir_r1_k5_s2_e4_c40_se0.25 ir_r2_k5_s1_e6_c40_se0.25\n"
    "ir_r2_k5_s1_e3_c48_se0.25\n"
    "ir_r3_k5_s2_e6_c96_se0.25\n"
    "cn_r1_k1_s1_c576"
)
V4_CONV_LARGE = (
    "er_r1_k3_s2_e4_c48\n"
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96\n"
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 "
    "uir_r5_a5_k3_s1_e4_c192 uir_r1_a3_k0_s1_e4_c192\n"
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 "
    "uir_r2_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 "
    "uir_r3_a5_k0_s1_e4_c512\n"
    "cn_r1_k1_s1_c960"
)
V4_CONV_MEDIUM = (
    "er_r1_k3_s2_e4_c48\n"
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80\n"
    "uir_r1_a3_k5_s2_e6_c160 uir_r2_a3_k3_s1_e4_c160 uir_r1_a3_k5_s1_e4_c160 "
    "uir_r1_a3_k3_s1_e4_c160 uir_r1_a3_k0_s1_e4_c160 uir_r1_a0_k0_s1_e2_c160 "
    "uir_r1_a3_k0_s1_e4_c160\n"
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 "
    "uir_r1_a0_k0_s1_e4_c256 uir_r1_a3_k0_s1_e4_c256 uir_r1_a3_k5_s1_e2_c256 "
    "uir_r1_a5_k5_s1_e4_c256 uir_r2_a0_k0_s1_e4_c256 uir_r1_a5_k0_s1_e2_c256\n"
    "cn_r1_k1_s1_c960"
)
V4_CONV_SMALL = (
    "cn_r1_k3_s2_e1_c32 cn_r1_k1_s1_e1_c32\n"
    "cn_r1_k3_s2_e1_c96 cn_r1_k1_s1_e1_c64\n"
    "uir_r1_a5_k5_s2_e3_c96 uir_r4_a0_k3_s1_e2_c96 uir_r1_a3_k0_s1_e4_c96\n"
    "uir_r1_a3_k3_s2_e6_c128 uir_r1_a5_k5_s1_e4_c128 uir_r1_a0_k5_s1_e4_c128 "
    "uir_r1_a0_k5_s1_e3_c128 uir_r2_a0_k3_s1_e4_c128\n"
    "cn_r1_k1_s1_c960"
)
V4_HYBRID_LARGE = (
    "er_r1_k3_s2_e4_c48\n"
    "uir_r1_a3_k5_s2_e4_c96 uir_r1_a3_k3_s1_e4_c96\n"
    "uir_r1_a3_k5_s2_e4_c192 uir_r3_a3_k3_s1_e4_c192 uir_r1_a3_k5_s1_e4_c192 "
    "uir_r2_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 "
    "mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 "
    "uir_r1_a5_k3_s1_e4_c192 mqa_r1_k3_h8_s1_v2_d48_c192 uir_r1_a3_k0_s1_e4_c192\n"
    "uir_r4_a5_k5_s2_e4_c512 uir_r1_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 "
    "uir_r2_a5_k0_s1_e4_c512 uir_r1_a5_k3_s1_e4_c512 uir_r1_a5_k5_s1_e4_c512 "
    "mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 mqa_r1_k3_h8_s1_d64_c512 "
    "uir_r1_a5_k0_s1_e4_c512 mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512 "
    "mqa_r1_k3_h8_s1_d64_c512 uir_r1_a5_k0_s1_e4_c512\n"
    "cn_r1_k1_s1_c960"
)
V4_HYBRID_MEDIUM = (
    "er_r1_k3_s2_e4_c48\n"
    "uir_r1_a3_k5_s2_e4_c80 uir_r1_a3_k3_s1_e2_c80\n"
    "uir_r1_a3_k5_s2_e6_c160 uir_r1_a0_k0_s1_e2_c160 uir_r1_a3_k3_s1_e4_c160 "
    "uir_r1_a3_k5_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k3_s1_e4_c160 "
    "mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 "
    "uir_r1_a3_k3_s1_e4_c160 mqa_r1_k3_h4_s1_v2_d64_c160 uir_r1_a3_k0_s1_e4_c160\n"
    "uir_r1_a5_k5_s2_e6_c256 uir_r1_a5_k5_s1_e4_c256 uir_r2_a3_k5_s1_e4_c256 "
    "uir_r1_a0_k0_s1_e2_c256 uir_r1_a3_k5_s1_e2_c256 uir_r1_a0_k0_s1_e2_c256 "
    "uir_r1_a0_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 uir_r1_a3_k0_s1_e4_c256 "
    "mqa_r1_k3_h4_s1_d64_c256 uir_r1_a5_k5_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 "
    "uir_r1_a5_k0_s1_e4_c256 mqa_r1_k3_h4_s1_d64_c256 uir_r1_a5_k0_s1_e4_c256\n"
    "cn_r1_k1_s1_c960"
)
V3_LARGE_MINIMAL = (
    "ds_r1_k3_s1_e1_c16\n"
    "ir_r1_k3_s2_e4_c24 ir_r1_k3_s1_e3_c24\n"
    "ir_r3_k3_s2_e3_c40\n"
    "ir_r1_k3_s2_e6_c80 ir_r1_k3_s1_e2.5_c80 ir_r2_k3_s1_e2.3_c80\n"
    "ir_r2_k3_s1_e6_c112\n"
    "ir_r3_k3_s2_e6_c160\n"
    "cn_r1_k1_s1_c960"
)
V3_SMALL_MINIMAL = (
    "ds_r1_k3_s2_e1_c16\n"
    "ir_r1_k3_s2_e4.5_c24 ir_r1_k3_s1_e3.67_c24\n"
    "ir_r1_k3_s2_e4_c40 ir_r2_k3_s1_e6_c40\n"
    "ir_r2_k3_s1_e3_c48\n"
    "ir_r3_k3_s2_e6_c96\n"
    "cn_r1_k1_s1_c576"
)
HARDCORENAS_A = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k5_s2_e3_c24_nre ir_r1_k5_s1_e3_c24_nre_se0.25\n"
    "ir_r1_k5_s2_e3_c40_nre ir_r1_k5_s1_e6_c40_nre_se0.25\n"
    "ir_r1_k5_s2_e6_c80_se0.25 ir_r1_k5_s1_e6_c80_se0.25\n"
    "ir_r1_k5_s1_e6_c112_se0.25 ir_r1_k5_s1_e6_c112_se0.25\n"
    "ir_r1_k5_s2_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25\n"
    "cn_r1_k1_s1_c960"
)
HARDCORENAS_B = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k5_s2_e3_c24_nre ir_r1_k5_s1_e3_c24_nre_se0.25 ir_r1_k3_s1_e3_c24_nre\n"
    "ir_r1_k5_s2_e3_c40_nre ir_r1_k5_s1_e3_c40_nre ir_r1_k5_s1_e3_c40_nre\n"
    "ir_r1_k5_s2_e3_c80 ir_r1_k5_s1_e3_c80 ir_r1_k3_s1_e3_c80 ir_r1_k3_s1_e3_c80\n"
    "ir_r1_k5_s1_e3_c112 ir_r1_k3_s1_e3_c112 ir_r1_k3_s1_e3_c112 ir_r1_k3_s1_e3_c112\n"
    "ir_r1_k5_s2_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 ir_r1_k3_s1_e3_c192_se0.25\n"
    "cn_r1_k1_s1_c960"
)
HARDCORENAS_C = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k5_s2_e3_c24_nre ir_r1_k5_s1_e3_c24_nre_se0.25\n"
    "ir_r1_k5_s2_e3_c40_nre ir_r1_k5_s1_e3_c40_nre ir_r1_k5_s1_e3_c40_nre "
    "ir_r1_k5_s1_e3_c40_nre\n"
    "ir_r1_k5_s2_e4_c80 ir_r1_k5_s1_e6_c80_se0.25 ir_r1_k3_s1_e3_c80 ir_r1_k3_s1_e3_c80\n"
    "ir_r1_k5_s1_e6_c112_se0.25 ir_r1_k3_s1_e3_c112 ir_r1_k3_s1_e3_c112 ir_r1_k3_s1_e3_c112\n"
    "ir_r1_k5_s2_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 ir_r1_k3_s1_e3_c192_se0.25\n"
    "cn_r1_k1_s1_c960"
)
HARDCORENAS_D = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k5_s2_e3_c24_nre_se0.25 ir_r1_k5_s1_e3_c24_nre_se0.25\n"
    "ir_r1_k5_s2_e3_c40_nre_se0.25 ir_r1_k5_s1_e4_c40_nre_se0.25 "
    "ir_r1_k3_s1_e3_c40_nre_se0.25\n"
    "ir_r1_k5_s2_e4_c80_se0.25 ir_r1_k3_s1_e3_c80_se0.25 ir_r1_k3_s1_e3_c80_se0.25 "
    "ir_r1_k3_s1_e3_c80_se0.25\n"
    "ir_r1_k3_s1_e4_c112_se0.25 ir_r1_k5_s1_e4_c112_se0.25 ir_r1_k3_s1_e3_c112_se0.25 "
    "ir_r1_k5_s1_e3_c112_se0.25\n"
    "ir_r1_k5_s2_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 "
    "ir_r1_k3_s1_e6_c192_se0.25\n"
    "cn_r1_k1_s1_c960"
)
HARDCORENAS_E = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k5_s2_e3_c24_nre_se0.25 ir_r1_k5_s1_e3_c24_nre_se0.25\n"
    "ir_r1_k5_s2_e6_c40_nre_se0.25 ir_r1_k5_s1_e4_c40_nre_se0.25 "
    "ir_r1_k5_s1_e4_c40_nre_se0.25 ir_r1_k3_s1_e3_c40_nre_se0.25\n"
    "ir_r1_k5_s2_e4_c80_se0.25 ir_r1_k3_s1_e6_c80_se0.25\n"
    "ir_r1_k5_s1_e6_c112_se0.25 ir_r1_k5_s1_e6_c112_se0.25 ir_r1_k5_s1_e6_c112_se0.25 "
    "ir_r1_k5_s1_e3_c112_se0.25\n"
    "ir_r1_k5_s2_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 "
    "ir_r1_k3_s1_e6_c192_se0.25\n"
    "cn_r1_k1_s1_c960"
)
HARDCORENAS_F = (
    "ds_r1_k3_s1_e1_c16_nre\n"
    "ir_r1_k5_s2_e3_c24_nre_se0.25 ir_r1_k5_s1_e3_c24_nre_se0.25\n"
    "ir_r1_k5_s2_e6_c40_nre_se0.25 ir_r1_k5_s1_e6_c40_nre_se0.25\n"
    "ir_r1_k5_s2_e6_c80_se0.25 ir_r1_k5_s1_e6_c80_se0.25 ir_r1_k3_s1_e3_c80_se0.25 "
    "ir_r1_k3_s1_e3_c80_se0.25\n"
    "ir_r1_k3_s1_e6_c112_se0.25 ir_r1_k5_s1_e6_c112_se0.25 ir_r1_k5_s1_e6_c112_se0.25 "
    "ir_r1_k3_s1_e3_c112_se0.25\n"
    "ir_r1_k5_s2_e6_c192_se0.25 ir_r1_k5_s1_e6_c192_se0.25 ir_r1_k3_s1_e6_c192_se0.25 "
    "ir_r1_k3_s1_e6_c192_se0.25\n"
    "cn_r1_k1_s1_c960"
)

TF: dict[str, Any] = {"pad_type": "same", "bn_eps": 1e-3}  # how TensorFlow trained them
HARD_SE = partial(MobileSqueezeExcite, gate_layer=nn.Hardsigmoid)
LCNET_SE = partial(HARD_SE, act_layer=nn.ReLU)
V3_SE = partial(LCNET_SE, rounding=make_divisible)
FBNET_SE = partial(HARD_SE, rounding=partial(make_divisible, round_limit=0.95))

EFFICIENTNETS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": dict(arch=Arch(B0), act_layer="silu"),
    "efficientnet_b0_g8_gn": dict(
        arch=Arch(B0, group_size=8), act_layer="silu", norm_layer=partial(GroupNorm, group_size=8)
    ),
    "efficientnet_b0_g16_evos": dict(arch=Arch(B0, divisor=16, group_size=16), act_layer="silu"),
    "efficientnet_b0_gn": dict(
        arch=Arch(B0), act_layer="silu", norm_layer=partial(GroupNorm, group_size=8)
    ),
    "efficientnet_b1": dict(arch=Arch(B0, 1.0, 1.1), act_layer="silu"),
    "efficientnet_b1_pruned": dict(
        arch=Arch(B0, 1.0, 1.1), act_layer="silu", widths="efficientnet_b1_pruned", **TF
    ),
    "efficientnet_b2": dict(arch=Arch(B0, 1.1, 1.2, head=1408), act_layer="silu"),
    "efficientnet_b2_pruned": dict(
        arch=Arch(B0, 1.1, 1.2, head=1408), act_layer="silu", widths="efficientnet_b2_pruned", **TF
    ),
    "efficientnet_b3": dict(arch=Arch(B0, 1.2, 1.4, stem=40, head=1536), act_layer="silu"),
    "efficientnet_b3_g8_gn": dict(
        arch=Arch(B0, 1.2, 1.4, stem=48, head=1536, divisor=16, group_size=8),
        act_layer="silu",
        norm_layer=partial(GroupNorm, group_size=16),
    ),
    "efficientnet_b3_gn": dict(
        arch=Arch(B0, 1.2, 1.4, stem=48, head=1536, divisor=16),
        act_layer="silu",
        norm_layer=partial(GroupNorm, group_size=16),
    ),
    "efficientnet_b3_pruned": dict(
        arch=Arch(B0, 1.2, 1.4, stem=40, head=1536),
        act_layer="silu",
        widths="efficientnet_b3_pruned",
        **TF,
    ),
    "efficientnet_b4": dict(arch=Arch(B0, 1.4, 1.8, stem=48, head=1792), act_layer="silu"),
    "efficientnet_b5": dict(arch=Arch(B0, 1.6, 2.2, stem=48, head=2048), act_layer="silu"),
    "efficientnet_b6": dict(arch=Arch(B0, 1.8, 2.6, stem=56, head=2304), act_layer="silu"),
    "efficientnet_b7": dict(arch=Arch(B0, 2.0, 3.1, stem=64, head=2560), act_layer="silu"),
    "efficientnet_b8": dict(arch=Arch(B0, 2.2, 3.6, stem=72, head=2816), act_layer="silu"),
    "efficientnet_blur_b0": dict(arch=Arch(B0), act_layer="silu", aa_layer="blurpc"),
    "efficientnet_cc_b0_4e": dict(arch=Arch(CONDCONV4), act_layer="silu"),
    "efficientnet_cc_b0_8e": dict(arch=Arch(CONDCONV8), act_layer="silu"),
    "efficientnet_cc_b1_8e": dict(arch=Arch(CONDCONV8, 1.0, 1.1), act_layer="silu"),
    "efficientnet_el": dict(arch=Arch(EDGE, 1.2, 1.4, stem=40, head=1536)),
    "efficientnet_el_pruned": dict(arch=Arch(EDGE, 1.2, 1.4, stem=40, head=1536)),
    "efficientnet_em": dict(arch=Arch(EDGE, 1.0, 1.1)),
    "efficientnet_es": dict(arch=Arch(EDGE)),
    "efficientnet_es_pruned": dict(arch=Arch(EDGE)),
    "efficientnet_h_b5": dict(arch=Arch(H, 1.92, 2.2, stem=64, head=2456), act_layer="silu"),
    "efficientnet_l2": dict(arch=Arch(B0, 4.3, 5.3, stem=136, head=5504), act_layer="silu"),
    "efficientnet_lite0": dict(arch=Arch(LITE), act_layer="relu6"),
    "efficientnet_lite1": dict(arch=Arch(LITE, 1.0, 1.1, fixed_ends=True), act_layer="relu6"),
    "efficientnet_lite2": dict(arch=Arch(LITE, 1.1, 1.2, fixed_ends=True), act_layer="relu6"),
    "efficientnet_lite3": dict(arch=Arch(LITE, 1.2, 1.4, fixed_ends=True), act_layer="relu6"),
    "efficientnet_lite4": dict(arch=Arch(LITE, 1.4, 1.8, fixed_ends=True), act_layer="relu6"),
    "efficientnet_x_b3": dict(arch=Arch(X, 1.2, 1.4, stem=40, head=1536), act_layer="silu"),
    "efficientnet_x_b5": dict(arch=Arch(X, 1.6, 2.2, stem=48, head=2048), act_layer="silu"),
    "efficientnetv2_l": dict(arch=Arch(V2_L), act_layer="silu"),
    "efficientnetv2_m": dict(arch=Arch(V2_M, stem=24), act_layer="silu"),
    "efficientnetv2_rw_m": dict(
        arch=Arch(V2_RW, 1.2, (1.2, 1.2, 1.2, 1.2, 1.6, 1.6), head=2152), act_layer="silu"
    ),
    "efficientnetv2_rw_s": dict(arch=Arch(V2_RW, stem=24, head=1792), act_layer="silu"),
    "efficientnetv2_rw_t": dict(arch=Arch(V2_S, 0.8, 0.9, stem=24, head=1024), act_layer="silu"),
    "efficientnetv2_s": dict(arch=Arch(V2_S, stem=24), act_layer="silu"),
    "efficientnetv2_xl": dict(arch=Arch(V2_XL), act_layer="silu"),
    "fbnetc_100": dict(arch=Arch(FBNET_C, stem=16, head=1984), bn_eps=1e-3),  # its checkpoint's
    "gc_efficientnetv2_rw_t": dict(
        arch=Arch(V2_S, 0.8, 0.9, stem=24, head=1024), act_layer="silu", se_layer="gc"
    ),
    "mixnet_l": dict(arch=Arch(MIXNET_M, 1.3, head=1536)),
    "mixnet_m": dict(arch=Arch(MIXNET_M, stem=24, head=1536)),
    "mixnet_s": dict(arch=Arch(MIXNET_S, stem=16, head=1536)),
    "mixnet_xl": dict(arch=Arch(MIXNET_M, 1.6, 1.2, stem=40, head=1536, depth_round=round)),
    "mixnet_xxl": dict(arch=Arch(MIXNET_M, 2.4, 1.3, stem=56, head=1536, depth_round=round)),
    "mnasnet_050": dict(arch=Arch(MNASNET_B1, 0.5, stem=16)),
    "mnasnet_075": dict(arch=Arch(MNASNET_B1, 0.75, stem=24)),
    "mnasnet_100": dict(arch=Arch(MNASNET_B1)),
    "mnasnet_140": dict(arch=Arch(MNASNET_B1, 1.4, stem=48)),
    "mnasnet_small": dict(arch=Arch(MNASNET_SMALL, stem=8)),
    "mobilenet_edgetpu_100": dict(arch=Arch(EDGETPU_V1)),
    "mobilenet_edgetpu_v2_l": dict(arch=Arch(EDGETPU_V2_L, stem=64, stem_kernel=7, head=1408)),
    "mobilenet_edgetpu_v2_m": dict(arch=Arch(EDGETPU_V2_M, stem=64, stem_kernel=5, head=1344)),
    "mobilenet_edgetpu_v2_s": dict(arch=Arch(EDGETPU_V2_S, stem=64, stem_kernel=5)),
    "mobilenet_edgetpu_v2_xs": dict(arch=Arch(EDGETPU_V2_XS)),
    "mobilenetv1_100": dict(arch=Arch(MOBILENET_V1, head=0), act_layer="relu6"),
    "mobilenetv1_100h": dict(arch=Arch(MOBILENET_V1, head=1024), act_layer="relu6"),
    "mobilenetv1_125": dict(arch=Arch(MOBILENET_V1, 1.25, stem=40, head=0), act_layer="relu6"),
    "mobilenetv2_035": dict(arch=Arch(MOBILENET_V2, 0.35, stem=16), act_layer="relu6"),
    "mobilenetv2_050": dict(arch=Arch(MOBILENET_V2, 0.5, stem=16), act_layer="relu6"),
    "mobilenetv2_075": dict(arch=Arch(MOBILENET_V2, 0.75, stem=24), act_layer="relu6"),
    "mobilenetv2_100": dict(arch=Arch(MOBILENET_V2), act_layer="relu6"),
    "mobilenetv2_110d": dict(arch=Arch(MOBILENET_V2, 1.1, 1.2, fixed_ends=True), act_layer="relu6"),
    "mobilenetv2_120d": dict(arch=Arch(MOBILENET_V2, 1.2, 1.4, fixed_ends=True), act_layer="relu6"),
    "mobilenetv2_140": dict(arch=Arch(MOBILENET_V2, 1.4, stem=48, head=1792), act_layer="relu6"),
    "semnasnet_050": dict(arch=Arch(MNASNET_A1, 0.5, stem=16)),
    "semnasnet_075": dict(arch=Arch(MNASNET_A1, 0.75, stem=24)),
    "semnasnet_100": dict(arch=Arch(MNASNET_A1)),
    "semnasnet_140": dict(arch=Arch(MNASNET_A1, 1.4, stem=48)),
    "spnasnet_100": dict(arch=Arch(SPNASNET)),
    "test_efficientnet": dict(
        arch=Arch(TEST, stem=24, head=256, round_limit=0.0), act_layer="silu"
    ),
    "test_efficientnet_evos": dict(
        arch=Arch(TEST, stem=24, head=256, round_limit=0.0),
        act_layer="silu",
        norm_layer=partial(EvoNormS0, group_size=8, eps=1e-5),
    ),
    "test_efficientnet_gn": dict(
        arch=Arch(TEST, stem=24, head=256, round_limit=0.0),
        act_layer="silu",
        norm_layer=partial(GroupNorm, group_size=8),
    ),
    "test_efficientnet_ln": dict(
        arch=Arch(TEST, stem=24, head=256, round_limit=0.0),
        act_layer="silu",
        norm_layer=partial(LayerNorm2d, eps=1e-5),
    ),
    "tf_efficientnet_b0": dict(arch=Arch(B0), act_layer="silu", **TF),
    "tf_efficientnet_b1": dict(arch=Arch(B0, 1.0, 1.1), act_layer="silu", **TF),
    "tf_efficientnet_b2": dict(arch=Arch(B0, 1.1, 1.2, head=1408), act_layer="silu", **TF),
    "tf_efficientnet_b3": dict(arch=Arch(B0, 1.2, 1.4, stem=40, head=1536), act_layer="silu", **TF),
    "tf_efficientnet_b4": dict(arch=Arch(B0, 1.4, 1.8, stem=48, head=1792), act_layer="silu", **TF),
    "tf_efficientnet_b5": dict(arch=Arch(B0, 1.6, 2.2, stem=48, head=2048), act_layer="silu", **TF),
    "tf_efficientnet_b6": dict(arch=Arch(B0, 1.8, 2.6, stem=56, head=2304), act_layer="silu", **TF),
    "tf_efficientnet_b7": dict(arch=Arch(B0, 2.0, 3.1, stem=64, head=2560), act_layer="silu", **TF),
    "tf_efficientnet_b8": dict(arch=Arch(B0, 2.2, 3.6, stem=72, head=2816), act_layer="silu", **TF),
    "tf_efficientnet_cc_b0_4e": dict(arch=Arch(CONDCONV4), act_layer="silu", **TF),
    "tf_efficientnet_cc_b0_8e": dict(arch=Arch(CONDCONV8), act_layer="silu", **TF),
    "tf_efficientnet_cc_b1_8e": dict(arch=Arch(CONDCONV8, 1.0, 1.1), act_layer="silu", **TF),
    "tf_efficientnet_el": dict(arch=Arch(EDGE, 1.2, 1.4, stem=40, head=1536), **TF),
    "tf_efficientnet_em": dict(arch=Arch(EDGE, 1.0, 1.1), **TF),
    "tf_efficientnet_es": dict(arch=Arch(EDGE), **TF),
    "tf_efficientnet_l2": dict(
        arch=Arch(B0, 4.3, 5.3, stem=136, head=5504), act_layer="silu", **TF
    ),
    "tf_efficientnet_lite0": dict(arch=Arch(LITE), act_layer="relu6", **TF),
    "tf_efficientnet_lite1": dict(
        arch=Arch(LITE, 1.0, 1.1, fixed_ends=True), act_layer="relu6", **TF
    ),
    "tf_efficientnet_lite2": dict(
        arch=Arch(LITE, 1.1, 1.2, fixed_ends=True), act_layer="relu6", **TF
    ),
    "tf_efficientnet_lite3": dict(
        arch=Arch(LITE, 1.2, 1.4, fixed_ends=True), act_layer="relu6", **TF
    ),
    "tf_efficientnet_lite4": dict(
        arch=Arch(LITE, 1.4, 1.8, fixed_ends=True), act_layer="relu6", **TF
    ),
    "tf_efficientnetv2_b0": dict(arch=Arch(V2_BASE, round_limit=0.0), act_layer="silu", **TF),
    "tf_efficientnetv2_b1": dict(
        arch=Arch(V2_BASE, 1.0, 1.1, round_limit=0.0), act_layer="silu", **TF
    ),
    "tf_efficientnetv2_b2": dict(
        arch=Arch(V2_BASE, 1.1, 1.2, head=1408, round_limit=0.0), act_layer="silu", **TF
    ),
    "tf_efficientnetv2_b3": dict(
        arch=Arch(V2_BASE, 1.2, 1.4, stem=40, head=1536, round_limit=0.0), act_layer="silu", **TF
    ),
    "tf_efficientnetv2_l": dict(arch=Arch(V2_L), act_layer="silu", **TF),
    "tf_efficientnetv2_m": dict(arch=Arch(V2_M, stem=24), act_layer="silu", **TF),
    "tf_efficientnetv2_s": dict(arch=Arch(V2_S, stem=24), act_layer="silu", **TF),
    "tf_efficientnetv2_xl": dict(arch=Arch(V2_XL), act_layer="silu", **TF),
    "tf_mixnet_l": dict(arch=Arch(MIXNET_M, 1.3, head=1536), **TF),
    "tf_mixnet_m": dict(arch=Arch(MIXNET_M, stem=24, head=1536), **TF),
    "tf_mixnet_s": dict(arch=Arch(MIXNET_S, stem=16, head=1536), **TF),
    "tinynet_a": dict(arch=Arch(B0, 1.0, 1.2, depth_round=round), act_layer="silu"),
    "tinynet_b": dict(arch=Arch(B0, 0.75, 1.1, depth_round=round), act_layer="silu"),
    "tinynet_c": dict(arch=Arch(B0, 0.54, 0.85, depth_round=round), act_layer="silu"),
    "tinynet_d": dict(arch=Arch(B0, 0.54, 0.695, depth_round=round), act_layer="silu"),
    "tinynet_e": dict(arch=Arch(B0, 0.51, 0.6, depth_round=round), act_layer="silu"),
}

MOBILENETS: dict[str, dict[str, Any]] = {
    "fbnetv3_b": dict(
        arch=Arch(FBNET_V3_B, stem=16, head=1984, round_limit=0.95, head_bias=False),
        act_layer="hard_swish",
        se_layer=FBNET_SE,
    ),
    "fbnetv3_d": dict(
        arch=Arch(FBNET_V3_D, stem=24, head=1984, round_limit=0.95, head_bias=False),
        act_layer="hard_swish",
        se_layer=FBNET_SE,
    ),
    "fbnetv3_g": dict(
        arch=Arch(FBNET_V3_G, head=1984, round_limit=0.95, head_bias=False),
        act_layer="hard_swish",
        se_layer=FBNET_SE,
    ),
    "lcnet_035": dict(
        arch=Arch(LCNET, 0.35, stem=8, se_of_input=False), act_layer="hard_swish", se_layer=LCNET_SE
    ),
    "lcnet_050": dict(
        arch=Arch(LCNET, 0.5, stem=8, se_of_input=False), act_layer="hard_swish", se_layer=LCNET_SE
    ),
    "lcnet_075": dict(
        arch=Arch(LCNET, 0.75, stem=16, se_of_input=False),
        act_layer="hard_swish",
        se_layer=LCNET_SE,
    ),
    "lcnet_100": dict(
        arch=Arch(LCNET, stem=16, se_of_input=False), act_layer="hard_swish", se_layer=LCNET_SE
    ),
    "lcnet_150": dict(
        arch=Arch(LCNET, 1.5, stem=24, se_of_input=False), act_layer="hard_swish", se_layer=LCNET_SE
    ),
    "mobilenetv3_large_075": dict(
        arch=Arch(V3_LARGE, 0.75, stem=16, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
    ),
    "mobilenetv3_large_100": dict(
        arch=Arch(V3_LARGE, stem=16, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
    "mobilenetv3_large_150d": dict(
        arch=Arch(V3_LARGE, 1.5, 1.2, stem=24, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
    ),
    "mobilenetv3_rw": dict(
        arch=Arch(V3_RW, stem=16, se_of_input=False, head_bias=False),
        act_layer="hard_swish",
        se_layer=HARD_SE,
        bn_eps=1e-3,
    ),
    "mobilenetv3_small_050": dict(
        arch=Arch(V3_SMALL, 0.5, stem=16, head=1024, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
    ),
    "mobilenetv3_small_075": dict(
        arch=Arch(V3_SMALL, 0.75, stem=16, head=1024, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
    ),
    "mobilenetv3_small_100": dict(
        arch=Arch(V3_SMALL, stem=16, head=1024, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
    ),
    "mobilenetv4_conv_aa_large": dict(
        arch=Arch(V4_CONV_LARGE, stem=24, head_norm=True), aa_layer="avg"
    ),
    "mobilenetv4_conv_aa_medium": dict(arch=Arch(V4_CONV_MEDIUM, head_norm=True), aa_layer="avg"),
    "mobilenetv4_conv_blur_medium": dict(
        arch=Arch(V4_CONV_MEDIUM, head_norm=True), aa_layer="blurpc"
    ),
    "mobilenetv4_conv_large": dict(arch=Arch(V4_CONV_LARGE, stem=24, head_norm=True)),
    "mobilenetv4_conv_medium": dict(arch=Arch(V4_CONV_MEDIUM, head_norm=True)),
    "mobilenetv4_conv_small": dict(arch=Arch(V4_CONV_SMALL, head_norm=True)),
    "mobilenetv4_conv_small_035": dict(arch=Arch(V4_CONV_SMALL, 0.35, head_norm=True)),
    "mobilenetv4_conv_small_050": dict(arch=Arch(V4_CONV_SMALL, 0.5, head_norm=True)),
    "mobilenetv4_hybrid_large": dict(
        arch=Arch(V4_HYBRID_LARGE, stem=24, layer_scale=1e-05, head_norm=True), act_layer="gelu"
    ),
    "mobilenetv4_hybrid_large_075": dict(
        arch=Arch(V4_HYBRID_LARGE, 0.75, stem=24, layer_scale=1e-05, head_norm=True),
        act_layer="gelu",
    ),
    "mobilenetv4_hybrid_medium": dict(
        arch=Arch(V4_HYBRID_MEDIUM, layer_scale=1e-05, head_norm=True)
    ),
    "mobilenetv4_hybrid_medium_075": dict(
        arch=Arch(V4_HYBRID_MEDIUM, 0.75, layer_scale=1e-05, head_norm=True)
    ),
    "tf_mobilenetv3_large_075": dict(
        arch=Arch(V3_LARGE, 0.75, stem=16, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
        **TF,
    ),
    "tf_mobilenetv3_large_100": dict(
        arch=Arch(V3_LARGE, stem=16, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
        **TF,
    ),
    "tf_mobilenetv3_large_minimal_100": dict(arch=Arch(V3_LARGE_MINIMAL, stem=16), **TF),
    "tf_mobilenetv3_small_075": dict(
        arch=Arch(V3_SMALL, 0.75, stem=16, head=1024, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
        **TF,
    ),
    "tf_mobilenetv3_small_100": dict(
        arch=Arch(V3_SMALL, stem=16, head=1024, se_of_input=False),
        act_layer="hard_swish",
        se_layer=V3_SE,
        **TF,
    ),
    "tf_mobilenetv3_small_minimal_100": dict(arch=Arch(V3_SMALL_MINIMAL, stem=16, head=1024), **TF),
    "hardcorenas_a": dict(
        arch=Arch(HARDCORENAS_A, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
    "hardcorenas_b": dict(
        arch=Arch(HARDCORENAS_B, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
    "hardcorenas_c": dict(
        arch=Arch(HARDCORENAS_C, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
    "hardcorenas_d": dict(
        arch=Arch(HARDCORENAS_D, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
    "hardcorenas_e": dict(
        arch=Arch(HARDCORENAS_E, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
    "hardcorenas_f": dict(
        arch=Arch(HARDCORENAS_F, se_of_input=False), act_layer="hard_swish", se_layer=V3_SE
    ),
}

FAMILY = Family(
    model=EfficientNet,
    variants={**EFFICIENTNETS, **{name: (MobileNetV3, row) for name, row in MOBILENETS.items()}},
    weights=weights_table("efficientnet"),
)
