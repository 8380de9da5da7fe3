"""ResNet and its descendants that keep its skeleton.

Papers: ResNet (https://arxiv.org/abs/1512.03385), Wide ResNet (https://arxiv.org/abs/1605.07146),
ResNeXt (https://arxiv.org/abs/1611.05431), SENet (https://arxiv.org/abs/1709.01507), Bag of Tricks,
the c and d stems and shortcuts (https://arxiv.org/abs/1812.01187), anti-aliased pooling
(https://arxiv.org/abs/1904.11486), ECA (https://arxiv.org/abs/1910.03151), ResNet-RS
(https://arxiv.org/abs/2103.07579), pruned ECA-ResNets (https://arxiv.org/abs/2002.08258).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_rate
from ..layers import (
    Blocks,
    BlurPool2d,
    DropBlock2d,
    DropPath,
    Layer,
    SqueezeExcite,
    drop_path_rates,
    get_act,
    get_attention,
    get_layer,
    get_norm,
    he_fan_out,
    initialize,
    narrow,
    pruned_widths,
)
from ..registry import Family, weights_table


@dataclasses.dataclass(frozen=True)
class Stem:
    """The layers that bring the input to half its size.

    Attributes:
        widths: of one 7x7 convolution, or of three 3x3 ones.
        conv_pool: a strided 3x3 convolution in place of max pooling after it.
    """

    widths: tuple[int, ...] = (64,)
    conv_pool: bool = False


@dataclasses.dataclass(frozen=True)
class ResNetSettings:
    """Settings that all blocks of a network have in common.

    Attributes:
        cardinality, base_width: groups of the 3x3 convolution, and channels of each per 64 planes.
        reduce_first: divisor of the first convolution's width.
        act, norm, attention: layers; attention acts at the end of the residual branch.
        smooth: anti-aliasing ``f(channels, stride)`` that strides in place of a convolution.
    """

    cardinality: int = 1
    base_width: int = 64
    reduce_first: int = 1
    act: Layer = nn.ReLU
    norm: Layer = nn.BatchNorm2d
    attention: Layer | None = None
    smooth: Callable[[int, int], nn.Module] | None = None
    drop_block: Callable[[], nn.Module] = nn.Identity

    def conv_stride(self, stride: int) -> int:
        """The convolution's share of a stride: none where anti-aliasing takes it."""
        return 1 if self.smooth else stride

    def smoothing(self, channels: int, stride: int) -> nn.Module:
        """The anti-aliasing that follows the convolution's activation."""
        return self.smooth(channels, stride) if self.smooth and stride > 1 else nn.Identity()

    def refuse(self, block: nn.Module, *fields: str) -> None:
        """Refuse what a kind of block does not have.

        Raises:
            ArgumentError: one of these fields was given.
        """
        arguments = {"attention": "attn_layer", "smooth": "aa_layer"}
        for field in fields:
            value = getattr(self, field)
            if value != getattr(ResNetSettings, field):
                raise ArgumentError(
                    f"{type(block).__name__} does not have {arguments.get(field, field)}={value!r}."
                )


class Residual(nn.Module):
    """Shortcut plus residual branch, then an activation: what both kinds of block share."""

    expansion: int
    last_norm: str
    last_act: str

    def add_end(
        self, channels: int, shortcut: nn.Module | None, settings: ResNetSettings, drop_path: float
    ) -> None:
        self.out_channels = channels
        self.se = settings.attention(channels) if settings.attention else None
        self.downsample = shortcut
        self.drop_path = DropPath(drop_path) if drop_path else None

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """The branch up to its last norm."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        """Run the block; a network that computes the shortcut's map itself hands it in."""
        y = self.residual(x)
        if self.se is not None:
            y = self.se(y)
        if self.drop_path is not None:
            y = self.drop_path(y)
        if shortcut is None:
            shortcut = x if self.downsample is None else self.downsample(x)
        y += shortcut
        return getattr(self, self.last_act)(y)

    def zero_init_last(self) -> None:
        """Start as the identity (https://arxiv.org/abs/1706.02677)."""
        weight = getattr(self.get_submodule(self.last_norm), "weight", None)
        if weight is not None:
            nn.init.zeros_(weight)


