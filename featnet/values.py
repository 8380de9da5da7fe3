"""Values of arguments, held to what their annotations say: one check for constructors and for
public functions."""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar, Union, cast, get_args, get_origin

from .errors import ArgumentError, FeatnetError, InputSizeError
from .size import Size

F = TypeVar("F", bound=Callable[..., Any])

# Zero of these means nothing, whatever the network
_POSITIVE = {"depth", "depths", "dims", "embed_dim", "embed_dims", "img_size", "in_chans"}
_POSITIVE |= {"num_features", "num_heads", "out_channels", "patch_size", "planes", "widths"}
# What annotations of constructors are made of; what else is in one allows everything
_NAMES = {
    "Iterable": Iterable,
    "Literal": Literal,
    "Mapping": Mapping,
    "Sequence": Sequence,
    "Size": Size,
}


def is_int(value: object) -> bool:
    """Tell if a value can stand where an int is expected; a bool and a float cannot."""
    if isinstance(value, (bool, float)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def is_float(value: object) -> bool:
    """Tell if a value is a finite number; a bool is none."""
    number = isinstance(value, (int, float)) or is_int(value)
    return number and not isinstance(value, bool) and math.isfinite(value)  # type: ignore[arg-type]


def check_value(
    name: str, value: object, annotation: object, *, where: str = "", signed: bool = False
) -> None:
    """Refuse a value that an annotation does not allow.

    Args:
        name: of the argument.
        value: the value given.
        annotation: as it stands in the signature, or evaluated; one of which a part is not known
            allows everything.
        where: the beginning of the message.
        signed: allow negative ints.

    Raises:
        ArgumentError: with the value, and what is expected.
    """
    hint = _evaluated(annotation) if isinstance(annotation, str) else annotation
    if name.endswith("_rate") and float in _options(hint) and is_float(value):
        if not 0 <= value < 1:  # type: ignore[operator]
            raise ArgumentError(f"{where}{name}={value!r}: a number from 0 to below 1 is expected.")
        return
    least = 1 if name in _POSITIVE else -math.inf if signed else 0
    if not _fits(value, hint, least):
        words = [_describe(option, least) for option in _options(hint)]
        expected = " or ".join(words).replace("True or False or None", "True, False or None")
        raise ArgumentError(f"{where}{name}={_shown(value)}: {expected} is expected.")


def checked(function: F) -> F:
    """Decorate a public function, or a constructor, so that a wrong value is told as an argument.

    Flags are looked at before it runs, since any value is true or false; None is no flag. The other
    arguments are where it fails with an error of Python's or torch's: what a function checks itself
    it says in better words. Arguments that are missing or unknown are Python's to tell.
    """
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.cache
    def hints() -> dict[str, Any]:
        names = vars(inspect.getmodule(function))
        return {
            parameter.name: _type_of(str(parameter.annotation), names)
            for parameter in signature.parameters.values()
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)
        arguments = [(key, given[key], hint) for key, hint in hints().items() if key in given]
        for key, value, hint in arguments:
            if hint in (bool, bool | None):
                check_value(key, value, bool | None, where=f"{name}: ")
        try:
            return function(*args, **kwargs)
        except FeatnetError:
            raise
        except Exception as error:
            for key, value, hint in arguments:
                try:
                    check_value(key, value, hint, where=f"{name}: ", signed=True)
                except ArgumentError as wrong:
                    raise wrong from error
            raise

    return cast(F, call)


@functools.cache
def _evaluated(annotation: str) -> Any:
    return _type_of(annotation, _NAMES)


def _type_of(annotation: str, names: Mapping[str, Any]) -> Any:
    """Return the type that an annotation names; Any where a part of it is not known."""
    try:
        return eval(annotation, {**names})
    except (NameError, AttributeError, TypeError, SyntaxError):
        return Any


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value: object, hint: Any, least: float) -> bool:
    """Tell if a value is of a type; what is no plain type or collection takes everything."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option, least) for option in args)
    if isinstance(hint, TypeVar):
        return _fits(value, hint.__bound__ or Any, least)
    if hint is Any or hint is None:
        return hint is Any or value is None
    if hint is int:
        return is_int(value) and value >= least  # type: ignore[operator]
    if hint is float:
        return is_float(value)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if origin is Literal:
        return any(value is arg or (isinstance(value, str) and value == arg) for arg in args)
    if origin is type:
        return isinstance(value, type)
    if origin is Callable:
        return callable(value)
    if origin is tuple or origin is Sequence:
        return _is_sequence(value) and _items_fit(value, args, origin is tuple, least)
    if inspect.isclass(origin or hint) and not getattr(origin or hint, "_is_protocol", False):
        is_text = origin is Iterable and isinstance(value, (str, bytes))
        return isinstance(value, origin or hint) and not is_text
    return True


def _is_sequence(value: object) -> TypeGuard[Collection[Any]]:
    """A list, a tuple and their like, an array as well; no string, mapping, set or tensor."""
    if isinstance(value, (str, bytes, Mapping, Set)) or hasattr(value, "requires_grad"):
        return False
    return isinstance(value, Iterable) and hasattr(value, "__len__")


def _items_fit(values: Collection[Any], kinds: tuple[Any, ...], fixed: bool, least: float) -> bool:
    if fixed and kinds[1:] != (...,):
        least = max(least, 1) if least >= 0 else least
        return len(values) == len(kinds) and all(
            _fits(value, kind, least) for value, kind in zip(values, kinds, strict=True)
        )
    return (least < 1 or len(values) > 0) and all(_fits(value, kinds[0], least) for value in values)


def _describe(hint: Any, least: float) -> str:
    """Words for a type, in the singular."""
    origin, args = get_origin(hint), get_args(hint)
    number = "a positive int" if least > 0 else "an int from 0" if least == 0 else "an int"
    words: dict[Any, str] = {None: "None", bool: "True or False", int: number, float: "a number"}
    words |= {type(None): "None", str: "a string", Path: "a path"}
    if hint in (tuple[int, int], tuple[int, int, int]):
        channels = "channels, " if len(args) == 3 else ""
        return f"({channels}height, width) of positive ints"
    if origin is Callable:
        return "a function"
    if origin is type:
        return "a class"
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (tuple, Sequence, Iterable):
        ints = {1: "positive ints", 0: "ints from 0"}.get(int(max(least, -1)), "ints")
        plural = {int: ints, float: "numbers", bool: "bools", str: "strings"}
        items = args[0] if args else Any
        first = plural.get(_options(items)[0], getattr(items, "__name__", "values"))
        return f"a sequence of {first}"
    name = getattr(origin or hint, "__name__", str(hint))
    return words.get(hint) or f"a {'torch.nn.Module' if name == 'Module' else name}"


def _shown(value: object) -> str:
    """The value as it is written in Python, where that is short."""
    text = repr(value) if isinstance(value, (str, bytes, int, float)) else reprlib.repr(value)
    is_short = len(text) <= 80 and "\n" not in text
    return text if is_short else f"<{type(value).__name__}>"


def check_size(size: object, name: str = "size") -> Size:
    """Return (height, width) as ints.

    Raises:
        ArgumentError: it is not two ints.
        InputSizeError: one of them is not positive.
    """
    values = list(size) if isinstance(size, Iterable) and not isinstance(size, (str, bytes)) else []
    if len(values) != 2 or not all(is_int(value) for value in values):
        raise ArgumentError(f"{name}={size!r}: (height, width) in pixels is expected, two ints.")
    height, width = operator.index(values[0]), operator.index(values[1])
    if height < 1 or width < 1:
        raise InputSizeError(f"{name}={size!r}: sides from 1 are expected.")
    return height, width
