"""MobileViT: inverted residuals, and attention between positions at one place in their patches.

Papers: MobileViT (https://arxiv.org/abs/2110.02178); MobileViTv2, whose attention is separable
(https://arxiv.org/abs/2206.02680).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..layers import (
    Blocks,
    DropPath,
    Mlp,
    Phased,
    Size,
    ceil_div,
    join_windows,
    pointwise,
    same_size,
    split_windows,
)
from ..registry import Family, weights_table
from ._vit_blocks import Block, ViTSettings
from .byobnet import BlockArgs, Bottleneck, ByobNet, Row, Stem

whole_norm = partial(nn.GroupNorm, 1)


def resized(x: torch.Tensor, size: Size, *, corners: bool) -> torch.Tensor:
    """A map (N, C, H, W) at another size, by bilinear interpolation."""
    if same_size((x.shape[-2], x.shape[-1]), size):
        return x  # where a graph is for all sizes, this size is interpolated to itself
    return F.interpolate(x, size=size, mode="bilinear", align_corners=corners)


class PatchBlock(Phased):
    """Convolutions around a transformer over patches; (N, C, H, W).

    A map that the patches do not divide is interpolated to the next size that they do.

    Args:
        dim: channels of the transformer.
        depth: its blocks.
        patch_size: side of a patch; positions at one place in their patches see each other.
    """

    channels_last = False

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def whole(self, x: torch.Tensor) -> Size:
        """The next size of whole patches."""
        side = self.patch_size
        return ceil_div(x.shape[-2], side) * side, ceil_div(x.shape[-1], side) * side

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, patches, P * P, C)."""
        side, n = self.patch_size, x.shape[0]
        count = (x.shape[-2] // side) * (x.shape[-1] // side)
        patches = split_windows(x.permute(0, 2, 3, 1), (side, side)).flatten(1, 2)
        return torch.unflatten(patches, 0, (n, count))

    def join(self, y: torch.Tensor, size: Size) -> torch.Tensor:
        """Back from :meth:`cut`; ``size`` is (H, W)."""
        side, n = self.patch_size, y.shape[0]
        patches = torch.unflatten(y.flatten(0, 1), 1, (side, side))
        return join_windows(patches, (n, *size)).permute(0, 3, 1, 2)


class MobileVitBlock(PatchBlock):
    """With self-attention, and a convolution that fuses the result with the block's input."""

    def __init__(
        self, args: BlockArgs, *, dim: int, depth: int, patch_size: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__(patch_size)
        conv, chs = args.settings.conv, args.in_chs
        self.conv_kxk = conv(chs, chs, 3, groups=args.groups(chs))
        self.conv_1x1 = nn.Conv2d(chs, dim, 1, bias=False)
        settings = ViTSettings(
            num_heads=num_heads, norm=nn.LayerNorm, act=args.settings.act, mlp_ratio=2.0
        )
        blocks = (Block(dim, settings=settings, drop_path=args.drop_path) for _ in range(depth))
        self.transformer = Blocks(*blocks)
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = conv(dim, args.out_chs)
        self.conv_fusion = conv(chs + args.out_chs, args.out_chs, 3)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        size, places = (x.shape[-2], x.shape[-1]), self.patch_size**2
        y = self.conv_1x1(self.conv_kxk(x))
        whole = self.whole(y)
        y = self.cut(resized(y, whole, corners=False)).transpose(1, 2)  # (N, P * P, patches, C)
        n = y.shape[0]
        y = self.norm(self.transformer(y.flatten(0, 1)))
        y = self.join(torch.unflatten(y, 0, (n, places)).transpose(1, 2), whole)
        y = self.conv_proj(resized(y, size, corners=False))
        return self.conv_fusion(torch.cat((x, y), 1))


class SeparableAttention(nn.Module):
    """One score for each position; the sum of the keys under it opens the values.

    (N, C, places, patches) -> the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widths = [1, dim, dim]
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.out_proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = torch.split(self.qkv_proj(x), self.widths, 1)
        context = (key * query.softmax(-1)).sum(-1, keepdim=True)
        return self.out_proj(F.relu(value) * context)


class SeparableBlock(nn.Module):
    """Separable attention, then an MLP, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, *, act: Any, drop_path: float) -> None:
        super().__init__()
        self.norm1 = whole_norm(dim)
        self.attn = SeparableAttention(dim)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = whole_norm(dim)
        self.mlp = Mlp(dim, 2 * dim, act=act, linear=pointwise)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class MobileVitV2Block(PatchBlock):
    """With separable attention. The map keeps the size of whole patches."""

    def __init__(self, args: BlockArgs, *, depth: int, patch_size: int = 2) -> None:
        super().__init__(patch_size)
        conv, chs, dim = args.settings.conv, args.in_chs, args.width(of_input=True)
        self.conv_kxk = conv(chs, chs, 3, groups=args.groups(chs))
        self.conv_1x1 = nn.Conv2d(chs, dim, 1, bias=False)
        block = partial(SeparableBlock, dim, act=args.settings.act, drop_path=args.drop_path)
        self.transformer = Blocks(*(block() for _ in range(depth)))
        self.norm = whole_norm(dim)
        self.conv_proj = conv(dim, args.out_chs, act=False)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        whole = self.whole(x)
        x = self.conv_1x1(self.conv_kxk(resized(x, whole, corners=True)))
        x = self.cut(x).permute(0, 3, 2, 1)  # (N, C, P * P, patches)
        x = self.norm(self.transformer(x)).permute(0, 3, 2, 1)
        return self.conv_proj(self.join(x, whole))


class MobileVitV2(ByobNet):
    """MobileViTv2, whose maps are filled up to whole patches.

    Its arguments are :class:`ByobNet`'s.
    """

    map_multiple = 2


def inverted(depth: int, channels: int, *, stride: int, ratio: float) -> Row:
    """Inverted residuals in a row."""
    block = partial(Bottleneck, bottle_in=True, linear_out=True)
    return Row(block, depth, channels, stride=stride, group_size=1, ratio=ratio)


def mobilevit(
    widths: tuple[int, ...], dims: tuple[int, ...], *, ratio: float, num_features: int
) -> dict[str, Any]:
    """A row of the table: widths of the stages, and of the last three's transformers."""
    stages: list[Any] = [
        inverted(1, widths[0], stride=1, ratio=ratio),
        inverted(3, widths[1], stride=2, ratio=ratio),
    ]
    for channels, dim, depth in zip(widths[2:], dims, (2, 4, 3), strict=True):
        block = partial(MobileVitBlock, dim=dim, depth=depth)
        first = inverted(1, channels, stride=2, ratio=ratio)
        stages.append((first, Row(block, 1, channels)))
    stem = Stem((16,))
    return dict(stages=stages, stem=stem, shortcut="", act_layer="silu", num_features=num_features)


def mobilevit_v2(width: float) -> dict[str, Any]:
    """A row of the table: a factor of all widths."""
    widths = [int(channels * width) for channels in (64, 128, 256, 384, 512)]
    stages: list[Any] = [
        inverted(1, widths[0], stride=1, ratio=2.0),
        inverted(2, widths[1], stride=2, ratio=2.0),
    ]
    for channels, depth in zip(widths[2:], (2, 4, 3), strict=True):
        block = partial(MobileVitV2Block, depth=depth)
        first = inverted(1, channels, stride=2, ratio=2.0)
        stages.append((first, Row(block, 1, channels, group_size=1, ratio=0.5)))
    return dict(stages=stages, stem=Stem((int(32 * width),)), shortcut="", act_layer="silu")


XXS = mobilevit((16, 24, 48, 64, 80), (64, 80, 96), ratio=2.0, num_features=320)
XS = mobilevit((32, 48, 64, 80, 96), (96, 120, 144), ratio=4.0, num_features=384)
S = mobilevit((32, 64, 96, 128, 160), (144, 192, 240), ratio=4.0, num_features=640)

VARIANTS: dict[str, Any] = {
    "mobilevit_xxs": XXS,
    "mobilevit_xs": XS,
    "mobilevit_s": S,
    "mobilevitv2_050": (MobileVitV2, mobilevit_v2(0.5)),
    "mobilevitv2_075": (MobileVitV2, mobilevit_v2(0.75)),
    "mobilevitv2_100": (MobileVitV2, mobilevit_v2(1.0)),
    "mobilevitv2_125": (MobileVitV2, mobilevit_v2(1.25)),
    "mobilevitv2_150": (MobileVitV2, mobilevit_v2(1.5)),
    "mobilevitv2_175": (MobileVitV2, mobilevit_v2(1.75)),
    "mobilevitv2_200": (MobileVitV2, mobilevit_v2(2.0)),
}

FAMILY = Family(model=ByobNet, variants=VARIANTS, weights=weights_table("mobilevit"))
