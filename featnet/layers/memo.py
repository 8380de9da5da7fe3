"""Tables that depend on nothing but sizes, kept from one forward to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch


class Memo:
    """The last few tables that were made.

    Copies and pickles start empty. A graph that is being captured makes its tables itself, so that
    none that belongs to one input size is baked into it.

    Args:
        most: number of values to keep.
    """

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self._kept: dict[Hashable, torch.Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The table of a key (sizes, device, whatever it depends on), made where it is missing."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return make()
        value = self._kept.get(key)
        if value is None:
            # also a first call in inference mode gives what a later one can be trained with
            with torch.inference_mode(False), torch.no_grad():
                value = make()
            if type(value) is torch.Tensor:  # not a fake one
                # replaced, never changed: another thread may be reading
                self._kept = {**dict(list(self._kept.items())[1 - self.most :]), key: value}
        return value

    def __len__(self) -> int:
        return len(self._kept)

    def __deepcopy__(self, memo: object) -> Memo:
        return Memo(self.most)

    def __reduce__(self) -> tuple[Any, ...]:
        return Memo, (self.most,)
