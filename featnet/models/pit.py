"""PiT: a vision transformer that pools its map between stages, and widens its tokens.

Paper: Rethinking Spatial Dimensions of Vision Transformers (https://arxiv.org/abs/2103.16302).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    DistilledHead,
    Head,
    MapAndTokens,
    PhasedTokens,
    SequencePool,
    Size,
    TokenHead,
    as_image,
    as_sequence,
    drop_path_rates,
    init_tokens,
    rename_keys,
    resample_grid,
    to_pair,
)
from ..registry import Family, weights_table
from ._vit_blocks import Block, ViTSettings


class Pooling(nn.Module):
    """A strided depthwise convolution of the map, a linear layer for the tokens."""

    def __init__(self, in_chs: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, dim, 3, 2, 1, groups=in_chs)
        self.fc = nn.Linear(in_chs, dim)

    def forward(self, x: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.conv(x), self.fc(tokens)


class Transformer(PhasedTokens):
    """Half the size, but for the first stage, then blocks over positions and tokens together.

    With an output stride it runs on the interleaved maps, each with tokens of its own.
    """

    def __init__(self, pool: nn.Module | None, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stride = 1 if pool is None else 2
        self.pool = pool
        self.norm = nn.Identity()
        self.blocks = Blocks(*blocks)

    def run(  # type: ignore[override]
        self, x: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) and (N, T, C), of the size that the stage was made for."""
        if self.pool is not None:
            x, tokens = self.pool(x, tokens)
        size, count = x.shape[-2:], tokens.shape[1]
        y = torch.cat((tokens, as_sequence(x)), 1)
        y = self.blocks(self.norm(y))
        return as_image(y[:, count:], size), y[:, :count]


class ClassHead(TokenHead):
    """The class token and a linear layer; no other pooling is there."""

    def make_pool(self, model: object, global_pool: str) -> SequencePool:
        return SequencePool(global_pool, allowed=("", "token"))


class PoolingVisionTransformer(Backbone):
    """Overlapping patches, then three stages, the last two of which halve the size.

    At another size than ``img_size`` positions are resampled. With an output stride stages run on
    the interleaved maps by themselves.

    Args:
        depth, heads, base_dims: blocks of each stage, their heads, and the width of one head.
        img_size: (height, width) that the table of positions is made for.
        patch_size, stride: of the patches, in pixels.
        mlp_ratio: hidden width of the MLPs.
        distilled: a second token and a second classifier, which learn from a teacher.
        drop_rate, pos_drop_rate: before the classifier, and of the first map.
        proj_drop_rate, attn_drop_rate: of the blocks' outputs and of the attention maps.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv = "patch_embed.conv"
    last_fc: str | tuple[str, ...] = "head"
    distilled_training = False

    def __init__(
        self,
        depth: Sequence[int] = (2, 6, 4),
        heads: Sequence[int] = (2, 4, 8),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        img_size: int | Size = 224,
        patch_size: int = 16,
        stride: int = 8,
        base_dims: Sequence[int] = (48, 48, 48),
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depth=depth, heads=heads, base_dims=base_dims)
        self.img_size = to_pair(img_size)
        height, width = ((side - patch_size) // stride + 1 for side in self.img_size)
        self.grid_size = (height, width)
        dims = [width * count for width, count in zip(base_dims, heads, strict=True)]
        self.num_prefix_tokens = 2 if distilled else 1
        self.pos_embed = nn.Parameter(torch.empty(1, dims[0], *self.grid_size))
        self.cls_token = nn.Parameter(torch.empty(1, self.num_prefix_tokens, dims[0]))
        patches = nn.Conv2d(in_chans, dims[0], patch_size, stride)
        self.patch_embed = nn.Sequential(OrderedDict(conv=patches))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.transformers = nn.Sequential()
        rates = drop_path_rates(drop_path_rate, depth)
        for i, dim in enumerate(dims):
            settings = ViTSettings(
                num_heads=heads[i],
                mlp_ratio=mlp_ratio,
                norm=norm,
                act=nn.GELU,
                proj_drop=proj_drop_rate,
                attn_drop=attn_drop_rate,
            )
            blocks = [Block(dim, settings=settings, drop_path=rate) for rate in rates[i]]
            stage = Transformer(Pooling(dims[i - 1], dim) if i else None, blocks)
            name, reduction = f"transformers.{i}", stride * 2**i
            self.add_stage(name, stage, channels=dim, reduction=reduction)
        self.norm = norm(dims[-1])
        head: Head = ClassHead()
        if distilled:
            self.last_fc, head = ("head", "head_dist"), DistilledHead()
        self.add_head(
            dims[-1],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=head,
        )
        init_tokens(self.pos_embed, self.cls_token)

    def forward_levels(self, x: torch.Tensor) -> Iterator[MapAndTokens]:
        x = self.patch_embed(x)  # (N, C, H/8, W/8)
        table = self.pos_embed.permute(0, 2, 3, 1)
        table = resample_grid(table, (x.shape[-2], x.shape[-1])).permute(0, 3, 1, 2)
        x = self.pos_drop(x + table)
        level = MapAndTokens(x, self.cls_token.expand(x.shape[0], -1, -1))
        del x  # or it is held as long as the first stage runs
        for stage in self.transformers:
            level = stage(*level)  # (N, C, H/8, W/8), (N, 2C, H/16, W/16), ...
            yield level

    def finish(self, y: MapAndTokens) -> torch.Tensor:
        return self.norm(y.before())

    def set_distilled_training(self, enable: bool = True) -> None:
        """Let training give ``(logits, logits of the distillation head)``."""
        self.distilled_training = enable

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [
            (r"^transformers\.(\d+)\.pool", (0,)),
            (r"^transformers\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm", (99999,)),
        ]
        stem = r"^pos_embed|^cls_token|^patch_embed"
        return {"stem": stem, "blocks": r"^transformers\.(\d+)" if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names, and positions of another grid."""
        pools = (r"^pools\.(\d)\.", lambda m: f"transformers.{int(m[1]) + 1}.pool.")
        converted = rename_keys(state, (pools,))
        table = converted.get("pos_embed")
        if table is not None and table.ndim == 4:
            grid = resample_grid(table.permute(0, 2, 3, 1), self.grid_size)
            converted["pos_embed"] = grid.permute(0, 3, 1, 2)
        return converted


B: dict[str, Any] = dict(
    depth=(3, 6, 4), heads=(4, 8, 16), patch_size=14, stride=7, base_dims=(64, 64, 64)
)
S: dict[str, Any] = dict(heads=(3, 6, 12))
TI: dict[str, Any] = dict(base_dims=(32, 32, 32))

VARIANTS: dict[str, dict[str, Any]] = {
    "pit_b_224": dict(**B),
    "pit_s_224": dict(**S),
    "pit_xs_224": dict(),
    "pit_ti_224": dict(**TI),
    "pit_b_distilled_224": dict(**B, distilled=True),
    "pit_s_distilled_224": dict(**S, distilled=True),
    "pit_xs_distilled_224": dict(distilled=True),
    "pit_ti_distilled_224": dict(**TI, distilled=True),
}

FAMILY = Family(model=PoolingVisionTransformer, variants=VARIANTS, weights=weights_table("pit"))
