"""Other names for the tensors of a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

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


def stage_rule(name: str, depths: Sequence[int]) -> Rule:
    """Return a rule for :func:`rename_keys`: blocks that a file counts over all stages.

    Args:
        name: of their list in the file. A block of which there is none here keeps its name.
        depths: number of blocks of each stage.

    Example:
        >>> state = {"features.3.w": torch.ones(2), "features.5.w": torch.ones(2)}
        >>> list(rename_keys(state, [stage_rule("features", (2, 3))]))
        ['stages.1.blocks.1.w', 'features.5.w']
    """
    places = [f"stages.{i}.blocks.{j}." for i, depth in enumerate(depths) for j in range(depth)]

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        return places[number] if number < len(places) else match[0]

    return rf"^{re.escape(name)}\.(\d+)\.", place
