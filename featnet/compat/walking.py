"""timm's functions that walk over a network: groups, checkpointing, indices of levels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..deploy.reparam import reparameterizable, reparameterize
from ..errors import OutIndexError
from ..layers import chain

Matcher = Mapping[str, Any] | Callable[[str], Any]
MATCH_PREV_GROUP = (99999,)  # the end of a key: of the group before


def model_parameters(model: nn.Module, exclude_head: bool = False) -> list[nn.Parameter]:
    """Return the parameters, without those of the classifier if that is asked."""
    head = set()
    if exclude_head and callable(getattr(model, "get_classifier", None)):
        classifier: Any = model.get_classifier()  # type: ignore[operator]
        head = {id(p) for p in classifier.parameters()}
    return [p for p in model.parameters() if id(p) not in head]


def named_apply(
    fn: Callable[..., Any],
    module: nn.Module,
    name: str = "",
    depth_first: bool = True,
    include_root: bool = False,
) -> nn.Module:
    """Call ``fn(module=, name=)`` of every module below one; returns that one."""
    for child_name, child in module.named_children():
        below = f"{name}.{child_name}" if name else child_name
        if not depth_first:
            fn(module=child, name=below)
        named_apply(fn, child, below, depth_first)
        if depth_first:
            fn(module=child, name=below)
    if include_root:
        fn(module=module, name=name)
    return module


def named_modules(
    module: nn.Module, name: str = "", depth_first: bool = True, include_root: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules below one, with their names; children first by default."""
    rows: list[tuple[str, nn.Module]] = []
    named_apply(
        lambda module, name: rows.append((name, module)), module, name, depth_first, include_root
    )
    yield from rows


def named_modules_with_params(
    module: nn.Module, name: str = "", depth_first: bool = True, include_root: bool = False
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that hold parameters of their own, with their names."""
    for path, each in named_modules(module, name, depth_first, include_root):
        if each._parameters:
            yield path, each


def group_with_matcher(
    named_objects: Iterable[tuple[str, Any]],
    group_matcher: Matcher,
    return_values: bool = False,
    reverse: bool = False,
) -> dict[Any, Any]:
    """Sort named objects into numbered groups, from the image to the head.

    Args:
        named_objects: pairs of name and object.
        group_matcher: a network's ``group_matcher()``, or a function of a name that gives a number.
        return_values: groups hold the objects, not their names.
        reverse: return each name's group.

    Returns:
        The number of each group, and what is in it.
    """
    groups: dict[tuple[float, ...], list[Any]] = defaultdict(list)
    for name, value in named_objects:
        groups[_group(name, group_matcher)].append(value if return_values else name)
    numbered: dict[int, list[Any]] = defaultdict(list)
    number = -1
    for key in sorted(groups):
        if number < 0 or key[-1] != MATCH_PREV_GROUP[0]:
            number += 1
        numbered[number].extend(groups[key])
    if reverse:
        return {name: number for number, members in numbered.items() for name in members}
    return dict(numbered)


def _group(name: str, matcher: Matcher) -> tuple[float, ...]:
    if not isinstance(matcher, Mapping):
        number = matcher(name)
        return tuple(number) if isinstance(number, Iterable) else (number,)
    for ordinal, rule in enumerate(matcher.values()):
        for pattern, suffix in [(rule, ())] if isinstance(rule, str) else rule or ():
            if match := re.match(pattern, name):
                numbers = (g for g in match.groups() if g is not None)
                return (float(ordinal), *map(float, numbers), *map(float, suffix or ()))
    return (float("inf"),)


def group_parameters(
    module: nn.Module, group_matcher: Matcher, return_values: bool = False, reverse: bool = False
) -> dict[Any, Any]:
    """Sort a network's parameters: :func:`group_with_matcher` of them."""
    return group_with_matcher(module.named_parameters(), group_matcher, return_values, reverse)


def group_modules(
    module: nn.Module, group_matcher: Matcher, return_values: bool = False, reverse: bool = False
) -> dict[Any, Any]:
    """Sort a network's modules that hold parameters: :func:`group_with_matcher` of them."""
    rows = named_modules_with_params(module)
    return group_with_matcher(rows, group_matcher, return_values, reverse)


def checkpoint(function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
    """Call a function whose activations are recomputed in the backward pass."""
    options: dict[str, Any] = {"use_reentrant": False, **kwargs}
    return torch.utils.checkpoint.checkpoint(function, *args, **options)


def checkpoint_seq(
    functions: Iterable[Callable[[Any], Any]],
    x: object,
    every: int = 1,
    flatten: bool = False,
    skip_last: bool = False,
    use_reentrant: bool | None = None,
) -> Any:
    """Run functions one after the other, recomputing ``every`` so many of them at once."""
    parts = list(functions)
    if flatten:
        parts = [inner for part in parts for inner in part]  # type: ignore[attr-defined]
    end = len(parts) - every if skip_last else len(parts)
    for start in range(0, max(end, 0), every):
        section = parts[start : min(start + every, end)]
        x = checkpoint(chain, section, x, use_reentrant=bool(use_reentrant))
    return chain(parts[max(end, 0) :], x)


def reparameterize_model(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Return a model in its form for inference: :func:`featnet.reparameterize`, of a copy; what
    has nothing to change is returned as it is."""
    return reparameterize(model) if reparameterizable(model) else model


def feature_take_indices(
    num_features: int, indices: int | Sequence[int] | None = None, as_set: bool = False
) -> tuple[Any, int]:
    """Return absolute indices of levels, and the greatest.

    Args:
        num_features: number of levels.
        indices: an int for the last n, a sequence that may hold negative ones, None for all.
        as_set: return a set.

    Raises:
        OutIndexError: a level that does not exist.
    """
    if indices is None:
        chosen = list(range(num_features))
    elif isinstance(indices, int):
        chosen = list(range(num_features - indices, num_features))
    else:
        chosen = [i + num_features if i < 0 else i for i in indices]
    wrong = [i for i in chosen if not 0 <= i < num_features]
    if wrong or not chosen:
        raise OutIndexError(f"indices={indices!r}: of {num_features} levels, 0 and up.")
    return (set(chosen) if as_set else chosen), max(chosen)
