"""DaViT: attention within windows and attention between channels in turn.

Papers: DaViT (https://arxiv.org/abs/2204.03645); Florence-2, whose image towers the forms ``_fl``
are (https://arxiv.org/abs/2311.06242).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..errors import check_choice, check_stages
from ..layers import (
    DropPath,
    Layer,
    LayerNorm2d,
    LocalAttention,
    Mlp,
    NormMlp,
    Phased,
    PositionConv,
    Stage,
    drop_path_rates,
    get_norm,
    head_width,
    initialize,
    rename_keys,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


class ChannelAttention(nn.Module):
    """Attention between the channels of each head, over all positions; (N, H, W, C)."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.width = num_heads, head_width(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def roles(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, heads, L, C) each: those that are compared, the first of them scaled, and what is
        mixed."""
        return k * self.width**-0.5, v, q

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, height, width, dim = x.shape
        qkv = self.qkv(x).reshape(n, height * width, 3, self.num_heads, self.width)
        one, other, mixed = self.roles(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        shares = (one.transpose(-1, -2) @ other).softmax(-1)  # (N, heads, C, C)
        y = shares @ mixed.transpose(-1, -2)  # (N, heads, C, L)
        return self.proj(y.permute(0, 3, 1, 2).reshape(n, height, width, dim))


class ChannelAttentionV2(ChannelAttention):
    """Queries and keys are compared, in the scale of the number of positions: Florence-2's."""

    def roles(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return q * q.shape[-2] ** -0.5, k, v


class Block(Phased):
    """Positions and attention, positions and MLP; (N, C, H, W)."""

    channels_last = False

    def __init__(
        self,
        dim: int,
        *,
        attention: Layer,
        norm: Layer,
        mlp_ratio: float | None,
        cpe_act: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        act = nn.GELU if cpe_act else nn.Identity
        self.cpe1 = PositionConv(dim, act=act)
        self.norm1 = norm(dim)
        self.attn = attention(dim)
        self.drop_path1 = DropPath(drop_path)
        self.cpe2 = PositionConv(dim, act=act)
        if mlp_ratio is not None:
            self.norm2 = norm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))
            self.drop_path2 = DropPath(drop_path)
        self.has_mlp = mlp_ratio is not None

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = self.cpe1(x).permute(0, 2, 3, 1)  # (N, H, W, C)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x.permute(0, 3, 1, 2))
        if not self.has_mlp:
            return x
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class Stem(nn.Module):
    """A convolution to a quarter of the size, and a norm."""

    def __init__(self, in_chs: int, dim: int, norm: Layer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, dim, 7, 4, 3)
        self.norm = norm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Downsample(Phased):
    """A norm and a convolution of stride 2, with a kernel of 2 or 3."""

    channels_last = False
    stride = 2

    def __init__(self, in_chs: int, dim: int, *, kernel_size: int, norm: Layer) -> None:
        super().__init__()
        self.fill = 1 - kernel_size % 2  # of zeros, for the last window of an odd map
        self.norm = norm(in_chs)
        pad = kernel_size // 2 if kernel_size % 2 else 0
        self.conv = nn.Conv2d(in_chs, dim, kernel_size, 2, pad)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(self.norm(x), (0, self.fill, 0, self.fill)))


