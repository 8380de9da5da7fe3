"""Tensors that lie in files: where, of which shape, and how they come into memory.

Nothing is read when a file is opened but its directory. Afterwards what is wanted is read into
memory of its own, several pieces at a time, or mapped.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import functools
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

State = dict[str, torch.Tensor]

PIECE = 8 << 20  # bytes that are read in one call
BUFFERS = 512  # tensors that are read in one call; the system allows 1024
GAP = 4 << 10  # bytes between tensors that are read along with them
IN_FLIGHT = 8  # calls at a time


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was when its directory was read."""

    path: Path
    size: int
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> File:
        """The file that is at a path now."""
        info = path.stat()
        return cls(path, info.st_size, (info.st_ino, info.st_mtime_ns))

    def open(self) -> int:
        """A descriptor of the same file.

        Raises:
            CheckpointError: there is another one now.
        """
        number = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        info = os.fstat(number)
        if (info.st_size, info.st_ino, info.st_mtime_ns) != (self.size, *self.stamp):
            os.close(number)
            raise CheckpointError(f"{str(self.path)!r} was changed while it was read.")
        return number


@dataclasses.dataclass(eq=False)
class Storage:
    """Bytes of a file, of which tensors are views: one span of it, or several in order.

    Attributes:
        spans: (offset, length) of each.
        crc: the checksum of what is before the bytes, and what it is to be behind them.
    """

    file: File
    size: int
    spans: Sequence[tuple[int, int]] = ()
    crc: tuple[int, int] | None = None

    def part(self, start: int, size: int) -> Iterable[tuple[int, int]]:
        """The spans of some of the bytes."""
        for offset, length in self.spans:
            if size and start < length:
                count = min(size, length - start)
                yield offset + start, count
                start, size = 0, size - count
            else:
                start -= length


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that lies in a file.

    Attributes:
        start: its first byte in the storage.
        stride: in elements; None where the tensor is contiguous.
        big_endian: the order of the bytes of an element.
    """

    storage: Storage
    dtype: torch.dtype
    shape: torch.Size
    start: int = 0
    stride: tuple[int, ...] | None = None
    big_endian: bool = False

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        if self.stride is None or not self.numel():
            return self.numel()
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    @property
    def place(self) -> tuple[int, int]:
        """The same for tensors that share memory from the first byte on."""
        return id(self.storage), self.start

    def spans(self) -> list[tuple[int, int]]:
        """The range of its bytes in the file."""
        return list(self.storage.part(self.start, self.extent * self.dtype.itemsize))

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        """The tensor, of its elements in the order of the file."""
        if self.big_endian and self.dtype.itemsize > 1:
            turned = flat.view(torch.uint8).view(-1, self.dtype.itemsize).flip(1)
            flat = turned.contiguous().view(self.dtype).view(-1)
        if self.stride is None or not self.numel():
            return flat.view(self.shape)
        return flat.as_strided(self.shape, self.stride).contiguous()


Leaf = Stored | torch.Tensor


def place_of(leaf: Leaf) -> tuple[int, int]:
    """The same for tensors that are the same memory."""
    return leaf.place if isinstance(leaf, Stored) else (leaf.data_ptr(), leaf.numel())


def fetch(leaves: Mapping[str, Leaf], *, mmap: bool = False) -> State:
    """Tensors in memory.

    Args:
        leaves: tensors that lie in files; tensors that are in memory are copied.
        mmap: map the files where they can be mapped. Nothing is read then before it is used, and
            the tensors die or change with their files.

    Raises:
        CheckpointError: a file was changed since its directory was read.
        OSError: it cannot be read.
    """
    ready: dict[str, torch.Tensor] = {}
    flat: list[tuple[torch.Tensor, Stored]] = []
    maps: dict[Path, Any] = {}
    for name, leaf in leaves.items():
        if isinstance(leaf, torch.Tensor):
            contiguous = torch.contiguous_format
            ready[name] = leaf if leaf.is_meta else leaf.detach().clone(memory_format=contiguous)
            continue
        mapped = _mapped(leaf, maps) if mmap else None
        elements = torch.empty(leaf.extent, dtype=leaf.dtype) if mapped is None else mapped
        if mapped is None:
            flat.append((elements, leaf))
        ready[name] = elements
    _read(flat)
    for elements, leaf in flat:
        _check(elements, leaf.storage)
    return {
        name: leaf.shaped(ready[name]) if isinstance(leaf, Stored) else ready[name]
        for name, leaf in leaves.items()
    }


def _check(elements: torch.Tensor, storage: Storage) -> None:
    """Compare the checksum of all bytes of a storage, if it has one."""
    if storage.crc is None or not storage.size:
        return
    before, after = storage.crc
    content = (ctypes.c_char * storage.size).from_address(elements.data_ptr())
    if zlib.crc32(content, before) != after:
        raise CheckpointError(
            f"Checkpoint {str(storage.file.path)!r} cannot be read: its bytes are not those that "
            "were written, their checksum (CRC) is another."
        )


def _mapped(leaf: Stored, maps: dict[Path, Any]) -> torch.Tensor | None:
    """The elements where they lie in the file; None where they cannot be used there."""
    spans, size = leaf.spans(), leaf.dtype.itemsize
    if len(spans) != 1 or spans[0][0] % size or leaf.big_endian:
        return None
    file = leaf.storage.file
    if file.path not in maps:
        os.close(file.open())  # which looks whether it is the same
        mapping: Any = torch.UntypedStorage.from_file(str(file.path), False, file.size)
        maps[file.path] = mapping
    start, length = spans[0]
    part = maps[file.path][start : start + length]
    return torch.empty(0, dtype=leaf.dtype).set_(part, 0, (length // size,), (1,))


@dataclasses.dataclass
class _Call:
    """One call of the system: consecutive bytes of a file into one or several places."""

    file: File
    offset: int
    places: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # (address, size)
    size: int = 0


def _read(flat: Sequence[tuple[torch.Tensor, Stored]]) -> None:
    """Read tensors from their files, straight into their memory."""
    pieces: list[tuple[Path, int, int, int, File]] = []  # path, offset, size, address
    for elements, leaf in flat:
        address = elements.data_ptr()
        for offset, length in leaf.spans():
            for start in range(0, length, PIECE):
                size = min(PIECE, length - start)
                file = leaf.storage.file
                pieces.append((file.path, offset + start, size, address + start, file))
            address += length
    pieces.sort(key=lambda piece: piece[:2])
    calls = _calls(pieces)
    files = {call.file: call.file.open() for call in reversed(calls)}
    try:
        if sum(call.size for call in calls) < 2 * PIECE:
            for call in calls:
                _run(call, files[call.file])
            return
        with concurrent.futures.ThreadPoolExecutor(IN_FLIGHT) as pool:
            list(pool.map(lambda call: _run(call, files[call.file]), calls))
    finally:
        for number in files.values():
            os.close(number)


def _calls(pieces: Iterable[tuple[Path, int, int, int, File]]) -> list[_Call]:
    calls: list[_Call] = []
    for _, offset, size, address, file in pieces:
        last = calls[-1] if calls else None
        gap = offset - last.offset - last.size if last is not None else -1
        if (
            last is None
            or last.file != file
            or not 0 <= gap <= GAP
            or last.size + gap + size > PIECE
            or len(last.places) > BUFFERS
        ):
            calls.append(last := _Call(file, offset))
        elif gap:
            last.places.append((ctypes.addressof(_waste()), gap))
            last.size += gap
        last.places.append((address, size))
        last.size += size
    return calls


@functools.cache
def _waste() -> ctypes.Array[ctypes.c_char]:
    """The sink of the bytes between tensors."""
    return (ctypes.c_char * GAP)()


def _run(call: _Call, number: int) -> None:
    places, offset = call.places, call.offset
    while places:
        buffers = [(ctypes.c_char * size).from_address(address) for address, size in places]
        count = os.preadv(number, buffers, offset)
        if not count:
            raise CheckpointError(f"{str(call.file.path)!r} was cut while it was read.")
        offset += count
        rest = []
        for address, size in places:
            skipped = min(count, size)
            count -= skipped
            if size > skipped:
                rest.append((address + skipped, size - skipped))
        places = rest
