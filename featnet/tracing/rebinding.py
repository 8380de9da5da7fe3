"""Functions that refer to modules of a network, made to refer to those of its copy."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

# What a function may refer to without anything to rebind
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, types.ModuleType)


def rebound(value: object, memo: Mapping[int, Any], known: dict[int, Any] | None = None) -> Any:
    """Return a function that refers to copies where the given one refers to originals.

    Bound methods, closures and partial functions are followed; where nothing refers to an original,
    what is returned is the function itself.

    Args:
        value: a function, or anything else, which comes back as it is.
        memo: id of an original to its copy.
        known: functions that are under way, by id.
    """
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)]
    if isinstance(value, types.MethodType):
        owner = memo.get(id(value.__self__), value.__self__)
        function = rebound(value.__func__, memo, known)
        if owner is value.__self__ and function is value.__func__:
            return value
        return types.MethodType(function, owner)
    if isinstance(value, functools.partial):
        function = rebound(value.func, memo, known)
        args = [_copy_of(item, memo, known) for item in value.args]
        keywords = {key: _copy_of(item, memo, known) for key, item in value.keywords.items()}
        parts = [value.func, *value.args, *value.keywords.values()]
        new = [function, *args, *keywords.values()]
        if all(a is b for a, b in zip(parts, new, strict=True)):
            return value
        return functools.partial(function, *args, **keywords)
    if isinstance(value, types.FunctionType) and value.__closure__:
        return _rebound_closure(value, memo, known)
    return value


def _rebound_closure(
    function: types.FunctionType, memo: Mapping[int, Any], known: dict[int, Any]
) -> Any:
    cells = [types.CellType() for _ in function.__closure__ or ()]
    new = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    new.__dict__.update(function.__dict__)
    new.__kwdefaults__ = function.__kwdefaults__
    new.__qualname__, new.__module__ = function.__qualname__, function.__module__
    known[id(function)] = new
    changed = False
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        try:
            content = old.cell_contents
        except ValueError:  # not assigned yet
            continue
        cell.cell_contents = _copy_of(content, memo, known)
        # a reference to itself changes nothing
        changed = changed or (cell.cell_contents is not content and content is not function)
    if not changed:
        known[id(function)] = function
        return function
    return new


def _copy_of(value: object, memo: Mapping[int, Any], known: dict[int, Any]) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Callable) and not isinstance(value, nn.Module):  # type: ignore[arg-type]
        return rebound(value, memo, known)
    return value


def refers_to(value: object, model: nn.Module) -> bool:
    """Tell if a function refers to a module of a model, so that it is a part of it."""
    marks = {id(module): object() for module in model.modules()}
    return rebound(value, marks) is not value