class DaVit(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    With an output stride each block runs on the interleaved maps by themselves: windows, and the
    positions over which channels are compared, are the original's.

    Args:
        depths, embed_dims, num_heads: blocks, channels and heads of each stage.
        window_size: side of a window, in positions.
        mlp_ratio: hidden width of the MLPs.
        qkv_bias: biases of the projections to queries, keys and values.
        attn_types: what each block consists of, in order: ``"spatial"``, ``"channel"``.
        ffn: MLPs behind the attentions.
        cpe_act: an activation of the positions.
        down_kernel_size: of the convolutions between stages.
        channel_attn_v2: see :class:`ChannelAttentionV2`.
        named_blocks: parts of a block are called by what they are, not by numbers.
        head_norm_first: norm the map before the pooling, not what the pooling gives.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (1, 1, 3, 1),
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_layer: str | Layer = partial(LayerNorm2d, eps=1e-5),
        norm_layer_cl: str | Layer = nn.LayerNorm,
        attn_types: Sequence[str] = ("spatial", "channel"),
        ffn: bool = True,
        cpe_act: bool = False,
        down_kernel_size: int = 2,
        channel_attn_v2: bool = False,
        named_blocks: bool = False,
        head_norm_first: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, embed_dims=embed_dims, num_heads=num_heads)
        norm = get_norm(norm_layer)
        channel = ChannelAttentionV2 if channel_attn_v2 else ChannelAttention
        kinds: dict[str, Layer] = {
            "spatial": partial(LocalAttention, window=window_size, qkv_bias=qkv_bias),
            "channel": partial(channel, qkv_bias=qkv_bias),
        }
        for kind in attn_types:
            check_choice("attn_types", kind, kinds)
        names = [f"{k}_block" if named_blocks else str(i) for i, k in enumerate(attn_types)]
        part = partial(
            Block,
            norm=get_norm(norm_layer_cl),
            mlp_ratio=mlp_ratio if ffn else None,
            cpe_act=cpe_act,
        )
        self.stem = Stem(in_chans, embed_dims[0], norm)
        self.stages = nn.Sequential()
        in_chs, rates = embed_dims[0], drop_path_rates(drop_path_rate, depths)
        for i, (dim, heads) in enumerate(zip(embed_dims, num_heads, strict=True)):
            attentions = [partial(kinds[kind], num_heads=heads) for kind in attn_types]
            blocks = []
            for rate in rates[i]:
                parts = (part(dim, attention=make, drop_path=rate) for make in attentions)
                blocks.append(nn.Sequential(OrderedDict(zip(names, parts, strict=True))))
            down: nn.Module = nn.Identity()
            if i:
                down = Downsample(in_chs, dim, kernel_size=down_kernel_size, norm=norm)
            in_chs = dim
            stage = Stage(blocks, downsample=down)
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=4 * 2**i)
        self.norm_pre = norm(in_chs) if head_norm_first else nn.Identity()
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=NormMlp(norm=None if head_norm_first else norm),
        )
        initialize(self, linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm_pre(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm_pre", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names, Florence-2's and those that transformers has
        for it."""
        if "stem.conv.weight" in state:
            return dict(state)
        tower = r"^(?:model\.)?vision_tower\."
        tensors = rename_keys(state, ((tower, "vision_tower."),))
        whole = any(key.startswith("vision_tower.") for key in tensors)
        tensors = {k: v for k, v in tensors.items() if not whole or k.startswith("vision_tower.")}
        return rename_keys(
            tensors,
            (
                (r"^vision_tower\.", ""),
                (r"^(?:patch_embeds|convs)\.(\d+)\.", r"stages.\1.downsample."),
                (r"^(?:main_)?blocks\.(\d+)\.", r"stages.\1.blocks."),
                (r"\.downsample\.proj\.", ".downsample.conv."),
                (r"^stages\.0\.downsample\.", "stem."),
                (r"\.(?:window|channel)_attn\.norm\.", ".norm1."),
                (r"\.(?:window|channel)_attn\.(?:fn\.)?", ".attn."),
                (r"\.ffn\.norm\.", ".norm2."),
                (r"\.ffn\.(?:fn\.net\.)?", ".mlp."),
                (r"\.conv(\d)\.(?:fn\.dw\.)?", r".cpe\1.proj."),
                (r"\.cpe\.(\d)\.", lambda m: f".cpe{int(m[1]) + 1}."),
                (r"^head\.", "head.fc."),
                (r"^norms\.", "head.norm."),
            ),
        )


FLORENCE: dict[str, Any] = dict(
    window_size=12, down_kernel_size=3, channel_attn_v2=True, named_blocks=True
)
BASE: dict[str, Any] = dict(
    depths=(1, 1, 9, 1), embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32)
)
HUGE: dict[str, Any] = dict(
    depths=(1, 1, 9, 1), embed_dims=(256, 512, 1024, 2048), num_heads=(8, 16, 32, 64)
)

VARIANTS: dict[str, dict[str, Any]] = {
    "davit_tiny": dict(),
    "davit_small": dict(depths=(1, 1, 9, 1)),
    "davit_base": dict(**BASE),
    "davit_large": dict(
        depths=(1, 1, 9, 1), embed_dims=(192, 384, 768, 1536), num_heads=(6, 12, 24, 48)
    ),
    "davit_huge": dict(**HUGE),
    "davit_giant": dict(
        depths=(1, 1, 12, 3), embed_dims=(384, 768, 1536, 3072), num_heads=(12, 24, 48, 96)
    ),
    "davit_base_fl": dict(**BASE, **FLORENCE),
    "davit_huge_fl": dict(**HUGE, **FLORENCE),
}

FAMILY = Family(model=DaVit, variants=VARIANTS, weights=weights_table("davit"))
