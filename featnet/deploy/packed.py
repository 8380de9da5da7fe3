"""Layers for inference on the CPU, with weights laid out for oneDNN, and their activation."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError

# The operation that oneDNN applies to a value before it writes it: name, scalars, algorithm
PostOp: TypeAlias = tuple[str, list[float], str]
# Padding, stride and dilation along (H, W), and groups
Geometry: TypeAlias = tuple[list[int], list[int], list[int], int]
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
SIZES, LAYOUTS = 256, 4  # of maps, and of its kernel for them, that a convolution remembers
ROWS = 4096  # of a product: the layout for many rows is good for few, but not the other way round


class _Weight:
    """A packed weight. It never changes, so copies share it; pickled, it is the plain one's bytes:
    a tensor would go to another process by a descriptor that is closed too early."""

    packed: torch.Tensor

    def __init__(self, weight: torch.Tensor) -> None:
        self.shape, self.dtype = weight.shape, weight.dtype

    def plain(self) -> torch.Tensor:
        """Return the weight as torch's layer has it."""
        return self.packed.to_dense()

    def like(self, weight: torch.Tensor) -> _Weight:
        """Pack another weight in the same way."""
        raise NotImplementedError

    def on_meta(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def __deepcopy__(self, memo: dict[int, object]) -> _Weight:
        return self


class _Matrix(_Weight):
    """A matrix (O, I), laid out once for products with any number of rows."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__(weight)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)

    def like(self, weight: torch.Tensor) -> _Matrix:
        return _Matrix(weight)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (_Matrix, *_pickled(self.plain()))


class _Kernel(_Weight):
    """A kernel (O, I / groups, kh, kw), in the layouts for the sizes of maps that it has met.

    oneDNN takes another algorithm for another size, and some of them want another layout: given the
    wrong one it reorders the kernel in each call, which can take longer than the convolution.
    """

    def __init__(self, weight: torch.Tensor, geometry: Geometry, size: Sequence[int]) -> None:
        super().__init__(weight)
        self.geometry, self.size = geometry, tuple(size)
        self.layouts: dict[bytes, torch.Tensor] = {}
        self.by_size: dict[Sequence[int], torch.Tensor] = {}
        self.packed = self._lay_out(weight, self.size)

    def for_size(self, size: torch.Size) -> torch.Tensor:
        """Return the kernel in its best layout for maps (N, C, H, W) of this size."""
        packed = self.by_size.get(size)
        return self._lay_out(self.plain(), size) if packed is None else packed

    def _lay_out(self, weight: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        ops = torch.ops.mkldnn
        packed = ops._reorder_convolution_weight(weight, *self.geometry, list(size))
        # Its start is the kernel's size, the same for all, and bytes of padding that are never set
        layout = bytes(ops._get_mkldnn_serialized_md(packed)[112:].tolist())
        if len(self.by_size) >= SIZES or len(self.layouts) >= LAYOUTS:
            self.by_size.clear()
            self.layouts.clear()
        packed = self.by_size[size] = self.layouts.setdefault(layout, packed)
        return packed

    def like(self, weight: torch.Tensor) -> _Kernel:
        return _Kernel(weight, self.geometry, self.size)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (_Kernel, *_pickled(self.plain()), self.geometry, self.size)


def _pickled(weight: torch.Tensor) -> tuple[bytes, torch.dtype, tuple[int, ...]]:
    weight = weight.contiguous()
    return ctypes.string_at(weight.data_ptr(), weight.nbytes), weight.dtype, tuple(weight.shape)


def _unpickled(
    kind: Callable[..., _Weight],
    data: bytes,
    dtype: torch.dtype,
    shape: Sequence[int],
    *args: object,
) -> _Weight:
    return kind(torch.frombuffer(bytearray(data), dtype=dtype).view(*shape), *args)


class Packed(nn.Module):
    """Base of the packed layers: a bias, an activation, and the attributes of the plain layer.

    A state dict has the plain weight; one that is loaded is packed again.
    """

    kernel: _Weight

    def __init__(self, layer: nn.Linear | nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__()
        _copy_attributes(self, layer)
        self.post = NOTHING if act is None else POST_OPS[type(act)](act)
        self.act_name = type(act).__name__ if act is not None else ""
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    @property
    def weight(self) -> torch.Tensor:
        """The weight in torch's own layout, a copy."""
        return self.kernel.plain()

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[f"{prefix}weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: object,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = f"{prefix}weight"
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        weight, old = state_dict.get(key), self.weight
        if weight is None:
            missing_keys.append(key)
        elif weight.shape != old.shape:
            error_msgs.append(
                f"size mismatch for {key}: {tuple(weight.shape)}, not {tuple(old.shape)}."
            )
        else:
            plain = weight.detach().to(old).view(self.kernel.shape)
            self.kernel = self.kernel.like(plain)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Refuse another type or device; conversions of modules come here.

        Raises:
            ArgumentError: what was packed is of one type, for the CPU.
        """
        before = torch.empty(0, dtype=self.kernel.dtype)
        after = fn(before)
        if after.dtype != before.dtype or after.device != before.device:
            raise ArgumentError(
                f"The weights were packed for the CPU in {before.dtype} and cannot become "
                f"{after.dtype} on {after.device}: convert the network before optimize()."
            )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def takes(self, x: torch.Tensor) -> torch.Tensor:
        """Convert the input to the type that was packed: under autocast it may have another.

        Raises:
            ArgumentError: it is of another type, without autocast; a gradient is wanted; in a
                trace.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                "A network that optimize() has packed has no gradients: train the one that it was "
                "made from."
            )
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise ArgumentError(
                "torch.jit.trace cannot hold weights that are packed: trace the network that "
                "optimize() was given."
            )
        dtype = self.kernel.dtype
        if x.dtype == dtype:
            return x
        if torch.is_autocast_enabled(x.device.type):
            return x.to(dtype)
        raise ArgumentError(
            f"A layer whose weights were packed in {dtype} was given {x.dtype}: give it {dtype}, "
            "or convert the network before optimize."
        )

    def extra_repr(self) -> str:
        return f"{_sizes_of(self)}, act={self.act_name or None}"


def _copy_attributes(to: nn.Module, layer: nn.Linear | nn.Conv2d) -> None:
    """Copy sizes, strides and the like, which a network may ask for."""
    for key in layer.__constants__:
        setattr(to, key, getattr(layer, key))


def _sizes_of(layer: Any) -> str:
    if hasattr(layer, "in_features"):
        return f"{layer.in_features}, {layer.out_features}"
    return (
        f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, "
        f"stride={layer.stride}"
    )


class PackedConv2d(Packed):
    """``act(conv(x))`` in one call of oneDNN, on the CPU, without gradients.

    Args:
        conv: the convolution, whose weight is copied.
        act: one of ``POST_OPS``, or None.
        size: (N, C, H, W) for which the kernel is laid out at once; for others when they come.
    """

    kernel: _Kernel

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, *, size: Sequence[int]) -> None:
        super().__init__(conv, act)
        assert not isinstance(conv.padding, str)  # see ``packing``
        geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.kernel = _Kernel(conv.weight.detach(), geometry, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W'), in channels_last."""
        kernel = self.kernel
        padding, stride, dilation, groups = kernel.geometry
        if x.is_meta:  # only the shape is asked for
            return F.conv2d(x, kernel.on_meta(), None, stride, padding, dilation, groups)
        x = self.takes(x).contiguous(memory_format=torch.channels_last)
        y: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, kernel.for_size(x.shape), self.bias, padding, stride, dilation, groups, *self.post
        )
        return y


class PackedLinear(Packed):
    """``act(linear(x))`` in one call of oneDNN, on the CPU, without gradients.

    Args:
        linear: the layer, whose weight is copied; or a 1x1 convolution, for
            :class:`PackedPointwise`.
        act: one of ``POST_OPS``, or None.
    """

    kernel: _Matrix

    def __init__(self, linear: nn.Linear | nn.Conv2d, act: nn.Module | None) -> None:
        super().__init__(linear, act)
        self.kernel = _Matrix(linear.weight.detach().flatten(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C')."""
        if x.is_meta:  # only the shape is asked for
            return F.linear(x, self.kernel.on_meta())
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            self.takes(x), self.kernel.packed, self.bias, *self.post
        )
        return y


class PackedPointwise(PackedLinear):
    """``act(conv(x))`` of a 1x1 convolution: the product over the channels of each position."""

    @property
    def weight(self) -> torch.Tensor:
        return self.kernel.plain()[..., None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H, W), in channels_last."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Pointwise(nn.Module):
    """A 1x1 convolution as torch's own linear layer, which is quickest for a single position:
    oneDNN takes longer to begin."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        _copy_attributes(self, conv)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H, W), in channels_last."""
        y = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return _sizes_of(self)
