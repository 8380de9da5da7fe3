"""Reach: how far the outputs of a network see around each of their positions, in pixels of the
image, and by how much the image may be shifted so that they shift along.

A copy runs on the meta device at several sizes, and nothing is computed. Dimensions that grow with
the image are rows, columns or windows of them; the ratio of the growths is what a position is
apart from the next. :mod:`featnet.tracing.spans` follows which rows each element comes from. What
joins the elements of a dimension that grows sees the whole map, and so does a table that is as long
as one: it tells positions apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from ..errors import FeatnetError, TraceError
from ..size import Size
from . import probing, shapes, structure, trace
from .spans import WINDOWS, Call, Span, everything, nothing, spans_of
from .watch import tensors

FAR = 2**9 * 3 * 5 * 7  # pixels, a multiple of what windows and strides are made of
LENGTHS = (512, 2048, 8192)  # pixels of images on which a position of local maps sees no end

# What a model puts out -> the tensors of interest
Outputs = Callable[[Any], Iterable[torch.Tensor]]

_FILLED = frozenset({"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty"})


@dataclasses.dataclass(frozen=True)
class Reach:
    """The pixels that an output sees along one side of the image.

    Attributes:
        dim: dimension of the output that counts rows (or columns); None where there is no such.
        length: of this dimension, for the image that was asked about.
        step: pixels from one position to the next.
        before, after: pixels that a position sees, counted from its own first one: position ``i``
            sees ``i * step - before`` to ``i * step + after``.
        whole: what makes it see the whole map, in which case the two say nothing, or "".
    """

    dim: int | None
    length: int
    step: Fraction
    before: int
    after: int
    whole: str = ""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of the image.

    Attributes:
        period: pixels: shifted by a multiple of it, with an end at a multiple from the image's, an
            image gives the same maps, shifted.
        reaches: of each output.
    """

    period: int
    reaches: tuple[Reach, ...]


class _QuickNorm(TorchFunctionMode):
    """Batch norm of each element by itself in a fraction of the time that torch takes for it."""

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        trained = kwargs.get("training", args[5] if len(args) > 5 else False)
        if func is torch.nn.functional.batch_norm and not trained:
            return shapes.call(func, args, kwargs)
        return func(*args, **kwargs)


Log = list[tuple[str, list[torch.Size]]]


