"""The state of a run: a bar on a terminal, lines elsewhere, events for programs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from .decoding import Failure, Unit

Report = Callable[[dict[str, Any]], None]
QUIET = 2.0  # seconds without a word: what is over by then needs none
EVENT = 0.5  # seconds between events
EVERY = 10.0  # seconds between lines


@dataclasses.dataclass
class Meter:
    """Count images, and report.

    Attributes:
        total: images of the run.
        kept: those whose results were there already.
        report: is given the events, dicts with an ``event``.
        done: images that are done, or in the network.
        waited: seconds in which the network waited for images.
        failures: the images without a result, by key.
    """

    total: int
    kept: int
    report: Report
    done: int = 0

    def __post_init__(self) -> None:
        self.done = self.kept
        self.began = self._told = time.monotonic()
        self.waited = 0.0
        self.failures: dict[str, Failure] = {}
        self.report({"event": "start", "total": self.total, "kept": self.kept})

    def watch(self, units: Iterator[Unit]) -> Generator[Unit]:
        """Pass units on, with the time that they take to come, and count their images."""
        while True:
            start = time.monotonic()
            unit = next(units, None)
            self.waited += time.monotonic() - start
            if unit is None:
                return
            self.count(len(unit.items), unit.failures)
            yield unit

    def count(self, images: int, failures: Iterable[Failure]) -> None:
        """Count images that are done, and those of them without a result."""
        self.done += images
        for failure in failures:
            self.fail(failure)
        self._tell()

    def fail(self, failure: Failure) -> None:
        """Count and report an image without a result, once."""
        item = failure.item
        if item.name in self.failures:
            return
        self.failures[item.name] = failure
        self.report(
            {"event": "failed", "key": item.name, "image": item.shown, "error": failure.reason}
        )

    def state(self) -> dict[str, Any]:
        """The numbers of an event: images, images a second, seconds left, share of the time in
        which the network did not wait for images."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (self.done - self.kept) / seconds
        left = (self.total - self.done) / rate if rate else None
        return {
            "done": self.done,
            "total": self.total,
            "failed": len(self.failures),
            "rate": round(rate, 2),
            "left": None if left is None else round(left, 1),
            "busy": round(1 - min(self.waited / seconds, 1.0), 3),
        }

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told >= EVENT:
            self._told = now
            self.report({"event": "progress", **self.state()})

    def close(self) -> dict[str, Any]:
        """Report the end; return its numbers."""
        state = self.state()
        self.report({"event": "done", **state})
        return state


def reporter() -> Report:
    """A bar where standard error is a terminal with a width, lines elsewhere."""
    try:
        wide = sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        wide = False
    return Bar() if wide else Lines()


class Bar:
    """A bar of tqdm's, for runs of more than two seconds."""

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            tqdm: Any = importlib.import_module("tqdm")  # huggingface_hub needs it; no types
            total, kept = event["total"], event["kept"]
            self._bar = tqdm.tqdm(
                total=total, initial=kept, unit="image", delay=QUIET, dynamic_ncols=True
            )
        elif event["event"] in ("progress", "done"):
            if event["failed"]:
                self._bar.set_postfix(failed=event["failed"], refresh=False)
            self._bar.update(event["done"] - self._bar.n)
            if event["event"] == "done":
                self._bar.close()
        elif event["event"] == "worker":
            self._bar.write(f"featnet: {event['message']}", file=sys.stderr)


class Lines:
    """A line every ten seconds."""

    def __init__(self) -> None:
        self._next = time.monotonic() + QUIET

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "worker":
            print(f"featnet: {event['message']}", file=sys.stderr, flush=True)
        late = time.monotonic() >= self._next
        if event["event"] == "progress" and late:
            self._next = time.monotonic() + EVERY
            failed = f", {event['failed']} failed" if event["failed"] else ""
            left = "" if event["left"] is None else f", {event['left']:.0f} s left"
            print(
                f"{event['done']} of {event['total']} images{failed}, {event['rate']:.1f} "
                f"images/s{left}",
                file=sys.stderr,
                flush=True,
            )
