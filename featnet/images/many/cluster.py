"""The shards of a run by the workers of a Ray cluster, each of which writes its own.

What is planned, written, resumed and refused is as on one machine: a cluster is an engine of
:func:`featnet.images.many.job.extract_into`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pickle
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import FeatnetError, OutputError
from . import shards as files
from .connection import ClusterError
from .decoding import Failure
from .job import Job, run_here
from .manifest import MANIFEST, read, versions
from .plan import Shard
from .pool import Pool
from .progress import Meter

if TYPE_CHECKING:
    from ray.data import Dataset

TASK = 512  # images, at most, of a task, unless a shard has more


@dataclasses.dataclass(frozen=True)
class Result:
    """The numbers of a task.

    Attributes:
        images: images whose results are written.
        failures: those without one.
        busy: seconds in which the network did not wait for images.
    """

    images: int
    failures: list[Failure]
    busy: float


class ShardWorker:
    """A worker that computes shards and writes them.

    Args:
        job: the work; this process's copy.
        folder: the output folder, an absolute path.
        form: format of the files.
        pool: that the worker is of.
    """

    def __init__(self, job: Job, folder: Path, form: str, pool: Pool) -> None:
        self.job, self.folder, self.form = pool.settle(job), folder, form

    def __call__(self, table: Any) -> Any:
        """Run the tasks of a table.

        Raises:
            ClusterError: this machine has another output folder, or other versions.
        """
        self._check_machine()
        results = [self._run(pickle.loads(task)) for task in table["task"].to_pylist()]
        return _table("result", results)

    def _run(self, shards: Sequence[Shard]) -> Result:
        """Compute those shards that a worker that died has not written."""
        images = sum(len(shard.items) for shard in shards)
        todo = [s for s in shards if not files.part(self.folder, s.index, "jsonl").exists()]
        meter = Meter(images, 0, lambda event: None)
        start = time.monotonic()
        run_here(self.job, self.folder, self.form, todo, meter)
        busy = time.monotonic() - start - meter.waited
        return Result(images, list(meter.failures.values()), busy)

    def _check_machine(self) -> None:
        here = f"on the machine {socket.gethostname()!r}"
        if not (self.folder / MANIFEST).exists():
            raise ClusterError(
                f"the output folder {str(self.folder)!r} is not that of this run {here}: it has to "
                "be one that all machines of the cluster share."
            )
        wanted, there = read(self.folder)["versions"], versions()
        if wanted != there:
            raise ClusterError(f"{here} there are {there}, and where the run began {wanted}.")


def _table(name: str, values: Sequence[object]) -> Any:
    """A table of one column, the values as bytes."""
    arrow = importlib.import_module("pyarrow")
    return arrow.table({name: arrow.array([pickle.dumps(x) for x in values], arrow.binary())})


@dataclasses.dataclass(frozen=True)
class Cluster:
    """An engine: the workers of the cluster that this process is connected to.

    Attributes:
        pool: the workers.
    """

    pool: Pool

    def __call__(
        self, job: Job, folder: Path, form: str, shards: Sequence[Shard], meter: Meter
    ) -> None:
        """Compute shards, and write them.

        Raises:
            ClusterError: workers died, and again when their images were done again.
            FeatnetError: raised by a worker.
        """
        folder, began, busy = folder.absolute(), time.monotonic(), 0.0
        tasks = [_table("task", [task]) for task in self._tasks(shards)]
        if not tasks:
            return
        dataset = importlib.import_module("ray.data").from_arrow(tasks)
        done = self.pool.map(dataset, ShardWorker, job, folder, form, self.pool, batch_size=1)
        for result in _results(done):
            busy += result.busy
            meter.waited = time.monotonic() - began - busy / self.pool.most
            meter.count(result.images, result.failures)
        if missing := {shard.index for shard in shards} - files.done(folder):
            raise OutputError(
                f"{len(missing)} of {len(shards)} parts are not in {str(folder)!r}: the output "
                "folder has to be one that all machines of the cluster share."
            )

    def _tasks(self, shards: Sequence[Shard]) -> list[list[Shard]]:
        """Shards that one worker computes together, few enough that none waits long for another."""
        size = max((len(shard.items) for shard in shards), default=1)
        count = max(1, min(TASK // size, len(shards) // (4 * self.pool.most)))
        every = [
            dataclasses.replace(
                shard,
                items=tuple(
                    dataclasses.replace(item, path=item.path and item.path.absolute())
                    for item in shard.items
                ),
            )
            for shard in shards
        ]
        return [every[start : start + count] for start in range(0, len(every), count)]


def _results(dataset: Dataset) -> Iterator[Result]:
    """Run a dataset of tasks; their results, as they come."""
    from ray.exceptions import RayError, RayTaskError

    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["result"])
    except RayTaskError as error:
        if isinstance(error.cause, FeatnetError):
            raise error.cause from error
        raise ClusterError(f"a worker failed: {str(error).splitlines()[-1]}") from error
    except RayError as error:
        raise ClusterError(
            f"workers died, and again when their images were done again ({_reason(error)}). What "
            "is finished is kept, and goes on from there. If they had too little memory: fewer "
            "workers, more CPUs for each, or smaller batches."
        ) from error


def _reason(error: Exception) -> str:
    """The sentence of Ray's many that says why."""
    text = str(error)
    match = re.search(r"The actor is dead because (.*?)[.\n]", text)
    return match[1] if match else text.splitlines()[0]
