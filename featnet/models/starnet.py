"""StarNet: blocks that multiply two views of the same map (https://arxiv.org/abs/2403.19967)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    DropPath,
    Layer,
    drop_path_rates,
    get_act,
    initialize,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table

STEM = 32  # channels of the first convolution


def conv_layer(
    in_chs: int, out_chs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, bn: bool = True
) -> nn.Sequential:
    """A convolution with a bias, and its norm."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups)
    layers = OrderedDict[str, nn.Module](conv=conv)
    if bn:
        layers["bn"] = nn.BatchNorm2d(out_chs)
    return nn.Sequential(layers)


class StarBlock(nn.Module):
    """Depthwise 7x7 convolutions around the product of two pointwise views, one of them activated.

    Args:
        channels: of the map.
        hidden: of the two views.
        act: activation of the first.
        drop_path: rate.
    """

    def __init__(self, channels: int, hidden: int, *, act: Layer, drop_path: float) -> None:
        super().__init__()
        self.dwconv = conv_layer(channels, channels, 7, groups=channels)
        self.f1 = conv_layer(channels, hidden, bn=False)
        self.f2 = conv_layer(channels, hidden, bn=False)
        self.g = conv_layer(hidden, channels)
        self.dwconv2 = conv_layer(channels, channels, 7, groups=channels, bn=False)
        self.act = act()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dwconv(x)
        y = self.act(self.f1(y)) * self.f2(y)  # (N, hidden, H, W)
        return x + self.drop_path(self.dwconv2(self.g(y)))


class StarNet(Backbone):
    """A strided convolution, then four stages that halve the size and double the channels.

    Args:
        base_dim: channels of the first stage.
        depths: blocks in each stage.
        mlp_ratio: width inside of a block by that of its map.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "head"

    def __init__(
        self,
        base_dim: int = 32,
        depths: Sequence[int] = (3, 3, 12, 5),
        *,
        mlp_ratio: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu6",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        act, width = get_act(act_layer), STEM
        self.stem = nn.Sequential(conv_layer(in_chans, width, 3, stride=2), act())
        self.stages = nn.Sequential()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            stage, dim = Blocks(), base_dim * 2**i
            stage.append(conv_layer(width, dim, 3, stride=2))
            for rate in rates:
                stage.append(StarBlock(dim, dim * mlp_ratio, act=act, drop_path=rate))
            width = dim
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=4 * 2**i)
        self.norm = nn.BatchNorm2d(width)
        self.add_head(width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[trunc_normal], linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, 32, H/2, W/2)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), then halved and twice as wide
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        """Return the final features (N, C, H/32, W/32)."""
        return self.norm(y)

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.finish(y) if index == len(self.levels) - 1 else y

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem\.\d+", "blocks": [(blocks, None), (r"norm", (99999,))]}


VARIANTS: dict[str, dict[str, Any]] = {
    "starnet_s1": dict(base_dim=24, depths=(2, 2, 8, 3)),
    "starnet_s2": dict(base_dim=32, depths=(1, 2, 6, 2)),
    "starnet_s3": dict(base_dim=32, depths=(2, 2, 8, 4)),
    "starnet_s4": dict(base_dim=32, depths=(3, 3, 12, 5)),
    "starnet_s050": dict(base_dim=16, depths=(1, 1, 3, 1), mlp_ratio=3),
    "starnet_s100": dict(base_dim=20, depths=(1, 2, 4, 1)),
    "starnet_s150": dict(base_dim=24, depths=(1, 2, 4, 2), mlp_ratio=3),
}

FAMILY = Family(model=StarNet, variants=VARIANTS, weights=weights_table("starnet"))
