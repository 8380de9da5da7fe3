"""ViT over the map of a convolutional network, in place of patches of the image.

Papers: ViT (https://arxiv.org/abs/2010.11929), AugReg (https://arxiv.org/abs/2106.10270); the
ResNets are of BiT (https://arxiv.org/abs/1912.11370), with standardised weights
(https://arxiv.org/abs/1903.10520); the three convolutions are MobileCLIP's
(https://arxiv.org/abs/2311.17049).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from ..layers import (
    ConvNormAct,
    GroupNorm,
    Layer,
    PatchConv,
    PatchEmbed,
    Size,
    StdConv2dSame,
    fit_to_patches,
    stride_of,
    to_pair,
)
from ..registry import Family, weights_table
from . import resnetv2
from .resnet import VARIANTS as RESNETS
from .resnet import ResNet
from .vit import LARGE, SMALL, TINY, VisionTransformer

BIT: dict[str, Layer] = dict(conv=partial(StdConv2dSame, eps=1e-8), norm=GroupNorm)


class Trunk(Protocol):
    """The layers before a hybrid's blocks: ``width`` channels at 1 / ``reduction``.

    An input's sides must be multiples of ``multiple``.
    """

    first_conv: str | tuple[str, ...]
    width: int
    reduction: int

    @property
    def multiple(self) -> int: ...


class Stem(resnetv2.Stem):
    """A strided 7x7 convolution and a pool; (N, C, H, W) -> (N, 64, H/4, W/4)."""

    first_conv, width, reduction, multiple = "conv", 64, 4, 1

    def __init__(self, in_chans: int) -> None:
        super().__init__(in_chans, (self.width,), pool="same", preact=False, act=nn.ReLU, **BIT)


class BitTrunk(resnetv2.ResNetV2):
    """A ResNet of BiT's with SAME padding, whose blocks activate last.

    Args:
        depths: blocks in each stage.
    """

    multiple = 1

    def __init__(self, in_chans: int, *, depths: Sequence[int]) -> None:
        super().__init__(
            depths,
            stem_pool="same",
            preact=False,
            conv=BIT["conv"],
            norm_layer=BIT["norm"],
            in_chans=in_chans,
            num_classes=0,
        )
        self.width, self.reduction = self.levels[-1].channels, self.levels[-1].reduction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for y in self.forward_levels(x):
            x = y  # not held
        return x


class ResNetTrunk(ResNet):
    """A ResNet up to a level.

    Args:
        variant: name of a row of its table.
        level: the last level that is kept.
    """

    multiple = 1

    def __init__(self, in_chans: int, *, variant: str, level: int = 4) -> None:
        row = RESNETS[variant]
        super().__init__(**row, in_chans=in_chans, num_classes=0)
        for later in self.levels[level + 1 :]:
            setattr(self, later.module, None)
        self.level = level
        self.width, self.reduction = self.levels[level].channels, self.levels[level].reduction

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = self.forward_levels(x)
        for _ in range(self.level):
            next(levels)  # not held
        return next(levels)


class ConvStem(nn.Sequential):
    """Three convolutions, each over squares side by side; (N, C, H, W) -> (N, D, H/16, W/16)."""

    first_conv, reduction = "0.conv", 16

    def __init__(self, in_chans: int, *, widths: Sequence[int], kernels: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for chs, kernel in zip(widths, kernels, strict=True):
            layer = ConvNormAct(in_chans, chs, kernel_size=kernel, stride=kernel, act=nn.GELU)
            layer.conv.padding = (0, 0)
            layers.append(layer)
            in_chans = chs
        last: Any = layers[-1]
        last.conv = nn.Conv2d(last.conv.in_channels, in_chans, kernels[-1], kernels[-1])
        last.bn, last.act = nn.Identity(), nn.Identity()
        super().__init__(*layers)
        self.width = in_chans

    @property
    def multiple(self) -> int:
        """The stride that the convolutions have."""
        return math.prod(max(stride_of(layer)) for layer in self)


class HybridEmbed(PatchEmbed):
    """Patches of a trunk's map to vectors; (N, C, H, W) -> (N, h, w, D).

    Args:
        trunk: ``f(in_chans)``, see :class:`Trunk`.
        project: False takes the trunk's channels as they are.

    The other arguments are :class:`featnet.layers.PatchEmbed`'s.
    """

    def __init__(
        self,
        patch_size: int | Size,
        *,
        trunk: Callable[[int], Any],
        img_size: int | Size,
        in_chans: int,
        embed_dim: int,
        bias: bool = True,
        norm: Layer | None = None,
        pad: bool = False,
        project: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        self.patch_size, self.img_size, self.pad = to_pair(patch_size), to_pair(img_size), pad
        self.backbone = trunk(in_chans)
        names = self.backbone.first_conv
        self.first_conv = f"backbone.{names if isinstance(names, str) else names[0]}"
        proj: Any = nn.Identity()
        if project:
            proj = PatchConv(self.backbone.width, embed_dim, self.patch_size, bias=bias)
        self.proj = proj
        self.norm = norm(embed_dim) if norm else nn.Identity()

    @property
    def grid_size(self) -> Size:
        height, width = (-(-side // self.backbone.reduction) for side in self.img_size)
        return height // self.patch_size[0], width // self.patch_size[1]

    @property
    def reduction(self) -> int:
        return self.backbone.reduction * max(self.patch_size)

    @property
    def stride(self) -> Size:
        """Of the patches on the trunk's map."""
        return stride_of(self.proj)

    @property
    def multiple(self) -> int:
        step = max(self.stride)
        return self.backbone.multiple if step == 1 else step * self.backbone.reduction

    @property
    def output_strides(self) -> list[int]:
        """Powers of two within the trunk, then what divides the patches."""
        inner, side = self.backbone.reduction, max(self.patch_size)
        strides = {2**i for i in range(inner.bit_length())}
        return sorted(strides | {inner * s for s in range(1, side + 1) if side % s == 0})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = fit_to_patches(x, (self.multiple, self.multiple), pad=self.pad)
        return self.norm(self.proj(self.backbone(x)).permute(0, 2, 3, 1))


