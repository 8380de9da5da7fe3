"""Copies of a network for a run that only looks: nothing of the network changes by it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import (
    Callable,
    Iterator,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from typing import Any, TypeVar

import torch
from torch import nn

from . import structure
from .watch import tensors

T = TypeVar("T")


def first(
    model: nn.Module,
    shape: Sequence[int],
    work: Callable[[nn.Module, torch.Tensor], T],
    *,
    real: bool | None = None,
    training: bool = False,
) -> tuple[T, bool]:
    """Return the first result of ``work(copy, input)`` over copies of a model, and whether it ran
    on zeros.

    The copies are on the meta device, then on that of the model, for networks that look at values.
    On each one with the hooks that are part of the network's forward; if that fails with all hooks
    that somebody put on it, and with none.

    Args:
        model: any module.
        shape: of the input.
        work: what to do.
        real: True leaves out the meta device, False the model's own.
        training: the mode; the copies' ``train`` may return anything.

    Raises:
        Exception: the first that came up on the last device.

    Example:
        >>> first(nn.Conv2d(3, 4, 1), (1, 3, 2, 2), lambda copy, x: copy(x).shape)
        (torch.Size([1, 4, 2, 2]), False)
    """
    tensor = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    devices = [] if real else [torch.device("meta")]
    if real is not False and not tensor.is_meta:
        devices.append(tensor.device)
    failures: dict[torch.device, Exception] = {}
    for device in devices or [tensor.device]:
        clone = structure.meta_clone if device.type == "meta" else structure.real_clone
        x = torch.zeros(tuple(shape), dtype=tensor.dtype, device=device)
        for hooks in structure.hook_choices(model):
            try:
                copied = clone(model, hooks)  # in eval mode
                if training:
                    copied.train()
                with caches_kept(model):
                    return work(copied, x), not x.is_meta
            except Exception as error:
                failures.setdefault(device, error)
    raise list(failures.values())[-1]


# Libraries whose caches are their own business
_NOT_ASKED = frozenset({"torch", "builtins", "featnet", "typing", "abc", "__future__"})
_MUTABLE = (MutableMapping, MutableSequence, MutableSet)


@contextlib.contextmanager
def caches_kept(model: nn.Module) -> Iterator[None]:
    """Take out again, at the end, the meta tensors that a run leaves in caches of the model's
    classes and of the Python modules in which they are written: a later run would use them.

    Example:
        >>> class Grid(nn.Module):
        ...     cache = {}
        ...     def forward(self, x):
        ...         return x + self.cache.setdefault("grid", torch.zeros(1, device=x.device))
        >>> with caches_kept(Grid()):
        ...     y = Grid()(torch.zeros(1, device="meta"))
        >>> Grid.cache
        {}
    """
    owners = list(_owners(model))
    before = [
        {name: (value, _content(value)) for name, value in list(vars(owner).items())}
        for owner in owners
    ]
    try:
        yield
    finally:
        for owner, names in zip(owners, before, strict=True):
            for name, value in list(vars(owner).items()):
                _restore(owner, name, value, names.get(name))


def _owners(model: nn.Module) -> Iterator[Any]:
    kinds = {type(module) for module in structure.modules_of(model)}
    classes = {base for kind in kinds for base in kind.__mro__}
    homes = {base.__module__ for base in classes if base.__module__.split(".")[0] not in _NOT_ASKED}
    yield from (base for base in classes if base.__module__ in homes)
    yield from (sys.modules[home] for home in homes if home in sys.modules)


def _content(value: object) -> Any:
    """A shallow copy of a container, the count of entries of a memoised function, else None."""
    if hasattr(value, "cache_info") and hasattr(value, "cache_clear"):
        with contextlib.suppress(Exception):
            return value.cache_info().misses
    if type(value).__module__ in ("builtins", "collections", "weakref"):
        if isinstance(value, MutableMapping):
            return dict(value)
        if isinstance(value, MutableSequence | MutableSet):
            return list(value)
    return None


def _restore(owner: object, name: str, value: object, before: tuple[Any, Any] | None) -> None:
    content: Any
    old, content = before if before is not None else (None, None)
    memoised: Any = value
    if hasattr(value, "cache_info") and content is not None and value is old:
        if memoised.cache_info().misses != content:
            memoised.cache_clear()
    elif isinstance(value, torch.Tensor):
        if value.is_meta and value is not old:
            setattr(owner, name, old) if before is not None else delattr(owner, name)
    elif isinstance(value, _MUTABLE) and _holds_meta(value):
        if value is not old:
            setattr(owner, name, old) if before is not None else delattr(owner, name)
        elif isinstance(value, MutableMapping):
            value.clear()
            value.update(content)
        elif isinstance(value, MutableSequence):
            value[:] = content
        elif isinstance(value, MutableSet):
            value.clear()
            for item in content:
                value.add(item)


def _holds_meta(value: Any) -> bool:
    try:
        items = list(value.values()) if isinstance(value, MutableMapping) else list(value)
        return any(tensor.is_meta for tensor in tensors(items))
    except Exception:  # an object of somebody else's, with rules of its own
        return False
