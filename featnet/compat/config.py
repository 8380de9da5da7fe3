"""timm's settings of layers: featnet has one form, which is exportable and is not scripted."""

from __future__ import annotations

from typing import Self, TypeVar

from ..errors import ArgumentError
from ..layers.phases import Phased, PhasedTokens
from ..layers.windows import pad_to_windows

Registered = TypeVar("Registered")
Kind = TypeVar("Kind", bound=type)


def is_scriptable() -> bool:
    """Return False: there is no torch.jit.script here."""
    return False


def is_exportable() -> bool:
    """Return True: every model goes through ``torch.export``."""
    return True


def is_no_jit() -> bool:
    """Return True: no layer uses torch.jit."""
    return True


def use_fused_attn(experimental: bool = False) -> bool:
    """Return True: attention is torch's fused one; a Backbone has ``set_fused_attn``."""
    return not experimental


_modules: list[type] = []
_functions: list[object] = []


def get_notrace_modules() -> list[type]:
    """Return the classes that ``torch.fx`` must not go into: blocks of attention whose steps depend
    on the size of the map, of the families that are loaded, and those that were registered."""
    blocks = [kind for kind in Phased.__subclasses__() if kind is not PhasedTokens]
    return [*blocks, *_modules]


def get_notrace_functions() -> list[object]:
    """Return the functions that ``torch.fx`` must not go into: those that were registered, and what
    looks at a map's size."""
    return [pad_to_windows, *_functions]


def register_notrace_module(module: Kind) -> Kind:
    """Decorate a class that ``torch.fx`` must not go into."""
    _modules.append(module)
    return module


def register_notrace_function(name_or_fn: Registered) -> Registered:
    """Decorate a function that ``torch.fx`` must not go into."""
    _functions.append(name_or_fn)
    return name_or_fn


class _Setting:
    """A context that changes nothing."""

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        return None


class set_exportable(_Setting):  # timm's names
    """Accept either value: every model is exportable."""


class set_no_jit(_Setting):
    """Accept either value: no model uses torch.jit."""


class set_scriptable(_Setting):
    """Accept False.

    Raises:
        ArgumentError: True; torch.jit.script is not supported.
    """

    def __init__(self, mode: bool = True) -> None:
        if mode:
            raise ArgumentError(
                "set_scriptable(True): torch.jit.script is not supported; use torch.export, "
                "torch.jit.trace or torch.compile."
            )
        super().__init__(mode)


class set_layer_config(_Setting):
    """Accept what the other settings accept."""

    def __init__(self, scriptable: bool | None = None, **_others: object) -> None:
        super().__init__(bool(scriptable))
        if scriptable:
            set_scriptable(True)
