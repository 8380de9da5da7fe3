"""Self-attention over a map, in place of a convolution.

Every layer here is two parts: a projection of each position, and ``mix``, in which positions meet
and which an output stride lets run on interleaved maps (:mod:`featnet.layers.phases`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputSizeError
from ..size import Size
from .attention import make_divisible
from .dot_attention import join_heads
from .init import trunc_normal_
from .phases import in_phases
from .static import ceil_div, in_memory_format_of, stride_of
from .windows import join_windows, overlapping_windows, pad_to_windows, split_windows


def split(x: torch.Tensor, widths: Sequence[int], dim: int) -> tuple[torch.Tensor, ...]:
    """``x`` in parts of these widths."""
    return torch.split(x, list(widths), dim)


class SelfAttention(nn.Module):
    """The part that the layers share. ``stride`` is taken by averaging at the end, unless a layer
    has its own way."""

    density = 1
    size: Size | None = None  # of the largest map, where there is a table of positions

    def __init__(self, *, stride: int) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        if stride > 1:  # as a strided convolution, an odd map keeps its last row
            self.pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, C, H, W) -> maps of that size."""
        raise NotImplementedError

    def mix(self, *maps: torch.Tensor) -> torch.Tensor:
        """The result of ``project`` -> (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(in_memory_format_of(in_phases(self.mix, self.project(x), self.density), x))

    def dilate(self, density: int, stride: Size) -> nn.Module:
        """This layer for a map that is ``density`` times denser; windows inside see to
        themselves."""
        del stride
        self.density = density
        return self


def _query_width(channels: int, num_heads: int, dim_head: int | None, ratio: float) -> int:
    return dim_head or make_divisible(channels * ratio) // num_heads


class RelativePosition(nn.Module):
    """A score for a query at (i, j) and a key at (k, l): a term of k - i, and one of l - j.

    Args:
        size: (height, width) of the window of keys.
    """

    def __init__(self, size: Size, dim: int) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.height_rel = nn.Parameter(torch.empty(2 * size[0] - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * size[1] - 1, dim))

    def reset_parameters(self) -> None:
        """Truncated normals."""
        for table in (self.height_rel, self.width_rel):
            trunc_normal_(table, std=self.dim**-0.5)

    def forward(self, q: torch.Tensor, window: Size | None = None) -> torch.Tensor:
        """(N, h, w, dim) queries -> (N, h * w, H * W) over a window of keys, by default
        ``size``."""
        height, width = window or self.size
        rows, columns = (
            self._reach(t, n) for t, n in ((self.height_rel, height), (self.width_rel, width))
        )
        across = _shift(q, columns)[:, :, None]  # (N, h, 1, w, W), from rows of queries
        down = _shift(q.transpose(1, 2), rows)[:, :, None]  # (N, w, 1, h, H)
        n, h, w, _ = q.shape
        across = across.expand(-1, -1, height, -1, -1).permute(0, 1, 3, 2, 4)
        down = down.expand(-1, -1, width, -1, -1).permute(0, 3, 1, 4, 2)
        return (down + across).reshape(n, h * w, height * width)

    @staticmethod
    def _reach(table: torch.Tensor, window: int) -> torch.Tensor:
        """The rows of a table that a window not larger than its own needs: the near distances."""
        spare = (table.shape[0] + 1) // 2 - window
        if torch.compiler.is_compiling():  # which may not ask whether that is the whole table
            return table.index_select(0, spare + torch.arange(2 * window - 1, device=table.device))
        return table[spare : table.shape[0] - spare]


def _shift(q: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(N, rows, queries, dim) -> (N, rows, queries, keys): query i's value of k - i at k."""
    n, rows, queries, _ = q.shape
    reach = table.shape[0]
    x = (q @ table.transpose(-1, -2)).reshape(-1, queries, reach)
    # one value more per row, and each row begins one further to the left
    x = F.pad(F.pad(x, (0, 1)).flatten(1), (0, reach - queries))
    x = x.reshape(-1, queries + 1, reach)[:, :queries, (reach + 1) // 2 - 1 :]
    return x.reshape(n, rows, queries, -1)


class BottleneckAttention(SelfAttention):
    """All positions to all (https://arxiv.org/abs/2101.11605).

    Args:
        size: the largest map; a smaller one needs only a part of the table of positions.
        dim_head: of queries and keys; by default that of the values.
    """

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        size: Size,
        num_heads: int = 4,
        dim_head: int | None = None,
    ) -> None:
        super().__init__(stride=stride)
        self.num_heads, self.size = num_heads, size
        self.dim = _query_width(channels, num_heads, dim_head, 1.0)
        self.widths = (num_heads * self.dim, num_heads * self.dim, channels)
        self.qkv = nn.Conv2d(channels, sum(self.widths), 1, bias=False)
        self.pos_embed = RelativePosition(size, self.dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals by fan-in."""
        trunc_normal_(self.qkv.weight, std=self.qkv.in_channels**-0.5)
        self.pos_embed.reset_parameters()

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.qkv(x),)

    def mix(self, *maps: torch.Tensor) -> torch.Tensor:
        n, _, h, w = maps[0].shape
        check_reach((h, w), self.pos_embed.size)
        q, k, v = (t.reshape(n * self.num_heads, -1, h * w) for t in split(maps[0], self.widths, 1))
        q, v = q.transpose(1, 2), v.transpose(1, 2)
        where = self.pos_embed(torch.unflatten(q, 1, (h, w)), (h, w))
        attention = ((q @ k) * self.dim**-0.5 + where).softmax(-1)
        return (attention @ v).transpose(1, 2).reshape(n, self.widths[2], h, w)


def check_reach(size: Size, largest: Size) -> None:
    """Refuse a map for which a table of positions is too small.

    Raises:
        InputSizeError: it is larger than ``largest``.
    """
    if size[0] > largest[0] or size[1] > largest[1]:
        raise InputSizeError(
            f"Self-attention with positions for maps up to {largest[0]} x {largest[1]} got one of "
            f"{size[0]} x {size[1]}: build the network with a larger img_size."
        )


class HaloAttention(SelfAttention):
    """Blocks of positions to their block and a halo around it (https://arxiv.org/abs/2103.12731).

    Beyond the map all is zero; a map that is no multiple of the block is taken as a part of one.
    With a stride, every ``stride``-th position of a block asks; where an output stride takes that
    away, those between ask too, each with the table of the asker before it.

    Args:
        num_heads, dim_head, qk_ratio: of queries and keys; the width of a head is ``dim_head``, or
            ``qk_ratio`` times that of the values.
    """

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        block_size: int = 8,
        halo_size: int = 3,
        num_heads: int = 8,
        dim_head: int | None = None,
        qk_ratio: float = 1.0,
    ) -> None:
        step = stride if block_size % stride == 0 else 1
        super().__init__(stride=stride // step)
        self.step = step
        self.num_heads, self.block, self.halo = num_heads, block_size, halo_size
        self.dim = _query_width(channels, num_heads, dim_head, qk_ratio)
        self.widths = (self.dim, channels // num_heads)  # of a head's keys and values
        self.q = nn.Conv2d(channels, num_heads * self.dim, 1, self.step, bias=False)
        self.kv = nn.Conv2d(channels, num_heads * sum(self.widths), 1, bias=False)
        window = block_size + 2 * halo_size
        self.pos_embed = RelativePosition((window, window), self.dim)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals by fan-in."""
        for layer in (self.q, self.kv):
            trunc_normal_(layer.weight, std=layer.in_channels**-0.5)
        self.pos_embed.reset_parameters()

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q(x), self.kv(x)

    def mix(self, *maps: torch.Tensor) -> torch.Tensor:
        q, kv = maps
        n, block, halo = kv.shape[0], self.block, self.halo
        low, right = (ceil_div(side, block) * block - side + halo for side in kv.shape[-2:])
        window = block + 2 * halo
        kv = F.pad(kv, (halo, right, halo, low)).permute(0, 2, 3, 1)
        kv = overlapping_windows(kv, window, step=block).flatten(1, 2)
        kv = torch.unflatten(kv, 2, (self.num_heads, -1)).transpose(1, 2)
        k, v = split(kv, self.widths, -1)  # (N * blocks, heads, window^2, dim)

        def ask(q: torch.Tensor) -> torch.Tensor:  # of several places to start from at once
            times = q.shape[0] // n
            if times == 1:
                return self._attend(q, k, v)
            return self._attend(q, k.repeat(times, 1, 1, 1), v.repeat(times, 1, 1, 1))

        return in_phases(ask, (q,), self.step // stride_of(self.q)[0])

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = q.permute(0, 2, 3, 1)
        side, shape = self.block // self.step, q.shape[:3]
        q = split_windows(pad_to_windows(q, (side, side)), (side, side)).flatten(1, 2)
        q = torch.unflatten(q, 2, (self.num_heads, -1)).transpose(1, 2)
        y = (q @ k.transpose(-1, -2)) * self.dim**-0.5
        y += self.pos_embed(q.reshape(-1, side, side, self.dim)).reshape(y.shape)
        y = join_heads(y.softmax(-1) @ v)  # (N * blocks, side^2, heads * dim)
        return join_windows(torch.unflatten(y, 1, (side, side)), shape).permute(0, 3, 1, 2)


class LambdaLayer(SelfAttention):
    """A linear function of its surroundings for each position (https://arxiv.org/abs/2102.08602).

    Args:
        reach: side of the surroundings; None for the whole map, with a table of positions.
        size: the largest map, if ``reach`` is None.
    """

    def __init__(
        self,
        channels: int,
        *,
        stride: int = 1,
        reach: int | None = 9,
        size: Size | None = None,
        num_heads: int = 4,
        dim_head: int = 16,
    ) -> None:
        super().__init__(stride=stride)
        self.num_heads, self.dim, self.size = num_heads, dim_head, size
        self.widths = (num_heads * dim_head, dim_head, channels // num_heads)
        self.qkv = nn.Conv2d(channels, sum(self.widths), 1, bias=False)
        self.norm_q = nn.BatchNorm2d(self.widths[0])
        self.norm_v = nn.BatchNorm2d(self.widths[2])
        self.conv_lambda = self.pos_emb = None
        if reach is not None:
            pad = reach // 2
            self.conv_lambda = nn.Conv3d(1, dim_head, (reach, reach, 1), padding=(pad, pad, 0))
        else:
            assert size is not None
            table = torch.empty(2 * size[0] - 1, 2 * size[1] - 1, dim_head)
            self.pos_emb = nn.Parameter(table)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals by fan-in."""
        trunc_normal_(self.qkv.weight, std=self.qkv.in_channels**-0.5)
        if self.conv_lambda is not None:
            trunc_normal_(self.conv_lambda.weight, std=self.dim**-0.5)
        if self.pos_emb is not None:
            trunc_normal_(self.pos_emb, std=0.02)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = split(self.qkv(x), self.widths, 1)
        return self.norm_q(q), k, self.norm_v(v)

    def mix(self, *maps: torch.Tensor) -> torch.Tensor:
        n, _, h, w = maps[0].shape
        q = maps[0].reshape(n, self.num_heads, self.dim, h * w).transpose(-1, -2)
        k = maps[1].reshape(n, self.dim, h * w).softmax(-1)
        v = maps[2].reshape(n, -1, h * w).transpose(-1, -2)  # (N, positions, V)
        content = q @ (k @ v).unsqueeze(1)  # (N, heads, positions, V)
        if self.conv_lambda is not None:
            near = self.conv_lambda(v.reshape(n, 1, h, w, -1))  # (N, K, H, W, V)
            near = near.reshape(n, 1, self.dim, h * w, -1).transpose(2, 3)
        else:
            near = (self.positions((h, w)).transpose(-1, -2) @ v.unsqueeze(1)).unsqueeze(1)
        place = (q.unsqueeze(-2) @ near).squeeze(-2)  # (N, heads, positions, V)
        return (content + place).transpose(-1, -2).reshape(n, -1, h, w)

    def positions(self, size: Size) -> torch.Tensor:
        """(positions, positions, K): the table's entry for each pair's distance."""
        assert self.pos_emb is not None and self.size is not None
        check_reach(size, self.size)
        rows, columns = (
            torch.arange(n, device=self.pos_emb.device)[None]
            - torch.arange(n, device=self.pos_emb.device)[:, None]
            + largest
            - 1
            for n, largest in zip(size, self.size, strict=True)
        )
        pairs = self.pos_emb[rows[:, None, :, None], columns[None, :, None, :]]  # (h, w, h, w, K)
        return pairs.flatten(2, 3).flatten(0, 1)
