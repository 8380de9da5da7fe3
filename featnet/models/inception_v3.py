"""Inception v3: factorised convolutions in blocks of parallel paths.

Paper: https://arxiv.org/abs/1512.00567. The layers have the names of TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import Inception, Layer, get_act, get_norm, inception_conv, initialize, trunc_normal
from ..registry import Family, weights_table

WIDE, TALL = (1, 7), (7, 1)


def grid35(conv: Layer, chs: int, pooled: int) -> Inception:
    """Kernels of 1, 5 and twice 3."""
    return Inception(
        {
            "branch1x1": conv(chs, 64),
            "branch5x5_1": conv(chs, 48),
            "branch5x5_2": conv(48, 64, 5),
            "branch3x3dbl_1": conv(chs, 64),
            "branch3x3dbl_2": conv(64, 96, 3),
            "branch3x3dbl_3": conv(96, 96, 3),
            "pool": nn.AvgPool2d(3, 1, 1),
            "branch_pool": conv(chs, pooled),
        },
        (
            "branch1x1",
            "branch5x5_1 branch5x5_2",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
            "pool branch_pool",
        ),
    )


def reduction35(conv: Layer, chs: int) -> Inception:
    """To half of the size."""
    return Inception(
        {
            "branch3x3": conv(chs, 384, 3, stride=2),
            "branch3x3dbl_1": conv(chs, 64),
            "branch3x3dbl_2": conv(64, 96, 3),
            "branch3x3dbl_3": conv(96, 96, 3, stride=2),
            "pool": nn.MaxPool2d(3, 2),
        },
        ("branch3x3", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3", "pool"),
    )


def grid17(conv: Layer, chs: int, mid: int) -> Inception:
    """Kernels of 7, each as a row and a column."""
    return Inception(
        {
            "branch1x1": conv(chs, 192),
            "branch7x7_1": conv(chs, mid),
            "branch7x7_2": conv(mid, mid, WIDE),
            "branch7x7_3": conv(mid, 192, TALL),
            "branch7x7dbl_1": conv(chs, mid),
            "branch7x7dbl_2": conv(mid, mid, TALL),
            "branch7x7dbl_3": conv(mid, mid, WIDE),
            "branch7x7dbl_4": conv(mid, mid, TALL),
            "branch7x7dbl_5": conv(mid, 192, WIDE),
            "pool": nn.AvgPool2d(3, 1, 1),
            "branch_pool": conv(chs, 192),
        },
        (
            "branch1x1",
            "branch7x7_1 branch7x7_2 branch7x7_3",
            "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5",
            "pool branch_pool",
        ),
    )


def reduction17(conv: Layer, chs: int) -> Inception:
    """To half of the size."""
    return Inception(
        {
            "branch3x3_1": conv(chs, 192),
            "branch3x3_2": conv(192, 320, 3, stride=2),
            "branch7x7x3_1": conv(chs, 192),
            "branch7x7x3_2": conv(192, 192, WIDE),
            "branch7x7x3_3": conv(192, 192, TALL),
            "branch7x7x3_4": conv(192, 192, 3, stride=2),
            "pool": nn.MaxPool2d(3, 2),
        },
        (
            "branch3x3_1 branch3x3_2",
            "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4",
            "pool",
        ),
    )


def grid8(conv: Layer, chs: int) -> Inception:
    """Kernels of 3 as a row and a column side by side."""
    return Inception(
        {
            "branch1x1": conv(chs, 320),
            "branch3x3_1": conv(chs, 384),
            "branch3x3_2a": conv(384, 384, (1, 3)),
            "branch3x3_2b": conv(384, 384, (3, 1)),
            "branch3x3dbl_1": conv(chs, 448),
            "branch3x3dbl_2": conv(448, 384, 3),
            "branch3x3dbl_3a": conv(384, 384, (1, 3)),
            "branch3x3dbl_3b": conv(384, 384, (3, 1)),
            "pool": nn.AvgPool2d(3, 1, 1),
            "branch_pool": conv(chs, 192),
        },
        (
            "branch1x1",
            "branch3x3_1 branch3x3_2a|branch3x3_2b",
            "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b",
            "pool branch_pool",
        ),
    )


class InceptionV3(Backbone):
    """Unpadded convolutions and pools, then blocks at three sizes: 35, 17 and 8 of 299 pixels.

    A training-time classifier in the middle (``AuxLogits``) is not built; a file's is left out.

    The arguments are every Backbone's.
    """

    first_conv, last_fc = "Conv2d_1a_3x3.conv", "fc"
    border = 80

    def __init__(
        self,
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
        levels = {"Conv2d_2b_3x3": (64, 2), "Conv2d_4a_3x3": (192, 4), "Mixed_5d": (288, 8)}
        levels |= {"Mixed_6e": (768, 16), "Mixed_7c": (2048, 32)}
        layers: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": conv(in_chans, 32, 3, stride=2),
            "Conv2d_2a_3x3": conv(32, 32, 3, padded=False),
            "Conv2d_2b_3x3": conv(32, 64, 3),
            "Pool1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": conv(64, 80),
            "Conv2d_4a_3x3": conv(80, 192, 3, padded=False),
            "Pool2": nn.MaxPool2d(3, 2),
            "Mixed_5b": grid35(conv, 192, 32),
            "Mixed_5c": grid35(conv, 256, 64),
            "Mixed_5d": grid35(conv, 288, 64),
            "Mixed_6a": reduction35(conv, 288),
            "Mixed_6b": grid17(conv, 768, 128),
            "Mixed_6c": grid17(conv, 768, 160),
            "Mixed_6d": grid17(conv, 768, 160),
            "Mixed_6e": grid17(conv, 768, 192),
            "Mixed_7a": reduction17(conv, 768),
            "Mixed_7b": grid8(conv, 1280),
            "Mixed_7c": grid8(conv, 2048),
        }
        for name, layer in layers.items():
            if name in levels:
                channels, reduction = levels[name]
                self.add_stage(name, layer, channels=channels, reduction=reduction)
            else:
                self.add_module(name, layer)
        self.add_head(2048, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        scheme = partial(trunc_normal, std=0.1)
        initialize(self, conv=[scheme], linear=[scheme])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        # (N, C, H/2, W/2), then halved, less what the borders lose
        yield from self.through("", x)

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Leave out the classifier in the middle."""
        return {k: v for k, v in state.items() if not k.startswith("AuxLogits.")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        later = [name for name, _ in self.named_children() if name.startswith("Mixed")]
        blocks = [(rf"^{name}", (float(i + 1),)) for i, name in enumerate(later)]
        return {"stem": r"^Conv2d_[12]", "blocks": [(r"^Conv2d_[34]", (0.0,)), *blocks]}


VARIANTS: dict[str, dict[str, Any]] = {"inception_v3": dict()}

FAMILY = Family(model=InceptionV3, variants=VARIANTS, weights=weights_table("inception_v3"))
