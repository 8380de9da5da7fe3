"""RepGhost: ghost modules that add where GhostNet concatenates, and become one convolution
(https://arxiv.org/abs/2211.06088)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..layers import add_branches, merge_parallel
from ..registry import Family, weights_table
from .ghostnet import Bottleneck, GhostNet, Stages, depthwise, pointwise


class RepGhost(nn.Module):
    """A 1x1 convolution, and the sum of a norm and a depthwise convolution of its map.

    ``cheap_operation`` takes the place of the sum when it is re-parameterised.

    Args:
        in_chs, out_chs: channels.
        act: behind the convolution and behind the sum.
    """

    def __init__(self, in_chs: int, out_chs: int, *, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(
            pointwise(in_chs, out_chs), nn.BatchNorm2d(out_chs), act()
        )
        self.fusion_bn = nn.Sequential(nn.BatchNorm2d(out_chs))
        self.cheap_operation: nn.Module = nn.Sequential(
            depthwise(out_chs, 3), nn.BatchNorm2d(out_chs)
        )
        self.relu = act()

    def branches(self) -> list[nn.Module]:
        """Return what is added."""
        return [self.cheap_operation, *self.fusion_bn]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(add_branches(self.branches(), self.primary_conv(x)))

    def reparameterize(self) -> None:
        """Put one convolution in the place of the sum."""
        self.cheap_operation, self.fusion_bn = merge_parallel(self.branches()), nn.Sequential()


class RepGhostBottleneck(Bottleneck):
    """GhostNet's bottleneck of such modules."""

    plain = RepGhost


# As ghostnet.STAGES: about half as wide inside, for nothing is concatenated
STAGES: Stages = (
    ((3, 8, 16, 0, 1),),
    ((3, 24, 24, 0, 2),),
    ((3, 36, 24, 0, 1),),
    ((5, 36, 40, 0.25, 2),),
    ((5, 60, 40, 0.25, 1),),
    ((3, 120, 80, 0, 2),),
    (
        (3, 100, 80, 0, 1),
        (3, 120, 80, 0, 1),
        (3, 120, 80, 0, 1),
        (3, 240, 112, 0.25, 1),
        (3, 336, 112, 0.25, 1),
    ),
    ((5, 336, 160, 0.25, 2),),
    ((5, 480, 160, 0, 1), (5, 480, 160, 0.25, 1), (5, 480, 160, 0, 1), (5, 480, 160, 0.25, 1)),
)
REP: dict[str, Any] = dict(block=RepGhostBottleneck, stages=STAGES, last_ratio=2)

VARIANTS: dict[str, dict[str, Any]] = {
    "repghostnet_050": dict(width=0.5, **REP),
    "repghostnet_058": dict(width=0.58, **REP),
    "repghostnet_080": dict(width=0.8, **REP),
    "repghostnet_100": dict(width=1.0, **REP),
    "repghostnet_111": dict(width=1.11, **REP),
    "repghostnet_130": dict(width=1.3, **REP),
    "repghostnet_150": dict(width=1.5, **REP),
    "repghostnet_200": dict(width=2.0, **REP),
}

FAMILY = Family(model=GhostNet, variants=VARIANTS, weights=weights_table("repghost"))
