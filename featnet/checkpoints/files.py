"""Files of tensors: safetensors, PyTorch's own, indexes of shards; read without trusting them.

Nothing is executed and nothing is allocated that the file does not hold: sizes are compared with
the file's before anything is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, nearest
from . import mindspore, npz, pickled, writing
from .stored import File, Storage, Stored

POINTER = b"version https://git-lfs"  # what a checkout without Git LFS has for a large file
MAX_JSON = 64 << 20  # bytes of a header, an index, a config.json
ONNX = "an ONNX model: featnet reads the weights of the program that it was made from"

# What a repository or folder calls its weights, best first
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
ENDINGS = (".safetensors", ".index.json", ".pth", ".pt", ".bin", ".ckpt", ".npz")

# Bits of an element, by the names of the safetensors format
BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
    "C64": 64,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
}
DTYPES = {name: dtype for dtype, name in writing.DTYPES.items()} | {
    name: dtype
    for name, attribute in (
        ("F8_E8M0", "float8_e8m0fnu"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
    )
    if (dtype := getattr(torch, attribute, None)) is not None
}


# What a file begins with that is no checkpoint: the bytes, and where they are
STRANGERS = (
    (b"\x89HDF\r\n\x1a\n", 0, "an HDF5 file: save the weights from the program that wrote it"),
    (b"\x1f\x8b", 0, "compressed by gzip: unpack it first"),
    (b"BZh", 0, "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", 0, "compressed by xz: unpack it first"),
    (b"7z\xbc\xaf", 0, "a 7z archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", 0, "compressed by zstd: unpack it first"),
    (b"ustar", 257, "a tar archive: unpack it first"),
    (b"TFL3", 4, "a TensorFlow Lite model"),
    (b"GGUF", 0, "a GGUF file"),
    (b"\x93NUMPY", 0, "a single NumPy array"),
    (b"\x89PNG", 0, "an image"),
    (b"\xff\xd8\xff", 0, "an image"),
    (b"%PDF", 0, "a PDF document"),
)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a file, of which only the directory has been read.

    Attributes:
        content: as it was saved: nested dictionaries and lists, with a :class:`Stored` for each
            tensor of the file, or tensors that are in memory.
        source: what messages call it.
        format: the format whose words for tensors its names are, if that is not PyTorch's.
    """

    content: Any
    source: str = "checkpoint"
    format: str = ""


def contents(source: str | os.PathLike[str] | Mapping[str, Any] | Contents) -> Contents:
    """Open a file, or a state dict in its place.

    Raises:
        CheckpointError: as :func:`read`; neither a path nor a mapping.
    """
    if isinstance(source, Contents):
        return source
    if isinstance(source, Mapping):
        return Contents(source, "the state dict")
    return read(source)


def local(path: str | os.PathLike[str]) -> Path:
    """A path of the user's: ``~`` is the home folder.

    Raises:
        CheckpointError: it can be no path, or there is nothing to which one may look.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"{path!r} is no path: a {type(path).__name__}.")
    try:
        place = Path(path).expanduser()
        place.exists() or place.parent.exists()
        place.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"Checkpoint {str(path)!r} cannot be read: {reason}.") from error
    return place


def read(path: str | os.PathLike[str]) -> Contents:
    """Open a ``.safetensors``, ``.pth``/``.pt``/``.bin``, MindSpore ``.ckpt`` or NumPy
    ``.npz`` file, in the shards of an index (``*.index.json``), or in a folder with one of these.
    The bytes decide, not the name.

    Raises:
        CheckpointError: missing, empty, truncated, dishonest, or not a checkpoint.
    """
    path = local(path)
    try:
        if path.is_dir():
            path = in_folder(path)
        if not path.is_file():
            near = path.parent.glob("*") if path.parent.is_dir() else ()
            what = "is no file" if path.exists() else "does not exist"
            raise CheckpointError(
                f"Checkpoint {str(path)!r} {what}." + nearest(path.name, [p.name for p in near])
            )
        return _read(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: {error.strerror or error}."
        ) from error


def in_folder(folder: Path) -> Path:
    """The weights in a folder: a usual name, or else the only file with a usual ending.

    Raises:
        CheckpointError: none, or several.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        raise CheckpointError(
            f"{str(folder)!r} is a distributed checkpoint: make one file of it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, file)."
        )
    for ending in ENDINGS:
        files = sorted(folder.glob(f"*{ending}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{str(folder)!r} has {some(p.name for p in files)}: give one as "
                "checkpoint_path=, or name it model.safetensors."
            )
        if files:
            return files[0]
    raise CheckpointError(
        f"{str(folder)!r} is a folder that has no weights: {', '.join(WEIGHTS[:3])} ..."
    )


def _read(path: Path) -> Contents:
    source = str(path)
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"Checkpoint {source!r} is empty.")
    if path.name.endswith(".index.json"):
        return Contents(_read_shards(path), source)
    with path.open("rb") as file:
        head = file.read(300)
    _refuse_strangers(path, head, size)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= max(size, MAX_JSON):
        return Contents(_read_safetensors(path), source)
    if mindspore.is_checkpoint(head[:64]):
        return Contents(mindspore.read(path), source, "MindSpore")
    if head.startswith(b"PK") and npz.is_archive(path):
        return Contents(npz.read(path), source)
    if path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80")):
        return Contents(_read_safetensors(path), source)  # which says what is wrong
    return Contents(pickled.read(path), source)


