"""``python -m benchmarks.many``: what is promised of runs over many images, measured.

Photographs are made in a temporary folder: 2,000 JPEGs with 30 broken ones among them. Then: a run
that is killed over and over beside one that is not, byte by byte; memory after 200 and after all;
a finished run again; throughput beside the bare network's on inputs that lie in memory.
"""

from __future__ import annotations

import os
import random
import resource
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

MODEL = "resnet50"


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


def kills(photos: Path, folder: Path, count: int) -> dict[str, str]:
    """Kill the command at random moments, and compare."""
    command = [sys.executable, "-m", "featnet", "extract", str(photos), "--model", "test_resnet"]
    command += ["--pool", "avg", "--shard-size", "64", "--workers", "2", "--out"]
    start = time.monotonic()
    whole = subprocess.run([*command, str(folder / "whole")], capture_output=True, check=False)
    seconds = time.monotonic() - start
    assert whole.returncode == 1, whole.stderr  # some are broken
    rng, killed = random.Random(0), 0
    target = folder / "killed"
    while killed < count:
        with subprocess.Popen(
            [*command, str(target)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(rng.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
            else:  # finished: begin anew
                shutil.rmtree(target)
    last = subprocess.run([*command, str(target)], capture_output=True, check=False)
    assert last.returncode == 1, last.stderr
    one, other = ({p.name: p.read_bytes() for p in x.iterdir()} for x in (folder / "whole", target))
    assert one == other, sorted(
        name for name in {**one, **other} if one.get(name) != other.get(name)
    )
    features = featnet.read_features(target)
    times = []
    for _ in range(5):
        start = time.monotonic()
        subprocess.run([*command, str(target)], capture_output=True, check=False)
        times.append(time.monotonic() - start)
    return {
        "killed at a random moment, and started again": f"{killed} times",
        "files equal to those of a run that was not killed": f"{len(one)} of {len(one)}",
        "images with a vector": str(len(features)),
        "images with a reason for having none": str(len(features.errors)),
        "finished, and run again": (
            f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})"
        ),
    }


def memory(photos: Path, folder: Path, workers: int) -> dict[str, str]:
    """The peak of this process after 200 images, and after all."""
    peaks: dict[int, float] = {}

    def watch(event: dict[str, Any]) -> None:
        if event["event"] in ("progress", "done"):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            peaks[event["done"]] = peak

    extract("test_resnet", photos, folder / "memory", workers, watch, shard_size=64)
    early = max(peak for done, peak in peaks.items() if done <= 250)
    return {
        "peak after 200 images": f"{early:.0f} MB",
        "peak at the end": f"{max(peaks.values()):.0f} MB",
    }


def extract(
    model: str, images: object, out: Path, workers: int, report: Report, **options: Any
) -> float:
    """Vectors of images, in processes; images a second from the start of these on."""
    return featnet.extract_images(
        network(model), images, out=out, pool="avg", workers=workers, progress=report, **options
    ).rate


def throughput(photos: Path, folder: Path, workers: int, count: int, rounds: int) -> dict[str, str]:
    """Images a second of a run, and of the bare network in the same batches; in turn."""
    net, paths = network(MODEL), sorted(photos.rglob("*.jpg"))
    good = [p for p in paths if p.stat().st_size > 20_000 or _whole(p)][:count]
    x = featnet.create_transform(net)(good[:16])
    ratios, rates, decoding = [], [], []
    for turn in range(rounds):
        out = folder / f"round{turn}"
        start = time.monotonic()
        with torch.inference_mode():
            for _ in range(count // 16):
                featnet.pool_features(net(x))
        bare = (count // 16 * 16) / (time.monotonic() - start)
        rates.append(extract(MODEL, good, out, workers, _silent))
        ratios.append(rates[-1] / bare)
        start = time.monotonic()
        transform = featnet.create_transform(net)
        for path in good[:100]:
            transform(path)
        decoding.append(100 / (time.monotonic() - start))
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
            "kills": lambda: kills(photos, folder, args.kills),
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
