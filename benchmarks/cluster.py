"""``python -m benchmarks.cluster``: one worker of a Ray cluster beside a plain loop, measured.

The loop reads, transforms and runs photographs in batches of 16, in this process, on one thread.
Beside it, in turn, one worker with one CPU does the same: of ``featnet extract --engine ray``, and
of ``featnet.extract_dataset`` over paths and over the bytes of files. A worker's first results come
after its start; rates are from these on, and with the start. Then what travels: bytes an image.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import featnet
from featnet.images.many.cluster import Cluster
from featnet.images.many.forward import Settings
from featnet.images.many.job import Job, extract_into
from featnet.images.many.pool import Pool

from .common import machine
from .many import make_photographs, network

BATCH, TASK = 16, 32  # images
ONE = Pool(1, 1)
Marks = list[tuple[float, int]]  # seconds since the beginning, and images that are done


def loop(model: str, paths: list[Path], out: Path) -> Marks:
    """Read, transform and run."""
    net, start = network(model), time.monotonic()
    transform = featnet.create_transform(net)
    marks = []
    with torch.inference_mode():
        for first in range(0, len(paths), BATCH):
            batch = paths[first : first + BATCH]
            featnet.pool_features(net(transform(batch)))
            marks.append((time.monotonic() - start, first + len(batch)))
    return marks


def command(model: str, paths: list[Path], out: Path) -> Marks:
    """The engine of the command: results are in files."""
    from featnet.images.finding import find_listed

    net, start, marks = network(model), time.monotonic(), Marks()

    def watch(event: dict[str, Any]) -> None:
        if event["event"] in ("progress", "done"):
            marks.append((time.monotonic() - start, event["done"]))

    job = Job(net, featnet.create_transform(net), Settings("avg"), BATCH, device="cpu")
    options: dict[str, Any] = dict(shard_size=TASK, table=None, overwrite=True, retry_failed=False)
    extract_into(out, job, find_listed(paths), **options, report=watch, engine=Cluster(ONE))
    return marks


def dataset(rows: Callable[[list[Path]], list[dict[str, object]]]) -> Callable[..., Marks]:
    """``extract_dataset``: results come back to this process."""

    def run(model: str, paths: list[Path], out: Path) -> Marks:
        import ray

        net, start, marks, done = network(model), time.monotonic(), Marks(), 0
        blocks = max(1, len(paths) // TASK)
        images = ray.data.from_items(rows(paths), override_num_blocks=blocks)
        result = featnet.extract_dataset(images, net, column="image", pool="avg", workers=1)
        for batch in result.iter_batches(batch_size=None):
            done += len(batch["vector"])
            marks.append((time.monotonic() - start, done))
        return marks

    return run


def as_paths(paths: list[Path]) -> list[dict[str, object]]:
    """Rows of paths."""
    return [{"image": str(path)} for path in paths]


def as_bytes(paths: list[Path]) -> list[dict[str, object]]:
    """Rows of files' bytes."""
    return [{"image": path.read_bytes()} for path in paths]


FORMS: dict[str, Callable[[str, list[Path], Path], Marks]] = {
    "a plain loop": loop,
    "--engine ray": command,
    "extract_dataset, paths": dataset(as_paths),
    "extract_dataset, bytes": dataset(as_bytes),
}


def steady(marks: Marks) -> float:
    """Images a second after the first results."""
    (first, few), (last, every) = marks[0], next(m for m in marks if m[1] == marks[-1][1])
    return (every - few) / (last - first)


def whole(marks: Marks) -> float:
    """Images a second, with the start."""
    last, every = marks[-1]
    return every / last


def measure(model: str, paths: list[Path], folder: Path, rounds: int) -> Iterator[str]:
    """Rows of a table: the forms in turn, the order reversed from round to round."""
    runs: dict[str, list[Marks]] = {name: [] for name in FORMS}
    for turn in range(rounds):
        for name in list(FORMS)[:: -1 if turn % 2 else 1]:
            runs[name].append(FORMS[name](model, paths, folder / f"{turn}"))
    head = ("", "images/s", "times the loop's", "lowest to highest", "with the start", "first, s")
    yield f"| {' | '.join(head)} |"
    yield "| --- | --- | --- | --- | --- | --- |"
    base = [steady(marks) for marks in runs["a plain loop"]]
    for name, every in runs.items():
        rates = [steady(marks) for marks in every]
        ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
        cells = [
            f"{statistics.median(rates):.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{statistics.median(map(whole, every)):.1f}",
            f"{statistics.median(marks[0][0] for marks in every):.1f}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def sizes(model: str, paths: list[Path]) -> str:
    """The bytes that travel for an image, and once for a machine."""
    net, file = network(model), io.BytesIO()
    torch.save(net.state_dict(), file)
    image = statistics.mean(path.stat().st_size for path in paths)
    vector = 4 * sum(net.feature_info.channels())  # type: ignore[union-attr, operator]
    return (
        f"an image: {image:,.0f} bytes of the file, or a path; a result: {vector:,} bytes; "
        f"the weights, once a machine: {file.tell() / 1e6:.0f} MB"
    )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_photographs(folder / "photos", args.images, 0)
        paths = sorted(folder.rglob("*.jpg"))
        ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        try:
            print(f"{machine('cpu')} Ray {ray.__version__}; {args.model}, {args.images} images")
            for row in measure(args.model, paths, folder, args.rounds):
                print(row, flush=True)
            print(sizes(args.model, paths))
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