class _Shapes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode that notes the shapes of what goes into each function, and comes out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log: Log = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        before = [t.shape for t in tensors([args, kwargs])]
        value = func(*args, **(kwargs or {}))
        self.log.append((func.overloadpacket.__name__, before + [t.shape for t in tensors(value)]))
        return value


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode that carries spans along.

    Args:
        model: the copy that runs.
        far: shapes of the same run on an image that is :data:`FAR` pixels longer.
        axis: of the image, -2 for rows.
    """

    def __init__(self, model: nn.Module, far: Log, axis: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.far, self.axis, self.at = far, axis, 0
        self.where: list[str] = []
        self.inside = 0  # of modules that say themselves what they see
        self.written: dict[int, tuple[int, torch.Tensor]] = {}  # storages: when, through what
        for name, module in model.named_modules():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(self._leave)

    def _enter(self, name: str, module: nn.Module, _args: object) -> None:
        self.where.append(name)
        self.inside += hasattr(module, "attended_windows")

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.where.pop()
        if hasattr(module, "attended_windows"):
            self.inside -= 1
            span = _span_of(args[0])
            if span is not None:
                with _disable_current_modes():
                    output._span = _in_windows(module, span, args[0], self.axis)

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors([args, kwargs]))
        value = func(*args, **kwargs)
        outputs = list(tensors(value))
        name = func.overloadpacket.__name__
        shapes = [t.shape for t in (*inputs, *outputs)]
        other, far = self.far[self.at] if self.at < len(self.far) else ("", [])
        self.at += 1
        if other != name or [len(shape) for shape in far] != [len(shape) for shape in shapes]:
            raise _Differs
        if self.inside:
            return value
        grows = [
            [a != b for a, b in zip(*pair, strict=True)] for pair in zip(shapes, far, strict=True)
        ]
        if name in _FILLED:
            for tensor in outputs:
                tensor._even = True  # type: ignore[attr-defined]
        elif any(_span_of(tensor) is not None for tensor in inputs):
            spans = [self.given(*pair) for pair in zip(inputs, grows, strict=False)]
            call = Call(
                name.strip("_") if func._schema.is_mutable else name,
                func,
                args,
                kwargs,
                spans,
                grows,
                [t.shape for t in outputs],
            )
            pairs = zip(outputs, spans_of(call), strict=True)
            for at, (tensor, span) in enumerate(pairs, start=len(inputs)):
                if span is not None and call.name in WINDOWS and tensor.ndim == 4:
                    span |= self._own(tensor.shape, far[at])
                tensor._span = span and self._placed(call, span)  # type: ignore[attr-defined]
                tensor._since = self.at  # type: ignore[attr-defined]
        if func._schema.is_mutable:
            self.written[args[0].untyped_storage()._cdata] = self.at, args[0]
        return value

    def given(self, tensor: torch.Tensor, grows: Sequence[bool]) -> Span | None:
        """The span of an argument; a table that is as long as the map tells positions apart."""
        span, why = _span_of(tensor), ""
        when, writer = self.written.get(tensor.untyped_storage()._cdata, (0, tensor))
        if span is None and any(grows) and not hasattr(tensor, "_even"):
            why = "a table of positions, or a mask"
        elif writer is not tensor and when > getattr(tensor, "_since", 0):
            why = "a tensor that is written in part"
        return everything(tensor.ndim, self._where(why)) if why else span

    def _where(self, why: str) -> str:
        name = next((name for name in reversed(self.where) if name), "")
        return f"{name} ({why})" if name else why

    def _placed(self, call: Call, span: Span) -> Span:
        """A span that says where it lost its ends."""
        if not span.why or span.why in {other.why for other in call.spans if other is not None}:
            return span
        return span._replace(why=self._where(span.why))

    def _own(self, near: torch.Size, far: torch.Size) -> Span:
        """The rows that each position of a map stands for. It does not see them always, but where a
        part of an image lacks them there is no such position."""
        length, longer = near[self.axis], far[self.axis]
        if length == longer:
            return nothing(4)
        step = FAR / (longer - length)
        first = (torch.arange(length) * step).reshape((-1, 1) if self.axis == -2 else (1, -1))
        return Span(first[None, None].floor(), (first[None, None] + step).ceil() - 1)


class _Differs(Exception):
    """A network that computes in another way at another size."""


def _span_of(tensor: object) -> Span | None:
    span: Span | None = getattr(tensor, "_span", None)
    return span


def _in_windows(module: Any, span: Span, x: torch.Tensor, axis: int) -> Span:
    """The span of what a module puts out whose positions see those of their window.

    Args:
        module: with ``attended_windows(size)``, the (window, shift) of rows and of columns, or None
            where windows reach from one end of the map to the other.
        x: its input, (N, H, W, C).
    """
    length = x.shape[dim := axis + 3]
    splits = module.attended_windows((x.shape[1], x.shape[2]))[axis]
    if splits is None:
        return everything(4, "shifted windows on a map that is no whole number of them")
    span = span.over([d for d in range(4) if d != dim])
    window, shift = splits
    index = torch.arange(length).sub(shift).div(window, rounding_mode="floor")
    index = (index - index[0]).long()
    ends = []
    for values, how in ((span.first, "amin"), (span.last, "amax")):
        line = values.flatten().expand(length)
        joined = line.new_zeros(int(index[-1]) + 1)
        joined = joined.scatter_reduce(0, index, line, how, include_self=False)
        ends.append(joined[index].reshape([length if d == dim else 1 for d in range(4)]))
    return Span(ends[0], ends[1], span.why)


@torch.inference_mode(False)
def _run(
    model: nn.Module, shape: Sequence[int], outputs: Outputs, axis: int, far: Log | None = None
) -> tuple[Log, list[tuple[torch.Size, Span | None]]]:
    """Shapes of all that runs; shapes and spans of what comes out."""

    def work(copied: nn.Module, x: torch.Tensor) -> Any:
        mode: Any = _Shapes() if far is None else _Follow(copied, far, axis)
        rows = torch.arange(float(x.shape[axis]))
        rows = rows.reshape((-1, 1) if axis == -2 else (1, -1))[None, None]
        x._span = Span(rows, rows)  # type: ignore[attr-defined]
        with torch.no_grad(), structure.eagerly(copied), _QuickNorm(), mode:
            value = copied(x)
        if far is None:
            return mode.log, [(t.shape, None) for t in outputs(value)]
        return [], [(t.shape, mode.given(t, ())) for t in outputs(value)]

    return probing.first(model, (1, *shape), work, real=False)[0]


def measure(
    model: nn.Module, shape: Sequence[int], outputs: Outputs = tensors
) -> tuple[Side, Side]:
    """Return how far each output of a model sees: along the rows of an image, and its columns.

    Args:
        model: any module that takes one (N, C, H, W) batch of any size, and is in eval mode.
        shape: (C, H, W) of the image.
        outputs: which tensors of what the model puts out.

    Raises:
        TraceError: it does not run on the meta device, or at other sizes.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2))
        >>> rows, columns = measure(net, (3, 40, 40))
        >>> rows.period, rows.reaches[0].before, rows.reaches[0].after
        (4, 1, 3)
    """
    run = partial(_run, model, outputs=outputs)
    channels, sides = shape[0], (shape[1], shape[2])
    try:
        near, shapes = run((channels, *sides), axis=-2)
    except FeatnetError:
        raise
    except Exception as error:
        raise trace.does_not_run(model, sides, error) from error
    placed = []
    for axis in (-2, -1):
        try:
            far, wide = run((channels, *_longer(sides, axis, FAR)), axis=axis)
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} takes no image that is longer than {sides[0]} x "
                f"{sides[1]}, so that nothing can be said about parts of one: "
                f"{type(error).__name__}: {error}"
            ) from error
        places = [_place(a, b) for (a, _), (b, _) in zip(shapes, wide, strict=True)]
        placed.append((_period(near, far), places))
    periods = [period or math.lcm(*(p.step.numerator for p in places)) for period, places in placed]
    result = []
    for axis, (period, places) in zip((-2, -1), placed, strict=True):
        whole = "" if period else _OTHERWISE
        places = [dataclasses.replace(place, whole=place.whole or whole) for place in places]
        reaches = _reaches(run, channels, sides, periods, axis, places)
        result.append(Side(periods[axis], tuple(reaches)))
    return result[0], result[1]


_OTHERWISE = "it computes in another way at other sizes"


def _longer(sides: Size, axis: int, by: int) -> Size:
    return (sides[0] + by, sides[1]) if axis == -2 else (sides[0], sides[1] + by)


def _period(near: Log, far: Log) -> int:
    """The least common multiple of what positions are apart, in pixels, over all tensors; 0 where
    another size is computed in another way."""
    if [name for name, _ in near] != [name for name, _ in far]:
        return 0
    pairs = (
        pair for (_, a), (_, b) in zip(near, far, strict=True) for pair in zip(a, b, strict=True)
    )
    grown = {b - a for pair in pairs for a, b in zip(*pair, strict=True)} - {0}
    return math.lcm(*(Fraction(FAR, by).numerator for by in grown))


def _place(near: torch.Size, far: torch.Size) -> Reach:
    """Return the places of an output's rows, without what it sees around them."""
    dims = [dim for dim, pair in enumerate(zip(near, far, strict=True)) if pair[0] != pair[1]]
    if len(dims) != 1:
        return Reach(None, 0, Fraction(1), 0, 0, "not a map: rows and columns are one dimension")
    dim = dims[0]
    return Reach(dim, near[dim], Fraction(FAR, far[dim] - near[dim]), 0, 0)


