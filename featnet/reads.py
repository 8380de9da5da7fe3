"""What a run on the meta device asks of torch functions: who reads which tensor, and nothing slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Functions that keep the shape, which torch decomposes in Python on the meta device, most of the
# time of a run; and where among their arguments ``inplace`` is
_KEEP_SHAPE: Mapping[Any, int | None] = {
    F.batch_norm: None, F.layer_norm: None, F.group_norm: None, F.rms_norm: None, F.gelu: None,
    F.hardswish: 1, F.hardsigmoid: 1, F.silu: 1, F.mish: 1, F.relu6: 1, F.elu: 2, F.leaky_relu: 2,
    F.hardtanh: 3, torch.roll: None,
}  # fmt: skip
_OF_TWO = frozenset({torch.Tensor.add, torch.Tensor.mul})
# What asks a tensor for no values
_QUESTIONS = frozenset({"__get__", "dim", "size", "stride", "numel", "is_contiguous", "__len__"})


def _shaped(func: Any, args: Any) -> torch.Tensor | None:
    """What a few more functions put out on the meta device; None where it takes the function."""
    x, y = args[:2]
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and x.is_meta and y.is_meta):
        return None
    if func in _OF_TWO and x.shape == y.shape and x.dtype == y.dtype:
        return torch.empty_like(x)
    if func is F.linear and x.dtype == y.dtype and y.dim() == 2 and x.shape[-1:] == y.shape[1:]:
        return x.new_empty((*x.shape[:-1], y.shape[0]))
    return None


class Used(TorchFunctionMode):
    """Counts how often each tensor, by its id, is given to a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[int] = Counter()
        self.alive: dict[int, torch.Tensor] = {}  # an id is a tensor's only as long as it lives

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        if func in _KEEP_SHAPE and isinstance(x, torch.Tensor) and x.is_meta:
            at = _KEEP_SHAPE[func]
            inplace = at is not None and (args[at] if len(args) > at else kwargs.get("inplace"))
            found: Any = x.zero_() if inplace else torch.empty_like(x)
        else:
            found = _shaped(func, args) if len(args) > 1 and not kwargs else None
            found = func(*args, **kwargs) if found is None else found
        if func.__name__ in _QUESTIONS and not isinstance(found, torch.Tensor):
            return found  # a shape, not a view as Tensor.T is
        for value in (*args, *kwargs.values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, torch.Tensor):
                    self.reads[id(item)] += 1
                    self.alive[id(item)] = item
        return found
