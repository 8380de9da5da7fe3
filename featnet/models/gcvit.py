"""GC ViT: windows whose positions ask each other, or are asked by one query of the whole map.

Paper: https://arxiv.org/abs/2206.09959.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    DistanceTable,
    Layer,
    LayerScale,
    Mlp,
    Phased,
    PreNormBlock,
    Size,
    SqueezeExcite,
    attend,
    block_mask,
    block_side,
    drop_path_rates,
    fit_tables,
    get_act,
    get_norm,
    head_width,
    join_blocks,
    join_heads,
    split_blocks,
    split_heads,
    to_pair,
)
from ..registry import Family, weights_table

# Convolutions ---------------------------------------------------------------------------------


class MbConv(nn.Module):
    """Depthwise convolution, squeeze-excite and 1x1 convolution beside the identity."""

    def __init__(self, dim: int, *, act: Layer) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.act = act()
        self.se = SqueezeExcite(dim, rd_ratio=0.25, act=act, bias=False)
        self.conv_pw = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_pw(self.se(self.act(self.conv_dw(x))))


class Downsample(nn.Module):
    """(N, C, H, W) -> (N, D, H/2, W/2), between two norms."""

    def __init__(self, dim: int, out: int, *, act: Layer, norm: Layer) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.conv_block = MbConv(dim, act=act)
        self.reduction = nn.Conv2d(dim, out, 3, 2, 1, bias=False)
        self.norm2 = norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm2(self.reduction(self.conv_block(self.norm1(x))))


def feature_block(dim: int, halvings: int, *, act: Layer) -> nn.Module:
    """(N, C, H, W) -> (N, C, h, w), the whole map, halved until it is as large as one window."""
    layers = OrderedDict[str, nn.Module]()
    for i in range(1, max(1, halvings) + 1):
        layers[f"conv{i}"] = MbConv(dim, act=act)
        if halvings:
            layers[f"pool{i}"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(layers)))


# Attention ------------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Attention within windows, (N, H, W, C) -> (N, H, W, C).

    What fills the map up to windows of one size is not attended to.

    Args:
        count: windows along each side of the map.
        use_global: all windows have the map's query in place of their own.
    """

    fused_attn = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: Size,
        count: int,
        use_global: bool,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        self.num_heads, self.count, self.use_global = num_heads, count, use_global
        self.rel_pos = DistanceTable(window, num_heads)
        self.qkv = nn.Linear(dim, dim * (2 if use_global else 3), bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
        """Attend; ``query`` (N, h, w, C) is as large as a window."""
        window = block_side(x, self.count)
        masked = block_mask(x, self.count, window, bias=self.rel_pos(window, x)[None])
        parts = self.qkv(split_blocks(x, self.count, window))
        if self.use_global:
            assert query is not None
            k, v = split_heads(parts, 2, self.num_heads)
            (q,) = split_heads(query.flatten(1, 2), 1, self.num_heads)
            q = q.repeat_interleave(self.count**2, 0)
        else:
            q, k, v = split_heads(parts, 3, self.num_heads)
        y = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=masked, windows=True)
        y = self.proj_drop(self.proj(join_heads(y)))
        return join_blocks(y, x.shape, self.count, window)


