"""BEiT, a vision transformer whose attention knows how far apart two patches are.

Papers: BEiT (https://arxiv.org/abs/2106.08254), BEiT v2 (https://arxiv.org/abs/2208.06366). EVA,
which came from it, has all that it has but the relative positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..layers import Layer, RelativePositions, Size, to_pair
from ..registry import Family, weights_table
from .eva import Eva, KeylessAttention


class RelativeAttention(KeylessAttention):
    """Attention with a learnt bias for each offset between two patches, and for the class token.

    Args:
        positions: of the map that the biases are made for.

    The other arguments are :class:`featnet.layers.Attention`'s.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        positions: RelativePositions,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop
        )
        self.positions = positions
        self.relative_position_bias_table = nn.Parameter(torch.zeros(positions.length, num_heads))

    def forward(  # type: ignore[override]  # its bias is its own
        self, x: torch.Tensor, *, grid: Size, density: int
    ) -> torch.Tensor:
        bias = self.positions.bias(self.relative_position_bias_table, grid, density)
        return super().forward(x, bias[None])


class Beit(Eva):
    """A vision transformer with a table of relative positions in every block.

    Args:
        img_size: of the images that the tables are made for; for others they are drawn out, see
            :func:`featnet.layers.relative_position.spread`.
        fc_norm: the norm is behind the pooling; None for: with ``avg``.

    The other arguments are :class:`featnet.models.eva.Eva`'s.
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
        init_values: float | None = None,
        fc_norm: bool | None = None,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 0.001,
        norm_layer: str | Layer = "layernorm",
    ) -> None:
        (rows, columns), (height, width) = to_pair(patch_size), to_pair(img_size)
        positions = RelativePositions((height // rows, width // columns), prefix=True)
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            init_values=init_values,
            fc_norm=fc_norm,
            abs_pos_embed=False,
            dynamic_img_size=dynamic_img_size,
            dynamic_img_pad=dynamic_img_pad,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            head_init_scale=head_init_scale,
            norm_layer=norm_layer,
            attn_layer=partial(RelativeAttention, positions=positions),
        )

    def context(self, grid: Size, device: torch.device) -> Sequence[dict[str, Any]]:
        where = {"grid": grid, "density": self.patch_embed.dense}
        return [where for _ in self.blocks.children()]

    def no_weight_decay(self) -> set[str]:
        tables = {n for n, _ in self.named_parameters() if n.endswith("position_bias_table")}
        return {"pos_embed", "cls_token", *tables}


LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16, "init_values": 1e-05}

VARIANTS: dict[str, Any] = {
    "beit_base_patch16_224": dict(init_values=0.1),
    "beit_base_patch16_384": dict(img_size=384, init_values=0.1),
    "beit_large_patch16_224": dict(**LARGE),
    "beit_large_patch16_384": dict(**LARGE, img_size=384),
    "beit_large_patch16_512": dict(**LARGE, img_size=512),
    "beitv2_base_patch16_224": dict(init_values=1e-05),
    "beitv2_large_patch16_224": dict(**LARGE),
}

FAMILY = Family(model=Beit, variants=VARIANTS, weights=weights_table("beit"))
