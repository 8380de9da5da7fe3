"""One run of a network on the meta device: what is called, in which order, at which sizes.

Nothing is computed and no memory is taken, whatever the size of the network; the caller's network
is not touched, a structural copy runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from ..errors import TraceError
from . import probing, shapes, sizes, structure
from .levels import Level as Level
from .levels import LevelWatch, check_end, follow, start
from .levels import drive as drive
from .levels import visit as visit
from .network import Network
from .network import Yielded as Yielded
from .watch import Places as Places
from .watch import Seen, Watch
from .watch import Stop as Stop
from .watch import Which as Which
from .watch import tensors as tensors


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module.

    Attributes:
        name: dotted name of the module.
        inputs, outputs: shapes of the tensors that went in and came out.
        rewritten: the output was changed in place before the run ended.
        consumed: an input was, by the module itself or later.
    """

    name: str
    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]
    rewritten: bool
    consumed: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """Records of one run.

    Attributes:
        calls: in the order in which they ended.
        levels: shapes of those that were wanted, by index; without ``forward_levels`` those of the
            tensors that the network returned.
        used: names of the tensors that were.
        yielded: what ``forward_levels`` yielded, in that order.
        feeds: module to module, where nothing but the second one reads what the first one puts
            out, and each runs once.
        real: it ran on zeros, since the network looks at values; with others it may do otherwise.
    """

    calls: tuple[Call, ...]
    levels: Mapping[int, torch.Size]
    used: frozenset[str]
    feeds: Mapping[str, str]
    yielded: tuple[Level, ...] = ()
    real: bool = False

    @property
    def rewritten(self) -> frozenset[tuple[str, str]]:
        """Taps, as (module, kind), whose value something changes in place afterwards."""
        after = {(call.name, "forward") for call in self.calls if call.rewritten}
        return frozenset(after | {(c.name, "forward_pre") for c in self.calls if c.consumed})


def names_of(model: nn.Module) -> dict[int, str]:
    """id of every parameter and buffer to its name; the first one where it is shared."""
    names: dict[int, str] = {}
    named = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in named:
        names.setdefault(id(tensor), name)
    return names


def channels_of(model: nn.Module) -> int:
    """Input channels: declared, or those of the first convolution."""
    declared = getattr(model, "in_chans", None)
    if isinstance(declared, int):
        return declared
    for module in structure.modules_of(model):
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return 3


def no_modules(_module: nn.Module) -> bool:
    """``watched`` of a run of which only the levels are wanted."""
    return False


@torch.inference_mode(False)  # whose tensors have no version counter
def run(
    model: nn.Module,
    size: tuple[int, int],
    *,
    levels: Collection[int] | None = None,
    norm: Collection[int] = (),
    until: Places = frozenset(),
    through: bool = False,
    channels: int | None = None,
    real: bool = True,
    watched: Which | None = None,
    training: bool = False,
) -> Run:
    """Run a copy of the model on the meta device, in eval mode by default.

    A network from elsewhere that cannot run there, since it looks at values, runs on zeros.

    Args:
        model: any module that takes one (N, C, H, W) batch. One that has ``forward_levels`` is
            driven through them.
        size: (H, W) of the input.
        levels: with ``forward_levels``: those that are wanted, by default all that were not pruned;
            the run stops after the last of them.
        norm: which levels are read under the network's final norm.
        until: stop as soon as all of these modules have run (``(name, "forward")``) or were reached
            (``(name, "forward_pre")``).
        through: with ``forward_levels``: go on through the head.
        channels: of the input; by default as the model declares or its first convolution has.
        real: whether zeros may be tried.
        watched: of which modules :attr:`Run.calls` are wanted. Then only these and
            :attr:`Run.levels` are found out, sooner.
        training: in training mode, on two images: batch norm refuses a single value per channel.
    """
    how: Any = dict(levels=levels, norm=norm, until=until, through=through, watched=watched)
    known = sizes.current()
    plain = through and not until and levels is None and watched is None and channels is None
    key = (id(model), size, training)
    if plain and key in known.runs:
        kept: Run = known.runs[key]
        return kept
    shape = (1 + training, channels_of(model) if channels is None else channels, *size)
    if hasattr(model, "forward_levels"):
        real = False
    record, zeros = probing.first(
        model,
        shape,
        lambda copied, x: _run(copied, x, **how),
        real=(True if id(model) in known.zeros else None) if real else False,
        training=training,
    )
    record = dataclasses.replace(record, real=zeros)
    if plain and zeros:  # a whole forward
        known.runs[key] = record
    return record


