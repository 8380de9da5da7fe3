"""featnet's models as the tests take them: on the meta device, small, at sizes that they take."""

from __future__ import annotations

import functools
import inspect
import os
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import featnet
from featnet import registry
from featnet.capabilities import read_table
from featnet.checkpoints.instant import SkipInit
from featnet.tracing import shapes, trace


@functools.cache
def small(name: str) -> dict[str, Any]:
    """Arguments that keep a transformer's structure and make it small: three blocks, 96 channels;
    or a quarter of the channels. None for what has no such arguments, or is not the same with
    them."""
    entry = registry.find(name)
    takes = inspect.signature(entry.build).parameters.keys()
    wide = isinstance(width := entry.row.get("embed_dim"), int) and width > 300
    choices: list[dict[str, Any]] = []
    if "channel_multiplier" in takes:
        choices = [{"channel_multiplier": 0.25}]
    elif {"depths", "embed_dim"} <= takes and "num_heads" not in takes and wide:  # FocalNet's
        choices = [{"embed_dim": 32}]
    elif {"depth", "embed_dim", "num_heads"} <= takes:
        choices = [{"depth": 3, "embed_dim": 96, "num_heads": 3}, {"depth": 3}]
        if entry.row.get("num_kv_heads") is not None:  # it may be one for each block
            choices[0]["num_kv_heads"] = 3
    return next((options for options in choices if _runs(name, options)), {})


@functools.cache
def shallow(name: str) -> dict[str, Any]:
    """Arguments that leave a network few blocks: two in the first stage, one in the others. For
    modes, in which every block is traced; checkpoints' shapes are not kept. With
    FEATNET_EXHAUSTIVE=1 no block is left out."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return small(name)
    entry, cut = registry.find(name), dict[str, Any]()
    for key, parameter in inspect.signature(entry.build).parameters.items():
        value = entry.row.get(key, parameter.default)
        if not any(part in key for part in ("depth", "layers", "stages")):
            continue
        if isinstance(value, (tuple, list)) and all(isinstance(depth, int) for depth in value):
            cut[key] = tuple(min(depth, 2 if i == 0 else 1) for i, depth in enumerate(value))
        elif isinstance(value, int) and value > 3:
            cut[key] = 3
    several = any(isinstance(value, tuple) for value in cut.values())
    for options in (cut,) if several else (small(name), cut):
        if options and _runs(name, options):
            return options
    return small(name)


def _runs(name: str, options: dict[str, Any]) -> bool:
    """Whether a network can have such arguments."""
    try:
        model = _outline(name, **options)
        model.feature_info.sizes(trace.probe_size(model))
    except (RuntimeError, ValueError, TypeError):
        return False
    return True


def _outline(name: str, **options: Any) -> Any:
    """A network on the meta device; how its values are drawn is not noted, since it has none."""
    with torch.inference_mode(False), SkipInit():  # whichever test comes first
        return featnet.create_model(name, device="meta", **options).eval()


@functools.lru_cache(maxsize=8)
def shallow_model(name: str) -> Any:
    """It on the meta device. Nobody may change it."""
    return _outline(name, **shallow(name))


def create(name: str, **options: Any) -> Any:
    """The model, small where it can be."""
    return featnet.create_model(name, **small(name), **options)


def create_shallow(name: str, **options: Any) -> Any:
    """The model with few blocks: for laws, which hold for a block and so for any number of them."""
    return featnet.create_model(name, **shallow(name), **options)


def attends(model: nn.Module) -> bool:
    """Whether it is a transformer."""
    return has_kernel(model) or bool(getattr(model, "num_prefix_tokens", 0))


def has_kernel(model: nn.Module) -> bool:
    """Whether it has attention for which torch has a fused form."""
    return any(hasattr(module, "fused_attn") for module in model.modules())


@functools.lru_cache(maxsize=8)
def full_model(name: str) -> Any:
    """The model on the meta device, built once for the tests that follow each other. Nobody may
    change it."""
    return _outline(name)


@functools.lru_cache(maxsize=32)
def meta_model(name: str) -> Any:
    """The model (small where it can be) on the meta device, built once for the tests that follow
    each other: more than a thousand networks fill gigabytes without one weight. Nobody may change
    it."""
    return _outline(name, **small(name)) if small(name) else full_model(name)


def parameter_count(name: str) -> int:
    """As the table of capabilities has it; the network itself is asked where it is too new."""
    record = read_table().get(name)
    return record.params if record else sum(p.numel() for p in full_model(name).parameters())


class Facts(NamedTuple):
    """What tests choose networks by: the classes of its modules, one each; whether it attends, and
    with a fused form."""

    types: tuple[type, ...]
    attends: bool
    has_kernel: bool


@functools.cache
def facts(name: str) -> Facts:
    """Kept when the network itself is not: the tests are collected before one is run."""
    model = meta_model(name)
    return Facts(tuple(map(type, model.modules())), attends(model), has_kernel(model))


@functools.cache
def shallow_count(name: str) -> int:
    """The number of parameters of a model with few blocks."""
    return sum(p.numel() for p in shallow_model(name).parameters())


@functools.cache
def sizes(name: str) -> tuple[tuple[int, int], ...]:
    """Input sizes (H, W) for a model, small and different, one of them odd where it takes any."""
    found, model = [], meta_model(name)
    candidates = ((64, 96), (65, 97), (128, 64), (112, 84), (84, 112))
    for size in (*candidates, *([(128, 160), (161, 129)] if model.border else []), (224, 224)):
        try:
            last = model.feature_info.sizes(size)[-1]
        except featnet.errors.InputSizeError:
            continue
        if model.border and min(last) < 2:
            continue  # one position is a number of its own to torch.export
        found.append(size)
        if len(found) == 3:
            break
    return tuple(found) or (trace.probe_size(meta_model(name)),)


def strides(name: str) -> list[int]:
    """The output strides that a model can have, coarsest first."""
    return sorted(meta_model(name).output_strides, reverse=True)


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
    """What torch decomposes in Python on the meta device, most of the time of a run there, only
    puts out a tensor of the right shape that depends on what went in.

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
