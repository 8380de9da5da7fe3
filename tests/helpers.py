"""What the tests share: peers, noise, and facts about models that stand in for name lists."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import featnet
from featnet.layers import EfficientChannelAttention, SqueezeExcite

# Modules whose output at one position depends on the whole map: the à trous law is not about them.
GLOBAL = (SqueezeExcite, EfficientChannelAttention, nn.GroupNorm, nn.InstanceNorm2d)

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


class CheapNorms(TorchFunctionMode):
    """Norms become their scale and shift: same shapes, same parameters used. For the meta device,
    where torch decomposes norms in Python, most of the time of a run."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (F.batch_norm, F.group_norm, F.layer_norm):
            return func(*args, **kwargs)
        bound = inspect.signature(func).bind(*args, **kwargs).arguments
        x = bound["input"]
        shape = (-1,) if func is F.layer_norm else (-1, *[1] * (x.ndim - 2))
        weight, bias = bound.get("weight"), bound.get("bias")
        x = x if weight is None else x * weight.reshape(shape)
        return x.clone() if bias is None else x + bias.reshape(shape)


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


REPRESENTATIVES = Path(__file__).parent / "golden" / "representatives.txt"


def choose_representatives() -> list[str]:
    """Few and small variants in which every kind of module of the registry occurs.

    Greedy set cover over the signatures: the variant with the most kinds that are still missing
    for its size comes next.
    """
    names = featnet.list_models()
    missing = frozenset[Any]().union(*map(signature, names))
    chosen: list[str] = []
    while missing:
        gains = {name: len(signature(name) & missing) for name in names}
        chosen.append(max(names, key=lambda name: gains[name] / parameter_count(name) ** 0.5))
        missing -= signature(chosen[-1])
    return sorted(chosen)


@functools.cache
def representatives() -> tuple[str, ...]:
    """What :func:`choose_representatives` chose (``python tests/helpers.py`` writes it anew); with
    FEATNET_EXHAUSTIVE=1 the smallest variant of every combination of modules."""
    if os.environ.get("FEATNET_EXHAUSTIVE") != "1":
        return tuple(REPRESENTATIVES.read_text().split())
    best: dict[frozenset[Any], str] = {}
    for name in sorted(featnet.list_models(), key=parameter_count):
        best.setdefault(signature(name), name)
    return tuple(best.values())


def strides(name: str) -> list[int]:
    """The output strides that a model can have, coarsest first."""
    return sorted({level.reduction for level in meta_model(name)._levels}, reverse=True)


def without_global(model: nn.Module) -> nn.Module:
    """Replace, in place, what sees the whole map by identities; by class."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if isinstance(child, GLOBAL) or type(child).__name__ in (
                "SEModule", "EcaModule", "GroupNorm",  # the peer's
            ):  # fmt: skip
                setattr(parent, key, nn.Identity())
    return model


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max() / b.abs().max())


def law_error(dense: list[torch.Tensor], full: list[torch.Tensor], steps: list[int]) -> float:
    """How far ``dense[::m, ::m] == full`` is missed, over all levels."""
    pairs = zip(dense, full, steps, strict=True)
    return max(error(d[..., ::m, ::m], f) for d, f, m in pairs)


if __name__ == "__main__":
    REPRESENTATIVES.write_text("\n".join(choose_representatives()) + "\n")
