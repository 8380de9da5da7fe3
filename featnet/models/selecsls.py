"""SelecSLS: blocks that concatenate three depths of a path and the first output of their stage.

Paper: XNect (https://arxiv.org/abs/1907.00837), the network of its first stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_stages
from ..layers import Blocks, he_fan_out, initialize
from ..registry import Family, weights_table

STEM = 32  # channels of the first convolution


def conv_bn(in_chs: int, out_chs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the size, up to its stride; norm; activation."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True))


class SelectiveBlock(nn.Module):
    """Three depths of a path side by side, and the output of the stage's first block beside them.

    Args:
        in_chs, mid_chs, out_chs: channels.
        skip_chs: of the stage's first output; 0 in that block itself, which strides.
    """

    def __init__(self, in_chs: int, skip_chs: int, mid_chs: int, out_chs: int) -> None:
        super().__init__()
        half = mid_chs // 2
        self.is_first = not skip_chs
        self.conv1 = conv_bn(in_chs, mid_chs, 3, 2 if self.is_first else 1)
        self.conv2 = conv_bn(mid_chs, mid_chs, 1)
        self.conv3 = conv_bn(mid_chs, half)
        self.conv4 = conv_bn(half, mid_chs, 1)
        self.conv5 = conv_bn(mid_chs, half)
        self.conv6 = conv_bn(2 * mid_chs + skip_chs, out_chs, 1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        first = self.conv1(x)
        second = self.conv3(self.conv2(first))
        third = self.conv5(self.conv4(second))
        skips = () if skip is None else (skip,)
        return self.conv6(torch.cat((first, second, third, *skips), 1))


class SelecSls(Backbone):
    """A strided convolution, three stages of selective blocks, four convolutions to stride 64.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage's blocks, but for the last one.
        outs: channels of each stage's last block.
        head: channels of the four convolutions behind, of which the first and third stride.
        last_kernel: of the fourth.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0", "fc"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int],
        outs: Sequence[int],
        head: Sequence[int],
        *,
        last_kernel: int = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, widths=widths, outs=outs)
        check_stages(4, head=head)
        if min(depths, default=0) < 2:
            raise ArgumentError(f"depths={tuple(depths)}: two blocks in each stage are the fewest.")
        self.stem = conv_bn(in_chans, STEM, 3, 2)
        self.add_level("stem.2", channels=STEM, reduction=2)
        self.features, chs, reduction = Blocks(), STEM, 2
        for depth, width, out_chs in zip(depths, widths, outs, strict=True):
            for j in range(depth):
                wide = out_chs if j == depth - 1 else width
                self.features.append(SelectiveBlock(chs, width if j else 0, width, wide))
                chs = wide
            reduction *= 2
            name = f"features.{len(self.features) - 1}"
            self.add_level(name, channels=chs, reduction=reduction)
        kernels, strides = (3, 3, 3, last_kernel), (2, 1, 2, 1)
        self.head = nn.Sequential(*map(conv_bn, (chs, *head), head, kernels, strides))
        self.add_level("head.1", channels=head[1], reduction=reduction * 2)
        self.add_level("head.3", channels=head[3], reduction=reduction * 4)
        self.add_head(
            head[3], num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )
        initialize(self, conv=[he_fan_out])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = skip = self.stem(x)  # (N, C, H/2, W/2)
        yield x
        ends = {level.module for level in self._levels}
        for name, block in self.features.named_children():
            if block.is_first:
                x = skip = self.features.run([block], x)
            else:
                x = self.features.run([partial(block, skip=skip)], x)
            if f"features.{name}" in ends:
                yield x  # (N, C, H/4, W/4), then halved
        yield from self.through("head", x)  # (N, C, H/32, W/32), (N, C, H/64, W/64)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^features\.(\d+)", "blocks_head": r"^head"}


DEPTHS_42, DEPTHS_60 = (2, 2, 2), (2, 3, 4)

VARIANTS: dict[str, dict[str, Any]] = {
    "selecsls42": dict(
        depths=DEPTHS_42, widths=(64, 144, 304), outs=(128, 288, 480), head=(960, 1024, 1024, 1280)
    ),
    "selecsls42b": dict(
        depths=DEPTHS_42, widths=(64, 144, 304), outs=(128, 288, 480), head=(960, 1024, 1280, 1024)
    ),
    "selecsls60": dict(
        depths=DEPTHS_60, widths=(64, 128, 288), outs=(128, 288, 416), head=(756, 1024, 1024, 1280)
    ),
    "selecsls60b": dict(
        depths=DEPTHS_60, widths=(64, 128, 288), outs=(128, 288, 416), head=(756, 1024, 1280, 1024)
    ),
    "selecsls84": dict(
        depths=(2, 5, 6),
        widths=(64, 144, 304),
        outs=(144, 304, 512),
        head=(960, 1024, 1024, 1280),
        last_kernel=3,
    ),
}

FAMILY = Family(model=SelecSls, variants=VARIANTS, weights=weights_table("selecsls"))
