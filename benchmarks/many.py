"""``python -m benchmarks.many``: what is promised of runs over many images, measured.

Photographs are made in a temporary folder: 2,000 JPEGs with 30 broken ones among them. Then: a run
that is killed over and over beside one that is not, byte by byte; memory after 200 and after all,
workers included; a finished run again; throughput beside the bare network's on inputs in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import featnet
from featnet.images.many.progress import Report

from .command import parsed, parser_of, report
from .common import Table

MODEL, BATCH = "resnet50", 16


def make_photographs(root: Path, count: int, broken: int) -> None:
    """JPEGs of 640 x 480 cut from the repository's photographs, some of them cut off or empty."""
    rng = random.Random(0)
    paths = sorted((Path(__file__).parents[1] / "examples").glob("*.jpg"))
    photos = [Image.open(path).convert("RGB") for path in paths]
    bad = {*rng.sample(range(count), broken)}
    for index in range(count):
        photo = photos[index % len(photos)]
        side = rng.uniform(0.5, 1)
        width, height = (round(length * side) for length in photo.size)
        left, top = rng.randrange(photo.width - width + 1), rng.randrange(photo.height - height + 1)
        path = root / f"{index % 10}" / f"{index:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + width, top + height)).resize((640, 480)).save(path)
        if index in bad:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 2 if index % 2 else 0])


def network(name: str) -> nn.Module:
    """The network, with random weights."""
    torch.manual_seed(0)
    return featnet.create_model(name, features_only=True, out_indices=(-1,)).eval()


def kills(photos: Path, folder: Path, images: int, broken: int, count: int) -> dict[str, str]:
    """Kill the command at random moments, and compare what is there in the end, byte by byte.

    A life is as long as the start and up to twice the work's share of one of so many lives, so that
    most kills fall into one run, some of them before it has begun.
    """
    command = [sys.executable, "-m", "featnet", "extract", str(photos), "--model", "test_resnet"]
    command += ["--pool", "avg", "--shard-size", "64", "--workers", "2", "--json", "--out"]
    begin, seconds = _timed([*command, str(folder / "whole")])
    rng, killed, runs = random.Random(0), 0, 1
    target = folder / "killed"
    while killed < count:
        with subprocess.Popen([*command, str(target)], stdout=subprocess.DEVNULL) as process:
            try:
                process.wait(rng.uniform(0, begin + 2 * (seconds - begin) / count))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
                continue
        _compare(folder / "whole", target)  # finished: begin anew
        shutil.rmtree(target)
        runs += 1
    _timed([*command, str(target)])
    files = _compare(folder / "whole", target)
    features = featnet.read_features(target)
    assert len(features) == images - broken and len(features.errors) == broken, features
    times = [_timed([*command, str(target)])[1] for _ in range(5)]
    return {
        "killed at a random moment, and started again": f"{killed} times, {runs} finished",
        "files equal to those of a run that was not killed": f"{files} of {files}",
        "images with a vector": str(len(features)),
        "images with a reason for having none": str(len(features.errors)),
        "finished, and run again": (
            f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
        ),
    }


def _timed(command: list[str]) -> tuple[float, float]:
    """Run the command; seconds until its first line, and until its end."""
    start = begin = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout):
            begin = time.monotonic() if number == 0 else begin
        _, words = process.communicate()
    assert process.returncode == 1, words  # some images are broken
    return begin - start, time.monotonic() - start


def _compare(one: Path, other: Path) -> int:
    """Hold two folders to the same files of the same bytes; their number."""
    a, b = ({path.name: path.read_bytes() for path in x.iterdir()} for x in (one, other))
    assert a == b, sorted(name for name in {**a, **b} if a.get(name) != b.get(name))
    return len(a)