def _refuse_strangers(path: Path, head: bytes, size: int) -> None:
    """Name what is no checkpoint by its first bytes.

    Raises:
        CheckpointError: it is none.
    """
    what = ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32].lower()
    if head.startswith(POINTER):
        raise CheckpointError(
            f"Checkpoint {str(path)!r} is a Git LFS pointer, not the file: run 'git lfs pull'."
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        what = "a page of the web, not the file: its address leads to a page, or asks for a login"
    elif text.startswith((b"{", b"[")):
        what = "a JSON text; the index of shards is called *.index.json"
    elif (head[:1] == b"\x08" and head[1:2] < b"\x20" and path.suffix == ".onnx") or (
        head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x1a", b":") and head[1] < 32
    ):
        what = ONNX
    else:
        for mark, at, name in STRANGERS:
            if head[at : at + len(mark)] == mark:
                what = name
    if what:
        raise CheckpointError(f"Checkpoint {str(path)!r} is no file of tensors but {what}.")


# Safetensors ------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    """A JSON file of bounded size, without NaN and without keys that occur twice.

    Raises:
        ValueError: it is none.
    """
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path.stat().st_size} bytes are too many")
    text = path.read_bytes()
    if text.startswith(POINTER):
        raise ValueError("it is a Git LFS pointer, not the file: run 'git lfs pull'")
    return parse_json(text)


def parse_json(text: bytes) -> Any:
    """As :func:`read_json`, of bytes."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a key occurs twice")
        return entries

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the offset of the tensors of a safetensors file, and its header, if that is true.

    Raises:
        ValueError: the header says what the file does not hold.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_JSON):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    spans = []
    for name, entry in header.items():
        _check_entry(name, entry)
        spans.append((*entry["data_offsets"], name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise ValueError(f"tensor {name!r} starts at byte {start}, not at {end}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, the file has {size - 8 - length}")
    return 8 + length, header


def _check_entry(name: str, entry: object) -> None:
    """Compare the shape of one tensor with its span of bytes."""

    def sizes(value: object) -> bool:
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in value)

    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"tensor {name!r} has no dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"tensor {name!r} is of the unknown dtype {dtype!r}")
    if not sizes(shape) or len(shape) > 16 or not sizes(span) or len(span) != 2:
        raise ValueError(f"tensor {name!r} has the shape {shape!r} at bytes {span!r}")
    if math.prod(shape) * BITS[dtype] != (span[1] - span[0]) * 8:
        raise ValueError(f"tensor {name!r}, {dtype} {tuple(shape)}, does not fill bytes {span!r}")


def _read_safetensors(path: Path) -> dict[str, Stored]:
    file = File.of(path)
    try:
        start, header = _header(path)
        return {name: _stored(file, start, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated or not a safetensors file "
            f"({error})."
        ) from error


def _stored(file: File, start: int, entry: Mapping[str, Any]) -> Stored:
    (first, last), dtype = entry["data_offsets"], DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"this torch has no {entry['dtype']}")
    storage = Storage(file, last - first, [(start + first, last - first)])
    return Stored(storage, dtype, torch.Size(entry["shape"]))


def _read_shards(path: Path) -> dict[str, Any]:
    names = shards(path)
    places: Mapping[str, str] = read_json(path)["weight_map"]
    tensors: dict[str, Any] = {}
    for name in names:
        content = read(path.parent / name).content
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{str(path.parent / name)!r} holds no tensors by name.")
        tensors.update({k: v for k, v in content.items() if places.get(k) == name})
    missing = [key for key in places if key not in tensors]
    if missing:
        raise CheckpointError(f"{str(path)!r}: no shard has {some(missing)}.")
    return {key: tensors[key] for key in places}


def shards(path: Path) -> list[str]:
    """File names of the shards of an index.

    Raises:
        CheckpointError: no index, or one that names what is outside its folder.
    """
    try:
        names = sorted(set(read_json(path)["weight_map"].values()))
        if not names:
            raise ValueError("weight_map has no files")
        return [check_name(name, source=str(path)) for name in names]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{str(path)!r} is no index of shards: {error!r}.") from error


def check_name(name: str, *, source: str) -> str:
    """Refuse a shard that is not in the index's own folder, or is an index itself."""
    if (
        not isinstance(name, str)
        or not name
        or name in (".", "..")
        or any(c in name for c in "/\\\0:")
    ):
        raise CheckpointError(f"{source!r} names {name!r}, which is outside its folder.")
    if name.endswith(".json"):
        raise CheckpointError(f"{source!r} names {name!r}, which is no file of tensors.")
    return name


def some(items: Iterable[str], *, most: int = 5) -> str:
    """The first few, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
