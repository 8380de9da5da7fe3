"""NesT: blocks of a map attend each by itself, and from level to level four become one.

Paper: https://arxiv.org/abs/2105.12723.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError
from ..layers import (
    Blocks,
    Layer,
    Mlp,
    PatchEmbed,
    Size,
    attend,
    block_mask,
    block_side,
    ceil_div,
    crop,
    drop_path_rates,
    get_act,
    get_norm,
    head_width,
    initialize,
    join_blocks,
    resample_grid,
    split_blocks,
    split_heads,
    split_windows,
    to_pair,
    trunc_normal,
    trunc_normal_,
    zero_bias,
)
from ..layers.cells import SameMaxPool2d
from ..registry import Family, weights_table
from .swin import Block


class BlockAttention(nn.Module):
    """Attention within each of ``count * count`` blocks of a map; (N, H, W, C) -> (N, H, W, C).

    What fills the map up to blocks of one size is not attended to. The heads' answers are joined
    channel by channel, not head by head.
    """

    fused_attn = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        count: int,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        self.num_heads, self.count = num_heads, count
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        side = block_side(x, self.count)
        bias = block_mask(x, self.count, side)
        q, k, v = split_heads(self.qkv(split_blocks(x, self.count, side)), 3, self.num_heads)
        y = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=bias, windows=True)
        y = self.proj_drop(self.proj(y.permute(0, 2, 3, 1).flatten(2)))
        return join_blocks(y, x.shape, self.count, side)


class ConvPool(nn.Module):
    """Convolution, norm and max pool, which join four blocks; (N, C, H, W) -> (N, D, H/2, W/2)."""

    def __init__(self, in_chs: int, out_chs: int, *, norm: Layer, pad_type: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, padding=1)
        self.norm = norm(out_chs)
        self.pool = SameMaxPool2d(3, 2) if pad_type == "same" else nn.MaxPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class NestLevel(nn.Module):
    """Half the size, where it is halved, positions, blocks; (N, C, H, W).

    Args:
        dim: channels of the positions.
        count: blocks along each side of the map.
        side: (height, width) of the blocks that the positions are made for.
        pool: what halves the size.
        layers: of the transformer.
    """

    def __init__(
        self, dim: int, *, count: int, side: Size, pool: nn.Module, layers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.count, self.side = count, side
        self.pos_embed = nn.Parameter(torch.empty(1, count**2, side[0] * side[1], dim))
        trunc_normal_(self.pos_embed, std=0.02)
        self.pool = pool
        self.transformer_encoder = Blocks(*layers)

    def positions(self, size: Size) -> torch.Tensor:
        """(1, H, W, C) for a map of ``size``; with an output stride those of neighbours that the
        original has as one position are the same."""
        table = as_grid(self.pos_embed, self.count, self.side)
        density = max(getattr(layer, "density", 1) for layer in self.transformer_encoder)
        grid = resample_grid(table, (ceil_div(size[0], density), ceil_div(size[1], density)))
        if density == 1:
            return grid
        grid = grid.repeat_interleave(density, 1).repeat_interleave(density, 2)
        return crop(grid, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(x).permute(0, 2, 3, 1)
        x = self.transformer_encoder(x + self.positions((x.shape[1], x.shape[2])))
        return x.permute(0, 3, 1, 2)


def as_grid(table: torch.Tensor, count: int, side: Size) -> torch.Tensor:
    """Positions block by block, (1, count * count, h * w, C) -> (1, count * h, count * w, C)."""
    table = table.reshape(1, count, count, *side, -1).transpose(2, 3)
    return table.flatten(3, 4).flatten(1, 2)


def as_blocks(grid: torch.Tensor, side: Size) -> torch.Tensor:
    """Undo :func:`as_grid`."""
    return split_windows(grid, side).flatten(1, 2)[None]


class Nest(Backbone):
    """Patches, then levels, all but the first of which halve the size and the number of blocks
    along each side; the last is one block.

    Any size that is a multiple of the patch goes in: the number of blocks stays, positions are
    resampled, and blocks at the end are filled up where the map has no as many positions.

    Args:
        img_size: (height, width) that the positions are made for.
        patch_size: positions of the first map.
        embed_dims, depths, num_heads: channels, layers and heads of each level.
        mlp_ratio: width of the hidden layers.
        qkv_bias: biases of the projections to queries, keys and values.
        pad_type: of the pools: ``""`` pads both sides alike, ``"same"`` as TensorFlow does.
        drop_rate: before the classifier.
        proj_drop_rate, attn_drop_rate: of the layers' outputs and of the attention maps.
        drop_path_rate: of the last layer; the rate grows linearly from 0 at the first.
        dynamic_img_pad: pad an input that is no multiple of the patch.

    The other arguments are every Backbone's.

    Raises:
        ArgumentError: a size that is no whole number of patches in every block.
    """

    first_conv, last_fc = "patch_embed.proj", "head"

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int = 4,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (128, 256, 512),
        num_heads: Sequence[int] = (4, 8, 16),
        depths: Sequence[int] = (2, 2, 20),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: str | Layer = "layernorm",
        act_layer: str | Layer = "gelu",
        pad_type: str = "",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.5,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, act, self.img_size = get_norm(norm_layer), get_act(act_layer), to_pair(img_size)
        most = 2 ** (len(depths) - 1)  # blocks along each side of the first map
        multiple = patch_size * most
        if any(side % multiple or side < multiple for side in self.img_size):
            raise ArgumentError(f"img_size={img_size!r}: a multiple of {multiple} is expected.")
        side = (self.img_size[0] // multiple, self.img_size[1] // multiple)
        self.patch_embed = PatchEmbed(
            patch_size,
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dims[0],
            pad=dynamic_img_pad,
        )
        self.size_divisibility = self.patch_embed.multiple
        self.levels = nn.Sequential()  # type: ignore[misc,assignment]
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            count = most // 2**i
            attention = partial(
                BlockAttention,
                num_heads=heads,
                count=count,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            mlp = partial(Mlp, hidden=int(dim * mlp_ratio), act=act, drop=proj_drop_rate)
            layer = partial(Block, dim, attention=attention, mlp=mlp, norm=norm)
            pool: nn.Module = nn.Identity()
            if i:
                pool = ConvPool(embed_dims[i - 1], dim, norm=norm, pad_type=pad_type)
            layers = [layer(drop_path=rate) for rate in rates[i]]
            level = NestLevel(dim, count=count, side=side, pool=pool, layers=layers)
            self.add_stage(f"levels.{i}", level, channels=dim, reduction=patch_size * 2**i)
        self.norm = norm(embed_dims[-1])
        self.add_head(
            embed_dims[-1], num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, conv=[trunc_normal, zero_bias], linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.patch_embed(x).permute(0, 3, 1, 2)
        yield from self.through("levels", x)  # (N, C, H/4, W/4), (N, C, H/8, W/8), ...

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        if index < len(self._levels) - 1:
            return y
        return self.norm(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.normalize(y, len(self._levels) - 1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        layers = r"^levels\.(\d+)" if coarse else r"^levels\.(\d+)\.transformer_encoder\.(\d+)"
        pools = (r"^levels\.(\d+)\.(?:pool|pos_embed)", (0,))
        return {"stem": r"^patch_embed", "blocks": [(layers, None), pools, (r"^norm", (99999,))]}

    def no_weight_decay(self) -> set[str]:
        return {f"levels.{i}.pos_embed" for i in range(len(self._levels))}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; positions of square maps of another size are resampled."""
        converted = dict(state)
        for name, level in self.named_modules():
            table = converted.get(key := f"{name}.pos_embed")
            if table is None or not isinstance(level, NestLevel):
                continue
            side = round(table.shape[2] ** 0.5)
            if table.shape[2] != level.pos_embed.shape[2] and side**2 == table.shape[2]:
                size = (level.count * level.side[0], level.count * level.side[1])
                grid = resample_grid(as_grid(table, level.count, (side, side)), size)
                converted[key] = as_blocks(grid, level.side)
        return converted


TINY: dict[str, Any] = dict(embed_dims=(96, 192, 384), num_heads=(3, 6, 12), depths=(2, 2, 8))
SMALL: dict[str, Any] = dict(embed_dims=(96, 192, 384), num_heads=(3, 6, 12), depths=(2, 2, 20))
BASE: dict[str, Any] = dict(embed_dims=(128, 256, 512), num_heads=(4, 8, 16), depths=(2, 2, 20))

VARIANTS: dict[str, dict[str, Any]] = {
    "nest_base": BASE,
    "nest_small": SMALL,
    "nest_tiny": TINY,
    "nest_base_jx": dict(pad_type="same", **BASE),
    "nest_small_jx": dict(pad_type="same", **SMALL),
    "nest_tiny_jx": dict(pad_type="same", **TINY),
}

FAMILY = Family(model=Nest, variants=VARIANTS, weights=weights_table("nest"))
