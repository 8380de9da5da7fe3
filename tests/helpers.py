"""What the tests share: peers, noise, and facts about models that stand in for name lists."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import featnet
from featnet import registry
from featnet.checkpoints.instant import SkipInit
from featnet.layers import BlurPool2d, PatchConv
from featnet.tracing import shapes, trace

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


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
    """timm's model of this name as it is for its checkpoint (which decides some of its constants),
    without that (unless ``pretrained`` is given), and its warnings unheard."""
    timm = peer("timm")
    skip: Any = contextlib.nullcontext()
    if "pretrained" not in options:
        skip = mock.patch("timm.models._builder.load_pretrained")
    with warnings.catch_warnings(), skip:
        warnings.simplefilter("ignore")
        model: nn.Module = timm.create_model(name, **{"pretrained": True, **options})
    return model


def peer_features(name: str, weights: dict[str, torch.Tensor], stride: int) -> Any:
    """timm's extractor with the classifier's weights; None where it refuses the stride, or has
    tables of positions of another size for it."""
    flat = {key.replace(".", "_"): value for key, value in weights.items()}  # as it renames them
    if attends(meta_model(name)):
        return Intermediates(name, weights) if stride == 32 else None
    try:
        dilated = {} if stride == 32 else {"output_stride": stride}
        with Unset():
            net = peer_model(name, features_only=True, **dilated)
        own = {k: re.sub(r"^(model|body)\.", "", k).replace(".", "_") for k in net.state_dict()}
        net.load_state_dict({k: flat[flatted] for k, flatted in own.items()}, strict=True)
    except (RuntimeError, NotImplementedError, AssertionError, TypeError):
        return None
    return net.eval()


class Unset(SkipInit):
    """Also what the peer draws into ``parameter.data`` is not drawn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return super().__torch_function__(func, types, args, kwargs)


