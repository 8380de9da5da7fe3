"""Sizes and layouts, also while a graph is captured that is for many of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..size import Size


def same_size(size: Size, other: Size) -> bool | None:
    """True if two sizes are equal; None where a graph is captured for such as are and such as are
    not, which asking any other way would narrow down to one kind."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        rows, columns = size[0] == other[0], size[1] == other[1]
        if statically_known_true(rows) and statically_known_true(columns):
            return True
        rows, columns = size[0] != other[0], size[1] != other[1]
        if statically_known_true(rows) or statically_known_true(columns):
            return False
        return None
    if not all(isinstance(side, int) for side in size):
        return None  # what torch.jit and torch.fx put there
    return tuple(size) == tuple(other)


def ceil_div(length: int, step: int) -> int:
    """Number of steps that cover a length; of what is not negative, since ONNX rounds a quotient
    towards zero."""
    return (length + step - 1) // step


def crop(x: torch.Tensor, size: Size, *, axis: int = 1) -> torch.Tensor:
    """A map without the rows and columns after those of ``size``; they lie along ``axis`` and the
    next one."""
    same = same_size((x.shape[axis], x.shape[axis + 1]), size)
    if same:
        return x
    if same is None and torch.compiler.is_compiling():
        # In a graph for all sizes nobody may ask whether a view is the whole
        rows, columns = (torch.arange(side, device=x.device) for side in size)
        return x.index_select(axis, rows).index_select(axis + 1, columns)
    return x.narrow(axis, 0, size[0]).narrow(axis + 1, 0, size[1])


def stride_of(layer: nn.Module) -> tuple[int, int]:
    """(rows, columns) of a convolution's stride, also where an adapter holds the convolution; (1,
    1) of what has none."""
    strides = (part.stride for part in layer.modules() if hasattr(part, "stride"))
    stride: Any = next(strides, 1)
    return (stride, stride) if isinstance(stride, int) else tuple(stride)


def in_memory_format_of(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A map, contiguous, with its channels last where those of ``x`` are; what compiles chooses for
    itself."""
    graph = torch.compiler.is_compiling() or type(x).__name__ == "Proxy"  # of torch.fx
    if graph or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y.contiguous()
    return y.contiguous(memory_format=torch.channels_last)
