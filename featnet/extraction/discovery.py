"""Levels of a model that declares none, found in the outputs of its modules."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from ..errors import ArgumentError, TraceError
from ..features import Feature, FeatureInfo
from ..size import Size
from ..tracing import flow, positions, sizes, structure, trace
from ..tracing.flow import Flow, FlowCall, Part
from ..values import checked
from . import layout
from .layout import Layout


@checked
def discover(model: nn.Module, input_size: Sequence[int] = ()) -> FeatureInfo:
    """Find the levels of any model: at each resolution the last module whose output is a map of it.

    Modules inside a block that itself ends at a coarser resolution, or in a vector, are no levels:
    the 1 x 1 convolution at the beginning of a stage, for instance, or the keys of a head that
    pools by attention. Maps may be (N, C, H, W), (N, H, W, C) or tokens, with or without prefix
    tokens; each level says its ``layout``. The model runs twice on the meta device, at this size
    and at twice this size, which tells a map from a tensor that only has its shape; a model that
    takes a single size runs once.

    ``FeatureListNet(model, feature_info=discover(model))`` extracts them.

    Args:
        model: any module that takes one (N, C, H, W) batch. It is not changed.
        input_size: (C, H, W), or (H, W) for as many channels as the first convolution has; by
            default a size that the model claims, 224 x 224, or one that runs. It goes with the
            result, and extractors look into the model at it.

    Returns:
        The levels, which print as a table.

    Raises:
        ArgumentError: no module puts out a map that is coarser than the input.
        TraceError: the model does not run on such an input.

    Example:
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Conv2d(8, 16, 3, stride=2, padding=1),
        ... )
        >>> info = featnet.discover(model)
        >>> info.module_name(), info.channels(), info.reduction()
        (['1', '2'], [8, 16], [2, 4])
    """
    structure.check_module(model)
    run, channels, size = _run(model, input_size)
    maps = _maps(model, run, size, channels)
    levels = _ordered(model, _Levels(model, run, maps).features(), (channels, *size))
    if not any(level.reduction > 1 for level in levels):
        shapes = {tuple(part.shape) for call in run.calls for part in call.outputs[:1]}
        raise ArgumentError(
            f"{type(model).__name__} has no pyramid: none of its {len(run.calls)} module calls "
            f"puts out a map coarser than the input. It puts out {sorted(shapes)[:8]}."
            + _why(model, maps, shapes)
        )

    def measure(other: Size) -> list[Size]:
        calls = trace.run(model, other, through=True, channels=channels).calls
        shapes = {call.name: call.outputs for call in calls if call.outputs}
        return [layout.sides(shapes[f.module][f.item], f, other) for f in levels]

    return FeatureInfo(levels, measure=measure, input_size=size)


def _run(model: nn.Module, input_size: Sequence[int]) -> tuple[Flow, int, Size]:
    """The run at the size that was given, else at the first that the model takes."""
    asked = None if input_size == () else sizes.check_size(input_size)
    if input_size is None:
        raise ArgumentError(f"input_size={input_size!r}: (C, H, W) or (H, W) is expected.")
    channels = input_size[0] if len(input_size) == 3 else trace.channels_of(model)
    tried = [asked] if asked is not None else sizes.candidates(model, 224)
    failures: dict[Size, Exception] = {}
    for size in tried:
        try:
            return flow.follow(model, (channels, *size)), channels, size
        except Exception as error:
            failures[size] = error
    size = asked or (224, 224)
    reason = failures.get(size) or failures[tried[0]]
    with sizes.at_size(asked):
        failure = trace.does_not_run(model, size, reason)
    text = str(failure).replace(f"{size[0]} x {size[1]}", str((channels, *size)), 1)
    raise TraceError(text) from reason


def _why(model: nn.Module, maps: list[_Maps], shapes: set[tuple[int, ...]]) -> str:
    """The reason why there is no map, of a model that brings its input to a size of its own."""
    sides = [shape[2] for shape in shapes if len(shape) == 4]
    if any(each.gives or each.reads for each in maps) or max(sides, default=1) == 1:
        return ""
    parts = [name for name, part in model.named_children() if [*part.children()]]
    return (
        " Its maps have the same sizes whatever the input's size is, so that it resizes its input: "
        f"give the network behind that, one of {', '.join(parts)} perhaps."
    )


@dataclasses.dataclass(frozen=True)
class _Map:
    """A tensor that is a map: where it is among a call's inputs or outputs, and how it lies."""

    item: int
    part: Part
    lies: Layout


