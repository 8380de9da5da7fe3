"""Seeded noise: every parameter and statistic of a network, and its inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from featnet.checkpoints.instant import SkipInit

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Unset(SkipInit):
    """Also what the peer draws into ``parameter.data`` is not drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return super().__torch_function__(func, types, args, kwargs)


def noisy(build: Callable[[], Any]) -> Any:
    """What is built, not initialised and then filled with noise."""
    with Unset():
        model = build()
    return fill_noise(model)


@functools.cache
def _noise(seed: int) -> torch.Tensor:
    return torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))


class _Noise:
    """Seeded normal noise, the same after every million values: drawing as many as a large network
    has takes longer than its forward. The period is a prime, so that no two kernels are the same."""

    def __init__(self, seed: int) -> None:
        self.values, self.at = _noise(seed), 0

    def __call__(self, shape: torch.Size) -> torch.Tensor:
        made = torch.empty(shape)
        flat, done = made.view(-1), 0
        while done < len(flat):
            part = self.values[self.at : self.at + len(flat) - done]
            flat[done : done + len(part)] = part
            done, self.at = done + len(part), (self.at + len(part)) % len(self.values)
        return made


@torch.no_grad()
def fill_noise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and every batch-norm statistic with seeded noise, in place.

    Scaled so that activations stay alive through deep networks. Values depend on the seed and on
    the order and shapes of the parameters, not on device or dtype.
    """
    noise = _Noise(seed)
    for owner in module.modules():
        for key, value in owner.named_parameters(recurse=False):
            drawn = noise(value.shape)
            if isinstance(owner, NORMS) and key == "weight":
                drawn.mul_(0.2).add_(1)
            elif value.ndim >= 3 and len(value) == 1 and not isinstance(owner, nn.Conv1d):
                drawn.mul_(0.5)  # tokens and positions
            elif value.ndim >= 2:
                drawn.mul_(1.2 / math.sqrt(value[0].numel()))
            else:
                drawn.mul_(0.1)
            value.copy_(drawn)
        if isinstance(owner, nn.modules.batchnorm._NormBase) and owner.running_mean is not None:
            assert owner.running_var is not None
            owner.running_mean.copy_(0.2 * noise(owner.running_mean.shape))
            owner.running_var.copy_(0.5 + noise(owner.running_var.shape).erf().abs())
    return module


def image_batch(
    *size: int, batch: int = 1, seed: int = 1, dtype: Any = torch.float32
) -> torch.Tensor:
    """A seeded (N, 3, H, W) batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=generator).to(dtype)
