"""The extractors: a network seen from another forward, which returns its levels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..backbone import Backbone, LevelReader
from ..errors import ArgumentError, MissingFeatureError, TraceError, nearest
from ..features import Feature, FeatureInfo, output_keys, resolve, resolve_strides
from ..inputs import check_input, explain_size
from ..layers import Tokens
from ..tracing import structure, trace
from . import declared, layout
from .declared import Declaration
from .hooks import FeatureHooks, Tap, Taps, resolve_taps

REGISTRIES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")

# What an extractor answers with its network's words
SHARED = frozenset(
    {
        "default_cfg",
        "drop_rate",
        "group_matcher",
        "in_chans",
        "no_weight_decay",
        "num_prefix_tokens",
        "output_strides",
        "pretrained_cfg",
        "set_fused_attn",
        "set_grad_checkpointing",
        "size_divisibility",
    }
)


class FeatureNet(nn.Module):
    """What the extractors have in common; use one of its subclasses.

    An extractor shares the registries of the network it was built from, so that modules and
    state-dict keys keep their names. What the levels do not need is pruned. A network that the
    caller keeps is left as it was: the extractor has a structure of its own over the same tensors.

    Args:
        model: a Backbone, or any module with a ``feature_info`` (a list of dicts in timm's or
            MindCV's vocabulary) whose modules of those names put out the levels.
        out_indices: which levels, in which order (see :func:`featnet.features.resolve`).
        out_strides: which levels, by their reductions.
        out_map: names of the levels that come out, in their order, for dicts.
        output_fmt: layout of the maps: ``NCHW``, ``NHWC``, ``NLC``.
        norm: under the network's final norm; None: as ``model.dense_norm`` says.
        return_prefix_tokens: ``(map, prefix tokens)`` in place of each map.
        feature_info: the levels of a model that declares none, :func:`featnet.discover`'s for
            instance.
        prune: remove what no level needs.
        copy: leave the caller's model alone. False takes it over.

    Raises:
        ArgumentError, OutIndexError, MissingFeatureError: see there.
    """

    body: nn.Module

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        *,
        out_strides: Sequence[int] | None = None,
        out_map: Sequence[str] | Mapping[str, str] | None = None,
        output_fmt: str = "NCHW",
        norm: bool | None = None,
        return_prefix_tokens: bool = False,
        feature_info: Declaration | None = None,
        prune: bool = True,
        copy: bool = True,
    ) -> None:
        super().__init__()
        structure.check_module(model)
        given, model = model, model.body if isinstance(model, FeatureNet) else model
        read = LevelReader(
            model, norm=norm, output_fmt=output_fmt, prefix_tokens=return_prefix_tokens
        )
        self._read, self.output_fmt = read, output_fmt
        levels = tuple(read.level(model, level) for level in self._declared(model, feature_info))
        if out_strides is not None:
            if out_indices is not None:
                raise ArgumentError("Give out_indices or out_strides, not both.")
            out_indices = resolve_strides(out_strides, levels)
        self._adopt(structure.clone(model) if copy else model)
        self._levels = levels
        self._features_only = FeatureInfo(levels, out_indices).out_indices
        self._indices = resolve(self._features_only, levels) if levels else ()
        self._keys = output_keys(out_map, [levels[i].module for i in self._indices])
        self._deepest = max(self._indices, default=0) if prune else len(levels) - 1
        self._hooks: FeatureHooks | None = None
        self._raw = False  # what taps find is given as it is
        try:
            self._setup(prune)
        except TraceError as error:
            if model is given:
                raise
            raise ArgumentError(
                f"{type(given).__name__} is an extractor, whose {type(model).__name__} was cut to what "
                "it needs and does not run to its end: give the model that it was made from."
            ) from error

    def _declared(self, model: nn.Module, given: Declaration | None) -> tuple[Feature, ...]:
        return declared.levels(model, given)

    def _adopt(self, body: nn.Module) -> None:
        for name in REGISTRIES:
            self.__dict__[name] = body.__dict__[name]
        self.__dict__["body"] = body  # not a child: same tensors, same names
        self.training = body.training

    def _setup(self, prune: bool) -> None:
        """Find out what the levels need, on the meta device."""
        size = trace.probe_size(self.body)
        if isinstance(self.body, Backbone):
            seen = self._run_levels(size)
        else:
            seen = self._setup_declared(size)
        if prune:
            trace.prune(self.body, seen)

    def _setup_declared(self, size: tuple[int, int]) -> trace.Run:
        """Hook the modules that a declaration names, and hold the declaration to what they do."""
        if declared.returns_levels(self.body):
            seen = trace.run(self.body, size)
            shapes = declared.returned(self.body, seen, self._levels)
        else:
            seen = self._tap(self._level_taps(), size)
            shapes = self._shapes(seen)
        self._levels = declared.check(self._levels, self._indices, shapes, size=size)
        return seen

    def _run_levels(self, size: tuple[int, int], until: trace.Places = frozenset()) -> trace.Run:
        """A Backbone's run up to the last level, as it will be read."""
        norm = self._indices if self._read.norm else ()
        return trace.run(self.body, size, levels=self._indices, norm=norm, until=until)

    def _run_through(self, size: tuple[int, int]) -> trace.Run:
        try:
            return trace.run(self.body, size, through=True)
        except Exception as error:
            raise TraceError(
                f"{type(self.body).__name__} does not run on an input of {size[0]} x {size[1]}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _level_taps(self) -> list[Tap]:
        return [Tap(self._levels[i].module, kind=self._levels[i].hook_type) for i in self._indices]

    def _tap(self, taps: Taps, size: tuple[int, int]) -> trace.Run:
        """Hook modules; find what must run, and what is overwritten afterwards."""
        found = resolve_taps(self.body, taps)
        places = frozenset((tap.module, tap.kind) for tap in found)
        driven = bool(self._indices) and isinstance(self.body, Backbone)
        if driven:  # levels: the head need not be there
            inside = any(tap.kind == "forward_pre" for tap in found)  # read after its level's yield
            whole = self._run_levels(size, places if inside else frozenset())
        else:
            whole = self._run_through(size)
        for tap in found:
            count = sum(call.name == tap.module for call in whole.calls)
            if count == 0 or (count > 1 and tap.which is None):
                raise MissingFeatureError(
                    f"{tap.module!r} runs {count} times in one forward"
                    + (": say Tap(..., which='first'), 'last' or 'all'." if count else ".")
                )
        self._hooks = FeatureHooks(self.body, found, rewritten=whole.rewritten)
        if self._hooks.can_stop and not driven:
            return trace.run(self.body, size, until=places)
        return whole

    # The forward --------------------------------------------------------------------------

    def _maps(self, x: torch.Tensor) -> list[Any]:
        """The levels asked for, in the order asked."""
        body: Any = self.body
        if self._hooks is not None:
            found = list(self._collect(x).values())
            if self._raw:
                return found
        elif not isinstance(body, Backbone):
            every = declared.values(body(x))
            found = [every[i] for i in self._indices]
        else:
            return self._driven(x)
        if not isinstance(body, Backbone):
            levels = [self._levels[i] for i in self._indices]
            found = [layout.to_map(y, f, x.shape) for y, f in zip(found, levels, strict=True)]
        return [self._read(body, y, i) for y, i in zip(found, self._indices, strict=True)]

    def _driven(self, x: torch.Tensor) -> list[Any]:
        """The levels of a Backbone, run no further than the last of them."""
        body: Any = self.body
        check_input(x, body.in_chans)
        maps: dict[int, Any] = {}
        last = max(self._indices)

        def enough(index: int, y: Any) -> bool:
            if index in self._indices:
                maps[index] = self._read(body, y, index)
            return index == last

        with explain_size(body, x.shape[-2:]):
            trace.visit(body, x, enough)
        return [maps[index] for index in self._indices]

    def _collect(self, x: torch.Tensor) -> dict[Any, Any]:
        """What the hooks find; the forward ends with the last of them."""
        hooks, body = self._hooks, cast(Any, self.body)
        assert hooks is not None
        own: list[Feature] = getattr(body, "_levels", [])
        found: dict[Any, Any] = {}
        places: dict[str, Any] = {}  # (grid, prefix) of levels whose modules put out bare tokens

        def enough(index: int, y: Any) -> bool:
            name = own[index].module
            if isinstance(y, Tokens) and not self._raw:
                places[name] = y.grid, y.prefix
            elif name in hooks.missing(found):
                body.as_map(y)  # what only this level needs may run there
            return not hooks.missing(found)

        # Between levels is a place to stop without an exception, which tracers like better
        between = hooks.places <= {(level.module, "forward") for level in own}
        outer = hooks.begin(found, stop=not between)
        try:
            if isinstance(body, Backbone):
                check_input(x, body.in_chans)
                with explain_size(body, x.shape[-2:]):
                    trace.drive(body, x, enough)
            else:
                body(x)
        except trace.Stop:
            pass
        finally:
            hooks.end(outer)
        found = hooks.ordered(found)
        return found | {k: Tokens(found[k], *p) for k, p in places.items() if k in found}

    @property
    def feature_info(self) -> FeatureInfo:
        """What comes out, item by item."""
        return FeatureInfo(self._levels, self._features_only, measure=self._measure)

    def _measure(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) -> (h, w) of every level; of those that were pruned, which no selection has, 0."""
        with explain_size(self.body, size):
            if self._hooks is None and not isinstance(self.body, Backbone):
                found = dict(trace.run(self.body, size, watched=trace.no_modules).levels)
            elif isinstance(self.body, Backbone) and not self._raw:
                there = {name for name, _ in self.body.named_modules(remove_duplicate=False)}
                last = max(self._indices)
                kept = {f.index for f in self._levels[:last] if f.module in there} | {last}
                norm = self._indices if self._read.norm else ()
                seen = trace.run(self.body, size, levels=kept, norm=norm, watched=trace.no_modules)
                found = dict(seen.levels)
            else:
                shapes = self._tapped(size)
                found = {f.index: shapes[f.module] for f in self._levels if f.module in shapes}
        gone = torch.Size((1, 1, 0, 0))
        return [layout.sides(found.get(f.index, gone), f, size) for f in self._levels]

    def _tapped(self, size: tuple[int, int]) -> dict[str, torch.Size]:
        """Shapes of what the taps read: of each the tensor that is the level, else the first."""
        return self._shapes(self.observe(size)[0])

    def _shapes(self, seen: trace.Run) -> dict[str, torch.Size]:
        assert self._hooks is not None
        before = {call.name: call.inputs for call in seen.calls}
        after = {call.name: call.outputs for call in seen.calls}
        items = {level.module: level.item for level in self._levels}
        shapes = {}
        for name, kind in ((tap.module, tap.kind) for tap in self._hooks.taps):
            tensors, item = (before if kind == "forward_pre" else after)[name], items.get(name, 0)
            if len(tensors) <= item:
                which = f"only {len(tensors)} of the {item + 1} tensors" if item else "no tensor"
                raise MissingFeatureError(f"{name!r} gives {which}.")
            shapes[name] = tensors[item]
        return shapes

    def observe(self, size: tuple[int, int]) -> tuple[trace.Run, frozenset[str]]:
        """A run on the meta device as far as a call goes, and the modules whose output comes out."""
        if self._hooks is None:
            seen = self._run_levels(size)
            return seen, frozenset(self._levels[i].module for i in self._indices)
        until = self._hooks.places if self._hooks.can_stop else frozenset[tuple[str, str]]()
        return trace.run(self.body, size, until=until, through=not until), frozenset(
            name for name, kind in self._hooks.places if kind == "forward"
        )

    @property
    def return_layers(self) -> dict[str, str]:
        """Module names to output keys. Setting it selects other levels, as far as they are kept."""
        names = (self._levels[i].module for i in self._indices)
        return dict(zip(names, self._keys, strict=True))

    @return_layers.setter
    def return_layers(self, layers: Mapping[str, str]) -> None:
        if self._hooks is not None:
            raise ArgumentError("return_layers cannot be changed where hooks collect.")
        index = {level.module: level.index for level in self._levels}
        for name in (name for name in layers if name not in index):
            raise ArgumentError(f"{name!r} is no level.{nearest(name, index)}")
        kept = [name for name in layers if index[name] <= self._deepest]
        if not kept:
            there = [*index][: self._deepest + 1]
            raise ArgumentError(f"return_layers={layers!r}: all were pruned; there are {there}.")
        self._features_only = self._indices = tuple(index[name] for name in kept)
        self._keys = tuple(str(layers[name]) for name in kept)

    def __len__(self) -> int:
        return len(self._keys)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.body.train(mode)  # its own flag, and what its class does beyond that
        return self

    def __getattr__(self, name: str) -> Any:
        if name in SHARED and "body" in self.__dict__:
            return getattr(self.__dict__["body"], name)
        return super().__getattr__(name)

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        body: Any = self.body._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        for name in REGISTRIES:
            body.__dict__[name] = replica.__dict__[name]
        replica.__dict__["body"] = body
        return replica


class FeatureListNet(FeatureNet):
    """(N, C, H, W) -> a list of maps, in the order of ``feature_info``."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self._maps(x)


class FeatureDictNet(FeatureNet):
    """(N, C, H, W) -> an OrderedDict of maps, in the order of ``feature_info``.

    Its keys are the levels' module names, or ``out_map``'s.
    """

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict(zip(self._keys, self._maps(x), strict=True))
