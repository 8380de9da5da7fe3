"""Extract the features of many images into a folder: resumable, the same bytes each time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints.writing import staged, write_text
from ...errors import ArgumentError, OutputError, check_choice
from ...extraction.extractors import FeatureNet
from ...values import checked
from ..finding import Item, find_listed
from ..pooling import POOLS
from ..reading import require_pillow
from ..transform import ImageTransform, create_transform
from . import shards as files
from .decoding import Failure, WorkerError, count_cpus, load
from .forward import VECTOR, Row, Settings, forward, rows
from .manifest import ERRORS, MANIFEST, SUMMARY, claim, describe, prepare_folder, summary
from .plan import Shard, plan
from .progress import Meter, Report, reporter

BATCH, VECTORS_A_SHARD, MOST_WORKERS = 16, 512, 8


@dataclasses.dataclass(frozen=True)
class Job:
    """A network, and how images become its results.

    Attributes:
        net: the network, in evaluation mode.
        transform: from an image to an input.
        settings: the form of the results.
        batch_size: most inputs in a batch.
        workers: processes that decode; None: as many as there are processors, at most 8.
        start: how they are started: ``"fork"``, ``"spawn"``, or None as the system does.
        device: kind of device that the network is to be brought to; None: it stays where it is.
    """

    net: nn.Module
    transform: ImageTransform
    settings: Settings
    batch_size: int
    workers: int | None = None
    start: str | None = None
    device: str | None = None

    def gives_vectors(self) -> bool:
        """Tell if the results are vectors; where nothing says it, an input of zeros does."""
        if self.settings.pool is not None or isinstance(self.net, FeatureNet):
            return self.settings.pool is not None
        x = torch.zeros(1, len(self.transform.mean), *self.transform.input_size)
        (values,) = forward(self.net, x, self.settings)
        return VECTOR in values

    def run(
        self,
        shards: Sequence[Shard],
        sink: Callable[[Shard, list[Row | Failure]], None],
        meter: Meter,
    ) -> None:
        """Compute shards, in order, and give the results away.

        A decoding process that dies is replaced once for every shard.

        Raises:
            WorkerError: one died twice at the same shard.
        """
        todo, blamed = list(shards), -1
        cuda = any(p.is_cuda for p in self.net.parameters())
        while todo:
            units = [unit for shard in todo for unit in shard.units(self.batch_size)]
            workers = self.workers
            if workers is None:
                workers = min(count_cpus(), MOST_WORKERS, len(units)) if len(units) > 2 else 0
            stream = meter.watch(
                load(units, self.transform, workers=workers, start=self.start, pin=cuda)
            )
            before = meter.done
            try:
                while todo:
                    before = meter.done
                    few = itertools.islice(stream, len(todo[0].units(self.batch_size)))
                    results = rows(self.net, few, self.settings, batch_size=self.batch_size)
                    for row in results:
                        if isinstance(row, Failure):
                            meter.fail(row)
                    sink(todo[0], results)
                    todo.pop(0)
            except RuntimeError as error:  # torch raises it in the midst of whatever is going on
                if "DataLoader worker" not in str(error):
                    raise
                first, last = todo[0].items[0], todo[0].items[-1]
                message = f"a process that decodes images died ({str(error).splitlines()[0]})"
                if blamed == todo[0].index:
                    raise WorkerError(
                        f"{message}, twice between {first.shown!r} and {last.shown!r}: too little "
                        "memory for so many workers, or an image that its decoder cannot take. "
                        "What is finished is kept: fewer workers, or the list without that image."
                    ) from error
                blamed = todo[0].index
                meter.done = before
                meter.report({"event": "worker", "message": f"{message}; it is replaced"})
            finally:
                stream.close()


# Computes shards of a job, and writes them to a folder in a format; counts images
Engine = Callable[[Job, Path, str, Sequence[Shard], Meter], None]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The numbers of a run.

    Attributes:
        out: the folder.
        images: images in it, with those that failed.
        failed: images without a result; ``errors.jsonl`` says why.
        kept: images that were there already.
        rate: images a second of this run; 0 where there was nothing to do.
        busy: share of the time in which the network did not wait for images.
    """

    out: Path
    images: int
    failed: int
    kept: int
    rate: float
    busy: float


