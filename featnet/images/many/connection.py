"""The connection to a Ray cluster. Imports no torch: one that is not there is known at once."""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
import socket
from collections.abc import Iterator

from ...errors import ArgumentError, FeatnetError
from ..reading import MissingExtraError

ANSWER = 5.0  # seconds that a cluster has to answer in; Ray itself tries for minutes


class ClusterError(FeatnetError, RuntimeError):
    """A cluster that cannot be reached, is too small, or whose workers die."""


def require_ray() -> None:
    """Check for Ray Data, which only clusters need.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        importlib.import_module("ray.data")
    except ImportError as error:
        raise MissingExtraError(
            "extracting on a cluster needs Ray Data, which is not installed; "
            "install it with: pip install 'featnet[ray]'"
        ) from error


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Context: this process is connected to a cluster, or to one of its own on this machine.

    Args:
        address: ``"HOST:PORT"``; None: what RAY_ADDRESS says, or this machine.

    Raises:
        ClusterError: nothing answers at the address.
        ArgumentError: an address that cannot be.
    """
    ray = importlib.import_module("ray")
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _check_address(address)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at {address or 'RAY_ADDRESS'}: {str(error).splitlines()[0]}"
        ) from error
    data = importlib.import_module("ray.data")
    data.DataContext.get_current().enable_progress_bars = False  # featnet has its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    match = re.fullmatch(r"\[?([\w.:-]+?)\]?:(\d{1,5})", address)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ArgumentError(
            f"address={address!r}: HOST:PORT is expected, as `ray start --head` prints it "
            "(of its port 6379; ray:// and http:// are other protocols)."
        )
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=ANSWER):
            pass
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster at {address}: {error.strerror or error}. `ray start --head` starts "
            "one, and prints its address."
        ) from error


def count_workers(asked: int | None, *, cpus: int, gpus: float) -> int:
    """The number of workers: as asked, or as many as the cluster has room for.

    Raises:
        ClusterError: the cluster has no room for them.
    """
    has = importlib.import_module("ray").cluster_resources()
    room = int(has.get("CPU", 0) // cpus)
    if gpus:
        room = min(room, int(has.get("GPU", 0) // gpus))
    if (asked or 1) > room:
        raise ClusterError(
            f"The cluster has {has.get('CPU', 0):.0f} CPUs and {has.get('GPU', 0):.0f} GPUs, which "
            f"is room for {room} workers of {cpus} CPU(s){' and a GPU' if gpus else ''}, not for "
            f"{asked or 1}."
        )
    return asked or room
