"""Checkpoints of other libraries: recognised by their keys and shapes, brought under our names.

A :class:`Layout` says by which keys a file is known, for which class of network it is, and how its
tensors are renamed. Everything else is done here, once for all: the prefix that a wrapper added,
what lies outside of it, a fully connected layer that is a convolution in the other library, and the
epsilon of batch norm, which no state dict holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from ...errors import CheckpointError
from . import (
    efficientnet_pytorch,
    jax,
    mindcv,
    originals,
    torchvision,
    transformers,
    transformers_families,
)
from .draft import Draft, Layout, one_error

__all__ = [
    "Draft",
    "Layout",
    "apply",
    "find_prefixes",
    "layouts",
    "one_error",
    "recognise",
    "refuse",
    "ways",
]

_LAYOUTS: tuple[Layout, ...] = (
    *torchvision.LAYOUTS,
    *transformers_families.LAYOUTS,
    *transformers.LAYOUTS,
    *originals.LAYOUTS,
    *efficientnet_pytorch.LAYOUTS,
    *jax.LAYOUTS,
    *mindcv.LAYOUTS,
)


def layouts(model: nn.Module, *, format: str = "") -> Iterator[Layout]:
    """The layouts in which files of a format keep networks of this class."""
    classes = {cls.__name__ for cls in type(model).__mro__}
    return (layout for layout in _LAYOUTS if layout.family in classes and layout.format == format)


def ways(among: Iterable[Layout] = _LAYOUTS) -> Iterator[tuple[Layout, str]]:
    """Layouts in the order in which they are tried, and the root that a file's keys lack: whole
    files first, then those that hold the features alone."""
    known = list(among)
    yield from ((layout, "") for layout in known)
    yield from ((layout, layout.root) for layout in known if layout.root)


def recognise(keys: Iterable[str], among: Iterable[Layout] = _LAYOUTS) -> Layout | None:
    """The layout of a file's keys."""
    names = set(keys)
    for layout, root in ways(among):
        if find_prefixes(names, [mark[len(root) :] for mark in layout.marks]):
            return layout
    return None


def find_prefixes(names: Collection[str], marks: Sequence[str]) -> list[str]:
    """The prefixes under which all marks are, in the order of the names."""
    first = marks[0]
    prefixes = [
        n[: -len(first)] for n in names if n == first or n.endswith(("." + first, "/" + first))
    ]
    return [p for p in prefixes if all(p + mark in names for mark in marks)]


def refuse(keys: Iterable[str], model: nn.Module, *, format: str) -> NoReturn:
    """Say why a file of a format of its own is not this model's.

    Raises:
        CheckpointError: always.
    """
    raise CheckpointError(_unknown(keys, model, format))


def apply(draft: Draft, model: nn.Module, layout: Layout, root: str) -> None:
    """Bring a draft of another library under the model's names.

    Args:
        root: the start of the keys, which the file lacks.

    Raises:
        CheckpointError: its network computes something else than the model.
    """
    if layout.refused:
        raise CheckpointError(_refusal(layout))
    if root:
        draft.rename(lambda key: root + key)
    layout.convert(draft, model)
    draft.layout = layout.name
    draft.steps.append(f"layout of {layout.name}")
    target = model.state_dict()
    _reshape(draft, target)
    if layout.eps is not None:
        _shift_variance(draft, model, layout.eps(draft))


def _refusal(layout: Layout) -> str:
    return (
        f"A checkpoint of {layout.name} is not loaded: {layout.refused}, so that it would give "
        "other numbers than it was trained for."
    )


def _unknown(keys: Iterable[str], model: nn.Module, format: str) -> str:
    """Explain why a file of a format of its own does not belong to this model."""
    known = [layout for layout in _LAYOUTS if layout.format == format]
    names = list(keys)
    layout = recognise(names, known)
    if layout is None:
        others = ", ".join(layout.name for layout in known if not layout.refused)
        return (
            f"A {format} checkpoint of an architecture that is not known: it begins with "
            f"{names[0]!r}. Known are {others}."
        )
    if layout.refused:
        return _refusal(layout)
    return f"A checkpoint of {layout.name} does not fit {type(model).__name__}."


def _reshape(draft: Draft, target: dict[str, torch.Tensor]) -> None:
    """Fully connected layers to convolutions and back, and scales without their empty axes."""
    for key, value in list(draft.tensors.items()):
        if key not in target or value.shape == target[key].shape:
            continue
        new = target[key].shape
        same = [n for n in value.shape if n != 1] == [n for n in new if n != 1]
        flat = value.shape[:1] == new[:1] and {value.ndim, len(new)} == {2, 4}
        if value.numel() == new.numel() and (same or flat):
            draft.put(key, value.reshape(new), f"{list(value.shape)} as {list(new)}")


def _shift_variance(draft: Draft, model: nn.Module, eps: float) -> None:
    """Batch norms of another epsilon: the running variance takes up the difference, so that in eval
    mode the outputs are the same."""
    for name, module in model.named_modules():
        key, own = f"{name}.running_var", getattr(module, "eps", None)
        if own is None or key not in draft.tensors or own == eps:
            continue
        value: Any = draft.tensors[key]
        draft.put(
            key,
            (value.double() + (eps - own)).to(value.dtype),
            f"epsilon {eps:g} instead of {own:g}: added to the variance",
        )
