"""Files that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError

STALE = 3600.0  # seconds after which a temporary file belongs to nobody


def write_safetensors(
    state: Mapping[str, torch.Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, all of it or nothing: a model may be mapped from the file that is
    replaced, and a reader never sees half of one.

    Raises:
        CheckpointError: it cannot be written.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    ready: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()  # the format has no shared tensors
        ready[key] = value.clone() if place in seen and value.numel() else value
        seen.add(place)
    replace(
        path, lambda temporary: save_file(ready, temporary, {"format": "pt", **(metadata or {})})
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing.

    Raises:
        CheckpointError: it cannot be written.
    """
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def replace(path: Path, write: Any) -> None:
    """Call ``write`` with a temporary path beside ``path``, then put the file there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????.tmp"):
            with contextlib.suppress(OSError):  # of a process that was killed, not of one at work
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
        write(temporary)
        os.replace(temporary, path)
    except Exception as error:
        if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
            raise CheckpointError(f"{str(path)!r} cannot be written: {error}.") from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
