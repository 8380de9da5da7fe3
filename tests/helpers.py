"""What the tests share: peers, noise, and facts about models that stand in for name lists."""

from __future__ import annotations

import functools
import importlib
import math
import os
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import featnet
from featnet.layers import BlurPool2d, GatedContext, GlobalContext

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def peer(name: str) -> Any:
    """A peer library; without it a skip, or with FEATNET_REQUIRE_PEERS=1 a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("FEATNET_REQUIRE_PEERS") == "1":
            pytest.fail(f"FEATNET_REQUIRE_PEERS=1, and {name} is missing: {error}")
        pytest.skip(f"{name} is not installed")


def peer_model(name: str, **options: Any) -> nn.Module:
    """timm's model of this name, its warnings unheard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: nn.Module = peer("timm").create_model(name, **options)
    return model


def load_features(net: nn.Module, weights: dict[str, torch.Tensor]) -> Any:
    """The classifier's weights in the peer's extractor, which may write ``_`` for the dots in a
    level's name; in eval mode."""
    flat = {key.replace(".", "_"): value for key, value in weights.items()}
    net.load_state_dict({key: flat[key.replace(".", "_")] for key in net.state_dict()}, strict=True)
    return net.eval()


@torch.no_grad()
def fill_noise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and every batch-norm statistic with seeded noise, in place.

    Scaled so that activations stay alive through deep networks. Values depend on the seed and on
    the order and shapes of the parameters, not on device or dtype.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float32)

    for owner in module.modules():
        for key, value in owner.named_parameters(recurse=False):
            drawn = noise(value)
            if isinstance(owner, NORMS) and key == "weight":
                drawn = 1 + 0.2 * drawn
            elif value.ndim >= 2:
                drawn = drawn * (1.2 / math.sqrt(value[0].numel()))
            else:
                drawn = 0.1 * drawn
            value.copy_(drawn)
        if isinstance(owner, nn.modules.batchnorm._NormBase) and owner.running_mean is not None:
            assert owner.running_var is not None
            owner.running_mean.copy_(0.2 * noise(owner.running_mean))
            drawn = torch.rand(owner.running_var.shape, generator=generator)
            owner.running_var.copy_(0.5 + drawn)
    return module


def picture(*size: int, batch: int = 1, seed: int = 1, dtype: Any = torch.float32) -> torch.Tensor:
    """A seeded (N, 3, H, W) batch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, *size, generator=generator).to(dtype)


@functools.cache
def meta_model(name: str) -> Any:
    """The model on the meta device, built once for all tests. Nobody may change it."""
    with torch.device("meta"):
        return featnet.create_model(name).eval()


@functools.cache
def parameter_count(name: str) -> int:
    return sum(p.numel() for p in meta_model(name).parameters())


def _signature_of(module: nn.Module) -> tuple[Any, ...]:
    facts: list[Any] = [type(module).__module__, type(module).__qualname__]
    for key in ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "count_include_pad"):
        facts.append((key, str(getattr(module, key, None))))
    groups = getattr(module, "groups", 1)
    facts.append(groups > 1 if isinstance(groups, int) else groups)
    facts.append(tuple(key for key, value in module._parameters.items() if value is not None))
    facts.append(tuple(key for key, value in module._buffers.items() if value is not None))
    if not isinstance(module, (nn.Sequential, nn.ModuleList)):
        facts += [(key, type(value).__qualname__) for key, value in module._modules.items()]
    return tuple(facts)


@functools.cache
def signature(name: str) -> frozenset[Any]:
    """What a model is made of, whatever its depth and width: one variant for each is enough
    where numbers are compared."""
    return frozenset(_signature_of(module) for module in meta_model(name).modules())


@functools.cache
def representatives(module: str = "") -> tuple[str, ...]:
    """Of each structural signature in the registry the variant with the fewest parameters."""
    best: dict[frozenset[Any], str] = {}
    for name in featnet.list_models(module=module):
        key = signature(name)
        if key not in best or parameter_count(name) < parameter_count(best[key]):
            best[key] = name
    return tuple(best.values())


def strides(name: str) -> list[int]:
    """The output strides that a model can have, coarsest first."""
    return sorted({level.reduction for level in meta_model(name)._levels}, reverse=True)


# Attention over the whole map: the à trous law is not about it
GLOBAL = (GatedContext, GlobalContext)


def without_global(model: nn.Module) -> nn.Module:
    """Replace, in place, attention over the whole map by identities."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, GLOBAL):
                setattr(parent, key, nn.Identity())
    return model


class Local(TorchFunctionMode):
    """A context in which no position of a map depends on all others, whatever the modules: what the
    à trous law is not about is the same everywhere.

    Means and maxima over a map are zero, deviations and norms over it are one, and an upsampled map
    is zero. Gates and norms still do all else that they do.
    """

    zero = (
        torch.Tensor.mean, torch.mean, torch.Tensor.amax, torch.amax,
        F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
    )  # fmt: skip
    one = (
        torch.Tensor.var, torch.var, torch.Tensor.std, torch.std, torch.var_mean,
        torch.Tensor.norm, torch.norm, torch.linalg.vector_norm,
    )  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.instance_norm:
            return args[0]
        if func is F.group_norm:
            x, _, weight, bias = (*args, kwargs.get("weight"), kwargs.get("bias"))[:4]
            across = (1, -1) + (1,) * (x.ndim - 2)
            return x if weight is None else x * weight.view(across) + bias.view(across)
        found = func(*args, **kwargs)
        if func in self.zero + self.one and isinstance(found, torch.Tensor):
            x = args[0]
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            spatial = isinstance(dims, (tuple, list)) and {d % x.ndim for d in dims} >= {2, 3}
            if spatial or func.__module__ == F.__name__:
                return torch.full_like(found, float(func in self.one))
        return found


def law_sizes(model: nn.Module, dense: nn.Module) -> list[tuple[int, int]]:
    """Inputs on whose border a network and its dilated form see the same.

    A dilated blur reflects at the last position, so that must be one of the coarsest grid. A window
    without padding that loses a position where the size is odd must find none that is.
    """
    blurs = any(isinstance(m, BlurPool2d) and m.dilation not in (1, (1, 1)) for m in dense.modules())
    loses = any(_loses(m) for m in model.modules())
    assert not (blurs and loses)
    return [size for size, unfit in (((64, 96), blurs), ((97, 65), loses)) if not unfit]


def _loses(window: nn.Module) -> bool:
    """Whether a strided window gives fewer than ``ceil(size / stride)`` positions of odd sizes."""
    facts = [getattr(window, name, None) for name in ("kernel_size", "stride", "padding")]
    if any(fact is None or isinstance(fact, str) for fact in facts):
        return False
    kernel, stride, padding = (f[0] if isinstance(f, tuple) else f for f in facts)
    places = (4 * stride + 1 + 2 * padding - kernel) / stride + 1
    found = math.ceil(places) if getattr(window, "ceil_mode", False) else math.floor(places)
    return stride > 1 and found < 5


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max() / b.abs().max())


def law_error(dense: list[torch.Tensor], full: list[torch.Tensor], steps: list[int]) -> float:
    """How far ``dense[::m, ::m] == full`` is missed, over all levels."""
    pairs = zip(dense, full, steps, strict=True)
    return max(error(d[..., ::m, ::m], f) for d, f, m in pairs)
