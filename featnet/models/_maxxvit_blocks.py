"""Blocks of MaxViT and CoAtNet: inverted residuals, ConvNeXt's, and attention that is told
distances."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import check_choice
from ..layers import (
    DistanceMlp,
    DistanceTable,
    DropPath,
    Layer,
    LayerScale,
    Mlp,
    Phased,
    Size,
    SqueezeExcite,
    attend,
    ceil_div,
    conv2d,
    crop,
    get_act,
    get_norm,
    head_width,
    make_divisible,
    norm_and_act,
    pad_to_windows,
    pointwise,
    same_size,
    split_windows,
)
from ..layers.windows import MASKED, join_windows


@dataclasses.dataclass(frozen=True)
class ConvSettings:
    """Settings of the convolutional blocks.

    Attributes:
        block_type: ``"mbconv"`` or ``"convnext"``.
        expand_ratio, expand_output: hidden width, as a multiple of the output's or the input's.
        kernel_size, group_size: of the convolution in the middle.
        pre_norm_act: an activation behind the first norm.
        output_bias: biases of the last convolution and of the shortcut's.
        stride_mode: ``"dw"``, the convolution in the middle strides, ``"1x1"``, the first one, or
            ``"pool"``, a pool before them.
        pool_type: of the shortcut: ``"avg2"``, ``"max2"``, ``"avg"`` or ``"max"``.
        padding: ``"same"`` as TensorFlow pads.
        attn_early: channel attention before the norm behind it.
        attn_act_layer, attn_ratio: its activation, and its hidden width.
        init_values: first scale of each branch of ConvNeXt's blocks; None for none.
        norm_layer: by default the block's own kind.
        norm_eps: likewise.
    """

    block_type: str = "mbconv"
    expand_ratio: float = 4.0
    expand_output: bool = True
    kernel_size: int = 3
    group_size: int = 1
    pre_norm_act: bool = False
    output_bias: bool = True
    stride_mode: str = "dw"
    pool_type: str = "avg2"
    padding: str = ""
    attn_early: bool = False
    attn_act_layer: str = "silu"
    attn_ratio: float = 0.25
    init_values: float | None = 1e-6
    act_layer: str = "gelu"
    norm_layer: str = ""
    norm_eps: float | None = None

    @property
    def norm(self) -> Layer:
        """``f(channels)`` of a map."""
        mobile = self.block_type == "mbconv"
        eps = self.norm_eps if self.norm_eps is not None else 1e-5 if mobile else 1e-6
        name = self.norm_layer or ("batchnorm2d" if mobile else "layernorm2d")
        return partial(get_norm(name), eps=eps)


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
    """Settings of the blocks with attention.

    Attributes:
        dim_head: channels of a head.
        head_first: queries, keys and values of each head lie together.
        expand_ratio: hidden width of the MLPs.
        expand_first: where a block widens, attention runs at the new width.
        shortcut_bias: bias of the shortcut's convolution.
        pool_type: where a block halves the size.
        rel_pos_type: ``"bias"``, a table; ``"bias_tf"``, TensorFlow's; ``"mlp"``, of logarithms of
            the distances, with a hidden width of ``rel_pos_dim``.
        no_block_attn: MaxViT's blocks have attention over grids only.
        init_values: first scale of each branch; None for none.
        norm_layer, norm_eps: of maps; where channels are last it is layer norm.
        attn_drop, proj_drop: of the attention maps, and of the outputs.
    """

    dim_head: int = 32
    head_first: bool = True
    expand_ratio: float = 4.0
    expand_first: bool = True
    shortcut_bias: bool = True
    pool_type: str = "avg2"
    rel_pos_type: str = "bias"
    rel_pos_dim: int = 512
    no_block_attn: bool = False
    init_values: float | None = None
    act_layer: str = "gelu"
    norm_layer: str = "layernorm2d"
    norm_eps: float = 1e-6
    attn_drop: float = 0.0
    proj_drop: float = 0.0

    @property
    def norm(self) -> Layer:
        """``f(channels)`` of a map."""
        return partial(get_norm(self.norm_layer), eps=self.norm_eps)

    def scale(self, dim: int, *, channels_last: bool) -> nn.Module:
        if self.init_values is None:
            return nn.Identity()
        return LayerScale(dim, self.init_values, channels_last=channels_last)

    def positions(self, window: Size, num_heads: int) -> DistanceTable | DistanceMlp:
        """Make the biases that attention within windows of a size adds."""
        tables = {"bias": DistanceTable, "bias_tf": TensorFlowTable}
        check_choice("rel_pos_type", self.rel_pos_type, (*tables, "mlp"))
        if self.rel_pos_type == "mlp":
            return DistanceMlp(num_heads, hidden=self.rel_pos_dim)
        return tables[self.rel_pos_type](window, num_heads)


# Distances -----------------------------------------------------------------------------------


class TensorFlowTable(DistanceTable):
    """A table with the heads first, and distances from query to key."""

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = (2 * side - 1 for side in self.positions.size)
        return self.num_heads, rows, columns

    def init_table(self) -> None:
        nn.init.normal_(self.relative_position_bias_table, std=0.02)

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        return table.permute(1, 2, 0).flip(0, 1).flatten(0, 1)

    def table(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.unflatten(rows, 0, self.shape[1:]).flip(0, 1).permute(2, 0, 1)


# Attention -----------------------------------------------------------------------------------


class WindowAttention(nn.Module):
    """Attention within windows; (N, h, w, C) -> (N, h, w, D).

    Args:
        window: that the distances are made for.
        out: channels of the output, by default ``dim``.
        width: channels of the heads together, by default ``dim``.
        linear: the kind of the projections; ``pointwise`` for those that are 1x1 convolutions.
    """

    fused_attn = True

    def __init__(
        self,
        dim: int,
        *,
        settings: AttentionSettings,
        window: Size,
        head_first: bool,
        out: int | None = None,
        width: int | None = None,
        linear: Layer = nn.Linear,
    ) -> None:
        super().__init__()
        width = width or dim
        self.num_heads, self.head_first = head_width(width, settings.dim_head), head_first
        self.qkv = linear(dim, 3 * width)
        self.rel_pos = settings.positions(window, self.num_heads)
        self.attn_drop = nn.Dropout(settings.attn_drop)
        self.proj = linear(width, out or dim)
        self.proj_drop = nn.Dropout(settings.proj_drop)
        self.is_map = isinstance(self.qkv, nn.Conv2d)

    def project(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """(N, h, w, C) through a linear layer or a convolution."""
        return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.is_map else layer(x)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``mask``, (N, h * w), is added to the products of each key."""
        n, height, width, _ = x.shape
        x = self.project(self.qkv, x)
        parts = (self.num_heads, 3) if self.head_first else (3, self.num_heads)
        x = x.reshape(n, height * width, *parts, x.shape[-1] // (3 * self.num_heads))
        order = (3, 0, 2, 1, 4) if self.head_first else (2, 0, 3, 1, 4)
        q, k, v = x.permute(order).unbind(0)  # (N, heads, L, C)
        bias = self.rel_pos((height, width), q)[None]
        bias = bias if mask is None else bias + mask[:, None, None]
        y = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=bias, windows=True)
        y = y.transpose(1, 2).reshape(n, height, width, y.shape[1] * y.shape[3])
        return self.proj_drop(self.project(self.proj, y))


