"""ViT with relative positions: how far apart two patches are biases their attention.

Papers: ViT (https://arxiv.org/abs/2010.11929); biases that a small MLP gives for the logarithm of
the distance, Swin V2 (https://arxiv.org/abs/2111.09883). The variants are timm's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Attention,
    DistanceMlp,
    Layer,
    PatchDropout,
    PatchEmbed,
    Size,
    TokenHead,
    Tokens,
    get_act,
    get_norm,
)
from ..layers.memo import Memo
from ..layers.relative_position import relative_index
from ..registry import Family, weights_table
from ._vit_blocks import Block, ResPostBlock, ViTSettings
from .vit import VisionTransformer


class RelativeMlp(DistanceMlp):
    """A bias for each pair of positions by their distance; 0 for the tokens before them.

    Args:
        hidden: width of the MLP.
        prefix: tokens before the positions.
    """

    def __init__(self, num_heads: int, *, hidden: int = 128, prefix: int = 0) -> None:
        super().__init__(num_heads, hidden=hidden)
        self.prefix = prefix
        self.memo = Memo()

    def forward(  # type: ignore[override]  # with tokens before the grid
        self, grid: Size, density: int = 1, *, like: torch.Tensor
    ) -> torch.Tensor:
        """(h, w) -> (1, heads, prefix + h * w, prefix + h * w).

        Args:
            density: positions for one of the grid that distances are counted in.
            like: a tensor of the dtype and on the device of the result.
        """
        index = self.memo.get(
            (*grid, like.device), lambda: relative_index(grid, prefix=False, device=like.device)
        )
        bias = self.biases(grid, like, density).flatten(0, 1)[index].permute(2, 0, 1)
        return F.pad(bias, (self.prefix, 0, self.prefix, 0))[None].contiguous()


class RelativeAttention(Attention):
    """Attention with relative positions of its own, unless it is given a bias."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        rel_pos: Layer | None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: Layer | None = None,
        scale_norm: Layer | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            qk_norm=qk_norm,
            scale_norm=scale_norm,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
        self.rel_pos = rel_pos(num_heads) if rel_pos else None
        for name in ("attn_drop", "norm", "proj", "proj_drop"):  # keep checkpoints' order
            self._modules[name] = self._modules.pop(name)

    def forward(  # type: ignore[override]  # the bias comes from the grid
        self, x: torch.Tensor, *, grid: Size, density: int, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if self.rel_pos is not None:
            bias = self.rel_pos(grid, density, like=x)
        return super().forward(x, bias)


class VisionTransformerRelPos(VisionTransformer):
    """A vision transformer whose only positions are relative ones.

    Args:
        rel_pos_dim: width of the MLP that gives the biases.
        shared_rel_pos: one for all blocks.

    The other arguments are :class:`featnet.models.vit.VisionTransformer`'s.
    """

    def __init__(
        self,
        *,
        img_size: int | Size = 224,
        patch_size: int | Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = 1e-6,
        class_token: bool = False,
        fc_norm: bool = False,
        rel_pos_dim: int = 128,
        shared_rel_pos: bool = False,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: str | Layer = "layernorm",
        act_layer: str | Layer = "gelu",
        block_fn: Layer = Block,
    ) -> None:
        Backbone.__init__(self, in_chans=in_chans)  # the parts of a ViT, put together otherwise
        norm, self.strict = get_norm(norm_layer), not dynamic_img_size
        self.has_class_token, self.num_reg_tokens = class_token, 0
        self.no_embed_class = False
        self.patch_embed = PatchEmbed(
            patch_size,
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            pad=dynamic_img_pad,
        )
        self.add_tokens(embed_dim)
        rel_pos = partial(RelativeMlp, hidden=rel_pos_dim, prefix=self.num_prefix_tokens)
        self.shared_rel_pos = rel_pos(num_heads) if shared_rel_pos else None
        self.pos_drop, self.patch_drop = nn.Dropout(0.0), PatchDropout()
        self.norm_pre = nn.Identity()
        settings = ViTSettings(
            num_heads,
            norm=norm,
            act=get_act(act_layer),
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            attn=partial(RelativeAttention, rel_pos=None if shared_rel_pos else rel_pos),
            qk_norm=qk_norm,
            init_values=init_values,
            proj_drop=proj_drop_rate,
            attn_drop=attn_drop_rate,
        )
        self.add_blocks(
            partial(block_fn, embed_dim, settings=settings), embed_dim, depth, drop_path_rate
        )
        self.norm = nn.Identity() if fc_norm else norm(embed_dim)
        self.attn_pool = None
        self.fc_norm = norm(embed_dim) if fc_norm else nn.Identity()
        self.add_head(
            embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=TokenHead("fc_norm", class_token=class_token),
        )

    def add_positions(self) -> None:
        self.pos_embed = None

    def forward_levels(self, x: torch.Tensor) -> Iterator[Tokens]:
        x, grid, prefix = self.embed(x)
        dense = self.patch_embed.dense
        bias = None if self.shared_rel_pos is None else self.shared_rel_pos(grid, dense, like=x)
        for block in self.blocks.children():
            x = self.blocks.run((partial(block, grid=grid, density=dense, bias=bias),), x)
            yield Tokens(x, grid, prefix)  # (N, prefix + h * w, D)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {**super().group_matcher(coarse), "stem": r"^cls_token|patch_embed|shared_rel_pos"}

    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}


