"""NASNet: two kinds of cells that a search found, each of the two before it
(https://arxiv.org/abs/1707.07012)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..layers import ConvNormAct
from ..layers.cells import (
    ActConvBn,
    Cell,
    Operand,
    Separables,
    Source,
    add_factorized,
    cell_pool,
    factorized,
    norm,
)
from ..registry import Family, weights_table

Inputs = Mapping[Source, torch.Tensor]


def halving(chs: int, other: int) -> tuple[list[tuple[Operand, Operand]], Sequence[Source]]:
    """The sums of a cell that strides; ``"b"`` has ``other`` channels."""
    early = other != chs
    sums: list[tuple[Operand, Operand]] = [
        ((Separables(chs, chs, 5, 2), "a"), (Separables(other, chs, 7, 2, early=early), "b")),
        ((cell_pool("max", 2), "a"), (Separables(other, chs, 7, 2, early=early), "b")),
        ((cell_pool("avg", 2), "a"), (Separables(other, chs, 5, 2, early=early), "b")),
        ((None, 1), (cell_pool("avg"), 0)),
        ((Separables(chs, chs, 3), 0), (cell_pool("max", 2), "a")),
    ]
    return sums, (1, 2, 3, 4)


class FirstCell(Cell):
    """The cell of the stem, which has the image's map as both inputs."""

    def __init__(self, in_chs: int, chs: int) -> None:
        super().__init__()
        self.conv_1x1 = ActConvBn(in_chs, chs)
        self.combine(*halving(chs, in_chs))

    def inputs(self, x: torch.Tensor, prev: torch.Tensor, y: torch.Tensor) -> Inputs:
        return {"a": self.conv_1x1.activated(y), "b": x}


def keeping(chs: int) -> tuple[list[tuple[Operand, Operand]], Sequence[Source]]:
    """The sums of a cell that keeps the size."""
    sums: list[tuple[Operand, Operand]] = [
        ((Separables(chs, chs, 5), "a"), (Separables(chs, chs, 3), "b")),
        ((Separables(chs, chs, 5), "b"), (Separables(chs, chs, 3), "b")),
        ((cell_pool("avg"), "a"), (None, "b")),
        ((cell_pool("avg"), "b"), (cell_pool("avg"), "b")),
        ((Separables(chs, chs, 3), "a"), (None, "a")),
    ]
    return sums, ("b", 0, 1, 2, 3, 4)


class PairCell(Cell):
    """A cell of the two before it.

    Args:
        in_chs, prev_chs: channels of the two inputs.
        chs: of each sum.
        strides: halve the size.
        halved: the input before is of twice the size.
    """

    def __init__(
        self, in_chs: int, prev_chs: int, chs: int, *, strides: bool = False, halved: bool = False
    ) -> None:
        super().__init__()
        self.halved = halved
        if not halved:
            self.conv_prev_1x1 = ActConvBn(prev_chs, chs)
        self.conv_1x1 = ActConvBn(in_chs, chs)
        if halved:
            add_factorized(self, prev_chs, chs // 2)
        self.combine(*(halving(chs, chs) if strides else keeping(chs)))

    def inputs(self, x: torch.Tensor, prev: torch.Tensor, y: torch.Tensor) -> Inputs:
        other = factorized(self, prev) if self.halved else self.conv_prev_1x1(prev)
        return {"a": self.conv_1x1.activated(y), "b": other}


class CellNetwork(Backbone):
    """A network of cells, each of which is given the outputs of the two before it.

    The levels lie behind the activations with which the cells that halve the size begin.

    Class attributes:
        stem: name of the first convolution.
        repeats: names of the cells whose successor is given the same input before as they.
    """

    stem: str
    repeats: tuple[str, ...] = ()

    def build(
        self, in_chans: int, cells: Mapping[str, Cell], levels: Mapping[str, tuple[int, int]]
    ) -> None:
        """Add the first convolution, the cells in their order, and the last activation.

        Args:
            in_chans: channels of the image.
            cells: by name.
            levels: channels and reduction of the map with which a cell begins, or of the last
                one, ``"act"``.
        """
        first = ConvNormAct(in_chans, 96, kernel_size=3, stride=2, padding=0, norm=norm, act=None)
        self.add_stage(self.stem, first, channels=96, reduction=2)
        for name, cell in cells.items():
            self.add_module(name, cell)
            if name in levels:
                channels, reduction = levels[name]
                self.add_level(f"{name}.conv_1x1.act", channels=channels, reduction=reduction)
        self.order = tuple(cells)
        channels, reduction = levels["act"]
        self.add_stage("act", nn.ReLU(), channels=channels, reduction=reduction)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = prev = self.get_submodule(self.stem)(x)
        yield x  # (N, C, H/2, W/2)
        levels = {level.module for level in self.levels}
        for name in self.order:
            cell: Any = self.get_submodule(name)
            y = None
            if f"{name}.conv_1x1.act" in levels:
                y = cell.conv_1x1.act(x)
                yield y  # (N, C, H/4, W/4), then halved
            after = cell(x, prev, y)
            x, prev = after, prev if name in self.repeats else x
        yield self.get_submodule("act")(x)  # (N, C, H/32, W/32)


class NASNet(CellNetwork):
    """NASNet-A: two cells to a quarter of the size, then three times as many normal ones.

    Args:
        width: channels of each sum of the first normal cells.
        depth: normal cells at each size.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv0.conv", "last_linear"
    stem, repeats = "conv0", ("reduction_cell_0", "reduction_cell_1")

    def __init__(
        self,
        width: int = 168,
        depth: int = 6,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        quarter, half = width // 4, width // 2
        cells: dict[str, Cell] = {
            "cell_stem_0": FirstCell(96, quarter),
            "cell_stem_1": PairCell(4 * quarter, 96, half, strides=True, halved=True),
        }
        chs, prev, sums = 4 * half, 4 * quarter, width
        for i in range(3):
            for j in range(depth):
                cells[f"cell_{i * depth + j}"] = PairCell(chs, prev, sums, halved=not j)
                chs, prev = 6 * sums, chs
            if i < 2:
                cells[f"reduction_cell_{i}"] = PairCell(chs, prev, 2 * sums, strides=True)
                chs, sums = 8 * sums, 2 * sums
        levels = {
            "cell_stem_1": (4 * quarter, 4),
            "reduction_cell_0": (6 * width, 8),
            "reduction_cell_1": (12 * width, 16),
            "act": (24 * width, 32),
        }
        self.build(in_chans, cells, levels)
        self.add_head(
            24 * width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate
        )

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        reductions = [(r"^reduction_cell_0", (6,)), (r"^reduction_cell_1", (12,))]
        return {"stem": r"^conv0|cell_stem_[01]", "blocks": [(r"^cell_(\d+)", None), *reductions]}


VARIANTS: dict[str, dict[str, Any]] = {"nasnetalarge": dict()}

FAMILY = Family(model=NASNet, variants=VARIANTS, weights=weights_table("nasnet"))
