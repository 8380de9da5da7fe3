"""The race of :func:`featnet.optimize`: forms of one network, timed in turn, with their memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

ROUNDS, LONGEST = 5, 30  # rounds that each form runs, and for how many more a short race goes on
ENOUGH = 1.0  # seconds after which it ends
BEHIND = 1.5  # times the quickest form's time, at which a form leaves the race


def race(forms: Mapping[str, nn.Module], x: torch.Tensor) -> dict[str, float]:
    """Call forms in turn.

    Args:
        forms: by name.
        x: the batch that each gets.

    Returns:
        The median milliseconds of each. A form that is far behind after the second round has those
        of this round.
    """
    wait: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else (lambda: None)
    taken: dict[str, list[float]] = {form: [] for form in forms}
    runners, start = dict(forms), time.perf_counter()
    with torch.inference_mode():
        for turn in range(LONGEST):
            if turn >= ROUNDS and time.perf_counter() - start > ENOUGH:
                break
            for form, net in runners.items():
                for again in range(3):
                    wait()
                    begin = time.perf_counter()
                    net(x)
                    wait()
                    # The first ones warm up, and the other form's weights fill the cache
                    if turn and again:
                        taken[form].append(time.perf_counter() - begin)
            if turn == 1:
                best = min(min(times) for times in taken.values())
                runners = {f: n for f, n in runners.items() if min(taken[f]) <= BEHIND * best}
    return {form: statistics.median(times) * 1e3 for form, times in taken.items()}


class Growth:
    """Context: the megabytes of resident memory by which the process grows inside.

    Attributes:
        megabytes: after the context; None where the system does not say.
    """

    megabytes: float | None = None

    def __enter__(self) -> Growth:
        self._before = _resident()
        return self

    def __exit__(self, *_error: object) -> None:
        after = _resident()
        if self._before is not None and after is not None:
            self.megabytes = max(0, after - self._before) / 1e6


def _resident() -> int | None:
    """Return the bytes of memory that the process has, after the freed ones were given back."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
