"""Sequences of blocks, and what is dropped from them in training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, overload

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ArgumentError, check_choice, check_rate
from .factory import Layer


def chain(modules: Iterable[Callable[[Any], Any]], x: object) -> Any:
    """Modules (or functions) one after the other."""
    for module in modules:
        x = module(x)
    return x


class Recomputed(nn.Module):
    """A module whose activations may be recomputed in the backward pass instead of kept.

    With ``grad_checkpointing`` those of each part that it runs; if it is ``whole``, of all at once.
    """

    grad_checkpointing = False
    whole = False

    @property
    def recomputes(self) -> bool:
        """True if activations are recomputed in this forward."""
        return self.grad_checkpointing and self.training and torch.is_grad_enabled()

    def run(self, blocks: Iterable[Callable[[Any], Any]], x: object) -> Any:
        """Some of the blocks, one after the other; recomputed at once. A block that is given more
        than ``x`` comes as a ``functools.partial``."""
        if self.recomputes:
            return checkpoint(chain, blocks, x, use_reentrant=False)
        return chain(blocks, x)


class Blocks(nn.Sequential, Recomputed):
    """A stage's blocks, each of which may be recomputed."""

    def forward(self, x: Any) -> Any:
        return self.through(x)

    def through(self, x: object, stop: int | None = None, **given: object) -> Any:
        """Through the blocks before number ``stop`` only, each of which gets ``given``, too."""
        blocks = [partial(block, **given) if given else block for block in list(self)[:stop]]
        for section in [blocks] if self.whole else [[block] for block in blocks]:
            x = self.run(section, x)
        return x


class Stage(nn.Module):
    """Perhaps a smaller map, then blocks.

    Args:
        blocks: of the stage; each may be recomputed.
        downsample: comes before them. Without one the first block halves the size, if any does.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = Blocks(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x if self.downsample is None else self.downsample(x))


class PreNormBlock(nn.Module):
    """A mixing of positions, then an MLP, each behind a norm and beside a shortcut.

    Args:
        attention, mlp, norm: ``f(dim)``.
        scale: ``f(dim)``, of each branch's output; by default there is none.
        drop_path: rate at which a branch is skipped.
    """

    def __init__(
        self,
        dim: int,
        *,
        attention: Layer,
        mlp: Layer,
        norm: Layer,
        scale: Layer = nn.Identity,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attention(dim)
        self.ls1 = scale(dim)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = mlp(dim)
        self.ls2 = scale(dim)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor, **context: Any) -> torch.Tensor:
        """(..., C) -> (..., C); ``context`` is for what mixes the positions."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), **context)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def recompute(model: nn.Module, enable: bool = True, *, per: str = "block") -> None:
    """Recompute activations in the backward pass instead of keeping them.

    Args:
        per: ``"block"``, each by itself, or ``"stage"``, all of a stage at once: less is kept
            between the passes, more while the stage's gradients are computed. Where each block is a
            level both are the same.

    Raises:
        ArgumentError: another ``per``; nothing of the network can be recomputed.
    """
    check_choice("per", per, ("block", "stage"))
    blocks = [module for module in model.modules() if isinstance(module, Recomputed)]
    if not blocks:
        raise ArgumentError(f"{type(model).__name__} has no Blocks to checkpoint.")
    for module in blocks:
        module.grad_checkpointing, module.whole = bool(enable), per == "stage"


@overload
def drop_path_rates(rate: float, depths: int) -> list[float]: ...
@overload
def drop_path_rates(
    rate: float, depths: Sequence[int], *, per_stage: bool = False
) -> list[list[float]]: ...
def drop_path_rates(
    rate: float, depths: int | Sequence[int], *, per_stage: bool = False
) -> list[float] | list[list[float]]:
    """Return a rate for each block, growing linearly from 0 at the first one to ``rate``.

    Args:
        rate: of the last block, from 0 up to but not 1.
        depths: number of blocks, or of each stage's blocks.
        per_stage: the rate grows from stage to stage; a stage's blocks have the same.

    Returns:
        A list of rates; for several depths one list for each stage.

    Raises:
        ArgumentError: a rate that cannot be.

    Example:
        >>> drop_path_rates(0.5, (2, 1))
        [[0.0, 0.25], [0.5]]
        >>> drop_path_rates(0.5, (2, 1), per_stage=True)
        [[0.0, 0.0], [0.5]]
        >>> drop_path_rates(0.5, 3)
        [0.0, 0.25, 0.5]
    """
    check_rate("drop_path_rate", rate)
    stages = [depths] if isinstance(depths, int) else list(depths)
    steps = torch.linspace(0, rate, len(stages) if per_stage else sum(stages), device="cpu")
    rates = iter(steps.tolist())
    if per_stage:
        return [[next(rates)] * depth for depth in stages]
    grown = [[next(rates) for _ in range(depth)] for depth in stages]
    return grown[0] if isinstance(depths, int) else grown


class DropPath(nn.Module):
    """Skip a residual branch for a share of the samples (https://arxiv.org/abs/1603.09382)."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.drop_prob:
            return x
        keep = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep if keep else mask)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class DropBlock2d(nn.Module):
    """Zero square regions of a map (https://arxiv.org/abs/1810.12890).

    Args:
        drop_prob: share of positions to drop.
        block_size: side of a region, in positions.
        gamma_scale: factor on the rate of region centres.
    """

    def __init__(
        self, drop_prob: float = 0.1, *, block_size: int = 7, gamma_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.block_size = block_size
        self.gamma_scale = gamma_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.drop_prob:
            return x
        n, _, h, w = x.shape
        kh, kw = min(self.block_size, h), min(self.block_size, w)
        centres = (h - kh + 1) * (w - kw + 1)
        gamma = self.gamma_scale * self.drop_prob * h * w / (kh * kw * centres)
        drop = x.new_empty(n, 1, h, w).bernoulli_(min(gamma, 1.0))
        # an even region has no centre: pad so that the size stays
        drop = F.pad(drop, (kw // 2, (kw - 1) // 2, kh // 2, (kh - 1) // 2))
        keep = 1.0 - F.max_pool2d(drop, (kh, kw), stride=1)
        return x * keep * (keep.numel() / keep.sum().clamp(min=1.0))