class Stage(Phased):
    """Half the size, where it is halved, the map's query, blocks; (N, C, H, W).

    With an output stride all of it runs on the interleaved maps: each has a query of its own.

    Args:
        downsample: what halves the size; None for nothing.
        query: gives the map at the size of a window.
    """

    channels_last = False

    def __init__(
        self,
        *,
        downsample: nn.Module | None,
        query: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self.stride = 1 if downsample is None else 2
        self.downsample = nn.Identity() if downsample is None else downsample
        # The second block is the first that asks it
        self.global_block = query if len(blocks) > 1 else nn.Identity()
        self.blocks = Blocks(*blocks)
        self.norm = norm

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x, query = self.downsample(x), None
        if len(self.blocks) > 1:
            query = self.global_block(x).permute(0, 2, 3, 1)
        x = self.blocks.through(x.permute(0, 2, 3, 1), query=query)
        return self.norm(x).permute(0, 3, 1, 2).contiguous()


# The network ----------------------------------------------------------------------------------


class GlobalContextVit(Backbone):
    """A stem at a quarter of the size, then stages, all but the first of which halve it.

    Any size goes in: a stage has as many windows as it was built with, whose tables are resampled,
    and the map is filled up where it has not as many positions.

    Args:
        img_size: (height, width) that windows and their tables are made for.
        window_ratio: the image's side by a window's, of each stage.
        window_size: in place of the ratio, one for all stages or one for each.
        embed_dim: channels of the first stage, which each one doubles.
        depths, num_heads: of each stage.
        mlp_ratio: width of the hidden layers.
        qkv_bias: biases of the projections to queries, keys and values.
        layer_scale: first value of the learnt scale of each branch; None for none.
        norm_layer, norm_layer_cl, norm_eps: of (N, C, H, W), of (N, H, W, C), and both.
        drop_rate, proj_drop_rate, attn_drop_rate: before the classifier, of the blocks' outputs, of
            the attention maps.
        drop_path_rate: of the last block; it grows linearly from 0.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv1", "head.fc"

    def __init__(
        self,
        img_size: int | Size = 224,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        window_ratio: Sequence[int] = (32, 32, 16, 32),
        window_size: int | Sequence[int] | None = None,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 19, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        layer_scale: float | None = None,
        act_layer: str | Layer = "gelu",
        norm_layer: str | Layer = "layernorm2d",
        norm_layer_cl: str | Layer = "layernorm",
        norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        act, norm = get_act(act_layer), partial(get_norm(norm_layer), eps=norm_eps)
        last_norm = partial(get_norm(norm_layer_cl), eps=norm_eps)
        self.img_size = to_pair(img_size)
        scale = nn.Identity if layer_scale is None else partial(LayerScale, init_value=layer_scale)
        down = partial(Downsample, norm=norm)
        self.stem = nn.Sequential()  # (N, 3, H, W) -> (N, C, H/4, W/4)
        self.stem.add_module("conv1", nn.Conv2d(in_chans, embed_dim, 3, 2, 1))
        self.stem.add_module("down", down(embed_dim, embed_dim, act=act))
        self.stages = nn.Sequential()
        height, width = self.img_size
        windows = [(max(1, height // r), max(1, width // r)) for r in window_ratio]
        if window_size is not None:
            sides = [window_size] * len(depths) if isinstance(window_size, int) else window_size
            windows = [to_pair(side) for side in sides]
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (heads, window) in enumerate(zip(num_heads, windows, strict=True)):
            dim, reduction = embed_dim * 2**i, 4 * 2**i
            halvings = int(math.log2(max(1, min(self.img_size) // reduction / min(window))))
            attention = partial(
                WindowAttention,
                num_heads=heads,
                window=window,
                count=2**halvings,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            block = partial(
                PreNormBlock,
                dim,
                mlp=partial(Mlp, hidden=int(dim * mlp_ratio), act=act, drop=proj_drop_rate),
                norm=last_norm,
                scale=scale,
            )
            blocks = [
                block(attention=partial(attention, use_global=j % 2 == 1), drop_path=rate)
                for j, rate in enumerate(rates[i])
            ]
            stage = Stage(
                downsample=down(dim // 2, dim, act=nn.GELU) if i else None,
                query=feature_block(dim, halvings, act=act),
                blocks=blocks,
                norm=last_norm(dim) if i == len(depths) - 1 else nn.Identity(),
            )
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=reduction)
        self.add_head(dim, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from self.through("stages", self.stem(x))  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), ...

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; tables of square windows of another size are resampled."""
        converted = {k: v for k, v in state.items() if not k.endswith("relative_position_index")}
        return fit_tables(converted, self)


WIDE: dict[str, Any] = dict(mlp_ratio=2, layer_scale=1e-5)

VARIANTS: dict[str, dict[str, Any]] = {
    "gcvit_xxtiny": dict(depths=(2, 2, 6, 2)),
    "gcvit_xtiny": dict(depths=(3, 4, 6, 5)),
    "gcvit_tiny": dict(depths=(3, 4, 19, 5)),
    "gcvit_small": dict(embed_dim=96, num_heads=(3, 6, 12, 24), **WIDE),
    "gcvit_base": dict(embed_dim=128, num_heads=(4, 8, 16, 32), **WIDE),
}

FAMILY = Family(model=GlobalContextVit, variants=VARIANTS, weights=weights_table("gcvit"))
