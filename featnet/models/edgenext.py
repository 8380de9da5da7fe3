"""EdgeNeXt: ConvNeXt's blocks, and attention between channels where a stage ends.

Paper: https://arxiv.org/abs/2206.10589. Attention between channels is XCiT's cross-covariance
attention (https://arxiv.org/abs/2106.09681).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_choice, check_stages
from ..layers import (
    CrossCovarianceAttention,
    DropPath,
    FourierPositions,
    Layer,
    LayerNorm2d,
    Mlp,
    NormMlp,
    Phased,
    Stage,
    drop_path_rates,
    get_act,
    initialize,
    rename_keys,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table

channel_norm = partial(nn.LayerNorm, eps=1e-6)


def first_scale(channels: int, value: float | None) -> nn.Parameter | None:
    """Factors of a branch's channels; None for none."""
    return nn.Parameter(torch.full((channels,), float(value))) if value else None


class ConvBlock(nn.Module):
    """Depthwise convolution, norm, MLP; where it strides or widens, the shortcut follows it."""

    def __init__(
        self,
        in_chs: int,
        dim: int,
        *,
        kernel_size: int,
        stride: int,
        conv_bias: bool,
        expand_ratio: float,
        scale: float | None,
        act: Layer,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.late = stride > 1 or in_chs != dim
        pad, groups = kernel_size // 2, math.gcd(in_chs, dim)
        self.conv_dw = nn.Conv2d(
            in_chs, dim, kernel_size, stride, pad, groups=groups, bias=conv_bias
        )
        self.norm = channel_norm(dim)
        self.mlp = Mlp(dim, int(expand_ratio * dim), act=act)
        self.gamma = first_scale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_dw(x)
        x = y if self.late else x
        y = self.mlp(self.norm(y.permute(0, 2, 3, 1)))  # (N, H, W, C)
        y = y if self.gamma is None else self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class SplitTransposeBlock(Phased):
    """Convolutions of slices of the channels in a row, attention between channels, MLP.

    Args:
        scales: slices; all but one are convolved.
        positions: add Fourier positions before the attention.
    """

    channels_last = False

    def __init__(
        self,
        dim: int,
        *,
        scales: int,
        num_heads: int,
        positions: bool,
        conv_bias: bool,
        expand_ratio: float,
        scale: float | None,
        act: Layer,
        drop_path: float,
    ) -> None:
        super().__init__()
        width = math.ceil(dim / scales)
        conv = partial(nn.Conv2d, width, width, 3, padding=1, groups=width, bias=conv_bias)
        self.convs = nn.ModuleList(conv() for _ in range(max(1, scales - 1)))
        self.pos_embd = FourierPositions(dim) if positions else None
        self.norm_xca = channel_norm(dim)
        self.gamma_xca = first_scale(dim, scale)
        self.xca = CrossCovarianceAttention(dim, num_heads)
        self.norm = channel_norm(dim)
        self.mlp = Mlp(dim, int(expand_ratio * dim), act=act)
        self.gamma = first_scale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        slices = x.chunk(len(self.convs) + 1, 1)
        y, done = slices[0], []
        for i, conv in enumerate(self.convs):
            y = conv(y + slices[i] if i else y)
            done.append(y)
        y = torch.cat((*done, slices[-1]), 1)
        if self.pos_embd is not None:
            y = y + self.pos_embd(y)
        y = y.flatten(2).transpose(1, 2)  # (N, L, C)
        answers = self.xca(self.norm_xca(y))
        if self.gamma_xca is not None:
            answers = self.gamma_xca * answers
        y = self.mlp(self.norm(y + self.drop_path(answers)))
        y = y if self.gamma is None else self.gamma * y
        return x + self.drop_path(y.transpose(1, 2).reshape(x.shape))


def make_stem(kind: str, in_chans: int, dim: int, conv_bias: bool) -> nn.Module:
    """Patches of four pixels, side by side or overlapping, and a norm."""
    kernels = {"patch": 4, "overlap": 9}
    check_choice("stem_type", kind, kernels)
    side = kernels[kind]
    conv = nn.Conv2d(in_chans, dim, side, 4, side // 2 if side > 4 else 0, bias=conv_bias)
    return nn.Sequential(conv, LayerNorm2d(dim))


class EdgeNeXt(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    With an output stride blocks with attention run on the interleaved maps by themselves.

    Args:
        depths, dims: blocks and channels of each stage.
        global_block_counts: of each stage's blocks, how many have attention, the last ones.
        kernel_sizes: of each stage's depthwise convolutions.
        heads, d2_scales, use_pos_emb: of each stage's attention: heads, slices of the channels
            that are convolved before it, and Fourier positions.
        expand_ratio: hidden width of the MLPs.
        ls_init_value: first scale of each branch, learnt from there; None or 0 for no scale.
        downsample_block: the first block of a stage strides, in place of a 2x2 convolution.
        conv_bias: biases of the convolutions.
        stem_type: ``"patch"``, 4x4, or ``"overlap"``, 9x9.
        head_norm_first: norm the map before the pooling, not what the pooling gives.
        head_init_scale: factor on the classifier's first weights.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (24, 48, 88, 168),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        global_block_counts: Sequence[int] = (0, 1, 1, 1),
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        heads: Sequence[int] = (8, 8, 8, 8),
        d2_scales: Sequence[int] = (2, 2, 3, 4),
        use_pos_emb: Sequence[bool] = (False, True, False, False),
        ls_init_value: float | None = 1e-6,
        head_init_scale: float = 1.0,
        expand_ratio: float = 4.0,
        downsample_block: bool = False,
        conv_bias: bool = True,
        stem_type: str = "patch",
        head_norm_first: bool = False,
        act_layer: str | Layer = "gelu",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(
            depths=depths,
            dims=dims,
            global_block_counts=global_block_counts,
            kernel_sizes=kernel_sizes,
            heads=heads,
            d2_scales=d2_scales,
            use_pos_emb=use_pos_emb,
        )
        self.stem = make_stem(stem_type, in_chans, dims[0], conv_bias)
        common: dict[str, Any] = dict(
            conv_bias=conv_bias,
            expand_ratio=expand_ratio,
            scale=ls_init_value,
            act=get_act(act_layer),
        )
        self.stages = nn.Sequential()
        in_chs, rates = dims[0], drop_path_rates(drop_path_rate, depths)
        for i, dim in enumerate(dims):
            down: nn.Module = nn.Identity()
            if i and not downsample_block:
                conv = nn.Conv2d(in_chs, dim, 2, 2, bias=conv_bias)
                down, in_chs = nn.Sequential(LayerNorm2d(in_chs), conv), dim
            split = partial(
                SplitTransposeBlock,
                dim,
                scales=d2_scales[i],
                num_heads=heads[i],
                positions=use_pos_emb[i],
                **common,
            )
            blocks: list[nn.Module] = []
            for j, rate in enumerate(rates[i]):
                if j >= depths[i] - global_block_counts[i]:
                    blocks.append(split(drop_path=rate))
                    continue
                stride = 2 if i and j == 0 and downsample_block else 1
                options = dict(kernel_size=kernel_sizes[i], stride=stride, **common)
                blocks.append(ConvBlock(in_chs, dim, drop_path=rate, **options))
                in_chs = dim
            stage = Stage(blocks, downsample=down)
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=4 * 2**i)
        self.norm_pre = LayerNorm2d(in_chs) if head_norm_first else nn.Identity()
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=NormMlp(norm=None if head_norm_first else LayerNorm2d),
        )
        start = partial(trunc_normal, cut=2)
        initialize(self, conv=[start, zero_bias], linear=[start, zero_bias])
        last = partial(trunc_normal, std=0.02 * head_init_scale, cut=2)
        initialize(self.get_submodule("head"), linear=[last])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm_pre(y)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("temperature")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm_pre", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names."""
        if "downsample_layers.0.0.weight" not in state:
            return dict(state)
        return rename_keys(
            state,
            (
                (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"^downsample_layers\.0\.", "stem."),
                (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
                ("dwconv", "conv_dw"),
                ("pwconv", "mlp.fc"),
                (r"^head\.", "head.fc."),
                (r"^norm\.", "head.norm."),
            ),
            like=self,
        )


VARIANTS: dict[str, dict[str, Any]] = {
    "edgenext_xx_small": dict(depths=(2, 2, 6, 2), heads=(4, 4, 4, 4)),
    "edgenext_x_small": dict(dims=(32, 64, 100, 192), heads=(4, 4, 4, 4)),
    "edgenext_small": dict(dims=(48, 96, 160, 304)),
    "edgenext_base": dict(dims=(80, 160, 288, 584)),
    "edgenext_small_rw": dict(
        dims=(48, 96, 192, 384), downsample_block=True, conv_bias=False, stem_type="overlap"
    ),
}

FAMILY = Family(model=EdgeNeXt, variants=VARIANTS, weights=weights_table("edgenext"))
