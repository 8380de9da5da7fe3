"""How much memory a forward takes: bytes of all tensors that are alive at once, counted.

Storages are counted when an operation first gives them out and when they die, so a figure is exact,
the same on every machine and device, and has no allocator in it. What kernels need inside is not
seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """A context that counts what operations within it allocate.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.is_meta:
            return  # it has a shape, and no memory
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            if tensor.untyped_storage()._cdata not in given:  # no view of what was there before
                self._count(tensor)
        return found


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def peak(work: Callable[[], object]) -> int:
    """Most bytes that were alive at once of what a call allocated, its results included."""
    with Live() as live:
        kept = work()
    del kept
    return live.peak


def held(work: Callable[[], object]) -> int:
    """Bytes that a call leaves alive: its results, and what a backward pass needs."""
    with Live() as live:
        kept = work()
    left = live.now
    del kept
    return left
