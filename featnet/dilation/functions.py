"""Pooling and padding by functions: ``F.max_pool2d``, ``F.avg_pool2d``, ``F.pad`` inside of a
forward.

They are no modules, so an output stride cannot be set on them as on modules. A run of the forward
records them, and later runs call other forms in their place.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..tracing import probing, shapes, trace
from .interleaved import Padding, empty, mixed
from .windows import is_window

_MAX = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in (
            ("input", None),
            ("kernel_size", None),
            ("stride", None),
            ("padding", 0),
            ("dilation", 1),
            ("ceil_mode", False),
            ("return_indices", False),
        )
    ]
)
_AVG = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in (
            ("input", None),
            ("kernel_size", None),
            ("stride", None),
            ("padding", 0),
            ("ceil_mode", False),
            ("count_include_pad", True),
            ("divisor_override", None),
        )
    ]
)
_PAD = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for name, default in (("input", None), ("pad", ()), ("mode", "constant"), ("value", None))
    ]
)
# max_pool2d has several names, of which a mode sees one or the other
FUNCTIONS: Mapping[Any, tuple[type[nn.Module], inspect.Signature]] = {
    F.max_pool2d: (nn.MaxPool2d, _MAX),
    torch.max_pool2d: (nn.MaxPool2d, _MAX),
    F.avg_pool2d: (nn.AvgPool2d, _AVG),
    F.pad: (Padding, _PAD),
}


def as_module(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[torch.Tensor, nn.Module]:
    """Turn a call of one of these functions into its input, and a module that does the same."""
    kind, signature = FUNCTIONS[func]
    bound = signature.bind(*args, **(kwargs or {}))
    bound.apply_defaults()
    options = dict(bound.arguments)
    x = options.pop("input")
    if kind is Padding:
        amounts = [int(amount) for amount in options["pad"]]
        amounts = (amounts + [0] * 4)[: max(4, len(amounts))]
        return x, Padding(tuple(amounts), options["mode"], options["value"])  # type: ignore[arg-type]
    if options.get("stride") in ([], ()):
        options["stride"] = None
    return x, kind(**options)


class _Record(TorchFunctionMode):
    """A context that reports every call of these functions."""

    def __init__(self, tell: Callable[[torch.Tensor, nn.Module, object], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func in FUNCTIONS:
            self.tell(*as_module(func, args, kwargs), result)
        return result


@dataclasses.dataclass(frozen=True)
class PadCall:
    """One call of ``F.pad`` on a map.

    Attributes:
        padding: what it did.
        size: (H, W) of the map.
        within: the window in whose forward it is, if any (``padding_mode=``, a layer of
            TensorFlow's).
        feeds: the window that read its result, if any.
    """

    padding: Padding
    size: tuple[int, int]
    within: str | None
    feeds: str | None = None


class Watched:
    """A run of a network with its pooling functions among the calls.

    Attributes:
        calls: as :class:`featnet.tracing.trace.Run`'s; a pooling function is called
            ``"<module>:<n>"`` after the module whose forward calls it.
        modules: every module by name, and for a function one that does the same.
        pads: calls of ``F.pad`` on maps, by such names.
        order: names of modules and functions, as they are entered.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        shape = (1, trace.channels_of(model), *size)
        try:
            probing.first(model, shape, lambda copied, x: self._run(model, copied, x))
        except Exception as error:
            raise trace.does_not_run(model, size, error) from error

    def _run(self, model: nn.Module, copied: nn.Module, x: torch.Tensor) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls: list[trace.Call] = []
        self.pads: dict[str, PadCall] = {}
        self.order: list[str] = []
        self._inside, self._inputs, self._count = [""], list[object](), Counter[str]()
        self._padded: dict[
            int, tuple[str, torch.Tensor]
        ] = {}  # results, as long as nobody read them
        for name, module in copied.named_modules(remove_duplicate=False):
            if name:
                enter, leave = partial(self._enter, name), partial(self._leave, name)
                module.register_forward_pre_hook(enter, with_kwargs=True)
                module.register_forward_hook(leave, with_kwargs=True)
        with torch.no_grad(), _Record(self._tell), shapes.ShapeRules():
            copied(x)
        del self._inside, self._inputs, self._count, self._padded

    def _note(self, name: str, before: object, after: object) -> None:
        reads, gives = (tuple(t.shape for t in trace.tensors(v)) for v in (before, after))
        self.calls.append(trace.Call(name, reads, gives, rewritten=False, consumed=False))

    def _tell(self, x: torch.Tensor, module: nn.Module, result: object) -> None:
        owner = self._inside[-1]
        within = next((n for n in self._inside[1:] if is_window(self.modules[n])), None)
        if within and not isinstance(module, Padding):
            return
        name = f"{owner}:{self._count[owner]}"
        self._count[owner] += 1
        self.order.append(name)
        if not isinstance(module, Padding):
            self.modules[name] = module
            self._note(name, x, result)
        elif x.ndim == 4 and len(module.amounts) == 4 and isinstance(result, torch.Tensor):
            self.pads[name] = PadCall(module, (x.shape[-2], x.shape[-1]), within)
            self._padded[id(result)] = name, result

    def _enter(self, name: str, _: nn.Module, args: object, kwargs: object) -> None:
        self._inside.append(name)
        self.order.append(name)
        self._inputs.append([args, kwargs])
        for tensor in trace.tensors([args, kwargs]):
            if is_window(self.modules[name]) and id(tensor) in self._padded:
                pad = self._padded[id(tensor)][0]
                if self.pads[pad].within is None:
                    self.pads[pad] = dataclasses.replace(self.pads[pad], feeds=name)

    def _leave(self, name: str, _: nn.Module, args: object, kwargs: object, output: object) -> None:
        self._inside.pop()
        self._note(name, self._inputs.pop(), output)


class _Replace(TorchFunctionMode):
    """A context that calls modules in place of these functions, by their order."""

    def __init__(self, modules: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.modules, self.count = modules, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func in FUNCTIONS:
            module = self.modules.get(self.count)
            self.count += 1
            if module is not None:
                return module.forward(as_module(func, args, kwargs)[0])
        return func(*args, **(kwargs or {}))


class Refunctioned(nn.Module):
    """Mixed into the class of a module of which functions were replaced."""

    _functions: dict[int, nn.Module]

    def forward(self, *args: object, **kwargs: object) -> Any:
        with _Replace(self._functions):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return empty, (Refunctioned, type(self).__mro__[2]), self.__getstate__()  # type: ignore[no-untyped-call]


def refunction(module: nn.Module, functions: Mapping[int, nn.Module]) -> None:
    """Make a module's forward call these modules in place of its functions, in place."""
    module.__dict__["_functions"] = dict(functions)
    module.__class__ = mixed(Refunctioned, type(module))
