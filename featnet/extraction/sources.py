"""Sources: where an extractor's maps come from, chosen once, when it is built.

    Driven          a Backbone, whose generator is run up to the last level
    HookedLevels    a Backbone, whose levels' modules are hooked
    Hooked          any module's own forward; hooks on the modules that its declaration names
    Tapped          any module's own forward, hooks on any modules: values as they are
    Returned        a module that was rewritten to return its levels

A source has no network: that is given to every call, since a copy of the extractor has another one.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..backbone import Backbone, LevelReader
from ..contract import check_hooks, check_run
from ..errors import DeclarationError, MissingFeatureError
from ..features import Feature
from ..inputs import check_input, explain_size
from ..layers import Tokens
from ..size import Size
from ..tracing import trace
from . import declared, layout
from .hooks import FeatureHooks, Tap, Taps, resolve_taps

Shapes = Mapping[int, torch.Size]


class Source(abc.ABC):
    """A source of an extractor's maps.

    Args:
        levels: all levels of the network.
        indices: of those that come out, in that order.
        read: turns a level's value into what comes out.

    Attributes:
        selectable: other levels may be selected later.
    """

    selectable = True

    def __init__(
        self, levels: Sequence[Feature], indices: Sequence[int], read: LevelReader
    ) -> None:
        self.levels, self.indices, self.read = tuple(levels), tuple(indices), read

    @abc.abstractmethod
    def prepare(self, body: nn.Module, size: Size) -> trace.Run:
        """Run the network on the meta device, as far as the levels need it, and hold the levels to
        what that shows."""

    @abc.abstractmethod
    def run(self, body: nn.Module, size: Size, watched: trace.Which | None = None) -> trace.Run:
        """Run it on the meta device as far as a call goes."""

    @abc.abstractmethod
    def maps(self, body: nn.Module, x: torch.Tensor) -> list[Any]:
        """(N, C, H, W) -> what comes out, in the order asked."""

    @abc.abstractmethod
    def shapes(self, body: nn.Module, size: Size) -> Shapes:
        """Index to the shape of the level, of those that are kept."""

    @property
    def outputs(self) -> frozenset[str]:
        """Names of the modules whose output comes out."""
        return frozenset(self.levels[i].module for i in self.indices)


# A Backbone -------------------------------------------------------------------------------------


class Driven(Source):
    """A Backbone, whose generator is run up to the last level asked for."""

    def prepare(self, body: nn.Module, size: Size) -> trace.Run:
        record = self.run(body, size)
        check_run(body, self.levels, record, size, small=2.0)
        return record

    def run(self, body: nn.Module, size: Size, watched: trace.Which | None = None) -> trace.Run:
        return run_levels(body, size, self.indices, self.read, watched=watched)

    def maps(self, body: nn.Module, x: torch.Tensor) -> list[Any]:
        network, wanted, read = cast(Backbone, body), self.indices, self.read
        check_input(x, network.in_chans)
        maps: dict[int, Any] = {}
        last = max(wanted)

        def enough(index: int, y: trace.Yielded) -> bool:
            if index in wanted:
                maps[index] = read(network, y, index)
            return index == last

        with explain_size(network, x.shape[-2:], x):
            trace.visit(network, x, enough)
        return [maps[index] for index in wanted]

    def shapes(self, body: nn.Module, size: Size) -> Shapes:
        return shapes_of_levels(body, size, self)


def run_levels(
    body: nn.Module,
    size: Size,
    indices: Sequence[int],
    read: LevelReader,
    *,
    until: trace.Places = frozenset(),
    watched: trace.Which | None = None,
) -> trace.Run:
    """A Backbone's run up to the last of some levels, as they will be read."""
    norm = indices if read.norm else ()
    return trace.run(body, size, levels=indices, norm=norm, until=until, watched=watched)


def shapes_of_levels(body: nn.Module, size: Size, source: Source) -> Shapes:
    """Shapes of a Backbone's levels, up to the last that comes out."""
    there = {name for name, _ in body.named_modules(remove_duplicate=False)}
    last = max(source.indices)
    kept = [f.index for f in source.levels[:last] if f.module in there] + [last]
    record = run_levels(body, size, kept, source.read, watched=trace.no_modules)
    check_run(body, source.levels, record, size)
    return record.levels


# Hooks ------------------------------------------------------------------------------------------


