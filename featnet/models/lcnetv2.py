"""PP-LCNetV2: depthwise separable convolutions for CPUs, of several kernel sizes in training.

The network is described by its code (PaddleClas, pp_lcnet_v2.py), its predecessor by
https://arxiv.org/abs/2109.15099; the weights are distilled (https://arxiv.org/abs/2103.05959).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    ConvHead,
    ConvNormAct,
    Layer,
    SqueezeExcite,
    add_branches,
    build_act,
    get_act,
    get_norm,
    he_fan_out,
    initialize,
    make_divisible,
    merge_parallel,
    zero_bias,
)
from ..registry import Family, weights_table


class Plan(NamedTuple):
    """The form of a stage's blocks.

    Attributes:
        width: channels of the stage, before they are scaled.
        kernel: of the depthwise convolution.
        branched: it is a sum over this and all smaller odd kernels, until it is re-parameterised.
        squeeze: squeeze-excite behind it.
        split: two pointwise convolutions, half as wide between them.
        shortcut: around the blocks that keep the shape.
    """

    width: int
    kernel: int = 3
    branched: bool = False
    squeeze: bool = False
    split: bool = False
    shortcut: bool = False


STEM = Plan(64)
STAGES = (
    Plan(128),
    Plan(256),
    Plan(512, kernel=5, branched=True, squeeze=True, split=True),
    Plan(1024, kernel=5, branched=True, shortcut=True),
)
HIDDEN = 1280  # width of the classifier's hidden layer


class SeparableBlock(nn.Module):
    """Depthwise convolution, perhaps squeeze-excite, pointwise convolution.

    ``dw_conv`` takes the place of the branches when it is re-parameterised.

    Args:
        in_chs, out_chs: channels.
        plan: the form.
        stride: of the depthwise convolution.
        conv: a convolution with norm and activation.
        act: activation.
    """

    def __init__(
        self, in_chs: int, out_chs: int, *, plan: Plan, stride: int, conv: Layer, act: Layer
    ) -> None:
        super().__init__()
        depthwise = partial(conv, in_chs, in_chs, stride=stride, groups=in_chs)
        self.dw_conv: nn.Module = nn.Identity()
        self.dw_conv_list = nn.ModuleList()
        self.dw_act: nn.Module = nn.Identity()
        if plan.branched:
            kernels = [k for k in range(plan.kernel, 0, -2) if k > 1 or stride == 1]
            self.dw_conv_list.extend(depthwise(kernel_size=k, act=None) for k in kernels)
            self.dw_act = build_act(act)
        else:
            self.dw_conv = depthwise(kernel_size=plan.kernel)
        self.se = (
            SqueezeExcite(in_chs, rd_channels=in_chs // 4, act=partial(build_act, act))
            if plan.squeeze
            else nn.Identity()
        )
        half = out_chs // 2
        self.pw_conv = (
            nn.Sequential(conv(in_chs, half), conv(half, out_chs))
            if plan.split
            else conv(in_chs, out_chs)
        )
        self.has_skip = plan.shortcut and stride == 1 and in_chs == out_chs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dw_act(self.dw_conv(add_branches(self.dw_conv_list, x)))
        y = self.pw_conv(self.se(y))
        return y + x if self.has_skip else y

    def reparameterize(self) -> None:
        """Put one convolution in the place of the branches."""
        if len(self.dw_conv_list):
            self.dw_conv = merge_parallel(self.dw_conv_list)
            self.dw_conv_list = nn.ModuleList()


class LcNetV2(Backbone):
    """A strided convolution and a block, then four stages that halve the size.

    Args:
        scale: factor on all channels.
        depths: blocks in each stage.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "classifier"

    def __init__(
        self,
        scale: float = 1.0,
        depths: Sequence[int] = (2, 2, 6, 2),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(len(STAGES), depths=depths)
        act = get_act(act_layer)
        conv = partial(ConvNormAct, norm=get_norm(norm_layer), act=act)
        block = partial(SeparableBlock, conv=conv, act=act)
        stem_chs, width = make_divisible(32 * scale), make_divisible(STEM.width * scale)
        self.stem = nn.Sequential(
            conv(in_chans, stem_chs, kernel_size=3, stride=2),
            block(stem_chs, width, plan=STEM, stride=1),
        )
        self.stages = nn.Sequential()
        for i, (plan, depth) in enumerate(zip(STAGES, depths, strict=True)):
            stage, out_chs = Blocks(), make_divisible(plan.width * scale)
            for j in range(depth):
                stage.append(block(width, out_chs, plan=plan, stride=1 if j else 2))
                width = out_chs
            self.add_stage(f"stages.{i}", stage, channels=width, reduction=4 * 2**i)
        self.add_head(
            width,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=ConvHead(HIDDEN, act=act, bias=False),
        )
        initialize(self, conv=[he_fan_out, zero_bias], linear=[zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, 64, H/2, W/2)
        for stage in self.stages:
            x = stage(x)  # (N, 128, H/4, W/4), then halved and twice as wide
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": blocks}


VARIANTS: dict[str, dict[str, Any]] = {
    "lcnetv2_small": dict(scale=0.75, depths=(2, 2, 4, 2)),
    "lcnetv2_base": dict(scale=1.0, depths=(2, 2, 6, 2)),
    "lcnetv2_large": dict(scale=1.25, depths=(2, 2, 8, 2)),
}

FAMILY = Family(model=LcNetV2, variants=VARIANTS, weights=weights_table("lcnetv2"))
