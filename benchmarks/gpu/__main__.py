"""``python -m benchmarks.gpu``: checks and figures on a GPU, in at most eight minutes.

It prints what it finds, and writes it to FOLDER/gpu.md and FOLDER/gpu.json as it goes on. What no
longer fits into the time is named as left out. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ..common import Table, machine
from .checks import listed
from .figures import PARTS, Part
from .record import Outcome, Record
from .setting import Setting

MARGIN = 20.0  # seconds that are kept for the end
PACKAGES = ("timm", "triton", "safetensors", "huggingface_hub")


class Budget:
    """The time that is left of a run, and an end to it that nothing can outlast.

    Args:
        seconds: from now on.
        record: that is written when the time is over, with what was then at work.

    Attributes:
        at: what is at work.
    """

    def __init__(self, seconds: float, record: Record) -> None:
        self._end, self._record, self.at = time.monotonic() + seconds, record, ""
        self._timer = threading.Timer(seconds - 5, self._cut_off)
        self._timer.daemon = True
        self._timer.start()

    @property
    def left(self) -> float:
        """Seconds in which something may still be done."""
        return self._end - time.monotonic() - MARGIN

    def close(self) -> None:
        """Nothing more is to be cut off."""
        self._timer.cancel()

    def _cut_off(self) -> None:
        self._record.leave_out(self.at, "cut off when the time was over")
        os._exit(1)


def check(setting: Setting, budget: Budget, record: Record) -> None:
    """Run the checks."""
    for each in listed(setting):
        budget.at = each.name
        if each.cuda and not setting.cuda:
            record.add(Outcome(each.name, "needs CUDA"))
            continue
        if budget.left < 0:
            record.add(Outcome(each.name, "no time left"))
            continue
        start = time.perf_counter()
        try:
            outcome, detail = "passed", each.run(setting)
        except Exception as error:
            outcome, detail = "FAILED", f"{type(error).__name__}: {error}"[:300]
        record.add(Outcome(each.name, outcome, detail, time.perf_counter() - start))
        torch.compiler.reset()


def measure(part: Part, setting: Setting, budget: Budget, record: Record) -> None:
    """Measure the rows of a table for which there is time."""
    if part.cuda and not setting.cuda:
        record.leave_out(part.title, "needs CUDA")
        return
    note = " ".join(str(part.measure.__doc__).split())
    longest = 0.0
    for name in part.chosen(setting):
        budget.at = f"{part.title}: {name}"
        if (longest or part.guess) > budget.left:
            record.leave_out(budget.at, "no time left")
            continue
        start = time.perf_counter()
        try:
            rows = part.measure(setting, name)
        except Exception as error:
            rows = [[name, f"failed: {type(error).__name__}: {error}"[:300]]]
        record.add_rows(Table(part.title, part.header, rows, note))
        longest = max(longest, time.perf_counter() - start)
        if setting.cuda:
            torch.cuda.empty_cache()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, check, measure, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that all works")
    parser.add_argument("--minutes", type=float, default=8.0, help="until it ends (default: 8)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=Path("build/gpu"),
                        help="default: build/gpu")  # fmt: skip
    args = parser.parse_args(argv)
    setting = Setting(args.device, args.quick)
    if setting.cuda and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} sees no CUDA device. `--device cpu --quick` shows without "
            "one that all but CUDA works.",
            file=sys.stderr,
        )
        return 1
    words = sys.argv[1:] if argv is None else argv
    command = shlex.join([*parser.prog.split(), *words])
    record = Record(args.out, f"{machine(args.device, PACKAGES)}; `{command}`.")
    budget = Budget(60 * args.minutes, record)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of compilers, about themselves
            check(setting, budget, record)
            for part in PARTS:
                measure(part, setting, budget, record)
    finally:
        budget.close()
    failures = record.failures
    print(f"{len(failures)} failed: {', '.join(failures)}" if failures else "nothing failed")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
