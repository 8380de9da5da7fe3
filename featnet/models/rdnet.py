"""RDNet: DenseNet with ConvNeXt's blocks (https://arxiv.org/abs/2403.19588)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    DropPath,
    EffectiveSqueezeExcite,
    Layer,
    NormMlp,
    drop_path_rates,
    get_act,
    get_norm,
    he_fan_in,
    initialize,
    pointwise,
    zero_bias,
)
from ..registry import Family, weights_table

EXPANSION = 4  # width inside of a block by that of its input
GAMMA = 1e-6  # first scale of the new channels


class Mixer(nn.Module):
    """Depthwise 7x7 convolution, norm, two pointwise convolutions, perhaps a gate."""

    def __init__(self, in_chs: int, out_chs: int, *, gated: bool, act: Layer, norm: Layer) -> None:
        super().__init__()
        hidden = in_chs * EXPANSION // 8 * 8
        self.layers = nn.Sequential(
            nn.Conv2d(in_chs, in_chs, 7, padding=3, groups=in_chs),
            norm(in_chs),
            pointwise(in_chs, hidden),
            act(),
            pointwise(hidden, out_chs),
        )
        if gated:
            self.layers.append(EffectiveSqueezeExcite(out_chs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class DenseBlock(nn.Module):
    """New channels behind those that are there; (N, C, H, W) -> (N, C + growth, H, W).

    Args:
        channels: of the input.
        growth: number of new ones.
        gated: with channel attention.
        drop_path: rate.
    """

    def __init__(
        self, channels: int, growth: int, *, gated: bool, act: Layer, norm: Layer, drop_path: float
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((growth,), GAMMA))
        self.drop_path = DropPath(drop_path)
        self.layers = Mixer(channels, growth, gated=gated, act=act, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x) * self.gamma.reshape(1, -1, 1, 1)
        return torch.cat((x, self.drop_path(y)), 1)


class RdNet(Backbone):
    """Patches of 4x4, then dense stages; transitions halve the channels and some the size.

    A level is the map of the last stage of its size.

    Args:
        growth_rates: new channels of each block, for each stage.
        depths: blocks in each stage.
        downsample: numbers of the stages that begin at half the size.
        gated_from: number of the first stage with channel attention.
        stem_chs: channels of the stem.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0", "head.fc"

    def __init__(
        self,
        growth_rates: Sequence[int],
        depths: Sequence[int],
        *,
        downsample: Collection[int],
        gated_from: int = 2,
        stem_chs: int = 64,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "gelu",
        norm_layer: str | Layer = "layernorm2d",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(growth_rates=growth_rates, depths=depths)
        act, norm = get_act(act_layer), get_norm(norm_layer)
        self.stem = nn.Sequential(nn.Conv2d(in_chans, stem_chs, 4, 4), norm(stem_chs))
        width, reduction, count = stem_chs, 4, len(growth_rates)
        self.dense_stages = nn.Sequential()
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (growth, drops) in enumerate(zip(growth_rates, rates, strict=True)):
            stage, blocks = nn.Sequential(), Blocks()
            if i:
                side, squeezed = 2 if i in downsample else 1, width // 2 // 8 * 8
                stage.extend([norm(width), nn.Conv2d(width, squeezed, side, side)])
                width, reduction = squeezed, reduction * side
            for j, rate in enumerate(drops):
                block = DenseBlock(
                    width, growth, gated=i >= gated_from, act=act, norm=norm, drop_path=rate
                )
                blocks.add_module(f"dense_block{j}", block)
                width += growth
            self.dense_stages.append(stage.append(blocks))
            if i + 1 == count or i + 1 in downsample:
                self.add_level(f"dense_stages.{i}", channels=width, reduction=reduction)
        self.add_head(
            width,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=NormMlp(norm=norm),
        )
        initialize(self, conv=[he_fan_in], linear=[zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        yield from self.through("dense_stages", x)  # (N, C, H/4, W/4), (N, C, H/8, W/8), ...

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The authors' stem is a module within another one."""
        return {key.replace("stem.stem.", "stem."): value for key, value in state.items()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^dense_stages\.(\d+)"}


VARIANTS: dict[str, dict[str, Any]] = {
    "rdnet_tiny": dict(
        growth_rates=(64, 104, *[128] * 4, 224), depths=(3,) * 7, downsample=(1, 2, 6), stem_chs=64
    ),
    "rdnet_small": dict(
        growth_rates=(64, *[128] * 8, 240, 240), depths=(3,) * 11, downsample=(1, 2, 9), stem_chs=72
    ),
    "rdnet_base": dict(
        growth_rates=(96, 128, *[168] * 7, 336, 336),
        depths=(3,) * 11,
        downsample=(1, 2, 9),
        stem_chs=120,
    ),
    "rdnet_large": dict(
        growth_rates=(128, 192, *[256] * 8, 360, 360),
        depths=(3,) * 12,
        downsample=(1, 2, 10),
        stem_chs=144,
    ),
}

FAMILY = Family(model=RdNet, variants=VARIANTS, weights=weights_table("rdnet"))
