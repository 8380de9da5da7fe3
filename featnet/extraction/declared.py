"""Models that declare their levels: a ``feature_info`` in timm's or MindCV's vocabulary.

Such a model has ``feature_info``, a list of ``dict(num_chs|chs=, reduction=, module|name=)``. With
``flatten_sequential`` the names may be those of a flattened network (``features_3`` for
``features.3``). With ``is_rewritten`` the forward returns the levels itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..features import Feature, FeatureInfo
from ..tracing import trace
from . import layout

Declaration = FeatureInfo | Sequence[Feature | Mapping[str, Any]]


def levels(model: nn.Module, declaration: Declaration | None) -> tuple[Feature, ...]:
    """The levels that a model declares, or that are given for it.

    Raises:
        ArgumentError: none are declared, or a row is wrong.
    """
    if declaration is None:
        info = FeatureInfo.of(model)
    else:
        info = declaration if isinstance(declaration, FeatureInfo) else FeatureInfo(declaration)
    if returns_levels(model):
        return info.info
    modules = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    flat = {name.replace(".", "_"): name for name in modules}
    return tuple(
        level
        if level.module in modules or level.module.replace(".", "_") not in flat
        else dataclasses.replace(level, module=flat[level.module.replace(".", "_")])
        for level in info.info
    )


def returns_levels(model: nn.Module) -> bool:
    """Tell if the model was rewritten to return its levels."""
    return getattr(model, "is_rewritten", False) is True


def values(output: Any) -> list[torch.Tensor]:
    """The tensors that a rewritten model returned."""
    return list(output.values()) if isinstance(output, Mapping) else list(output)


def returned(
    model: nn.Module, record: trace.Run, declared: Sequence[Feature]
) -> dict[str, torch.Size]:
    """Return the outputs of a rewritten model, as if its modules had put them out.

    Raises:
        ArgumentError: not one tensor for each level.
    """
    if len(record.levels) != len(declared):
        raise ArgumentError(
            f"{type(model).__name__} is_rewritten and declares {len(declared)} levels, but its "
            f"forward returns {len(record.levels)} tensors: "
            f"{[tuple(s) for s in record.levels.values()]}."
        )
    return {f.module: record.levels[i] for i, f in enumerate(declared)}


def check(
    declared: tuple[Feature, ...],
    indices: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    *,
    size: tuple[int, int],
) -> tuple[Feature, ...]:
    """The levels with their layouts, as the shapes of one run show them.

    Raises:
        ArgumentError: a level that is not what was declared.
    """
    rows = list(declared)
    for index in indices:
        level = rows[index]
        shape = shapes[level.module]
        lies = layout.declared(shape, size, level)
        if lies is None:
            raise ArgumentError(
                f"Level {index} of feature_info, {level.module!r}, is declared with "
                f"{level.channels} channels at reduction {level.reduction}; for an input of "
                f"{size[0]} x {size[1]} it has the shape {tuple(shape)}."
            )
        rows[index] = dataclasses.replace(level, layout=lies.axes, prefix=lies.prefix)
    return tuple(rows)