class Intermediates:
    """Levels of timm's transformers, whose extractors are only for the last three."""

    def __init__(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        with Unset():
            self.model: Any = peer_transformer(name, **small(name)).eval()
        self.model.load_state_dict(weights, strict=True)
        self.feature_info = featnet.FeatureInfo(self.model.feature_info)

    def __call__(self, x: torch.Tensor, norm: bool = False) -> Any:
        model = at_size(self.model, (x.shape[-2], x.shape[-1]))
        maps = model.forward_intermediates(x, norm=norm, intermediates_only=True)
        if not norm and [y.shape[1] for y in maps] != self.feature_info.channels():
            raise RuntimeError  # it thinks that a hybrid's map of an odd size is smaller
        return maps


def peer_transformer(name: str, **options: Any) -> nn.Module:
    """timm's, for any input size if it can."""
    try:
        return peer_model(name, dynamic_img_size=True, **options)
    except TypeError:
        return peer_model(name, **options)


def at_size(peer: Any, size: tuple[int, int]) -> Any:
    """timm's model, changed to take inputs of a size if it takes but one."""
    if getattr(peer, "dynamic_img_size", True) and hasattr(peer, "dynamic_img_size"):
        return peer
    if not getattr(getattr(peer, "patch_embed", None), "strict_img_size", False):
        return peer
    changed = copy.deepcopy(peer)
    changed.set_input_size(img_size=size)
    return changed


@functools.cache
def small(name: str) -> dict[str, Any]:
    """Arguments that keep a transformer's structure and make it small: three blocks, 96 channels.
    None for what has no such arguments, or is not the same with them."""
    entry = registry.find(name)
    takes = inspect.signature(entry.build).parameters.keys()
    if not {"depth", "embed_dim", "num_heads"} <= takes:
        return {}
    narrow = {"depth": 3, "embed_dim": 96, "num_heads": 3}
    if entry.row.get("num_kv_heads") is not None:  # it may be one for each block
        narrow["num_kv_heads"] = 3
    for options in (narrow, {"depth": 3}):
        try:
            model = featnet.create_model(name, device="meta", **options)
            model.feature_info.sizes(trace.probe_size(model))
            return options
        except (RuntimeError, ValueError, TypeError):
            continue
    return {}


@functools.cache
def shallow(name: str) -> dict[str, Any]:
    """Arguments that leave a network few blocks: two in the first stage, one in the others. For
    modes, in which every block is traced; checkpoints' shapes are not kept."""
    entry = registry.find(name)
    takes = inspect.signature(entry.build).parameters
    for key in ("depths", "stages"):
        depths = entry.row.get(key)
        if key not in takes or not isinstance(depths, (tuple, list)):
            continue
        if not all(isinstance(depth, int) for depth in depths):
            continue
        options = {key: tuple(min(depth, 2 if i == 0 else 1) for i, depth in enumerate(depths))}
        try:
            model = featnet.create_model(name, device="meta", **options)
            model.feature_info.sizes(trace.probe_size(model))
        except (RuntimeError, ValueError, TypeError):
            continue
        return options
    return small(name)


@functools.cache
def shallow_model(name: str) -> Any:
    """It on the meta device. Nobody may change it."""
    return featnet.create_model(name, device="meta", **shallow(name)).eval()


@functools.cache
def families() -> tuple[str, ...]:
    """The smallest representative of every family; with FEATNET_EXHAUSTIVE=1 all of them."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return representatives()
    best: dict[str, str] = {}
    for name in sorted(representatives(), key=parameter_count):
        best.setdefault(registry._module_of(name), name)
    return tuple(best.values())


def create(name: str, **options: Any) -> Any:
    """The model, small where it can be."""
    return featnet.create_model(name, **small(name), **options)


def noisy(build: Callable[[], Any]) -> Any:
    """What is built, not initialised and then filled with noise."""
    with Unset():
        model = build()
    return fill_noise(model)


def attends(model: nn.Module) -> bool:
    """Whether it is a transformer."""
    return any(hasattr(module, "fused_attn") for module in model.modules())


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


class _Linked(torch.autograd.Function):
    """A value that depends on the tensors it is given with, whose gradients have their shapes."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        ctx.given = [(t.shape, t.dtype) for t in given]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> Any:
        made = [torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in ctx.given]
        return (None, *made)


class Cheap(TorchFunctionMode):
    """What torch decomposes in Python on the meta device, most of the time of a run there, only puts
    out a tensor of the right shape that depends on what went in.

    Args:
        real: functions that stay.
    """

    def __init__(self, *real: Any) -> None:
        super().__init__()
        self.real = real

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in shapes.RULES or func in self.real:
            return func(*args, **kwargs)
        given = [t for t in trace.tensors([args, kwargs]) if t.requires_grad]
        if not given or not torch.is_grad_enabled():
            return shapes.call(func, args, kwargs)
        with torch.no_grad():  # what is changed in place could not be gone back through
            found = given[0].clone() if func in shapes.KEEP else shapes.call(func, args, kwargs)
        return _Linked.apply(found, *given)


@functools.lru_cache(maxsize=8)
def full_model(name: str) -> Any:
    """The model on the meta device, built once for the tests that follow each other. Nobody may
    change it."""
    return featnet.create_model(name, device="meta").eval()


@functools.cache
def meta_model(name: str) -> Any:
    """The model (small where it can be) on the meta device, built once for all tests. Nobody may
    change it."""
    return create(name, device="meta").eval() if small(name) else full_model(name)


@functools.cache
def parameter_count(name: str) -> int:
    return sum(p.numel() for p in meta_model(name).parameters())


def _signature_of(module: nn.Module) -> tuple[Any, ...]:
    """A kind of module: its class, tensors and children, and of a window what decides how it is
    padded and dilated."""
    facts: list[Any] = [type(module).__module__, type(module).__qualname__]
    kernel = 1 if isinstance(module, PatchConv) else getattr(module, "kernel_size", 1)
    kernel = kernel if isinstance(kernel, int) else max(kernel)
    facts.append((min(kernel, 3 + kernel % 2), getattr(module, "stride", 1) in (1, (1, 1))))
    facts.append(
        (getattr(module, "padding", 0) in (0, (0, 0)), getattr(module, "ceil_mode", False))
    )
    groups = getattr(module, "groups", 1)
    facts.append(groups > 1 if isinstance(groups, int) else groups)
    facts.append(tuple(key for key, value in module._parameters.items() if value is not None))
    facts.append(tuple(key for key, value in module._buffers.items() if value is not None))
    if not isinstance(module, (nn.Sequential, nn.ModuleList)):
        facts += [(key, type(value).__qualname__) for key, value in module._modules.items()]
    return tuple(facts)


@functools.cache
def signature(name: str) -> frozenset[str]:
    """What a model is made of, whatever its depth and width: one variant for each is enough
    where numbers are compared."""
    kinds = {_signature_of(module) for module in full_model(name).modules()}
    return frozenset(f"{zlib.crc32(repr(kind).encode()):08x}" for kind in kinds)


REPRESENTATIVES = Path(__file__).parent / "golden" / "representatives.json"


def choose_representatives() -> list[str]:
    """Few and small variants in which every kind of module of the registry occurs.

    Greedy set cover over the signatures: the variant with the most kinds that are still missing
    for its size comes next.
    """
    names = featnet.list_models()
    missing = frozenset[str]().union(*map(signature, names))
    found: list[str] = []
    while missing:
        gains = {name: len(signature(name) & missing) for name in names}
        found.append(max(names, key=lambda name: gains[name] / parameter_count(name) ** 0.5))
        missing -= signature(found[-1])
    return sorted(found)


@functools.cache
def chosen() -> Mapping[str, list[str]]:
    """``names`` that :func:`choose_representatives` chose when ``python tests/helpers.py`` last wrote
    them, and the ``kinds`` of modules that they hold."""
    found: Mapping[str, list[str]] = json.loads(REPRESENTATIVES.read_text())
    return found


@functools.cache
def representatives() -> tuple[str, ...]:
    """The small ones that were chosen; with FEATNET_EXHAUSTIVE=1 the smallest variant of every
    combination of modules."""
    if os.environ.get("FEATNET_EXHAUSTIVE") != "1":
        return tuple(chosen()["names"])
    best: dict[frozenset[Any], str] = {}
    for name in sorted(featnet.list_models(), key=parameter_count):
        best.setdefault(signature(name), name)
    return tuple(best.values())


@functools.cache
def sizes(name: str) -> tuple[tuple[int, int], ...]:
    """Input sizes (H, W) for a model, small and different, one of them odd where it takes any."""
    found = []
    for size in ((64, 96), (65, 97), (128, 64), (112, 84), (84, 112), (224, 224)):
        try:
            meta_model(name).feature_info.sizes(size)
        except featnet.errors.InputSizeError:
            continue
        found.append(size)
        if len(found) == 3:
            break
    return tuple(found) or (trace.probe_size(meta_model(name)),)


def strides(name: str) -> list[int]:
    """The output strides that a model can have, coarsest first."""
    return sorted(meta_model(name).output_strides, reverse=True)


# Attention over the whole map: the à trous law is not about it
GLOBAL = ("GatedContext", "GlobalContext", "MultiQueryAttention2d")


def lost(net: nn.Module) -> int:
    """Positions that the unpadded kernels of a network take from its maps, all told."""

    def rows(value: Any) -> int:
        return int(value[0] if isinstance(value, tuple) else value)

    total = 0
    for module in net.modules():
        if not hasattr(module, "kernel_size") or hasattr(module, "dilate"):
            continue  # no window, or one whose padding depends on the map
        window: Any = module
        reach = rows(getattr(window, "dilation", 1)) * (rows(window.kernel_size) - 1) + 1
        padded = 2 * rows(window.padding) + rows(getattr(window, "pad_end", 0))
        if not getattr(window, "ceil_mode", False):
            total += max(0, reach - rows(window.stride) - padded)
    return total


def without_global(model: nn.Module) -> nn.Module:
    """Replace, in place, attention over the whole map by identities; by name, for the peer too."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if type(child).__name__ in GLOBAL:
                setattr(parent, key, nn.Identity())
        if type(parent).__name__ == "CondConvResidual":  # the same mixture whatever the map holds
            nn.init.zeros_(parent.routing_fn.weight)
    return model


class Local(TorchFunctionMode):
    """A context in which no position of a map depends on all others, whatever the modules: what the
    à trous law is not about is the same everywhere.

    Means and maxima over a map are zero, deviations and norms over it are one, and an upsampled map
    is zero. Gates and norms still do all else that they do.
    """

    zero = (
        torch.Tensor.mean,
        torch.mean,
        torch.Tensor.amax,
        torch.amax,
        F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d,
        F.interpolate,
    )
    one = (
        torch.Tensor.var,
        torch.var,
        torch.Tensor.std,
        torch.std,
        torch.var_mean,
        torch.Tensor.norm,
        torch.norm,
        torch.linalg.vector_norm,
    )

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
            places = {d % x.ndim for d in dims} if isinstance(dims, (tuple, list)) else set()
            spatial = places >= {2, 3} or places == {1, 2}  # of (N, C, H, W), of (N, H, W, C)
            if spatial or getattr(func, "__module__", "") == F.__name__:
                return torch.full_like(found, float(func in self.one))
        return found


def law_sizes(model: nn.Module, dense: nn.Module) -> list[tuple[int, int]]:
    """Inputs on whose border a network and its dilated form see the same.

    A dilated blur reflects at the last position, so that must be one of the coarsest grid. A window
    without padding that loses a position where the size is odd must find none that is.
    """
    blurs = any(
        isinstance(m, BlurPool2d) and m.dilation not in (1, (1, 1)) for m in dense.modules()
    )
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
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def law_error(dense: list[torch.Tensor], full: list[torch.Tensor], steps: list[int]) -> float:
    """How far ``dense[::m, ::m] == full`` is missed, over all levels."""
    pairs = zip(dense, full, steps, strict=True)
    return max(error(d[..., ::m, ::m], f) for d, f, m in pairs)


if __name__ == "__main__":
    _names = choose_representatives()
    _kinds = sorted(frozenset[str]().union(*map(signature, _names)))
    REPRESENTATIVES.write_text(json.dumps({"names": _names, "kinds": _kinds}, indent=0) + "\n")
