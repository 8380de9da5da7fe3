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
    has takes longer than its forward. The period is a prime, so that no two kernels are the
    same."""

    def __init__(self, seed: int) -> None:
        self.values, self.at = _noise(seed), 0

    def __call__(self, shape: torch.Size) -> torch.Tensor:
        values = torch.empty(shape)
        flat, done = values.view(-1), 0
        while done < len(flat):
            part = self.values[self.at : self.at + len(flat) - done]
            flat[done : done + len(part)] = part
            done, self.at = done + len(part), (self.at + len(part)) % len(self.values)
        return values


def _is_norm_of(module: nn.Module) -> nn.Module | None:
    """The norm of a unit that is a convolution (or a linear layer) and a norm, or only a norm."""
    norms = [m for m in module.modules() if isinstance(m, NORMS)]
    layers = [m for m in module.modules() if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear))]
    return norms[0] if len(norms) == 1 and len(layers) <= 1 else None


def _width(norm: nn.Module) -> int:
    weight = getattr(norm, "weight", None)
    return 0 if weight is None else weight.numel()


def branches(parent: nn.Module) -> dict[nn.Module, int]:
    """The norms at the ends of parallel branches, and how many branches are added up.

    Nothing but a forward shows what is added up, and a module that is filled with noise may not be
    run: units of the same width in one block are taken for branches when there are three or more,
    as RepVGG's and MobileOne's are. Of a sequence that is taken for branches each unit gets
    smaller, which does no harm. A norm behind a convolution of the same parent is part of a unit.
    """
    if isinstance(parent, (nn.Sequential, nn.ModuleDict, nn.ModuleList)):
        return {}
    units: list[nn.Module] = []
    before: nn.Module | None = None
    for child in parent.children():
        listed = list(child) if isinstance(child, nn.ModuleList) else [child]
        ends_layer = isinstance(before, (nn.modules.conv._ConvNd, nn.Linear))
        if not (ends_layer and isinstance(child, NORMS)):
            units += [norm for unit in listed if (norm := _is_norm_of(unit)) is not None]
        before = child
    groups: dict[int, list[nn.Module]] = {}
    for norm in units:
        groups.setdefault(_width(norm), []).append(norm)
    return {norm: len(norms) for norms in groups.values() for norm in norms if len(norms) > 2}


@torch.no_grad()
def fill_noise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and every batch-norm statistic with seeded noise, in place.

    Scaled so that activations stay alive through deep networks and do not grow where branches are
    added up. Values depend on the seed, on the order and shapes of the parameters, and on which
    norms end parallel branches; not on device or dtype.
    """
    noise = _Noise(seed)
    parallel: dict[nn.Module, int] = {}
    for parent in module.modules():
        for norm, count in branches(parent).items():
            parallel[norm] = max(count, parallel.get(norm, 1))
    for owner in module.modules():
        for key, value in owner.named_parameters(recurse=False):
            values = noise(value.shape)
            if isinstance(owner, NORMS) and key == "weight":
                values.mul_(0.2).add_(1).div_(math.sqrt(parallel.get(owner, 1)))
            elif value.ndim >= 3 and len(value) == 1 and not isinstance(owner, nn.Conv1d):
                values.mul_(0.5)  # tokens and positions
            elif value.ndim >= 2:
                values.mul_(1.2 / math.sqrt(value[0].numel()))
            else:
                values.mul_(0.1)
            value.copy_(values)
        if isinstance(owner, nn.modules.batchnorm._NormBase) and owner.running_mean is not None:
            assert owner.running_var is not None
            owner.running_mean.copy_(0.2 * noise(owner.running_mean.shape))
            owner.running_var.copy_(0.5 + noise(owner.running_var.shape).erf().abs())
    return module


@torch.no_grad()
def settle(module: nn.Module, x: torch.Tensor, *, limit: float = 1e3) -> nn.Module:
    """Bring a network filled with noise into scale, in place, if it is not.

    Where sums are not between norms (RepVIT's), only a forward shows how they grow. If the features
    of ``x`` (N, C, H, W) pass ``limit``, every batch norm's statistics become those of its input,
    times the noise that they were. An input that the network refuses changes nothing.
    """
    run: Any = getattr(module, "forward_features", module)
    try:
        y = run(x)
    except (RuntimeError, AssertionError):
        return module
    if not isinstance(y, torch.Tensor):  # CoaT's parallel form gives one for each scale
        y = y[-1]
    if y.isfinite().all() and y.std() < limit:
        return module
    hooks: dict[nn.Module, Any] = {}

    def own(norm: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1), 1, correction=0)
        var = var.clamp(min=0.1 * var.mean() + 1e-6)  # a dead channel is not made loud
        norm.running_mean.mul_(var.sqrt()).add_(mean)
        norm.running_var.mul_(var)
        hooks.pop(norm).remove()

    hooks |= {
        norm: norm.register_forward_pre_hook(own)
        for norm in module.modules()
        if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.running_mean is not None
    }
    run(x)
    for hook in hooks.values():
        hook.remove()
    return module


def image_batch(
    *size: int, batch: int = 1, seed: int = 1, dtype: Any = torch.float32
) -> torch.Tensor:
    """A seeded (N, 3, H, W) batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=generator).to(dtype)