def bit(depths: Sequence[int]) -> Layer:
    """Patch embedding behind a ResNet of BiT's."""
    return partial(HybridEmbed, trunk=partial(BitTrunk, depths=depths))


def resnet(variant: str, *, level: int = 4) -> Layer:
    """Patch embedding behind a ResNet."""
    return partial(HybridEmbed, trunk=partial(ResNetTrunk, variant=variant, level=level))


CONV_STEM: dict[str, Any] = {
    "no_embed_class": True,
    "embed_layer": partial(
        HybridEmbed,
        project=False,
        trunk=partial(ConvStem, widths=(192, 192, 768), kernels=(4, 2, 2)),
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "vit_base_mci_224": dict(**CONV_STEM, patch_size=1),
    "vit_base_r26_s32_224": dict(embed_layer=bit((2, 2, 2, 2)), patch_size=1),
    "vit_base_r50_s16_224": dict(embed_layer=bit((3, 4, 9)), patch_size=1),
    "vit_base_r50_s16_384": dict(embed_layer=bit((3, 4, 9)), patch_size=1),
    "vit_base_resnet26d_224": dict(embed_layer=resnet("resnet26d"), patch_size=1),
    "vit_base_resnet50d_224": dict(embed_layer=resnet("resnet50d"), patch_size=1),
    "vit_large_r50_s32_224": dict(**LARGE, embed_layer=bit((3, 4, 6, 3)), patch_size=1),
    "vit_large_r50_s32_384": dict(**LARGE, embed_layer=bit((3, 4, 6, 3)), patch_size=1),
    "vit_small_r26_s32_224": dict(**SMALL, embed_layer=bit((2, 2, 2, 2)), patch_size=1),
    "vit_small_r26_s32_384": dict(**SMALL, embed_layer=bit((2, 2, 2, 2)), patch_size=1),
    "vit_small_resnet26d_224": dict(
        embed_layer=resnet("resnet26d"), depth=8, num_heads=8, mlp_ratio=3, patch_size=1
    ),
    "vit_small_resnet50d_s16_224": dict(
        embed_layer=resnet("resnet50d", level=3), depth=8, num_heads=8, mlp_ratio=3, patch_size=1
    ),
    "vit_tiny_r_s16_p8_224": dict(
        **TINY, embed_layer=partial(HybridEmbed, trunk=Stem), patch_size=8
    ),
    "vit_tiny_r_s16_p8_384": dict(
        **TINY, embed_layer=partial(HybridEmbed, trunk=Stem), patch_size=8
    ),
}

FAMILY = Family(model=VisionTransformer, variants=VARIANTS, weights=weights_table("vit_hybrid"))
