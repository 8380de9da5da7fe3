"""Files that are written as a whole or not at all: of every kind, and safetensors."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import OutputError

PREFIX, SUFFIX = ".featnet-", ".tmp"  # of the folder in which a file lies until it is complete
STALE = 3600.0  # seconds after which such a folder is nobody's, where nothing can be locked

# Names of the safetensors format
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Context: a path in a hidden folder beside ``path``; what lies in that folder afterwards takes
    its place beside ``path``, if nothing was raised.

    A process that is killed leaves the folder, which the next one that writes there removes.

    Raises:
        OutputError: the file system refuses: no right to write, no space, a folder of that name.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{str(path)!r} cannot be written: it is a folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        folder, lock = _make_folder(path.parent)
        try:
            yield folder / path.name
            for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
                os.replace(file, path.parent / file.name)  # the file itself comes last
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and "null" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{str(path)!r} cannot be written: {reason}.") from error


def _make_folder(parent: Path) -> tuple[Path, int | None]:
    """A new hidden folder, and the lock on it."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=PREFIX, suffix=SUFFIX))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another process swept it
            lock = _lock(folder)
            if folder.is_dir():
                return folder, lock


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None where nothing can be locked.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(number)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return number


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left in a folder, and nothing of one that is at work."""
    for left in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            old = time.time() - left.stat().st_mtime > STALE
            lock = _lock(left)
            if lock is not None or old:
                shutil.rmtree(left, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing.

    Raises:
        OutputError: it cannot be written.
    """
    with staged(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_safetensors(
    state: Mapping[str, torch.Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, all of it or nothing, in the order of ``state``.

    The same tensors give the same bytes: the safetensors package writes metadata in the order of a
    hash, which differs from one process to the next.

    Args:
        metadata: strings for the header, beside the ``format`` that readers of models ask for.

    Raises:
        OutputError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, value in state.items():
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {
            "dtype": DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin aligned
    with staged(path) as draft, draft.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in state.values():
            _write_tensor(file, value.detach().cpu().contiguous())


def _write_tensor(file: IO[bytes], value: torch.Tensor) -> None:
    size = value.numel() * value.element_size()
    if size:
        file.write((ctypes.c_char * size).from_address(value.data_ptr()))
