"""CPUBone: LowFormer for processors, with grouped convolutions and 2x2 kernels.

Paper: CPUBone, Efficient Vision Backbone Design for Devices with Low Parallelization Capabilities;
its attention is LowFormer's (https://arxiv.org/abs/2409.03460).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import check_choice
from ..layers import Head, Layer, Phased, drop_path_rates, get_act, get_norm, rename_keys, unit
from ..registry import Family, weights_table
from .lowformer import (
    ConvAttention,
    ConvFormer,
    Residual,
    check_widths,
    conv_block,
    mlp,
    whole_norm,
)

# Which convolutions of a block have a norm: that widens, that is depthwise, that narrows
NORMS = {"proj": (False, False, True), "depth_proj": (False, True, True), "all": (True, True, True)}


class CPUBoneBlock(Phased):
    """Attention, MLP and convolutions, each beside the identity; (N, C, H, W)."""

    channels_last = False

    def __init__(
        self,
        dim: int,
        *,
        attention: nn.Module,
        mlp_ratio: int,
        local: nn.Module,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        context = nn.Sequential(whole_norm(dim), attention)
        second = Residual(mlp(dim, mlp_ratio, proj_drop), drop_path)
        self.total = nn.Sequential(
            nn.Sequential(Residual(context, drop_path), second), Residual(local, drop_path)
        )

    def run(self, x: torch.Tensor) -> torch.Tensor:
        return self.total(x)


class CPUBone(ConvFormer):
    """A stem at half the size, then four stages that halve it; the last two have attention.

    With an output stride blocks with attention run on the interleaved maps by themselves.

    Args:
        width_list, depth_list: channels and blocks of the stem and of each stage.
        head_widths: channels of the convolution before the pooling, and of the layer behind it.
        expand_ratio, stem_expand_ratio: hidden width of the blocks, and of the stem's.
        downsample_expand_ratios: of each stage's block that halves the size; None for
            ``expand_ratio``.
        expand_groups: groups of the convolutions that widen.
        fused_conv, fused_downsample: full convolutions in place of depthwise ones: where there are
            fewer than 256 channels, and before blocks with attention.
        attn_mlp_ratio: hidden width of the MLPs.
        small_kernels: 2x2 kernels in blocks with attention.
        attn_upsample: back from the attention by ``"transpose"``, a transposed convolution, or
            ``"nearest"``, repeated positions.
        local_mbconv_norm: norms of these blocks' depthwise form: ``"proj"``, ``"depth_proj"`` or
            ``"all"``.
        drop_rate, proj_drop_rate: before the classifier, and of the MLPs' outputs.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "head.classifier.linear"

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
        fused_conv: bool = False,
        fused_downsample: bool = False,
        attn_mlp_ratio: int = 2,
        small_kernels: bool = False,
        attn_upsample: str = "transpose",
        local_mbconv_norm: str = "proj",
        norm_layer: str | Layer = "batchnorm2d",
        act_layer: str | Layer = "hard_swish",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        for name, value, allowed in (
            ("attn_upsample", attn_upsample, ("transpose", "nearest")),
            ("local_mbconv_norm", local_mbconv_norm, tuple(NORMS)),
        ):
            check_choice(name, value, allowed)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        down = check_widths(width_list, depth_list, downsample_expand_ratios, expand_ratio)
        form = partial(conv_block, norm=norm, act=act, groups=expand_groups)
        self._small, self._nearest = small_kernels, attn_upsample == "nearest"
        self._fused, norms = fused_conv, NORMS[local_mbconv_norm]
        self._local = partial(
            form, expand=expand_ratio, kernel_size=2 if small_kernels else 3, norms=norms, bias=True
        )
        self._block = partial(CPUBoneBlock, mlp_ratio=attn_mlp_ratio, proj_drop=proj_drop_rate)
        self.add_stages(
            width_list,
            depth_list,
            rates=drop_path_rates(drop_path_rate, depth_list),
            stem_expand=stem_expand_ratio,
            expand=expand_ratio,
            down_expand=down,
            block=partial(form, fused=fused_conv),
            down=partial(form, fused=fused_downsample),
            norm=norm,
            act=act,
        )
        linear = nn.Linear(*head_widths, bias=False)
        hidden = OrderedDict(linear=linear, norm=nn.LayerNorm(head_widths[1]), act=act())
        self.head = nn.Sequential(
            OrderedDict(
                in_conv=unit(width_list[-1], head_widths[0], norm=norm, act=act),
                pre_classifier=nn.Sequential(hidden),
                classifier=nn.Sequential(),
            )
        )
        self.add_head(
            width_list[-1],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(
                "head.pre_classifier",
                before=("head.in_conv",),
                channels=head_widths[0],
                gives=head_widths[1],
                channels_last=True,
            ),
        )

    def attention_block(self, stage: int, dim: int, drop_path: float) -> nn.Module:
        stride = 2 if stage == 2 else 1
        side = 5 if stride > 1 else 3
        attention = ConvAttention(
            dim,
            stride=stride,
            kernel_size=2 if self._small else side,
            fuse=self._fused,
            nearest=self._nearest,
        )
        local = self._local(dim, dim, fused=self._fused and dim < 256)
        return self._block(dim, attention=attention, local=local, drop_path=drop_path)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        del coarse
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names, and their biases before norms, which become
        part of the norms' means."""
        renamed = rename_keys(
            state,
            (
                (r"\.conv_proj\.0\.", ".conv_proj.conv."),
                (r"\.conv_proj\.1\.", ".conv_proj.norm."),
                (r"\.pwise\.0\.", ".pwise."),
                (r"^head\.op_list\.0\.", "head.in_conv."),
                (r"^head\.op_list\.2\.", "head.pre_classifier."),
                (r"^head\.op_list\.3\.", "head.classifier."),
                (r"^backbone\.input_stem\.", "stem."),
                (r"^backbone\.stages\.", "stages."),
                (r"\.op_list\.", "."),
            ),
        )
        converted, own = dict(renamed), self.state_dict().keys()
        for key in renamed.keys() - own:
            mean = re.sub(r"\.conv(\.1)?\.bias$", ".norm.running_mean", key)
            if mean != key and mean in own and mean in renamed:
                converted[mean] = renamed[mean] - converted.pop(key)
        return converted


