"""Bilinear attentional transforms: a map as a matrix, between two learned ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .attention import make_divisible
from .conv import ConvNormAct
from .self_attention import SelfAttention
from .static import ceil_div, crop


class BilinearTransform(SelfAttention):
    """``P x Q`` for each channel's map x, P and Q mixing its rows and columns in ``blocks`` parts.

    Both are read off the map, for each of the groups. A map that does not divide into the parts is
    taken as a part of one that does.
    """

    def __init__(self, channels: int, *, blocks: int, groups: int) -> None:
        super().__init__(stride=1)
        self.blocks, self.groups = blocks, groups
        self.conv1 = ConvNormAct(channels, groups)
        self.conv_p = nn.Conv2d(groups, blocks**2 * groups, (blocks, 1))
        self.conv_q = nn.Conv2d(groups, blocks**2 * groups, (1, blocks))
        self.conv2 = ConvNormAct(channels, channels)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.conv1(x), x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(super().forward(x))

    def mix(self, *maps: torch.Tensor) -> torch.Tensor:
        b, (h, w) = self.blocks, maps[1].shape[-2:]
        # nothing in conv1's output is below zero, so that what is added wins no maximum
        tall, wide = ceil_div(h, b) * b, ceil_div(w, b) * b
        guide, x = (F.pad(m, (0, wide - w, 0, tall - h)) for m in maps)
        n, c = x.shape[:2]
        rows = self.conv_p(F.adaptive_max_pool2d(guide, (b, 1))).view(n, self.groups, b, b)
        columns = self.conv_q(F.adaptive_max_pool2d(guide, (1, b))).view(n, self.groups, b, b)
        p, q = rows.sigmoid(), columns.sigmoid()
        p = (p / p.sum(3, keepdim=True)).repeat_interleave(c // self.groups, 1)  # (N, C, b, b)
        q = (q / q.sum(2, keepdim=True)).repeat_interleave(c // self.groups, 1)
        x = mix_rows(p, x)
        x = mix_rows(q.transpose(2, 3), x.transpose(2, 3)).transpose(2, 3)
        return crop(x, (h, w), axis=2)


def mix_rows(by: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Matrices (N, C, b, b) times maps (N, C, H, W), in b parts of whole rows."""
    parts = torch.unflatten(x.flatten(2), 2, (by.shape[3], -1))
    return torch.unflatten((by @ parts).flatten(2), 2, x.shape[2:])


class BilinearAttention(nn.Module):
    """A residual bilinear transform of a narrower map (BAT, Chi et al., CVPR 2020).

    Source: https://github.com/BA-Transform/BAT-Image-Classification.
    """

    def __init__(
        self, channels: int, *, blocks: int = 7, groups: int = 2, rd_ratio: float = 0.25
    ) -> None:
        super().__init__()
        width = make_divisible(channels * rd_ratio)
        self.conv1 = ConvNormAct(channels, width)
        self.ba = BilinearTransform(width, blocks=blocks, groups=groups)
        self.conv2 = ConvNormAct(width, channels)
        self.dropout = nn.Dropout2d(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.conv2(self.ba(self.conv1(x)))) + x
