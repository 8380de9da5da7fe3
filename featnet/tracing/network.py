"""Network: the part of a Backbone that the core asks for, as a protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

if TYPE_CHECKING:
    from ..features import Feature

# A level's value: a map (N, C, H, W), Tokens, or whatever the family's ``as_map`` turns into a map
Yielded: TypeAlias = Any

# Asked after each level, with its index and value: is that all that is wanted?
Enough: TypeAlias = Callable[[int, Yielded], bool]


class Network(Protocol):
    """A network that yields its levels. :class:`featnet.Backbone` says what each member does."""

    training: bool
    in_chans: int
    _levels: tuple[Feature, ...]

    def forward_levels(self, x: torch.Tensor) -> Iterator[Yielded]: ...
    def as_map(self, y: Yielded) -> torch.Tensor: ...
    def normalize(self, y: Yielded, index: int) -> Yielded: ...
    def finish(self, y: Yielded) -> torch.Tensor: ...
    def forward_head(self, x: torch.Tensor) -> torch.Tensor: ...
