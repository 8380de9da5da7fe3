"""The levels of a network that yields them: run one after the other, and watched on the meta
device."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Any, cast

import torch
from torch import nn

from ..errors import DeclarationError
from .network import Enough, Network, Yielded
from .watch import Watch, tensors

END: Any = object()  # of a generator


def visit(model: Network, x: torch.Tensor, enough: Enough) -> tuple[Yielded, bool]:
    """Run a network with ``forward_levels``, giving each level's index and value to ``enough``,
    until that is true. Returns the last value, and whether there was enough.

    No level is held while the next one is computed, so that memory is what the network itself
    needs.

    Raises:
        DeclarationError: more or fewer values than levels, or no generator.
    """
    levels = start(model, x)
    y, done = follow(model, levels, enough)
    if not done:
        check_end(model, levels)
    return y, done


def start(model: Network, x: torch.Tensor) -> Iterator[Yielded]:
    """The generator of the levels.

    Raises:
        DeclarationError: ``forward_levels`` is none, or there are no levels.
    """
    if not model._levels:
        raise undeclared(type(model).__name__)
    levels = model.forward_levels(x)
    if not hasattr(levels, "__next__"):
        raise DeclarationError(
            f"{type(model).__name__}.forward_levels returns a {type(levels).__name__}: it must be "
            "a generator, that yields each level's value as soon as it is computed."
        )
    return levels


def follow(model: Network, levels: Iterator[Yielded], enough: Enough) -> tuple[Yielded, bool]:
    """:func:`visit`, without a look at what comes after the last level."""
    y: Yielded = None
    for index in range(len(model._levels)):
        y = None
        y = next(levels, END)
        if y is END:
            raise _miscounted(model, index)
        if enough(index, y):
            return y, True
    return y, False


def check_end(model: Network, levels: Iterator[Yielded]) -> None:
    """Refuse a generator that yields something behind the last level."""
    if next(levels, END) is not END:
        raise _miscounted(model, len(model._levels) + 1)


def undeclared(name: str) -> DeclarationError:
    """The error of a class that declares no level."""
    return DeclarationError(
        f"{name} declares no level: add_stage, or add_level, declares one in __init__."
    )


def _miscounted(model: Network, count: int) -> DeclarationError:
    name, levels = type(model).__name__, model._levels
    rows = ", ".join(f"{level.index}: {level.module!r}" for level in levels)
    if count > len(levels):
        much = f"more than the {len(levels)} levels"
        cure = "Declare the other levels too; what follows the last one belongs in finish."
    else:
        much = f"only {count} of the {len(levels)} levels"
        cure = f"Yield level {count}, {levels[count].module!r}, too, or do not declare it."
    return DeclarationError(
        f"{name}.forward_levels yields {much} that it declares ({rows}). {cure}"
    )


def drive(model: Network, x: torch.Tensor, enough: Enough) -> object:
    """:func:`visit` and, where there was not enough, on through the head. Returns the last of what
    the network came to."""
    y, done = visit(model, x, enough)
    return y if done else model.forward_head(model.finish(y))


@dataclasses.dataclass(frozen=True)
class Level:
    """One value that ``forward_levels`` yielded.

    Attributes:
        kind: name of the value's class.
        shape: of the level's map, where the map was wanted; of what is no tensor ().
        maker: name of the declared level whose module put the value out, where it is another one.
        own: the level's own module put the value out, or that cannot be said: it does so later, or
            the value is no tensor.
    """

    kind: str
    shape: torch.Size | None
    maker: str | None = None
    own: bool = True


class LevelWatch:
    """``enough`` of a run on the meta device: keeps what the levels are, and asks for the maps of
    those that are wanted.

    Args:
        network: a copy, whose modules may be hooked.
        watch: of its modules; the run ends when that has seen what it waits for.
        wanted: indices of levels, by default of all that were not pruned. Without a module to wait
            for the run ends with the last of them.
        norm: which levels are read under the network's final norm.
        onward: the run goes on through the head.
    """

    def __init__(
        self,
        network: Network,
        watch: Watch,
        *,
        wanted: Collection[int] | None,
        norm: Collection[int],
        onward: bool,
    ) -> None:
        self.network, self.watch, self.norm = network, watch, norm
        self.kept: list[object] = []
        self.shapes: dict[int, torch.Size] = {}
        self.yielded: list[Level] = []
        self._made: list[tuple[int, torch.Tensor]] = []  # level, what its module put out
        modules = dict(cast(nn.Module, network).named_modules(remove_duplicate=False))
        there = [level for level in network._levels if level.module in modules]
        for level in there:
            if level.hook_type == "forward":
                modules[level.module].register_forward_hook(self._record(level.index))
        self.wanted = {level.index for level in there} if wanted is None else {*wanted}
        self.last = None if onward or watch.until else max(self.wanted, default=0)
        self.maps = not onward and (wanted is not None or not watch.until)

    def _record(self, index: int) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            self._made += [(index, tensor) for tensor in tensors(output)]

        return hook

    def _makers(self, y: Yielded) -> list[int] | None:
        """Indices of the levels whose modules put out a value; None if that cannot be said."""
        first = y[0] if isinstance(y, tuple) and y else y
        if not isinstance(first, torch.Tensor):
            return None
        return [index for index, tensor in self._made if tensor is first]

    def __call__(self, index: int, y: Yielded) -> bool:
        network, shape = self.network, None
        kind, makers = type(y).__name__, self._makers(y)
        own = makers is None or index in makers or network._levels[index].hook_type != "forward"
        maker = None if own or not makers else network._levels[makers[0]].module
        if self.maps and index in self.wanted:
            if index in self.norm:
                y = network.normalize(y, index)
            image = network.as_map(y)
            shape = getattr(image, "shape", torch.Size())
            self.kept.append((y, image))
            self.shapes[index] = shape
        elif (network._levels[index].module, "forward") in self.watch.waiting:
            network.as_map(y)  # what only this level needs may run there
        self.yielded.append(Level(kind, shape, maker, own))
        return self.watch.done or index == self.last
