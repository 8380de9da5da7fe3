"""Hiera: plain blocks, in windows first and over the whole map later, that pool as they attend.

Papers: Hiera (https://arxiv.org/abs/2306.00989); positions of windows beside positions of the map
(abswin, https://arxiv.org/abs/2311.05613).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_choice
from ..layers import (
    Blocks,
    DropPath,
    Head,
    Layer,
    LayerScale,
    Mlp,
    Phased,
    Scheme,
    Size,
    attend,
    ceil_div,
    crop,
    drop_path_rates,
    get_norm,
    head_width,
    init_tokens,
    initialize,
    join_heads,
    join_windows,
    lecun_normal,
    normal_bias,
    pad_to_windows,
    resample_grid,
    resample_positions,
    scale_with_depth,
    split_windows,
    to_pair,
    trunc_normal,
    xavier,
    zero_bias,
    zero_weight,
)
from ..registry import Family, weights_table

Pool = Callable[..., torch.Tensor]


def pooled(x: torch.Tensor, stride: int, *, by: Pool = F.max_pool2d) -> torch.Tensor:
    """(N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), C)."""
    if stride == 1:
        return x
    return by(x.permute(0, 3, 1, 2), stride, ceil_mode=True).permute(0, 2, 3, 1)


def tiled(window: torch.Tensor, size: Size) -> torch.Tensor:
    """(1, C, h, w), positions within a window -> (1, H, W, C), of a map of windows."""
    window = window.permute(0, 2, 3, 1)
    tiles = [*map(ceil_div, size, window.shape[1:3])]
    return crop(window.repeat(1, tiles[0], tiles[1], 1), size)


class UnitAttention(nn.Module):
    """Attention within windows or over the whole map, of pooled queries.

    (N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), D). What fills a map up to whole windows
    is not attended to.

    Args:
        window: (height, width) of what the queries of one place see, a multiple of the stride; None
            for the map.
        stride: of the queries.
    """

    fused_attn = True

    def __init__(
        self, dim: int, out: int, *, num_heads: int, window: Size | None, stride: int
    ) -> None:
        super().__init__()
        head_width(out, num_heads)
        self.num_heads, self.window, self.stride = num_heads, window, stride
        self.qkv = nn.Linear(dim, 3 * out)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(out, out)

    def mask(self, like: torch.Tensor, window: Size) -> torch.Tensor | None:
        """(N * windows, 1, 1, L), to be added: positions that are there, or only fill up."""
        there = torch.zeros_like(like[..., :1])
        padded = pad_to_windows(there, window, value=-math.inf)
        if padded is there:
            return None
        return split_windows(padded, window).flatten(1)[:, None, None]

    def split(self, x: torch.Tensor, window: Size) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the windows of a map, and what is added to their products."""
        # what fills up repeats the border, which leaves every maximum of queries as it is
        return split_windows(pad_to_windows(x, window, repeat=True), window), self.mask(x, window)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], *(ceil_div(side, self.stride) for side in x.shape[1:3]))
        if self.window is None:
            bias = None
        else:
            x, bias = self.split(x, self.window)
        # windows before the projection, whose three parts then need no copies
        q, k, v = self.qkv(x).chunk(3, -1)  # (N * windows, h, w, C) each
        q = pooled(q, self.stride)
        small = q.shape[1:3]
        q, k, v = (t.flatten(1, 2).unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (N * windows, heads, L, C)
        windows = self.window is not None
        x = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=bias, windows=windows)
        del q, k, v  # half of the memory at the peak
        x = torch.unflatten(join_heads(x), 1, small)
        # in memory of its own, or torch multiplies row by row where the weight has no gradient
        return self.proj(x if self.window is None else join_windows(x, shape).contiguous())


