"""Maps of several strides from a network that has a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..features import Feature, FeatureInfo
from ..layers import LayerNorm2d
from ..size import Size
from ..values import checked
from .necks import maps_of

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

    @checked
    def __init__(
        self, info: FeatureInfo, *, out_channels: int = 256, scales: Sequence[float] = SCALES
    ) -> None:
        super().__init__()
        if not isinstance(info, FeatureInfo) or not len(info):
            raise ArgumentError(f"{info!r} is no feature_info: give that of an extractor.")
        level, strange = info[-1], [scale for scale in scales if scale not in SCALES]
        if strange or not scales:
            raise ArgumentError(f"scales={scales!r}: some of {SCALES} are expected.")
        self._info, self.scales = info, tuple(scales)
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

    @property
    def feature_info(self) -> FeatureInfo:
        """The maps that come out; reductions are fractions over patches of 14."""
        levels = [
            Feature(channels, int(s) if s == int(s) else s, f"branches.{i}", i)  # type: ignore[arg-type]
            for i, (channels, s) in enumerate(zip(self.channels, self.strides, strict=True))
        ]
        return FeatureInfo(levels, measure=self._measure)

    def __getstate__(self) -> dict[str, Any]:
        """A copy does not carry the network along that the levels measure themselves with."""
        info = FeatureInfo(self._info.info, self._info.out_indices)
        return {**self.__dict__, "_info": info}

    def _measure(self, size: Size) -> list[Size]:
        height, width = self._info.sizes(size)[-1]
        return [(int(height * s), int(width * s)) for s in self.scales]

    def forward(
        self, maps: Mapping[str, torch.Tensor] | Sequence[object] | torch.Tensor
    ) -> list[torch.Tensor]:
        """Compute maps (N, out_channels, s H, s W) from an extractor's output.

        Args:
            maps: a list or a dict of maps, of which the last is used, or one map; prefix tokens
                beside a map are left out.

        Returns:
            A map for each scale.

        Raises:
            ArgumentError: no map, or another number of channels.
        """
        x = maps_of(maps)[-1]
        if x.shape[1] != self._info[-1].channels:
            raise ArgumentError(
                f"The last map has {x.shape[1]} channels; this pyramid was made for "
                f"{self._info[-1].channels}."
            )
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
