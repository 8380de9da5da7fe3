"""Colours for the vectors of maps: their principal components, in memory that stays small."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

from ..errors import ArgumentError
from .pooling import as_levels

# Percentiles that become black and full intensity: a few outliers must not flatten the rest.
LOW, HIGH = 0.01, 0.99
# Values and positions that a basis is fitted to at most; values that are projected at once
SAMPLE, POSITIONS, CHUNK = 2**22, 2**17, 2**21
_EXACT = 256  # up to this rank all eigenvectors are computed, beyond it only the first


@dataclasses.dataclass(frozen=True)
class LevelBasis:
    """The main axes of one level's vectors.

    Attributes:
        mean: (C,), what is subtracted.
        axes: (C, 3), orthonormal; zero where the vectors do not vary.
        low, high: (3,), scores that become 0 and 1.
    """

    mean: torch.Tensor
    axes: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def colours(self, x: torch.Tensor) -> torch.Tensor:
        """Give the colours of a map: (C, h, w) -> (h, w, 3) from 0 to 1."""
        channels, height, width = x.shape
        if channels != len(self.mean):
            raise ArgumentError(
                f"A map of {channels} channels, and a basis of maps of {len(self.mean)}: fit it "
                "to maps of the same levels."
            )
        scores = _scores(x, self.mean, self.axes)  # (h * w, 3)
        if channels == 1:
            scores = scores[:, :1].expand(-1, 3)
        span = self.high - self.low
        flat = span == 0
        scaled = (scores - self.low) / torch.where(flat, torch.ones_like(span), span)
        scaled = torch.where(flat, torch.full_like(scaled, 0.5), scaled.clamp(0, 1))
        return scaled.float().view(height, width, 3)


@dataclasses.dataclass(frozen=True)
class FeatureBasis:
    """Common colours for the maps of several images.

    The first three principal components of a level's vectors become red, green and blue. With one
    basis, what is alike in two images has one colour in both.

    Attributes:
        levels: the axes of each level.

    Example:
        >>> import torch
        >>> from featnet import FeatureBasis, render_features
        >>> a, b = torch.rand(1, 16, 6, 8), torch.rand(1, 16, 6, 8)  # maps of two images
        >>> basis = FeatureBasis.fit([a, b])
        >>> images = [render_features(maps, basis=basis) for maps in (a, b)]
    """

    levels: tuple[LevelBasis, ...]

    @classmethod
    def fit(cls, outputs: Iterable[Any]) -> FeatureBasis:
        """Find the axes along which the vectors of several images vary most.

        Args:
            outputs: for each image, or each batch, what the extractor returned.

        Returns:
            The basis, for :func:`featnet.render_features`.

        Raises:
            ArgumentError: no outputs, or outputs that do not have the same levels.
        """
        if isinstance(outputs, torch.Tensor):
            raise ArgumentError("fit() takes a list of outputs: [net(a), net(b)], or [net(x)].")
        every = [[x for x, _ in as_levels(output)] for output in outputs]
        if not every:
            raise ArgumentError("fit() needs the output of at least one image.")
        channels = [[x.shape[1] for x in levels] for levels in every]
        if any(row != channels[0] for row in channels):
            raise ArgumentError(
                f"fit() takes outputs of the same levels; these have {channels[0]} and "
                f"{next(row for row in channels if row != channels[0])} channels."
            )
        return cls(tuple(_fit(list(maps)) for maps in zip(*every, strict=True)))


def _vectors(x: torch.Tensor) -> torch.Tensor:
    """(..., P) of any dtype -> double on the CPU, without what is not finite."""
    return torch.nan_to_num(x.detach().cpu().double(), nan=0.0, posinf=0.0, neginf=0.0)


def _fit(maps: list[torch.Tensor]) -> LevelBasis:
    """The basis of a level's maps (N, C, h, w); of large ones, of positions in regular steps."""
    channels = maps[0].shape[1]
    total = sum(x.numel() for x in maps) // channels
    step = -(-total // min(POSITIONS, SAMPLE // channels))
    columns = [each.flatten(1)[:, ::step] for x in maps for each in x]  # (C, P)
    sample = torch.cat([_vectors(x) for x in columns], dim=1).t()  # (P, C)
    mean = sample.mean(0)
    centred = sample - mean
    axes = _axes(centred, count=3)
    scores = centred @ axes
    # The sign of an axis is arbitrary: here its largest score in size is positive
    largest = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))[0]
    sign = torch.where(largest < 0, -1.0, 1.0).double()
    axes, scores = axes * sign, scores * sign
    if channels == 1:
        scores = scores[:, :1].expand(-1, 3)
    ordered = scores.sort(dim=0).values
    low, high = (ordered[round(q * (len(ordered) - 1))].clone() for q in (LOW, HIGH))
    return LevelBasis(mean, axes, low, high)


def _axes(centred: torch.Tensor, *, count: int) -> torch.Tensor:
    """The ``count`` main axes of the rows of (n, C), zeros where there are fewer: (C, count)."""
    n, channels = centred.shape
    if min(n, channels) > _EXACT:
        values, vectors = _first_axes(centred, count)
    elif n < channels:  # the same axes from the smaller of the two symmetric matrices
        values, left = torch.linalg.eigh(centred @ centred.t())
        vectors = centred.t() @ left / values.clamp(min=1e-300).sqrt()
    else:
        values, vectors = torch.linalg.eigh(centred.t() @ centred)
    # ascending; what is left of a rank that is too low is rounding noise, not an axis
    real = values > 1e-12 * values[-1]
    vectors = torch.where(real, vectors, torch.zeros_like(vectors)).flip(1)[:, :count]
    missing = vectors.new_zeros(channels, count - vectors.shape[1])
    return torch.cat([vectors, missing], dim=1)


def _first_axes(centred: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues and eigenvectors by subspace iteration: all of them would take seconds."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(centred.shape[1], count + 13, generator=generator, dtype=centred.dtype)
    for _ in range(12):
        basis = torch.linalg.qr(centred.t() @ (centred @ basis)).Q
    values, rotation = torch.linalg.eigh((projected := centred @ basis).t() @ projected)
    return values, basis @ rotation


def _scores(x: torch.Tensor, mean: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Coordinates of the vectors of (C, h, w): (h * w, 3), a part after the other."""
    columns = x.flatten(1)
    size = max(1, CHUNK // len(columns))
    parts = [(_vectors(part).t() - mean) @ axes for part in torch.split(columns, size, dim=1)]
    return torch.cat(parts)
