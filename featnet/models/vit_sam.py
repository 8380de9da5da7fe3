"""The image encoder of Segment Anything: a ViT whose blocks attend within windows, but a few.

Papers: Segment Anything (https://arxiv.org/abs/2304.02643), plain backbones for detection, ViTDet
(https://arxiv.org/abs/2203.16527); decomposed relative positions, MViTv2
(https://arxiv.org/abs/2112.01526).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..features import Feature
from ..layers import (
    Layer,
    LayerNorm2d,
    Mlp,
    PatchEmbed,
    Size,
    attend,
    distances,
    get_act,
    get_norm,
    head_width,
    join_heads,
    join_windows,
    pad_to_windows,
    resample_grid,
    split_heads,
    split_windows,
)
from ..registry import Family, weights_table
from ._vit_blocks import Block, ViTSettings
from .vit import VisionTransformer


class Attention(nn.Module):
    """Attention over a map, biased by how far apart rows and columns are; (N, H, W, C).

    Args:
        size: (height, width) of the map that distances are learnt for; None for no biases.

    The other arguments are :class:`featnet.layers.Attention`'s.
    """

    fused_attn = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        size: Size | None,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: Layer | None = None,
        scale_norm: Layer | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        assert scale_norm is None
        self.num_heads, width = num_heads, head_width(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = qk_norm(width) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(width) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.has_rel_pos = size is not None
        if size is not None:
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * size[0] - 1, width))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * size[1] - 1, width))

    def bias(self, q: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(N, heads, L, C) queries -> (N, heads, L, L)."""
        grid = torch.unflatten(q.flatten(0, 1), 1, (height, width))
        down = torch.einsum("nhwc,hkc->nhwk", grid, distances(self.rel_pos_h, height, height))
        across = torch.einsum("nhwc,wkc->nhwk", grid, distances(self.rel_pos_w, width, width))
        both = down[..., :, None] + across[..., None, :]
        return both.reshape(*q.shape[:3], height * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[1:3]
        q, k, v = split_heads(self.qkv(x.flatten(1, 2)), 3, self.num_heads)  # (N, heads, L, C)
        q, k = self.q_norm(q), self.k_norm(k)
        bias = self.bias(q, height, width) if self.has_rel_pos else None
        x = join_heads(attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=bias))
        return self.proj_drop(self.proj(torch.unflatten(x, 1, (height, width))))


def in_windows(attention: nn.Module, x: torch.Tensor, window: int) -> torch.Tensor:
    """Attention within windows of a map (N, H, W, C), which is padded to whole ones."""
    shape = x.shape[:3]
    x = split_windows(pad_to_windows(x, (window, window)), (window, window))
    return join_windows(attention(x), shape)


