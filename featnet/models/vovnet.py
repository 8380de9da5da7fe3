"""VoVNet: one-shot aggregation, each stage's layers concatenated once, at its end.

Papers: VoVNet (https://arxiv.org/abs/1904.09730); VoVNetV2, with identity shortcuts and effective
squeeze-excite (https://arxiv.org/abs/1911.06667); EvoNorm (https://arxiv.org/abs/2004.02967).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    EvoNorm,
    Layer,
    drop_path_rates,
    get_act,
    get_attention,
    get_norm,
    he_fan_out,
    initialize,
    norm_and_act,
    zero_bias,
)
from ..registry import Family, weights_table


class SeparableConvNormAct(nn.Module):
    """Depthwise 3x3 and pointwise convolution with nothing between them, norm, activation."""

    def __init__(
        self, in_chs: int, out_chs: int, *, stride: int = 1, norm: Layer, act: Layer
    ) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn, self.act = norm_and_act(norm, out_chs, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv_pw(self.conv_dw(x))))


class OsaBlock(nn.Module):
    """A chain of 3x3 convolutions, whose input and all of whose outputs are aggregated.

    Args:
        out_chs, mid_chs: width of the block, and of the chain.
        layers: length of the chain.
        conv: ``f(in_chs, out_chs)``, one of the chain.
        pointwise: ``f(in_chs, out_chs)``, the aggregation.
        reduce: bring the input to the width of the chain first.
        attention: channel attention behind the aggregation.
        residual: add the input.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        mid_chs: int,
        layers: int,
        conv: Layer,
        pointwise: Layer,
        reduce: bool,
        attention: Layer | None,
        residual: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.conv_reduction = pointwise(in_chs, mid_chs) if reduce else None
        widths = [mid_chs if reduce else in_chs, *[mid_chs] * (layers - 1)]
        self.conv_mid = nn.ModuleList(conv(width, mid_chs) for width in widths)
        self.conv_concat = pointwise(in_chs + layers * mid_chs, out_chs)
        self.attn = attention(out_chs) if attention else None
        self.drop_path = DropPath(drop_path) if drop_path else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        y = x if self.conv_reduction is None else self.conv_reduction(x)
        for conv in self.conv_mid:
            y = conv(y)
            maps.append(y)
        y = self.conv_concat(torch.cat(maps, 1))
        if self.attn is not None:
            y = self.attn(y)
        if self.drop_path is not None:
            y = self.drop_path(y)
        return y + x if self.residual else y


class VovNet(Backbone):
    """Three convolutions to 1/4 of the size, then four stages of one-shot aggregation.

    Args:
        depths: blocks in each stage.
        layers: convolutions in each block's chain.
        stem_chs: widths of the three convolutions.
        mid_chs, out_chs: widths of each stage's chains, and of the stage.
        residual: shortcuts around all blocks of a stage but the first.
        depthwise: separable convolutions.
        attn_layer: channel attention of each stage's last block, ``"ese"``, ``"eca"``, ``"se"``.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        layers: int,
        *,
        stem_chs: Sequence[int] = (64, 64, 128),
        mid_chs: Sequence[int] = (128, 160, 192, 224),
        out_chs: Sequence[int] = (256, 512, 768, 1024),
        residual: bool = True,
        depthwise: bool = False,
        attn_layer: str | Layer | None = "ese",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, mid_chs=mid_chs, out_chs=out_chs)
        pointwise = partial(ConvNormAct, norm=get_norm(norm_layer), act=get_act(act_layer))
        full: Layer = partial(pointwise, kernel_size=3)
        conv = partial(SeparableConvNormAct, **pointwise.keywords) if depthwise else full
        attention = get_attention(attn_layer) if attn_layer else None

        self.stem = nn.Sequential(full(in_chans, stem_chs[0], stride=2))
        self.add_stage("stem.1", conv(*stem_chs[:2]), channels=stem_chs[1], reduction=2)
        self.stem.append(conv(*stem_chs[1:], stride=2))
        self.stages = nn.Sequential()
        width = stem_chs[-1]
        drops = iter(drop_path_rates(drop_path_rate, sum(depths)))
        for i, (depth, mid, out) in enumerate(zip(depths, mid_chs, out_chs, strict=True)):
            stage, blocks = nn.Sequential(), Blocks()
            if i:
                stage.add_module("pool", nn.MaxPool2d(3, 2, ceil_mode=True))
            stage.add_module("blocks", blocks)
            for j in range(depth):
                block = OsaBlock(
                    width,
                    out,
                    mid_chs=mid,
                    layers=layers,
                    conv=conv,
                    pointwise=pointwise,
                    reduce=depthwise and width != mid,
                    attention=attention if j == depth - 1 else None,
                    residual=residual and j > 0,
                    drop_path=next(drops),
                )
                blocks.append(block)
                width = out
            self.add_stage(f"stages.{i}", stage, channels=out, reduction=4 * 2**i)
        self.add_head(width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_fan_out], linear=[zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for x in self.through("stem", x):
            yield x  # (N, 64, H/2, W/2)
        x = self.rest("stem", x)
        for stage in self.stages:
            x = stage(x)  # (N, 256, H/4, W/4), then halved and wider
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+).blocks\.(\d+)"
        return {"stem": r"^stem", "blocks": blocks}


V1: dict[str, Any] = {"layers": 5, "residual": False, "attn_layer": None}
SLIM: dict[str, Any] = {"mid_chs": (64, 80, 96, 112), "out_chs": (112, 256, 384, 512)}
DW: dict[str, Any] = {"stem_chs": (64, 64, 64), "depthwise": True}

VARIANTS: dict[str, dict[str, Any]] = {
    "vovnet39a": dict(depths=(1, 1, 2, 2), **V1),
    "vovnet57a": dict(depths=(1, 1, 4, 3), **V1),
    "ese_vovnet19b_slim_dw": dict(depths=(1, 1, 1, 1), layers=3, **SLIM, **DW),
    "ese_vovnet19b_dw": dict(depths=(1, 1, 1, 1), layers=3, **DW),
    "ese_vovnet19b_slim": dict(depths=(1, 1, 1, 1), layers=3, **SLIM),
    "ese_vovnet39b": dict(depths=(1, 1, 2, 2), layers=5),
    "ese_vovnet57b": dict(depths=(1, 1, 4, 3), layers=5),
    "ese_vovnet99b": dict(depths=(1, 3, 9, 3), layers=5),
    "eca_vovnet39b": dict(depths=(1, 1, 2, 2), layers=5, attn_layer="eca"),
    "ese_vovnet39b_evos": dict(
        depths=(1, 1, 2, 2), layers=5, norm_layer=partial(EvoNorm, num_groups=32, eps=1e-5)
    ),
}

FAMILY = Family(model=VovNet, variants=VARIANTS, weights=weights_table("vovnet"))
