"""CSPNeXt: cross stage partial networks with large depthwise kernels, RTMDet's backbone.

Paper: RTMDet (https://arxiv.org/abs/2212.07784).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Blocks,
    ConvNormAct,
    DropPath,
    Layer,
    drop_path_rates,
    get_act,
    get_attention,
    get_norm,
)
from ..registry import Family, weights_table

POOLS = (5, 9, 13)  # sides of the pools that are read side by side
Conv = Callable[..., nn.Module]  # f(in_chs, out_chs, kernel_size=, ...), with norm and activation


class PyramidPool(nn.Module):
    """1x1 to half of the channels, maxima over neighbourhoods of several sizes, 1x1 over all."""

    def __init__(self, conv: Conv, channels: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels // 2)
        self.poolings = nn.ModuleList(nn.MaxPool2d(side, 1, side // 2) for side in POOLS)
        self.conv2 = conv(channels // 2 * (1 + len(POOLS)), channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pool(x) for pool in self.poolings)], 1))


class Separable(nn.Module):
    """Depthwise 5x5 and 1x1 convolution."""

    def __init__(self, conv: Conv, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = conv(channels, channels, kernel_size=5, groups=channels)
        self.pointwise_conv = conv(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Block(nn.Module):
    """3x3, then a separable 5x5.

    Args:
        conv: see ``Conv``.
        channels: of input and output.
        drop_path: rate; None in a block without a shortcut.
    """

    def __init__(self, conv: Conv, channels: int, *, drop_path: float | None) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, kernel_size=3)
        self.conv2 = Separable(conv, channels)
        self.drop_path = None if drop_path is None else DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        return y if self.drop_path is None else self.drop_path(y) + x


class CrossStage(nn.Module):
    """Blocks over one projection of the map, beside another projection; a gate over both.

    Args:
        conv: see ``Conv``.
        channels: of input and output.
        hidden: of each projection.
        attention: ``f(channels)``, or None for none.
        drops: drop path rate of each block; None where it has no shortcut.
    """

    def __init__(
        self,
        conv: Conv,
        channels: int,
        hidden: int,
        *,
        attention: Layer | None,
        drops: Sequence[float | None],
    ) -> None:
        super().__init__()
        self.short_conv = conv(channels, hidden)
        self.main_conv = conv(channels, hidden)
        self.blocks = Blocks(*(Block(conv, hidden, drop_path=rate) for rate in drops))
        self.attention = attention(2 * hidden) if attention else nn.Identity()
        self.final_conv = conv(2 * hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat((self.blocks(self.main_conv(x)), self.short_conv(x)), 1)
        return self.final_conv(self.attention(x))


class CspNext(Backbone):
    """Three convolutions, then stages: a strided convolution and a cross stage; before the last
    one the map is pooled in a pyramid, and its blocks have no shortcuts.

    Args:
        depths, widths: blocks and channels of each stage.
        expand_ratio: channels of each half of a cross stage, by its output's.
        attn_layer: channel attention in each stage: ``"ese"``, ``"se"``, ``f(channels)``.
        norm_layer: the detectors' checkpoints are for a batch norm of ``eps=0.001``.
        drop_path_rate: of the last block with a shortcut; the rate grows linearly from 0 at the
            first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "head.fc"

    stem: nn.Module

    def __init__(
        self,
        depths: Sequence[int] = (3, 6, 6, 3),
        widths: Sequence[int] = (128, 256, 512, 1024),
        *,
        expand_ratio: float = 0.5,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "silu",
        norm_layer: str | Layer = "batchnorm",
        attn_layer: str | Layer | None = "ese",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, widths=widths)
        conv = partial(ConvNormAct, norm=get_norm(norm_layer), act=get_act(act_layer))
        attention = get_attention(attn_layer) if attn_layer else None
        chs = max(widths[0] // 2, 1)
        half = max(chs // 2, 1)
        stem = nn.Sequential(
            conv(in_chans, half, kernel_size=3, stride=2),
            conv(half, half, kernel_size=3),
            conv(half, chs, kernel_size=3),
        )
        self.add_stage("stem", stem, channels=chs, reduction=2)
        self.stages = nn.Sequential()
        rates: list[Sequence[float | None]] = [*drop_path_rates(drop_path_rate, depths[:-1])]
        rates.append([None] * depths[-1])
        for i, (width, drops) in enumerate(zip(widths, rates, strict=True)):
            stage = nn.Sequential(conv(chs, width, kernel_size=3, stride=2))
            if i + 1 == len(widths):
                stage.append(PyramidPool(conv, width))
            hidden = int(width * expand_ratio)
            stage.append(CrossStage(conv, width, hidden, attention=attention, drops=drops))
            self.add_stage(f"stages.{i}", stage, channels=width, reduction=4 * 2**i)
            chs = width
        self.add_head(chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/2, W/2)
        yield x
        for x in self.through("stages", x):  # (N, 2C, H/4, W/4), (N, 4C, H/8, W/8), ...
            yield x

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """OpenMMLab counts the stages from one; a detector's backbone lies beside its other
        parts."""
        if any(key.startswith("backbone.") for key in state):
            state = {
                key.removeprefix("backbone."): value
                for key, value in state.items()
                if key.startswith(("backbone.", "head.fc."))
            }
        return {
            re.sub(r"^stage(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.", key): value
            for key, value in state.items()
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [
            (r"^stages\.(\d+)\.\d+\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.\d+\.(?:attention|final_conv)", (99999,)),
            (r"^stages\.(\d+)", (0,)),
        ]
        return {"stem": "^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}


VARIANTS: dict[str, dict[str, Any]] = {
    "cspnext_tiny": dict(depths=(1, 1, 1, 1), widths=(48, 96, 192, 384)),
    "cspnext_s": dict(depths=(1, 2, 2, 1), widths=(64, 128, 256, 512)),
    "cspnext_m": dict(depths=(2, 4, 4, 2), widths=(96, 192, 384, 768)),
    "cspnext_l": dict(depths=(3, 6, 6, 3), widths=(128, 256, 512, 1024)),
    "cspnext_x": dict(depths=(4, 8, 8, 4), widths=(160, 320, 640, 1280)),
}

FAMILY = Family(model=CspNext, variants=VARIANTS, weights=weights_table("cspnext"))
