"""Swin V2: cosine attention, positions by a network of log-spaced distances, norms after branches.

Paper: https://arxiv.org/abs/2111.09883.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..layers import (
    DropPath,
    Layer,
    Mlp,
    Phased,
    Size,
    add_qv_bias,
    drop_path_rates,
    get_act,
    get_norm,
    initialize,
    relative_bias,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table
from .swin import (
    Make,
    PatchMerging,
    WindowAttention,
    WindowSize,
    WindowTransformer,
    stage_windows,
    widths,
)


def distances(window: Size, *, like: torch.Tensor) -> torch.Tensor:
    """(2h - 1, 2w - 1, 2): rows and columns from a key to a query, in a window."""
    down, right = (
        torch.arange(1 - side, side, device=like.device, dtype=torch.float32) for side in window
    )
    return torch.stack(torch.meshgrid(down, right, indexing="ij"), -1)


def unit(x: torch.Tensor, *, eps: float = 1e-12) -> torch.Tensor:
    """Return vectors of length one; one of length zero stays.

    As ``F.normalize``, whose second derivative is NaN where a vector is zero, as keys in the padded
    part of a window are.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    length = wide.square().sum(-1, keepdim=True).clamp_min(eps * eps).sqrt()
    return (wide / length).to(x.dtype)