class BasicBlock(Residual):
    """3x3, 3x3."""

    expansion, last_norm, last_act = 1, "bn2", "act2"

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        settings: ResNetSettings = ResNetSettings(),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        settings.refuse(self, "cardinality", "base_width")
        width = planes // settings.reduce_first
        self.conv1 = nn.Conv2d(in_chs, width, 3, settings.conv_stride(stride), 1, bias=False)
        self.bn1 = settings.norm(width)
        self.drop_block = settings.drop_block()
        self.act1 = settings.act(inplace=True)
        self.aa = settings.smoothing(width, stride)
        self.conv2 = nn.Conv2d(width, planes, 3, padding=1, bias=False)
        self.bn2 = settings.norm(planes)
        self.act2 = settings.act(inplace=True)
        self.add_end(planes, shortcut, settings, drop_path)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        return self.bn2(self.conv2(x))


class Bottleneck(Residual):
    """1x1 to a narrower (or grouped) width, 3x3, 1x1 to four times the planes."""

    expansion, last_norm, last_act = 4, "bn3", "act3"

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        settings: ResNetSettings = ResNetSettings(),
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        groups = settings.cardinality
        width = planes * settings.base_width // 64 * groups
        first, out_chs = width // settings.reduce_first, planes * self.expansion
        self.conv1 = nn.Conv2d(in_chs, first, 1, bias=False)
        self.bn1 = settings.norm(first)
        self.act1 = settings.act(inplace=True)
        self.conv2 = nn.Conv2d(
            first, width, 3, settings.conv_stride(stride), 1, groups=groups, bias=False
        )
        self.bn2 = settings.norm(width)
        self.drop_block = settings.drop_block()
        self.act2 = settings.act(inplace=True)
        self.aa = settings.smoothing(width, stride)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = settings.norm(out_chs)
        self.act3 = settings.act(inplace=True)
        self.add_end(out_chs, shortcut, settings, drop_path)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        x = self.conv3(x)  # what it read need not be held during the norm
        return self.bn3(x)


def conv_shortcut(kernel: int, in_chs: int, out_chs: int, stride: int, norm: Layer) -> nn.Module:
    """A strided projection; without a stride a 1x1 one, whatever ``kernel``."""
    kernel = kernel if stride > 1 else 1
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, norm(out_chs))


def pool_shortcut(in_chs: int, out_chs: int, stride: int, norm: Layer) -> nn.Module:
    """Average pooling before a 1x1 projection: the d variants'."""
    pool: nn.Module = nn.Identity()
    if stride > 1:
        pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(in_chs, out_chs, 1, bias=False), norm(out_chs))


