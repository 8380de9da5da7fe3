"""Pooling by functions: ``F.max_pool2d`` and ``F.avg_pool2d`` called inside of a forward.

They are no modules, so an output stride cannot be set on them as on modules. A run of the forward
records them, and later runs call their dilated forms in their place.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..tracing import probing, shapes, trace
from .rule import is_window

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
# max_pool2d has several names, of which a mode sees one or the other
POOLS: Mapping[Any, tuple[type[nn.Module], inspect.Signature]] = {
    F.max_pool2d: (nn.MaxPool2d, _MAX),
    torch.max_pool2d: (nn.MaxPool2d, _MAX),
    F.avg_pool2d: (nn.AvgPool2d, _AVG),
}


def as_module(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[torch.Tensor, nn.Module]:
    """Turn a call of a pooling function into its input, and a module that does the same."""
    kind, signature = POOLS[func]
    bound = signature.bind(*args, **(kwargs or {}))
    bound.apply_defaults()
    options = dict(bound.arguments)
    x = options.pop("input")
    if options.get("stride") in ([], ()):
        options["stride"] = None
    return x, kind(**options)


class _Record(TorchFunctionMode):
    """A context that reports every call of a pooling function."""

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
        if func in POOLS:
            self.tell(*as_module(func, args, kwargs), result)
        return result


class Watched:
    """A run of a network with its pooling functions among the calls.

    Attributes:
        calls: as :class:`featnet.tracing.trace.Run`'s; a pooling function is called ``"<module>:<n>"`` after
            the module whose forward calls it.
        modules: every module by name, and for a pooling function one that does the same.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        shape = (1, trace.channels_of(model), *size)
        probing.first(model, shape, lambda copied, x: self._run(model, copied, x))

    def _run(self, model: nn.Module, copied: nn.Module, x: torch.Tensor) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls: list[trace.Call] = []
        inside, inputs, count = [""], list[object](), Counter[str]()

        def note(name: str, before: object, after: object) -> None:
            reads, gives = (tuple(t.shape for t in trace.tensors(v)) for v in (before, after))
            self.calls.append(trace.Call(name, reads, gives, rewritten=False, consumed=False))

        def tell(x: torch.Tensor, module: nn.Module, result: object) -> None:
            if not is_window(self.modules[inside[-1]]):
                name = f"{inside[-1]}:{count[inside[-1]]}"
                count[inside[-1]] += 1
                self.modules[name] = module
                note(name, x, result)

        def enter(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                inside.append(name)
                inputs.append([args, kwargs])

            return hook

        def leave(name: str) -> Callable[..., None]:
            def hook(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
            ) -> None:
                inside.pop()
                note(name, inputs.pop(), output)

            return hook

        for name, module in copied.named_modules(remove_duplicate=False):
            if name:
                module.register_forward_pre_hook(enter(name), with_kwargs=True)
                module.register_forward_hook(leave(name), with_kwargs=True)
        with torch.no_grad(), _Record(tell), shapes.ShapeRules():
            copied(x)


class _Replace(TorchFunctionMode):
    """A context that calls modules in place of pooling functions, by their order."""

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
        if func in POOLS:
            module = self.modules.get(self.count)
            self.count += 1
            if module is not None:
                return module.forward(as_module(func, args, kwargs)[0])
        return func(*args, **(kwargs or {}))


class Repooled(nn.Module):
    """Mixed into the class of a module whose pooling functions were replaced."""

    _pools: dict[int, nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Replace(self._pools):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return _empty, (type(self).__mro__[2],), self.__getstate__()  # type: ignore[no-untyped-call]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def _repooled(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _CLASSES:
        _CLASSES[kind] = type(kind.__name__, (Repooled, kind), {"__module__": kind.__module__})
    return _CLASSES[kind]


def _empty(kind: type[nn.Module]) -> nn.Module:
    """Make a module of the mixed class without content, for copies."""
    mixed = _repooled(kind)
    return mixed.__new__(mixed)


def repool(module: nn.Module, pools: Mapping[int, nn.Module]) -> None:
    """Make a module's forward call these modules in place of its pooling functions, in place."""
    module.__dict__["_pools"] = dict(pools)
    module.__class__ = _repooled(type(module))