def grid_windows(x: torch.Tensor, grid: Size) -> torch.Tensor:
    """(N, H, W, C) -> (N * windows, h, w, C), windows of positions that are evenly spread."""
    n, height, width, channels = x.shape
    down, right = grid
    rows, columns = height // down, width // right
    x = x.reshape(n, down, rows, right, columns, channels)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(n * rows * columns, down, right, channels)


def join_grids(y: torch.Tensor, shape: tuple[int, int, int], grid: Size) -> torch.Tensor:
    """Back from :func:`grid_windows`; a shape (N, H, W) of whole grids."""
    n, height, width = shape
    rows, columns = height // grid[0], width // grid[1]
    y = y.reshape(n, rows, columns, *grid, y.shape[-1])
    return y.permute(0, 3, 1, 4, 2, 5).reshape(n, height, width, y.shape[-1])


class Partition(Phased):
    """Attention within blocks of a map, or within grids that are spread over it; (N, H, W, C).

    A map that is no whole number of windows is filled up; nobody sees what was filled in.
    """

    def partitioned(
        self, x: torch.Tensor, attention: WindowAttention, window: Size, *, grid: bool
    ) -> torch.Tensor:
        n, height, width, _ = x.shape
        size = (height, width)
        filled = (ceil_div(height, window[0]) * window[0], ceil_div(width, window[1]) * window[1])
        mask = None
        if not same_size(size, filled):
            mask = pad_to_windows(x.new_zeros(n, height, width, 1), window, value=MASKED)
            x = pad_to_windows(x, window)
        cut = grid_windows if grid else split_windows
        mask = None if mask is None else cut(mask, window).flatten(1)
        y = attention(cut(x, window), mask)
        if not grid:
            return join_windows(y, (n, height, width))
        return crop(join_grids(y, (n, *filled), window), size)


