"""Outputs of torch's functions on the meta device, computed from the shapes of their inputs.

torch writes most of its meta kernels in Python and decomposes what it has none for: up to a
millisecond a call, nearly all of the time that a network takes on the meta device. A rule here
covers the common calls of one function and leaves every other, and every mistake, to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Rule = Callable[..., "torch.Tensor | None"]

# Functions that keep the shape; and where among their arguments ``inplace`` is
KEEP: Mapping[Any, int | None] = {
    F.gelu: None,
    F.hardswish: 1,
    F.hardsigmoid: 1,
    F.silu: 1,
    F.mish: 1,
    F.relu6: 1,
    F.elu: 2,
    F.leaky_relu: 2,
    F.hardtanh: 3,
    F.relu: 1,
    F.softmax: None,
    F.normalize: None,
    torch.sigmoid: None,
    torch.Tensor.sigmoid: None,
    torch.Tensor.softmax: None,
    torch.Tensor.neg: None,
    torch.Tensor.sqrt: None,
    torch.Tensor.roll: None,
}


def _keep(at: int | None) -> Rule:
    def rule(
        x: torch.Tensor, *args: object, inplace: bool = False, **kwargs: object
    ) -> torch.Tensor | None:
        if at is not None and len(args) >= at:
            inplace = bool(args[at - 1])
        if not x.is_floating_point() or any(
            kwargs.get(key) is not None for key in ("dtype", "out")
        ):
            return None
        return x.zero_() if inplace else x.clone()

    return rule


def _norm(x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor | None:
    """Batch and group norm: all tensors have a value for each channel."""
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    counts = (*args[:1], kwargs.get("num_groups"))
    groups = next((value for value in counts if isinstance(value, int)), 1)
    if any(value.shape != x.shape[1:2] for value in tensors) or x.shape[1] % groups:
        return None
    return x.clone()


def _layer_norm(
    x: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: object = None,
) -> torch.Tensor | None:
    shape = tuple(normalized_shape)
    shapes = [value.shape for value in (weight, bias) if value is not None]
    fits = all(value == shape for value in (*shapes, x.shape[x.ndim - len(shape) :]))
    return x.clone() if fits else None


def _made(like: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _elementwise(x: torch.Tensor, y: object) -> torch.Tensor | None:
    if not isinstance(y, torch.Tensor):
        return x.clone() if isinstance(y, (int, float)) and x.is_floating_point() else None
    if x.dtype != y.dtype or not x.is_floating_point():
        return None
    if x.shape == y.shape:
        return x.clone()
    broadcast: Callable[..., torch.Size] = torch.broadcast_shapes  # untyped in some versions
    return _made(x, *broadcast(x.shape, y.shape))


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: object = None) -> torch.Tensor | None:
    if weight.ndim != 2 or x.shape[-1] != weight.shape[1] or x.dtype != weight.dtype:
        return None
    return _made(x, *x.shape[:-1], weight.shape[0])


def _pair(value: object) -> tuple[int, int] | None:
    """Return (H, W) of an argument of a convolution; None for ``"same"`` and the like."""
    if isinstance(value, int):
        return value, value
    return tuple(value) if isinstance(value, (tuple, list)) and len(value) == 2 else None


def _conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: object = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
) -> torch.Tensor | None:
    steps, pads, spreads = _pair(stride), _pair(padding), _pair(dilation)
    if x.ndim != 4 or x.shape[1] != weight.shape[1] * groups or x.dtype != weight.dtype:
        return None
    if steps is None or pads is None or spreads is None:
        return None
    sides = [
        (side + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for side, kernel, step, pad, spread in zip(
            x.shape[2:], weight.shape[2:], steps, pads, spreads, strict=True
        )
    ]
    return _made(x, x.shape[0], weight.shape[0], *sides) if min(sides) > 0 else None


def _attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *_: object,
    **kwargs: object,
) -> torch.Tensor | None:
    if kwargs.get("enable_gqa") or not q.shape[:-2] == k.shape[:-2] == v.shape[:-2]:
        return None
    if q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        return None
    if attn_mask is not None:
        attn_mask.expand(*q.shape[:-1], k.shape[-2])
    return _made(q, *q.shape[:-1], v.shape[-1])


def _axis(dim: int, x: torch.Tensor) -> int:
    """Count an axis from 0; an IndexError if it does not exist."""
    return range(x.ndim)[dim]


def _cat(parts: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    shape, dim = list(parts[0].shape), _axis(dim, parts[0])
    for part in parts[1:]:
        if part.ndim != len(shape) or part.dtype != parts[0].dtype:
            return None
        shape[dim] += part.shape[dim]
        if [*shape[:dim], *shape[dim + 1 :]] != [*part.shape[:dim], *part.shape[dim + 1 :]]:
            return None
    return _made(parts[0], *shape)


def _mean(x: torch.Tensor, dim: int | Sequence[int], keepdim: bool = False) -> torch.Tensor | None:
    dims = {_axis(d, x) for d in ((dim,) if isinstance(dim, int) else dim)}
    if not x.is_floating_point():
        return None
    sides = [1 if d in dims else side for d, side in enumerate(x.shape) if keepdim or d not in dims]
    return _made(x, *sides)


RULES: Mapping[Any, Rule] = {
    **{func: _keep(at) for func, at in KEEP.items()},
    F.batch_norm: _norm,
    F.group_norm: _norm,
    F.layer_norm: _layer_norm,
    F.rms_norm: _layer_norm,
    **{
        getattr(owner, name): _elementwise
        for owner in (torch, torch.Tensor)
        for name in ("add", "sub", "mul", "div")
    },
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.scaled_dot_product_attention: _attention,
    torch.cat: _cat,
    torch.Tensor.mean: _mean,
}


def call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call ``func(*args, **kwargs)``; on the meta device by its rule, if that covers the call."""
    rule = RULES.get(func)
    x = args[0] if args else kwargs.get("input")
    first = x[0] if rule is _cat and x else x
    if rule is not None and isinstance(first, torch.Tensor) and first.is_meta:
        try:
            y = rule(*args, **{("x" if k == "input" else k): v for k, v in kwargs.items()})
        except (TypeError, ValueError, RuntimeError, IndexError):  # torch's to explain
            y = None
        if y is not None:
            return y
    return func(*args, **kwargs)


class ShapeRules(TorchFunctionMode):
    """A context in which every function of torch goes through :func:`call`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        return call(func, args, kwargs or {})
