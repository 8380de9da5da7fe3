"""Positions of an image followed through a network: which pixel each element of a tensor stands
for.

A shadow of integers goes beside each tensor. Operations that move elements move the shadow; the
others keep it, take that of the rows, or lose it. Nothing is computed: the network runs on the meta
device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from . import probing, structure
from .watch import tensors

# They put elements elsewhere
_MOVES = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "permute",
        "transpose",
        "t",
        "expand",
        "clone",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "split",
        "split_with_sizes",
        "unbind",
        "roll",
        "alias",
        "detach",
        "repeat",
        "flip",
        "unfold",
        "cat",
        "stack",
        "narrow",
        "diagonal",
        "movedim",
        "swapaxes",
        "chunk",
        "tile",
        "contiguous",
        "constant_pad_nd",
    ]
)
_REDUCES = frozenset(["mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp"])
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "matmul": (0, 1)}
NOWHERE = -1  # the position of what is no part of the image: a class token


def _place(value: object) -> torch.Tensor | None:
    place: torch.Tensor | None = getattr(value, "_place", None)
    return place


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode that carries the shadows along."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if any(_place(tensor) is not None for tensor in tensors([args, kwargs])):
            outputs = list(tensors(value))
            try:
                places = _places(name, func, args, kwargs or {}, outputs)
            except Exception:  # of a kind that is not known: the positions are lost
                places = [None] * len(outputs)
            for tensor, place in zip(outputs, places, strict=False):
                tensor._place = place  # type: ignore[attr-defined]
        return value


def _places(
    name: str, func: Any, args: Any, kwargs: Any, outputs: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    shape = outputs[0].shape
    if name in _MOVES:
        moved = func(*(_shadow(arg) for arg in args), **kwargs)
        return list(tensors(moved))
    first = _place(args[0])
    if name in _PRODUCTS:
        rows, columns = (_place(args[at]) for at in _PRODUCTS[name])
        return [_product(rows, columns, shape)]
    if first is not None and name in _REDUCES and len(args) > 1:
        keep = bool(args[2]) if len(args) > 2 else bool(kwargs.get("keepdim", False))
        dims = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        return [first.amin(dims, keepdim=keep)] * len(outputs)
    if first is not None and name.startswith("_scaled_dot_product"):
        return [first.amin(-1, keepdim=True).expand(shape)]
    if first is not None and len(shape) == first.ndim == 4 and first.shape != shape:
        rows_at = torch.arange(shape[2]) * first.shape[2] // shape[2]
        columns_at = torch.arange(shape[3]) * first.shape[3] // shape[3]
        return [first[:, :1, rows_at][..., columns_at].expand(shape)]
    for tensor in tensors(list(args)):
        place = _place(tensor)
        if place is not None and torch.broadcast_shapes(place.shape, shape) == shape:  # type: ignore[no-untyped-call]
            return [place.broadcast_to(shape)] + [None] * (len(outputs) - 1)
    return [None] * len(outputs)


def _shadow(value: object) -> Any:
    if isinstance(value, torch.Tensor):
        place = _place(value)
        return torch.full(value.shape, NOWHERE) if place is None else place.contiguous()
    return [_shadow(item) for item in value] if isinstance(value, (list, tuple)) else value


def _product(
    rows: torch.Tensor | None, columns: torch.Tensor | None, shape: torch.Size
) -> torch.Tensor | None:
    """The positions of a matrix product: those of the first factor's rows, where these differ."""
    if rows is not None:
        place = rows.amin(-1, keepdim=True)
        if columns is None or bool((place != place.flatten()[0]).any()):
            return place.expand(shape)
    return columns.amin(-2, keepdim=True).expand(shape) if columns is not None else None


def follow(
    model: nn.Module, shape: Sequence[int], wanted: Collection[tuple[str, int]]
) -> dict[tuple[str, int], torch.Tensor]:
    """Return the positions of what modules put out, as far as they are known.

    Args:
        model: any module that takes one (N, C, H, W) batch.
        shape: (C, H, W) of the input.
        wanted: (module, which of the tensors that it puts out).

    Returns:
        Of each a tensor of its shape: ``row * W + column`` of a pixel, or :data:`NOWHERE`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 1, 2, 2), nn.Flatten(2))
        >>> follow(net, (3, 4, 4), [("1", 0)])["1", 0].tolist()
        [[[0, 2, 8, 10]]]
    """
    shadows: dict[tuple[str, int], torch.Tensor] = {}

    def note(name: str, output: object) -> None:
        for item, tensor in enumerate(tensors(output)):
            place = _place(tensor)
            if (name, item) in wanted and place is not None:
                shadows[name, item] = place

    def work(copied: nn.Module, x: torch.Tensor) -> None:
        for name in {name for name, _ in wanted}:
            copied.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: note(name, output)
            )
        pixels = torch.arange(x.shape[-2] * x.shape[-1]).view(1, 1, *x.shape[-2:])
        x._place = pixels.expand(x.shape)  # type: ignore[attr-defined]
        with torch.no_grad(), structure.eagerly(copied), _Follow():  # type: ignore[no-untyped-call]
            copied(x)

    with torch.inference_mode(False):
        probing.first(model, (1, *shape), work, real=False)
    return shadows