@dataclasses.dataclass(frozen=True)
class _Maps:
    """The maps that one call reads and puts out."""

    reads: tuple[_Map, ...]
    gives: tuple[_Map, ...]


def _maps(model: nn.Module, run: Flow, size: Size, channels: int) -> list[_Maps]:
    """The maps of each call, told by what grows between two runs."""
    double = size[0] * 2, size[1] * 2
    try:
        again = flow.follow(model, (channels, *double), real=run.real).calls
    except Exception:  # a network of one input size
        again = ()
    if [call.name for call in again] != [call.name for call in run.calls]:
        again = ()

    known = {} if again else _by_positions(model, run, size, channels)

    def of(parts: Sequence[Part], others: Sequence[Part] | None) -> Iterator[_Map]:
        if others is not None and len(parts) != len(others):
            return
        for item, part in enumerate(parts):
            if others is None:
                alone = known.get(part.shape)
                lies = layout.of_one(part.shape, size) if part.shape not in known else alone
            else:
                lies = layout.of_two(part.shape, others[item].shape, size, double)
            if lies is not None and not (lies.reduction == 1 and not part.origin.layers):
                yield _Map(item, part, lies)  # else the image itself, normalised perhaps

    def both(first: FlowCall, second: FlowCall | None) -> _Maps:
        reads = of(first.inputs, second.inputs if second else None)
        return _Maps(tuple(reads), tuple(of(first.outputs, second.outputs if second else None)))

    if not again:
        return [both(call, None) for call in run.calls]
    return [both(a, b) for a, b in zip(run.calls, again, strict=True)]


def _by_positions(
    model: nn.Module, run: Flow, size: Size, channels: int
) -> dict[torch.Size, Layout | None]:
    """Shape to layout, of a network of one input size, as far as positions can be followed."""
    wanted = {(call.name, item) for call in run.calls for item in range(len(call.outputs))}
    try:
        places = positions.follow(model, (channels, *size), wanted)
    except Exception:
        return {}
    known: dict[torch.Size, Layout | None] = {}
    for place in places.values():
        if place.ndim in (3, 4) and not known.get(place.shape):
            known[place.shape] = layout.of_places(place, size)
    return known


def _ordered(model: nn.Module, levels: list[Feature], shape: Sequence[int]) -> list[Feature]:
    """The levels, with the order of tokens that a network keeps in one of its own."""
    wanted = {(f.module, f.item) for f in levels if f.layout in ("NLC", "NCL")}
    if not wanted:
        return levels
    try:
        places = positions.follow(model, shape, wanted)
    except Exception:  # it runs on zeros only
        return levels
    size = shape[-2], shape[-1]
    return [
        dataclasses.replace(f, order=layout.order_of(places[f.module, f.item], f, size))
        if (f.module, f.item) in places and (f.module, f.item) in wanted
        else f
        for f in levels
    ]


# They change nothing where it matters, and something in training
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)


