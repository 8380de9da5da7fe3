"""EfficientViT: inverted residuals and linear attention at several reaches.

Paper: EfficientViT, Multi-Scale Linear Attention (https://arxiv.org/abs/2205.14756).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_stages
from ..layers import (
    Head,
    Layer,
    Phased,
    Stage,
    build_act,
    get_act,
    get_norm,
    in_memory_format_of,
    relu_attention,
    unit,
)
from ..registry import Family, weights_table


def local_block(
    in_chs: int,
    chs: int,
    *,
    expand: float,
    norm: Layer,
    act: Layer,
    stride: int = 1,
    fused: bool = False,
    few_norms: bool = False,
) -> nn.Module:
    """Two or three convolutions, the last without an activation.

    Args:
        expand: hidden width, as a multiple of ``in_chs``; with 1 the block has no wider map.
        fused: full 3x3 convolutions in place of depthwise ones.
        few_norms: a norm at the end only, biases before it.
    """
    hidden = round(in_chs * expand)
    inner = partial(unit, norm=None if few_norms else norm, act=act, bias=few_norms)
    units: OrderedDict[str, nn.Module] = OrderedDict()
    if fused:
        units["spatial_conv" if expand != 1 else "conv1"] = inner(in_chs, hidden, 3, stride=stride)
    else:
        if expand != 1:
            units["inverted_conv"] = inner(in_chs, hidden)
        units["depth_conv"] = inner(hidden, hidden, 3, stride=stride, groups=hidden)
    wide = fused and expand == 1
    units["conv2" if wide else "point_conv"] = unit(hidden, chs, 3 if wide else 1, norm=norm)
    return nn.Sequential(units)


class Residual(nn.Module):
    """A block beside the identity; without it where the size changes."""

    def __init__(self, main: nn.Module, *, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = nn.Identity() if shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.main(x)
        return y if self.shortcut is None else y + self.shortcut(x)


class LiteMLA(Phased):
    """Linear attention over the map, of positions and of their neighbourhoods; (N, C, H, W).

    Args:
        width: channels of a head.
        scales: sizes of the neighbourhoods; each brings as many heads as the positions have.
    """

    channels_last = False
    eps = 1e-5

    def __init__(
        self, channels: int, *, width: int, norm: Layer, scales: Sequence[int] = (5,)
    ) -> None:
        super().__init__()
        self.width = width
        heads = channels // width
        total, parts = heads * width, 3 * heads * width
        self.qkv = unit(channels, parts)
        self.aggreg = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(parts, parts, side, padding=side // 2, groups=parts, bias=False),
                nn.Conv2d(parts, parts, 1, groups=3 * heads, bias=False),
            )
            for side in scales
        )
        self.proj = unit(total * (1 + len(scales)), channels, norm=norm)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        n, _, height, width = x.shape
        parts = self.qkv(x)
        parts = torch.cat([parts, *(around(parts) for around in self.aggreg)], 1)
        heads = parts.shape[1] // (3 * self.width)
        parts = parts.reshape(n, heads, 3 * self.width, height * width).transpose(-1, -2)
        q, k, v = parts.chunk(3, -1)  # (N, heads, L, C)
        y = relu_attention(q, k, v, eps=self.eps).transpose(-1, -2)
        y = y.reshape(n, heads * self.width, height, width)
        return self.proj(in_memory_format_of(y, x))


def attention_block(
    chs: int, *, head_dim: int, expand: float, norm: Layer, act: Layer
) -> nn.Module:
    """Attention over the map, then an inverted residual."""
    local = local_block(chs, chs, expand=expand, norm=norm, act=act, few_norms=True)
    return nn.Sequential(
        OrderedDict(
            context_module=Residual(LiteMLA(chs, width=head_dim, norm=norm)),
            local_module=Residual(local),
        )
    )


class EfficientVit(Backbone):
    """A stem at half the size, then four stages that halve it; the last two have attention.

    With an output stride attention runs on the interleaved maps by themselves.

    Args:
        widths, depths: channels and blocks of the stem and of each stage.
        head_dim: channels of a head of the attention.
        expand_ratio: hidden width of the blocks.
        head_widths: channels of the convolution before the pooling, and of the layer behind it.
        drop_rate: dropout before the classifier.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.in_conv.conv", "head.classifier.4"
    large = False

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        head_widths: Sequence[int],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        head_dim: int = 32,
        expand_ratio: float = 4.0,
        norm_layer: str | Layer = "batchnorm2d",
        act_layer: str | Layer = "hard_swish",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        check_stages(widths=widths, depths=depths)
        self.head_dim, self.expand = head_dim, expand_ratio
        self.add_blocks(widths, depths, norm, act)
        self.add_pooled(widths[-1], head_widths, nn.BatchNorm2d, nn.Hardswish, 1e-5)
        self.add_head(
            widths[-1],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(
                *(f"head.classifier.{i}" for i in range(3)),
                before=("head.in_conv",),
                channels=head_widths[0],
                gives=head_widths[1],
                channels_last=True,
            ),
        )

    def add_blocks(
        self, widths: Sequence[int], depths: Sequence[int], norm: Layer, act: Layer
    ) -> None:
        """The stem and the stages."""
        width, local = widths[0], partial(local_block, norm=norm, act=act)
        self.stem = nn.Sequential(
            OrderedDict(in_conv=unit(self.in_chans, width, 3, stride=2, norm=norm, act=act))
        )
        for i in range(depths[0]):
            block = local(width, width, expand=1, fused=self.large)
            self.stem.add_module(f"res{i}", Residual(block))
        self.stages = nn.Sequential()
        for i, (chs, depth) in enumerate(zip(widths[1:], depths[1:], strict=True)):
            first, others = self.stage(i, width, chs, local)
            blocks = [Residual(first, shortcut=False), *(others() for _ in range(depth))]
            blocks = blocks if self.large or i >= 2 else blocks[:-1]
            self.add_stage(f"stages.{i}", Stage(blocks), channels=chs, reduction=4 * 2**i)
            width = chs

    def stage(self, index: int, in_chs: int, chs: int, local: Any) -> tuple[nn.Module, Layer]:
        """The first block of a stage, and what makes the others."""
        attends = index >= 2
        first = local(in_chs, chs, stride=2, expand=self.expand, few_norms=attends)
        if not attends:
            return first, lambda: Residual(local(chs, chs, expand=self.expand))
        options = dict(expand=self.expand, head_dim=self.head_dim, **local.keywords)
        return first, lambda: attention_block(chs, **options)

    def add_pooled(
        self, chs: int, widths: Sequence[int], norm: Layer, act: Layer, eps: float
    ) -> None:
        """The layers of the head, before and behind the pooling."""
        if len(widths) != 2:
            raise ArgumentError(f"head_widths={widths!r}: two numbers are expected.")
        hidden = nn.Linear(widths[0], widths[1], bias=False)
        layers = (hidden, nn.LayerNorm(widths[1], eps=eps), build_act(act), nn.Identity())
        self.head = nn.Sequential(
            OrderedDict(
                in_conv=unit(chs, widths[0], norm=norm, act=act),
                classifier=nn.Sequential(*layers, nn.Identity()),
            )
        )

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/2, W/2)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, C, H/8, W/8), and so on
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.\w+\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": blocks}