def _run(
    copied: nn.Module,
    x: torch.Tensor,
    *,
    levels: Collection[int] | None,
    norm: Collection[int],
    until: Places,
    through: bool,
    watched: Which | None,
) -> Run:
    names = names_of(copied)
    watch = Watch(copied, until, watched)
    closely = watched is None
    read: Mapping[int, torch.Size] = {}
    yielded: tuple[Level, ...] = ()
    generator: Iterator[Yielded] | None = None
    kept: list[object] = []
    with torch.no_grad(), structure.eagerly(copied), watch.used if closely else shapes.ShapeRules():
        if not hasattr(copied, "forward_levels"):
            with contextlib.suppress(Stop):
                kept.append(copied(x))
                read = {i: t.shape for i, t in enumerate(tensors(kept))}
        else:
            network = cast(Network, copied)
            watched_levels = LevelWatch(network, watch, wanted=levels, norm=norm, onward=through)
            with contextlib.suppress(Stop):
                if until or through:
                    drive(network, x, watched_levels)
                else:
                    generator = start(network, x)
                    follow(network, generator, watched_levels)
            kept, read, yielded = (
                watched_levels.kept,
                watched_levels.shapes,
                tuple(watched_levels.yielded),
            )
    calls = tuple(
        Call(name, inputs.shapes, gave.shapes, gave.changed, inputs.changed)
        for name, inputs, gave in watch.ended
    )
    if closely:
        reads = watch.used.reads
        used = frozenset(names[i] for i in names if reads[i])
        feeds = _feeds(watch.ended, reads, {id(t) for t in tensors(kept)})
    else:
        used, feeds = frozenset(), {}
    if generator is not None and len(yielded) == len(network._levels):
        with torch.no_grad(), shapes.ShapeRules():
            check_end(network, generator)  # whatever runs there is needed by no level
    return Run(calls, read, used, feeds, yielded)


def _feeds(
    ended: Sequence[tuple[str, Seen, Seen]], reads: Mapping[int, int], kept: set[int]
) -> dict[str, str]:
    """See :attr:`Run.feeds`; ``kept`` are ids of tensors that left the network."""
    count = Counter(name for name, _, _ in ended)
    makers: dict[int, str] = {}
    feeds: dict[str, str] = {}
    for name, inputs, gave in ended:  # what is inside ends before what is around it
        ids = [id(t) for t in inputs.tensors]
        outputs = [id(t) for t in gave.tensors]
        maker = makers.get(ids[0]) if len(ids) == 1 else None
        first = maker and inputs.reads[0] == 0 < inputs.reads_after[0]
        if maker and first and count[maker] == count[name] == 1:
            # changed in place it is the second one's output, which anybody may read
            alone = reads[ids[0]] == inputs.reads_after[0] and ids[0] not in kept
            if alone or outputs == ids:
                feeds.setdefault(maker, name)
        if len(outputs) == 1:
            makers.setdefault(outputs[0], name)
    return feeds


def probe_size(model: nn.Module) -> tuple[int, int]:
    """Find an input size that the model can take: the one that the caller gave, that for which it
    was built, or its checkpoint's when that is fixed, else 256; of a network from elsewhere the
    first of :func:`featnet.tracing.sizes.candidates` that runs."""
    known = sizes.current()
    if known.size is not None:
        return known.size
    built = getattr(model, "img_size", None)
    if hasattr(model, "forward_levels"):
        if isinstance(built, tuple):
            return built
        cfg = getattr(model, "pretrained_cfg", None)
        if isinstance(cfg, Mapping) and cfg.get("fixed_input_size"):
            height, width = cfg["input_size"][-2:]
            return height, width
        return 256, 256
    key = id(model), "size"
    if key not in known.runs:
        known.runs[key] = _first_size(model, known)
    size: tuple[int, int] = known.runs[key]
    return size


def _first_size(model: nn.Module, known: sizes.Probing) -> tuple[int, int]:
    tried = sizes.candidates(model)
    messages: list[str] = []
    for size in tried:
        try:
            run(model, size, real=False, through=True)
            return size
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
        if len(messages) > 2 and len({*messages}) == 1:
            break  # whatever the size is, the network looks at values
    known.zeros.add(id(model))
    for size in tried:
        with contextlib.suppress(Exception):
            run(model, size, through=True)
            return size
    known.zeros.discard(id(model))
    return 256, 256


def does_not_run(model: nn.Module, size: Sequence[int], error: Exception) -> TraceError:
    """Return the error of a network that does not run at a size, with what to do."""
    known = sizes.current().size is not None
    return TraceError(
        f"{type(model).__name__} does not run on an input of {' x '.join(map(str, size))}: "
        f"{type(error).__name__}: {error}"
        + ("" if known else " (One that takes another size: give input_size=(H, W).)")
    )
