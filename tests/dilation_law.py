"""The à trous law: what it is about, and how far a dilated network misses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from featnet.errors import InputSizeError
from featnet.layers import BlurPool2d

# Attention over the whole map: the à trous law is not about it
GLOBAL = ("GatedContext", "GlobalContext")


def lost(window: Any) -> int:
    """Positions that an unpadded kernel takes from its map."""

    def rows(value: Any) -> int:
        return int(value[0] if isinstance(value, tuple) else value)

    no_window = not hasattr(window, "kernel_size") or hasattr(window, "dilate")
    if no_window or getattr(window, "ceil_mode", False):
        return 0  # or one whose padding depends on the map
    reach = rows(getattr(window, "dilation", 1)) * (rows(window.kernel_size) - 1) + 1
    padded = 2 * rows(window.padding) + rows(getattr(window, "pad_end", 0))
    return max(0, reach - rows(window.stride) - padded)


class LostPixels:
    """Context: count, in pixels of the image, what unpadded kernels take from the maps of a
    forward."""

    def __init__(self, net: nn.Module, height: int) -> None:
        self.net, self.height, self.pixels = net, height, 0

    def __enter__(self) -> LostPixels:
        windows = [module for module in self.net.modules() if lost(module)]
        self.handles = [module.register_forward_pre_hook(self._count) for module in windows]
        return self

    def _count(self, module: nn.Module, args: Any) -> None:
        self.pixels += lost(module) * -(-self.height // args[0].shape[-2])

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def without_global(model: nn.Module) -> nn.Module:
    """Replace, in place, attention over the whole map by identities; by name, for the peer too."""
    for parent in list(model.modules()):
        for key, child in list(parent.named_children()):
            if type(child).__name__ in GLOBAL:
                setattr(parent, key, nn.Identity())
        if type(parent).__name__ == "CondConvResidual":  # the same mixture whatever the map holds
            nn.init.zeros_(parent.routing_fn.weight)
    return model


class Local(TorchFunctionMode):
    """A context in which no position of a map depends on all others, whatever the modules: what the
    à trous law is not about is the same everywhere.

    Means and maxima over a map are zero, deviations and norms over it are one. Gates and norms
    still do all else that they do. Which of these a network has is a matter of its arguments
    (``attn_layer``, ``norm_layer``), so that they are silenced for all.

    Args:
        breaks: a class's ``breaks_law``. With ``"resampling"``, for the classes that say so, an
            upsampled map is zero.
    """

    def __init__(self, breaks: Sequence[str] = ()) -> None:
        super().__init__()
        upsampling = (F.interpolate,) if "resampling" in breaks else ()
        self.silenced = (*self.zero, *upsampling, *self.one)

    zero = (
        torch.Tensor.mean,
        torch.mean,
        torch.Tensor.amax,
        torch.amax,
        F.adaptive_avg_pool2d,
        F.adaptive_max_pool2d,
    )
    one = (
        torch.Tensor.var,
        torch.var,
        torch.Tensor.std,
        torch.std,
        torch.var_mean,
        torch.Tensor.norm,
        torch.norm,
        torch.linalg.vector_norm,
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.instance_norm:
            return args[0]
        if func is F.group_norm:
            x, _, weight, bias = (*args, kwargs.get("weight"), kwargs.get("bias"))[:4]
            across = (1, -1) + (1,) * (x.ndim - 2)
            scaled = x if weight is None else x * weight.view(across)
            return scaled if bias is None else scaled + bias.view(across)
        found = func(*args, **kwargs)
        if func in self.silenced and isinstance(found, torch.Tensor):
            x = args[0]
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            places = {d % x.ndim for d in dims} if isinstance(dims, (tuple, list)) else set()
            spatial = places >= {2, 3} or places == {1, 2}  # of (N, C, H, W), of (N, H, W, C)
            if spatial or getattr(func, "__module__", "") == F.__name__:
                return torch.full_like(found, float(func in self.one))
        return found


def law_sizes(model: nn.Module, dense: nn.Module) -> list[tuple[int, int]]:
    """Inputs on whose border a network and its dilated form see the same.

    A dilated blur reflects at the last position, so that must be one of the coarsest grid. A window
    without padding that loses a position where the size is odd must find none that is. Blocks that
    fill maps up must find nothing to fill.
    """
    scale = 1 if _takes(model, (64, 64)) else 2
    fills: Any = getattr(model, "map_multiple", 1)
    if fills > 1:
        return [(64 * scale * fills, 96 * scale * fills)]
    blurs = any(
        isinstance(m, BlurPool2d) and m.dilation not in (1, (1, 1)) for m in dense.modules()
    )
    loses = any(_loses(m) for m in model.modules())
    assert not (blurs and loses)
    sizes = (((64, 96), blurs), ((97, 65), loses))
    return [(scale * rows, scale * columns) for (rows, columns), unfit in sizes if not unfit]


def _takes(model: Any, size: tuple[int, int]) -> bool:
    try:
        model.feature_info.sizes(size)
    except InputSizeError:
        return False
    return True


def _loses(window: nn.Module) -> bool:
    """Whether a strided window gives fewer than ``ceil(size / stride)`` positions of odd sizes."""
    facts = [getattr(window, name, None) for name in ("kernel_size", "stride", "padding")]
    if any(fact is None or isinstance(fact, str) for fact in facts):
        return False
    kernel, stride, padding = (f[0] if isinstance(f, tuple) else f for f in facts)
    places = (4 * stride + 1 + 2 * padding - kernel) / stride + 1
    found = math.ceil(places) if getattr(window, "ceil_mode", False) else math.floor(places)
    return stride > 1 and found < 5


def law_error(dense: list[torch.Tensor], full: list[torch.Tensor], steps: list[int]) -> float:
    """How far ``dense[::m, ::m] == full`` is missed, over all levels."""
    pairs = zip(dense, full, steps, strict=True)
    return max(error(d[..., ::m, ::m], f) for d, f, m in pairs)


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).detach().abs().max() / b.detach().abs().max())
