"""Facts about networks, as data: read from a generated table, without torch or a network.

The table is ``models/capabilities.json``, a line for each variant; ``python -m featnet.registry``
measures the networks that it lacks.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent / "models" / "capabilities.json"


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """The facts about a network before it is built, as its variant's name builds it.

    Attributes:
        params: number of parameters, with the classifier of its default checkpoint.
        macs: multiply-adds of the classifier on one image of ``input_size``.
        input_size: (height, width) of the default checkpoint's inputs.
        modules, channels, reductions: of every level, finest first.
        output_strides: those that it can be dilated to.
        prefix_tokens: tokens before those of the patches.
        size_multiple: the sides of an input are multiples of it; 0 where any size will do.
        largest: True if no input may be larger than ``input_size``.
    """

    params: int
    macs: int
    input_size: tuple[int, int]
    modules: tuple[str, ...]
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    output_strides: tuple[int, ...]
    prefix_tokens: int = 0
    size_multiple: int = 0
    largest: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Capabilities:
        """Make a record of a row of the table."""
        fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
        return cls(**fields)

    def to_row(self) -> dict[str, Any]:
        """Give the row of the table, without what is empty."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v}


@functools.cache
def read_table() -> Mapping[str, Capabilities]:
    """Read the table: variant to record."""
    rows = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {}
    return {name: Capabilities.of(row) for name, row in rows.items()}


def render_table(table: Mapping[str, Capabilities]) -> str:
    """Give the text of the table, a line for each variant."""
    lines = (
        f'"{name}": {json.dumps(record.to_row(), separators=(",", ":"))}'
        for name, record in table.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"
