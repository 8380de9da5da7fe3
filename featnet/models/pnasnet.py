"""PNASNet: one kind of cell, found step by step (https://arxiv.org/abs/1712.00559)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from ..layers.cells import (
    ActConvBn,
    Cell,
    Factorized,
    Operand,
    Separables,
    cell_conv,
    cell_pool,
    norm,
)
from ..registry import Family, weights_table
from .nasnet import CellNetwork, Inputs

Sum = tuple[Operand, Operand]


def sums(chs: int, stride: int, other: int) -> list[Sum]:
    """The sums of a cell; ``"b"`` has ``other`` channels, which the layers reduce."""
    early = other != chs
    reduced = OrderedDict(max_pool=cell_pool("max", 2), conv=cell_conv(other, chs), bn=norm(chs))
    pool = nn.Sequential(reduced) if early else cell_pool("max", stride)
    projection = ActConvBn(chs, chs, stride=stride) if stride > 1 else None
    return [
        ((Separables(other, chs, 5, stride, early=early), "b"), (pool, "b")),
        ((Separables(chs, chs, 7, stride), "a"), (cell_pool("max", stride), "a")),
        ((Separables(chs, chs, 5, stride), "a"), (Separables(chs, chs, 3, stride), "a")),
        ((Separables(chs, chs, 3), 2), (cell_pool("max", stride), "a")),
        ((Separables(other, chs, 3, stride, early=early), "b"), (projection, "a")),
    ]


class StemCell(Cell):
    """The first cell, which has the image's map as both inputs.

    Args:
        in_chs: of the map.
        chs: of each sum.
    """

    def __init__(self, in_chs: int, chs: int) -> None:
        super().__init__()
        self.conv_1x1 = ActConvBn(in_chs, chs)
        self.combine(sums(chs, 2, in_chs), range(5))

    def inputs(self, x: torch.Tensor, prev: torch.Tensor, y: torch.Tensor) -> Inputs:
        return {"a": self.conv_1x1.activated(y), "b": x}


class PairCell(Cell):
    """A cell of the two before it.

    Args:
        in_chs, prev_chs: channels of the two inputs.
        chs: of each sum.
        stride: of the cell.
        halved: the input before is of twice the size.
    """

    def __init__(
        self, in_chs: int, prev_chs: int, chs: int, *, stride: int = 1, halved: bool = False
    ) -> None:
        super().__init__()
        self.conv_prev_1x1: nn.Module = (
            Factorized(prev_chs, chs // 2) if halved else ActConvBn(prev_chs, chs)
        )
        self.conv_1x1 = ActConvBn(in_chs, chs)
        self.combine(sums(chs, stride, chs), range(5))

    def inputs(self, x: torch.Tensor, prev: torch.Tensor, y: torch.Tensor) -> Inputs:
        return {"a": self.conv_1x1.activated(y), "b": self.conv_prev_1x1(prev)}


class PNASNet(CellNetwork):
    """PNASNet-5: two cells to a quarter of the size, then twelve, of which two stride.

    Args:
        width: channels of each sum of the first cell; the next cells have multiples of it.
        depth: cells at each size.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv_0.conv", "last_linear"
    stem = "conv_0"

    def __init__(
        self,
        width: int = 54,
        depth: int = 4,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        cells: dict[str, Cell] = {
            "cell_stem_0": StemCell(96, width),
            "cell_stem_1": PairCell(5 * width, 96, 2 * width, stride=2, halved=True),
        }
        chs, prev, after_stride = 10 * width, 5 * width, True
        levels = {"cell_stem_1": (5 * width, 4)}
        for i in range(3):
            size = 4 * width * 2**i
            for j in range(depth):
                strides, name = bool(i) and not j, f"cell_{i * depth + j}"
                if strides:
                    levels[name] = (chs, 4 * 2**i)
                cells[name] = PairCell(
                    chs, prev, size, stride=2 if strides else 1, halved=after_stride
                )
                chs, prev, after_stride = 5 * size, chs, strides
        levels["act"] = (chs, 32)
        self.build(in_chans, cells, levels)
        self.add_head(chs, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^conv_0|cell_stem_[01]", "blocks": r"^cell_(\d+)"}


VARIANTS: dict[str, dict[str, Any]] = {"pnasnet5large": dict()}

FAMILY = Family(model=PNASNet, variants=VARIANTS, weights=weights_table("pnasnet"))
