"""Attention by products of sums: its cost grows with the positions, not with their square."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F


def in_float32(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Context: operations keep their type, whatever autocast says."""
    if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def relu_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, eps: float
) -> torch.Tensor:
    """ReLU in place of the softmax (https://arxiv.org/abs/2205.14756), computed in float32.

    Args:
        q, k, v: (..., L, C); one head each.
        eps: added to the sum of the shares.

    Returns:
        (..., L, C), in the type of ``v``.
    """
    dtype = v.dtype
    with in_float32(v):
        q, k = F.relu(q).float(), F.relu(k).float()
        v = F.pad(v.float(), (0, 1), value=1.0)  # the last column sums the shares
        y = q @ (k.transpose(-1, -2) @ v)
        return (y[..., :-1] / (y[..., -1:] + eps)).to(dtype)
