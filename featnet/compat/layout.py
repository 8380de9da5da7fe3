"""timm's names of layouts, of which featnet's maps have the first."""

from __future__ import annotations

import enum

import torch


class Format(enum.StrEnum):
    """The order of a map's, or of tokens', dimensions."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    NCL = "NCL"
    NLC = "NLC"


def get_spatial_dim(fmt: Format | str) -> tuple[int, ...]:
    """Return the dimensions of the positions."""
    return tuple(i for i, letter in enumerate(Format(fmt).value) if letter in "HWL")


def get_channel_dim(fmt: Format | str) -> int:
    """Return the dimension of the channels."""
    return Format(fmt).value.index("C")


def nchw_to(x: torch.Tensor, fmt: Format | str) -> torch.Tensor:
    """Bring (N, C, H, W) into a layout; for tokens positions are in one dimension."""
    layout = Format(fmt)
    if layout in (Format.NCL, Format.NLC):
        x = x.flatten(2)
    return x.movedim(1, get_channel_dim(layout))


def nhwc_to(x: torch.Tensor, fmt: Format | str) -> torch.Tensor:
    """Bring (N, H, W, C) into a layout; see :func:`nchw_to`."""
    return nchw_to(x.movedim(3, 1), fmt)
