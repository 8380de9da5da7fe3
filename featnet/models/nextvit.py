"""Next-ViT: stages of convolutional blocks that end with a block of attention.

Paper: Next-ViT, Next Generation Vision Transformer for Efficient Deployment
(https://arxiv.org/abs/2207.05501).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_stages
from ..layers import (
    DropPath,
    Layer,
    Mlp,
    Phased,
    Stage,
    absorb_norms,
    attend,
    build_act,
    drop_path_rates,
    get_act,
    get_norm,
    head_width,
    initialize,
    join_heads,
    make_divisible,
    pointwise,
    rename_keys,
    stage_rule,
    trunc_normal,
    unit,
    zero_bias,
)
from ..registry import Family, weights_table

WIDTHS = ((96, 96), (192, 256), (384, 512), (768, 1024))  # of convolutional blocks, of attention's
CYCLE = 5  # blocks of the third stage, of which the last has attention


class PatchEmbed(nn.Module):
    """Half the size, another width, or neither."""

    def __init__(self, in_chs: int, chs: int, *, stride: int, norm: Layer) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        self.conv: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if stride == 2:
            self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        if stride == 2 or in_chs != chs:
            self.conv, self.norm = nn.Conv2d(in_chs, chs, 1, bias=False), norm(chs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.pool(x)))


class ConvAttention(nn.Module):
    """A convolution within each head, and one between them."""

    def __init__(self, chs: int, *, head_dim: int, norm: Layer, act: Layer) -> None:
        super().__init__()
        groups = head_width(chs, head_dim)
        self.group_conv3x3 = nn.Conv2d(chs, chs, 3, padding=1, groups=groups, bias=False)
        self.norm = norm(chs)
        self.act = build_act(act)
        self.projection = nn.Conv2d(chs, chs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection(self.act(self.norm(self.group_conv3x3(x))))


class ConvBlock(nn.Module):
    """Convolutions of the heads, and an MLP on a batch norm, each beside the identity."""

    def __init__(
        self,
        in_chs: int,
        chs: int,
        *,
        stride: int,
        head_dim: int,
        norm: Layer,
        act: Layer,
        drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_chs, chs, stride=stride, norm=norm)
        self.mhca = ConvAttention(chs, head_dim=head_dim, norm=norm, act=act)
        self.attn_drop_path = DropPath(drop_path)
        self.norm = norm(chs)
        self.mlp = Mlp(chs, 3 * chs, act=partial(build_act, act), drop=drop, linear=pointwise)
        self.mlp_drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        x = x + self.attn_drop_path(self.mhca(x))
        return x + self.mlp_drop_path(self.mlp(self.norm(x)))

    def reparameterize(self) -> None:
        """The norm becomes part of the layer behind it."""
        if not isinstance(self.norm, nn.Identity):
            absorb_norms(self.mlp.fc1, self.norm)
            self.norm = nn.Identity()


class EfficientAttention(nn.Module):
    """Attention to means of ``sr_ratio`` squared positions that follow each other in rows.

    (N, L, C) -> (N, L, C).
    """

    fused_attn = True

    def __init__(
        self, dim: int, *, head_dim: int, sr_ratio: int, attn_drop: float, drop: float
    ) -> None:
        super().__init__()
        self.num_heads = head_width(dim, head_dim)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(drop)
        self.sr: nn.Module = nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if sr_ratio > 1:
            self.sr, self.norm = nn.AvgPool1d(sr_ratio**2), nn.BatchNorm1d(dim)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, heads, L, C / heads)."""
        n, length, dim = x.shape
        return x.reshape(n, length, self.num_heads, dim // self.num_heads).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.split(self.q(x))
        x = self.norm(self.sr(x.transpose(1, 2))).transpose(1, 2)  # (N, M, C)
        k, v = self.split(self.k(x)), self.split(self.v(x))
        y = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn)
        return self.proj_drop(self.proj(join_heads(y)))