class WindowBlock(Block):
    """A ViT's block over a map, whose attention is within windows; 0 for none."""

    def __init__(
        self, dim: int, *, settings: ViTSettings, drop_path: float, window: int, size: Size | None
    ) -> None:
        settings = dataclasses.replace(settings, attn=partial(settings.attn, size=size))
        super().__init__(dim, settings=settings, drop_path=drop_path)
        self.window = window

    def forward(self, x: torch.Tensor, density: int = 1) -> torch.Tensor:  # type: ignore[override]
        """(N, H, W, C) -> (N, H, W, C).

        Args:
            density: positions for one of the map that the window is counted in.
        """
        y = self.norm1(x)
        y = in_windows(self.attn, y, self.window * density) if self.window else self.attn(y)
        x = x + self.drop_path1(self.ls1(y))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class VisionTransformerSAM(VisionTransformer):
    """Patches and their positions, blocks over windows, and a neck of convolutions.

    The neck is the final norm: levels under it have its width.

    Args:
        use_abs_pos, use_rel_pos: positions of the patches; within attention.
        window_size: side of the windows, in patches.
        global_attn_indexes: blocks that attend to the whole map.
        neck_chans: width of the neck; None for a norm alone.

    The other arguments are :class:`featnet.models.vit.VisionTransformer`'s.
    """

    last_fc = "head.fc"

    def __init__(
        self,
        *,
        img_size: int | Size = 1024,
        patch_size: int | Size = 16,
        in_chans: int = 3,
        num_classes: int = 768,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        init_values: float | None = None,
        pre_norm: bool = False,
        use_abs_pos: bool = True,
        use_rel_pos: bool = False,
        window_size: int = 14,
        global_attn_indexes: Sequence[int] = (),
        neck_chans: int | None = 256,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: str | Layer = nn.LayerNorm,
        act_layer: str | Layer = "gelu",
        mlp_layer: Layer = Mlp,
    ) -> None:
        Backbone.__init__(self, in_chans=in_chans)  # the parts of a ViT, put together otherwise
        norm, self.strict = get_norm(norm_layer), not dynamic_img_size
        self.embed_dim = embed_dim
        self.patch_embed = PatchEmbed(
            patch_size,
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            bias=not pre_norm,
            pad=dynamic_img_pad,
        )
        grid = self.patch_embed.grid_size
        learnt = nn.Parameter(torch.zeros(1, *grid, embed_dim)) if use_abs_pos else None
        self.pos_embed = learnt
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.norm_pre = norm(embed_dim) if pre_norm else nn.Identity()
        settings = ViTSettings(
            num_heads,
            norm=norm,
            act=get_act(act_layer),
            attn=Attention,
            mlp=mlp_layer,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            init_values=init_values,
            proj_drop=proj_drop_rate,
            attn_drop=attn_drop_rate,
        )
        windows = [0 if i in global_attn_indexes else window_size for i in range(depth)]
        sizes = ((w, w) if w else grid for w in windows)
        rows = iter([(w, s if use_rel_pos else None) for w, s in zip(windows, sizes, strict=True)])

        def block(*, drop_path: float) -> nn.Module:
            window, size = next(rows)
            return WindowBlock(
                embed_dim, settings=settings, drop_path=drop_path, window=window, size=size
            )

        self.add_blocks(block, embed_dim, depth, drop_path_rate)
        self.neck_chans = neck_chans or embed_dim
        self.neck: nn.Module = LayerNorm2d(embed_dim)
        if neck_chans:
            self.neck = nn.Sequential(
                nn.Conv2d(embed_dim, neck_chans, 1, bias=False),
                LayerNorm2d(neck_chans),
                nn.Conv2d(neck_chans, neck_chans, 3, padding=1, bias=False),
                LayerNorm2d(neck_chans),
            )
        self.add_head(
            self.neck_chans, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )

    def embed_map(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, h, w, D), what the blocks are given."""
        self.check_strict(x)
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + resample_grid(self.pos_embed, (x.shape[1], x.shape[2]))
        return self.norm_pre(self.pos_drop(x))

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:  # type: ignore[override]
        x, dense = self.embed_map(x), self.patch_embed.dense
        for block in self.blocks.children():
            x = self.blocks.run((partial(block, density=dense),), x)
            yield x  # (N, h, w, D)

    def as_map(self, y: torch.Tensor) -> torch.Tensor:
        return y.permute(0, 3, 1, 2).contiguous()

    def finish(self, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """(N, h, w, D) -> (N, 256, h, w)."""
        return self.neck(y.permute(0, 3, 1, 2))

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:  # type: ignore[override]
        return self.finish(y).permute(0, 2, 3, 1)

    def normalized(self, level: Feature) -> Feature:
        return dataclasses.replace(level, channels=self.neck_chans)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^pos_embed|patch_embed|norm_pre", "blocks": r"^blocks\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}


VARIANTS: dict[str, dict[str, Any]] = {
    "samvit_base_patch16": dict(global_attn_indexes=(2, 5, 8, 11), use_rel_pos=True),
    "samvit_base_patch16_224": dict(
        global_attn_indexes=(2, 5, 8, 11),
        use_rel_pos=True,
        use_abs_pos=False,
        img_size=224,
        neck_chans=None,
    ),
    "samvit_huge_patch16": dict(
        embed_dim=1280,
        depth=32,
        num_heads=16,
        global_attn_indexes=(7, 15, 23, 31),
        use_rel_pos=True,
    ),
    "samvit_large_patch16": dict(
        embed_dim=1024,
        depth=24,
        num_heads=16,
        global_attn_indexes=(5, 11, 17, 23),
        use_rel_pos=True,
    ),
}

FAMILY = Family(model=VisionTransformerSAM, variants=VARIANTS, weights=weights_table("vit_sam"))
