"""Twins: attention within windows and to a condensed map, positions by convolution.

Paper: Twins, Revisiting the Design of Spatial Attention (https://arxiv.org/abs/2104.13840), the
forms PCPVT and SVT; the positions are CPVT's (https://arxiv.org/abs/2102.10882).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    Layer,
    LocalAttention,
    Mlp,
    PositionConv,
    VectorConv,
    drop_path_rates,
    get_norm,
    he_group_fan_out,
    initialize,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table
from .pvt_v2 import Attention as CondensedAttention
from .swin import Block


class PosConv(PositionConv):
    """Positions of (N, H, W, C); the convolution is in a Sequential, as checkpoints have it."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.proj = nn.Sequential(self.proj)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stage(Blocks):
    """Blocks, with the positions behind the first of them."""

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, embed: nn.Module, drop: nn.Module, position: nn.Module
    ) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H/P, W/P); the patches are cut here, where nobody holds them."""
        x = drop(embed(x))  # (N, H/P, W/P, C)
        for i, block in enumerate(self):
            x = self.run([block], x)
            x = x if i else position(x)
        return x.permute(0, 3, 1, 2)


class Twins(Backbone):
    """Patches at a quarter of the size, then four stages, the last three of which halve it.

    With an output stride each block runs on the interleaved maps by themselves, so that windows
    and what is condensed are the original's.

    Args:
        depths, embed_dims, num_heads, mlp_ratios: of each stage.
        sr_ratios: positions a side that attention to the whole map condenses to one.
        wss: window sizes of each stage, whose every other block attends within windows; None for
            attention to the whole map everywhere (PCPVT).
        patch_size: side of the first patches, in pixels.
        drop_rate, pos_drop_rate: before the classifier, and of each stage's input.
        proj_drop_rate, attn_drop_rate: of the blocks' outputs and of the attention maps.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "patch_embeds.0.proj", "head"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        wss: Sequence[int] | None = None,
        patch_size: int = 4,
        norm_layer: str | Layer = "layernorm",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(
            depths=depths,
            embed_dims=embed_dims,
            num_heads=num_heads,
            mlp_ratios=mlp_ratios,
            sr_ratios=sr_ratios,
            wss=depths if wss is None else wss,
        )
        norm = get_norm(norm_layer)
        drops: dict[str, Any] = dict(attn_drop=attn_drop_rate, proj_drop=proj_drop_rate)
        self.patch_embeds, self.pos_drops = nn.ModuleList(), nn.ModuleList()
        in_chs, side, reduction = in_chans, patch_size, patch_size
        for dim in embed_dims:
            self.patch_embeds.append(VectorConv(in_chs, dim, side, stride=side))
            self.pos_drops.append(nn.Dropout(pos_drop_rate))
            in_chs, side = dim, 2
        self.blocks = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            forms: list[Layer] = [
                partial(
                    CondensedAttention,
                    num_heads=heads,
                    sr_ratio=sr_ratios[i],
                    qkv_bias=True,
                    **drops,
                )
            ]
            if wss is not None:
                forms.insert(0, partial(LocalAttention, num_heads=heads, window=wss[i], **drops))
            mlp = partial(Mlp, hidden=int(dim * mlp_ratios[i]), drop=proj_drop_rate)
            stage = Stage(
                *(
                    Block(dim, attention=forms[j % len(forms)], mlp=mlp, norm=norm, drop_path=rate)
                    for j, rate in enumerate(rates[i])
                )
            )
            self.add_stage(f"blocks.{i}", stage, channels=dim, reduction=reduction)
            reduction *= 2
        self.pos_block = nn.ModuleList(PosConv(dim) for dim in embed_dims)
        self.norm = norm(in_chs)
        self.add_head(in_chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_group_fan_out, zero_bias], linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        steps = zip(self.patch_embeds, self.pos_drops, self.blocks, self.pos_block, strict=False)
        for embed, drop, blocks, position in steps:
            x = blocks(x, embed, drop, position)  # (N, C, H/4, W/4), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.finish(y) if index == len(self.levels) - 1 else y

    def no_weight_decay(self) -> set[str]:
        return {f"pos_block.{name}" for name, _ in self.pos_block.named_parameters()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        around = r"^(?:patch_embeds|pos_block)\.(\d+)"
        within = [(r"^blocks\.(\d+)\.(\d+)", None), (around, (0,))]
        blocks = [(r"^(?:blocks|patch_embeds|pos_block)\.(\d+)", None)] if coarse else within
        return {"stem": r"^patch_embeds\.0", "blocks": [*blocks, (r"^norm", (99999,))]}


PCPVT: dict[str, Any] = dict(
    embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4)
)
SVT: dict[str, Any] = dict(wss=(7, 7, 7, 7))

VARIANTS: dict[str, dict[str, Any]] = {
    "twins_pcpvt_small": dict(**PCPVT),
    "twins_pcpvt_base": dict(depths=(3, 4, 18, 3), **PCPVT),
    "twins_pcpvt_large": dict(depths=(3, 8, 27, 3), **PCPVT),
    "twins_svt_small": dict(depths=(2, 2, 10, 4), num_heads=(2, 4, 8, 16), **SVT),
    "twins_svt_base": dict(
        depths=(2, 2, 18, 2), embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), **SVT
    ),
    "twins_svt_large": dict(
        depths=(2, 2, 18, 2), embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), **SVT
    ),
}

FAMILY = Family(model=Twins, variants=VARIANTS, weights=weights_table("twins"))
