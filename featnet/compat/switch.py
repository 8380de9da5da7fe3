"""featnet in the place of timm, for what is imported afterwards."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from types import FunctionType, ModuleType, TracebackType
from typing import Any, Self

from ..errors import ArgumentError
from ..values import checked
from . import modules, options

_on: list[Switch] = []


class Switch:
    """featnet in the place of timm, until :meth:`undo`, or the end of a ``with`` block.

    Attributes:
        rebound: names that held timm and hold featnet now, ``"module.name"``.
        kept: names that hold something of timm's that featnet lacks; they were left as they are.
    """

    def __init__(self, *, flat: bool) -> None:
        self.rebound: list[str] = []
        self.kept: list[str] = []
        self._flat, options.flat = options.flat, flat
        self._saved: dict[str, ModuleType] = {}
        self._before: list[tuple[dict[str, Any], str, Any]] = []
        self._finder = _Finder("timm")

    def _put(self, holders: dict[str, tuple[dict[str, Any], str, Any]]) -> None:
        front = importlib.import_module(modules.FRONT)
        others: dict[str, Any] = {}
        for where, (_, _, value) in holders.items():
            try:
                others[where] = _counterpart(value)
            except (AttributeError, ImportError):
                self.kept.append(where)
        self._saved = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_timm(name)}
        sys.modules["timm"] = front
        sys.meta_path.insert(0, self._finder)
        for where, other in others.items():
            namespace, name, value = holders[where]
            namespace[name] = other
            self._before.append((namespace, name, value))
        self.rebound += others

    def undo(self) -> None:
        """Put timm back, or nothing, as it was before; what was imported meanwhile stays as it is.

        Raises:
            ArgumentError: it was undone before, or another switch was turned on since and is on.
        """
        if self not in _on:
            raise ArgumentError("This use_as_timm() was undone already.")
        if _on[-1] is not self:
            raise ArgumentError(
                "Another use_as_timm() was called after this one and is still on: undo that first, "
                "or use with blocks."
            )
        _on.pop()
        options.flat = self._flat
        if _on:
            return
        for namespace, name, value in reversed(self._before):
            namespace[name] = value
        sys.meta_path.remove(self._finder)
        for name in [name for name in sys.modules if _is_timm(name)]:
            del sys.modules[name]
        sys.modules.update(self._saved)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


@checked
def use_as_timm(*, rebind: bool = False, flat: bool = False) -> Switch:
    """Put ``featnet.compat.timm`` in the place of ``timm``, for what is imported afterwards.

    timm need not be installed. A second call while the first is on changes nothing but ``flat``.

    Args:
        rebind: where modules hold timm already, give them featnet's in its place. Subclasses of
            timm's classes and objects that were made stay what they are.
        flat: features nets have timm's flat children: ``stages_0``, ``stages_1`` in the place of
            ``stages``, for torchvision's IntermediateLayerGetter and code that runs
            ``net.children()`` in turn.

    Returns:
        The switch: ``undo()`` it, or use it in a ``with`` statement.

    Raises:
        ArgumentError: modules hold timm already; it lists them.

    Example:
        >>> with featnet.compat.use_as_timm(rebind=True):  # also where timm is there already
        ...     import timm
        ...     net = timm.create_model("resnet18", features_only=True)
        >>> type(net)
        <class 'featnet.extraction.extractors.FeatureListNet'>
    """
    if _on:
        _on.append(Switch(flat=flat))
        return _on[-1]
    holders = _holders()
    if holders and not rebind:
        where = sorted({name.rpartition(".")[0] for name in holders})
        shown = ", ".join(where[:10]) + (f" and {len(where) - 10} more" if where[10:] else "")
        raise ArgumentError(
            f"It is too late: {shown} hold timm already. Call use_as_timm() before they are "
            "imported, or say rebind=True."
        )
    switch = Switch(flat=flat)
    switch._put(holders)
    _on.append(switch)
    return switch


def _is_timm(name: str) -> bool:
    return name == "timm" or name.startswith("timm.")


def _holders() -> dict[str, tuple[dict[str, Any], str, Any]]:
    """Names in loaded modules that hold something of timm's."""
    if "timm" not in sys.modules:
        return {}
    found: dict[str, tuple[dict[str, Any], str, Any]] = {}
    for owner, module in list(sys.modules.items()):
        if _is_timm(owner) or not issubclass(type(module), ModuleType):
            continue
        for name, value in list(vars(module).items()):
            home = value.__name__ if issubclass(type(value), ModuleType) else _home(value)
            if isinstance(home, str) and _is_timm(home):
                found[f"{owner}.{name}"] = (vars(module), name, value)
    return found


def _home(value: object) -> object:
    """The module of a class or function; None of other values, which may run code when asked."""
    plain = issubclass(type(value), (type, FunctionType))
    return getattr(value, "__module__", None) if plain else None


def _counterpart(value: Any) -> Any:
    """featnet's for a module, class or function of timm's.

    Raises:
        AttributeError, ImportError: featnet has none.
    """
    if isinstance(value, ModuleType):
        return importlib.import_module(modules.FRONT + value.__name__.removeprefix("timm"))
    return modules.look_up(value.__module__.partition(".")[2], value.__name__)


class _Finder(modules.Finder):
    """Finds the modules of ``timm``, and says what is installed under that name."""

    def find_distributions(
        self, context: importlib.metadata.DistributionFinder.Context
    ) -> list[importlib.metadata.Distribution]:
        """Return the facts of the installed package, for a library that asks if timm is there."""
        return [_Timm()] if context.name in (None, "timm") else []


class _Timm(importlib.metadata.Distribution):
    """The metadata of timm's version whose names these are."""

    def read_text(self, filename: str) -> str | None:
        """Return the text of a file of metadata; None of one that there is not."""
        texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: timm\nVersion: {modules.VERSION}\n",
            "top_level.txt": "timm\n",
        }
        return texts.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        """Return where a file would be: nowhere on this machine."""
        raise FileNotFoundError(str(path))
