"""The à trous form of whatever positions meet in: the interleaved maps, each by itself.

On a map that is ``density`` times denser than the one that a layer was made for (an output stride),
the layer runs on each of the ``density * density`` interleaved maps. These have the original's size
and spacing, so that windows and tables of positions fit, and each position finds what it found
there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .static import ceil_div


def in_phases(
    mix: Callable[..., torch.Tensor], maps: Sequence[torch.Tensor], density: int, *, lost: int = 1
) -> torch.Tensor:
    """``mix`` on every ``density``-th position of maps of one size, for each place to start from.

    Args:
        mix: of (N, C, H, W) maps, gives one of ``ceil(H / lost)`` rows, and columns alike.
        lost: the stride of ``mix``, which the result is not to have: there are as many more places
            to start from.
    """
    if density * lost == 1:
        return mix(*maps)
    height, width = maps[0].shape[-2:]
    down, right = min(density * lost, height), min(density * lost, width)
    alike: dict[tuple[int, int], list[int]] = {}  # places whose maps are of one size run together
    for place, (i, j) in enumerate(itertools.product(range(down), range(right))):
        size = (ceil_div(height - i, density), ceil_div(width - j, density))
        alike.setdefault(size, []).append(place)
    parts: dict[int, torch.Tensor] = {}
    for places in alike.values():
        starts = [divmod(place, right) for place in places]
        y = mix(*(torch.cat([m[..., i::density, j::density] for i, j in starts]) for m in maps))
        parts |= zip(places, y.chunk(len(places)), strict=True)
    tall, wide = parts[0].shape[-2:]  # the first is the largest
    phases = [parts[place] for place in range(down * right)]
    phases = [F.pad(y, (0, wide - y.shape[-1], 0, tall - y.shape[-2])) for y in phases]
    y = torch.stack(phases, -1).reshape(*phases[0].shape, down, right)
    y = y.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)  # (N, C, tall * down, ...)
    return y[..., :height, :width]


class Phased(nn.Module):
    """A block, written as :meth:`run`, that runs as it is on the interleaved maps.

    Its parts keep their strides and their reach, whatever they are: an output stride acts on the
    block as a whole.

    Class attributes:
        channels_last: ``run`` is given (N, H, W, C) and gives the same; False for (N, C, H, W).
        stride: of the block; a map of odd size keeps its last row.

    Example:
        >>> class Centre(Phased):
        ...     channels_last = False
        ...
        ...     def run(self, x):
        ...         return x - x.mean((2, 3), keepdim=True)
        >>> x = torch.arange(4.0).reshape(1, 1, 1, 4)
        >>> Centre().dilate(2, (1, 1))(x).flatten().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """

    channels_last = True
    stride = 1
    density, lost = 1, 1

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) -> (N, ceil(H / stride), ceil(W / stride), C'); or channels first."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.density * self.lost == 1:
            return self.run(x)
        if not self.channels_last:
            return in_phases(self.run, (x,), self.density, lost=self.lost)
        y = in_phases(self._planes, (x.permute(0, 3, 1, 2),), self.density, lost=self.lost)
        return y.permute(0, 2, 3, 1)

    def _planes(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def dilate(self, density: int, stride: tuple[int, int]) -> nn.Module:
        """This block for a map that is ``density`` times denser, with what is left of its
        stride."""
        self.density, self.lost = self.density * density, self.lost * (self.stride // stride[0])
        self.stride = stride[0]
        return self


class MapAndTokens(NamedTuple):
    """A map, and tokens beside it: of the class, of distillation.

    Attributes:
        map: (N, C, H, W).
        tokens: (N, T, C); on a denser map (N, T, C, H, W), those of the interleaved map that a
            position belongs to.
    """

    map: torch.Tensor
    tokens: torch.Tensor

    def as_map(self) -> torch.Tensor:
        """(N, C, H, W)."""
        return self.map

    def before(self) -> torch.Tensor:
        """(N, T, C), the tokens that belong to no position."""
        return self.tokens[..., 0, 0] if self.tokens.ndim == 5 else self.tokens


class PhasedTokens(Phased):
    """A stage over positions and tokens together, written as :meth:`run`.

    On the interleaved maps each has tokens of its own.
    """

    channels_last = False

    def run(  # type: ignore[override]
        self, x: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) and (N, T, C), of the size that the stage was made for."""
        raise NotImplementedError

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, tokens: torch.Tensor
    ) -> MapAndTokens:
        if self.density * self.lost == 1:
            return MapAndTokens(*self.run(x, tokens))
        if tokens.ndim == 3:
            tokens = tokens[..., None, None].expand(-1, -1, -1, *x.shape[-2:])
        count, width = tokens.shape[1:3]

        def mix(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
            y, own = self.run(x, torch.unflatten(tokens[..., 0, 0], 1, (count, width)))
            return torch.cat((y, own.flatten(1)[..., None, None].expand(-1, -1, *y.shape[-2:])), 1)

        y = in_phases(mix, (x, tokens.flatten(1, 2)), self.density, lost=self.lost)
        y = torch.unflatten(y, 1, (1 + count, -1))
        return MapAndTokens(y[:, 0], y[:, 1:])
