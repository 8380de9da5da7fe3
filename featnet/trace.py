"""One run of a network on the meta device: what is called, in which order, at which sizes.

Nothing is computed and no memory is taken, whatever the size of the network; the caller's network
is not touched, a structural copy runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from . import structure


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
    ``levels`` it reached (without ``forward_levels``: of what the network returned), and the names
    of the tensors it ``used``."""

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


class Used(TorchFunctionMode):
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
        if func in _KEEP_SHAPE and args[0].device.type == "meta":
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


def run(
    model: nn.Module,
    size: tuple[int, int],
    *,
    last: int | None = None,
    until: frozenset[str] = frozenset(),
    through: bool = False,
    channels: int | None = None,
    real: bool = True,
) -> Run:
    """Run a copy of the model on the meta device in eval mode.

    A network from elsewhere that cannot run there, since it looks at values, runs on zeros.

    Args:
        model: any module that takes one (N, C, H, W) batch. One that has ``forward_levels`` is driven
            through them.
        size: (H, W) of the input.
        last: with ``forward_levels``: the level after which to stop.
        until: stop as soon as all of these modules have run.
        through: with ``forward_levels``: go on through the head.
        channels: of the input; by default as the model declares or its first convolution has.
        real: whether zeros may be tried.
    """
    tensor = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    count = channels_of(model) if channels is None else channels
    shape, dtype = (1, count, *size), tensor.dtype
    how: dict[str, Any] = {"last": last, "until": until, "through": through}
    try:
        return _record(structure.meta_clone(model), torch.empty(shape, dtype=dtype, device="meta"), **how)
    except Exception:
        if not real or hasattr(model, "forward_levels") or tensor.device.type == "meta":
            raise
    x = torch.zeros(shape, dtype=dtype, device=tensor.device)
    return _record(structure.real_clone(model), x, **how)


@torch.inference_mode(False)  # whose tensors have no version counter
def _record(
    copied: Any, x: torch.Tensor, *, last: int | None, until: frozenset[str], through: bool
) -> Run:
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
    with torch.no_grad(), Used(set(names)) as used:
        try:
            if not hasattr(copied, "forward_levels"):
                levels = [tensor.shape for tensor in tensors(copied(x))]
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
    structure.keep(model, {call.name for call in seen.calls}, seen.used)


# Networks of one input size only are mostly of one of these
SIZES = (256, 224, 384, 299, 512, 192, 128, 96, 64, 48, 32, 28)


def probe_size(model: nn.Module) -> tuple[int, int]:
    """An input size that the model can take: what it was built for, or its checkpoint's when that
    is fixed, else 256; of a network from elsewhere the first of :data:`SIZES` that runs."""
    built = getattr(model, "img_size", None)
    if isinstance(built, tuple):
        return built
    cfg = getattr(model, "pretrained_cfg", None)
    if isinstance(cfg, Mapping) and cfg.get("fixed_input_size"):
        height, width = cfg["input_size"][-2:]
        return height, width
    if hasattr(model, "forward_levels"):
        return 256, 256
    for real in (False, True):
        for side in SIZES:
            with contextlib.suppress(Exception):
                run(model, (side, side), real=real)
                return side, side
    return 256, 256
