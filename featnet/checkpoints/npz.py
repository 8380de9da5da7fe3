"""NumPy's ``.npz`` archives, in which JAX code keeps its weights, read without trusting them.

What an array's header claims is compared with its place in the archive before it is allocated;
objects, which would be pickles, and compressed arrays are refused.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError

END = ".npy"  # of the name of every array


def is_archive(path: Path) -> bool:
    """Whether a zip archive holds arrays and nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, RuntimeError):
        return False
    return bool(names) and all(name.endswith(END) for name in names)


def read(path: Path) -> dict[str, torch.Tensor]:
    """The arrays of an archive by their names.

    Raises:
        CheckpointError: NumPy is not installed; truncated, compressed, dishonest, or with anything
            but numbers.
    """
    try:
        import numpy as np
    except ImportError as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} is read by NumPy, which is not installed: "
            "pip install 'featnet[cli]'."
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename.removesuffix(END) for entry in entries]
            if len(set(names)) != len(names):
                raise ValueError("a name occurs twice")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed")
            found = {}
            for name, entry in zip(names, entries, strict=True):
                with archive.open(entry) as file:
                    found[name] = _tensor(np, name, file, entry.file_size)
            return found
    except (ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated or not an archive of "
            f"numbers ({error})."
        ) from error


def _tensor(np: Any, name: str, file: IO[bytes], size: int) -> torch.Tensor:
    """One array; the file is at its start and has ``size`` bytes."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name!r} is of the unknown version {version}")
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds objects")
    left = size - file.tell()
    if len(shape) > 16 or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{name!r}, {dtype} {shape}, does not fill {left} bytes")
    content = bytearray(file.read(left))
    brain = dtype.kind == "V" and dtype.itemsize == 2  # bfloat16, which NumPy does not know
    array = np.frombuffer(content, dtype="<u2" if brain else dtype)
    if len(content) != left:
        raise ValueError(f"{name!r} ends after {len(content)} of {left} bytes")
    array = array.reshape(shape, order="F" if fortran else "C")
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(
        shape
    )
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if brain else tensor
