"""Swin V2 in Christoph Reich's reading of the paper, from before its authors' code.

Paper: https://arxiv.org/abs/2111.09883; source:
    https://github.com/ChristophReich1996/Swin-Transformer-V2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..layers import Layer, Mlp, Size, drop_path_rates, get_norm, relative_bias, to_pair
from ..registry import Family, weights_table
from .swin import Make, PatchMerging, WindowSize, WindowTransformer, stage_windows, widths
from .swin_v2 import CosineAttention, PostNormBlock, distances


class MetaAttention(CosineAttention):
    """With a bias that a small network gives for each distance's logarithm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: Size,
        shift: Size,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__(
            dim, num_heads, window=window, shift=shift, attn_drop=attn_drop, proj_drop=proj_drop
        )
        self.meta_mlp = Mlp(2, 384, out=num_heads, act=nn.ReLU)
        self.meta_mlp.drop1.p = 0.125

    def add_positions(self) -> None:
        self.logit_scale = nn.Parameter(torch.full((self.num_heads,), math.log(10)))

    def bias(self) -> torch.Tensor:
        like = self.logit_scale
        far = distances(self.window, like=like)
        far = (far.sign() * (far.abs() + 1).log()).to(like.dtype)
        if self.training:  # each pair of positions drops out by itself
            pairs = relative_bias(far, self.window).movedim(0, -1)
            return self.meta_mlp(pairs).movedim(-1, 0)
        return relative_bias(self.meta_mlp(far), self.window)


class Block(PostNormBlock):
    """A post-norm block, with a norm behind some that the identity goes through, too."""

    def __init__(
        self,
        dim: int,
        *,
        attention: Make,
        mlp: Make,
        norm: Make,
        drop_path: float,
        extra_norm: bool,
        init_values: float | None,
    ) -> None:
        super().__init__(dim, attention=attention, mlp=mlp, norm=norm, drop_path=drop_path)
        self.norm3 = norm(dim) if extra_norm else nn.Identity()
        if init_values is not None:
            self.init_norms(init_values)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm3(super().run(x))


class SwinTransformerV2Cr(WindowTransformer):
    """Swin V2, an early reading.

    Args:
        img_size: (height, width) that windows are fitted to: no larger than a stage's map, and not
            shifted where they span it. Other sizes go in all the same.
        patch_size: positions of the first map.
        window_size: an int or (height, width) for all stages, or one for each.
        window_ratio: without ``window_size``: the first map's size by that of the windows; one for
            all stages or one for each.
        always_partition: windows of full size, shifted, whatever the size of the map.
        embed_dim: channels of the first stage, which each one doubles.
        depths, num_heads: of each stage.
        mlp_ratio: width of the hidden layers.
        init_values: first weights of the branches' norms; None leaves them at 1.
        extra_norm_period: a norm behind every so many blocks of a stage; 0 for none.
        extra_norm_stage: a norm at the end of every stage, not only of the last.
        drop_rate: before the classifier.
        proj_drop_rate, attn_drop_rate: of the blocks' outputs and of the attention maps.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        dynamic_img_pad: pad an input that is no multiple of the patch.

    The other arguments are every Backbone's.
    """

    trunk = "stages"

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int = 4,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        window_size: WindowSize | None = None,
        window_ratio: int | Sequence[int] = 8,
        always_partition: bool = False,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 4.0,
        init_values: float | None = 0.0,
        extra_norm_period: int = 0,
        extra_norm_stage: bool = False,
        norm_layer: str | Layer = nn.LayerNorm,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, stages = get_norm(norm_layer), len(depths)
        dims = widths(embed_dim, stages)

        def block(
            i: int, j: int, dim: int, *, window: Size, shift: Size, drop_path: float
        ) -> Block:
            attention = partial(
                MetaAttention,
                num_heads=num_heads[i],
                window=window,
                shift=shift,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            mlp = partial(Mlp, hidden=int(dim * mlp_ratio), drop=proj_drop_rate)
            periodic = bool(extra_norm_period) and (j + 1) % extra_norm_period == 0
            last = j + 1 == depths[i] and (extra_norm_stage or i + 1 == stages)
            return Block(
                dim,
                attention=attention,
                mlp=mlp,
                norm=norm,
                drop_path=drop_path,
                extra_norm=periodic or last,
                init_values=init_values,
            )

        self.add_patches(patch_size, dims[0], img_size=img_size, norm=norm, pad=dynamic_img_pad)
        if window_size is None:
            window_size = windows_by_ratio(self.patch_embed.grid_size, window_ratio, stages)
        self.add_stages(
            dims,
            windows=stage_windows(window_size, stages),
            always_partition=always_partition,
            drop_paths=drop_path_rates(drop_path_rate, depths),
            block=block,
            merge=partial(PatchMerging, norm=norm),
        )
        self.add_head(
            dims[-1], num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converted = {}
        for key, value in super().convert_state_dict(state).items():
            if key.endswith(".tau"):  # the inverse of today's factor
                key, value = key.removesuffix("tau") + "logit_scale", (1 / value).log()
            converted[key] = value
        return converted


def windows_by_ratio(grid: Size, ratio: int | Sequence[int], stages: int) -> list[Size]:
    """Each stage's windows, as shares of the first map.

    Raises:
        ArgumentError: of another length, or no positive ints.
    """
    ratios = (ratio,) * stages if isinstance(ratio, int) else tuple(ratio)
    if len(ratios) != stages or any(not isinstance(r, int) or r < 1 for r in ratios):
        raise ArgumentError(
            f"window_ratio={ratio!r}: a positive int, or one for each of the {stages} stages, is "
            "expected."
        )
    return [to_pair((max(1, grid[0] // r), max(1, grid[1] // r))) for r in ratios]


TINY: dict[str, Any] = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SMALL: dict[str, Any] = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
BASE: dict[str, Any] = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
LARGE: dict[str, Any] = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
HUGE: dict[str, Any] = dict(embed_dim=352, depths=(2, 2, 18, 2), extra_norm_period=6)
GIANT: dict[str, Any] = dict(
    embed_dim=512, depths=(2, 2, 42, 2), num_heads=(16, 32, 64, 128), extra_norm_period=6
)
NORMED: dict[str, Any] = dict(extra_norm_stage=True)

VARIANTS: dict[str, dict[str, Any]] = {
    "swinv2_cr_tiny_224": TINY,
    "swinv2_cr_tiny_384": dict(img_size=384, **TINY),
    "swinv2_cr_tiny_ns_224": TINY | NORMED,
    "swinv2_cr_small_224": SMALL,
    "swinv2_cr_small_384": dict(img_size=384, **SMALL),
    "swinv2_cr_small_ns_224": SMALL | NORMED,
    "swinv2_cr_small_ns_256": dict(img_size=256, **SMALL, **NORMED),
    "swinv2_cr_base_224": BASE,
    "swinv2_cr_base_384": dict(img_size=384, **BASE),
    "swinv2_cr_base_ns_224": BASE | NORMED,
    "swinv2_cr_large_224": LARGE,
    "swinv2_cr_large_384": dict(img_size=384, **LARGE),
    "swinv2_cr_huge_224": dict(num_heads=(8, 16, 32, 64), **HUGE),
    "swinv2_cr_huge_384": dict(img_size=384, num_heads=(11, 22, 44, 88), **HUGE),
    "swinv2_cr_giant_224": GIANT,
    "swinv2_cr_giant_384": dict(img_size=384, **GIANT),
}

FAMILY = Family(model=SwinTransformerV2Cr, variants=VARIANTS, weights=weights_table("swin_v2_cr"))