class Hooked(Source):
    """The network's own forward, and hooks on the modules that a declaration names. The forward
    ends with the last of them."""

    selectable = False
    hooks: FeatureHooks

    def prepare(self, body: nn.Module, size: Size) -> trace.Run:
        record = self._attach(body, self._taps(), size)
        names = (level.module for level in self._asked)
        shapes = dict(zip(names, self._read(record), strict=True))
        self.levels = declared.check(self.levels, self.indices, shapes, size=size)
        return record

    @property
    def _asked(self) -> list[Feature]:
        return [self.levels[index] for index in self.indices]

    def _taps(self) -> list[Tap]:
        return [Tap(level.module, kind=level.hook_type) for level in self._asked]

    def _attach(self, body: nn.Module, taps: Taps, size: Size) -> trace.Run:
        """Hook modules; find what must run, and what is overwritten afterwards."""
        resolved = resolve_taps(body, taps)
        whole = self._whole(body, size, resolved)
        for tap in resolved:
            count = sum(call.name == tap.module for call in whole.calls)
            if count == 0 or (count > 1 and tap.which is None):
                raise MissingFeatureError(
                    f"{tap.module!r} runs {count} times in one forward"
                    + (": say Tap(..., which='first'), 'last' or 'all'." if count else ".")
                )
        self.hooks = FeatureHooks(body, resolved, rewritten=whole.rewritten)
        return self._shortened(body, size, whole)

    def _whole(self, body: nn.Module, size: Size, taps: Sequence[Tap]) -> trace.Run:
        return run_through(body, size)

    def _shortened(self, body: nn.Module, size: Size, whole: trace.Run) -> trace.Run:
        return self.run(body, size) if self.hooks.can_stop else whole

    def _read(self, record: trace.Run) -> list[torch.Size]:
        """Shapes of what the hooks read: of each the tensor that is the level, else the first."""
        before = {call.name: call.inputs for call in record.calls}
        after = {call.name: call.outputs for call in record.calls}
        items = {level.module: level.item for level in self.levels}
        shapes = []
        for tap in self.hooks.taps:
            tensors = (before if tap.kind == "forward_pre" else after)[tap.module]
            item = items.get(tap.module, 0)
            if len(tensors) <= item:
                which = f"only {len(tensors)} of the {item + 1} tensors" if item else "no tensor"
                raise MissingFeatureError(f"{tap.module!r} gives {which}.")
            shapes.append(tensors[item])
        return shapes

    def run(self, body: nn.Module, size: Size, watched: trace.Which | None = None) -> trace.Run:
        until = self.hooks.places if self.hooks.can_stop else frozenset[tuple[str, str]]()
        return trace.run(body, size, until=until, through=not until, watched=watched)

    def maps(self, body: nn.Module, x: torch.Tensor) -> list[Any]:
        values = self.collect(body, x).values()
        return read_declared(body, x, values, self._asked, self.read)

    def shapes(self, body: nn.Module, size: Size) -> Shapes:
        return dict(zip(self.indices, self._read(self.run(body, size)), strict=True))

    def collect(self, body: nn.Module, x: torch.Tensor) -> dict[Any, Any]:
        """Key to value of what the hooks read, in the order of the taps."""
        values: dict[Any, Any] = {}
        outer = self.hooks.begin(values, stop=True)
        try:
            body(x)
        except trace.Stop:
            pass
        finally:
            self.hooks.end(outer)
        return self.hooks.ordered(values)

    @property
    def outputs(self) -> frozenset[str]:
        return frozenset(name for name, kind in self.hooks.places if kind == "forward")


class HookedLevels(Hooked):
    """A Backbone, whose levels' modules are hooked: driven, so that its head need not be there."""

    def prepare(self, body: nn.Module, size: Size) -> trace.Run:
        record = self._attach(body, self._taps(), size)
        name = type(body).__name__
        check_run(body, self.levels, record, size, small=2.0)
        check_hooks(name, self.levels, record)
        return record

    def _whole(self, body: nn.Module, size: Size, taps: Sequence[Tap]) -> trace.Run:
        # what a module is given is there after its level was yielded
        inside = any(tap.kind == "forward_pre" for tap in taps)
        until = frozenset((tap.module, tap.kind) for tap in taps) if inside else frozenset()
        return run_levels(body, size, self.indices, self.read, until=until)

    def _shortened(self, body: nn.Module, size: Size, whole: trace.Run) -> trace.Run:
        return whole

    def maps(self, body: nn.Module, x: torch.Tensor) -> list[Any]:
        values = self.collect(body, x).values()
        return [self.read(body, y, i) for y, i in zip(values, self.indices, strict=True)]

    def shapes(self, body: nn.Module, size: Size) -> Shapes:
        return shapes_of_levels(body, size, self)

    def collect(self, body: nn.Module, x: torch.Tensor) -> dict[Any, Any]:
        places: dict[str, tuple[Size, int]] = {}  # of levels whose modules put out bare tokens

        def note(name: str, y: trace.Yielded) -> bool:
            if isinstance(y, Tokens):
                places[name] = y.grid, y.prefix
            return isinstance(y, Tokens)

        values = collect_driven(self.hooks, cast(Backbone, body), x, note)
        for name in places.keys() & values.keys():
            if not isinstance(values[name], Tokens):
                values[name] = Tokens(values[name], *places[name])
        return values


