"""Cut a list of images into shards and units: fixed by the list alone, so that a run can go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..finding import Item


@dataclasses.dataclass(frozen=True)
class Shard:
    """The images whose results are written together.

    Attributes:
        index: number of the shard, from 0.
        items: its images, in order.
    """

    index: int
    items: tuple[Item, ...]

    def units(self, batch_size: int) -> list[tuple[Item, ...]]:
        """Its images in the pieces that are decoded together."""
        starts = range(0, len(self.items), batch_size)
        return [self.items[start : start + batch_size] for start in starts]


def plan(items: Sequence[Item], shard_size: int) -> list[Shard]:
    """Cut images into shards, the last of which may be smaller."""
    starts = range(0, len(items), shard_size)
    return [Shard(i, tuple(items[start : start + shard_size])) for i, start in enumerate(starts)]
