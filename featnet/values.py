"""Values of arguments, held to what their annotations say: one check for all constructors."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Set

from .errors import ArgumentError, InputSizeError
from .size import Size

# Zero of these means nothing, whatever the network
_POSITIVE = {"depth", "depths", "dims", "embed_dim", "embed_dims", "img_size", "in_chans"}
_POSITIVE |= {"num_heads", "patch_size", "planes", "widths"}


def _is_int(value: object) -> bool:
    if isinstance(value, (bool, float)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def _is_float(value: object) -> bool:
    number = isinstance(value, (int, float)) or _is_int(value)
    return number and not isinstance(value, bool) and math.isfinite(value)  # type: ignore[arg-type]


_SCALARS: dict[str, Callable[[object], bool]] = {
    "None": lambda value: value is None,
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "float": _is_float,
    "str": lambda value: isinstance(value, str),
}


def check_value(name: str, value: object, annotation: str, *, where: str = "") -> None:
    """Refuse a value that an annotation does not allow.

    Args:
        name: of the argument.
        value: the value given.
        annotation: as it stands in the signature; one of which a part is not known allows
            everything.
        where: the beginning of the message.

    Raises:
        ArgumentError: with the value, and what is expected.
    """
    options = re.split(r" \| (?![^\[]*\])", annotation)
    if name.endswith("_rate") and "float" in options and _is_float(value):
        if not 0 <= value < 1:  # type: ignore[operator]
            raise ArgumentError(f"{where}{name}={value!r}: a number from 0 to below 1 is expected.")
        return
    verdicts = [_allows(option, value, name in _POSITIVE) for option in options]
    if None in verdicts or True in verdicts:
        return
    expected = " or ".join(_describe(option, name in _POSITIVE) for option in options)
    raise ArgumentError(f"{where}{name}={value!r}: {expected} is expected.")


def _allows(option: str, value: object, positive: bool) -> bool | None:
    """Return None if the type is not known here."""
    if option in _SCALARS:
        fits = _SCALARS[option](value)
        return fits and not (option == "int" and value < positive)  # type: ignore[operator]
    option = "tuple[int, int]" if option == "Size" else option
    items = re.fullmatch(r"(Sequence|tuple)\[(.*)\]", option)
    if items is None:
        return None
    kinds = items[2].removesuffix(", ...").split(", ")
    if not all({*kind.split(" | ")} <= _SCALARS.keys() for kind in kinds):
        return None
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping, Set)):
        return False
    values = list(value)
    if positive and not values:
        return False
    if items[1] == "tuple" and not items[2].endswith("..."):
        same_length, positive = len(values) == len(kinds), True
    else:
        same_length, kinds = True, kinds * len(values)
    return same_length and all(
        any(_allows(option, each, positive) for option in kind.split(" | "))
        for kind, each in zip(kinds, values, strict=False)
    )


def _describe(option: str, positive: bool) -> str:
    numbers = "positive ints" if positive else "ints from 0"
    words = {
        "None": "None",
        "bool": "True or False",
        "int": "a positive int" if positive else "an int from 0",
        "float": "a number",
        "str": "a string",
        "Size": "(height, width) of positive ints",
        "tuple[int, int]": "(height, width) of positive ints",
        "tuple[int, int, int]": "(channels, height, width) of positive ints",
    }
    plural = {"int": numbers, "float": "numbers", "bool": "bools", "str": "strings"}
    kind = re.sub(r"(Sequence|tuple)\[(\w+).*", r"\2", option)
    return words.get(option) or f"a sequence of {plural.get(kind, kind)}"


def check_size(size: object, name: str = "size") -> Size:
    """Return (height, width) as ints.

    Raises:
        ArgumentError: it is not two ints.
        InputSizeError: one of them is not positive.
    """
    values = list(size) if isinstance(size, Iterable) and not isinstance(size, (str, bytes)) else []
    if len(values) != 2 or not all(_is_int(value) for value in values):
        raise ArgumentError(f"{name}={size!r}: (height, width) in pixels is expected, two ints.")
    height, width = operator.index(values[0]), operator.index(values[1])
    if height < 1 or width < 1:
        raise InputSizeError(f"{name}={size!r}: sides from 1 are expected.")
    return height, width