AS_IT_IS = LevelReader(nn.Identity(), norm=None, output_fmt="NCHW", prefix_tokens=False)


class Tapped(Hooked):
    """Any module's own forward, and hooks on any modules: values as they are.

    Args:
        taps: the modules.
    """

    def __init__(self, taps: Taps) -> None:
        super().__init__((), (), AS_IT_IS)
        self._asked_for: Taps | None = taps

    def prepare(self, body: nn.Module, size: Size) -> trace.Run:
        taps, self._asked_for = self._asked_for, None
        assert taps is not None
        record = self._attach(body, taps, size)
        self.levels = tuple(
            layout.feature(shape, size, module=tap.module, index=index)
            for index, (tap, shape) in enumerate(
                zip(self.hooks.taps, self._read(record), strict=True)
            )
        )
        self.indices = tuple(range(len(self.levels)))
        return record

    def maps(self, body: nn.Module, x: torch.Tensor) -> list[Any]:
        return list(self.collect(body, x).values())


class TappedBackbone(Tapped):
    """:class:`Tapped`, of a Backbone, which can stop between its levels."""

    def collect(self, body: nn.Module, x: torch.Tensor) -> dict[Any, Any]:
        return collect_driven(self.hooks, cast(Backbone, body), x, lambda name, y: False)


def collect_driven(
    hooks: FeatureHooks, body: Backbone, x: torch.Tensor, note: Callable[[str, trace.Yielded], bool]
) -> dict[Any, Any]:
    """Key to value of what the hooks read while the levels run. ``note`` is given each level's name
    and value, and says whether the value is all that there is to it."""
    levels = body._levels
    values: dict[Any, Any] = {}

    def enough(index: int, y: trace.Yielded) -> bool:
        name = levels[index].module
        if not note(name, y) and name in hooks.missing(values):
            body.as_map(y)  # what only this level needs may run there
        return not hooks.missing(values)

    # Between levels is a place to stop without an exception, which tracers like better
    between = hooks.places <= {(level.module, "forward") for level in levels}
    outer = hooks.begin(values, stop=not between)
    try:
        check_input(x, body.in_chans)
        with explain_size(body, x.shape[-2:], x):
            trace.drive(body, x, enough)
    except trace.Stop:
        pass
    finally:
        hooks.end(outer)
    return hooks.ordered(values)


def run_through(body: nn.Module, size: Size) -> trace.Run:
    """A run to the network's end.

    Raises:
        TraceError: it does not run.
    """
    try:
        return trace.run(body, size, through=True)
    except DeclarationError:
        raise
    except Exception as error:
        raise trace.does_not_run(body, size, error) from error


# A rewritten forward ----------------------------------------------------------------------------


class Returned(Source):
    """A module that was rewritten to return its levels."""

    def prepare(self, body: nn.Module, size: Size) -> trace.Run:
        record = self.run(body, size)
        shapes = declared.returned(body, record, self.levels)
        self.levels = declared.check(self.levels, self.indices, shapes, size=size)
        return record

    def run(self, body: nn.Module, size: Size, watched: trace.Which | None = None) -> trace.Run:
        return trace.run(body, size, watched=watched)

    def maps(self, body: nn.Module, x: torch.Tensor) -> list[Any]:
        values = declared.values(body(x))
        levels = [self.levels[i] for i in self.indices]
        return read_declared(body, x, [values[i] for i in self.indices], levels, self.read)

    def shapes(self, body: nn.Module, size: Size) -> Shapes:
        return self.run(body, size, trace.no_modules).levels


def read_declared(
    body: nn.Module,
    x: torch.Tensor,
    values: Iterable[Any],
    levels: Sequence[Feature],
    read: LevelReader,
) -> list[Any]:
    """Values of modules that a declaration names -> what comes out."""
    pairs = zip(values, levels, strict=True)
    return [read(body, layout.to_map(y, level, x.shape), level.index) for y, level in pairs]
