"""Windows that pad in a way of their own, run as they are on the interleaved maps.

Padding that is not in a module's ``padding`` (``padding_mode=``, a ReflectionPad2d before it,
TensorFlow's SAME, which depends on the size) belongs to the original's grid. On a map that is
``density`` times denser each of the ``density * density`` interleaved maps has that grid, so the
window runs on each of them, and where it loses its stride, from every place that there is to start
from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .windows import Pair, pair

# What F.pad itself calls: a context that replaces calls of F.pad leaves it alone
_pad: Callable[..., torch.Tensor] = torch._C._nn.pad


class Padding(nn.Module):
    """Pads a map (N, C, H, W).

    Args:
        amounts: before and after the columns, before and after the rows.
        mode, value: as ``F.pad``'s.
        window: by TensorFlow's rule for this window (kernel, stride, dilation), in place of
            amounts.
    """

    def __init__(
        self,
        amounts: tuple[int, int, int, int],
        mode: str = "constant",
        value: float | None = None,
        window: tuple[Pair, Pair, Pair] | None = None,
    ) -> None:
        super().__init__()
        self.amounts, self.mode, self.value, self.window = amounts, mode, value, window

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        amounts = self.amounts
        if self.window is not None:
            amounts = tensorflow_padding((x.shape[-2], x.shape[-1]), *self.window)
        return _pad(x, list(amounts), self.mode, self.value)

    def scaled(self, density: int) -> Padding:
        """Return the same on a map that is ``density`` times denser."""
        left, right, top, bottom = (amount * density for amount in self.amounts)
        return Padding((left, right, top, bottom), self.mode, self.value)


def tensorflow_padding(
    size: Pair, kernel: Pair, stride: Pair, dilation: Pair
) -> tuple[int, int, int, int]:
    """Return what TensorFlow's SAME pads by: (left, right, top, bottom), of which the second of two
    gets the odd one.

    Example:
        >>> tensorflow_padding((8, 9), (3, 3), (2, 2), (1, 1))
        (1, 1, 0, 1)
    """
    pads = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return (*pads[1], *pads[0])


def interleave(
    run: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    density: int,
    lost: int,
    stride: int,
) -> torch.Tensor:
    """Run a window on the interleaved maps of a map (N, C, H, W).

    Args:
        run: the window, with the stride that it had.
        density: how many times denser than the original's the map is; 1 unless ``stride`` is 1.
        lost: how many times smaller the stride is now.
        stride: what is left of it.
    """
    height, width = x.shape[-2:]
    step = density * lost
    down, right = min(step, -(-height // stride)), min(step, -(-width // stride))
    alike: dict[Pair, list[Pair]] = {}  # those of one size run together
    for i in range(down):
        for j in range(right):
            size = (-(-(height - i * stride) // density), -(-(width - j * stride) // density))
            alike.setdefault(size, []).append((i, j))
    parts: dict[Pair, torch.Tensor] = {}
    for starts in alike.values():
        maps = [x[..., i * stride :: density, j * stride :: density] for i, j in starts]
        parts |= zip(starts, run(torch.cat(maps)).chunk(len(starts)), strict=True)
    tall, wide = parts[0, 0].shape[-2:]
    rows = sum(parts[i, 0].shape[-2] for i in range(down))
    columns = sum(parts[0, j].shape[-1] for j in range(right))
    every = [
        _pad(y, [0, wide - y.shape[-1], 0, tall - y.shape[-2]], "constant", 0.0)
        for y in (parts[i, j] for i in range(down) for j in range(right))
    ]
    y = torch.stack(every, -1).reshape(*every[0].shape, down, right)
    y = y.permute(0, 1, 2, 4, 3, 5).flatten(4, 5).flatten(2, 3)
    return y[..., :rows, :columns]


class Interleaved(nn.Module):
    """Mixed into the class of a window, so that the module keeps its names and its tensors."""

    _interleaving: dict[str, int]
    _before: Padding | None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        window: Callable[[torch.Tensor], torch.Tensor] = super().forward
        before = self.__dict__["_before"]

        def run(y: torch.Tensor) -> torch.Tensor:
            return window(y if before is None else before.forward(y))

        return interleave(run, x, **self._interleaving)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return empty, (Interleaved, type(self).__mro__[2]), self.__getstate__()  # type: ignore[no-untyped-call]


_CLASSES: dict[tuple[type, type], Any] = {}


def mixed(mixin: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of this name whose forward is the mixin's."""
    if (mixin, kind) not in _CLASSES:
        combined = type(kind.__name__, (mixin, kind), {"__module__": kind.__module__})
        _CLASSES[mixin, kind] = combined
    result: type[nn.Module] = _CLASSES[mixin, kind]
    return result


def empty(mixin: type[nn.Module], kind: type[nn.Module]) -> nn.Module:
    """Make a module of a mixed class without content, for copies."""
    module = mixed(mixin, kind)
    return module.__new__(module)


def make_interleaved(
    module: nn.Module, *, density: int, stride: Pair, original: Pair, before: Padding | None
) -> None:
    """Make a window, in place, one that runs on the interleaved maps, after a padding."""
    lost = original[0] // pair(stride)[0]
    module.__dict__["_interleaving"] = {"density": density, "lost": lost, "stride": stride[0]}
    module.__dict__["_before"] = before
    module.__class__ = mixed(Interleaved, type(module))
