"""Watch a run: calls of modules, their inputs, and the tensors that are read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import shapes

Places = frozenset[tuple[str, str]]  # modules, and "forward" or "forward_pre"
Which = Callable[[nn.Module], bool]

# What asks a tensor for no values
_QUESTIONS = frozenset({"__get__", "dim", "size", "stride", "numel", "is_contiguous", "__len__"})


class Used(TorchFunctionMode):
    """Counts how often each tensor, by its id, is given to a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.alive: dict[int, torch.Tensor] = {}  # an id is a tensor's only as long as it lives

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = shapes.call(func, args, kwargs)
        if func.__name__ in _QUESTIONS and not isinstance(result, torch.Tensor):
            return result  # a shape, not a view as Tensor.T is
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, torch.Tensor):
                    self.reads[id(item)] += 1
                    self.alive[id(item)] = item
        return result


class Stop(BaseException):
    """Ends a forward whose remaining modules nobody needs. Not an Exception: a model's own
    ``except Exception`` must not swallow it."""


def tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors in an output, however it is nested."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name, None))
    elif type(value) in _PLAIN or isinstance(value, (nn.Module, type)):
        return
    elif isinstance(getattr(value, "__dict__", None), dict):  # an object that holds them
        yield from (item for item in vars(value).values() if isinstance(item, torch.Tensor))


_PLAIN = frozenset({bool, int, float, str, type(None), torch.Size, torch.dtype, torch.device})


class Seen:
    """Tensors at one moment of a run, and how often each had been read until then."""

    def __init__(self, value: object, reads: Mapping[int, int]) -> None:
        self.tensors = list(tensors(value))
        self.reads = self.reads_after = [reads.get(id(t), 0) for t in self.tensors]
        self.versions = [t._version for t in self.tensors]
        self.shapes = tuple(t.shape for t in self.tensors)

    @property
    def changed(self) -> bool:
        """Tell if one was changed in place since."""
        return [t._version for t in self.tensors] != self.versions


class Watch:
    """Hooks on modules of a copy, and what they saw."""

    def __init__(self, model: nn.Module, until: Places, watched: Which | None) -> None:
        self.used = Used()
        self.ended: list[tuple[str, Seen, Seen]] = []
        self.until, self.waiting = until, set(until)
        self._begun: list[tuple[nn.Module, Seen]] = []
        for name, module in model.named_modules(remove_duplicate=False):
            if name and (watched is None or watched(module)):
                module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True)
                module.register_forward_hook(partial(self._leave, name), with_kwargs=True)

    @property
    def done(self) -> bool:
        """Tell if all that was waited for has come."""
        return bool(self.until) and not self.waiting

    def _enter(self, name: str, module: nn.Module, args: object, kwargs: object) -> None:
        self._begun.append((module, Seen([args, kwargs], self.used.reads)))
        self.waiting.discard((name, "forward_pre"))
        if self.done:  # reached, and then not run
            self.ended.append((name, self._begun[-1][1], Seen((), self.used.reads)))
            raise Stop

    def _leave(
        self, name: str, module: nn.Module, args: object, kwargs: object, output: object
    ) -> None:
        begun, inputs = self._begun.pop()
        while begun is not module:  # an extractor within it stopped early
            begun, inputs = self._begun.pop()
        inputs.reads_after = [self.used.reads[id(t)] for t in inputs.tensors]
        self.ended.append((name, inputs, Seen(output, self.used.reads)))
        self.waiting.discard((name, "forward"))
        if self.done:
            raise Stop
