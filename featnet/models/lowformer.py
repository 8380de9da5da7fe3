"""LowFormer: attention at a lower resolution, between convolutions that stride and upsample.

Paper: LowFormer, Hardware Efficient Design for Convolutional Transformer Backbones
(https://arxiv.org/abs/2409.03460).
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
from ..errors import ArgumentError, check_stages
from ..layers import (
    Blocks,
    DropPath,
    Head,
    Layer,
    Phased,
    attend,
    crop,
    drop_path_rates,
    get_act,
    get_norm,
    initialize,
    rename_keys,
    trunc_normal,
    unit,
    zero_bias,
)
from ..registry import Family, weights_table

whole_norm = partial(nn.GroupNorm, 1)


class Residual(nn.Module):
    """A block beside the identity; without it where the size changes."""

    def __init__(self, main: nn.Module, drop_path: float | None = 0.0) -> None:
        super().__init__()
        self.main = main
        self.shortcut = drop_path is not None
        self.drop_path = DropPath(drop_path or 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop_path(self.main(x)) + x if self.shortcut else self.main(x)


def conv_block(
    in_chs: int,
    chs: int,
    *,
    expand: float,
    norm: Layer,
    act: Layer,
    stride: int = 1,
    kernel_size: int = 3,
    fused: bool = False,
    groups: int = 1,
    last_groups: int = 1,
    norms: Sequence[bool] = (False, False, True),
    bias: bool = False,
) -> nn.Module:
    """A wider map and back, by a full convolution (``fused``) or a depthwise one.

    Args:
        groups, last_groups: of the convolutions that widen and narrow.
        norms: with a depthwise one, which of the three convolutions have a norm.
        bias: of the convolutions before the last; with a depthwise one of those without a norm.
    """
    hidden = round(in_chs * expand)
    if fused:
        wide = unit(
            in_chs, hidden, kernel_size, stride=stride, groups=groups, norm=norm, act=act, bias=bias
        )
        narrow = unit(hidden, chs, norm=norm)
        return nn.Sequential(OrderedDict(spatial_conv=wide, point_conv=narrow))
    first, second, third = (norm if there else None for there in norms)
    inner = partial(unit, act=act)
    return nn.Sequential(
        OrderedDict(
            inverted_conv=inner(
                in_chs, hidden, groups=groups, norm=first, bias=bias and first is None
            ),
            depth_conv=inner(
                hidden,
                hidden,
                kernel_size,
                stride=stride,
                groups=hidden,
                norm=second,
                bias=bias and second is None,
            ),
            point_conv=unit(hidden, chs, groups=last_groups, norm=third),
        )
    )


class ConvAttention(nn.Module):
    """Attention between the positions of a map that a convolution made, and a convolution back.

    Args:
        stride: of both.
        kernel_size: of the first; 2 for patches side by side.
        fuse: the way back also projects the heads' answers.
        nearest: the way back repeats positions, in place of a transposed convolution.
    """

    fused_attn = True

    def __init__(
        self, dim: int, *, stride: int, kernel_size: int, fuse: bool, nearest: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = max(1, dim // 2 // 30)
        self.stride = stride if kernel_size == 2 else 1  # what the map is filled up to
        width = self.num_heads * (dim // self.num_heads // 2)
        self.conv_proj = unit(dim, dim, kernel_size, stride=stride, groups=dim, norm=nn.BatchNorm2d)
        self.pwise = nn.Conv2d(dim, 3 * width, 1, bias=False)
        self.attn_drop = nn.Dropout(0.0)
        self.o_proj = nn.Identity() if fuse else nn.Conv2d(width, dim, 1)
        reads, groups = (width, 1) if fuse else (dim, dim)
        if nearest:
            repeat = nn.Upsample(scale_factor=stride) if stride > 1 else nn.Identity()
            self.upsampling: nn.Module = nn.Sequential(
                *([nn.Conv2d(width, dim, 1)] if fuse else []), repeat
            )
        else:
            side, pad = (2 * stride, stride // 2) if stride > 1 else (3, 1)
            self.upsampling = nn.ConvTranspose2d(reads, dim, side, stride, pad, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        if self.stride > 1:
            x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        x = self.pwise(self.conv_proj(x))
        n, channels, rows, columns = x.shape
        x = x.reshape(n, self.num_heads, channels // self.num_heads, rows * columns)
        q, k, v = x.transpose(2, 3).chunk(3, 3)  # (N, heads, L, C)
        y = attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn).transpose(2, 3)
        y = self.upsampling(self.o_proj(y.reshape(n, channels // 3, rows, columns)))
        return crop(y, (height, width), axis=2)


def mlp(dim: int, ratio: int, drop: float) -> nn.Module:
    """A norm over the whole map and two 1x1 convolutions."""
    wide, back = nn.Conv2d(dim, dim * ratio, 1), nn.Conv2d(dim * ratio, dim, 1)
    return nn.Sequential(whole_norm(dim), wide, nn.GELU(), back, nn.Dropout(drop))


class LowFormerBlock(Phased):
    """Attention, MLP and convolutions, each beside the identity; (N, C, H, W)."""

    channels_last = False

    def __init__(
        self,
        dim: int,
        *,
        attention: nn.Module | None,
        attn_mlp: bool,
        mlp_ratio: int,
        local: nn.Module,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.attn: nn.Module = nn.Identity()
        self.mlp: nn.Module = nn.Identity()
        if attention is not None:
            main = nn.Sequential(whole_norm(dim), attention) if attn_mlp else attention
            self.attn = Residual(main, drop_path)
        if attn_mlp:
            self.mlp = Residual(mlp(dim, mlp_ratio, proj_drop), drop_path)
        self.local = Residual(local, drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.local(self.mlp(self.attn(x)))


class ConvFormer(Backbone):
    """A stem at half the size, then stages that halve it: convolutions, later attention too.

    With an output stride blocks with attention run on the interleaved maps by themselves.
    Subclasses give these blocks and the head.
    """

    def add_stages(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        rates: Sequence[Sequence[float]],
        stem_expand: float,
        expand: float,
        down_expand: Sequence[float],
        block: Layer,
        down: Layer,
        norm: Layer,
        act: Layer,
    ) -> None:
        """The stem and the stages.

        Args:
            block, down: ``f(in_chs, chs, stride=, expand=)``, of the stem and the first stages, and
                before blocks with attention.
        """
        width = widths[0]
        blocks: list[nn.Module] = [unit(self.in_chans, width, 3, stride=2, norm=norm, act=act)]
        for rate in rates[0]:
            blocks.append(Residual(block(width, width, expand=stem_expand), rate))
        self.stem = nn.Sequential(*blocks)
        self.stages, reduction = nn.Sequential(), 2
        for i, chs in enumerate(widths[1:]):
            blocks = []
            if i >= 2:
                first = down(width, chs, stride=2, expand=down_expand[i])
                blocks.append(Residual(first, None))
                blocks += [self.attention_block(i, chs, rate) for rate in rates[i + 1]]
            else:
                for j, rate in enumerate(rates[i + 1]):
                    if j:
                        blocks.append(Residual(block(chs, chs, expand=expand), rate))
                    else:
                        first = block(width, chs, stride=2, expand=down_expand[i])
                        blocks.append(Residual(first, None))
            reduction, width = (2 * reduction, chs) if blocks else (reduction, width)
            self.add_stage(f"stages.{i}", Blocks(*blocks), channels=width, reduction=reduction)

    def attention_block(self, stage: int, dim: int, drop_path: float) -> nn.Module:
        """A block of the last two stages."""
        raise NotImplementedError

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/2, W/2)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, C, H/8, W/8), and so on
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem\.\d+", "blocks": [(blocks, None)]}


def check_widths(
    widths: Sequence[int], depths: Sequence[int], down: Sequence[float] | None, expand: float
) -> Sequence[float]:
    """The hidden widths of the blocks that halve the size, one for each stage."""
    check_stages(width_list=widths, depth_list=depths)
    down = (expand,) * (len(widths) - 1) if down is None else down
    if len(down) != len(widths) - 1:
        raise ArgumentError(
            f"downsample_expand_ratios={down!r}: one for each of {len(widths) - 1} stages is "
            "expected."
        )
    return down


class LowFormer(ConvFormer):
    """A stem at half the size, then four stages that halve it; the last two have attention.

    With an output stride blocks with attention run on the interleaved maps by themselves.

    Args:
        width_list, depth_list: channels and blocks of the stem and of each stage.
        head_widths: channels of the convolution before the pooling, and of the layer behind it.
        expand_ratio, stem_expand_ratio: hidden width of the blocks, and of the stem's.
        downsample_expand_ratios: of each stage's block that halves the size; None for
            ``expand_ratio``.
        expand_groups: groups of the convolutions that widen and narrow.
        fused_conv: full convolutions in place of depthwise ones, where there are fewer than 256
            channels.
        attn, attn_mlp, attn_mlp_ratio: attention, MLPs and their hidden width.
        drop_rate, proj_drop_rate: before the classifier, and of the MLPs' outputs.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "classifier"

    def __init__(
        self,
        width_list: Sequence[int],
        depth_list: Sequence[int],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        head_widths: tuple[int, int] = (1536, 1600),
        expand_ratio: float = 4.0,
        stem_expand_ratio: float = 2.0,
        downsample_expand_ratios: Sequence[float] | None = None,
        expand_groups: int = 1,
        fused_conv: bool = True,
        attn: bool = True,
        attn_mlp: bool = True,
        attn_mlp_ratio: int = 4,
        norm_layer: str | Layer = "batchnorm2d",
        act_layer: str | Layer = "hard_swish",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        down = check_widths(width_list, depth_list, downsample_expand_ratios, expand_ratio)
        form = partial(
            conv_block, norm=norm, act=act, groups=expand_groups, last_groups=expand_groups
        )
        self._local = partial(form, expand=expand_ratio, bias=True)
        self._fused, self._attn = fused_conv, attn
        self._block = partial(
            LowFormerBlock, attn_mlp=attn_mlp, mlp_ratio=attn_mlp_ratio, proj_drop=proj_drop_rate
        )
        block = partial(form, fused=fused_conv)
        self.add_stages(
            width_list,
            depth_list,
            rates=drop_path_rates(drop_path_rate, depth_list),
            stem_expand=stem_expand_ratio,
            expand=expand_ratio,
            down_expand=down,
            block=block,
            down=block,
            norm=norm,
            act=act,
        )
        self.in_conv = unit(width_list[-1], head_widths[0], norm=norm, act=act)
        self.pre_classifier = nn.Sequential(
            nn.Linear(*head_widths, bias=False), nn.LayerNorm(head_widths[1]), act()
        )
        self.add_head(
            width_list[-1],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(
                "pre_classifier",
                before=("in_conv",),
                channels=head_widths[0],
                gives=head_widths[1],
                channels_last=True,
            ),
        )
        initialize(self, linear=[trunc_normal, zero_bias])

    def attention_block(self, stage: int, dim: int, drop_path: float) -> nn.Module:
        stride = 2 if stage == 2 else 1
        attention = ConvAttention(
            dim, stride=stride, kernel_size=5 if stride > 1 else 3, fuse=self._fused
        )
        return self._block(
            dim,
            attention=attention if self._attn else None,
            local=self._local(dim, dim, fused=self._fused and dim < 256),
            drop_path=drop_path,
        )

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names."""
        if "stem.0.conv.weight" in state:
            return dict(state)
        return rename_keys(
            state,
            (
                (r"^backbone\.input_stem\.", "stem."),
                (r"^backbone\.stages\.", "stages."),
                (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?0\.", "in_conv."),
                (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?2\.linear\.", "pre_classifier.0."),
                (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?2\.norm\.", "pre_classifier.1."),
                (r"^head\.(?:opseq|op_list)\.(?:op_list\.)?3\.linear\.", "classifier."),
                (r"\.op_list\.", "."),
                (r"\.total\.0\.0\.", ".attn."),
                (r"\.total\.0\.1\.", ".mlp."),
                (r"\.total\.0\.", ".attn."),
                (r"\.total\.1\.", ".local."),
                (r"\.conv_proj\.0\.", ".conv_proj.conv."),
                (r"\.conv_proj\.1\.", ".conv_proj.norm."),
                (r"\.pwise\.0\.", ".pwise."),
            ),
        )


B: dict[str, Any] = dict(width_list=(16, 32, 64, 128, 256))
B15: dict[str, Any] = dict(width_list=(20, 40, 80, 160, 320), head_widths=(2304, 2560))
B3: dict[str, Any] = dict(width_list=(32, 64, 128, 256, 512), stem_expand_ratio=4)
SIX: dict[str, Any] = dict(downsample_expand_ratios=(6, 6, 6, 6))

VARIANTS: dict[str, dict[str, Any]] = {
    "lowformer_b0": dict(depth_list=(0, 1, 1, 3, 4), **B),
    "lowformer_b1": dict(depth_list=(0, 1, 1, 5, 5), **B, **SIX),
    "lowformer_b15": dict(depth_list=(0, 1, 1, 6, 6), **B15, **SIX),
    "lowformer_b2": dict(
        width_list=(24, 48, 96, 192, 384),
        depth_list=(0, 1, 1, 6, 6),
        head_widths=(2304, 2560),
        **SIX,
    ),
    "lowformer_b3": dict(depth_list=(1, 2, 3, 6, 6), **B3, **SIX),
    "lowformer_e1": dict(depth_list=(0, 1, 1, 4, 4), attn=False, attn_mlp=False, **B15, **SIX),
    "lowformer_e2": dict(depth_list=(1, 2, 3, 4, 4), attn=False, attn_mlp=False, **B3, **SIX),
    "lowformer_e3": dict(depth_list=(1, 2, 3, 6, 6), attn_mlp=False, **B3, **SIX),
}

FAMILY = Family(model=LowFormer, variants=VARIANTS, weights=weights_table("lowformer"))
