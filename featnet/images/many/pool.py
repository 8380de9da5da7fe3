"""A pool of Ray Data's workers: processes on the machines of a cluster that load a network once."""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from typing import TYPE_CHECKING, Any

import torch

from ...errors import ArgumentError
from .job import Job

if TYPE_CHECKING:
    from ray.data import Dataset

RETRIES = 3
RESTARTS = 10  # of a worker; one that dies while it loads the network would never end


@dataclasses.dataclass(frozen=True)
class Pool:
    """The workers, and what the cluster keeps for each.

    Attributes:
        fewest, most: number of workers; it grows with the work.
        cpus: CPUs of a worker. torch has as many threads; beside a GPU as many processes read
            images.
        gpus: GPUs of a worker; above 0 the network runs on CUDA.
        retries: times that a worker's task is done again when the worker died.

    Raises:
        ArgumentError: a value that cannot be.
    """

    fewest: int
    most: int
    cpus: float = 1.0
    gpus: float = 0.0
    retries: int = RETRIES

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise ArgumentError(
                f"workers={(self.fewest, self.most)!r}: at least 1, or (fewest, most), is expected."
            )
        if self.cpus < 0 or self.gpus < 0 or not (self.cpus or self.gpus):
            raise ArgumentError(
                f"cpus={self.cpus!r}, gpus={self.gpus!r}: what a worker needs is expected."
            )
        if self.retries < 0:
            raise ArgumentError(f"retries={self.retries!r}: an int from 0 is expected.")

    @property
    def device(self) -> str:
        """The kind of device that a worker's network runs on."""
        return "cuda" if self.gpus else "cpu"

    def settle(self, job: Job) -> Job:
        """Bring a job to where a worker runs it: the network to its device, torch to its threads.

        The network is the worker's own copy.
        """
        count = max(1, int(self.cpus))
        torch.set_num_threads(count)
        net = job.net.eval().to(self.device)
        return dataclasses.replace(job, net=net, workers=count if self.gpus else 0)

    def map(self, dataset: Dataset, worker: type[Any], *args: object, batch_size: int) -> Dataset:
        """Apply the workers to a dataset.

        Args:
            dataset: the work.
            worker: class of a callable from tables to tables of pyarrow.
            *args: of its constructor; they travel once to a machine.
            batch_size: rows of a table.
        """
        data = importlib.import_module("ray.data")
        deprecation = importlib.import_module("ray.util.annotations").RayDeprecationWarning
        with warnings.catch_warnings():
            # The number of retries has no other name in Ray 2.60: without it they never end
            warnings.simplefilter("ignore", deprecation)
            return dataset.map_batches(
                worker,
                fn_constructor_args=args,
                batch_format="pyarrow",
                batch_size=batch_size,
                compute=data.ActorPoolStrategy(min_size=self.fewest, max_size=self.most),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
                max_task_retries=self.retries,
                max_restarts=RESTARTS,
            )
