"""Fixtures; what is not one is in helpers.py."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import helpers
import pytest
import torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``tv_name``: torchvision's models, one after the other."""
    if "tv_name" in metafunc.fixturenames:
        try:
            names = foreign.torchvision_names()
        except BaseException:  # skipped, or failed, where the test runs
            names = ("resnet18",)
        metafunc.parametrize("tv_name", names)


def pytest_configure(config: pytest.Config) -> None:
    """Without pytest-xdist its marker is unknown, and markers are strict."""
    if not config.pluginmanager.hasplugin("xdist"):
        config.addinivalue_line("markers", "xdist_group(name): one worker runs them all")


def pytest_itemcollected(item: pytest.Item) -> None:
    """All tests of one model go to one worker, which builds it once."""
    name = getattr(item, "callspec", None) and item.callspec.params.get("name")
    if isinstance(name, str) and item.get_closest_marker("xdist_group") is None:
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest-xdist knows groups by the ids of tests: where it cannot write them, as with pytest
    9.2, every worker would build every model, and nothing would say so."""
    marked = (item for item in session.items if item.get_closest_marker("xdist_group"))
    if getattr(session.config.option, "loadgroup", False) and (item := next(marked, None)):
        assert "@" in item.nodeid, "pytest-xdist has lost the groups of tests"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A process that forks may not have run another engine: see test_alone.py."""
    yield
    engines = {"onnxruntime", "openvino"} & sys.modules.keys() - _told
    _told.update(engines)
    assert not engines or item.path.stem.startswith("alone_"), f"it loads {engines}"


_told = set[str]()  # engines of which one test has been told: those after it did not load them
_ended = itertools.count(1)
_kept = 2**30  # bytes: the least that the process held after what could be freed was


def pytest_runtest_logfinish() -> None:
    """Give back now and then what was freed, glibc keeps it; and what only a collection finds, once
    it has grown by a gigabyte."""
    global _kept
    if next(_ended) % 20:
        return
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        grown = _held() > _kept + 2**30
        if grown:
            gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        _kept = _held() if grown else min(_kept, _held())


def _held() -> int:
    """Bytes in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * mmap.PAGESIZE


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # small inputs, and results that do not depend on the machine
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


@pytest.fixture(autouse=True, scope="session")
def _seldom_collect() -> None:
    """Thousands of networks are made here; looking for cycles among their modules, again and again,
    takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(scope="session")
def timm() -> Any:
    """timm, imported when first asked for."""
    return helpers.peer("timm")


@pytest.fixture(scope="session")
def torchvision() -> Any:
    """torchvision, imported when first asked for."""
    return helpers.peer("torchvision")
