"""Spans: of each element of a tensor, the first and last row (or column) of the image that it is
computed from. One rule for each function of torch's core that networks use; what has none is said
to see everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

Shapes = Sequence[torch.Size]
MOST = 2**25  # elements: what needs more of them to be followed is said to see everything


class Span(NamedTuple):
    """First and last row, or column, of the image that each element of a tensor comes from.

    Attributes:
        first, last: as many dimensions as the tensor; of length 1 where all are the same. Without
            end where a map is seen whole, and the other way round where nothing of it is seen.
        why: what sees the whole map, for people.
    """

    first: torch.Tensor
    last: torch.Tensor
    why: str = ""

    def __or__(self, other: Any) -> Span:
        return Span(
            torch.minimum(self.first, other.first),
            torch.maximum(self.last, other.last),
            self.why or other.why,
        )

    def over(self, dims: Sequence[int], *, keep: bool = True) -> Span:
        """Join the elements along dimensions."""
        return Span(self.first.amin([*dims], keep), self.last.amax([*dims], keep), self.why)


def everything(ndim: int, why: str) -> Span:
    """The span of what sees all of a map."""
    ones = torch.ones((1,) * ndim)
    return Span(-inf * ones, inf * ones, why)


def nothing(ndim: int) -> Span:
    """The span of what sees nothing of the image."""
    ones = torch.ones((1,) * ndim)
    return Span(inf * ones, -inf * ones)


class Call(NamedTuple):
    """One call of a function, and what it is about.

    Attributes:
        name: of the function, without the mark of those that write in place.
        func, args, kwargs: it, and what it was given.
        spans: of the tensors among its arguments, in order; None of what is no part of the image.
        grows: of each of these, and then of each tensor that comes out, which dimensions are
            longer where the image is longer.
        outputs: shapes of what comes out.
    """

    name: str
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    spans: Sequence[Span | None]
    grows: Sequence[Sequence[bool]]
    outputs: Shapes

    def shared(self, at: int, dims: Sequence[int], *, keep: bool = True) -> Span | None:
        """Join the elements of an argument's span along dimensions, which must not grow."""
        span = self.spans[at]
        if any(self.grows[at][dim] for dim in dims):
            return self.whole()
        return None if span is None else span.over(dims, keep=keep)

    def whole(self, why: str = "") -> Span:
        """The span of what sees all of a map."""
        return everything(len(self.outputs[0]), why or self.name)


def _narrow(values: torch.Tensor) -> torch.Tensor:
    """A tensor whose dimensions along which it only repeats itself have length 1."""
    for dim, step in enumerate(values.stride()):
        if step == 0 and values.shape[dim] > 1:
            values = values.narrow(dim, 0, 1)
    return values


# Elements that are put elsewhere --------------------------------------------------------------

_VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
_MOVES = _VIEWS | {
    *("permute", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze", "split"),
    *("split_with_sizes", "unbind", "roll", "alias", "detach", "repeat", "flip", "unfold"),
    "diagonal",
}


def _moved(call: Call) -> list[Span]:
    span = call.spans[0]
    assert span is not None
    ends: list[list[torch.Tensor]] = []
    for values in span[:2]:
        values = values.expand(call.args[0].shape)
        if call.name in _VIEWS:
            moved: Any = values.reshape(call.args[1])
        else:
            moved = call.func(values, *call.args[1:], **call.kwargs)
        ends.append(list(moved) if isinstance(moved, (list, tuple)) else [moved])
    pairs = zip(*ends, strict=True)
    return [Span(_narrow(first), _narrow(last), span.why) for first, last in pairs]


def _joined(call: Call) -> Span:
    """Parts along a dimension. Where that does not grow they are channels, and need not be told
    apart."""
    ndim = len(call.outputs[0])
    dim = range(ndim)[call.args[1] if len(call.args) > 1 else 0]
    if call.name == "stack":
        parts = [
            span and Span(span.first.unsqueeze(dim), span.last.unsqueeze(dim), span.why)
            for span in call.spans
        ]
        return _union([part for part in parts if part is not None])
    if not call.grows[-1][dim]:
        return _union([s.over([dim]) for s in call.spans if s is not None])
    spans = [nothing(ndim) if span is None else span for span in call.spans]
    shape = [max(lengths) for lengths in zip(*(s.first.shape for s in spans), strict=True)]
    ends: list[torch.Tensor] = []
    for end in (0, 1):
        lines: list[torch.Tensor] = []
        for tensor, values in zip(
            call.args[0], [(s.first, s.last)[end] for s in spans], strict=True
        ):
            shape[dim] = tensor.shape[dim]
            lines.append(values.expand(shape))
        ends.append(torch.cat(lines, dim))
    return Span(ends[0], ends[1], next((span.why for span in spans if span.why), ""))


def _padded(call: Call) -> Span | None:
    """A map with a border of one value, or of its own values."""
    span, widths = call.spans[0], call.args[1]
    if span is None:
        return None
    ends = [span.first, span.last]
    mode = {"constant": "constant", "reflection": "reflect", "replication": "replicate"}
    how = mode[call.name.partition("_")[0]]
    for at, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        for end, empty in enumerate((inf, -inf)):
            values = ends[end].movedim(-1 - at, -1)
            if values.shape[-1] == 1:
                continue  # the same all along
            if how == "constant":
                values = pad(values, (before, after), value=empty)
            else:
                index = torch.arange(float(values.shape[-1]))[None, None]
                values = values[..., pad(index, (before, after), mode=how).long().flatten()]
            ends[end] = values.movedim(-1, -1 - at)
    return Span(ends[0], ends[1], span.why)


# Windows --------------------------------------------------------------------------------------


WINDOWS = frozenset({"convolution", "max_pool2d_with_indices", "avg_pool2d"})


def _axes(value: Any, count: int) -> list[int]:
    """An argument of a window for each of its axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _slide(
    call: Call,
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    *,
    transposed: bool = False,
) -> Span | None:
    """Join what each window sees; what is beyond the map, it does not."""
    span, count = call.spans[0], len(kernel)
    if span is None:
        return None
    settings = zip(
        kernel, *(_axes(value, count) for value in (stride, padding, dilation)), strict=True
    )
    ends = [span.first, span.last]
    for axis, (length, step, before, spread) in enumerate(settings, start=-count):
        wanted, reach = call.outputs[0][axis], spread * (length - 1)
        for end, empty in enumerate((inf, -inf)):
            values = ends[end].movedim(axis, -1)
            if values.shape[-1] == 1:
                continue  # the same all along
            if transposed:
                stuffed = values.new_full((*values.shape, step), empty)
                stuffed[..., 0] = values
                values, begin, each = stuffed.flatten(-2), reach - before, 1
            else:
                begin, each = before, step
            after = each * (wanted - 1) + reach + 1 - begin - values.shape[-1]
            windows = pad(values, (begin, after), value=empty).unfold(-1, reach + 1, each)
            windows = windows[..., ::spread]
            joined = windows.amin(-1) if end == 0 else windows.amax(-1)
            ends[end] = joined.movedim(-1, axis)
    return Span(ends[0], ends[1], span.why)


def _convolution(call: Call) -> Span | None:
    weight, stride, padding, dilation, transposed = (call.args[i] for i in (1, 3, 4, 5, 6))
    joined = call.shared(0, (1,))
    if joined is None:
        return call.whole()  # kernels that were computed from the image
    spans = [joined, *call.spans[1:]]
    span = _slide(
        call._replace(spans=spans),
        weight.shape[2:],
        stride,
        padding,
        dilation,
        transposed=transposed,
    )
    return _with_scalars(call, span)


def _with_scalars(call: Call, span: Span | None) -> Span | None:
    """Add what weights that were computed from the image see."""
    for at, weights in enumerate(call.spans[1:], start=1):
        if weights is not None and span is not None:
            every = [dim for dim, grows in enumerate(call.grows[at])]
            joined = call.shared(at, every)
            if joined is not None:
                like = (1,) * len(call.outputs[0])
                span = span | Span(
                    joined.first.reshape(like), joined.last.reshape(like), joined.why
                )
    return span


def _pool(call: Call) -> Span | None:
    kernel = _axes(call.args[1], 2)
    stride = call.args[2] if len(call.args) > 2 and call.args[2] else kernel
    padding = call.args[3] if len(call.args) > 3 else 0
    spread = call.args[4] if call.name == "max_pool2d_with_indices" and len(call.args) > 4 else 1
    return _slide(call, kernel, stride, padding, spread)


def _upsample(call: Call) -> Span | None:
    """Interpolation; positions keep their distances only where one side divides the other."""
    span = call.spans[0]
    if span is None:
        return None
    ends = [span.first, span.last]
    around = 2 if "bicubic" in call.name else 1
    for axis in range(2, len(call.outputs[0])):
        before, after = call.args[0].shape[axis], call.outputs[0][axis]
        if span.first.shape[axis] == 1 or before == after:
            continue
        corners = "nearest" not in call.name and True in call.args[2:3]
        if (before % after and after % before) or corners:
            return call.whole(f"{call.name} from {before} to {after} positions")
        radius = around * max(1, before // after)
        centre = ((torch.arange(after) + 0.5) * before / after - 0.5).floor().long()
        offsets = torch.arange(1 - radius, radius + 1)
        at = (centre[:, None] + offsets).clamp(0, before - 1)
        for end, values in enumerate(ends):
            joined = values.movedim(axis, -1)[..., at]
            joined = joined.amin(-1) if end == 0 else joined.amax(-1)
            ends[end] = joined.movedim(-1, axis)
    return Span(ends[0], ends[1], span.why)


def _shuffle(call: Call) -> Span | None:
    """Channels that become pixels, or the other way round."""
    joined, factor = call.shared(0, [-3]), call.args[1]
    if joined is None:
        return None
    ends = [joined.first, joined.last]
    for axis, end in itertools.product((-2, -1), (0, 1)):
        values = ends[end]
        if values.shape[axis] > 1 and call.name == "pixel_shuffle":
            ends[end] = values.repeat_interleave(factor, axis)
        elif values.shape[axis] > 1:
            blocks: torch.Tensor = torch.unflatten(values, axis, (-1, factor))
            ends[end] = blocks.amin(axis) if end == 0 else blocks.amax(axis)
    return Span(ends[0], ends[1], joined.why)


# Sums over dimensions -------------------------------------------------------------------------


def _dims(value: Any, count: int) -> list[int]:
    if value is None or value == []:
        return list(range(count))
    return [value] if isinstance(value, int) else list(value)


def _reduce(call: Call) -> Span | None:
    at = 2 if call.name == "linalg_vector_norm" else 1
    dims = _dims(call.args[at] if len(call.args) > at else None, call.args[0].ndim)
    keep = len(call.outputs[0]) == call.args[0].ndim
    return call.shared(0, dims, keep=keep)


def _along(call: Call) -> Span | None:
    """A function of each line along one dimension: softmax, a running sum."""
    return call.shared(0, [call.args[1]])


def _last_dims(call: Call) -> Span | None:
    return call.shared(0, [-1 - i for i in range(len(call.args[1]))])


def _groups(call: Call) -> Span | None:
    return call.shared(0, range(1, len(call.outputs[0])))


def _batch_norm(call: Call) -> Span | None:
    if not call.args[5]:
        return call.spans[0]
    return call.shared(0, [dim for dim in range(call.args[0].ndim) if dim != 1])


def _product(call: Call) -> Span | None:
    first = 1 if call.name in ("addmm", "baddbmm") else 0
    sides = [call.shared(first, [-1]), call.shared(first + 1, [-2])]
    if first:
        sides.append(_aligned(call.spans[0], len(call.outputs[0])))
    spans = [span for span in sides if span is not None]
    return _union(spans) if any(span is not None for span in call.spans) else None


def _attention(call: Call) -> Span | None:
    if any(span is not None for span in call.spans[3:]):
        return call.whole()  # a mask that was computed from the image
    sides = [call.shared(0, [-1]), call.shared(1, [-2, -1]), call.shared(2, [-2, -1])]
    return _union([span for span in sides if span is not None])


def _linear(call: Call) -> Span | None:
    return call.shared(0, [-1])


# Element by element ---------------------------------------------------------------------------


def _aligned(span: Span | None, ndim: int) -> Span | None:
    if span is None:
        return None
    like = (1,) * (ndim - span.first.ndim)
    first, last = (values.reshape(like + values.shape) for values in span[:2])
    return Span(first, last, span.why)


def _union(spans: Sequence[Span]) -> Span:
    for span in spans:
        if span.first.numel() == 1 and span.first == -inf and span.last == inf:
            return span  # nothing is to be added
    broadcast: Callable[..., torch.Size] = torch.broadcast_shapes  # untyped in some versions
    shape = broadcast(*(end.shape for span in spans for end in span[:2]))
    if shape.numel() > MOST:
        return everything(len(shape), "pairs of positions")
    joined = spans[0]
    for span in spans[1:]:
        joined = joined | span
    return joined


def _pointwise(call: Call) -> Span:
    aligned = (_aligned(span, len(call.outputs[0])) for span in call.spans)
    return _union([span for span in aligned if span is not None])


_RULES: Mapping[str, Callable[[Call], Span | None]] = {
    **dict.fromkeys(("clone", "_to_copy", "lift_fresh", "contiguous"), lambda call: call.spans[0]),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like"), lambda call: call.spans[0]),
    "hardswish": _pointwise,
    "cat": _joined,
    "stack": _joined,
    "constant_pad_nd": _padded,
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"), _padded),
    **dict.fromkeys(("replication_pad1d", "replication_pad2d", "replication_pad3d"), _padded),
    "convolution": _convolution,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": _pool,
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffle),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm"), _reduce
    ),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "cumsum"), _along),
    "native_layer_norm": _last_dims,
    "native_group_norm": _groups,
    "native_batch_norm": _batch_norm,
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _product),
    "linear": _linear,
}


def spans_of(call: Call) -> list[Span | None]:
    """Return the spans of what a function puts out, one for each tensor.

    Args:
        call: of which at least one argument has a span.

    Example:
        >>> rows = torch.arange(4.0).reshape(1, 1, 4, 1)
        >>> x = torch.empty(1, 3, 4, 4)
        >>> call = Call("avg_pool2d", None, (x, 2), {}, [Span(rows, rows)], [], [(1, 3, 2, 2)])
        >>> [end.flatten().tolist() for end in spans_of(call)[0][:2]]
        [[0.0, 2.0], [1.0, 3.0]]
    """
    rule = _RULES.get(call.name)
    if call.name in _MOVES:
        return list(_moved(call))
    if rule is None and call.name.startswith("_scaled_dot_product"):
        rule = _attention
    elif rule is None and call.name.lstrip("_").startswith("upsample"):
        rule = _upsample
    elif rule is None and torch.Tag.pointwise in getattr(call.func, "tags", ()):
        rule = _pointwise
    span = call.whole() if rule is None else rule(call)
    return [span] * len(call.outputs)
