"""Inception v4: v3's ideas in uniform blocks (https://arxiv.org/abs/1602.07261)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import Blocks, Inception, Layer, get_act, get_norm, inception_conv
from ..registry import Family, weights_table

WIDE, TALL = (1, 7), (7, 1)
Step = tuple[Any, ...]  # channels, then the kernel


def path(conv: Layer, chs: int, *steps: Step) -> nn.Sequential:
    """Convolutions one after the other; ``"stride"`` and ``"valid"`` mark those that do not pad."""
    layers = nn.Sequential()
    for out_chs, *kernel in steps:
        stride, valid = 2 if "stride" in kernel else 1, "valid" in kernel
        sides = [k for k in kernel if not isinstance(k, str)]
        layers.append(conv(chs, out_chs, *sides, stride=stride, padded=stride == 1 and not valid))
        chs = out_chs
    return layers


def pooled(conv: Layer, in_chs: int, out_chs: int) -> nn.Sequential:
    """An average over the neighbours within the map, then a convolution."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(in_chs, out_chs))


def stem(conv: Layer, in_chans: int) -> list[nn.Module]:
    """The layers before the blocks; the second half of them concatenate two paths."""
    return [
        conv(in_chans, 32, 3, stride=2),
        conv(32, 32, 3, padded=False),
        conv(32, 64, 3),
        Inception({"maxpool": nn.MaxPool2d(3, 2), "conv": conv(64, 96, 3, stride=2)}),
        Inception(
            {
                "branch0": path(conv, 160, (64,), (96, 3, "valid")),
                "branch1": path(conv, 160, (64,), (64, WIDE), (64, TALL), (96, 3, "valid")),
            }
        ),
        Inception({"conv": conv(192, 192, 3, stride=2), "maxpool": nn.MaxPool2d(3, 2)}),
    ]


def grid35(conv: Layer) -> Inception:
    """Kernels of 1, 3 and twice 3."""
    return Inception(
        {
            "branch0": conv(384, 96),
            "branch1": path(conv, 384, (64,), (96, 3)),
            "branch2": path(conv, 384, (64,), (96, 3), (96, 3)),
            "branch3": pooled(conv, 384, 96),
        }
    )


def grid17(conv: Layer) -> Inception:
    """Kernels of 7, each as a row and a column."""
    double = ((192,), (192, TALL), (224, WIDE), (224, TALL), (256, WIDE))
    return Inception(
        {
            "branch0": conv(1024, 384),
            "branch1": path(conv, 1024, (192,), (224, WIDE), (256, TALL)),
            "branch2": path(conv, 1024, *double),
            "branch3": pooled(conv, 1024, 128),
        }
    )


def grid8(conv: Layer) -> Inception:
    """Kernels of 3 as a row and a column side by side."""
    row, column = (1, 3), (3, 1)
    return Inception(
        {
            "branch0": conv(1536, 256),
            "branch1_0": conv(1536, 384),
            "branch1_1a": conv(384, 256, row),
            "branch1_1b": conv(384, 256, column),
            "branch2_0": conv(1536, 384),
            "branch2_1": conv(384, 448, column),
            "branch2_2": conv(448, 512, row),
            "branch2_3a": conv(512, 256, row),
            "branch2_3b": conv(512, 256, column),
            "branch3": pooled(conv, 1536, 256),
        },
        (
            "branch0",
            "branch1_0 branch1_1a|branch1_1b",
            "branch2_0 branch2_1 branch2_2 branch2_3a|branch2_3b",
            "branch3",
        ),
    )


def reductions(conv: Layer) -> tuple[Inception, Inception]:
    """To half of the size, from 35 and from 17 positions."""
    first = Inception(
        {
            "branch0": conv(384, 384, 3, stride=2),
            "branch1": path(conv, 384, (192,), (224, 3), (256, 3, "stride")),
            "branch2": nn.MaxPool2d(3, 2),
        }
    )
    second = Inception(
        {
            "branch0": path(conv, 1024, (192,), (192, 3, "stride")),
            "branch1": path(conv, 1024, (256,), (256, WIDE), (320, TALL), (320, 3, "stride")),
            "branch2": nn.MaxPool2d(3, 2),
        }
    )
    return first, second


class InceptionV4(Backbone):
    """An unpadded stem, then blocks at three sizes: 35, 17 and 8 of 299 pixels.

    Args:
        depths: blocks at each size.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "features.0.conv", "last_linear"
    border = 80

    def __init__(
        self,
        depths: Sequence[int] = (4, 7, 3),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm = partial(get_norm(norm_layer), eps=1e-3)
        conv = partial(inception_conv, act=get_act(act_layer), norm=norm)
        self.features = Blocks(*stem(conv, in_chans))
        self.add_level("features.2", channels=64, reduction=2)
        self.add_level("features.3", channels=160, reduction=4)
        smaller = iter(reductions(conv))
        grids, widths = (grid35, grid17, grid8), (384, 1024, 1536)
        for i, (grid, width, depth) in enumerate(zip(grids, widths, depths, strict=True)):
            self.features.extend([next(smaller)] if i else [])
            self.features.extend(grid(conv) for _ in range(depth))
            name = f"features.{len(self.features) - 1}"
            self.add_level(name, channels=width, reduction=8 * 2**i)
        self.add_head(1536, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        # (N, C, H/2, W/2), then halved, less what the borders lose
        yield from self.through("features", x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^features\.[012]\.", "blocks": r"^features\.(\d+)"}


VARIANTS: dict[str, dict[str, Any]] = {"inception_v4": dict()}

FAMILY = Family(model=InceptionV4, variants=VARIANTS, weights=weights_table("inception_v4"))
