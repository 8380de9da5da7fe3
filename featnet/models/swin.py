"""Swin: attention within windows, which every other block shifts by half of their size.

Papers: Swin (https://arxiv.org/abs/2103.14030); S3, windows of a searched size
(https://arxiv.org/abs/2111.14725).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError
from ..layers import (
    DropPath,
    Layer,
    Memo,
    Mlp,
    PatchEmbed,
    Phased,
    Size,
    Stage,
    attend,
    drop_path_rates,
    for_window,
    get_act,
    get_norm,
    head_width,
    initialize,
    join_heads,
    join_windows,
    pad_to_windows,
    relative_bias,
    resample_patches,
    shift_mask,
    split_heads,
    split_windows,
    to_pair,
    trunc_normal,
    trunc_normal_,
    zero_bias,
)
from ..registry import Family, weights_table

WindowSize = int | Size | Sequence[int | Size]
Make = Callable[..., nn.Module]


class WindowAttention(nn.Module):
    """Attention within windows of a map; (N, H, W, C) -> (N, H, W, C).

    A map that is no whole number of windows is filled up with zeros, which are attended to.

    Args:
        window: (height, width) of a window.
        shift: number of positions that windows begin before the map; positions from opposite
            borders, which then share a window, do not see each other.
    """

    fused_attn = True
    scale: float | None = None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: Size,
        shift: Size,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.memo = Memo()
        self.add_positions()
        width = (head_dim or head_width(dim, num_heads)) * num_heads
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(width, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def add_positions(self) -> None:
        """Parameters of the relative positions."""
        rows, columns = (2 * side - 1 for side in self.window)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(rows * columns, self.num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def bias(self) -> torch.Tensor:
        """(heads, L, L), what is added to the products in every window."""
        rows, columns = (2 * side - 1 for side in self.window)
        table = self.relative_position_bias_table.reshape(rows, columns, self.num_heads)
        return relative_bias(table, self.window)

    def attended_windows(self, size: Size) -> list[Size | None]:
        """(window, shift) of the rows and of the columns of a map; None where the shift brings
        opposite borders together: on a map that is no whole number of windows the mask misses what
        it is to keep apart."""
        sides = zip(size, self.window, self.shift, strict=True)
        return [None if s and length % w else (w, s) for length, w, s in sides]

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> queries, keys and values, (..., 3 * heads * C')."""
        return self.qkv(x)

    def compare(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys, (N * windows, heads, L, C'), as their products are taken."""
        return q, k

    def masked(self, bias: torch.Tensor, n: int, size: Size) -> torch.Tensor:
        """(n * windows, heads, L, L), the bias with the mask of each window of shifted maps."""
        shifts = partial(shift_mask, size, self.window, self.shift, like=bias)
        if torch.compiler.is_compiling():  # no dimension that counts the windows of one map
            return bias + shifts(count=n)[:, None]
        mask = self.memo.get((size, bias.dtype, bias.device), shifts)
        return (bias + mask[:, None]).repeat(n, 1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, height, width, _ = x.shape
        shifted = any(self.shift)
        if shifted:
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        x = pad_to_windows(x, self.window)
        filled = (x.shape[1], x.shape[2])
        # windows before the projection, whose three parts then need no copies
        x = split_windows(x, self.window).flatten(1, 2)
        q, k, v = split_heads(self.project(x), 3, self.num_heads)
        q, k = self.compare(q, k)
        # each window of a shifted map has its own
        bias = self.masked(self.bias(), n, filled) if shifted else self.bias()[None]
        y = attend(
            q,
            k,
            v,
            drop=self.attn_drop,
            fused=self.fused_attn,
            bias=bias,
            scale=self.scale,
            windows=True,
        )
        y = join_windows(torch.unflatten(join_heads(y), 1, self.window), (n, height, width))
        y = self.proj_drop(self.proj(y))
        return y.roll(self.shift, (1, 2)) if shifted else y


class Block(Phased):
    """Attention within windows and MLP, each on a norm and beside the identity."""

    def __init__(
        self, dim: int, *, attention: Make, mlp: Make, norm: Make, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attention(dim)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = mlp(dim)
        self.drop_path2 = DropPath(drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class PatchMerging(Phased):
    """2 x 2 positions to one, of other channels; an odd map gets a row or column of zeros."""

    stride = 2

    def __init__(self, dim: int, out: int, *, norm: Make) -> None:
        super().__init__()
        self.norm = norm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out, bias=False)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) -> (N, H/2, W/2, 4C), columns before rows."""
        n, height, width, channels = (x := pad_to_windows(x, (2, 2))).shape
        x = x.view(n, height // 2, 2, width // 2, 2, channels)
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduction(self.norm(self.gather(x)))


def stage_windows(window_size: WindowSize, stages: int) -> list[Size]:
    """(height, width) of each stage's windows.

    Args:
        window_size: an int or (height, width) for all stages, or a sequence of these, one for each.
            Two ints are (height, width).

    Raises:
        ArgumentError: of another length, or no positive ints.
    """
    each: Any = window_size
    if isinstance(window_size, int) or (len(window_size) == 2 and isinstance(window_size[0], int)):
        each = [window_size] * stages
    pairs = [to_pair(size) for size in each]
    if len(pairs) != stages or any(side < 1 for pair in pairs for side in pair):
        raise ArgumentError(
            f"window_size={window_size!r}: a positive int, (height, width), or one of these for "
            f"each of the {stages} stages is expected."
        )
    return pairs


def fit_window(grid: Size, window: Size, *, always_partition: bool) -> tuple[Size, Size]:
    """Windows no larger than the map that they are made for, which are shifted by half.

    Where one spans the map, it is not shifted: there is nothing beside it.

    Returns:
        the window, and the shift of every other block.
    """
    half = (window[0] // 2, window[1] // 2)
    if always_partition:
        return window, half
    sides = list(zip(grid, window, half, strict=True))
    rows, columns = (min(g, w) for g, w, _ in sides)
    down, right = (0 if g <= w else h for g, w, h in sides)
    return (rows, columns), (down, right)


class WindowTransformer(Backbone):
    """The form of all versions of Swin: patches, then stages of blocks, all but the first of which
    halve the size. Any size that is a multiple of the patch goes in, whatever ``img_size``.

    With an output stride a block's windows are those of the original network: each of the
    interleaved maps has its own.
    """

    first_conv, last_fc = "patch_embed.proj", "head.fc"
    trunk = "layers"  # what checkpoints call the stages

    def add_patches(
        self, patch_size: int, dim: int, *, img_size: int | Size, norm: Make, pad: bool
    ) -> None:
        """Add the embedding of patches."""
        self.patch_embed = PatchEmbed(
            patch_size, img_size=img_size, in_chans=self.in_chans, embed_dim=dim, norm=norm, pad=pad
        )
        self.img_size = self.patch_embed.img_size
        self.size_divisibility = self.patch_embed.multiple

    def add_stages(
        self,
        dims: Sequence[int],
        *,
        windows: Sequence[Size],
        always_partition: bool,
        drop_paths: Sequence[Sequence[float]],
        block: Make,
        merge: Make,
    ) -> None:
        """Add the stages.

        Args:
            windows: of each stage, where the map is large enough.
            drop_paths: of each block of each stage.
            block: ``f(stage, index, dim, window=, shift=, drop_path=)``.
            merge: ``f(dim, out)``, what halves the size.
        """
        self.add_module(self.trunk, nn.Sequential())
        for i, (dim, window, rates) in enumerate(zip(dims, windows, drop_paths, strict=True)):
            rows, columns = (-(-side // 2**i) for side in self.patch_embed.grid_size)
            window, half = fit_window((rows, columns), window, always_partition=always_partition)
            blocks = [
                block(i, j, dim, window=window, shift=half if j % 2 else (0, 0), drop_path=rate)
                for j, rate in enumerate(rates)
            ]
            stage = Stage(blocks, downsample=merge(dims[i - 1], dim) if i else nn.Identity())
            reduction = max(self.patch_embed.patch_size) * 2**i
            self.add_stage(f"{self.trunk}.{i}", stage, channels=dim, reduction=reduction)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.patch_embed(x)  # (N, H/4, W/4, C)
        for stage in self.get_submodule(self.trunk).children():
            x = stage(x)  # (N, H/4, W/4, C), (N, H/8, W/8, 2C), and so on
            yield x

    def as_map(self, y: torch.Tensor) -> torch.Tensor:
        return y.permute(0, 3, 1, 2)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.as_map(self.normalize(y, len(self.levels) - 1))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stage = rf"^{self.trunk}\.(\d+)"
        within = [
            (rf"{stage}\.downsample", (0,)),
            (rf"{stage}\.\w+\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": stage if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' downsample at the end of a stage."""
        ends = f"{self.trunk}.0.downsample.reduction.weight" in state
        converted = {}
        for key, value in state.items():
            if key.endswith(("relative_position_index", "relative_coords_table", "attn_mask")):
                continue  # computed here
            if key == "patch_embed.proj.weight":
                value = resample_patches(value, self.patch_embed.patch_size)
            if ends:
                key = re.sub(
                    r"layers\.(\d+)\.downsample",
                    lambda m: f"layers.{int(m[1]) + 1}.downsample",
                    key,
                )
            converted[re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", key)] = value
        return converted


class SwinTransformer(WindowTransformer):
    """Swin.

    Args:
        img_size: (height, width) that windows are fitted to: no larger than a stage's map, and not
            shifted where they span it. Other sizes go in all the same.
        patch_size: positions of the first map.
        embed_dim: channels of the first stage, which each one doubles; or of each stage.
        depths, num_heads: of each stage.
        head_dim: channels of each head, where it is not ``dim / num_heads``; one for all stages or
            one for each.
        window_size: an int or (height, width) for all stages, or one for each.
        always_partition: windows of full size, shifted, whatever the size of the map.
        mlp_ratio: one for all stages or one for each.
        qkv_bias: biases of the projections to queries, keys and values.
        act_layer: of the MLPs.
        drop_rate: before the classifier.
        proj_drop_rate, attn_drop_rate: of the blocks' outputs and of the attention maps.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        dynamic_img_pad: pad an input that is no multiple of the patch.

    The other arguments are every Backbone's.
    """

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int = 4,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        head_dim: int | Sequence[int | None] | None = None,
        window_size: WindowSize = 7,
        always_partition: bool = False,
        mlp_ratio: float | Sequence[float] = 4.0,
        qkv_bias: bool = True,
        act_layer: str | Layer = "gelu",
        norm_layer: str | Layer = nn.LayerNorm,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, act, stages = get_norm(norm_layer), get_act(act_layer), len(depths)
        dims = widths(embed_dim, stages)
        head_dims = head_dim if isinstance(head_dim, Sequence) else (head_dim,) * stages
        ratios = mlp_ratio if isinstance(mlp_ratio, Sequence) else (mlp_ratio,) * stages

        def block(
            i: int, j: int, dim: int, *, window: Size, shift: Size, drop_path: float
        ) -> Block:
            attention = partial(
                WindowAttention,
                num_heads=num_heads[i],
                window=window,
                shift=shift,
                head_dim=head_dims[i],
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            mlp = partial(Mlp, hidden=int(dim * ratios[i]), act=act, drop=proj_drop_rate)
            return Block(dim, attention=attention, mlp=mlp, norm=norm, drop_path=drop_path)

        self.add_patches(patch_size, dims[0], img_size=img_size, norm=norm, pad=dynamic_img_pad)
        self.add_stages(
            dims,
            windows=stage_windows(window_size, stages),
            always_partition=always_partition,
            drop_paths=drop_path_rates(drop_path_rate, depths),
            block=block,
            merge=partial(PatchMerging, norm=norm),
        )
        self.norm = norm(dims[-1])
        self.add_head(
            dims[-1], num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, linear=[trunc_normal, zero_bias])

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.norm(y) if index == len(self.levels) - 1 else y

    def no_weight_decay(self) -> set[str]:
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if name.endswith("relative_position_bias_table")}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converted = super().convert_state_dict(state)
        for name, module in self.named_modules():
            key = f"{name}.relative_position_bias_table"
            if isinstance(module, WindowAttention) and key in converted:
                converted[key] = for_window(converted[key], module.window)
        return converted


def widths(embed_dim: int | Sequence[int], stages: int) -> list[int]:
    """Channels of each stage, from those of the first or of all."""
    return (
        [embed_dim * 2**i for i in range(stages)] if isinstance(embed_dim, int) else list(embed_dim)
    )


TINY: dict[str, Any] = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SMALL: dict[str, Any] = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
BASE: dict[str, Any] = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
LARGE: dict[str, Any] = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))

VARIANTS: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": TINY,
    "swin_small_patch4_window7_224": SMALL,
    "swin_base_patch4_window7_224": BASE,
    "swin_base_patch4_window12_384": dict(img_size=384, window_size=12, **BASE),
    "swin_large_patch4_window7_224": LARGE,
    "swin_large_patch4_window12_384": dict(img_size=384, window_size=12, **LARGE),
    "swin_s3_tiny_224": dict(window_size=(7, 7, 14, 7), **TINY),
    "swin_s3_small_224": dict(window_size=(14, 14, 14, 7), **SMALL),
    "swin_s3_base_224": dict(window_size=(7, 7, 14, 7), **TINY | {"depths": (2, 2, 30, 2)}),
}

FAMILY = Family(model=SwinTransformer, variants=VARIANTS, weights=weights_table("swin"))
