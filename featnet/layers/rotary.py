"""Rotary position embeddings of maps: queries and keys are turned by angles that positions give.

Papers: RoFormer (https://arxiv.org/abs/2104.09864); in two dimensions EVA-02
(https://arxiv.org/abs/2303.11331), RoPE-ViT with learnt frequencies
(https://arxiv.org/abs/2403.13298), DINOv3 (https://arxiv.org/abs/2508.10104).
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError, check_choice
from ..size import Size
from .memo import Memo


class Rotation(NamedTuple):
    """The factors that turn queries and keys (N, heads, L, D).

    Attributes:
        sin, cos: (L, D), or (heads, L, D); of a prefix token 0 and 1.
        half: a pair are channels d and d + D / 2; otherwise channels 2d and 2d + 1.
    """

    sin: torch.Tensor
    cos: torch.Tensor
    half: bool

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """Turned in the precision of the angles, returned in x's."""
        if self.half:
            first, second = x.chunk(2, -1)
            quarter = torch.cat((-second, first), -1)
        else:
            quarter = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return (x * self.cos + quarter * self.sin).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of coordinates in training, all positions alike; None for not.

    Attributes:
        shift: up to this much along each axis, in the coordinates' own unit.
        jitter: each axis scaled by 1 / jitter to jitter.
        rescale: both axes scaled by one factor from 1 / rescale to rescale.

    Raises:
        ArgumentError: a value that cannot be.
    """

    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None

    def __post_init__(self) -> None:
        for name, low in (("shift", 0), ("jitter", 1), ("rescale", 1)):
            value = getattr(self, name)
            fits = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (fits and low <= value < math.inf):
                raise ArgumentError(
                    f"rope_{name}_coords={value!r}: None or a number from {low} is expected."
                )

    def __bool__(self) -> bool:
        return (self.shift, self.jitter, self.rescale) != (None, None, None)

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        """(L, 2) -> (L, 2)"""
        if self.shift is not None:
            coords = coords + coords.new_empty(2).uniform_(-self.shift, self.shift)
        for factor, count in ((self.jitter, 2), (self.rescale, 1)):
            if factor is not None:
                span = math.log(factor)
                coords = coords * coords.new_empty(count).uniform_(-span, span).exp()
        return coords


class RotaryEmbedding(nn.Module):
    """Half of the channels turn with the row, half with the column; for maps of any size.

    Nothing is stored in a checkpoint. The tables of the last few sizes are kept.

    Args:
        head_dim: channels of a head, a multiple of 4.
        temperature: the slowest channel turns about this much slower than the fastest.
        rotate_half: the way in which channels pair up; see :class:`Rotation`.
        indexing: ``"ij"``, rows first, or ``"xy"``, columns first.
        offset: added to each coordinate.
        reference: (H, W) of the map whose coordinates maps of other sizes are squeezed or
            stretched to.
        augment: in training.

    Raises:
        ArgumentError: a width that is no multiple of 4, an unknown ``indexing``.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        temperature: float,
        rotate_half: bool = False,
        indexing: str = "ij",
        offset: float = 0.0,
        reference: Size | None = None,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ArgumentError(
                f"Rotary embeddings need a multiple of 4 channels in a head; {head_dim} "
                "(embed_dim / num_heads) is none."
            )
        check_choice("rope_grid_indexing", indexing, ("ij", "xy"))
        self.head_dim, self.temperature = head_dim, float(temperature)
        self.rotate_half, self.indexing = rotate_half, indexing
        self.offset, self.reference = offset, reference
        self.augment = augment or Augment()
        self._tables = Memo()

    def forward(
        self, size: Size, *, prefix: int, depth: int, device: torch.device, density: int = 1
    ) -> list[Rotation]:
        """(H, W) of the map -> what each of the ``depth`` blocks turns by.

        Args:
            prefix: number of tokens before the map's, which are not turned.
            density: positions of the map for each patch side by side, along each axis.
        """
        if self.training and self.augment:
            table = self.table(self.augment(self.coordinates(size, device, density)), prefix)
        else:
            table = self._tables.get(
                (size, prefix, device, density),
                lambda: self.table(self.coordinates(size, device, density), prefix),
            )
        return [Rotation(table[0], table[1], self.rotate_half)] * depth

    def coordinates(self, size: Size, device: torch.device, density: int) -> torch.Tensor:
        """(H * W, 2), the coordinates of every position."""
        rows, columns = torch.meshgrid(
            *(
                self.axis(places(n, density, device=device), n / density, number)
                for number, n in enumerate(size)
            ),
            indexing="ij",
        )
        pair = (rows, columns) if self.indexing == "ij" else (columns, rows)
        return torch.stack(pair, -1).flatten(0, 1)

    def axis(self, t: torch.Tensor, length: float, number: int) -> torch.Tensor:
        """Places 0, 1, 2, ... along one axis, of ``length`` patches -> their coordinates."""
        t = t + self.offset
        return t if self.reference is None else t / length * self.reference[number]

    def exponents(self, device: torch.device) -> torch.Tensor:
        """(D / 4,), from 0 to below 1."""
        count = self.head_dim // 4
        return torch.arange(count, device=device).float() / count

    def angles(self, coords: torch.Tensor) -> torch.Tensor:
        """(L, 2) -> (L, 2, D / 4)"""
        return coords[..., None] * (1.0 / self.temperature ** self.exponents(coords.device))

    def table(self, coords: torch.Tensor, prefix: int) -> torch.Tensor:
        """(L, 2) -> (2, prefix + L, D), sines and cosines."""
        return waves(self.angles(coords).flatten(-2), prefix, half=self.rotate_half)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, temperature={self.temperature:g}"