class Block(Phased):
    """Attention and MLP, each on a norm and beside the identity; (N, H, W, C).

    Args:
        window: of attention, see :class:`UnitAttention`.
        stride: by which queries, and the identity, are pooled.
        project: widen the identity by a projection, not by its mean beside its maximum.
        init_values: first value of the learnt scale of each branch; None for none.
        act: activation of the MLP.

    Class attributes:
        attention: its class.
    """

    attention: type[UnitAttention] = UnitAttention

    def __init__(
        self,
        dim: int,
        out: int,
        *,
        num_heads: int,
        window: Size | None,
        stride: int,
        project: bool,
        mlp_ratio: float,
        init_values: float | None,
        norm: Layer,
        act: Layer = nn.GELU,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.stride = self.pooling = stride
        self.widens = dim != out
        if self.widens and not project and out != 2 * dim:
            raise ArgumentError(
                f"use_expand_proj=False: {dim} channels become {out}, not twice as many."
            )
        self.norm1 = norm(dim)
        self.proj = nn.Linear(dim, out) if self.widens and project else None
        self.attn = self.attention(dim, out, num_heads=num_heads, window=window, stride=stride)
        scale = nn.Identity if init_values is None else partial(LayerScale, out, init_values)
        self.ls1 = scale()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(out)
        self.mlp = Mlp(out, int(out * mlp_ratio), act=act)
        self.ls2 = scale()
        self.drop_path2 = DropPath(drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        if self.proj is not None:
            x = pooled(self.proj(y), self.pooling)
        elif self.widens:
            x = torch.cat([pooled(x, self.pooling, by=f) for f in (F.max_pool2d, F.avg_pool2d)], -1)
        y = x + self.drop_path1(self.ls1(self.attn(y)))
        return y + self.drop_path2(self.ls2(self.mlp(self.norm2(y))))


class Hiera(Backbone):
    """Overlapping patches with positions, then blocks in stages, the first of which pools.

    Any size goes in: positions are resampled, and windows filled up.

    Args:
        img_size: (height, width) that the table of positions is made for.
        embed_dim, num_heads: of the first stage.
        stages: blocks of each stage.
        q_pool: number of stages after the first that begin with pooling, by ``q_stride``.
        mask_unit_size: (height, width) of the first stage's windows, which pooling makes smaller.
        mask_unit_attn: of each stage, attention within windows. The block that a stage begins with
            attends as the stage before.
        use_expand_proj: see :class:`Block`.
        dim_mul, head_mul: by which channels and heads grow from stage to stage.
        patch_kernel, patch_stride, patch_padding: of the input convolution.
        mlp_ratio: width of the hidden layers.
        init_values: first value of the learnt scale of each branch; None for none.
        abs_win_pos_embed: positions within a window, added to positions of a map of
            ``global_pos_size``, in place of one table.
        weight_init: ``""``, or ``"jax"`` for uniform matrices.
        drop_rate: before the classifier.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "patch_embed.proj", "head.fc"

    def __init__(
        self,
        img_size: int | Size = 224,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        num_heads: int = 1,
        stages: Sequence[int] = (2, 3, 16, 3),
        q_pool: int = 3,
        q_stride: int = 2,
        mask_unit_size: int | Size = 8,
        mask_unit_attn: Sequence[bool] = (True, True, False, False),
        use_expand_proj: bool = True,
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        patch_kernel: int | Size = 7,
        patch_stride: int | Size = 4,
        patch_padding: int | Size = 3,
        mlp_ratio: float = 4.0,
        init_values: float | None = None,
        norm_layer: str | Layer = "layernorm",
        abs_win_pos_embed: bool = False,
        global_pos_size: Size = (14, 14),
        weight_init: str = "",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        if not 0 <= q_pool < len(stages):
            raise ArgumentError(f"q_pool={q_pool!r}: from 0 to {len(stages) - 1} stages can pool.")
        check_choice("weight_init", weight_init, ("", "jax"))
        norm = get_norm(norm_layer)
        self.img_size = to_pair(img_size)
        stride = to_pair(patch_stride)
        self.grid_size = (self.img_size[0] // stride[0], self.img_size[1] // stride[1])
        patches = nn.Conv2d(
            in_chans, embed_dim, to_pair(patch_kernel), stride, to_pair(patch_padding)
        )
        self.patch_embed = nn.Sequential(OrderedDict(proj=patches))
        window = to_pair(mask_unit_size)
        if any(side % q_stride**q_pool for side in window):
            raise ArgumentError(
                f"mask_unit_size={mask_unit_size!r}: {q_pool} poolings by {q_stride} need a "
                f"multiple of {q_stride**q_pool}."
            )
        self.add_positions(embed_dim, window, whole=global_pos_size if abs_win_pos_embed else None)
        self.blocks = Blocks()
        dim, reduction = embed_dim, max(stride)
        drops = drop_path_rates(drop_path_rate, stages)
        for i, depth in enumerate(stages):
            for j in range(depth):
                first = i > 0 and j == 0
                out = int(dim * dim_mul) if first else dim
                num_heads = int(num_heads * head_mul) if first else num_heads
                pool = q_stride if first and i <= q_pool else 1
                within = mask_unit_attn[i - 1 if first else i]
                self.blocks.append(
                    Block(
                        dim,
                        out,
                        num_heads=num_heads,
                        window=window if within else None,
                        stride=pool,
                        project=use_expand_proj,
                        mlp_ratio=mlp_ratio,
                        init_values=init_values,
                        norm=norm,
                        drop_path=drops[i][j],
                    )
                )
                dim, reduction = out, reduction * pool
                window = (window[0] // pool, window[1] // pool)
            self.add_level(f"blocks.{len(self.blocks) - 1}", channels=dim, reduction=reduction)
        self.head = nn.Sequential(OrderedDict(norm=norm(dim)))
        self.add_head(
            dim,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head("head.norm", channels_last=True),
        )
        self._init(uniform=weight_init == "jax")

    def add_positions(self, dim: int, window: Size, *, whole: Size | None) -> None:
        """Add the table(s) of positions: of each token, or of a window and of the ``whole`` map."""
        if whole is None:
            self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid_size), dim))
            self.pos_embed_win = None
        else:
            self.pos_embed = nn.Parameter(torch.zeros(1, dim, *whole))
            self.pos_embed_win = nn.Parameter(torch.zeros(1, dim, *window))

    def _init(self, *, uniform: bool) -> None:
        """Uniform matrices or truncated normals, smaller towards the output of deeper blocks; no
        classifier."""
        init_tokens(*self.parameters(recurse=False))
        if uniform:
            initialize(self, conv=[lecun_normal, zero_bias], linear=[xavier, zero_bias])
            for block in self.blocks:
                initialize(block.get_submodule("mlp"), linear=[partial(normal_bias, std=1e-6)])
        else:
            biased: list[Scheme] = [trunc_normal, partial(normal_bias, value=0.02)]
            initialize(self, conv=[trunc_normal], linear=biased)
        initialize(self.get_submodule("head"), linear=[zero_weight, zero_bias])
        scale_with_depth(self.blocks, "attn.proj.weight", "mlp.fc2.weight")

    def positions(self, size: Size) -> torch.Tensor:
        """(1, H, W, C) for a map of ``size``."""
        if self.pos_embed_win is None:
            table = resample_positions(self.pos_embed, size, old=self.grid_size)
            return table.reshape(1, *size, -1)
        return resample_grid(self.pos_embed.permute(0, 2, 3, 1), size) + tiled(
            self.pos_embed_win, size
        )

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.patch_embed(x).permute(0, 2, 3, 1)  # (N, H/4, W/4, C)
        x = x + self.positions((x.shape[1], x.shape[2]))
        yield from self.through("blocks", x)  # (N, H/4, W/4, C), (N, H/8, W/8, 2C), and so on

    def as_map(self, y: torch.Tensor) -> torch.Tensor:
        return y.permute(0, 3, 1, 2)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.as_map(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^pos_embed|^pos_embed_win|^patch_embed", "blocks": r"^blocks\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("pos_embed")}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        names = {
            "head.projection.": "head.fc.",
            "encoder_norm.": "head.norm.",
            "norm.": "head.norm.",
            "pos_embed_abs": "pos_embed",
        }
        converted = {}
        for key, value in state.items():
            old = next((old for old in names if key.startswith(old)), "")
            converted[names[old] + key.removeprefix(old) if old else key] = value
        table = converted.get("pos_embed")
        if table is not None and table.ndim == 3 == self.pos_embed.ndim:
            side = math.isqrt(table.shape[1])
            if table.shape[1] != self.pos_embed.shape[1] and side * side == table.shape[1]:
                converted["pos_embed"] = resample_positions(table, self.grid_size, old=(side, side))
        return converted


ABSWIN: dict[str, Any] = dict(
    img_size=256,
    embed_dim=96,
    num_heads=1,
    abs_win_pos_embed=True,
    init_values=1e-5,
    weight_init="jax",
)

VARIANTS: dict[str, dict[str, Any]] = {
    "hiera_tiny_224": dict(embed_dim=96, num_heads=1, stages=(1, 2, 7, 2)),
    "hiera_small_224": dict(embed_dim=96, num_heads=1, stages=(1, 2, 11, 2)),
    "hiera_base_224": dict(embed_dim=96, num_heads=1, stages=(2, 3, 16, 3)),
    "hiera_base_plus_224": dict(embed_dim=112, num_heads=2, stages=(2, 3, 16, 3)),
    "hiera_large_224": dict(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4)),
    "hiera_huge_224": dict(embed_dim=256, num_heads=4, stages=(2, 6, 36, 4)),
    "hiera_small_abswin_256": dict(
        stages=(1, 2, 11, 2), global_pos_size=(16, 16), use_expand_proj=False, **ABSWIN
    ),
    "hiera_base_abswin_256": dict(stages=(2, 3, 16, 3), **ABSWIN),
}

FAMILY = Family(model=Hiera, variants=VARIANTS, weights=weights_table("hiera"))
