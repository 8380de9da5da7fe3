"""The files of a shard: vectors as Parquet or NumPy, maps as safetensors, a line for each image.

``part-00007.jsonl`` comes last, so that a shard is there if this file is.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ...checkpoints.writing import staged, write_safetensors
from ...errors import ArgumentError, check_choice
from ..finding import printable
from ..reading import MissingExtraError
from .decoding import Failure
from .forward import VECTOR, Row

VECTOR_FORMATS = ("parquet", "npy")
MAPS = "safetensors"


def vector_format(name: str | None) -> str:
    """The format of vectors: as asked for, or Parquet where it can be written.

    Raises:
        ArgumentError: no such format.
        MissingExtraError: Parquet without pyarrow.
    """
    able = importlib.util.find_spec("pyarrow") is not None
    if name is None:
        return "parquet" if able else "npy"
    check_choice("table", name, VECTOR_FORMATS)
    if name == "parquet" and not able:
        raise MissingExtraError(
            "Parquet needs pyarrow, which is not installed; install it with: pip install "
            "'featnet[table]', or take \"npy\""
        )
    return name


def part(folder: Path, index: int, suffix: str) -> Path:
    """The file of a shard."""
    return folder / f"part-{index:05d}.{suffix}"


def done(folder: Path) -> set[int]:
    """The shards that are there."""
    return {int(path.stem[5:]) for path in folder.glob("part-*.jsonl") if path.stem[5:].isdigit()}


def remove(folder: Path, index: int) -> None:
    """Remove a shard, its line file first."""
    for suffix in ("jsonl", *VECTOR_FORMATS, MAPS):
        part(folder, index, suffix).unlink(missing_ok=True)


def records(folder: Path, index: int) -> Iterator[dict[str, Any]]:
    """The lines about the images of a shard, in order."""
    with part(folder, index, "jsonl").open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def tensor_name(key: str, level: str) -> str:
    """The name of a map in a shard of maps."""
    return f"{key}/{level}"


def write_shard(folder: Path, index: int, rows: Sequence[Row | Failure], table: str) -> None:
    """Write a shard, all of it or nothing.

    Args:
        folder: the output folder.
        index: number of the shard.
        rows: results and failures, in the order of the images.
        table: ``"parquet"`` or ``"npy"`` for vectors; maps are safetensors.

    Raises:
        OutputError: it cannot be written.
        ArgumentError: vectors of different lengths.
    """
    good = [row for row in rows if isinstance(row, Row)]
    with staged(part(folder, index, "jsonl")) as draft:
        if good and VECTOR in good[0].values:
            vectors = torch.stack([row.values[VECTOR] for row in good])
            write = _write_parquet if table == "parquet" else _write_npy
            write(part(draft.parent, index, table), good, vectors)
        elif good:
            maps = {
                tensor_name(printable(row.sample.item.name), level): value
                for row in good
                for level, value in row.values.items()
            }
            if len(maps) != sum(len(row.values) for row in good):
                raise ArgumentError("Two images of a shard have one key.")
            write_safetensors(maps, part(draft.parent, index, MAPS))
        lines = (json.dumps(record(row), ensure_ascii=False) for row in rows)
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def record(row: Row | Failure) -> dict[str, Any]:
    """The fields that are written about an image: where it lay in its input, or what was wrong."""
    item = row.sample.item if isinstance(row, Row) else row.item
    head = {"key": printable(item.name), "image": item.shown}
    if isinstance(row, Failure):
        return {**head, "error": row.reason}
    place = row.sample.place
    return {
        **head,
        "image_size": list(row.sample.size),
        "input_size": list(place.size),
        "image_place": [*place.offset, *place.resized],
    }


def _write_npy(path: Path, rows: Sequence[Row], vectors: torch.Tensor) -> None:
    import numpy as np

    del rows
    np.save(path, vectors.numpy())


def _arrow() -> tuple[Any, Any]:
    """pyarrow, which has no types, and its reader and writer of Parquet."""
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


def _write_parquet(path: Path, rows: Sequence[Row], vectors: torch.Tensor) -> None:
    arrow, parquet = _arrow()
    flat = arrow.array(vectors.flatten().numpy())
    samples = [row.sample for row in rows]
    columns = {
        "key": arrow.array([printable(sample.item.name) for sample in samples]),
        "image": arrow.array([sample.item.shown for sample in samples]),
        "height": arrow.array([sample.size[0] for sample in samples], arrow.int32()),
        "width": arrow.array([sample.size[1] for sample in samples], arrow.int32()),
        VECTOR: arrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    parquet.write_table(arrow.table(columns), path, use_dictionary=False)


def read_vectors(folder: Path, index: int, table: str) -> Any:
    """The vectors of a shard, an array (N, C); None of one without results, or of maps."""
    path = part(folder, index, table)
    if table == MAPS or not path.exists():
        return None
    import numpy as np

    if table == "npy":
        return np.load(path)
    _, parquet = _arrow()
    column = parquet.ParquetFile(path).read(columns=[VECTOR])[VECTOR].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
