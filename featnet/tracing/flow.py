"""One run of any network, seen as data flow: which call's output each later one is computed from.

The network is a copy on the meta device; one that looks at values runs on zeros. Each tensor
carries what it came from as bits of an int, so that nothing is held that the run itself does not
hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import probing, shapes, structure
from .watch import tensors


class Origin(NamedTuple):
    """Calls that a tensor comes from, as bits: bit ``i`` is ``Flow.calls[i]``.

    Attributes:
        calls: every call that put out something on the way to it.
        layers: of the modules with weights of their own the nearest ones: nothing with weights is
            between them and the tensor.
    """

    calls: int = 0
    layers: int = 0

    def __or__(self, other: Any) -> Origin:
        return Origin(self.calls | other.calls, self.layers | other.layers)


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor that went into a module or came out of it.

    Attributes:
        shape: its shape.
        origin: what it was computed from, the module's own call included.
        ident: the same for the same tensor, as long as nothing writes into it.
    """

    shape: torch.Size
    origin: Origin
    ident: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class FlowCall:
    """One call of a module.

    Attributes:
        name: dotted name of the module.
        outer: positions, in :attr:`Flow.calls`, of the calls that it was made in, outermost first.
        inputs, outputs: the tensors, in the order in which they are nested.
    """

    name: str
    outer: tuple[int, ...]
    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]


@dataclasses.dataclass(frozen=True)
class Flow:
    """One run.

    Attributes:
        calls: in the order in which they began.
        ended: positions of the calls, in the order in which they ended.
        returned: the tensors that the network returned.
        real: it ran on zeros.
    """

    calls: tuple[FlowCall, ...]
    ended: tuple[int, ...]
    returned: tuple[Part, ...]
    real: bool = False


class _Begun:
    """A call that is under way."""

    def __init__(self, index: int, name: str, module: nn.Module, outer: tuple[int, ...]) -> None:
        self.index, self.name, self.module, self.outer = index, name, module, outer
        self.inputs: tuple[Part, ...] = ()
        self.outputs: tuple[Part, ...] = ()
        self.has_weights_inside = False


class _Watch(TorchFunctionMode):
    """The mode and the hooks that write origins onto tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Begun] = []
        self.ended: list[int] = []
        self.begun: list[_Begun] = []
        self.alive: list[torch.Tensor] = []  # an id is a tensor's only as long as it lives
        for name, module in model.named_modules(remove_duplicate=False):
            if name:
                module.register_forward_pre_hook(
                    partial(self._enter, name), with_kwargs=True, prepend=True
                )
                module.register_forward_hook(self._leave, with_kwargs=True)

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        value = shapes.call(func, args, kwargs or {})
        targets = list(tensors(value))
        if func.__name__ in ("__setitem__", "copy_"):
            targets = [args[0]]
        if targets:
            origin = origin_of([args, kwargs])
            for target in targets:
                write(target, origin)
        return value

    def _parts(self, value: object) -> tuple[Part, ...]:
        values = list(tensors(value))
        if all(t.is_meta for t in values):
            self.alive += values
        return tuple(Part(t.shape, origin_of(t), (id(t), t._version)) for t in values)

    def _enter(self, name: str, module: nn.Module, args: object, kwargs: object) -> None:
        outer = (*self.begun[-1].outer, self.begun[-1].index) if self.begun else ()
        call = _Begun(len(self.calls), name, module, outer)
        call.inputs = self._parts([args, kwargs])
        self.calls.append(call)
        self.begun.append(call)

    def _leave(self, module: nn.Module, args: object, kwargs: object, output: object) -> None:
        call = self.begun.pop()
        while call.module is not module:  # an extractor within it stopped early
            call = self.begun.pop()
        layers = 0
        if any(True for _ in module.parameters(recurse=False)):
            layers = 0 if call.has_weights_inside else 1 << call.index
            for outer in self.begun:
                outer.has_weights_inside = True
        source = origin_of([args, kwargs])
        for tensor in tensors(output):
            if isinstance(tensor, nn.Parameter):
                continue  # the caller's, perhaps
            origin = origin_of(tensor)
            if not origin.calls:  # made by what no mode sees
                origin = source
            calls = origin.calls | 1 << call.index
            tensor._origin = Origin(calls, layers or origin.layers)  # type: ignore[attr-defined]
        call.outputs = self._parts(output)
        self.ended.append(call.index)


def origin_of(value: object) -> Origin:
    """Return the origin of a tensor, or the union of those in a nested value."""
    origin = Origin()
    for tensor in tensors(value):
        origin |= getattr(tensor, "_origin", origin)
    return origin


def write(tensor: torch.Tensor, origin: Origin) -> None:
    """Note that a tensor comes from somewhere, beside what it came from already."""
    tensor._origin = getattr(tensor, "_origin", Origin()) | origin  # type: ignore[attr-defined]


@torch.inference_mode(False)
def follow(model: nn.Module, shape: Sequence[int], *, real: bool | None = None) -> Flow:
    """Run a copy of a model in eval mode and return what came from where.

    Args:
        model: any module that takes one (N, C, H, W) batch.
        shape: (C, H, W) of the input.
        real: True runs on zeros, False on the meta device, None on zeros where the latter fails.

    Raises:
        Exception: what the model raises.

    Example:
        >>> flow = follow(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()), (3, 8, 8))
        >>> [(call.name, tuple(call.outputs[0].shape)) for call in flow.calls]
        [('0', (1, 4, 4, 4)), ('1', (1, 4, 4, 4))]
        >>> bin(flow.returned[0].origin.calls)  # both calls
        '0b11'
    """
    run, zeros = probing.first(model, (1, *shape), _follow, real=real)
    return dataclasses.replace(run, real=zeros)


def _follow(copied: nn.Module, x: torch.Tensor) -> Flow:
    watch = _Watch(copied)
    with torch.no_grad(), structure.eagerly(copied), watch:
        output = copied(x)
    calls = tuple(FlowCall(c.name, c.outer, c.inputs, c.outputs) for c in watch.calls)
    return Flow(calls, tuple(watch.ended), watch._parts(output))
