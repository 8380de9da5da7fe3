"""DenseNet: every layer reads the maps of all layers before it in its block.

Papers: DenseNet (https://arxiv.org/abs/1608.06993); anti-aliased pooling
(https://arxiv.org/abs/1904.11486); recomputing instead of keeping what is concatenated
(https://arxiv.org/abs/1707.06990).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    BlurPool2d,
    Layer,
    get_act,
    get_norm,
    he_fan_in,
    initialize,
    norm_and_act,
    zero_bias,
)
from ..registry import Family, weights_table

# f(channels) -> a norm, and the activation after it
NormAndAct = Callable[[int], tuple[nn.Module, nn.Module]]


class DenseLayer(nn.Module):
    """1x1 to a bottleneck of a few times the growth rate, 3x3 to the growth rate; norms first."""

    def __init__(
        self, in_chs: int, growth_rate: int, *, expansion: int, norm: NormAndAct, drop_rate: float
    ) -> None:
        super().__init__()
        width = expansion * growth_rate
        self.norm1, self.act1 = norm(in_chs)
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.norm2, self.act2 = norm(width)
        self.conv2 = nn.Conv2d(width, growth_rate, 3, padding=1, bias=False)
        self.drop_rate = drop_rate

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        x = self.conv1(self.act1(self.norm1(torch.cat(list(maps), 1))))
        x = self.conv2(self.act2(self.norm2(x)))
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


class DenseBlock(Blocks):
    """Layers ``denselayer1``, ...; puts out its input and all their maps, concatenated."""

    def __init__(self, depth: int, in_chs: int, layer: Callable[[int], nn.Module], growth: int):
        super().__init__()
        for i in range(depth):
            self.add_module(f"denselayer{i + 1}", layer(in_chs + i * growth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run((self._dense,), x) if self.whole else self._dense(x)

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        maps: tuple[torch.Tensor, ...] = (x,)
        for layer in self:  # a new tuple each time: the old one may be recomputed
            maps = (*maps, layer(maps) if self.whole else self.run((layer,), maps))
        return torch.cat(maps, 1)


def transition(in_chs: int, out_chs: int, norm: NormAndAct) -> nn.Module:
    """1x1 and average pooling, to half the width and size."""
    layers = nn.Sequential()
    layers.norm, layers.act = norm(in_chs)
    layers.add_module("conv", nn.Conv2d(in_chs, out_chs, 1, bias=False))
    layers.add_module("pool", nn.AvgPool2d(2, 2))
    return layers


class DenseNet(Backbone):
    """A stem and pooling to 1/4 of the size, then dense blocks with transitions between them.

    Args:
        growth_rate: maps that each layer adds.
        depths: layers in each block.
        bn_size: width of a layer's bottleneck, in growth rates.
        deep_stem: three 3x3 convolutions in place of one 7x7.
        aa_layer: anti-aliasing ``f(channels, stride=2)`` that strides in place of the stem's pool.
        proj_drop_rate: dropout behind each layer.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "features.conv0", "classifier"

    def __init__(
        self,
        growth_rate: int,
        depths: Sequence[int],
        *,
        bn_size: int = 4,
        deep_stem: bool = False,
        aa_layer: Layer | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm = partial(norm_and_act, get_norm(norm_layer), act=get_act(act_layer))
        layer = partial(
            DenseLayer,
            growth_rate=growth_rate,
            expansion=bn_size,
            norm=norm,
            drop_rate=proj_drop_rate,
        )
        width = self._add_stem(growth_rate, deep_stem, norm)
        pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        if aa_layer:
            pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), aa_layer(width, stride=2))
        self.features.add_module("pool0", pool)
        for i, depth in enumerate(depths, 1):
            block = DenseBlock(depth, width, layer, growth_rate)
            width += depth * growth_rate
            if i == len(depths):
                self.features.add_module(f"denseblock{i}", block)
                self.features.norm5, act = norm(width)
                self.add_stage("features.act5", act, channels=width, reduction=2 * 2**i)
            else:
                self.add_stage(f"features.denseblock{i}", block, channels=width, reduction=2 * 2**i)
                narrow = transition(width, width // 2, norm)
                self.features.add_module(f"transition{i}", narrow)
                width //= 2
        self.add_head(width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_fan_in], linear=[zero_bias])

    def _add_stem(self, growth_rate: int, deep: bool, norm: NormAndAct) -> int:
        """conv0, norm0, and of a deep stem two more of each; returns their width."""
        self.features = nn.Sequential()
        width, in_chs = 2 * growth_rate, self.in_chans
        inner = (growth_rate, growth_rate) if deep else ()
        for i, chs in enumerate(inner):
            conv = nn.Conv2d(in_chs, chs, 3, 1 if i else 2, 1, bias=False)
            self.features.add_module(f"conv{i}", conv)
            self._add_norm(i, *norm(chs))
            in_chs = chs
        kernel, stride = (3, 1) if deep else (7, 2)
        conv = nn.Conv2d(in_chs, width, kernel, stride, kernel // 2, bias=False)
        self.features.add_module(f"conv{len(inner)}", conv)
        self._add_norm(len(inner), *norm(width))
        self.add_level(f"features.act{len(inner)}", channels=width, reduction=2)
        return width

    def _add_norm(self, i: int, norm: nn.Module, act: nn.Module) -> None:
        self.features.add_module(f"norm{i}", norm)
        self.features.add_module(f"act{i}", act)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        # conv0, norm0, act0 | pool0, denseblock1 | ... | transition3, denseblock4, norm5, act5
        yield from self.through("features", x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stem = r"^features\.conv[012]|features\.norm[012]|features\.pool[012]"
        if coarse:
            return {"stem": stem, "blocks": r"^features\.(?:denseblock|transition)(\d+)"}
        layers = (r"^features\.denseblock(\d+)\.denselayer(\d+)", None)
        joins_the_layer_before = (99999,)
        return {
            "stem": stem,
            "blocks": [layers, (r"^features\.transition(\d+)", joins_the_layer_before)],
        }


VARIANTS: dict[str, dict[str, Any]] = {
    "densenet121": dict(growth_rate=32, depths=(6, 12, 24, 16)),
    "densenetblur121d": dict(
        growth_rate=32, depths=(6, 12, 24, 16), deep_stem=True, aa_layer=BlurPool2d
    ),
    "densenet169": dict(growth_rate=32, depths=(6, 12, 32, 32)),
    "densenet201": dict(growth_rate=32, depths=(6, 12, 48, 32)),
    "densenet161": dict(growth_rate=48, depths=(6, 12, 36, 24)),
    "densenet264d": dict(growth_rate=48, depths=(6, 12, 64, 48), deep_stem=True),
}

FAMILY = Family(model=DenseNet, variants=VARIANTS, weights=weights_table("densenet"))
