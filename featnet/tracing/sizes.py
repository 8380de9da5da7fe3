"""Input sizes of a network: the one that a caller gave, those that the network claims, and
guesses."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import ArgumentError
from ..size import Size

# Networks of one input size only are mostly of one of these
SIZES = (256, 224, 384, 299, 512, 192, 128, 96, 64, 48, 32, 28, 320, 336, 448, 518, 1024)


@dataclasses.dataclass
class Probing:
    """The facts that are known while one extractor is built.

    Attributes:
        size: the input size that the caller gave.
        runs: results of runs, by what asked for them; nothing changes meanwhile.
        zeros: ids of the networks that run on zeros only.
    """

    size: Size | None = None
    runs: dict[Any, Any] = dataclasses.field(default_factory=dict)
    zeros: set[int] = dataclasses.field(default_factory=set)


_CURRENT: contextvars.ContextVar[Probing | None] = contextvars.ContextVar("probing", default=None)


def current() -> Probing:
    """Return what is known on this thread; outside of :func:`at_size` nothing, and it is
    forgotten."""
    return _CURRENT.get() or Probing()


@contextlib.contextmanager
def at_size(input_size: Sequence[int] | None = None) -> Iterator[None]:
    """Let networks be looked into at an input size, within this context and on this thread.

    Args:
        input_size: (H, W) or (C, H, W); by default that of the context around, or one that runs.

    Raises:
        ArgumentError: something else.
    """
    outer = _CURRENT.get()
    size = outer.size if outer and input_size is None else check_size(input_size)
    token = _CURRENT.set(outer if outer and outer.size == size else Probing(size))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def check_size(input_size: object) -> Size | None:
    """Return (H, W) of an input size that a caller gave.

    Raises:
        ArgumentError: it is no size.
    """
    if input_size is None:
        return None
    if (
        isinstance(input_size, str)
        or not isinstance(input_size, Sequence)
        or len(input_size) not in (2, 3)
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in input_size)
    ):
        raise ArgumentError(f"input_size={input_size!r}: (C, H, W) or (H, W) is expected.")
    return input_size[-2], input_size[-1]


def candidates(model: nn.Module, *first: int) -> list[Size]:
    """Return sizes to try in turn: those that the network claims, ``first``, and :data:`SIZES`."""
    guesses = [(side, side) for side in (*first, *SIZES)]
    return list(dict.fromkeys([*claimed(model), *guesses]))


_NAMES = ("img_size", "image_size", "input_size", "input_resolution")
_CONFIGS = ("config", "vision_config", "pretrained_cfg", "default_cfg", "cfg")


def claimed(model: nn.Module) -> list[Size]:
    """Return the input sizes that a network, its parts and their configurations name.

    Example:
        >>> net = nn.Conv2d(3, 4, 1)
        >>> net.img_size = 320
        >>> claimed(net)
        [(320, 320)]
    """
    sizes: list[Size] = []
    for module in model.modules():
        sizes += _sizes_in(module, 2)
    return list(dict.fromkeys(sizes))


def _sizes_in(owner: object, depth: int) -> Iterator[Size]:
    fields = owner if isinstance(owner, Mapping) else getattr(owner, "__dict__", {})
    for name in _NAMES:
        value: Any = fields.get(name)
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, Mapping):  # transformers' processors
            value = (value.get("height"), value.get("width"))
        value = [value, value] if isinstance(value, int) else value
        if isinstance(value, (tuple, list)) and len(value) in (2, 3):
            height, width = value[-2:]
            whole = isinstance(height, int) and isinstance(width, int)
            if whole and not isinstance(height, bool) and min(height, width) >= 8:
                yield height, width
    for name in _CONFIGS:
        inner = fields.get(name)
        if inner is not None and depth:
            yield from _sizes_in(inner, depth - 1)
