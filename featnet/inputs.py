"""Checks and padding of inputs, and the layouts of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import nn

from .errors import ArgumentError, FeatnetError, InputSizeError, check_choice
from .tracing import trace

FORMATS = ("NCHW", "NHWC", "NLC")


_OF_SIZES = (RuntimeError, ValueError, ZeroDivisionError)  # what a wrong size may end in


class explain_size:
    """Context: a RuntimeError that is due to the input's size or type becomes an error of ours.

    The message has the smallest square that the network takes, found on the meta device, so that
    nothing is paid when all is well.

    Args:
        model: the network.
        size: (height, width) of the input.
        x: the input, where there is one.
    """

    def __init__(
        self, model: nn.Module, size: Sequence[int], x: torch.Tensor | None = None
    ) -> None:
        self.model, self.size, self.x = model, size, x

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, _OF_SIZES) or isinstance(error, FeatnetError):
            return  # ours say themselves what is wrong
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return  # a run would become a part of the trace
        if self.x is not None:
            if not isinstance(self.x, torch.Tensor):
                return  # a trace of torch.fx: neither size nor type are known
            _explain_place(self.model, self.x, error)
        height, width = self.size

        def fails(size: tuple[int, int]) -> bool:
            try:
                trace.run(self.model, size, watched=trace.no_modules)
            except _OF_SIZES:
                return True
            return False

        small = self.model.training and height * width <= 64 * 64
        single = small and "1 value per channel" in str(error)
        if not single and not fails((height, width)):
            return  # the size is not to blame
        step = next((s for s in (1, 2, 4, 8, 16, 32, 64, 128) if not fails((s, s))), None)
        low = step // 2 if step else 0  # step // 2 fails, step works
        while step and step - low > 1:
            middle = (low + step) // 2
            low, step = (middle, step) if fails((middle, middle)) else (low, middle)
        smallest = f" The smallest square that works is {step} x {step}." if step else ""
        if single:
            smallest = " In training, batch norm needs more than one value per channel."
        raise InputSizeError(
            f"{type(self.model).__name__} cannot take an input of {height} x {width}.{smallest}"
        ) from error


def _explain_place(model: nn.Module, x: torch.Tensor, error: Exception) -> None:
    """Raise an ArgumentError where the input's device or type is to blame."""
    devices = {p.device.type for p in model.parameters()}
    if devices and x.device.type not in devices:
        raise ArgumentError(
            f"The input is on {x.device} and the network on {' and '.join(sorted(devices))}: move "
            "one of them with .to(device)."
        ) from error
    dtypes, dtype = {p.dtype for p in model.parameters() if p.is_floating_point()}, x.dtype
    if dtype in dtypes or not dtypes:
        return
    autocast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    if autocast and dtype in (torch.float32, torch.bfloat16, torch.float16):
        return  # it converts these
    ours = " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
    advice = "use featnet.create_transform, or x.float() / 255"
    if dtype.is_floating_point:
        advice = "convert one of them with .to(dtype=...)"
    raise ArgumentError(
        f"The input is {str(dtype).removeprefix('torch.')} and the network {ours}: {advice}."
    ) from error


def check_format(output_fmt: str) -> str:
    """Refuse a layout that does not exist.

    Raises:
        ArgumentError: with the layouts that exist.
    """
    check_choice("output_fmt", output_fmt, FORMATS)
    return output_fmt


def to_format(x: torch.Tensor, output_fmt: str) -> torch.Tensor:
    """Turn a map (N, C, H, W) into another layout, one of :data:`FORMATS`."""
    if output_fmt == "NHWC":
        return x.permute(0, 2, 3, 1)
    return x.flatten(2).transpose(1, 2) if output_fmt == "NLC" else x


def check_input(x: object, in_chans: int) -> None:
    """Refuse what is no batch (N, in_chans, H, W).

    Raises:
        ArgumentError: not a tensor.
        InputSizeError: the wrong number of dimensions or channels.
    """
    if torch._C._get_tracing_state() is not None:
        return  # sizes are tensors then, and the example was checked when it first ran
    if not isinstance(x, torch.Tensor):
        if type(x).__name__ == "Proxy":  # torch.fx
            return
        raise ArgumentError(
            f"The input is a {type(x).__name__}; a tensor (N, C, H, W) is expected."
        )
    if x.is_sparse:
        raise ArgumentError(
            f"The input is sparse ({x.layout}); a dense (N, {in_chans}, H, W) batch is expected: "
            "x.to_dense()."
        )
    if x.ndim != 4:
        raise InputSizeError(
            f"The input has {x.ndim} dimensions, {tuple(x.shape)}; (N, {in_chans}, H, W) is "
            "expected." + (" Add the batch dimension: x[None]." if x.ndim == 3 else "")
        )
    if x.shape[1] != in_chans:
        raise InputSizeError(
            f"The input has {x.shape[1]} channels, {tuple(x.shape)}; the network was built with "
            f"in_chans={in_chans}: (N, {in_chans}, H, W) is expected."
        )


def _check_images(x: object) -> None:
    if not isinstance(x, torch.Tensor) or x.ndim < 2:
        what = f"{x.ndim} dimensions" if isinstance(x, torch.Tensor) else repr(x)
        raise ArgumentError(f"A tensor (N, C, H, W) is expected, not {what}.")


def pad_to_divisor(x: torch.Tensor, net: nn.Module) -> torch.Tensor:
    """Pad images with zeros, after the last row and column, so that a network takes them.

    The sides become multiples of ``net.size_divisibility``. :func:`unpad` takes the padding off the
    maps.

    Args:
        x: images (N, C, H, W), of any size.
        net: a Backbone or an extractor, or any module with an int ``size_divisibility``.

    Returns:
        Images (N, C, H', W'), with H' >= H and W' >= W.

    Raises:
        ArgumentError: no images, or the network has no ``size_divisibility``.

    Example:
        >>> net = featnet.create_model("vit_tiny_patch16_224", features_only=True, device="meta")
        >>> featnet.pad_to_divisor(torch.ones(1, 3, 50, 64), net).shape
        torch.Size([1, 3, 64, 64])
    """
    _check_images(x)
    step = getattr(net, "size_divisibility", None)
    if not isinstance(step, int):
        raise ArgumentError(f"{type(net).__name__} has no size_divisibility.")
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % step, 0, -height % step))


def unpad(y: torch.Tensor, x: torch.Tensor, *, padded: torch.Tensor) -> torch.Tensor:
    """Cut off the rows and columns of a map that only padding gave.

    Args:
        y: a map (N, C, h, w) of the padded images.
        x: the images (N, C, H, W) before :func:`pad_to_divisor`.
        padded: the images (N, C, H', W') after it.

    Returns:
        The part of the map, a view, that the images themselves reach.

    Raises:
        ArgumentError: not tensors.

    Example:
        >>> x, padded = torch.ones(1, 3, 50, 64), torch.ones(1, 3, 64, 64)
        >>> featnet.unpad(torch.ones(1, 8, 16, 16), x, padded=padded).shape
        torch.Size([1, 8, 13, 16])
    """
    for each in (y, x, padded):
        _check_images(each)
    (height, width), (tall, wide) = x.shape[-2:], padded.shape[-2:]
    rows, columns = y.shape[-2:]
    return y[..., : -(-rows * height // tall), : -(-columns * width // wide)]