def _reaches(
    run: Any, channels: int, sides: Size, periods: Sequence[int], axis: int, places: Sequence[Reach]
) -> list[Reach]:
    """Return what outputs see, from runs on images that are longer each time, until none sees both
    ends from everywhere."""
    period = periods[axis]
    least = [_congruent(side, each, 128) for side, each in zip(sides, periods, strict=True)]
    settled: dict[int, Reach] = {i: place for i, place in enumerate(places) if place.whole}
    for length in LENGTHS:
        if len(settled) == len(places):
            break
        size = (least[0], least[1])
        own = _congruent(sides[axis], period, length)
        size = (own, size[1]) if axis == -2 else (size[0], own)
        try:
            far, _ = run((channels, *_longer(size, axis, FAR)), axis=axis)
            _, spans = run((channels, *size), axis=axis, far=far)
        except _Differs:
            return [dataclasses.replace(place, whole=place.whole or _OTHERWISE) for place in places]
        for i, place in enumerate(places):
            if i not in settled and (reach := _settle(place, spans[i], own, period)):
                settled[i] = reach
    far_away = f"it sees more than half of {LENGTHS[-1]} pixels"
    return [settled.get(i, dataclasses.replace(p, whole=far_away)) for i, p in enumerate(places)]


def _congruent(length: int, period: int, least: int) -> int:
    """The smallest number from ``least`` on that differs from a length by whole periods."""
    return least + (length - least) % period


def _settle(
    place: Reach, output: tuple[torch.Size, Span | None], length: int, period: int
) -> Reach | None:
    """A reach, if all that is in the middle of an image sees neither end of it."""
    shape, span = output
    if span is None:
        return dataclasses.replace(place, whole="it does not depend on the image")
    assert place.dim is not None
    others = [dim for dim in range(len(shape)) if dim != place.dim]
    first, last = (end.flatten().double() for end in span.over(others)[:2])
    count = shape[place.dim]
    first, last = first.expand(count), last.expand(count)
    if first.min() == -math.inf or last.max() == math.inf:
        return dataclasses.replace(place, whole=span.why)
    cells = math.ceil(period / place.step)
    middle = slice(max(0, (count - cells) // 2), (count - cells) // 2 + cells)
    if first[middle].min() <= 0 or last[middle].max() >= length - 1:
        return None
    index = torch.arange(count, dtype=torch.float64) * float(place.step)
    before, after = (index - first).max(), (last - index).max()
    return dataclasses.replace(
        place, before=max(0, math.ceil(before)), after=max(0, math.ceil(after))
    )
