"""Activations that torch does not have."""

from __future__ import annotations

import torch
from torch import nn


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), which CLIP was trained with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)