class _Levels:
    """The choice of levels among the maps of one run.

    Args:
        model: the network.
        run: its run.
        maps: of each call.
    """

    def __init__(self, model: nn.Module, run: Flow, maps: list[_Maps]) -> None:
        self.run, self.maps = run, maps
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.count = Counter(call.name for call in run.calls)
        self.end = {index: time for time, index in enumerate(run.ended)}
        self.networks = self._networks()
        self.necks = self._necks()
        self.heads = self._heads()

    def _module(self, index: int) -> nn.Module:
        return self.modules[self.run.calls[index].name]

    def read(self, index: int) -> int:
        """The finest resolution that a call reads."""
        return min((m.lies.reduction for m in self.maps[index].reads), default=1)

    def gives(self, index: int) -> int | None:
        """The resolution of the first map that a call puts out."""
        return next((m.lies.reduction for m in self.maps[index].gives), None)

    def _networks(self) -> set[int]:
        """Calls within which the resolution falls more than once: they hold several levels.

        A part that ends at another resolution than it reached inside shows only its end.
        """
        networks: set[int] = set()
        inside: list[set[int]] = [set() for _ in self.run.calls]
        for index in self.run.ended:  # what is inside before what is around it
            shown = {m.lies.reduction for m in self.maps[index].gives}
            if sum(r > self.read(index) for r in inside[index]) > 1:
                networks.add(index)
                shown |= inside[index]
            for outer in self.run.calls[index].outer[-1:]:
                inside[outer] |= shown
        return networks

    # What is behind the levels -------------------------------------------------------------

    def _necks(self) -> set[int]:
        """Calls that read several maps of a backbone: a call that reads the image, and puts out
        several maps."""
        necks: set[int] = set()
        backbones: list[tuple[int, set[tuple[int, int]]]] = []
        for index, call in enumerate(self.run.calls):
            several = {m.part.ident for m in self.maps[index].gives}
            image = (
                any(not part.origin.layers for part in call.inputs) and not self.maps[index].reads
            )
            if image and len(several) > 1:
                backbones.append((index, several))
            for backbone, inputs in backbones:
                if backbone in call.outer or backbone == index:
                    continue
                if len({m.part.ident for m in self.maps[index].reads} & inputs) > 1:
                    necks.add(index)
        return necks

    def _heads(self) -> set[int]:
        """Calls that hold a classifier of maps: the only module with weights between a map and what
        the network returns, which sees one position at a time."""
        heads: set[int] = set()
        for part in self.run.returned:
            index = part.origin.layers.bit_length() - 1
            if index < 0 or part.origin.layers != 1 << index:
                continue
            call, there = self.run.calls[index], self.maps[index]
            if not there.reads or not there.gives or not _is_pointwise(self._module(index)):
                continue
            way = there.reads[0].part.origin.calls
            coarsest = max(
                (
                    m.lies.reduction
                    for other, each in enumerate(self.maps)
                    if way >> other & 1
                    for m in each.gives
                ),
                default=1,
            )
            behind = (i for i in (*call.outer, index) if self.maps[i].reads)
            head = next((i for i in behind if self.read(i) >= coarsest), None)
            same = part.shape == call.outputs[there.gives[0].item].shape
            if head is not None and not (head == index and same):
                heads.add(head)
        return heads

    def _is_behind(self, index: int, part: Part) -> bool:
        """Tell if a call's output comes after a head or a neck began, or within."""
        around = {*self.run.calls[index].outer, index}
        if around & (self.heads | self.necks):
            return True
        return any(part.origin.calls >> i & 1 for i in self.heads | self.necks)

    # The levels ------------------------------------------------------------------------------

    def _is_inner(self, index: int, reduction: int) -> bool:
        """Tell if a map is the business of a call around it, which ends elsewhere."""
        for outer in self.run.calls[index].outer:
            if outer in self.networks:
                continue
            gives, reads = self.gives(outer), self.read(outer)
            if gives is None:
                inner = reads >= reduction > 1
            else:
                inner = gives > reduction or 1 < reads == gives < reduction
            if inner:
                return True
        return False

    def _candidates(self) -> list[tuple[int, _Map]]:
        """(call, map), in the order in which the calls ended."""
        chosen = []
        for index in self.run.ended:
            call = self.run.calls[index]
            if self.count[call.name] > 1 or index in self.networks:
                continue
            if isinstance(self.modules[call.name], _PASSING):
                continue
            taken = {part.ident for part in call.inputs}
            before = {m.lies.reduction: m.part.shape for m in self.maps[index].reads}
            best: dict[int, _Map] = {}
            for m in self.maps[index].gives:
                if m.part.ident in taken or self._is_behind(index, m.part):
                    continue
                bare = not any(True for _ in self._module(index).parameters())
                if self._is_inner(index, m.lies.reduction) or (bare and _is_padded(m, before)):
                    continue
                other = best.get(m.lies.reduction)
                if other is None or _later(m.part, other.part):
                    best[m.lies.reduction] = m
            chosen += [(index, m) for m in best.values()]
        return chosen

    def _last(self, candidates: list[tuple[int, _Map]]) -> tuple[int, _Map]:
        """The last level: the last of the coarsest maps. Where one part of the network holds this
        and other levels, a lone layer behind that part which gives other channels is no stage: it,
        and what follows, projects for a head."""
        coarsest = max(m.lies.reduction for _, m in candidates)
        there = [(i, m) for i, m in candidates if m.lies.reduction == coarsest]
        way = there[-1][1].part.origin.calls
        finer = [self.end[i] for i, m in candidates if m.lies.reduction < coarsest and way >> i & 1]
        parts: dict[str, list[tuple[int, _Map]]] = {}
        for i, m in candidates:
            name = self.run.calls[i].name
            while name := name.rpartition(".")[0]:
                parts.setdefault(name, []).append((i, m))
        ends = []
        for name, inside in parts.items():
            last = [(i, m) for i, m in inside if m.lies.reduction == coarsest]
            if not last or len({m.lies.reduction for _, m in inside}) < 3:
                continue  # a block that falls to the last resolution
            end, m = self.end[last[-1][0]], last[-1][1]
            if end > max(finer, default=-1):  # else levels are still to come
                ends.append((name.count("."), end, m.lies.channels))
        if not ends:
            return there[-1]
        _, end, channels = max(ends)
        # A module that is made of several is a stage
        kept, calls = there[:1], {i for i, _ in there}
        for i, m in there:
            if calls & {*self.run.calls[i].outer}:
                continue  # a part of a later one
            module = self._module(i)
            lone = not [*module.children()] and any(p.ndim > 1 for p in module.parameters())
            if self.end[i] > end and m.lies.channels != channels and lone:
                break
            kept.append((i, m))
        return kept[-1]

    def _single(self, index: int) -> _Map | None:
        """The only map that a call which holds several levels puts out."""
        gives = self.maps[index].gives
        alone = index in self.networks and len({m.part.ident for m in gives}) == 1
        return gives[0] if alone else None

    def _without_stems(self, candidates: list[tuple[int, _Map]]) -> list[tuple[int, _Map]]:
        """The candidates but for those within a stem: a part at the image whose end most of the
        network goes on with, at the same resolution and with the same channels."""
        for index in self.networks:
            end = self._single(index)
            if end is None or self.maps[index].reads:
                continue
            behind = {
                id(p): p.numel()
                for i, m in candidates
                if self.end[i] > self.end[index]
                and (m.lies.reduction, m.lies.channels) == (end.lies.reduction, end.lies.channels)
                for p in self._module(i).parameters()
            }
            if sum(behind.values()) > sum(p.numel() for p in self._module(index).parameters()):
                candidates = [
                    (i, m)
                    for i, m in candidates
                    if index not in self.run.calls[i].outer
                    or m.lies.reduction == end.lies.reduction
                ]
        return candidates

    def features(self) -> list[Feature]:
        """The levels, finest first."""
        candidates = self._without_stems(self._candidates())
        if not candidates:
            return []
        index, last = self._last(candidates)
        levels = {last.lies.reduction: (index, last)}
        way = last.part.origin.calls
        for on_the_way in (False, True):
            for i, m in candidates:
                if m.lies.reduction < last.lies.reduction and (way >> i & 1 or not on_the_way):
                    levels[m.lies.reduction] = i, m
        return [
            Feature(
                m.lies.channels,
                reduction,
                self.run.calls[i].name,
                position,
                layout=m.lies.axes,
                prefix=m.lies.prefix,
                item=m.item,
            )
            for position, (reduction, (i, m)) in enumerate(sorted(levels.items()))
        ]


def _later(part: Part, other: Part) -> bool:
    """Tell if one tensor of a call was computed from more than another."""
    return part.origin.calls.bit_count() > other.origin.calls.bit_count()


def _is_padded(m: _Map, before: Mapping[int, torch.Size]) -> bool:
    """Tell if a call only puts a border around what it reads at this resolution."""
    shape = before.get(m.lies.reduction)
    return (
        shape is not None and shape[1] == m.part.shape[1] and shape.numel() < m.part.shape.numel()
    )


def _is_pointwise(module: nn.Module) -> bool:
    """Tell if all weights of a module see one position at a time, and one or more mix channels."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    return bool(weights) and all(p.ndim in (2, 4) and p.shape[2:].numel() == 1 for p in weights)
