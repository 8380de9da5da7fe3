"""``featnet extract`` over many images: a run that can be stopped and goes on."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, check_choice
from ..images.finding import Item, printable
from ..images.many.manifest import ERRORS, hash_images, prepare_folder, summary, versions
from ..images.reading import ImageError, read_image
from ..size import Size
from .outputs import check_out, record, rounded
from .preparation import choose_transform, network, settings

if TYPE_CHECKING:
    from ..images.many.job import Engine

# What does not change the results
_BESIDE = {"images", "out", "overwrite", "json", "workers", "retry_failed", "render", "checkpoint"}
_BESIDE |= {"engine", "address", "cpus", "retries"}
_SHOWN = 10  # failures that are printed


def extract_many(args: argparse.Namespace, items: Sequence[Item]) -> int:
    """Write the features of many images to a folder, or print their vectors.

    A finished run is known by its arguments, before torch is imported.

    Returns:
        The exit code: 0, or 1 where images have no result.
    """
    if args.render:
        raise ArgumentError("--render draws the maps of a single photograph: name one.")
    if any(item.path is None for item in items):
        raise ArgumentError("-, an image from standard input, cannot be one of many.")
    check_out(args)
    if args.engine == "ray":
        _check_cluster(args)
    if args.out is None:
        return _run(args, items, None, None)
    prepare_folder(args.out)
    command = _fingerprint(args, items)
    done = summary(args.out)
    again = args.overwrite or (args.retry_failed and done and done["failed"])
    if command is not None and done and done["command"] == command and not again:
        images, failed = done["images"], done["failed"]
        if args.json:
            _print_event({"event": "done", "done": images, "total": images, "failed": failed})
        return _say_end(args, images, failed, "Nothing to do: it is all there.")
    with _engine(args) as engine:
        return _run(args, items, command, engine)


def _fingerprint(args: argparse.Namespace, items: Sequence[Item]) -> dict[str, Any] | None:
    """Return what a finished run is known by; None where the weights are in several files."""
    checkpoint = args.checkpoint
    if args.demo:
        from ..checkpoints.demo import demo_weights

        checkpoint = demo_weights()
    facts = {name: value for name, value in vars(args).items() if name not in _BESIDE}
    if checkpoint is not None:
        if not checkpoint.is_file() or checkpoint.suffix == ".json":
            return None
        with Path(checkpoint).open("rb") as file:
            facts["checkpoint"] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return {**facts, "keys": hash_images(items), "versions": versions()}


def _run(
    args: argparse.Namespace,
    items: Sequence[Item],
    command: dict[str, Any] | None,
    engine: Engine | None,
) -> int:
    """Build the network, and run it."""
    net, source = network(args)

    from ..images.many.job import Job, default_batch, extract_into, run_here
    from ..images.many.progress import reporter

    transform = choose_transform(args, net, lambda: _first_size(items))
    batch_size = args.batch_size or default_batch(transform)
    device = None if engine is None else args.device
    job = Job(net, transform, settings(args), batch_size, args.workers, device=device)
    if args.out is None:
        return _print_vectors(args, items, job, source)
    say = _silent if args.json else print
    levels = ", ".join(net.feature_info.module_name())
    height, width = transform.input_size
    fit = "as they are" if transform.fit == "keep" else f"{transform.fit} to {height} x {width}"
    say(f"{args.model}, {len(items)} images, {fit}")
    say(f"{args.pool or 'maps'} of {levels}")
    say(printable(f"weights: {source}"))
    report = _print_event if args.json else reporter()
    done = extract_into(
        args.out,
        job,
        items,
        shard_size=args.shard_size,
        table=args.table,
        overwrite=args.overwrite,
        retry_failed=args.retry_failed,
        report=_Failures(report, quiet=args.json),
        command=command,
        engine=engine or run_here,
    )
    what = f"wrote the {'vectors' if args.pool else 'maps'} of {{}} images to {args.out}"
    text = what.format(done.images - done.failed)
    if done.kept:
        text += f"; {done.kept} images were done already"
    if done.rate:
        text += f" ({done.rate:.1f} images/s, the network busy {100 * done.busy:.0f}% of the time)"
    return _say_end(args, done.images, done.failed, text)


def _check_cluster(args: argparse.Namespace) -> None:
    """Refuse what a cluster cannot do, before torch is imported.

    Raises:
        ArgumentError: no output folder, no workers, or a device that is no kind of device.
        MissingExtraError: Ray Data is not installed.
    """
    from ..images.many.connection import require_ray

    if args.out is None:
        raise ArgumentError("--out DIR is missing: the workers of --engine ray write to it.")
    if args.workers == 0:
        raise ArgumentError("--workers 0: --engine ray has at least 1.")
    check_choice("--device", args.device, ("cpu", "cuda"))
    require_ray()


@contextlib.contextmanager
def _engine(args: argparse.Namespace) -> Iterator[Engine | None]:
    """Context: what computes the shards, if not this process."""
    if args.engine == "local":
        yield None
        return
    from ..images.many.connection import connected, count_workers

    gpus = 1.0 if args.device == "cuda" else 0.0
    with connected(args.address):
        count = count_workers(args.workers, cpus=args.cpus, gpus=gpus)

        from ..images.many.cluster import Cluster
        from ..images.many.pool import Pool

        yield Cluster(Pool(count, count, float(args.cpus), gpus, args.retries))


def _first_size(items: Sequence[Item]) -> Size:
    """(height, width) of the first image that can be read.

    Raises:
        ImageError: none can.
    """
    for item in items:
        try:
            assert item.path is not None
            image = read_image(item.path)
        except ImageError:
            continue
        return image.height, image.width
    raise ImageError(f"none of the {len(items)} images can be read, the first: {items[0].shown!r}")


def _print_vectors(args: argparse.Namespace, items: Sequence[Item], job: Any, source: str) -> int:
    """Print a line of JSON for each image."""
    from ..images.many.decoding import Failure
    from ..images.many.forward import VECTOR
    from ..images.many.plan import Shard, plan
    from ..images.many.progress import Meter

    def sink(shard: Shard, rows: Sequence[Any]) -> None:
        del shard
        for row in rows:
            if not isinstance(row, Failure):
                sample = row.sample
                line = record(args, source, sample.item, sample.size, sample.place)
                print(json.dumps({**line, "vector": rounded(row.values[VECTOR])}), flush=True)

    meter = Meter(len(items), 0, _Failures(_silent, quiet=False))
    job.run(plan(items, args.shard_size or job.batch_size), sink, meter)
    return _say_end(args, len(items), meter.close()["failed"], "")


def _silent(event: object) -> None:
    del event


def _print_event(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


class _Failures:
    """Reports of progress, with a line for the first images that failed."""

    def __init__(self, report: Any, *, quiet: bool) -> None:
        self.report, self.left = report, 0 if quiet else _SHOWN

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "failed" and self.left > 0:
            self.left -= 1
            more = "" if self.left else f" (others: {ERRORS})"
            print(f"featnet: skipped: {event['error']}{more}", file=sys.stderr)
        self.report(event)


def _say_end(args: argparse.Namespace, images: int, failed: int, text: str) -> int:
    """Say what was done; the exit code."""
    if text and not args.json:
        print(printable(text))
    if failed:
        why = f"; {args.out / ERRORS} says why, --retry-failed tries again" if args.out else ""
        words = f"featnet: {failed} of {images} images were skipped{why}."
        print(printable(words), file=sys.stderr)
    return 1 if failed else 0