VARIANTS: dict[str, dict[str, Any]] = {
    "test_vit_relpos": dict(
        embed_dim=96, depth=9, num_heads=3, mlp_ratio=2, qkv_bias=False, fc_norm=True
    ),
    "vit_relpos_base_patch16_224": dict(qkv_bias=False, fc_norm=True),
    "vit_relpos_base_patch16_cls_224": dict(qkv_bias=False, class_token=True, global_pool="token"),
    "vit_relpos_base_patch16_clsgap_224": dict(qkv_bias=False, fc_norm=True, class_token=True),
    "vit_relpos_base_patch16_plus_240": dict(embed_dim=896, num_heads=14),
    "vit_relpos_base_patch16_rpn_224": dict(qkv_bias=False, block_fn=ResPostBlock),
    "vit_relpos_base_patch32_plus_rpn_256": dict(
        patch_size=32, embed_dim=896, num_heads=14, block_fn=ResPostBlock
    ),
    "vit_relpos_medium_patch16_224": dict(embed_dim=512, num_heads=8, qkv_bias=False, fc_norm=True),
    "vit_relpos_medium_patch16_cls_224": dict(
        embed_dim=512,
        num_heads=8,
        qkv_bias=False,
        fc_norm=False,
        rel_pos_dim=256,
        class_token=True,
        global_pool="token",
    ),
    "vit_relpos_medium_patch16_rpn_224": dict(
        embed_dim=512, num_heads=8, qkv_bias=False, block_fn=ResPostBlock
    ),
    "vit_relpos_small_patch16_224": dict(embed_dim=384, num_heads=6, qkv_bias=False, fc_norm=True),
    "vit_relpos_small_patch16_rpn_224": dict(
        embed_dim=384, num_heads=6, qkv_bias=False, block_fn=ResPostBlock
    ),
    "vit_srelpos_medium_patch16_224": dict(
        embed_dim=512,
        num_heads=8,
        qkv_bias=False,
        fc_norm=False,
        rel_pos_dim=512,
        shared_rel_pos=True,
    ),
    "vit_srelpos_small_patch16_224": dict(
        embed_dim=384,
        num_heads=6,
        qkv_bias=False,
        fc_norm=False,
        rel_pos_dim=384,
        shared_rel_pos=True,
    ),
}

FAMILY = Family(
    model=VisionTransformerRelPos, variants=VARIANTS, weights=weights_table("vit_relpos")
)