class ResNet(Backbone):
    """The skeleton: a stem at half size, pooling, then stages of residual blocks, usually four.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`, or a class that is built like them; one
            for all stages or one for each.
        block_args: further arguments of the block, where its class has any.
        depths: blocks in each stage.
        planes: width of each stage, before the block's expansion; by default 64, then doubled.
        stem: see :class:`Stem`.
        cardinality, base_width, reduce_first: see :class:`ResNetSettings`.
        down_kernel_size: kernel of the projection shortcuts.
        avg_down: pool before the projection instead of striding it.
        attn_layer: channel attention at the end of each block: ``"se"``, ``"eca"``,
            ``f(channels)``.
        aa_layer: anti-aliasing ``f(channels, stride)`` before each subsampling; ``"blur"``,
            ``"avg"``.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        drop_block_rate: of the last two stages' blocks.
        zero_init_last: start each residual branch at zero.
        widths: the channel counts of a pruned network, by its name in ``pruned.json``.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv1", "fc"

    conv1: nn.Module
    act1: nn.Module

    def __init__(
        self,
        block: type[Residual] | Sequence[type[Residual]],
        depths: Sequence[int],
        *,
        planes: Sequence[int] | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem: Stem = Stem(),
        cardinality: int = 1,
        base_width: int = 64,
        reduce_first: int = 1,
        down_kernel_size: int = 1,
        avg_down: bool = False,
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        attn_layer: str | Layer | None = None,
        aa_layer: str | Callable[[int, int], nn.Module] | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_block_rate: float = 0.0,
        zero_init_last: bool = True,
        block_args: Mapping[str, Any] | None = None,
        widths: str | None = None,
    ) -> None:
        super().__init__(in_chans=in_chans)
        settings = ResNetSettings(
            cardinality,
            base_width,
            reduce_first,
            get_act(act_layer),
            get_norm(norm_layer),
            get_attention(attn_layer) if attn_layer else None,
            get_layer("aa_layer", aa_layer, SMOOTH) if aa_layer else None,
        )
        check_rate("drop_block_rate", drop_block_rate)
        self.drop_path_rate = drop_path_rate
        in_chs = self._add_stem(stem, settings)
        drops = iter(drop_path_rates(drop_path_rate, sum(depths)))
        kinds = tuple(block) if isinstance(block, Sequence) else (block,) * len(depths)
        planes = tuple(64 * 2**i for i in range(len(depths))) if planes is None else planes
        if not len(kinds) == len(planes) == len(depths) > 0:
            raise ArgumentError(
                f"depths={depths!r} says how many stages there are, at least one; "
                f"planes={planes!r} and block={block!r} must be as long."
            )
        for i, (kind, depth, width) in enumerate(zip(kinds, depths, planes, strict=True)):
            drop_block = _drop_block(len(depths) - i, drop_block_rate)
            shared = dataclasses.replace(settings, drop_block=drop_block)
            make = partial(kind, settings=shared, **(block_args or {}))
            out_chs, blocks = width * kind.expansion, []
            for stride in (2 if i else 1, *(1,) * (depth - 1)):
                shortcut = None
                if stride > 1 or in_chs != out_chs:
                    project = (
                        pool_shortcut if avg_down else partial(conv_shortcut, down_kernel_size)
                    )
                    shortcut = project(in_chs, out_chs, stride, settings.norm)
                drop = next(drops)
                blocks.append(make(in_chs, width, stride=stride, shortcut=shortcut, drop_path=drop))
                in_chs = out_chs
            stage, name, channels = Blocks(*blocks), f"layer{i + 1}", out_chs
            if widths is not None:
                narrow(stage, pruned_widths(widths), prefix=name)
                last_norm: Any = blocks[-1].get_submodule(kind.last_norm)
                channels = last_norm.num_features
            self.add_stage(name, stage, channels=channels, reduction=4 * 2**i)
        self.add_head(
            channels, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, conv=[he_fan_out], zero_init_last=zero_init_last)

    def _add_stem(self, stem: Stem, settings: ResNetSettings) -> int:
        """conv1, bn1, act1, maxpool; returns their width."""
        *inner, width = stem.widths
        if not inner:
            self.conv1 = nn.Conv2d(self.in_chans, width, 7, 2, 3, bias=False)
        else:
            layers: list[nn.Module] = []
            in_chs, stride = self.in_chans, 2
            for chs in inner:
                layers += [nn.Conv2d(in_chs, chs, 3, stride, 1, bias=False), settings.norm(chs)]
                layers += [settings.act(inplace=True)]
                in_chs, stride = chs, 1
            self.conv1 = nn.Sequential(*layers, nn.Conv2d(in_chs, width, 3, 1, 1, bias=False))
            self.first_conv = "conv1.0"
        self.bn1 = settings.norm(width)
        self.add_stage("act1", settings.act(inplace=True), channels=width, reduction=2)
        if stem.conv_pool:
            conv = nn.Conv2d(width, width, 3, settings.conv_stride(2), 1, bias=False)
            smooth = [settings.smooth(width, 2)] if settings.smooth else []
            pool: nn.Module = nn.Sequential(
                conv, *smooth, settings.norm(width), settings.act(inplace=True)
            )
        elif settings.smooth is average:
            pool = average(width, 2)
        elif settings.smooth:
            pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), settings.smooth(width, 2))
        else:
            pool = nn.MaxPool2d(3, 2, 1)
        self.maxpool = pool
        return width

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        yield x
        x = self.maxpool(x)
        for level in self.levels[1:]:
            x = getattr(self, level.module)(x)  # (N, C, H/4, W/4), then (N, 2C, H/8, W/8), ...
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^conv1|bn1|maxpool", "blocks": blocks}


def _drop_block(left: int, rate: float) -> Callable[[], nn.Module]:
    """With regions that suit the map sizes, in the last two of the stages that are left."""
    if not rate or left > 2:
        return nn.Identity
    size, scale = (5, 0.25) if left == 2 else (3, 1.0)
    return partial(DropBlock2d, rate, block_size=size, gamma_scale=scale)


def average(channels: int, stride: int) -> nn.Module:
    """Average pooling as anti-aliasing."""
    del channels
    return nn.AvgPool2d(stride)


def blur(channels: int, stride: int) -> nn.Module:
    """A binomial blur as anti-aliasing."""
    return BlurPool2d(channels, stride=stride)


SMOOTH: dict[str, Callable[[int, int], nn.Module]] = {"avg": average, "blur": blur}


C: dict[str, Any] = {"stem": Stem((32, 32, 64))}
D: dict[str, Any] = {**C, "avg_down": True}
T: dict[str, Any] = {"stem": Stem((24, 32, 64)), "avg_down": True}
RS: dict[str, Any] = {
    "stem": Stem((32, 32, 64), conv_pool=True),
    "avg_down": True,
    "attn_layer": partial(SqueezeExcite, rd_ratio=0.25),
}
WIDE = Stem((64, 64, 128))

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet10t": dict(block=BasicBlock, depths=(1, 1, 1, 1), **T),
    "resnet14t": dict(block=Bottleneck, depths=(1, 1, 1, 1), **T),
    "resnet18": dict(block=BasicBlock, depths=(2, 2, 2, 2)),
    "resnet18d": dict(block=BasicBlock, depths=(2, 2, 2, 2), **D),
    "resnet34": dict(block=BasicBlock, depths=(3, 4, 6, 3)),
    "resnet34d": dict(block=BasicBlock, depths=(3, 4, 6, 3), **D),
    "resnet26": dict(block=Bottleneck, depths=(2, 2, 2, 2)),
    "resnet26t": dict(block=Bottleneck, depths=(2, 2, 2, 2), **T),
    "resnet26d": dict(block=Bottleneck, depths=(2, 2, 2, 2), **D),
    "resnet50": dict(block=Bottleneck, depths=(3, 4, 6, 3)),
    "resnet50c": dict(block=Bottleneck, depths=(3, 4, 6, 3), **C),
    "resnet50d": dict(block=Bottleneck, depths=(3, 4, 6, 3), **D),
    "resnet50s": dict(block=Bottleneck, depths=(3, 4, 6, 3), stem=WIDE),
    "resnet50t": dict(block=Bottleneck, depths=(3, 4, 6, 3), **T),
    "resnet101": dict(block=Bottleneck, depths=(3, 4, 23, 3)),
    "resnet101c": dict(block=Bottleneck, depths=(3, 4, 23, 3), **C),
    "resnet101d": dict(block=Bottleneck, depths=(3, 4, 23, 3), **D),
    "resnet101s": dict(block=Bottleneck, depths=(3, 4, 23, 3), stem=WIDE),
    "resnet152": dict(block=Bottleneck, depths=(3, 8, 36, 3)),
    "resnet152c": dict(block=Bottleneck, depths=(3, 8, 36, 3), **C),
    "resnet152d": dict(block=Bottleneck, depths=(3, 8, 36, 3), **D),
    "resnet152s": dict(block=Bottleneck, depths=(3, 8, 36, 3), stem=WIDE),
    "resnet200": dict(block=Bottleneck, depths=(3, 24, 36, 3)),
    "resnet200d": dict(block=Bottleneck, depths=(3, 24, 36, 3), **D),
    "wide_resnet50_2": dict(block=Bottleneck, depths=(3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": dict(block=Bottleneck, depths=(3, 4, 23, 3), base_width=128),
    "resnet50_gn": dict(block=Bottleneck, depths=(3, 4, 6, 3), norm_layer="groupnorm"),
    "resnext50_32x4d": dict(block=Bottleneck, depths=(3, 4, 6, 3), cardinality=32, base_width=4),
    "resnext50d_32x4d": dict(
        block=Bottleneck, depths=(3, 4, 6, 3), cardinality=32, base_width=4, **D
    ),
    "resnext101_32x4d": dict(block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=4),
    "resnext101_32x8d": dict(block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=8),
    "resnext101_32x16d": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=16
    ),
    "resnext101_32x32d": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=32
    ),
    "resnext101_64x4d": dict(block=Bottleneck, depths=(3, 4, 23, 3), cardinality=64, base_width=4),
    "ecaresnet26t": dict(block=Bottleneck, depths=(2, 2, 2, 2), attn_layer="eca", **T),
    "ecaresnet50d": dict(block=Bottleneck, depths=(3, 4, 6, 3), attn_layer="eca", **D),
    "ecaresnet50d_pruned": dict(
        block=Bottleneck, depths=(3, 4, 6, 3), attn_layer="eca", widths="ecaresnet50d_pruned", **D
    ),
    "ecaresnet50t": dict(block=Bottleneck, depths=(3, 4, 6, 3), attn_layer="eca", **T),
    "ecaresnetlight": dict(block=Bottleneck, depths=(1, 1, 11, 3), avg_down=True, attn_layer="eca"),
    "ecaresnet101d": dict(block=Bottleneck, depths=(3, 4, 23, 3), attn_layer="eca", **D),
    "ecaresnet101d_pruned": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), attn_layer="eca", widths="ecaresnet101d_pruned", **D
    ),
    "ecaresnet200d": dict(block=Bottleneck, depths=(3, 24, 36, 3), attn_layer="eca", **D),
    "ecaresnet269d": dict(block=Bottleneck, depths=(3, 30, 48, 8), attn_layer="eca", **D),
    "ecaresnext26t_32x4d": dict(
        block=Bottleneck, depths=(2, 2, 2, 2), cardinality=32, base_width=4, attn_layer="eca", **T
    ),
    "ecaresnext50t_32x4d": dict(
        block=Bottleneck, depths=(3, 4, 6, 3), cardinality=32, base_width=4, attn_layer="eca", **T
    ),
    "seresnet18": dict(block=BasicBlock, depths=(2, 2, 2, 2), attn_layer="se"),
    "seresnet34": dict(block=BasicBlock, depths=(3, 4, 6, 3), attn_layer="se"),
    "seresnet50": dict(block=Bottleneck, depths=(3, 4, 6, 3), attn_layer="se"),
    "seresnet50t": dict(block=Bottleneck, depths=(3, 4, 6, 3), attn_layer="se", **T),
    "seresnet101": dict(block=Bottleneck, depths=(3, 4, 23, 3), attn_layer="se"),
    "seresnet152": dict(block=Bottleneck, depths=(3, 8, 36, 3), attn_layer="se"),
    "seresnet152d": dict(block=Bottleneck, depths=(3, 8, 36, 3), attn_layer="se", **D),
    "seresnet200d": dict(block=Bottleneck, depths=(3, 24, 36, 3), attn_layer="se", **D),
    "seresnet269d": dict(block=Bottleneck, depths=(3, 30, 48, 8), attn_layer="se", **D),
    "seresnext26d_32x4d": dict(
        block=Bottleneck, depths=(2, 2, 2, 2), cardinality=32, base_width=4, attn_layer="se", **D
    ),
    "seresnext26t_32x4d": dict(
        block=Bottleneck, depths=(2, 2, 2, 2), cardinality=32, base_width=4, attn_layer="se", **T
    ),
    "seresnext50_32x4d": dict(
        block=Bottleneck, depths=(3, 4, 6, 3), cardinality=32, base_width=4, attn_layer="se"
    ),
    "seresnext101_32x4d": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=4, attn_layer="se"
    ),
    "seresnext101_32x8d": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=8, attn_layer="se"
    ),
    "seresnext101d_32x8d": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), cardinality=32, base_width=8, attn_layer="se", **D
    ),
    "seresnext101_64x4d": dict(
        block=Bottleneck, depths=(3, 4, 23, 3), cardinality=64, base_width=4, attn_layer="se"
    ),
    "senet154": dict(
        block=Bottleneck,
        depths=(3, 8, 36, 3),
        cardinality=64,
        base_width=4,
        stem=WIDE,
        attn_layer="se",
        down_kernel_size=3,
        reduce_first=2,
    ),
    "resnetblur18": dict(block=BasicBlock, depths=(2, 2, 2, 2), aa_layer="blur"),
    "resnetblur50": dict(block=Bottleneck, depths=(3, 4, 6, 3), aa_layer="blur"),
    "resnetblur50d": dict(block=Bottleneck, depths=(3, 4, 6, 3), aa_layer="blur", **D),
    "resnetblur101d": dict(block=Bottleneck, depths=(3, 4, 23, 3), aa_layer="blur", **D),
    "resnetaa34d": dict(block=BasicBlock, depths=(3, 4, 6, 3), aa_layer="avg", **D),
    "resnetaa50": dict(block=Bottleneck, depths=(3, 4, 6, 3), aa_layer="avg"),
    "resnetaa50d": dict(block=Bottleneck, depths=(3, 4, 6, 3), aa_layer="avg", **D),
    "resnetaa101d": dict(block=Bottleneck, depths=(3, 4, 23, 3), aa_layer="avg", **D),
    "seresnetaa50d": dict(
        block=Bottleneck, depths=(3, 4, 6, 3), attn_layer="se", aa_layer="avg", **D
    ),
    "seresnextaa101d_32x8d": dict(
        block=Bottleneck,
        depths=(3, 4, 23, 3),
        cardinality=32,
        base_width=8,
        attn_layer="se",
        aa_layer="avg",
        **D,
    ),
    "seresnextaa201d_32x8d": dict(
        block=Bottleneck,
        depths=(3, 24, 36, 4),
        cardinality=32,
        base_width=8,
        stem=WIDE,
        avg_down=True,
        attn_layer="se",
        aa_layer="avg",
    ),
    "resnetrs50": dict(block=Bottleneck, depths=(3, 4, 6, 3), **RS),
    "resnetrs101": dict(block=Bottleneck, depths=(3, 4, 23, 3), **RS),
    "resnetrs152": dict(block=Bottleneck, depths=(3, 8, 36, 3), **RS),
    "resnetrs200": dict(block=Bottleneck, depths=(3, 24, 36, 3), **RS),
    "resnetrs270": dict(block=Bottleneck, depths=(4, 29, 53, 4), **RS),
    "resnetrs350": dict(block=Bottleneck, depths=(4, 36, 72, 4), **RS),
    "resnetrs420": dict(block=Bottleneck, depths=(4, 44, 87, 4), **RS),
    "test_resnet": dict(
        block=(BasicBlock, BasicBlock, Bottleneck, BasicBlock),
        depths=(1, 1, 1, 1),
        planes=(32, 48, 48, 96),
        stem=Stem((16, 16, 32)),
        avg_down=True,
    ),
}

FAMILY = Family(model=ResNet, variants=VARIANTS, weights=weights_table("resnet"))
