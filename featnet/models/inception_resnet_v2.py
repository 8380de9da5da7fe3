"""Inception-ResNet v2: Inception's paths as residual branches (https://arxiv.org/abs/1602.07261)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import Blocks, Inception, Layer, get_act, get_norm, inception_conv
from ..registry import Family, weights_table
from .inception_v4 import path, pooled


class ResidualInception(Inception):
    """Paths, a 1x1 convolution of their ends, and a shortcut.

    Args:
        paths: by name, each a module.
        in_chs: of the map.
        path_chs: of the paths' ends together.
        scale: factor on the branch.
        last: no activation behind the sum.
    """

    def __init__(
        self,
        paths: Mapping[str, nn.Module],
        in_chs: int,
        path_chs: int,
        *,
        scale: float,
        last: bool = False,
    ) -> None:
        super().__init__(paths)
        self.conv2d, self.scale = nn.Conv2d(path_chs, in_chs, 1), scale
        self.act = nn.Identity() if last else nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv2d(self.concatenated(x)) * self.scale + x)


def block35(conv: Layer) -> ResidualInception:
    """Kernels of 1, 3 and twice 3."""
    paths = {
        "branch0": conv(320, 32),
        "branch1": path(conv, 320, (32,), (32, 3)),
        "branch2": path(conv, 320, (32,), (48, 3), (64, 3)),
    }
    return ResidualInception(paths, 320, 128, scale=0.17)


def block17(conv: Layer) -> ResidualInception:
    """Kernels of 1, and of 7 as a row and a column."""
    paths = {
        "branch0": conv(1088, 192),
        "branch1": path(conv, 1088, (128,), (160, (1, 7)), (192, (7, 1))),
    }
    return ResidualInception(paths, 1088, 384, scale=0.10)


def block8(conv: Layer, *, last: bool = False) -> ResidualInception:
    """Kernels of 1, and of 3 as a row and a column."""
    paths = {
        "branch0": conv(2080, 192),
        "branch1": path(conv, 2080, (192,), (224, (1, 3)), (256, (3, 1))),
    }
    return ResidualInception(paths, 2080, 448, scale=1.0 if last else 0.20, last=last)


def mixed(conv: Layer) -> dict[str, Inception]:
    """The blocks without a shortcut, by name; the last two halve the size."""
    return {
        "mixed_5b": Inception(
            {
                "branch0": conv(192, 96),
                "branch1": path(conv, 192, (48,), (64, 5)),
                "branch2": path(conv, 192, (64,), (96, 3), (96, 3)),
                "branch3": pooled(conv, 192, 64),
            }
        ),
        "mixed_6a": Inception(
            {
                "branch0": conv(320, 384, 3, stride=2),
                "branch1": path(conv, 320, (256,), (256, 3), (384, 3, "stride")),
                "branch2": nn.MaxPool2d(3, 2),
            }
        ),
        "mixed_7a": Inception(
            {
                "branch0": path(conv, 1088, (256,), (384, 3, "stride")),
                "branch1": path(conv, 1088, (256,), (288, 3, "stride")),
                "branch2": path(conv, 1088, (256,), (288, 3), (320, 3, "stride")),
                "branch3": nn.MaxPool2d(3, 2),
            }
        ),
    }


class InceptionResnetV2(Backbone):
    """An unpadded stem, then residual blocks at three sizes: 35, 17 and 8 of 299 pixels.

    Args:
        depths: residual blocks at each size, but for the very last one.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv2d_1a.conv", "classif"
    border = 80

    def __init__(
        self,
        depths: Sequence[int] = (10, 20, 9),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(3, depths=depths)
        norm = partial(get_norm(norm_layer), eps=1e-3)
        conv = partial(inception_conv, act=get_act(act_layer), norm=norm)
        blocks = mixed(conv)
        levels = {"conv2d_2b": (64, 2), "conv2d_4a": (192, 4), "repeat": (320, 8)}
        levels |= {"repeat_1": (1088, 16), "conv2d_7b": (1536, 32)}
        layers: dict[str, nn.Module] = {
            "conv2d_1a": conv(in_chans, 32, 3, stride=2),
            "conv2d_2a": conv(32, 32, 3, padded=False),
            "conv2d_2b": conv(32, 64, 3),
            "maxpool_3a": nn.MaxPool2d(3, 2),
            "conv2d_3b": conv(64, 80),
            "conv2d_4a": conv(80, 192, 3, padded=False),
            "maxpool_5a": nn.MaxPool2d(3, 2),
            "mixed_5b": blocks["mixed_5b"],
            "repeat": Blocks(*(block35(conv) for _ in range(depths[0]))),
            "mixed_6a": blocks["mixed_6a"],
            "repeat_1": Blocks(*(block17(conv) for _ in range(depths[1]))),
            "mixed_7a": blocks["mixed_7a"],
            "repeat_2": Blocks(*(block8(conv) for _ in range(depths[2]))),
            "block8": block8(conv, last=True),
            "conv2d_7b": conv(2080, 1536),
        }
        for name, layer in layers.items():
            if name in levels:
                channels, reduction = levels[name]
                self.add_stage(name, layer, channels=channels, reduction=reduction)
            else:
                self.add_module(name, layer)
        self.add_head(1536, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        # (N, C, H/2, W/2), then halved, less what the borders lose
        yield from self.through("", x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        children = [name for name, _ in self.named_children()]
        names = [name for name in children if name.startswith(("mixed", "repeat"))]
        parts = [
            f"{name}.{child}" if name.startswith("repeat") else name
            for name in names
            for child in (self.get_submodule(name)._modules if "repeat" in name else [""])
        ]
        blocks = [(rf"^{re.escape(part)}\.", (float(i + 1),)) for i, part in enumerate(parts)]
        blocks.append((r"^(?:block8|conv2d_7)", (float(len(parts) + 1),)))
        return {"stem": r"^conv2d_[12]", "blocks": [(r"^conv2d_[34]", (0.0,)), *blocks]}


VARIANTS: dict[str, dict[str, Any]] = {"inception_resnet_v2": dict()}

FAMILY = Family(
    model=InceptionResnetV2, variants=VARIANTS, weights=weights_table("inception_resnet_v2")
)
