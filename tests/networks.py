"""featnet's models as the tests take them: on the meta device, small, at sizes that they take."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
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
    """It on the meta device with few blocks. Nobody may change it."""
    return without(repeats(name), _outline(name, **small(name)))


def create(name: str, **options: Any) -> Any:
    """The model, small where it can be."""
    return featnet.create_model(name, **small(name), **options)


def create_shallow(name: str, **options: Any) -> Any:
    """The model with few blocks: for laws, which hold for a block and so for any number of them."""
    return without(repeats(name), create(name, **options))


@functools.cache
def repeats(name: str) -> tuple[str, ...]:
    """Blocks that a network runs without, whose equals stay: two of them in the first stage that
    has any, one in the others. Every kind of module stays. None with FEATNET_EXHAUSTIVE=1."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return ()
    model = _outline(name, **small(name))
    size = trace.probe_size(model)
    wanted, stages = model.measure(size), _repeats_of(model)
    every = [
        path
        for i, blocks in enumerate(stages.values())
        for equal in blocks
        for path in equal[1 if i else 2 :]
    ]
    outer = tuple(path for path in every if not any(path.startswith(f"{p}.") for p in every))
    if _runs_without(outer, model, size, wanted):
        return outer
    gone, spare = tuple[str, ...](), 2
    for stage, blocks in stages.items():
        cut = tuple(path for equal in blocks for path in equal[spare:])
        inside = any(f"{stage}.".startswith(f"{path}.") for path in gone)
        if cut and not inside and _runs_without(cut, model, size, wanted):
            gone, spare = gone + cut, 1
    return gone


def _runs_without(blocks: Iterable[str], model: Any, size: Any, wanted: Any) -> bool:
    """Take blocks out of a network; tell if its levels are what they were, else put them back."""
    kept = {id(module): (module, dict(module._modules)) for module in model.modules()}
    without(blocks, model)
    try:
        assert model.measure(size) == wanted
    except Exception:  # whatever its class says to that
        for module, children in kept.values():
            module._modules = children
        return False
    return True


def _repeats_of(model: Any) -> dict[str, list[list[str]]]:
    """A network's lists of blocks: the blocks of each that are equal but for their values. Lists
    in which levels are counted are left out, and those of smaller parts."""
    found: dict[str, list[list[str]]] = {}
    for name, module in model.named_modules():
        counted = any(level.module.startswith(f"{name}.") for level in model._levels)
        if counted or not isinstance(module, (nn.Sequential, nn.ModuleList)):
            continue
        equal: dict[Any, list[str]] = {}
        for key, child in module.named_children():
            equal.setdefault(_description(child), []).append(f"{name}.{key}")
        if any(len(block) < 4 for block in equal):
            continue
        if any(len(paths) > 1 for paths in equal.values()):
            found[name] = [*equal.values()]
    return found


def _description(block: nn.Module) -> tuple[Any, ...]:
    """What a block is but for the values of its tensors and its rates."""
    facts: list[Any] = []
    for name, module in block.named_modules():
        plain = {
            key: value
            for key, value in module.__dict__.items()
            if isinstance(value, (bool, int, str)) or (isinstance(value, tuple) and _ints(value))
        }
        shapes = [(key, tuple(value.shape)) for key, value in _tensors(module)]
        facts.append((name, type(module), repr(plain), tuple(shapes)))
    return tuple(facts)


def _ints(values: tuple[Any, ...]) -> bool:
    return all(isinstance(value, int) for value in values)


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def without(blocks: Iterable[str], model: Any) -> Any:
    """Take blocks out of a network, in place; the others keep their names."""
    for path in blocks:
        parent, _, key = path.rpartition(".")
        del model.get_submodule(parent)._modules[key]
    return model


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
    """What tests choose networks by: the classes of a network's modules, how many modules and
    parameters it has (small where it can be), whether it attends, and with a fused form."""

    types: tuple[str, ...]
    modules: int
    params: int
    attends: bool
    has_kernel: bool

    def has(self, kind: type) -> bool:
        """Whether a module is of this class."""
        return class_name(kind) in self.types


def class_name(kind: type) -> str:
    """A class as the file of facts names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


FACTS = Path(__file__).parent / "golden" / "facts.json"


@functools.cache
def read_facts() -> Mapping[str, Facts]:
    """Those of the representatives, as ``python tests/helpers.py`` last wrote them: the tests are
    collected before one network is built."""
    lines = json.loads(FACTS.read_text(encoding="utf-8"))
    return {name: Facts(tuple(types.split()), *rest) for name, (types, *rest) in lines.items()}


@functools.cache
def facts(name: str) -> Facts:
    """As the file has them; the network itself is asked where it has none."""
    return read_facts().get(name) or facts_of(meta_model(name))


def facts_of(model: nn.Module) -> Facts:
    """The facts of a network."""
    types = tuple(sorted({class_name(type(module)) for module in model.modules()}))
    count = sum(p.numel() for p in model.parameters())
    modules = sum(1 for _ in model.modules())
    return Facts(types, modules, count, attends(model), has_kernel(model))


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
