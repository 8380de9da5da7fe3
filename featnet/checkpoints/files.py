"""Files of tensors: safetensors, PyTorch's own, indexes of shards; read without trusting them.

Nothing is executed and nothing is allocated that the file does not hold: sizes are compared with
the file's before anything is read, and tensors are mapped, not copied.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, nearest
from . import mindspore, npz

State = dict[str, torch.Tensor]

# Where training scripts keep the weights, best first
CONTAINERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "params_ema",
    "teacher",
    "state_dict",
    "model",
    "module",
    "params",
    "encoder",
    "model_state",
    "classy_state_dict",
    "base_model",
)
AVERAGED = CONTAINERS[:5]
PARTS = ("trunk", "heads")  # dictionaries that are one network together

POINTER = b"version https://git-lfs"  # what a checkout without Git LFS has for a large file
MAX_JSON = 64 << 20  # bytes of a header, an index, a config.json

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


@dataclasses.dataclass(frozen=True)
class Contents:
    """The tensors of a file, which of its dictionaries they are, and the format whose words for
    them its names are, if that is not PyTorch's."""

    tensors: State
    steps: tuple[str, ...] = ()
    format: str = ""


def read(path: str | Path) -> Contents:
    """The tensors of a ``.safetensors``, ``.pth``/``.pt``/``.bin``, MindSpore ``.ckpt`` or NumPy
    ``.npz`` file, or of the shards of an index (``*.index.json``), memory-mapped where the format
    allows it.

    Raises:
        CheckpointError: missing, empty, truncated, dishonest, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        near = path.parent.glob("*") if path.parent.is_dir() else ()
        raise CheckpointError(
            f"Checkpoint {str(path)!r} {what}." + nearest(path.name, [p.name for p in near])
        )
    try:
        return _read(path)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"Checkpoint {str(path)!r} cannot be read: {error}.") from error


def _read(path: Path) -> Contents:
    if path.stat().st_size == 0:
        raise CheckpointError(f"Checkpoint {str(path)!r} is empty.")
    if path.name.endswith(".index.json"):
        return Contents(_read_shards(path))
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(POINTER):
        raise CheckpointError(
            f"Checkpoint {str(path)!r} is a Git LFS pointer, not the file: run 'git lfs pull'."
        )
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return Contents(_read_safetensors(path))
    if mindspore.is_checkpoint(head):
        return Contents(mindspore.read(path), format="MindSpore")
    if head.startswith(b"PK") and npz.is_archive(path):
        return Contents(npz.read(path))
    content = _read_torch(path, zipped=head.startswith(b"PK"))
    return unwrap(content, source=str(path))


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
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file whose header is true.

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
    shapes, spans = {}, []
    for name, entry in header.items():
        if name != "__metadata__":
            shapes[name] = _check_entry(name, entry)
            spans.append((*entry["data_offsets"], name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise ValueError(f"tensor {name!r} starts at byte {start}, not at {end}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, the file has {size - 8 - length}")
    return shapes


def _check_entry(name: str, entry: Any) -> tuple[int, ...]:
    """The shape of one tensor, after a comparison with its span of bytes."""

    def sizes(value: Any) -> bool:
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
    return tuple(shape)


def _read_safetensors(path: Path) -> State:
    from safetensors.torch import load_file

    try:
        check_header(path)
        return dict(load_file(path))
    except OSError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated or not a safetensors file "
            f"({error})."
        ) from error


def _read_shards(path: Path) -> State:
    try:
        files: Mapping[str, str] = read_json(path)["weight_map"]
        names = sorted(set(files.values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("weight_map has no files")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is no index of shards: {error!r}.") from error
    state: State = {}
    for name in names:
        check_name(name, source=str(path))
        shard = read(path.parent / name).tensors
        state.update({k: v for k, v in shard.items() if files.get(k) == name})
    missing = [key for key in files if key not in state]
    if missing:
        raise CheckpointError(f"{str(path)!r}: no shard has {some(missing)}.")
    return {key: state[key] for key in files}


def shards(path: Path) -> list[str]:
    """File names of the shards of an index.

    Raises:
        CheckpointError: no index, or one that names what is outside its folder.
    """
    try:
        names = sorted(set(read_json(path)["weight_map"].values()))
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


# PyTorch's own ----------------------------------------------------------------------------------


def _read_torch(path: Path, *, zipped: bool) -> Any:
    where = f"Checkpoint {str(path)!r}"
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise CheckpointError(f"{where} cannot be read: it is compressed.")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        why = str(error).strip().split("\n")[0]
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise CheckpointError(
                f"{where} cannot be read: it holds more than tensors, and featnet runs no code "
                f"that a file brings along ({why}). Where you trust it, load it with "
                "torch.load(..., weights_only=False) and save its state_dict() as safetensors."
            ) from error
        raise CheckpointError(
            f"{where} cannot be read: it is truncated or not a checkpoint "
            f"({type(error).__name__}: {why})."
        ) from error


def unwrap(content: Any, *, source: str = "checkpoint") -> Contents:
    """The state dict in what a training script saved, EMA weights first.

    Raises:
        CheckpointError: there is none, or one whose tensors claim more than the file holds.
    """
    path: list[str] = []
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        name = next((k for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if name is None:
            break
        content = content[name]
        path.append(name)
    state: State = {}
    if isinstance(content, Mapping):
        for part in PARTS:
            if isinstance(content.get(part), Mapping):
                inner = content[part].items()
                content = {**content, **{f"{part}.{k}": v for k, v in inner if isinstance(k, str)}}
        state = {k: v for k, v in content.items() if isinstance(k, str) and _is_plain(v, k, source)}
    if not state:
        raise CheckpointError(f"{source!r} holds no tensors: a {type(content).__name__}.")
    averaged = [name for name in path if name in AVERAGED]
    return Contents(state, tuple(f"averaged weights, {name!r}" for name in averaged))


def _is_plain(value: Any, key: str, source: str) -> bool:
    """Whether it is a tensor; one that is not dense and backed by the file is refused."""
    if not isinstance(value, torch.Tensor):
        return False
    dense = value.layout is torch.strided and not value.is_quantized and not value.is_meta
    if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{source!r}: {key!r} is no dense tensor of {tuple(value.shape)} that the file holds."
        )
    return True


def some(items: Iterable[str], *, most: int = 5) -> str:
    """The first few, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
