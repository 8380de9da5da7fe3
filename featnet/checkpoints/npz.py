"""NumPy's ``.npz`` archives, in which JAX code keeps its weights, read without NumPy.

What an array's header claims is compared with its place in the archive; objects, which would be
pickles, and compressed arrays are refused.
"""

from __future__ import annotations

import ast
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError
from .stored import File, Storage, Stored

END = ".npy"  # of the name of every array
MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes, as in NumPy

# Kind and bytes of an element. V2 is bfloat16, which NumPy does not know
DTYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
    "b1": torch.bool,
    "c8": torch.complex64,
    "c16": torch.complex128,
    "V2": torch.bfloat16,
}


def is_archive(path: Path) -> bool:
    """Tell if a zip archive holds arrays and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, RuntimeError):
        return False
    return bool(names) and all(name.endswith(END) for name in names)


def read(path: Path) -> dict[str, Stored]:
    """The arrays of an archive by their names.

    Raises:
        CheckpointError: truncated, compressed, dishonest, or with anything but numbers.
    """
    file = File.of(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            entries = archive.infolist()
            names = [entry.filename.removesuffix(END) for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError("a name occurs twice")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed")
            return {
                name: _array(name, stream, file, entry)
                for name, entry in zip(names, entries, strict=True)
            }
    except (ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated or not an archive of "
            f"numbers ({error})."
        ) from error


def data_of(entry: zipfile.ZipInfo, stream: IO[bytes]) -> int:
    """Return the offset of the bytes of an archive's entry, behind a header of its own.

    Raises:
        ValueError: it is not where the directory of the archive says.
    """
    stream.seek(entry.header_offset)
    header = stream.read(30)
    if header[:4] != b"PK\3\4" or len(header) < 30:
        raise ValueError(f"the entry {entry.filename!r} is not where the directory says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return entry.header_offset + 30 + lengths


def _array(name: str, stream: IO[bytes], file: File, entry: zipfile.ZipInfo) -> Stored:
    """The array of an entry."""
    offset, size = data_of(entry, stream), entry.file_size
    if offset + size > file.size:
        raise ValueError(f"{name!r} ends after {file.size - offset} of {size} bytes")
    stream.seek(offset)
    head = stream.read(min(size, MAX_HEADER))
    if head[:6] != MAGIC or head[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError(f"{name!r} is of the unknown version {tuple(head[6:8])}")
    digits = 2 if head[6] == 1 else 4
    start = 8 + digits
    end = start + int.from_bytes(head[8:start], "little")
    if end > len(head):
        raise ValueError(f"{name!r} has a header of {end} bytes")
    shape, fortran, kind, big_endian = _header(name, head[start:end])
    left = size - end
    if len(shape) > 16 or math.prod(shape) * kind.itemsize != left:
        raise ValueError(f"{name!r}, {kind} {shape}, does not fill {left} bytes")
    steps = tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
    return Stored(
        Storage(file, left, [(offset + end, left)], (zlib.crc32(head[:end]), entry.CRC)),
        kind,
        torch.Size(shape),
        stride=steps if fortran and len(shape) > 1 else None,
        big_endian=big_endian,
    )


def _header(name: str, text: bytes) -> tuple[tuple[int, ...], bool, torch.dtype, bool]:
    """Shape, whether columns lie together, dtype, and the order of its bytes."""
    try:
        fields: Any = ast.literal_eval(text.decode("latin1").strip())
        shape, fortran, descr = fields["shape"], fields["fortran_order"], fields["descr"]
    except (SyntaxError, ValueError, MemoryError, RecursionError, LookupError, TypeError) as error:
        raise ValueError(f"{name!r} has a header that means nothing") from error
    sizes = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 1 << 62 for n in shape)
    if not sizes or not isinstance(fortran, bool) or not isinstance(descr, str):
        raise ValueError(f"{name!r} has the shape {shape!r} and the dtype {descr!r}")
    if descr.lstrip("|<>=")[:1] == "O":
        raise ValueError(f"{name!r} holds objects")
    if descr[1:] not in DTYPES or descr[0] not in "|<>":
        raise ValueError(f"{name!r} is of the dtype {descr!r}, which is no number")
    return shape, fortran, DTYPES[descr[1:]], descr[0] == ">"
