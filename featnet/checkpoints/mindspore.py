"""MindSpore's ``.ckpt`` files, read without MindSpore.

The format is a protobuf message (mindspore/ccsrc/utils/checkpoint.proto): repeated field 1 is a
value, with a tag (1, the parameter's name) and a tensor (2): dims (1), the type's name (2) and the
bytes (3), little-endian. A large parameter is cut into several values of the same tag, in order.
A checksum may follow: ``crc_num`` and 10 bytes, big-endian, over what is before it.
"""

from __future__ import annotations

import binascii
import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError

DTYPES = {
    "Int8": torch.int8,
    "UInt8": torch.uint8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt16": torch.uint16,
    "UInt32": torch.uint32,
    "UInt64": torch.uint64,
    "Float16": torch.float16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
}
CHECKSUM = 17  # bytes of "crc_num" and the number

Buffer = memoryview


class _Malformed(ValueError):
    """Bytes that are no such message."""


def is_checkpoint(head: bytes) -> bool:
    """Whether the first 64 bytes of a file begin a value whose tag is a name."""
    try:
        view = memoryview(head)
        if head[:1] != b"\n":
            return False
        _, at = _varint(view, 1)
        if head[at : at + 1] != b"\n":
            return False
        length, at = _varint(view, at + 1)
    except _Malformed:
        return False
    return 0 < length < 1024 and head[at : at + length].isascii() and bool(head[at : at + length])


def read(path: Path) -> dict[str, torch.Tensor]:
    """The parameters of a file by their names, in MindSpore's vocabulary.

    Raises:
        CheckpointError: truncated, encrypted, of an unknown dtype, or no such file.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _parameters(_without_checksum(memoryview(mapped)))
    except _Malformed as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated, encrypted or not a "
            f"MindSpore checkpoint ({error})."
        ) from error


def _without_checksum(view: Buffer) -> Buffer:
    if len(view) > CHECKSUM and bytes(view[-CHECKSUM:-10]) == b"crc_num":
        wanted = int.from_bytes(view[-10:], "big")
        view = view[:-CHECKSUM]
        if binascii.crc32(view) != wanted:
            raise _Malformed("its checksum is wrong")
    return view


def _parameters(view: Buffer) -> dict[str, torch.Tensor]:
    parts: dict[str, list[Buffer]] = {}
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
    for number, value in _fields(view):
        if number != 1 or not isinstance(value, memoryview):
            raise _Malformed(f"an unknown field {number}")
        name, kind, content = _value(value)
        if kinds.setdefault(name, kind) != kind:
            raise _Malformed(f"{name!r} occurs twice")
        parts.setdefault(name, []).append(content)
    found = {
        name: _tensor(name, *kinds[name], parts[name]) for name in kinds if kinds[name][0] != "str"
    }
    if not found:
        raise _Malformed("it holds no parameters")
    return found


def _value(view: Buffer) -> tuple[str, tuple[str, tuple[int, ...]], Buffer]:
    """Name, dtype's name and shape, and the bytes of one value."""
    fields = dict(_fields(view))
    tag, tensor = fields.get(1), fields.get(2)
    if not isinstance(tag, memoryview) or not isinstance(tensor, memoryview):
        raise _Malformed("a value without a name and a tensor")
    name = _text(tag)
    dims: list[int] = []
    dtype, content = "", memoryview(b"")
    for number, value in _fields(tensor):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 1 and isinstance(value, memoryview):  # packed
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                dims.append(size)
        elif number == 2 and isinstance(value, memoryview):
            dtype = _text(value)
        elif number == 3 and isinstance(value, memoryview):
            content = value
    return name, (dtype, () if dims == [0] else tuple(dims)), content


def _tensor(name: str, dtype: str, shape: tuple[int, ...], parts: list[Buffer]) -> torch.Tensor:
    if dtype not in DTYPES:
        raise _Malformed(f"{name!r} is of the unknown dtype {dtype!r}")
    kind = DTYPES[dtype]
    size = sum(map(len, parts))
    if len(shape) > 16 or math.prod(shape) * kind.itemsize != size:
        raise _Malformed(f"{name!r}, {dtype} {shape}, does not fill {size} bytes")
    if not size:
        return torch.empty(shape, dtype=kind)
    return torch.frombuffer(bytearray().join(parts), dtype=kind).reshape(shape)


def _text(view: Buffer) -> str:
    try:
        return bytes(view[:4096]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Malformed("a name that is no text") from error


def _fields(view: Buffer) -> Iterator[tuple[int, int | Buffer]]:
    """(number, value) of a message's fields: a number, or the bytes of what has a length."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value
        elif wire == 2:
            length, at = _varint(view, at)
            if length > len(view) - at:
                raise _Malformed(f"a field of {length} bytes where {len(view) - at} are left")
            yield number, view[at : at + length]
            at += length
        else:
            raise _Malformed(f"an unknown wire type {wire}")


def _varint(view: Buffer, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise _Malformed("a number without an end")
