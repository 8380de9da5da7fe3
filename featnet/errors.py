"""The exceptions of featnet.

Each is also the built-in type that callers already catch, and each message holds the value that
was given, what is allowed, and the nearest right value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class FeatnetError(Exception):
    """Base of all errors that featnet raises on purpose."""


class UnknownModelError(FeatnetError, RuntimeError, LookupError, ValueError):
    """No model, tag or source has the name that was asked for."""


class ArgumentError(FeatnetError, TypeError, ValueError):
    """An argument that does not exist, is of the wrong type, or contradicts another."""


class DeclarationError(ArgumentError):
    """A Backbone that is not what it declares: channels, reduction, order or number of levels."""


class OutIndexError(FeatnetError, IndexError, ValueError):
    """A level that does not exist, or a selection of levels that means nothing."""


class OutputStrideError(FeatnetError, ValueError, TypeError):
    """An output stride that the network cannot have."""


class InputSizeError(FeatnetError, ValueError, RuntimeError):
    """An input whose shape the network cannot take."""


class MissingFeatureError(FeatnetError, LookupError, RuntimeError, ValueError):
    """A tap that names no module or node, or whose module did not run."""


class TraceError(FeatnetError, RuntimeError, ValueError):
    """A forward that torch.fx cannot trace, or that cannot be run to see what it does."""


class CheckpointError(FeatnetError, RuntimeError, ValueError):
    """A checkpoint that cannot be found, read, or does not fit the model."""


class OutputError(CheckpointError, OSError):
    """A file or folder that cannot be written."""


def check_rate(name: str, value: object) -> None:
    """Refuse what is no probability below 1.

    Raises:
        ArgumentError: not a number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ArgumentError(f"{name}={value!r}: a number from 0 to below 1 is expected.")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what is none of the choices.

    Raises:
        ArgumentError: with the choices, and the nearest.
    """
    names = list(choices)
    if value not in names:
        shown = ", ".join(map(repr, names))
        raise ArgumentError(f"{name}={value!r}: one of {shown} is expected.{nearest(value, names)}")


def check_stages(count: int | None = None, **values: Sequence[object]) -> None:
    """Refuse arguments that do not have a value for each stage.

    Args:
        count: number of stages; by default as many as there are values.
        **values: the arguments by name.

    Raises:
        ArgumentError: one has more or fewer values than there are stages.
    """
    if len({*map(len, values.values()), *([] if count is None else [count])}) > 1:
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        number = "equally many" if count is None else str(count)
        raise ArgumentError(f"{shown}: one value for each stage, {number}, are expected.")


def nearest(name: object, choices: Iterable[str], *, count: int = 3) -> str:
    """``" Did you mean 'a', 'b'?"``, or nothing when no choice is near."""
    matches = difflib.get_close_matches(str(name), list(choices), n=count, cutoff=0.6)
    return f" Did you mean {', '.join(map(repr, matches))}?" if matches else ""
