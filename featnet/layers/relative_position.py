"""Learnt biases of attention by how far apart two positions of a map are, for maps of any size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..size import Size
from .init import trunc_normal_
from .memo import Memo
from .mlp import Mlp
from .static import same_size
from .windows import relative_bias


def relative_index(size: Size, *, prefix: bool, device: torch.device) -> torch.Tensor:
    """(L, L), the row of a bias table for each query and key of a map of ``size``.

    The table has a row for every offset from (1 - H, 1 - W) to (H - 1, W - 1), and with ``prefix``
    three more for a token before the map: from it to the map, from the map to it, to itself.
    """
    height, width = size
    place = torch.arange(height * width, device=device)
    rows = place // width
    columns = place - rows * width
    down = rows[:, None] - rows + (height - 1)
    right = columns[:, None] - columns + (width - 1)
    index = down * (2 * width - 1) + right
    if prefix:
        first, length = (2 * height - 1) * (2 * width - 1), height * width
        index = torch.cat((index.new_full((length, 1), first + 1), index), 1)
        itself = index.new_full((1, 1), first + 2)
        index = torch.cat((torch.cat((itself, index.new_full((1, length), first)), 1), index))
    return index


def spread(
    old: int, new: int, *, density: int, same: torch.Tensor | bool, device: torch.device
) -> torch.Tensor:
    """(2 * new - 1, 2 * old - 1): linear interpolation of a table's rows for another window.

    Near offsets keep their biases, and what is far apart is drawn out: the known offsets are put
    at 0, 1, 1 + q, 1 + q + q^2, ... so that they reach as far as the new window does (as in BEiT,
    https://arxiv.org/abs/2106.08254; q is 1.01 or more). Beyond them the last one goes on.

    Args:
        density: positions of the new window for each of the old one's, in the same space.
        same: both windows are as large, and the known offsets stay where they are.
    """
    if old == 1:
        return torch.ones(2 * new - 1, 1, device=device)
    wanted = torch.arange(1 - new, new, device="cpu").float() / density
    last = wanted[-1].double() + 1 / density - 1  # in positions of the old window
    double: Any = {"dtype": torch.float64, "device": "cpu"}
    low, high = torch.tensor(1.01, **double), torch.tensor(1.5, **double)
    for _ in range(19):  # to 1e-6
        q = (low + high) / 2
        far = (1 - q ** (old - 1)) / (1 - q) > last
        low, high = torch.where(far, low, q), torch.where(far, q, high)
    count = torch.arange(1, old, **double)
    kept = torch.as_tensor(same, device="cpu")
    reach = torch.where(kept, count, (1 - q**count) / (1 - q)).float()
    known = torch.cat((-reach.flip(0), reach.new_zeros(1), reach))
    # torch.searchsorted, which ONNX does not know
    right = (known < wanted[:, None]).sum(1).clamp(1, 2 * old - 2)
    left = right - 1
    share = ((wanted - known[left]) / (known[right] - known[left])).clamp(0, 1)[:, None]
    one_hot = torch.eye(2 * old - 1, device="cpu")
    return ((1 - share) * one_hot[left] + share * one_hot[right]).to(device)


class RelativePositions:
    """Biases (heads, L, L) from tables that were learnt for maps of one size.

    Not a module: it holds no tensors but tables of the last few sizes.

    Args:
        size: (H, W) of the map for which the tables are.
        prefix: a token comes before the map.
    """

    def __init__(self, size: Size, *, prefix: bool) -> None:
        self.size, self.prefix = size, prefix
        self._index, self._spread = Memo(), Memo(16)

    @property
    def length(self) -> int:
        """Rows of a table."""
        return (2 * self.size[0] - 1) * (2 * self.size[1] - 1) + 3 * self.prefix

    def resample(self, table: torch.Tensor, size: Size, density: int = 1) -> torch.Tensor:
        """(length, heads) -> a table for maps of another size, or of closer positions."""
        like = (self.size[0] * density, self.size[1] * density)
        same: torch.Tensor | bool | None = same_size(size, like)
        if same and density == 1:
            return table
        if same is None:  # a graph for every size: whether it is this one stays open
            same = torch.full((), size[0], device="cpu") == like[0]
            same = same & (torch.full((), size[1], device="cpu") == like[1])
        (height, width), device = self.size, table.device
        make = partial(spread, density=density, same=same, device=device)
        across, along = (
            self._spread.get((old, new, density, same, device), partial(make, old, new))
            for old, new in zip(self.size, size, strict=True)
        )
        count = (2 * height - 1) * (2 * width - 1)
        grid = table[:count].float().reshape(2 * height - 1, 2 * width - 1, -1)
        grid = torch.einsum("yh,hwc,xw->yxc", across, grid, along).flatten(0, 1)
        return torch.cat((grid.to(table.dtype), table[count:]))

    def bias(self, table: torch.Tensor, size: Size, density: int = 1) -> torch.Tensor:
        """(length, heads) -> (heads, L, L) for maps of any size.

        Args:
            density: positions of the map for each of the table's, along each axis.
        """
        index = self._index.get(
            (size, table.device),
            lambda: relative_index(size, prefix=self.prefix, device=table.device),
        )
        return self.resample(table, size, density)[index].permute(2, 0, 1)


def for_window(table: torch.Tensor, window: Size) -> torch.Tensor:
    """(distances, heads) of any square window, or of this one -> of this one."""
    side = (math.isqrt(len(table)) + 1) // 2
    length = RelativePositions(window, prefix=False).length
    if len(table) == length or (2 * side - 1) ** 2 != len(table):
        return table
    return RelativePositions((side, side), prefix=False).resample(table, window)


class DistanceTable(nn.Module):
    """A bias for each distance of two positions in a window, and each head.

    For windows of another size the table is resampled.

    Args:
        window: (height, width) that the table is made for.
    """

    def __init__(self, window: Size, num_heads: int) -> None:
        super().__init__()
        self.positions, self.num_heads = RelativePositions(window, prefix=False), num_heads
        self.relative_position_bias_table = nn.Parameter(torch.empty(self.shape))
        self.init_table()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table."""
        return self.positions.length, self.num_heads

    def init_table(self) -> None:
        """Give the table its first values."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def rows(self, table: torch.Tensor) -> torch.Tensor:
        """A table as (distances, heads), by the distance from key to query."""
        return table

    def table(self, rows: torch.Tensor) -> torch.Tensor:
        """Back from :meth:`rows`."""
        return rows

    def fitted(self, table: torch.Tensor) -> torch.Tensor:
        """A table that was learnt for square windows of another size, for these."""
        rows = self.rows(table)
        fitted = for_window(rows, self.positions.size)
        return table if fitted is rows else self.table(fitted)

    def forward(self, window: Size, like: torch.Tensor) -> torch.Tensor:
        """(heads, L, L) for windows of a size, on the device of ``like``."""
        del like  # the table is there already
        return self.positions.bias(self.rows(self.relative_position_bias_table), window)


def fit_tables(state: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, of which the tables are fitted to the windows of a network: those of
    each :class:`DistanceTable`."""
    fitted = dict(state)
    for name, module in model.named_modules():
        key = f"{name}.relative_position_bias_table"
        if isinstance(module, DistanceTable) and key in fitted:
            fitted[key] = module.fitted(fitted[key])
    return fitted


class DistanceMlp(nn.Module):
    """A bias for each distance and each head by an MLP of the distances' logarithms
    (https://arxiv.org/abs/2111.09883), for windows of any size."""

    def __init__(self, num_heads: int, *, hidden: int) -> None:
        super().__init__()
        self.mlp = Mlp(2, hidden, out=num_heads, act=nn.ReLU, drop=0.125)
        self.mlp.drop2 = nn.Identity()

    def biases(self, size: Size, like: torch.Tensor, density: int = 1) -> torch.Tensor:
        """(2h - 1, 2w - 1, heads), in the type and on the device of ``like``.

        Args:
            density: positions for one that distances are counted in.
        """
        rows, columns = (
            torch.arange(1 - side, side, device=like.device).float() / density for side in size
        )
        apart = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        return self.mlp((apart.sign() * torch.log(1.0 + apart.abs())).to(like.dtype))

    def forward(self, window: Size, like: torch.Tensor) -> torch.Tensor:
        """(heads, L, L) for windows of a size, in the type and on the device of ``like``."""
        return relative_bias(self.biases(window, like), window)


def resample_distances(table: torch.Tensor, length: int) -> torch.Tensor:
    """(2 * s - 1, C), a row for each distance on a side of s -> (length, C), interpolated."""
    if same_size((table.shape[0], 1), (length, 1)):
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def distances(
    table: torch.Tensor, queries: int, keys: int, *, coarser: bool = True
) -> torch.Tensor:
    """(2 * s - 1, C), a row for each distance on a side of s -> (queries, keys, C).

    The table is interpolated for a side of another length, which is that of the larger number.

    Args:
        coarser: there are at most as many keys as queries on the side; False for at least as many.
    """
    side = queries if coarser else keys
    table = resample_distances(table, 2 * side - 1)
    query = torch.arange(queries, device=table.device) * side // queries
    key = (keys - 1 - torch.arange(keys, device=table.device)) * side // keys
    return table[query[:, None] + key]
