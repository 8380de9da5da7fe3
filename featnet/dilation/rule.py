"""``output_stride``: one rule for every network made of convolutions and pools.

Let an operation of the original network read a map at reduction r_in and write one at r_out. For
output stride s it gets stride ``min(r_out, s) / min(r_in, s)`` and samples ``r_in / min(r_in, s)``
times further apart. Then the new network's map at every (32/s)-th position equals the original
network's map: the à trous algorithm (https://arxiv.org/abs/1412.7062).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import OutputStrideError
from ..features import Feature
from ..layers import Phased
from ..tracing import trace

Pair = tuple[int, int]

# A depthwise convolution that pads more than this takes a slow kernel on the CPU; on a map that is
# padded before it takes the quick one (python -m benchmarks.dilated)
_QUICK_PADDING = 7


class Window(Protocol):
    """A module that slides a window: a convolution, a pool, or one with their attributes.

    One that has a method ``dilate(density, stride) -> module`` is asked for its own dilated form: the
    input is ``density`` times denser, and ``stride`` (rows, columns) is what is left of its stride.
    Self-attention, which has no kernel, needs nothing but that method. A ``channels_last`` one
    reads (N, H, W, C).
    """

    kernel_size: Any
    stride: Any
    padding: Any
    dilation: Any


def _pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def stride_of(module: nn.Module) -> Pair:
    """(rows, columns) that a window moves by."""
    window: Any = module
    return _pair(getattr(window, "stride", 1) or window.kernel_size)


def _side(module: nn.Module, shape: torch.Size) -> torch.Size:
    """(height, width) of a map that a window reads or writes."""
    return shape[1:3] if getattr(module, "channels_last", False) else shape[-2:]


def is_window(module: nn.Module) -> bool:
    """Tell if a module slides a window over a map."""
    if isinstance(module, (nn.Conv1d, nn.Conv3d, nn.modules.conv._ConvTransposeNd)):
        return False
    if isinstance(module, nn.AvgPool2d) or hasattr(module, "dilate"):
        return True
    return all(hasattr(module, a) for a in ("kernel_size", "stride", "padding", "dilation"))


def has_stride(module: nn.Module) -> bool:
    """Tell if an output stride may change a module."""
    return is_window(module) or (
        isinstance(module, nn.Upsample) and module.scale_factor is not None
    )


class _Padded:
    """A window that pads the map itself, and ``pad_end`` (rows, columns) more after it."""

    padding: Any
    pad_end: Pair = (0, 0)

    def pad(self, x: torch.Tensor, value: float = 0.0) -> torch.Tensor:
        (top, left), (bottom, right) = _pair(self.padding), self.pad_end
        return F.pad(x, (left, left + right, top, top + bottom), value=value)


class PaddedConv2d(_Padded, nn.Conv2d):
    """A convolution that pads the map itself.

    On a CPU a depthwise one with much padding is faster so, see ``_QUICK_PADDING``.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(
            self.pad(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class PaddedMaxPool2d(_Padded, nn.MaxPool2d):
    """Max pooling that pads the map itself.

    Its padding may be more than half the kernel, which a dilated kernel needs and torch's own
    does not do everywhere.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(
            self.pad(x, -math.inf),
            self.kernel_size,
            self.stride,
            0,
            self.dilation,
            ceil_mode=self.ceil_mode,
        )


class DilatedAvgPool2d(_Padded, nn.Module):
    """Average pooling whose window is dilated, which torch's cannot be.

    Counts the padding, or the positions within the map only, as the pool that it replaces does.
    """

    def __init__(
        self,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        *,
        pad_end: Pair,
        count_include_pad: bool,
        divisor: int | None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        self.padding, self.pad_end = padding, pad_end
        self.count_include_pad, self.divisor_override = count_include_pad, divisor

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pad(x)
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        height, width = x.shape[-2] - reach[0], x.shape[-1] - reach[1]
        taps = [
            x[..., i : i + height : self.stride[0], j : j + width : self.stride[1]]
            for i in range(0, reach[0] + 1, self.dilation[0])
            for j in range(0, reach[1] + 1, self.dilation[1])
        ]
        total = taps[0]
        for tap in taps[1:]:
            total = total + tap
        return total

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.divisor_override:
            return self._sum(x) / self.divisor_override
        if self.count_include_pad and not any(self.pad_end):
            return self._sum(x) / (self.kernel_size[0] * self.kernel_size[1])
        ones = torch.ones_like(x[:1, :1])
        if self.count_include_pad:  # the original's own padding counts, what was added does not
            top, left = self.padding
            ones = F.pad(ones, (left, left, top, top), value=1.0)
            count = DilatedAvgPool2d(
                self.kernel_size,
                self.stride,
                (0, 0),
                self.dilation,
                pad_end=self.pad_end,
                count_include_pad=False,
                divisor=1,
            )._sum(ones)
            return self._sum(x) / count
        return self._sum(x) / self._sum(ones)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


@dataclasses.dataclass(frozen=True)
class Step:
    """The change of a window: of its input and output, and so of its step and its reach."""

    density: int  # r_in / min(r_in, s): how much denser the input is now
    stride: Pair
    scale: Fraction  # of an upsampling: its factor


def plan(
    modules: Mapping[str, nn.Module], calls: Iterable[trace.Call], output_stride: int, size: Pair
) -> dict[str, Step]:
    """Every window and upsampling, by name, from a run of the original network."""
    known: set[Fraction] = {Fraction(1)}
    steps: dict[str, Step] = {}

    def reduction(height: int) -> Fraction:
        # Unpadded kernels make maps a little smaller than their nominal size
        ratio = size[0] / height
        return min(known, key=lambda r: abs(math.log(ratio / float(r))))

    # What is inside runs on maps of the original's density, and stays as it is
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, Phased))
    for call in calls:
        module = modules[call.name]
        if call.name.startswith(inside):
            continue
        if not has_stride(module) or not call.inputs or len(call.inputs[0]) != 4:
            continue
        given, gave = _side(module, call.inputs[0]), _side(module, call.outputs[0])
        if (1, 1) in (given, gave):
            continue  # behind a global pool, or one itself: no positions are left to be apart
        r_in = reduction(given[0])
        stride = _ratio(module)
        r_out = r_in * stride[0]
        known.add(r_out)
        dense = min(r_in, Fraction(output_stride))
        new = min(r_out, Fraction(output_stride)) / dense
        density = r_in / dense
        fits = isinstance(module, nn.Upsample) or (
            new.denominator == 1 and density.denominator == 1
        )
        if not fits or stride[0] != stride[1]:
            raise OutputStrideError(
                f"output_stride={output_stride}: {call.name} ({type(module).__name__}) reads at "
                f"reduction {r_in} and writes at {r_out}, which has no whole stride there."
            )
        step = Step(int(density), (int(new), int(new)), scale=1 / new)
        if steps.setdefault(call.name, step) != step:
            raise OutputStrideError(
                f"output_stride={output_stride}: {call.name} runs at two resolutions, which need "
                "different strides."
            )
    return steps


def _ratio(module: Any) -> tuple[Fraction, Fraction]:
    """By how much a map gets coarser: a window's stride; below 1 of an upsampling."""
    if isinstance(module, nn.Upsample):
        factor: Any = module.scale_factor
        rows, columns = factor if isinstance(factor, tuple) else (factor, factor)
        return 1 / Fraction(rows).limit_denominator(64), 1 / Fraction(columns).limit_denominator(64)
    rows, columns = stride_of(module)
    return Fraction(rows), Fraction(columns)


def dilate(module: nn.Module, step: Step) -> nn.Module:
    """The module with another stride and reach; a new one that shares its tensors if need be."""
    window: Any = module
    density, stride = step.density, stride_of(module)
    lost = step.stride != stride
    kernel = _pair(getattr(window, "kernel_size", 0))
    if not lost and (density == 1 or kernel == (1, 1)):
        return module
    if hasattr(window, "dilate"):  # it knows better: its padding depends on the map, for instance
        dilated = window.dilate(density, step.stride)
        assert isinstance(dilated, nn.Module)
        return dilated
    before, dilation = _pair(window.padding), _pair(getattr(window, "dilation", 1))
    padding = (before[0] * density, before[1] * density)
    # A kernel of one position has no reach: it is computed as it was
    dilated = (
        dilation[0] * density if kernel[0] > 1 else dilation[0],
        dilation[1] * density if kernel[1] > 1 else dilation[1],
    )
    end = (0, 0)
    # An unpadded kernel longer than its stride drops border positions: then nothing is added
    drops = any(
        d * (k - 1) + 1 - s > 2 * p
        for d, k, s, p in zip(dilation, kernel, stride, before, strict=True)
    )
    ceil = getattr(module, "ceil_mode", False)
    if ceil or (lost and not drops):  # keep the size: what is missing goes after
        reach = [d * (k - 1) + 1 - s for d, k, s in zip(dilated, kernel, step.stride, strict=True)]
        end = (max(0, reach[0] - 2 * padding[0]), max(0, reach[1] - 2 * padding[1]))
    if isinstance(module, nn.AvgPool2d):
        return DilatedAvgPool2d(
            kernel,
            step.stride,
            padding,
            dilated,
            pad_end=end,
            count_include_pad=module.count_include_pad,
            divisor=module.divisor_override,
        ).train(module.training)
    deep = isinstance(module, nn.MaxPool2d) and max(padding) > min(kernel) // 2
    slow = (
        type(module) is nn.Conv2d
        and module.groups == module.in_channels > 1
        and max(padding) > _QUICK_PADDING
    )
    if end != (0, 0) or deep or slow:
        kinds: dict[type, Any] = {nn.Conv2d: PaddedConv2d, nn.MaxPool2d: PaddedMaxPool2d}
        if type(module) not in kinds:
            raise OutputStrideError(
                f"{type(module).__name__} with kernel {kernel} cannot pad on one side, which "
                "losing its stride needs."
            )
        padded: Any = kinds[type(module)].__new__(kinds[type(module)])
        padded.__dict__.update(module.__dict__)
        padded.pad_end, window = end, padded
    window.stride, window.padding, window.dilation = step.stride, padding, dilated
    return window


def check_stride(output_stride: Any, allowed: list[int], model: nn.Module) -> None:
    """Refuse what is not one of the strides that a network can have.

    Raises:
        OutputStrideError: with those, and the nearest.
    """
    if isinstance(output_stride, bool) or not isinstance(output_stride, int):
        raise OutputStrideError(
            f"output_stride={output_stride!r} is a {type(output_stride).__name__}; "
            f"{type(model).__name__} can have the ints {allowed}."
        )
    if output_stride not in allowed:
        near = min(allowed, key=lambda stride: abs(stride - output_stride))
        raise OutputStrideError(
            f"output_stride={output_stride}: {type(model).__name__} can have {allowed}; the "
            f"nearest is {near}."
        )


def apply(model: nn.Module, steps: Mapping[str, Step]) -> None:
    """Give the modules of these names other strides, in place."""
    done: set[int] = set()
    for name, step in steps.items():
        module = model.get_submodule(name)
        if id(module) in done:
            continue  # one module under two names
        done.add(id(module))
        if isinstance(module, nn.Upsample):
            module.scale_factor = float(step.scale)
            continue
        dilated = dilate(module, step)
        if dilated is not module:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, dilated)


def set_output_stride(model: Any, output_stride: int) -> None:
    """Give a Backbone an output stride, in place; parameters and their names stay.

    Raises:
        OutputStrideError: not one of the network's ``output_strides``, or one that an operation
            outside of its modules does not let it hold.
    """
    levels: list[Feature] = list(model._levels)
    allowed: list[int] = model.output_strides
    check_stride(output_stride, allowed, model)
    if output_stride >= allowed[-1]:
        return
    size = trace.probe_size(model)
    before = trace.run(model, size, watched=has_stride)
    modules = dict(model.named_modules(remove_duplicate=False))
    apply(model, plan(modules, before.calls, output_stride, size))
    held = trace.run(model, size, watched=trace.no_modules).levels
    for index, level in enumerate(levels):
        old, new = before.levels[index], held[index]
        reduction = min(level.reduction, output_stride)
        wanted = old[-2] * level.reduction / reduction
        # Unpadded kernels lose a few positions at the border, now as many times more of them
        if abs(new[-2] - wanted) > level.reduction / reduction * 2:
            raise OutputStrideError(
                f"output_stride={output_stride} does not hold at {level.module}: its map is "
                f"{new[-2]} high for an input of {size[0]}, {wanted:g} were expected. Something "
                "in its forward strides without a module."
            )
        levels[index] = dataclasses.replace(level, reduction=reduction)
    model._levels = tuple(levels)
