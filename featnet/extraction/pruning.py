"""Pruning: remove from a network, in place, what a run of it did not need.

A container (Sequential, ModuleList, ModuleDict) then holds what runs, in order and under its keys.
Of any other module an attribute that is gone is None, as torch registers an absent child or
parameter.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any, NoReturn

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..errors import MissingFeatureError
from ..tracing import structure, trace

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
Again = Callable[[], trace.Run]


def prune(
    model: nn.Module,
    record: trace.Run,
    again: Again,
    *,
    driven: bool,
    also: trace.Run | None = None,
) -> None:
    """Remove, in place, every module and parameter that a run did not need.

    The network's own forward may count on the length of a container, or on the places in it. So the
    run is repeated, and where it is another one, a :class:`Removed` takes each place that is empty.

    Args:
        model: the network, whose tensors' names and keys stay.
        record: the run.
        again: repeats it.
        driven: the network yields its levels and goes no further than the last of them; its run is
            repeated only where containers changed that are read together.
        also: a run in training, whose modules and parameters stay too.
    """
    runs = [record] if also is None else [record, also]
    called = {call.name for each in runs for call in each.calls}
    cuts = keep(model, called, frozenset().union(*(each.used for each in runs)))
    if not cuts or (driven and not is_risky(model, cuts)) or _repeats(again, record):
        return
    for cut in cuts:
        cut.fill()
    for cut in [] if record.real else cuts:  # on zeros each run takes a while
        cut.empty()
        if not _repeats(again, record):
            cut.fill()


def in_training(
    model: nn.Module, record: trace.Run, size: tuple[int, int], until: trace.Places
) -> trace.Run | None:
    """Return a run in training of a network that, cut to what another run needs, fails there: a
    branch that adds noise is gone, for instance. None of any other, and of one that does not run in
    training on images alone.
    """

    def trained(net: nn.Module) -> trace.Run:
        return trace.run(net, size, until=until, through=not until, real=False, training=True)

    trial = structure.clone(model)
    keep(trial, {call.name for call in record.calls}, record.used)
    with contextlib.suppress(Exception):
        trained(trial)
        return None
    with contextlib.suppress(Exception):
        return trained(model)
    return None


def is_risky(model: nn.Module, cuts: Collection[Cut]) -> bool:
    """Say whether places in the containers changed that a forward written for it may count on:
    those behind a gap, and those of containers side by side, which it may zip."""
    pairs = {cut.name: cut for cut in cuts}
    for name, module in model.named_modules():
        parent = name.rpartition(".")[0]
        if not isinstance(module, CONTAINERS):
            continue
        keys = pairs[name].keys if name in pairs else tuple(module._modules)
        for cut in cuts:
            beside = cut.name != name and cut.name.rpartition(".")[0] == parent
            if cut.has_gap or (beside and cut.keys == keys):
                return True
    return False


def _repeats(again: Again, record: trace.Run) -> bool:
    """Say whether the same modules run, on the same sizes."""
    try:
        calls = again().calls
    except Exception:
        return False
    return [(c.name, c.outputs) for c in calls] == [(c.name, c.outputs) for c in record.calls]


class Removed(nn.Module):
    """Stands in a container in the place of a module that was removed, where the network's own
    forward counts on the places of the others."""

    def forward(self, *args: object, **kwargs: object) -> NoReturn:
        raise MissingFeatureError(
            "This module was removed, as no level needs it: make the extractor with prune=False."
        )


def _of_key(container: nn.Module, index: object) -> Any:
    """The child whose key is the index, in place of the child at that position."""
    children = container._modules
    if isinstance(index, int) and str(index) in children:
        return children[str(index)]
    return list(children.values())[index] if isinstance(index, int) else None


class SparseList(nn.ModuleList):
    """A ModuleList some of whose children were removed; the others keep their indices. A negative
    index, and one whose child is gone, counts what is there."""

    def __getitem__(self, index: Any) -> Any:
        return _of_key(self, index) if isinstance(index, int) else super().__getitem__(index)


class SparseSequential(nn.Sequential):
    """A Sequential some of whose children were removed, see :class:`SparseList`."""

    def __getitem__(self, index: Any) -> Any:
        return _of_key(self, index) if isinstance(index, int) else super().__getitem__(index)


SPARSE: dict[type, type] = {nn.ModuleList: SparseList, nn.Sequential: SparseSequential}


@dataclasses.dataclass
class Cut:
    """A container, and what was removed from it.

    Attributes:
        name: of the container.
        keys: of all children that it had.
        gone: of those that were removed.
    """

    name: str
    module: nn.Module
    keys: tuple[str, ...]
    gone: frozenset[str]

    def __post_init__(self) -> None:
        self.kind = type(self.module)
        self.empty()

    @property
    def has_gap(self) -> bool:
        """Tell if one that was removed stood before one that is kept."""
        kept = len(self.keys) - len(self.gone)
        return any(key in self.gone for key in self.keys[:kept])

    def empty(self) -> None:
        """Hold what is kept alone."""
        for key in self.gone:
            del self.module._modules[key]
        if self.has_gap and self.kind in SPARSE:
            self.module.__class__ = SPARSE[self.kind]

    def fill(self) -> None:
        """Hold a :class:`Removed` in the place of each that is gone."""
        children = dict(self.module._modules)
        self.module._modules.clear()
        for key in self.keys:
            self.module._modules[key] = Removed() if key in self.gone else children[key]
        self.module.__class__ = self.kind


def keep(model: nn.Module, called: Collection[str], used: Collection[str]) -> list[Cut]:
    """Remove, in place, every module that is not among ``called`` and holds none of them, and
    every parameter that is not among ``used``.

    What holds no tensors stays beside what is needed, which may call it in another mode (a
    dropout, in training or in the explicit form of attention); but not behind the last child of a
    container that is needed.

    Returns:
        the containers that have less in them.
    """
    needed = set(called) | {name.rpartition(".")[0] for name in used}
    every = list(model.named_modules(remove_duplicate=False))
    running = {id(module) for name, module in every if name in called}
    for name in list(needed):  # a container is needed for what it holds
        while name:
            name = name.rpartition(".")[0]
            needed.add(name)
    cuts: list[Cut] = []
    for name, module in every:
        if name and name not in needed:
            continue  # goes with its parent
        prefix = f"{name}." if name else ""
        spare = {
            child: inner
            for child, inner in module._modules.items()
            if inner is not None and f"{prefix}{child}" not in needed and id(inner) not in running
        }
        if isinstance(module, CONTAINERS):
            gone = _spare_of_container(module, spare, runs=name in called)
            if gone:
                cuts.append(Cut(name, module, tuple(module._modules), frozenset(gone)))
            continue
        for child, inner in spare.items():
            if not name or _has_tensors(inner):
                module._modules[child] = None
    there = [(name, module) for name, module in every if not name or name in needed]
    _keep_tensors(model, there, called, used)
    return cuts


def _spare_of_container(module: nn.Module, spare: Collection[str], *, runs: bool) -> list[str]:
    """Those of the spare children that go; ``runs`` says that the container itself was called."""
    children = module._modules
    last = max((i for i, key in enumerate(children) if key not in spare), default=-1)
    return [
        key
        for i, (key, inner) in enumerate(children.items())
        if key in spare
        and inner is not None
        and (_has_tensors(inner) or (i > last and not runs and not isinstance(inner, _DropoutNd)))
    ]


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))


def _keep_tensors(
    model: nn.Module,
    every: Iterable[tuple[str, nn.Module]],
    called: Collection[str],
    used: Collection[str],
) -> None:
    """Set every parameter to None that is not among ``used``, and take away the buffers of a module
    that did not run, if none is used: the table may be the caller's module's, too."""
    tensors = {  # these and modules may have several names
        id(tensor)
        for named in (model.named_parameters, model.named_buffers)
        for name, tensor in named(remove_duplicate=False)
        if name in used
    }
    for name, module in every:
        for key, parameter in module._parameters.items():
            if id(parameter) not in tensors:
                module._parameters[key] = None
        # One that runs may need them in training only
        if name not in called and tensors.isdisjoint(map(id, module._buffers.values())):
            module._buffers = {}
