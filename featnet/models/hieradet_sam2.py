"""HieraDet: the image encoder of SAM 2, a Hiera of windows in which a few blocks see the map.

Papers: SAM 2 (https://arxiv.org/abs/2408.00714); Hiera (https://arxiv.org/abs/2306.00989);
positions of windows beside positions of the map (https://arxiv.org/abs/2311.05613).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_choice
from ..layers import (
    Blocks,
    Head,
    Layer,
    Size,
    drop_path_rates,
    get_act,
    get_norm,
    pad_to_windows,
    rename_keys,
    resample_grid,
    split_windows,
    to_pair,
)
from ..registry import Family, weights_table
from . import hiera


class WindowAttention(hiera.UnitAttention):
    """Attention that sees the zeros which fill a map up to whole windows, as it was trained."""

    def split(self, x: torch.Tensor, window: Size) -> tuple[torch.Tensor, torch.Tensor | None]:
        # a last row that is pooled alone is there twice, so that no maximum takes in a zero
        x = pad_to_windows(x, (self.stride, self.stride), repeat=True)
        return split_windows(pad_to_windows(x, window), window), None


class Block(hiera.Block):
    """A Hiera's, whose widening projection is the first of its parts; (N, H, W, C)."""

    attention = WindowAttention

    def __init__(self, dim: int, out: int, **rest: Any) -> None:
        super().__init__(dim, out, project=True, **rest)
        if self.proj is not None:  # the order of checkpoints
            self._modules = {"proj": self.proj, **self._modules}


def bicubic(maps: torch.Tensor, size: Size) -> torch.Tensor:
    """Resample (N, C, h, w) to another size; nothing is smoothed."""
    return F.interpolate(maps, size=size, mode="bicubic")


class HieraDet(hiera.Hiera):
    """Overlapping patches with positions, then blocks in stages, the first of which pools.

    Any size goes in: positions are resampled, and windows filled up.

    Args:
        embed_dim, num_heads: of the first stage.
        patch_kernel, patch_stride, patch_padding: of the input convolution.
        q_pool: number of stages after the first that begin with pooling, by ``q_stride``.
        stages: blocks of each stage.
        dim_mul, head_mul: by which channels and heads grow from stage to stage.
        global_pos_size: (height, width) of the table of positions of the map.
        window_spec: side of each stage's windows. The block that a stage begins with has those of
            the stage before. Positions within a window have the first's.
        global_att_blocks: blocks that attend to the whole map.
        init_values: first value of the learnt scale of each branch; None for none.
        weight_init: ``""``, or ``"jax"`` for uniform matrices.
        drop_rate: before the classifier.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 96,
        num_heads: int = 1,
        patch_kernel: int | Size = 7,
        patch_stride: int | Size = 4,
        patch_padding: int | Size = 3,
        q_pool: int = 3,
        q_stride: int | Size = 2,
        stages: Sequence[int] = (2, 3, 16, 3),
        dim_mul: float = 2.0,
        head_mul: float = 2.0,
        global_pos_size: Size = (7, 7),
        window_spec: Sequence[int] = (8, 4, 14, 7),
        global_att_blocks: Sequence[int] = (12, 16, 20),
        init_values: float | None = None,
        weight_init: str = "",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: str | Layer = "layernorm",
        act_layer: str | Layer = "gelu",
    ) -> None:
        Backbone.__init__(self, in_chans=in_chans)  # the parts of a Hiera, put together otherwise
        if not 0 <= q_pool < len(stages) == len(window_spec):
            raise ArgumentError(
                f"stages={stages!r}, window_spec={window_spec!r}, q_pool={q_pool!r}: a window for "
                "each stage is expected, and pooling in all but the first at most."
            )
        check_choice("weight_init", weight_init, ("", "jax"))
        stride, pool = to_pair(patch_stride), max(to_pair(q_stride))
        patches = nn.Conv2d(
            in_chans, embed_dim, to_pair(patch_kernel), stride, to_pair(patch_padding)
        )
        self.patch_embed = nn.Sequential(OrderedDict(proj=patches))
        self.pos_embed = nn.Parameter(torch.zeros(1, embed_dim, *global_pos_size))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, embed_dim, *to_pair(window_spec[0])))
        norm, act = get_norm(norm_layer), get_act(act_layer)
        block = partial(Block, mlp_ratio=4.0, init_values=init_values, norm=norm, act=act)
        self.blocks = Blocks()
        dim, reduction = embed_dim, max(stride)
        for i, rates in enumerate(drop_path_rates(drop_path_rate, stages)):
            for j, rate in enumerate(rates):
                first, index = i > 0 and j == 0, len(self.blocks)
                out = int(dim * dim_mul) if first else dim
                num_heads = int(num_heads * head_mul) if first else num_heads
                step = pool if first and i <= q_pool else 1
                side = 0 if index in global_att_blocks else window_spec[i - first]
                window = (side, side) if side else None  # None sees the whole map
                if side % step:
                    raise ArgumentError(f"window_spec={window_spec!r}: {side} is pooled by {step}.")
                self.blocks.append(
                    block(dim, out, num_heads=num_heads, window=window, stride=step, drop_path=rate)
                )
                dim, reduction = out, reduction * step
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

    def positions(self, size: Size) -> torch.Tensor:
        grid = resample_grid(self.pos_embed.permute(0, 2, 3, 1), size, resize=bicubic)
        return grid + hiera.tiled(self.pos_embed_window, size)

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; SAM 2's whole checkpoints, its authors' and transformers'."""
        tower = re.compile(r"^(?:.*\.)?(?:image_encoder\.trunk|vision_encoder\.backbone)\.")
        parts = {key: tower.sub("", key) for key in state}
        inside = {new: state[key] for key, new in parts.items() if new != key}
        return rename_keys(
            inside or state,
            (
                (r"\.mlp\.(?:layers\.0|proj_in)\.", ".mlp.fc1."),
                (r"\.mlp\.(?:layers\.1|proj_out)\.", ".mlp.fc2."),
                (r"\.layer_norm(\d)\.", r".norm\1."),
                (r"^patch_embed\.projection\.", "patch_embed.proj."),
            ),
        )


SMALL: dict[str, Any] = dict(stages=(1, 2, 11, 2), global_att_blocks=(7, 10, 13))

VARIANTS: dict[str, dict[str, Any]] = {
    "sam2_hiera_tiny": dict(stages=(1, 2, 7, 2), global_att_blocks=(5, 7, 9)),
    "sam2_hiera_small": SMALL,
    "sam2_hiera_base_plus": dict(embed_dim=112, num_heads=2, global_pos_size=(14, 14)),
    "sam2_hiera_large": dict(
        embed_dim=144,
        num_heads=2,
        stages=(2, 6, 36, 4),
        global_att_blocks=(23, 33, 43),
        window_spec=(8, 4, 16, 8),
    ),
    "hieradet_small": dict(window_spec=(8, 4, 16, 8), init_values=1e-5, **SMALL),
}

FAMILY = Family(model=HieraDet, variants=VARIANTS, weights=weights_table("hieradet_sam2"))