@checked
def extract_images(
    net: nn.Module,
    images: object,
    *,
    out: str | os.PathLike[str],
    pool: str | None = None,
    normalize: bool = True,
    dtype: str = "float32",
    transform: ImageTransform | None = None,
    batch_size: int | None = None,
    shard_size: int | None = None,
    workers: int | None = None,
    start: str | None = None,
    table: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    progress: bool | Report = True,
) -> Summary:
    """Extract the features of many images into a folder, which :func:`read_features` reads.

    Images are read, turned upright, resized and normalised by worker processes, and run in batches
    of one input size. The results of ``shard_size`` images are written at once, under a temporary
    name first: a run that was stopped at any moment goes on when it is called again, and what comes
    out is the same, byte for byte. An image that cannot be read is a line in ``errors.jsonl``.

    Args:
        net: an extractor, or any network that returns maps or one vector an image; in evaluation
            mode, on its device.
        images: a folder, a pattern such as ``"photos/**/*.jpg"``, ``"@FILE"`` with a path in each
            line, a list of paths, or a dict of keys and paths. The keys are the paths below the
            folder.
        out: the output folder. That of another run is refused.
        pool: ``"avg"``, ``"max"``, ``"gem"`` or ``"cls"`` of :func:`pool_features` for vectors;
            None for maps, or for the vectors that the network itself returns.
        normalize: give pooled vectors the length 1.
        dtype: of the results, ``"float32"`` or ``"float16"``.
        transform: by default ``create_transform(net)``, a crop. ``fit="pad"`` keeps the whole
            image; with ``"short"`` and ``"keep"`` inputs differ in size, and those of one size meet
            in a batch.
        batch_size: most inputs in a batch; by default 16, or 1 where photographs keep their size.
        shard_size: images whose results are written together; by default 512 for vectors and one
            batch for maps.
        workers: processes; 0 for none, by default as many as processors, at most 8.
        start: how they are started, ``"fork"`` or ``"spawn"``; by default as the system does.
        table: format of vectors, ``"parquet"`` (extra ``featnet[table]``) or ``"npy"``; by default
            Parquet where pyarrow is installed.
        overwrite: remove the results that are there.
        retry_failed: try the images again that had failed.
        progress: show it on standard error; or a function that is given events, dicts.

    Returns:
        Numbers of images, and images a second.

    Raises:
        ArgumentError: a value that cannot be, a network in training mode, two images of one key.
        ImageError: no images.
        OutputError: a folder that cannot be written to, is full, or is another run's.
        WorkerError: a worker process died, again and again.

    Example:
        >>> import pathlib, tempfile, featnet
        >>> from PIL import Image
        >>> net = featnet.create_model("test_resnet", features_only=True, out_indices=(-1,)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photos, out = pathlib.Path(folder, "photos"), pathlib.Path(folder, "out")
        ...     photos.mkdir()
        ...     for name in ("coffee", "rocket"):
        ...         Image.new("RGB", (96, 64), "brown").save(photos / f"{name}.png")
        ...     summary = featnet.extract_images(net, photos, out=out, pool="avg")
        ...     again = featnet.extract_images(net, photos, out=out, pool="avg")
        >>> summary.images, summary.failed, again.kept
        (2, 0, 2)
    """
    if net.training:
        raise ArgumentError("The network is in training mode: call net.eval() first.")
    if pool is not None:
        check_choice("pool", pool, POOLS)
    check_choice("dtype", dtype, ("float32", "float16"))
    if start is not None:
        check_choice("start", start, ("fork", "spawn", "forkserver"))
    for name, value in (("batch_size", batch_size), ("shard_size", shard_size)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name}={value!r}: a positive int is expected.")
    if workers is not None and workers < 0:
        raise ArgumentError(f"workers={workers!r}: an int from 0 is expected.")
    items = find_listed(images)
    require_pillow()
    transform = create_transform(net) if transform is None else transform
    batch_size = batch_size or default_batch(transform)
    job = Job(net, transform, Settings(pool, normalize, dtype), batch_size, workers, start)
    report = (reporter() if progress else _silent) if isinstance(progress, bool) else progress
    return extract_into(
        Path(out),
        job,
        items,
        shard_size=shard_size,
        table=table,
        overwrite=overwrite,
        retry_failed=retry_failed,
        report=report,
    )


