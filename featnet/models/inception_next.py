"""InceptionNeXt: ConvNeXt whose large kernel is split into four branches of channels.

Paper: InceptionNeXt, When Inception Meets ConvNeXt (https://arxiv.org/abs/2303.16900).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    DropPath,
    GlobalPool,
    Head,
    Layer,
    Mlp,
    Stage,
    drop_path_rates,
    get_act,
    get_norm,
    initialize,
    pointwise,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


class InceptionDwConv(nn.Module):
    """A square, a row and a column as depthwise kernels, each of a few channels; the rest passes.

    Args:
        band_kernel_size: length of the row and of the column; the square's side is 3.
        branch_ratio: share of the channels in each of the three.
    """

    def __init__(self, chs: int, *, band_kernel_size: int, branch_ratio: float) -> None:
        super().__init__()
        width, band = int(chs * branch_ratio), band_kernel_size
        conv = partial(nn.Conv2d, width, width, groups=width)
        self.dwconv_hw = conv(3, padding=1)
        self.dwconv_w = conv((1, band), padding=(0, band // 2))
        self.dwconv_h = conv((band, 1), padding=(band // 2, 0))
        self.widths = [chs - 3 * width, width, width, width]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        same, square, row, column = torch.split(x, self.widths, 1)
        branches = self.dwconv_hw(square), self.dwconv_w(row), self.dwconv_h(column)
        return torch.cat((same, *branches), 1)


class Block(nn.Module):
    """Depthwise branches, norm, MLP, and the scale of this branch (gamma)."""

    def __init__(
        self,
        chs: int,
        *,
        mixer: Layer,
        norm: Layer,
        act: Layer,
        mlp_ratio: float,
        scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.token_mixer = mixer(chs)
        self.norm = norm(chs)
        self.mlp = Mlp(chs, int(mlp_ratio * chs), act=act, linear=pointwise)
        self.gamma = nn.Parameter(torch.full((chs,), float(scale))) if scale is not None else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.token_mixer(x)))
        if self.gamma is not None:
            y = y * self.gamma.reshape(1, -1, 1, 1)
        return self.drop_path(y) + x


class InceptionNeXt(Backbone):
    """Patches of four pixels, then four stages, the last three of which halve the size.

    Args:
        depths, dims: blocks and channels of each stage.
        mlp_ratios: hidden width of each stage's MLPs; one for all or one for each.
        band_kernel_size, branch_ratio: see :class:`InceptionDwConv`.
        ls_init_value: first scale of each block's output, learnt from there; None for no scale.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0", "head.fc2"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        mlp_ratios: float | Sequence[float] = (4, 4, 4, 3),
        band_kernel_size: int = 11,
        branch_ratio: float = 0.125,
        ls_init_value: float | None = 1e-6,
        act_layer: str | Layer = "gelu",
        norm_layer: str | Layer = "batchnorm2d",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        act, norm = get_act(act_layer), get_norm(norm_layer)
        if isinstance(mlp_ratios, (int, float)):
            mlp_ratios = (mlp_ratios,) * len(dims)
        check_stages(depths=depths, dims=dims, mlp_ratios=mlp_ratios)
        mixer = partial(
            InceptionDwConv, band_kernel_size=band_kernel_size, branch_ratio=branch_ratio
        )
        block = partial(Block, mixer=mixer, norm=norm, act=act, scale=ls_init_value)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], 4, 4), norm(dims[0]))
        self.stages = nn.Sequential()
        in_chs, rates = dims[0], drop_path_rates(drop_path_rate, depths)
        for i, (chs, ratio) in enumerate(zip(dims, mlp_ratios, strict=True)):
            down = nn.Sequential(norm(in_chs), nn.Conv2d(in_chs, chs, 2, 2)) if i else nn.Identity()
            blocks = [block(chs, mlp_ratio=ratio, drop_path=rate) for rate in rates[i]]
            self.add_stage(
                f"stages.{i}", Stage(blocks, downsample=down), channels=chs, reduction=4 * 2**i
            )
            in_chs = chs
        hidden, pooled = 3 * in_chs, in_chs * GlobalPool(global_pool).multiplier
        self.head = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(pooled, hidden), act=act(), norm=nn.LayerNorm(hidden, eps=1e-6)
            )
        )
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(
                "head.fc1", "head.act", "head.norm", takes=pooled, gives=hidden, channels_last=True
            ),
        )
        start = [trunc_normal, zero_bias]
        initialize(self, conv=start, linear=start)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}


VARIANTS: dict[str, dict[str, Any]] = {
    "inception_next_atto": dict(
        depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), band_kernel_size=9, branch_ratio=0.25
    ),
    "inception_next_tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "inception_next_small": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "inception_next_base": dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
}

FAMILY = Family(model=InceptionNeXt, variants=VARIANTS, weights=weights_table("inception_next"))
