"""One run of a network on the meta device: what is called, in which order, at which sizes.

Nothing is computed and no memory is taken, whatever the size of the network; the caller's network
is not touched, a structural copy runs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .errors import MissingFeatureError, nearest

Convert = Callable[[torch.Tensor], torch.Tensor]


def clone(model: nn.Module, convert: Convert = lambda tensor: tensor) -> nn.Module:
    """A model of the same structure whose tensors are ``convert(tensor)``; shared by default."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for owned in (module._parameters, module._buffers, module.__dict__):
            for tensor in owned.values():
                if isinstance(tensor, torch.Tensor) and id(tensor) not in memo:
                    memo[id(tensor)] = convert(tensor)
    return copy.deepcopy(model, memo)


def _to_meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


def meta_clone(model: nn.Module) -> nn.Module:
    """A copy on the meta device, in eval mode, without anybody's hooks."""
    copied = clone(model, _to_meta)
    for module in copied.modules():
        module._forward_hooks = OrderedDict()
        module._forward_pre_hooks = OrderedDict()
    return copied.eval()


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: dotted name of the module.
        inputs, outputs: shapes of the tensors that went in and came out.
        rewritten: the output was changed in place before the run ended.
        consumed: an input was, by the module itself or later.
    """

    name: str
    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]
    rewritten: bool
    consumed: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run showed: ``calls`` in the order in which they ended, the shapes of the
    ``levels`` it reached, and the names of the tensors it ``used``."""

    calls: tuple[Call, ...]
    levels: tuple[torch.Size, ...]
    used: frozenset[str]

    @property
    def rewritten(self) -> frozenset[tuple[str, str]]:
        """Taps, as (module, kind), whose value something changes in place afterwards."""
        after = {(call.name, "forward") for call in self.calls if call.rewritten}
        return frozenset(after | {(c.name, "forward_pre") for c in self.calls if c.consumed})


# Norms are most of the time of a run on the meta device, where torch decomposes them in Python
_KEEP_SHAPE = (F.batch_norm, F.layer_norm, F.group_norm)


class _Used(TorchFunctionMode):
    """Collects the ids of the tensors that any torch function is given."""

    def __init__(self, wanted: set[int]) -> None:
        super().__init__()
        self.wanted = wanted
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if id(item) in self.wanted:
                    self.ids.add(id(item))
        if func in _KEEP_SHAPE:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


class Stop(BaseException):
    """Ends a forward whose remaining modules nobody needs. Not an Exception: a model's own
    ``except Exception`` must not swallow it."""


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in an output, however it is nested."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def names_of(model: nn.Module) -> dict[int, str]:
    """id of every parameter and buffer to its name; the first one where it is shared."""
    found: dict[int, str] = {}
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        found.setdefault(id(tensor), name)
    return found


def channels_of(model: nn.Module) -> int:
    """Input channels: declared, or those of the first convolution."""
    declared = getattr(model, "in_chans", None)
    if isinstance(declared, int):
        return declared
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def drive(model: Any, x: torch.Tensor, enough: Callable[[], bool]) -> None:
    """Run a network with ``forward_levels`` until there is enough, through its head if need be."""
    y: Any = x
    for y in model.forward_levels(x):
        if enough():
            return
    model.forward_head(model.finish(y))


class _Seen:
    """Tensors at one moment of a run."""

    def __init__(self, value: Any) -> None:
        self.tensors = list(tensors(value))
        self.versions = [t._version for t in self.tensors]
        self.shapes = tuple(t.shape for t in self.tensors)

    @property
    def changed(self) -> bool:
        return [t._version for t in self.tensors] != self.versions


@torch.inference_mode(False)  # whose tensors have no version counter
def run(
    model: nn.Module,
    size: tuple[int, int],
    *,
    last: int | None = None,
    until: frozenset[str] = frozenset(),
    through: bool = False,
) -> Run:
    """Run a copy of the model on the meta device in eval mode.

    Args:
        model: any module that takes one (N, C, H, W) batch. One that has ``forward_levels`` is driven
            through them.
        size: (H, W) of the input.
        last: with ``forward_levels``: the level after which to stop.
        until: stop as soon as all of these modules have run.
        through: with ``forward_levels``: go on through the head.
    """
    copied: Any = meta_clone(model)
    dtype = next((p.dtype for p in copied.parameters() if p.is_floating_point()), torch.float32)
    x = torch.empty(1, channels_of(model), *size, dtype=dtype, device="meta")
    names = names_of(copied)
    ended: list[tuple[str, _Seen, _Seen]] = []
    begun: list[_Seen] = []
    waiting = set(until)

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            ended.append((name, begun.pop(), _Seen(output)))
            waiting.discard(name)
            if until and not waiting:
                raise Stop

        return hook

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        begun.append(_Seen([args, kwargs]))

    for name, module in copied.named_modules(remove_duplicate=False):
        if name:
            module.register_forward_pre_hook(enter, with_kwargs=True)
            module.register_forward_hook(record(name), with_kwargs=True)
    levels: list[torch.Size] = []
    with torch.no_grad(), _Used(set(names)) as used:
        try:
            if not hasattr(copied, "forward_levels"):
                copied(x)
            elif until or through:
                drive(copied, x, lambda: bool(until) and not waiting)
            else:
                for index, y in enumerate(copied.forward_levels(x)):
                    levels.append(copied.as_map(y).shape)
                    if index == last:
                        break
        except Stop:
            pass
    calls = tuple(
        Call(name, given.shapes, gave.shapes, gave.changed, given.changed)
        for name, given, gave in ended
    )
    return Run(calls, tuple(levels), frozenset(names[i] for i in used.ids))


def prune(model: nn.Module, seen: Run) -> None:
    """Remove, in place, every module and parameter that a run did not need.

    A removed one is None, as torch registers an absent one: its name still answers, and neither
    ``state_dict`` nor ``named_children`` have it.
    """
    called = {call.name for call in seen.calls}
    needed = called | {name.rpartition(".")[0] for name in seen.used}
    for name in list(needed):  # a container is needed for what it holds
        while name:
            name = name.rpartition(".")[0]
            needed.add(name)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and name not in needed:
            continue  # goes with its parent
        prefix = f"{name}." if name else ""
        for child in list(module._modules):
            if f"{prefix}{child}" not in needed:
                module._modules[child] = None
        for key in module._parameters:
            if f"{prefix}{key}" not in seen.used:
                module._parameters[key] = None
        for key in module._buffers:  # a called module may need a buffer in training only
            if name not in called and f"{prefix}{key}" not in seen.used:
                module._buffers[key] = None


def probe_size(model: nn.Module) -> tuple[int, int]:
    """An input size that the model can take: what it was built for, or its checkpoint's when that
    is fixed, else 256."""
    built = getattr(model, "img_size", None)
    if isinstance(built, tuple):
        return built
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg is not None and cfg["fixed_input_size"]:
        height, width = cfg["input_size"][-2:]
        return height, width
    return 256, 256


def submodule(model: nn.Module, name: str) -> nn.Module:
    """``model.get_submodule(name)``, whose error has the nearest names.

    Raises:
        MissingFeatureError: no such module.
    """
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = [n for n, _ in model.named_modules() if n]
        raise MissingFeatureError(
            f"{type(model).__name__} has no module {name!r}.{nearest(name, names)}"
        ) from None

