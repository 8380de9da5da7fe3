"""Python's collector of cycles, made to wait where thousands of objects are made that stay."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Context: Python's collector of cycles waits.

    A network, or this library's modules, are thousands of objects that stay. Making them starts a
    collection, which walks over all of torch: 80 ms, longer than either takes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
