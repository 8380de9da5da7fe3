"""Other names for the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def rename_keys(
    state: Mapping[str, torch.Tensor], rules: Iterable[Rule], *, like: nn.Module | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors under other names.

    Args:
        state: a checkpoint's tensors by name; it stays as it is.
        rules: pairs for ``re.sub``, a pattern and its replacement; all are applied, in this order.
        like: a network with the new names. A tensor that has as many elements as its one, in
            another shape, is reshaped: 1x1 convolutions of files that have linear layers.

    Example:
        >>> state = {"features.0.w": torch.ones(2), "fc": torch.ones(1)}
        >>> list(rename_keys(state, [(r"^features\\.(\\d+)", r"blocks.\\1"), ("^fc", "head")]))
        ['blocks.0.w', 'head']
    """
    shapes = {} if like is None else {k: v.shape for k, v in like.state_dict().items()}
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    renamed = {}
    for key, value in state.items():
        for pattern, new in compiled:
            key = pattern.sub(new, key)
        shape = shapes.get(key, value.shape)
        renamed[key] = value.reshape(shape) if value.numel() == shape.numel() else value
    return renamed
