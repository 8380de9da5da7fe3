"""FasterNet: 3x3 convolutions over a quarter of the channels (https://arxiv.org/abs/2303.03667)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    ConvHead,
    DropPath,
    Layer,
    build_act,
    drop_path_rates,
    get_act,
    get_norm,
    initialize,
    pointwise,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table

PART = 4  # one of so many channels is convolved
HIDDEN = 1280  # width of the classifier's hidden layer


class PartialConv(nn.Module):
    """A 3x3 convolution of the first channels; the others pass."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = channels // PART
        self.partial_conv3 = nn.Conv2d(self.first, self.first, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.partial_conv3(x[:, : self.first]), x[:, self.first :]), 1)


class FasterBlock(nn.Module):
    """A partial convolution, then two pointwise ones; (N, C, H, W) -> the same."""

    def __init__(
        self, channels: int, hidden: int, *, act: Layer, norm: Layer, drop_path: float
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            pointwise(channels, hidden, bias=False),
            norm(hidden),
            build_act(act),
            pointwise(hidden, channels, bias=False),
        )
        self.spatial_mixing = PartialConv(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop_path(self.mlp(self.spatial_mixing(x)))


def patches(name: str, in_chs: int, out_chs: int, size: int, norm: Layer) -> nn.Sequential:
    """A convolution of patches side by side, under this name, and its norm."""
    conv = nn.Conv2d(in_chs, out_chs, size, size, bias=False)
    return nn.Sequential(OrderedDict([(name, conv), ("norm", norm(out_chs))]))


class Stage(nn.Module):
    """Blocks behind a merging of patches, which comes last in the state dict."""

    def __init__(self, blocks: Blocks, downsample: nn.Module) -> None:
        super().__init__()
        self.blocks, self.downsample = blocks, downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))


class FasterNet(Backbone):
    """Patches of 4x4, then four stages, each of which but the first merges patches of 2x2.

    Args:
        embed_dim: channels of the first stage.
        depths: blocks in each stage.
        mlp_ratio: width inside of a block by that of its map.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "patch_embed.proj", "classifier"

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (1, 2, 8, 2),
        *,
        mlp_ratio: float = 2.0,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__(in_chans=in_chans)
        act, norm, width = get_act(act_layer), get_norm(norm_layer), embed_dim
        self.patch_embed = patches("proj", in_chans, width, 4, norm)
        self.stages = nn.Sequential()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            dim, blocks = embed_dim * 2**i, Blocks()
            hidden = int(dim * mlp_ratio)
            for rate in rates:
                blocks.append(FasterBlock(dim, hidden, act=act, norm=norm, drop_path=rate))
            down = patches("reduction", width, dim, 2, norm) if i else nn.Identity()
            stage, width = Stage(blocks, down), dim
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=4 * 2**i)
        self.add_head(
            width,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=ConvHead(HIDDEN, act=act, bias=False),
        )
        initialize(self, conv=[trunc_normal], linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.patch_embed(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), then halved and twice as wide
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [
            (r"^stages\.(\d+).downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^conv_head", (99999,)),
        ]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else within}


SMALL, LARGE = (1, 2, 8, 2), (3, 4, 18, 3)

VARIANTS: dict[str, dict[str, Any]] = {
    "fasternet_t0": dict(embed_dim=40, depths=SMALL, drop_path_rate=0.0, act_layer="gelu"),
    "fasternet_t1": dict(embed_dim=64, depths=SMALL, drop_path_rate=0.02, act_layer="gelu"),
    "fasternet_t2": dict(embed_dim=96, depths=SMALL, drop_path_rate=0.05),
    "fasternet_s": dict(embed_dim=128, depths=(1, 2, 13, 2), drop_path_rate=0.1),
    "fasternet_m": dict(embed_dim=144, depths=LARGE, drop_path_rate=0.2),
    "fasternet_l": dict(embed_dim=192, depths=LARGE, drop_path_rate=0.3),
}

FAMILY = Family(model=FasterNet, variants=VARIANTS, weights=weights_table("fasternet"))