class CosineAttention(WindowAttention):
    """Within windows, by the angle of queries and keys, times a learnt factor up to 100."""

    scale = 1.0
    logit_scale: nn.Parameter  # of as many values as heads

    def compare(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factor = self.logit_scale.clamp(max=math.log(100)).exp().reshape(-1, 1, 1)
        return unit(q) * factor, unit(k)


class ContinuousAttention(CosineAttention):
    """With a bias that a small network gives for each distance; keys have no bias.

    Args:
        pretrained: the windows that the network of distances was trained for; 0 for these.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window: Size,
        shift: Size,
        qkv_bias: bool,
        pretrained: int,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__(
            dim,
            num_heads,
            window=window,
            shift=shift,
            qkv_bias=False,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
        self.pretrained: Size = (pretrained, pretrained) if pretrained else window
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def add_positions(self) -> None:
        self.logit_scale = nn.Parameter(torch.full((self.num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, self.num_heads, bias=False)
        )

    def distances(self, like: torch.Tensor) -> torch.Tensor:
        """(2h - 1, 2w - 1, 2), on a logarithmic scale; 8 / 3 log2(...) of the pretrained reach."""
        reach = [max(side - 1, 1) for side in self.pretrained]
        far = distances(self.window, like=like) / torch.tensor(reach, device=like.device) * 8
        return (far.sign() * (far.abs() + 1).log2() / math.log2(8)).to(like.dtype)

    def bias(self) -> torch.Tensor:
        like = self.logit_scale
        far = self.memo.get((like.dtype, like.device), lambda: self.distances(like))
        return relative_bias(16 * self.cpb_mlp(far).sigmoid(), self.window)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        return add_qv_bias(self.qkv(x), self.q_bias, self.v_bias)


class PostNormBlock(Phased):
    """Attention within windows and MLP, each under a norm and beside the identity."""

    def __init__(
        self, dim: int, *, attention: Make, mlp: Make, norm: Make, drop_path: float
    ) -> None:
        super().__init__()
        self.attn = attention(dim)
        self.norm1 = norm(dim)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = mlp(dim)
        self.norm2 = norm(dim)
        self.drop_path2 = DropPath(drop_path)

    def init_norms(self, value: float) -> None:
        for norm in (self.norm1, self.norm2):
            nn.init.constant_(norm.get_parameter("weight"), value)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class PostNormMerging(PatchMerging):
    """2 x 2 positions to one, of other channels, under a norm."""

    def __init__(self, dim: int, out: int, *, norm: Make) -> None:
        Phased.__init__(self)
        self.reduction = nn.Linear(4 * dim, out, bias=False)
        self.norm = norm(out)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.reduction(self.gather(x)))


class SwinTransformerV2(WindowTransformer):
    """Swin V2.

    Args:
        img_size: (height, width) that windows are fitted to: no larger than a stage's map, and not
            shifted where they span it. Other sizes go in all the same.
        patch_size: positions of the first map.
        embed_dim: channels of the first stage, which each one doubles; or of each stage.
        depths, num_heads: of each stage.
        window_size: an int or (height, width) for all stages, or one for each.
        pretrained_window_sizes: of each stage, what distances are relative to, where a network is
            tuned with other windows than it was trained with; 0 for its own.
        always_partition: windows of full size, shifted, whatever the size of the map.
        mlp_ratio: width of the hidden layers.
        qkv_bias: biases of queries and values.
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
        window_size: WindowSize = 7,
        pretrained_window_sizes: Sequence[int] = (0, 0, 0, 0),
        always_partition: bool = False,
        mlp_ratio: float = 4.0,
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

        def block(
            i: int, j: int, dim: int, *, window: Size, shift: Size, drop_path: float
        ) -> PostNormBlock:
            attention = partial(
                ContinuousAttention,
                num_heads=num_heads[i],
                window=window,
                shift=shift,
                qkv_bias=qkv_bias,
                pretrained=pretrained_window_sizes[i],
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            mlp = partial(Mlp, hidden=int(dim * mlp_ratio), act=act, drop=proj_drop_rate)
            return PostNormBlock(dim, attention=attention, mlp=mlp, norm=norm, drop_path=drop_path)

        self.add_patches(patch_size, dims[0], img_size=img_size, norm=norm, pad=dynamic_img_pad)
        self.add_stages(
            dims,
            windows=stage_windows(window_size, stages),
            always_partition=always_partition,
            drop_paths=drop_path_rates(drop_path_rate, depths),
            block=block,
            merge=partial(PostNormMerging, norm=norm),
        )
        self.norm = norm(dims[-1])
        self.add_head(
            dims[-1], num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, linear=[trunc_normal, zero_bias])
        for module in self.modules():
            if isinstance(module, PostNormBlock):
                module.init_norms(0.0)  # each block begins as the identity

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.norm(y) if index == len(self.levels) - 1 else y

    def no_weight_decay(self) -> set[str]:
        names = (name for name, _ in self.named_parameters())
        return {name for name in names if "cpb_mlp" in name or "logit_scale" in name}


TINY: dict[str, Any] = dict(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
SMALL: dict[str, Any] = dict(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
BASE: dict[str, Any] = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
LARGE: dict[str, Any] = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
TUNED: dict[str, Any] = dict(pretrained_window_sizes=(12, 12, 12, 6))

VARIANTS: dict[str, dict[str, Any]] = {
    "swinv2_tiny_window8_256": dict(img_size=256, window_size=8, **TINY),
    "swinv2_tiny_window16_256": dict(img_size=256, window_size=16, **TINY),
    "swinv2_small_window8_256": dict(img_size=256, window_size=8, **SMALL),
    "swinv2_small_window16_256": dict(img_size=256, window_size=16, **SMALL),
    "swinv2_base_window8_256": dict(img_size=256, window_size=8, **BASE),
    "swinv2_base_window16_256": dict(img_size=256, window_size=16, **BASE),
    "swinv2_base_window12_192": dict(img_size=192, window_size=12, **BASE),
    "swinv2_base_window12to16_192to256": dict(img_size=256, window_size=16, **BASE, **TUNED),
    "swinv2_base_window12to24_192to384": dict(img_size=384, window_size=24, **BASE, **TUNED),
    "swinv2_large_window12_192": dict(img_size=192, window_size=12, **LARGE),
    "swinv2_large_window12to16_192to256": dict(img_size=256, window_size=16, **LARGE, **TUNED),
    "swinv2_large_window12to24_192to384": dict(img_size=384, window_size=24, **LARGE, **TUNED),
}

FAMILY = Family(model=SwinTransformerV2, variants=VARIANTS, weights=weights_table("swin_v2"))