class EfficientVitLarge(EfficientVit):
    """Full convolutions in the first stages, and attention in the last one only.

    Its arguments are :class:`EfficientVit`'s, but for ``expand_ratio``, and:

    Args:
        norm_eps: added to the variances.
    """

    large = True

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        head_widths: Sequence[int],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        head_dim: int = 32,
        norm_eps: float = 1e-7,
        norm_layer: str | Layer = "batchnorm2d",
        act_layer: str | Layer = "gelu_tanh",
        drop_rate: float = 0.0,
    ) -> None:
        self.norm_eps, self.act = norm_eps, get_act(act_layer)
        super().__init__(
            widths,
            depths,
            head_widths,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            head_dim=head_dim,
            norm_layer=partial(get_norm(norm_layer), eps=norm_eps),
            act_layer=act_layer,
            drop_rate=drop_rate,
        )

    def stage(self, index: int, in_chs: int, chs: int, local: Any) -> tuple[nn.Module, Layer]:
        attends, deep = index >= 3, index >= 2
        form = dict(fused=not deep, few_norms=deep)
        first = local(in_chs, chs, stride=2, expand=24 if attends else 16, **form)
        if not attends:
            return first, lambda: Residual(local(chs, chs, expand=4, **form))
        options = dict(expand=6, head_dim=self.head_dim, **local.keywords)
        return first, lambda: attention_block(chs, **options)

    def add_pooled(
        self, chs: int, widths: Sequence[int], norm: Layer, act: Layer, eps: float
    ) -> None:
        super().add_pooled(chs, widths, norm, self.act, self.norm_eps)


B: dict[str, Any] = dict(head_dim=16)
L: dict[str, Any] = dict(widths=(32, 64, 128, 256, 512), head_widths=(3072, 3200))

VARIANTS: dict[str, Any] = {
    "efficientvit_b0": dict(
        widths=(8, 16, 32, 64, 128), depths=(1, 2, 2, 2, 2), head_widths=(1024, 1280), **B
    ),
    "efficientvit_b1": dict(
        widths=(16, 32, 64, 128, 256), depths=(1, 2, 3, 3, 4), head_widths=(1536, 1600), **B
    ),
    "efficientvit_b2": dict(
        widths=(24, 48, 96, 192, 384), depths=(1, 3, 4, 4, 6), head_widths=(2304, 2560)
    ),
    "efficientvit_b3": dict(
        widths=(32, 64, 128, 256, 512), depths=(1, 4, 6, 6, 9), head_widths=(2304, 2560)
    ),
    "efficientvit_l1": (EfficientVitLarge, dict(depths=(1, 1, 1, 6, 6), **L)),
    "efficientvit_l2": (EfficientVitLarge, dict(depths=(1, 2, 2, 8, 8), **L)),
    "efficientvit_l3": (
        EfficientVitLarge,
        dict(widths=(64, 128, 256, 512, 1024), depths=(1, 2, 2, 8, 8), head_widths=(6144, 6400)),
    ),
}

FAMILY = Family(model=EfficientVit, variants=VARIANTS, weights=weights_table("efficientvit_mit"))
