"""Modules with timm's names, made from the tables when they are imported."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .. import registry
from ..errors import FeatnetError, nearest
from . import names

VERSION = "1.0.31"  # of timm, whose names these are
FRONT = "featnet.compat.timm"


class NotHereError(FeatnetError, NotImplementedError):
    """A name of timm's that featnet has nothing for."""


@functools.cache
def peer_names() -> dict[str, frozenset[str]]:
    """Return what timm has: module (``layers``, ``models.resnet``) to its public names, and
    ``builds.resnet`` to the models of that module."""
    lines = Path(__file__).with_name("timm_names.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.partition(":") for line in lines)
    return {key.strip("."): frozenset(words.split()) for key, _, words in rows}


@functools.cache
def peer_models() -> dict[str, str]:
    """Return timm's models, each with the module that it is in."""
    return {
        name: path.removeprefix("builds.")
        for path, names in peer_names().items()
        if path.startswith("builds.")
        for name in names
    }


@functools.cache
def families() -> dict[str, tuple[str, ...]]:
    """Return timm's modules of families, each with the files of featnet's that have its models."""
    files: dict[str, dict[str, None]] = {}
    for name, module in peer_models().items():
        if registry.is_model(name):
            files.setdefault(module, {})[registry.family_of(name)] = None
    return {module: tuple(names) for module, names in files.items()}


@functools.cache
def table(path: str) -> dict[str, str]:
    """Return a module's names, each with its place, ``"module:name"``.

    Args:
        path: of the module below timm; ``""`` is timm itself.

    Raises:
        KeyError: there is no such module.
    """
    path = names.SAME.get(path, path)
    whole, _, part = path.partition(".")
    path = "layers" if whole == "layers" and part in names.LAYERS else path
    rows = names.NAMES.get(path)
    module = path.removeprefix("models.")
    homes = families().get(module, ()) if module != path else ()
    if rows is None and not homes and not is_lacking(path):
        raise KeyError(path)
    found: dict[str, str] = {}
    for home, words in (rows or {}).items():
        for word in words.split():
            name, _, there = word.partition("=")
            found[name] = f"{home}:{there or name}"
    for word in names.CLASSES.get(module, "").split() if homes else ():
        name, _, there = word.partition("=")
        found[name] = f"featnet.models.{homes[0]}:{there or name}"
    return found


def listed(path: str) -> list[str]:
    """Return the names of a module, for ``from ... import *``."""
    return sorted(table(path))


def is_lacking(path: str) -> bool:
    """Tell if a module is that of a family of timm's that featnet does not have. It can be
    imported, for code that asks with isinstance."""
    family = path.removeprefix("models.")
    return path != family and f"builds.{family}" in peer_names() and family not in families()


def is_module(path: str) -> bool:
    """Tell if timm has a module of this path, and featnet names for it."""
    try:
        table(path)
    except KeyError:
        return False
    return True


def look_up(path: str, name: str) -> Any:
    """Return what a name of timm's stands for.

    Args:
        path: of the module below timm; ``""`` is timm itself.
        name: of a class, function, value or module in it.

    Raises:
        AttributeError: featnet has nothing under that name; with the nearest, and whether timm
            itself has it.
    """
    place = table(path).get(name) if is_module(path) else None
    if place is not None:
        home, _, there = place.partition(":")
        return getattr(importlib.import_module(home), there)
    if not name.startswith("__"):
        below = f"{path}.{name}".strip(".")
        if is_module(below):
            return importlib.import_module(f"{FRONT}.{below}")
        if f"{path}.".startswith("models.") and registry.is_model(name):
            return importlib.import_module(names.CREATION).entrypoint(name)
        if names.SAME.get(path, path) == "models" and name in peer_names()["models"]:
            for family in _having(name):
                return look_up(family, name)
        if is_lacking(path) and name in peer_names()[path]:
            return _refused(name, "it is of a family that featnet lacks; that code needs timm.")
        if name in names.REFUSED:
            return _refused(name, names.REFUSED[name])
    raise AttributeError(missing(path, name))


def _having(name: str) -> Iterator[str]:
    """Yield the modules of families whose class a name is, which timm.models has too."""
    for path, theirs in peer_names().items():
        known = path.startswith("models.") and is_module(path)
        if known and name in (theirs if is_lacking(path) else table(path)):
            yield path


def missing(path: str, name: str) -> str:
    """Say that featnet lacks a name of timm's."""
    full = f"timm.{path}".strip(".")
    whole = names.SAME.get(path, path)
    whole = "layers" if whole.startswith("layers.") else whole
    theirs = peer_names()
    module = f"{whole}.{name}".strip(".") in theirs
    has = module or name in theirs.get(whole, ()) or name in peer_models()
    says = f" timm {VERSION} itself has it: that code needs timm, without use_as_timm()."
    try:
        near = nearest(name, table(path))
    except KeyError:
        near = ""
    return f"featnet has no {full}.{name}.{near}{says if has else ''}"


def _refused(name: str, why: str) -> Any:
    """A class that can be imported and asked about, and says what to use when it is called."""

    def refuse(*_args: object, **_options: object) -> NoReturn:
        raise NotHereError(f"featnet has no {name} of timm's: {why}")

    return type(name, (), {"__new__": refuse, "__doc__": why})


def accessors(path: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a module."""
    return functools.partial(look_up, path), functools.partial(listed, path)


class Finder(importlib.abc.MetaPathFinder):
    """Find the modules below :mod:`featnet.compat.timm`, and below ``timm`` where that is put in
    its place.

    Every module is a package, so that Python asks here for a name that a ``from ... import`` did
    not find: the error can then say more than that.
    """

    def __init__(self, front: str) -> None:
        self.front = front

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module below the front.

        Raises:
            ModuleNotFoundError: it has no such module, or name.
        """
        if not fullname.startswith(f"{self.front}."):
            return None
        below = fullname[len(self.front) + 1 :]
        if not is_module(below):
            parent, _, name = below.rpartition(".")
            raise ModuleNotFoundError(missing(parent, name), name=self.front)
        return importlib.machinery.ModuleSpec(fullname, Loader(below), is_package=True)


class Loader(importlib.abc.Loader):
    """Make a module from its table; under ``timm`` it is the one of :mod:`featnet.compat.timm`."""

    def __init__(self, path: str) -> None:
        self.path = path

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """Return None: a module as Python makes it."""

    def exec_module(self, module: ModuleType) -> None:
        """Fill a module, or put the one that is there in its place."""
        full = f"{FRONT}.{self.path}"
        if module.__name__ != full:
            sys.modules[module.__name__] = importlib.import_module(full)
            return
        module.__doc__ = f"The names of ``timm.{self.path}`` over featnet."
        module.__dict__["__all__"] = listed(self.path)
        module.__dict__["__getattr__"], module.__dict__["__dir__"] = accessors(self.path)


_FINDER = Finder(FRONT)


def install() -> None:
    """Let Python find the modules of :mod:`featnet.compat.timm`."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
