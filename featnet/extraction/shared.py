"""Extractors of a network that the caller keeps: two structures over the same tensors, which stay
one.

A conversion (``double()``, ``half()``, ``to()``) writes into the parameters that it finds, and puts
new buffers into the tables of the modules. These tables are therefore shared too
(:func:`featnet.tracing.structure.view`), so that an extractor follows its network; and a conversion
of an extractor goes on to the rest of the network.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import nn

from ..errors import ArgumentError


class Origin:
    """The network that an extractor was made from, as long as the caller keeps it. A copy has
    none."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model: Callable[[], nn.Module | None]
        self._model = (lambda: None) if model is None else weakref.ref(model)
        self._witness: tuple[dict[str, Any], str, Any] | None = None
        for module in () if model is None else model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    self._witness = self._witness or (module._parameters, name, parameter)

    def __reduce__(self) -> tuple[Any, ...]:
        return Origin, ()

    def __call__(self) -> nn.Module | None:
        """Return the network, or None."""
        return self._model()

    @property
    def replaced(self) -> bool:
        """Tell if the network has got other parameters than those that were shared."""
        if self._witness is None or self._model() is None:
            return False
        table, name, parameter = self._witness
        return table.get(name) is not parameter


class SharedNet(nn.Module):
    """A module over the tensors of a network; see this file."""

    _origin: Origin

    def _share(self, model: nn.Module | None) -> None:
        """Remember a network that the caller keeps; of an extractor the one that it was made
        from."""
        if isinstance(model, SharedNet):
            model = model._origin() or model
        self.__dict__["_origin"] = Origin(model)

    def _check_shared(self) -> None:
        """Refuse to run on tensors that the network no longer has.

        Raises:
            ArgumentError: with what to do.
        """
        if not torch.compiler.is_compiling() and self._origin.replaced:
            name = type(self._origin()).__name__
            raise ArgumentError(
                f"The {name} that this {type(self).__name__} was made from has got new parameters "
                "since (to_empty(), load_state_dict(assign=True) or .to() from or to the meta "
                "device replace them): make the extractor anew, or convert the extractor instead."
            )

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        model = self._origin()
        if model is not None and recurse:
            before = [(p, t, key) for t in _tables(model) for key, p in t.items() if p is not None]
            model._apply(fn)  # type: ignore[no-untyped-call]  # what is shared, and what only the network has
            others = {id(p): t[key] for p, t, key in before if t[key] is not p}
            for table in _tables(self):
                table.update({k: others[id(p)] for k, p in table.items() if id(p) in others})
            self._share(model)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


def _tables(model: nn.Module) -> list[dict[str, Any]]:
    return [module._parameters for module in model.modules()]