class PartitionAttention(Partition):
    """Attention and an MLP, each on a norm and beside the identity; (N, H, W, C)."""

    def __init__(
        self, dim: int, *, settings: AttentionSettings, window: Size, grid: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.window, self.grid = window, grid
        norm, scale = partial(nn.LayerNorm, eps=settings.norm_eps), settings.scale
        self.norm1 = norm(dim)
        self.attn = WindowAttention(
            dim, settings=settings, window=window, head_first=settings.head_first
        )
        self.ls1 = scale(dim, channels_last=True)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = Mlp(
            dim,
            int(dim * settings.expand_ratio),
            act=get_act(settings.act_layer),
            drop=settings.proj_drop,
        )
        self.ls2 = scale(dim, channels_last=True)
        self.drop_path2 = DropPath(drop_path)

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        return self.partitioned(x, self.attn, self.window, grid=self.grid)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.mix(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ParallelAttention(PartitionAttention):
    """Blocks and grids side by side, each for half of the channels of the output."""

    def __init__(
        self, dim: int, *, settings: AttentionSettings, window: Size, drop_path: float
    ) -> None:
        super().__init__(dim, settings=settings, window=window, grid=False, drop_path=drop_path)
        del self.attn
        make = partial(
            WindowAttention,
            dim,
            settings=settings,
            window=window,
            head_first=settings.head_first,
            out=dim // 2,
        )
        rest = {name: self._modules.pop(name) for name in list(self._modules)[1:]}
        self.attn_block, self.attn_grid = make(), make()
        self._modules.update(rest)  # the order of checkpoints

    def mix(self, x: torch.Tensor) -> torch.Tensor:
        parts = ((self.attn_block, False), (self.attn_grid, True))
        return torch.cat(
            [self.partitioned(x, each, self.window, grid=grid) for each, grid in parts], -1
        )


# Convolutions --------------------------------------------------------------------------------

POOLS: dict[str, Layer] = {
    "max": partial(nn.MaxPool2d, 3, 2, 1),
    "max2": partial(nn.MaxPool2d, 2, 2, ceil_mode=True),
    "avg": partial(nn.AvgPool2d, 3, 2, 1, count_include_pad=False),
    "avg2": partial(nn.AvgPool2d, 2, 2, ceil_mode=True, count_include_pad=False),
}


class Downsample2d(nn.Module):
    """A pool of stride 2, and a convolution to another width."""

    def __init__(self, dim: int, out: int, *, pool_type: str, bias: bool = True) -> None:
        super().__init__()
        check_choice("pool_type", pool_type, POOLS)
        self.pool = POOLS[pool_type]()
        self.expand = nn.Identity() if dim == out else nn.Conv2d(dim, out, 1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expand(self.pool(x))


class MbConvBlock(nn.Module):
    """1x1, kxk, channel attention, 1x1, on a norm, beside a pooled shortcut."""

    def __init__(
        self, in_chs: int, chs: int, *, stride: int, settings: ConvSettings, drop_path: float
    ) -> None:
        super().__init__()
        check_choice("stride_mode", settings.stride_mode, ("pool", "1x1", "dw"))
        mid = make_divisible((chs if settings.expand_output else in_chs) * settings.expand_ratio)
        strides = {mode: stride if settings.stride_mode == mode else 1 for mode in ("1x1", "dw")}
        pool = partial(Downsample2d, pool_type=settings.pool_type)
        act = get_act(settings.act_layer)
        normed = partial(norm_and_act, settings.norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = pool(in_chs, chs, bias=settings.output_bias)
        self.pre_norm, self.pre_act = normed(in_chs, act if settings.pre_norm_act else None)
        pools = stride == 2 and settings.stride_mode == "pool"
        self.down = Downsample2d(in_chs, in_chs, pool_type="avg2") if pools else nn.Identity()
        conv = partial(conv2d, pad_type=settings.padding)
        groups = mid // settings.group_size if settings.group_size else 1
        self.conv1_1x1 = nn.Conv2d(in_chs, mid, 1, strides["1x1"], bias=False)
        self.norm1, self.act1 = normed(mid, act)
        self.conv2_kxk = conv(mid, mid, settings.kernel_size, stride=strides["dw"], groups=groups)
        gate = SqueezeExcite(
            mid,
            rd_channels=int(settings.attn_ratio * (chs if settings.expand_output else mid)),
            act=partial(get_act(settings.attn_act_layer), inplace=True),
        )
        self.se_early = gate if settings.attn_early else nn.Identity()
        self.norm2, self.act2 = normed(mid, act)
        self.se = nn.Identity() if settings.attn_early else gate
        self.conv3_1x1 = nn.Conv2d(mid, chs, 1, bias=settings.output_bias)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1_1x1(self.down(self.pre_act(self.pre_norm(x))))
        y = self.act1(self.norm1(y))  # step by step: no wide map is held when the next is there
        y = self.conv2_kxk(y)
        y = self.se_early(y)
        y = self.act2(self.norm2(y))
        y = self.se(y)
        y = self.conv3_1x1(y)
        return self.drop_path(y) + self.shortcut(x)


class ConvNeXtBlock(nn.Module):
    """ConvNeXt's, which may halve the size."""

    def __init__(
        self, in_chs: int, chs: int, *, stride: int, settings: ConvSettings, drop_path: float
    ) -> None:
        super().__init__()
        check_choice("stride_mode", settings.stride_mode, ("pool", "dw"))
        bias, pools = settings.output_bias, settings.stride_mode == "pool"
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = Downsample2d(in_chs, chs, pool_type="avg2")
        elif in_chs != chs:
            self.shortcut = nn.Conv2d(in_chs, chs, 1, bias=bias)
        self.down: nn.Module = nn.Identity()
        if pools and stride == 2:
            self.down = Downsample2d(in_chs, in_chs, pool_type="avg2")
        step = 1 if pools else stride
        self.conv_dw = nn.Conv2d(in_chs, chs, 7, step, 3, groups=in_chs, bias=bias)
        self.norm = settings.norm(chs)
        self.mlp = Mlp(
            chs,
            int(settings.expand_ratio * chs),
            bias=bias,
            act=get_act(settings.act_layer),
            linear=pointwise,
        )
        scale = settings.init_values
        self.ls = LayerScale(chs, scale, channels_last=False) if scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ls(self.mlp(self.norm(self.conv_dw(self.down(x)))))
        return self.drop_path(y) + self.shortcut(x)


def conv_block(in_chs: int, chs: int, *, settings: ConvSettings, **rest: Any) -> nn.Module:
    """A convolutional block of the settings' type."""
    kinds: dict[str, Layer] = {"mbconv": MbConvBlock, "convnext": ConvNeXtBlock}
    check_choice("block_type", settings.block_type, kinds)
    return kinds[settings.block_type](in_chs, chs, settings=settings, **rest)


# Blocks of the stages ------------------------------------------------------------------------


class TransformerBlock(Phased):
    """Attention over the whole map, then an MLP; it may halve the size: CoAtNet's.

    (N, C, H, W).

    Args:
        size: (height, width) of the output that the distances are made for.
    """

    channels_last = False

    def __init__(
        self,
        in_chs: int,
        chs: int,
        *,
        stride: int,
        size: Size,
        settings: AttentionSettings,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.stride = stride
        norm, pool = settings.norm, settings.pool_type
        if stride == 2:
            self.shortcut: nn.Module = Downsample2d(
                in_chs, chs, pool_type=pool, bias=settings.shortcut_bias
            )
            down = Downsample2d(in_chs, in_chs, pool_type=pool)
            self.norm1: nn.Module = nn.Sequential(OrderedDict(norm=norm(in_chs), down=down))
        else:
            self.shortcut, self.norm1 = nn.Identity(), norm(in_chs)
        self.attn = WindowAttention(
            in_chs,
            settings=settings,
            window=size,
            head_first=True,
            out=chs,
            width=chs if settings.expand_first else in_chs,
            linear=pointwise,
        )
        self.ls1 = settings.scale(chs, channels_last=False)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(chs)
        self.mlp = Mlp(
            chs,
            int(chs * settings.expand_ratio),
            act=get_act(settings.act_layer),
            drop=settings.proj_drop,
            linear=pointwise,
        )
        self.ls2 = settings.scale(chs, channels_last=False)
        self.drop_path2 = DropPath(drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attn(self.norm1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.shortcut(x) + self.drop_path1(self.ls1(y))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
