"""Pyramid Vision Transformer v2: attention to a condensed map, convolutions for positions.

Paper: https://arxiv.org/abs/2106.13797.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    Layer,
    VectorConv,
    attend,
    drop_path_rates,
    get_act,
    get_norm,
    he_group_fan_out,
    head_width,
    initialize,
    join_heads,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table
from .swin import Block


class Attention(nn.Module):
    """Each position asks the map's patches of ``sr_ratio`` positions a side."""

    fused_attn = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        sr_ratio: int,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, dim * 2, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sr: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim)

    def condense(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, M, C), what can be asked."""
        return self.norm(self.sr(x).flatten(2).transpose(1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).flatten(1, 2).transpose(1, 2)
        kv = self.kv(self.condense(x.permute(0, 3, 1, 2)))
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = join_heads(attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn))
        return self.proj_drop(self.proj(y)).view_as(x)


class LinearAttention(Attention):
    """The map condensed to 7 x 7, whatever its size."""

    def __init__(self, dim: int, num_heads: int, *, sr_ratio: int, **rest: Any) -> None:
        super().__init__(dim, num_heads, sr_ratio=1, **rest)
        del sr_ratio
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()

    def condense(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(super().condense(self.pool(x)))


class ConvMlp(nn.Module):
    """A depthwise 3x3 convolution, by whose padding positions are known, in the hidden layer."""

    def __init__(self, dim: int, hidden: int, *, act: Layer, relu: bool, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = act()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dwconv(self.relu(self.fc1(x).permute(0, 3, 1, 2)))
        x = self.act(x.permute(0, 2, 3, 1))
        return self.drop2(self.fc2(self.drop1(x)))


class Stage(nn.Module):
    """Patches of half the size, where it is halved, blocks, a norm."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = Blocks(*blocks)
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.blocks(self.downsample(x)))  # (N, H/2, W/2, C)
        return x.permute(0, 3, 1, 2)


class PyramidVisionTransformerV2(Backbone):
    """Overlapping patches at a quarter of the size, then four stages, the last three halve it.

    With an output stride each block runs on the interleaved maps by themselves, so that a position
    asks as many others as in the original network.

    Args:
        depths, embed_dims: blocks and channels of each stage.
        num_heads, mlp_ratios: of each stage; one for all or one for each.
        sr_ratios: positions a side that attention condenses to one, of each stage.
        qkv_bias: biases of the projections to queries, keys and values.
        linear: condense to 7 x 7 instead.
        drop_rate: before the classifier.
        proj_drop_rate, attn_drop_rate: of the blocks' outputs and of the attention maps.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "patch_embed.proj", "head"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        num_heads: int | Sequence[int] = (1, 2, 4, 8),
        sr_ratios: int | Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: float | Sequence[float] = (8.0, 8.0, 4.0, 4.0),
        qkv_bias: bool = True,
        linear: bool = False,
        norm_layer: str | Layer = "layernorm",
        act_layer: str | Layer = "gelu",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        attention = partial(
            LinearAttention if linear else Attention,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            proj_drop=proj_drop_rate,
        )
        self.patch_embed = VectorConv(in_chans, embed_dims[0], 7, stride=4, padding=3)
        self.stages = nn.Sequential()
        drops = drop_path_rates(drop_path_rate, depths)
        heads, ratios, hidden = (
            (v,) * len(depths) if isinstance(v, (int, float)) else v
            for v in (num_heads, sr_ratios, mlp_ratios)
        )
        in_chs, reduction = embed_dims[0], 4
        for i, dim in enumerate(embed_dims):
            block = partial(
                Block,
                dim,
                norm=norm,
                attention=partial(attention, num_heads=heads[i], sr_ratio=ratios[i]),
                mlp=partial(
                    ConvMlp, hidden=int(dim * hidden[i]), act=act, relu=linear, drop=proj_drop_rate
                ),
            )
            downsample: nn.Module = nn.Identity()
            if i:
                downsample = VectorConv(in_chs, dim, 3, stride=2, padding=1)
                reduction *= 2
            stage = Stage(downsample, [block(drop_path=rate) for rate in drops[i]], norm(dim))
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=reduction)
            in_chs = dim
        self.add_head(in_chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_group_fan_out, zero_bias], linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.patch_embed(x)  # (N, H/4, W/4, C)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), and so on
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)"}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' numbered names, from 1."""
        if "patch_embed1.proj.weight" not in state:
            return dict(state)
        converted = {}
        for key, value in state.items():
            key = key.replace("patch_embed1.", "patch_embed.").replace("dwconv.dwconv.", "dwconv.")
            for old, new in (("patch_embed", "downsample"), ("block", "blocks"), ("norm", "norm")):
                if match := re.match(rf"{old}(\d+)(.*)", key):
                    key = f"stages.{int(match[1]) - 1}.{new}{match[2]}"
            converted[key] = value
        return converted


SMALL: dict[str, Any] = dict(embed_dims=(32, 64, 160, 256), num_heads=(1, 2, 5, 8))
WIDE: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8))

VARIANTS: dict[str, dict[str, Any]] = {
    "pvt_v2_b0": dict(depths=(2, 2, 2, 2), **SMALL),
    "pvt_v2_b1": dict(depths=(2, 2, 2, 2), **WIDE),
    "pvt_v2_b2": dict(depths=(3, 4, 6, 3), **WIDE),
    "pvt_v2_b3": dict(depths=(3, 4, 18, 3), **WIDE),
    "pvt_v2_b4": dict(depths=(3, 8, 27, 3), **WIDE),
    "pvt_v2_b5": dict(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4), **WIDE),
    "pvt_v2_b2_li": dict(depths=(3, 4, 6, 3), linear=True, **WIDE),
}

FAMILY = Family(
    model=PyramidVisionTransformerV2, variants=VARIANTS, weights=weights_table("pvt_v2")
)