def places(count: int, density: int, *, device: torch.device) -> torch.Tensor:
    """0, 1, 2, ... of patches side by side; of denser ones, where their centres lie between."""
    t = torch.arange(count, device=device).float()
    return t if density == 1 else (t + 0.5) / density - 0.5


def waves(angles: torch.Tensor, prefix: int, *, half: bool) -> torch.Tensor:
    """(..., L, D / 2) -> (2, ..., prefix + L, D), sines and cosines as :class:`Rotation` pairs."""
    angles = F.pad(angles, (0, 0, prefix, 0))
    table = torch.stack((angles.sin(), angles.cos()))
    return torch.cat((table, table), -1) if half else table.repeat_interleave(2, -1)


class CentredRotaryEmbedding(RotaryEmbedding):
    """DINOv3's: coordinates are those of the patches' centres, from -1 to 1 in a map of any size,
    and each is an angle of so many full turns."""

    def axis(self, t: torch.Tensor, length: float, number: int) -> torch.Tensor:
        return 2.0 * ((t + 0.5 + self.offset) / length) - 1.0

    def angles(self, coords: torch.Tensor) -> torch.Tensor:
        periods = self.temperature ** self.exponents(coords.device)
        return 2 * math.pi * coords[..., None] / periods


class MixedRotaryEmbedding(RotaryEmbedding):
    """Each channel turns with row and column at rates that each head of each block learns."""

    def __init__(
        self,
        head_dim: int,
        *,
        heads: int,
        depth: int,
        temperature: float,
        indexing: str = "ij",
        augment: Augment | None = None,
    ) -> None:
        super().__init__(head_dim, temperature=temperature, indexing=indexing, augment=augment)
        self.freqs = nn.Parameter(torch.empty(2, depth, heads, head_dim // 2))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Axial rates, along axes that are turned at random in each head."""
        rates = 1.0 / self.temperature ** self.exponents(self.freqs.device)
        turned = torch.rand(*self.freqs.shape[1:3], 1, device=self.freqs.device) * 2 * math.pi
        for axis, wave in enumerate((torch.cos, torch.sin)):
            both = [rates * wave(turned), rates * wave(turned + math.pi / 2)]
            self.freqs[axis].copy_(torch.cat(both, -1))

    def forward(
        self, size: Size, *, prefix: int, depth: int, device: torch.device, density: int = 1
    ) -> list[Rotation]:
        coords = self._tables.get(
            (size, device, density), lambda: self.coordinates(size, device, density)
        )
        if self.training and self.augment:
            coords = self.augment(coords)
        first, second = coords.unbind(-1)
        rotations = []
        for x, y in zip(*self.freqs[:, :depth].float().unbind(0), strict=True):  # (heads, D / 2)
            angles = first[:, None] * x[:, None] + second[:, None] * y[:, None]  # (heads, L, D / 2)
            table = waves(angles, prefix, half=False)
            rotations.append(Rotation(table[0], table[1], half=False))
        return rotations
