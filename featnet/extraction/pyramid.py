"""Maps of several strides from a network that has a single one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..errors import ArgumentError
from ..features import FeatureInfo
from ..layers import LayerNorm2d

SCALES = (4.0, 2.0, 1.0, 0.5)


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (https://arxiv.org/abs/2203.16527).

    It makes all maps from the last map of a network: from stride 16 come strides 4, 8, 16 and 32.

    Args:
        info: the network's levels; the last one that comes out is used.
        out_channels: of each map.
        scales: sides of the maps relative to the network's map: some of 4, 2, 1 and 0.5.

    Attributes:
        channels: of each map.
        strides: of each map; they may be fractions, as 3.5 for patches of 14.

    Raises:
        ArgumentError: a scale for which there is no layer.

    Example:
        >>> net = featnet.create_model("test_vit", features_only=True, out_indices=1)
        >>> pyramid = featnet.SimplePyramid(net.feature_info, out_channels=32)
        >>> [tuple(y.shape) for y in pyramid(net(torch.randn(1, 3, 64, 64)))]
        [(1, 32, 16, 16), (1, 32, 8, 8), (1, 32, 4, 4), (1, 32, 2, 2)]
    """

    def __init__(
        self, info: FeatureInfo, *, out_channels: int = 256, scales: Sequence[float] = SCALES
    ) -> None:
        super().__init__()
        level, strange = info[-1], [scale for scale in scales if scale not in SCALES]
        if strange or not scales:
            raise ArgumentError(f"scales={scales!r}: some of {SCALES} are expected.")
        self.channels = [out_channels] * len(scales)
        self.strides = [level.reduction / scale for scale in scales]
        self.branches = nn.ModuleList(
            nn.Sequential(
                *_resize(level.channels, scale),
                nn.Conv2d(_width(level.channels, scale), out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for scale in scales
        )

    def forward(self, maps: Sequence[torch.Tensor] | torch.Tensor) -> list[torch.Tensor]:
        """Compute maps (N, out_channels, s H, s W) from the network's maps, or from the last
        one."""
        x = maps if isinstance(maps, torch.Tensor) else maps[-1]
        return [branch(x) for branch in self.branches]


def _width(channels: int, scale: float) -> int:
    return channels // int(scale) if scale > 1 else channels


def _resize(channels: int, scale: float) -> list[nn.Module]:
    if scale == 1:
        return []
    if scale < 1:
        return [nn.MaxPool2d(2, 2)]
    half = channels // 2
    up: list[nn.Module] = [nn.ConvTranspose2d(channels, half, 2, 2)]
    if scale > 2:
        up += [LayerNorm2d(half), nn.GELU(), nn.ConvTranspose2d(half, channels // 4, 2, 2)]
    return up
