"""A convolution for inference on the CPU: its kernel lies as oneDNN wants it, its activation is
part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# What oneDNN applies to a value before it writes it: name, scalars, algorithm
PostOp = tuple[str, list[float], str]
NOTHING: PostOp = ("none", [], "")

POST_OPS: Mapping[type[nn.Module], Callable[[Any], PostOp]] = {
    nn.ReLU: lambda act: ("relu", [], ""),
    nn.ReLU6: lambda act: ("hardtanh", [0.0, 6.0], ""),
    nn.Hardtanh: lambda act: ("hardtanh", [act.min_val, act.max_val], ""),
    nn.LeakyReLU: lambda act: ("leaky_relu", [act.negative_slope], ""),
    nn.SiLU: lambda act: ("swish", [], ""),
    nn.Hardswish: lambda act: ("hardswish", [], ""),
    nn.Hardsigmoid: lambda act: ("hardsigmoid", [], ""),
    nn.Sigmoid: lambda act: ("sigmoid", [], ""),
    nn.Tanh: lambda act: ("tanh", [], ""),
    nn.GELU: lambda act: ("gelu", [], act.approximate),
}


class _Kernel:
    """A packed kernel. It never changes, so copies share it; pickled, it is the plain one."""

    def __init__(self, weight: torch.Tensor, geometry: tuple[Any, ...], size: list[int]) -> None:
        self.shape = weight.shape
        self.geometry, self.size = geometry, size
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, size)

    def plain(self) -> torch.Tensor:
        """The kernel as (O, I / groups, kh, kw)."""
        return self.packed.to_dense()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kernel:
        return self

    def __reduce__(self) -> Any:
        return _Kernel, (self.plain(), self.geometry, self.size)


class PackedConv2d(nn.Module):
    """``act(conv(x))`` in one call of oneDNN, float32 on the CPU, without gradients.

    Args:
        conv: what it does.
        act: one of ``POST_OPS``, or None.
        size: (N, C, H, W) for which the kernel is laid out; others work too.
    """

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, *, size: Sequence[int]) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = (
            conv.in_channels, conv.out_channels, conv.groups
        )  # fmt: skip
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        self.post = NOTHING if act is None else POST_OPS[type(act)](act)
        self.act_name = type(act).__name__ if act is not None else ""
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.kernel = _Kernel(conv.weight.detach(), geometry, list(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W'), in channels_last."""
        padding, stride, dilation, groups = self.kernel.geometry
        if x.is_meta:  # only the shape is asked for
            weight = torch.empty(self.kernel.shape, dtype=x.dtype, device="meta")
            return F.conv2d(x, weight, None, stride, padding, dilation, groups)
        x = x.contiguous(memory_format=torch.channels_last)
        y: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.kernel.packed, self.bias, padding, stride, dilation, groups, *self.post
        )
        return y

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, act={self.act_name or None}"
        )