def memory(photos: Path, folder: Path, workers: int) -> dict[str, str]:
    """The peaks of the command and of its workers, added up, after 200 images and after all."""
    command = [sys.executable, "-m", "featnet", "extract", str(photos), "--model", "test_resnet"]
    command += ["--pool", "avg", "--shard-size", "64", "--workers", str(workers), "--json"]
    peaks: list[tuple[int, float]] = []
    with subprocess.Popen(
        [*command, "--out", str(folder / "memory")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for event in map(json.loads, process.stdout):
            if event["event"] == "progress":
                peaks.append((event["done"], _peaks(process.pid)))
    early = next((done, peak) for done, peak in peaks if done >= min(200, peaks[-1][0]))
    return {
        f"peak after {early[0]} images": f"{early[1]:.0f} MB",
        f"peak after {peaks[-1][0]} images": f"{peaks[-1][1]:.0f} MB",
    }


def _peaks(pid: int) -> float:
    """Most memory that a process and its children held, in MB; what they share counts twice."""
    total, todo = 0, [pid]
    while todo:
        place = Path("/proc", str(todo.pop()))
        with contextlib.suppress(OSError):  # it has ended
            status = place.joinpath("status").read_text(encoding="utf-8")
            total += int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
            children = place.joinpath("task", place.name, "children").read_text(encoding="utf-8")
            todo += map(int, children.split())
    return total / 1024


def extract(
    model: str, images: object, out: Path, workers: int, report: Report, **options: Any
) -> float:
    """Vectors of images, in processes; images a second from the start of these on."""
    return featnet.extract_images(
        network(model), images, out=out, pool="avg", workers=workers, progress=report, **options
    ).rate


def throughput(photos: Path, folder: Path, workers: int, count: int, rounds: int) -> dict[str, str]:
    """Images a second of a run, and of the bare network in the same batches on inputs that are
    there; in turn, the order reversed from round to round."""
    net, every = network(MODEL), sorted(photos.rglob("*.jpg"))
    good = list(itertools.islice((path for path in every if _whole(path)), count))
    transform = featnet.create_transform(net)
    x = transform(good[:BATCH])

    def bare() -> float:
        start = time.monotonic()
        with torch.inference_mode():
            for first in range(0, len(good), BATCH):
                featnet.pool_features(net(x[: len(good) - first]))
        return len(good) / (time.monotonic() - start)

    def run() -> float:
        return extract(MODEL, good, folder / f"round{len(rates)}", workers, _silent)

    bare()  # the first forwards are slower than others
    rates, ratios, decoding = [], [], []
    for turn in range(rounds):
        if turn % 2:
            one, other = bare(), run()
        else:
            other, one = run(), bare()
        rates.append(other)
        ratios.append(other / one)
        start = time.monotonic()
        for path in good[:100]:
            transform(path)
        decoding.append(min(100, len(good)) / (time.monotonic() - start))
    return {
        f"{MODEL}, 224 x 224, {workers} worker{'s' * (workers > 1)}": (
            f"{statistics.median(rates):.1f} images/s"
        ),
        "share of the bare network's rate, with the start of the workers": (
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} in {rounds} "
            "rounds)"
        ),
        "one process decodes": f"{statistics.median(decoding):.0f} images/s",
    }


def _silent(event: object) -> None:
    del event


def _whole(path: Path) -> bool:
    try:
        Image.open(path).load()
    except OSError:
        return False
    return True


PARTS = ("memory", "throughput", "kills")


def run(args: Namespace) -> Iterator[Table]:
    """A table for each promise, of photographs that are made first."""
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        photos = folder / "photos"
        make_photographs(photos, args.images, args.broken)
        parts = {
            "memory": lambda: memory(photos, folder, args.workers),
            "throughput": lambda: throughput(
                photos, folder, args.workers, args.sample, args.rounds
            ),
            "kills": lambda: kills(photos, folder, args.images, args.broken, args.kills),
        }
        note = f"{args.images:,} JPEGs of 640 x 480, {args.broken} of them broken."
        for part in args.only:
            rows = [list(row) for row in parts[part]().items()]
            yield Table(part.capitalize(), ("what", "figure"), rows, note, "many")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report."""
    parser = parser_of("benchmarks.many", __doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="of the throughput (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=int, default=160, help="images of a round of throughput")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some tables")
    args = parsed(parser, argv)
    return report(args, run(args), ("pillow", "pyarrow"))


if __name__ == "__main__":
    sys.exit(main())
