"""The declaration of a Backbone held against what a run of it shows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .errors import DeclarationError
from .features import Feature
from .size import Size
from .tracing import trace
from .tracing.levels import undeclared as undeclared


def check_run(
    network: object,
    levels: Sequence[Feature],
    record: trace.Run,
    size: Size,
    *,
    small: float = 16.0,
) -> None:
    """Hold the levels of a class to what ``forward_levels`` yielded in a run.

    Args:
        network: the Backbone.
        levels: all that it declares; those read under a final norm as they are under it.
        record: the run.
        size: (H, W) of its input.
        small: see :func:`check_map`.

    Raises:
        DeclarationError: with the level, what is declared and what was yielded.
    """
    name = type(network).__name__
    if not levels:
        raise undeclared(name)
    for level, value in zip(levels, record.yielded, strict=False):
        if value.maker is not None:
            raise DeclarationError(
                f"{name}.forward_levels yields in another order than the levels are declared in: "
                f"as level {level.index}, {level.module!r}, it yields the output of "
                f"{value.maker!r}. Declared are "
                f"{', '.join(f'{other.index}: {other.module!r}' for other in levels)}."
            )
        if value.shape is not None:
            check_map(network, level, value.shape, size, kind=value.kind, small=small)


def check_hooks(name: str, levels: Sequence[Feature], record: trace.Run) -> None:
    """Refuse levels that are not what their modules put out, of which hooks read something else.

    Raises:
        DeclarationError: names the level.
    """
    for level, value in zip(levels, record.yielded, strict=False):
        if value.shape is not None and not value.own:
            raise DeclarationError(
                f"{name}: level {level.index}, {level.module!r}, is yielded as something else than "
                "what that module puts out, which is what hooks read: yield its output, and do "
                "what follows in as_map or in a module that is the level."
            )


def check_map(
    network: object,
    level: Feature,
    shape: Sequence[int],
    size: Size,
    *,
    kind: str = "Tensor",
    small: float = 16.0,
) -> None:
    """Hold a level of a class to the shape of its map.

    A side is that of the input divided by the reduction, rounded up or down, and up to a multiple
    of what the class says of its ``map_multiple``. Kernels without padding lose a few positions
    more: a third may be missing, or what the class says of its ``border``.

    Args:
        network: the Backbone.
        level: one of those that it declares.
        shape: of the map.
        size: (H, W) of the input.
        kind: class of what was yielded.
        small: on maps of fewer positions a side the border is most of the map, and any number may
            be missing.

    Raises:
        DeclarationError: another layout, other channels, or another reduction.
    """
    where = f"{type(network).__name__}: level {level.index}, {level.module!r},"
    if len(shape) != 4:
        shown = f", of which as_map makes the shape {tuple(shape)}" if len(shape) else ""
        raise DeclarationError(
            f"{where} is no map (N, C, H, W): forward_levels yields a {kind}{shown}. Yield a map "
            "or featnet.layers.Tokens, or override as_map."
        )

    def fits(side: int, whole: int) -> bool:
        expected = max(1.0, whole / level.reduction)
        ratio = (side + 1) / (expected + 1)
        border = (expected - side) * level.reduction <= getattr(network, "border", 0)
        filled = side - expected < getattr(network, "map_multiple", 1)
        return (ratio < 1.5 or filled) and (ratio > 1 / 1.5 or expected < small or border)

    pairs = list(zip(shape[2:], size, strict=True))
    if shape[1] == level.channels and all(fits(side, whole) for side, whole in pairs):
        return
    steps = " x ".join(dict.fromkeys(f"{whole / max(1, side):.3g}" for side, whole in pairs))
    raise DeclarationError(
        f"{where} is declared with {level.channels} channels at reduction {level.reduction}; for "
        f"an input of {size[0]} x {size[1]} its map is {tuple(shape)}: {shape[1]} channels at "
        f"reduction {steps}. Correct its add_stage (or add_level), or yield the levels in the "
        "order declared."
    )


def is_recorded(x: torch.Tensor) -> bool:
    """Say whether a tracer or compiler records this forward, for which sizes can be symbols."""
    recorded = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return recorded or (type(x) is not torch.Tensor and not isinstance(x, torch.nn.Parameter))