COMMON: dict[str, Any] = dict(
    fused_conv=True,
    fused_downsample=True,
    attn_mlp_ratio=4,
    expand_groups=2,
    small_kernels=True,
    attn_upsample="nearest",
)
SMALL: dict[str, Any] = dict(width_list=(12, 24, 48, 96, 192), **COMMON)
B: dict[str, Any] = dict(width_list=(16, 32, 64, 128, 256), **COMMON)
SIX: dict[str, Any] = dict(downsample_expand_ratios=(6, 6, 6, 6))

VARIANTS: dict[str, dict[str, Any]] = {
    "cpubone_nano": dict(depth_list=(0, 1, 1, 1, 2), **SMALL),
    "cpubone_t0": dict(depth_list=(0, 1, 1, 2, 3), **SMALL),
    "cpubone_s0": dict(width_list=(14, 28, 56, 112, 224), depth_list=(0, 1, 1, 2, 3), **COMMON),
    "cpubone_b0_bfrobust": dict(depth_list=(0, 1, 1, 3, 4), local_mbconv_norm="all", **B),
    "cpubone_b1_bfrobust": dict(depth_list=(0, 1, 1, 5, 5), local_mbconv_norm="all", **B, **SIX),
    "cpubone_b1_dwnorm": dict(
        depth_list=(0, 1, 1, 5, 5), local_mbconv_norm="depth_proj", **B, **SIX
    ),
    "cpubone_b2_bfrobust": dict(
        width_list=(20, 40, 80, 160, 320),
        depth_list=(0, 1, 1, 6, 6),
        head_widths=(2304, 2560),
        drop_path_rate=0.1,
        local_mbconv_norm="all",
        **COMMON,
        **SIX,
    ),
    "cpubone_b2pt5_dwnorm": dict(
        width_list=(24, 48, 96, 192, 384),
        depth_list=(0, 1, 1, 6, 6),
        head_widths=(2304, 2560),
        local_mbconv_norm="depth_proj",
        **COMMON,
        **SIX,
    ),
    "cpubone_b3": dict(
        width_list=(32, 64, 128, 256, 512),
        depth_list=(1, 2, 3, 6, 6),
        stem_expand_ratio=4,
        **COMMON,
        **SIX,
    ),
}

FAMILY = Family(model=CPUBone, variants=VARIANTS, weights=weights_table("cpubone"))