class TransformerBlock(Phased):
    """Attention for most channels, convolutions of the heads for the others, an MLP for both.

    Args:
        mix: share of the channels that attention gives.
        sr_ratio: see :class:`EfficientAttention`.
    """

    channels_last = False

    def __init__(
        self,
        in_chs: int,
        chs: int,
        *,
        stride: int,
        head_dim: int,
        norm: Layer,
        act: Layer,
        drop: float,
        drop_path: float,
        sr_ratio: int,
        mix: float,
        attn_drop: float,
    ) -> None:
        super().__init__()
        self.stride = stride
        width = make_divisible(int(chs * mix), 32)
        self.patch_embed = PatchEmbed(in_chs, width, stride=stride, norm=nn.BatchNorm2d)
        self.norm1 = norm(width)
        self.e_mhsa = EfficientAttention(
            width, head_dim=head_dim, sr_ratio=sr_ratio, attn_drop=attn_drop, drop=drop
        )
        self.mhsa_drop_path = DropPath(drop_path * mix)
        self.projection = PatchEmbed(width, chs - width, stride=1, norm=norm)
        self.mhca = ConvAttention(chs - width, head_dim=head_dim, norm=norm, act=act)
        self.mhca_drop_path = DropPath(drop_path * (1 - mix))
        self.norm2 = norm(chs)
        self.mlp = Mlp(chs, 2 * chs, act=partial(build_act, act), drop=drop, linear=pointwise)
        self.mlp_drop_path = DropPath(drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        y = self.e_mhsa(self.norm1(x).flatten(2).transpose(1, 2))
        x = x + self.mhsa_drop_path(y).transpose(1, 2).reshape(x.shape)
        y = self.projection(x)
        x = torch.cat((x, y + self.mhca_drop_path(self.mhca(y))), 1)
        return x + self.mlp_drop_path(self.mlp(self.norm2(x)))

    def reparameterize(self) -> None:
        """The norms become part of the layers behind them."""
        if isinstance(self.norm2, nn.Identity):
            return
        attention = self.e_mhsa
        norms = [n for n in (self.norm1, attention.norm) if not isinstance(n, nn.Identity)]
        absorb_norms(attention.q, self.norm1)
        absorb_norms(attention.k, *norms)
        absorb_norms(attention.v, *norms)
        absorb_norms(self.mlp.fc1, self.norm2)
        self.norm1 = self.norm2 = attention.norm = nn.Identity()


class NextViT(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    With an output stride blocks with attention run on the interleaved maps by themselves.

    Args:
        depths: blocks of each stage; of the third a multiple of 5.
        stem_chs: channels of the stem's convolutions.
        strides: of each stage.
        sr_ratios: of each stage, positions a side that attention condenses to one.
        head_dim: channels of a head.
        mix_block_ratio: share of the channels that attention gives.
        drop_rate, proj_drop_rate: before the classifier, and of the branches' outputs.
        attn_drop_rate: of the attention maps.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 10, 3),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem_chs: Sequence[int] = (64, 32, 64),
        strides: Sequence[int] = (1, 2, 2, 2),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        head_dim: int = 32,
        mix_block_ratio: float = 0.75,
        norm_layer: str | Layer = "batchnorm2d",
        act_layer: str | Layer = "relu",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, strides=strides, sr_ratios=sr_ratios, widths=WIDTHS)
        if depths[2] % CYCLE or min(depths) < 1:
            raise ArgumentError(f"depths={depths!r}: the third must be a multiple of {CYCLE}.")
        self.depths = tuple(depths)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        chain = (in_chans, *stem_chs, stem_chs[-1])
        self.stem = nn.Sequential(
            *(
                unit(chain[i], chain[i + 1], 3, stride=2 if i in (0, 3) else 1, norm=norm, act=act)
                for i in range(4)
            )
        )
        common: dict[str, Any] = dict(head_dim=head_dim, norm=norm, act=act, drop=proj_drop_rate)
        in_chs, reduction = stem_chs[-1], 4
        self.stages = nn.Sequential()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            blocks: list[nn.Module] = []
            for j, rate in enumerate(rates):
                options = {**common, "stride": 1 if j else strides[i], "drop_path": rate}
                period = CYCLE if i == 2 else len(rates)
                attends = i > 0 and j % period == period - 1
                chs = WIDTHS[i][attends]
                if attends:
                    options |= dict(sr_ratio=sr_ratios[i], mix=mix_block_ratio)
                    options["attn_drop"] = attn_drop_rate
                    blocks.append(TransformerBlock(in_chs, chs, **options))
                else:
                    blocks.append(ConvBlock(in_chs, chs, **options))
                in_chs = chs
            reduction *= strides[i]
            self.add_stage(f"stages.{i}", Stage(blocks), channels=in_chs, reduction=reduction)
        self.norm = norm(in_chs)
        self.add_head(in_chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        start = [trunc_normal, zero_bias]
        initialize(self, conv=start, linear=start)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm(y)

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.finish(y) if index == len(self.levels) - 1 else y

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^norm", (99999,))]}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names."""
        rules = (
            stage_rule("features", self.depths),
            (r"\.mlp\.conv([12])\.", r".mlp.fc\1."),
            (r"^proj_head\.0\.", "head.fc."),
        )
        return rename_keys(state, rules)


VARIANTS: dict[str, dict[str, Any]] = {
    "nextvit_small": dict(),
    "nextvit_base": dict(depths=(3, 4, 20, 3), drop_path_rate=0.2),
    "nextvit_large": dict(depths=(3, 4, 30, 3), drop_path_rate=0.2),
}

FAMILY = Family(model=NextViT, variants=VARIANTS, weights=weights_table("nextvit"))