def default_batch(transform: ImageTransform) -> int:
    """Inputs in a batch: one where they are as large as the photographs."""
    return 1 if transform.fit == "keep" and transform.max_side is None else BATCH


def _silent(event: dict[str, Any]) -> None:
    del event


def run_here(job: Job, folder: Path, form: str, shards: Sequence[Shard], meter: Meter) -> None:
    """Compute shards in this process, and write them."""

    def write(shard: Shard, found: list[Row | Failure]) -> None:
        files.write_shard(folder, shard.index, found, form)

    job.run(shards, write, meter)


def extract_into(
    folder: Path,
    job: Job,
    items: Sequence[Item],
    *,
    shard_size: int | None,
    table: str | None,
    overwrite: bool,
    retry_failed: bool,
    report: Report,
    command: Mapping[str, Any] | None = None,
    engine: Engine = run_here,
) -> Summary:
    """Run a job into a folder, or go on with it.

    Args:
        command: is kept with the finished run, by which it is known again without the network.
        engine: computes shards, and writes them.
    """
    prepare_folder(folder)
    if overwrite:
        clear(folder)
    vectors = job.gives_vectors()
    size = shard_size or (VECTORS_A_SHARD if vectors else job.batch_size)
    form = files.vector_format(table) if vectors else files.MAPS
    sizes = {"batch_size": job.batch_size, "shard_size": size, "table": form}
    facts = describe(job.net, items, job.transform, job.settings, device=job.device, **sizes)
    claim(folder, facts)
    if retry_failed:
        _forget_failed(folder)
    done = files.done(folder)
    every = plan(items, size)
    todo = [shard for shard in every if shard.index not in done]
    kept = sum(len(shard.items) for shard in every if shard.index in done)
    if todo or summary(folder) is None:
        meter = Meter(len(items), kept, report)
        try:
            engine(job, folder, form, todo, meter)
            failed = _finish(folder, every, command)
        except OutputError as error:
            raise OutputError(
                f"{error} What is finished is kept, and goes on from there."
            ) from error
        state = meter.close()
        return Summary(folder, len(items), failed, kept, state["rate"], state["busy"])
    failed = (summary(folder) or {}).get("failed", 0)
    return Summary(folder, len(items), failed, kept, 0.0, 0.0)


def clear(folder: Path) -> None:
    """Remove a run's files; the manifest last, so that no shard is ever without its own."""
    (folder / SUMMARY).unlink(missing_ok=True)
    for index in files.done(folder):
        files.remove(folder, index)
    for name in (ERRORS, MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _forget_failed(folder: Path) -> None:
    """Remove the shards in which an image failed."""
    for index in files.done(folder):
        if any("error" in line for line in files.records(folder, index)):
            (folder / SUMMARY).unlink(missing_ok=True)
            files.remove(folder, index)


def _finish(folder: Path, shards: Sequence[Shard], command: Mapping[str, Any] | None) -> int:
    """Write the failures of all shards to one file, and the summary; return their number."""
    failed = 0
    with staged(folder / ERRORS) as draft, draft.open("w", encoding="utf-8") as file:
        for shard in shards:
            for line in files.records(folder, shard.index):
                if "error" in line:
                    failed += 1
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    if not failed:
        (folder / ERRORS).unlink()
    images = sum(len(shard.items) for shard in shards)
    counts = {"images": images, "failed": failed, "shards": len(shards), "command": command}
    write_text(folder / SUMMARY, json.dumps(counts, indent=2) + "\n")
    return failed
