"""Checkpoints of other libraries: recognised by their keys and shapes, brought under our names.

A :class:`Layout` says by which keys a file is known, for which class of network it is, and how its
tensors are renamed. Everything else is done here, once for all: the prefix that a wrapper added,
what lies outside of it, a fully connected layer that is a convolution in the other library, and the
epsilon of batch norm, which no state dict holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError
from . import efficientnet_pytorch, jax, mindcv, originals, torchvision, transformers
from .draft import Draft, Layout, one_error

__all__ = ["Draft", "Layout", "apply", "layouts", "one_error", "recognise"]

_LAYOUTS: tuple[Layout, ...] = (
    *torchvision.LAYOUTS,
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


def recognise(
    keys: Iterable[str], among: Iterable[Layout] = _LAYOUTS
) -> tuple[Layout, str, str] | None:
    """The layout of a file's keys, the prefix before them, and the root that they lack."""
    names, known = set(keys), list(among)
    whole = [(layout, "") for layout in known]
    rootless = [(layout, layout.root) for layout in known if layout.root]
    for layout, root in (*whole, *rootless):
        prefix = find_prefix(names, [mark[len(root) :] for mark in layout.marks])
        if prefix is not None:
            return layout, prefix, root
    return None


def find_prefix(names: set[str], marks: list[str]) -> str | None:
    """The shortest prefix under which all marks are."""
    first = marks[0]
    found = [
        n[: -len(first)] for n in names if n == first or n.endswith(("." + first, "/" + first))
    ]
    fitting = [p for p in found if all(p + mark in names for mark in marks)]
    return min(fitting, key=len, default=None)


def apply(draft: Draft, model: nn.Module, *, format: str = "") -> bool:
    """Bring a file of another library under the model's names; False where it is none.

    Args:
        format: of the file, where its names mean nothing to PyTorch.

    Raises:
        CheckpointError: a file whose network computes something else than the model, or a file of
            a format of its own whose network is not known.
    """
    found = recognise(draft.tensors, layouts(model, format=format))
    if found is None:
        if format:
            raise CheckpointError(_unknown(draft, model, format))
        return False
    layout, prefix, root = found
    if layout.refused:
        raise CheckpointError(_refusal(layout))
    draft.strip(prefix)
    if root:
        draft.rename(lambda key: root + key)
    layout.convert(draft, model)
    draft.steps.append(f"layout of {layout.name}")
    target = model.state_dict()
    _reshape(draft, target)
    if layout.eps is not None:
        _shift_variance(draft, model, layout.eps(draft))
    return True


def _refusal(layout: Layout) -> str:
    return (
        f"A checkpoint of {layout.name} is not loaded: {layout.refused}, so that it would give "
        "other numbers than it was trained for."
    )


def _unknown(draft: Draft, model: nn.Module, format: str) -> str:
    """Why a file of a format of its own is not this model's."""
    known = [layout for layout in _LAYOUTS if layout.format == format]
    found = recognise(draft.tensors, known)
    if found is None:
        names = ", ".join(layout.name for layout in known if not layout.refused)
        return (
            f"A {format} checkpoint of an architecture that is not known: it begins with "
            f"{next(iter(draft.tensors))!r}. Known are {names}."
        )
    if found[0].refused:
        return _refusal(found[0])
    return f"A checkpoint of {found[0].name} does not fit {type(model).__name__}."


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
