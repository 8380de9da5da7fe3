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
from typing import IO

import torch

from ..errors import CheckpointError
from .stored import File, Storage, Stored

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
    """Tell if the first 64 bytes of a file begin a value whose tag is a name."""
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


def read(path: Path) -> dict[str, Stored]:
    """The parameters of a file by their names, in MindSpore's vocabulary.

    Raises:
        CheckpointError: truncated, encrypted, of an unknown dtype, or no such file.
    """
    file = File.of(path)
    try:
        with path.open("rb") as stream:
            size = _checked(stream, file.size)
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return _parameters(memoryview(content)[:size], file)
    except _Malformed as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated, encrypted or not a "
            f"MindSpore checkpoint ({error})."
        ) from error


def _checked(stream: IO[bytes], size: int) -> int:
    """The bytes before the checksum, if there is one, which is compared."""
    stream.seek(max(0, size - CHECKSUM))
    end = stream.read(CHECKSUM)
    if size <= CHECKSUM or not end.startswith(b"crc_num"):
        return size
    number, left = 0, size - CHECKSUM
    stream.seek(0)
    while left and (block := stream.read(min(left, 1 << 20))):
        number, left = binascii.crc32(block, number), left - len(block)
    if number != int.from_bytes(end[-10:], "big"):
        raise _Malformed("its checksum is wrong")
    return size - CHECKSUM


def _parameters(view: Buffer, file: File) -> dict[str, Stored]:
    parts: dict[str, list[tuple[int, int]]] = {}
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
    at = 0
    for number, value, at in _fields(view):
        if number != 1 or not isinstance(value, memoryview):
            raise _Malformed(f"an unknown field {number}")
        name, kind, (offset, length) = _value(value)
        if kinds.setdefault(name, kind) != kind:
            raise _Malformed(f"{name!r} occurs twice")
        parts.setdefault(name, []).append((at - len(value) + offset, length))
    tensors = {
        name: _tensor(name, *kinds[name], parts[name], file)
        for name in kinds
        if kinds[name][0] != "str"
    }
    if not tensors:
        raise _Malformed("it holds no parameters")
    return tensors


def _value(view: Buffer) -> tuple[str, tuple[str, tuple[int, ...]], tuple[int, int]]:
    """Name, dtype's name and shape of one value, and where its bytes are: (offset, length)."""
    fields = {number: (value, at) for number, value, at in _fields(view)}
    (tag, _), (tensor, end) = fields.get(1, (None, 0)), fields.get(2, (None, 0))
    if not isinstance(tag, memoryview) or not isinstance(tensor, memoryview):
        raise _Malformed("a value without a name and a tensor")
    name = _text(tag)
    dims: list[int] = []
    dtype, content = "", (0, 0)
    for number, value, at in _fields(tensor):
        if number == 1 and isinstance(value, int):
            dims.append(value)
        elif number == 1 and isinstance(value, memoryview):  # packed
            place = 0
            while place < len(value):
                size, place = _varint(value, place)
                dims.append(size)
        elif number == 2 and isinstance(value, memoryview):
            dtype = _text(value)
        elif number == 3 and isinstance(value, memoryview):
            content = (end - len(tensor) + at - len(value), len(value))
    return name, (dtype, () if dims == [0] else tuple(dims)), content


def _tensor(
    name: str, dtype: str, shape: tuple[int, ...], spans: list[tuple[int, int]], file: File
) -> Stored:
    if dtype not in DTYPES:
        raise _Malformed(f"{name!r} is of the unknown dtype {dtype!r}")
    kind = DTYPES[dtype]
    size = sum(length for _, length in spans)
    if len(shape) > 16 or math.prod(shape) * kind.itemsize != size:
        raise _Malformed(f"{name!r}, {dtype} {shape}, does not fill {size} bytes")
    return Stored(Storage(file, size, spans), kind, torch.Size(shape))


def _text(view: Buffer) -> str:
    try:
        return bytes(view[:4096]).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Malformed("a name that is no text") from error


def _fields(view: Buffer) -> Iterator[tuple[int, int | Buffer, int]]:
    """(number, value, end) of a message's fields: a number, or the bytes of what has a length."""
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(view, at)
            yield number, value, at
        elif wire == 2:
            length, at = _varint(view, at)
            if length > len(view) - at:
                raise _Malformed(f"a field of {length} bytes where {len(view) - at} are left")
            yield number, view[at : at + length], at + length
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
