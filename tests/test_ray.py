"""Ray Data: a cluster of two nodes on this machine, workers that are killed, and bad input."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import pytest
import torch
from alone_many import contents
from helpers import peer
from PIL import Image
from test_docs import ROOT, blocks
from witnesses import Deadly, Stillborn, Witnessed

import featnet
from featnet.cli import main, many
from featnet.errors import ArgumentError
from featnet.images.many import connection, pool

IMAGES, BATCH, BROKEN = 40, 4, (5, 22)
pytestmark = [
    pytest.mark.xdist_group("ray"),
    # Ray leaves sockets and processes to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, connected to a cluster of two nodes with small object stores."""
    peer("ray.data")
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name in ("enable_worker_prestart", "prestart_worker_first_driver"):
            patch.setenv(f"RAY_{name}", "0")  # processes that wait for nothing
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        paths = (ROOT, ROOT / "tests", *filter(None, [os.environ.get("PYTHONPATH")]))
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        nodes = Cluster()
        try:
            for options in ({"include_dashboard": False}, {}):
                nodes.add_node(num_cpus=2, object_store_memory=80 * 2**20, **options)
            ray.init(nodes.address, log_to_driver=False, logging_level="error")
            logging.getLogger("ray.data").setLevel(logging.ERROR)
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield ray
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of noise; one file is cut off, and one has nothing in it."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for n in range(IMAGES):
        pixels = noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03}.png")
    for n, size in zip(BROKEN, (60, 0), strict=True):
        path = folder / f"{n:03}.png"
        path.write_bytes(path.read_bytes()[:size])
    return folder


def extract(images: Path, out: Path, *options: str) -> int:
    model = ["--model", "test_resnet", "--pool", "avg"]
    sizes = ["--batch-size", str(BATCH), "--shard-size", str(BATCH)]
    return main(["extract", str(images), *model, *sizes, "--out", str(out), *options])


def substitute(monkeypatch: pytest.MonkeyPatch, kind: type[Any], **more: str) -> None:
    """Let the command make a transform of another class."""
    choose = many.choose_transform

    def changed(*args: Any) -> featnet.ImageTransform:
        transform: featnet.ImageTransform = kind(**dataclasses.asdict(choose(*args)), **more)
        return transform

    monkeypatch.setattr(many, "choose_transform", changed)


def kill_the_busy(marks: Path, count: int, killed: list[str]) -> None:
    """Once so many images are done, kill the worker that did the last of them."""
    while len(done := list(marks.glob("image.*"))) < count:
        time.sleep(0.02)
    killed.append(max(done, key=lambda mark: mark.stat().st_mtime_ns).name.split(".")[1])
    os.kill(int(killed[0]), signal.SIGKILL)


def test_a_worker_is_killed(
    ray: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cluster that goes on with what one machine has begun: the bytes are those of one machine
    on its own, and each worker has loaded the network once."""
    marks, here, out = (tmp_path / name for name in ("marks", "here", "out"))
    marks.mkdir()
    substitute(monkeypatch, Witnessed, folder=str(marks))
    assert extract(images, here, "--workers", "0") == 1
    shutil.copytree(here, out)
    kept = {"manifest.json", "part-00000.jsonl", "part-00000.parquet"}
    for path in out.iterdir():
        if path.name not in kept:
            path.unlink()
    shutil.rmtree(marks)
    marks.mkdir()

    killed: list[str] = []
    thread = threading.Thread(target=kill_the_busy, args=(marks, 12, killed), daemon=True)
    thread.start()
    assert extract(images, out, "--engine", "ray", "--workers", "2") == 1
    thread.join(timeout=1)
    assert contents(out) == contents(here)
    features = featnet.read_features(out)
    assert len(features) == IMAGES - len(BROKEN) and len(features.errors) == len(BROKEN)
    loads = [mark.name.split(".")[1] for mark in marks.glob("loaded.*")]
    assert len(loads) == len({*loads}) == 3 and killed[0] in loads


@pytest.mark.parametrize("kind", [Deadly, Stillborn])
def test_workers_that_always_die(
    kind: type[Any],
    ray: Any,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """At an image, or while they load: an end, and no files that look complete."""
    substitute(monkeypatch, kind)
    monkeypatch.setattr(pool, "RESTARTS", 2)
    assert extract(images, tmp_path, "--engine", "ray", "--workers", "1", "--retries", "1") == 2
    assert "featnet: error: workers died, and again when" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["manifest.json"]


def test_the_page(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of docs/ray.md."""
    photographs.trained()  # or skip
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, source in blocks(ROOT / "docs" / "ray.md", "python"):
        exec(compile("\n" * line + source, "docs/ray.md", "exec"), namespace)


# Refused ------------------------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert not out and err.startswith("featnet: error: ") and err.count("\n") == 1, err
    return err


def test_too_many_workers(
    ray: Any, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would wait for CPUs forever."""
    assert extract(images, tmp_path, "--engine", "ray", "--workers", "5") == 2
    assert "4 CPUs and 0 GPUs, which is room for 4 workers of 1 CPU(s), not" in refusal(capsys)
    assert extract(images, tmp_path, "--engine", "ray", "--device", "cuda") == 2
    assert "room for 0 workers of 1 CPU(s) and a GPU" in refusal(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--address", "head"), "HOST:PORT is expected"),
        (("--address", "ray://head:10001"), "HOST:PORT is expected"),
        (("--render",), "--render draws the maps of a single"),
        (("--workers", "0"), "--workers 0"),
        (("--device", "cuda:1"), "--device='cuda:1': one of 'cpu', 'cuda' is expected"),
    ],
)
def test_options_that_cannot_be(
    options: tuple[str, ...], words: str, images: Path, tmp_path: Path, capsys: Any
) -> None:
    peer("ray.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: False)
        assert extract(images, tmp_path, "--engine", "ray", *options) == 2
    assert words in refusal(capsys)


def test_no_cluster(
    images: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer within seconds, where Ray would try for minutes."""
    peer("ray.data")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    start = time.monotonic()
    assert extract(images, tmp_path, "--engine", "ray", "--address", address) == 2
    assert time.monotonic() - start < 2 * connection.ANSWER
    assert f"no Ray cluster at {address}: Connection refused" in refusal(capsys)


def test_the_folder_of_another_run(images: Path, tmp_path: Path, capsys: Any) -> None:
    """It is refused before a worker starts."""
    from featnet.images.many.cluster import Cluster

    peer("ray.data")
    assert extract(images, tmp_path, "--workers", "0") == 1
    before = contents(tmp_path)
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.is_initialized", lambda: True)
        patch.setattr(connection, "count_workers", lambda asked, **options: 1)
        patch.setattr(Cluster, "__call__", lambda *args: pytest.fail("workers start"))
        assert extract(images, tmp_path, "--engine", "ray", "--seed", "1") == 2
        assert "another run: model.weights was 'sha256:" in capsys.readouterr().err
        assert extract(images, tmp_path, "--engine", "ray") == 1
    assert "Nothing to do" in capsys.readouterr().out and contents(tmp_path) == before


def test_machines_that_differ(tmp_path: Path) -> None:
    """In the folder that they see, or in what is installed."""
    from featnet.images.many import cluster, manifest

    job = work(network())
    worker = cluster.ShardWorker(job, tmp_path, "npy", cluster.Pool(1, 1))
    with pytest.raises(connection.ClusterError, match="has to be one that all machines"):
        worker({"task": []})
    facts = manifest.describe(job.net, [], job.transform, job.settings)
    manifest.claim(tmp_path, {**facts, "versions": {"torch": "1.0"}})
    with pytest.raises(connection.ClusterError, match="and where the run began .*'1.0'"):
        worker({"task": []})


def test_without_ray(
    images: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray.data", None)
    assert extract(images, tmp_path, "--engine", "ray") == 2
    assert "pip install 'featnet[ray]'" in refusal(capsys)
    with pytest.raises(ArgumentError, match=r"list is no Ray dataset.*featnet\[ray\]"):
        featnet.extract_dataset([], network())


class Rows:
    """As much of a dataset as is looked at before anything runs."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)

    def columns(self, *, fetch_if_missing: bool) -> list[str]:
        return self.names


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(column="pth"), r"columns path, name\. Did you mean 'path'\?"),
        (dict(batch_size=0), "batch_size=0: a positive int"),
        (dict(retries=-1), "retries=-1: an int from 0"),
        (dict(workers=(2, 1)), r"workers=\(2, 1\): at least 1"),
        (dict(cpus=0.0), "cpus=0.0, gpus=0.0"),
        (dict(pool="mean"), "pool='mean': one of"),
        (dict(dtype="int8"), "dtype='int8': one of"),
        (dict(transform=featnet.ImageTransform((64, 64), fit="keep")), "of many sizes"),
        (dict(net=torch.nn.Linear(1, 1).eval()), "says nothing about its inputs"),
        (dict(net=torch.nn.Linear(1, 1)), "in training mode"),
    ],
)
def test_arguments_that_cannot_be(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer("ray.data")
    monkeypatch.setattr("ray.data.Dataset", Rows)
    with pytest.raises(ArgumentError, match=words):
        featnet.extract_dataset(Rows("path", "name"), **{"net": network(), **options})
    with pytest.raises(ArgumentError, match="a column 'vector' already"):
        featnet.extract_dataset(Rows("path", "vector"), network(), pool="avg")


def test_the_parser_knows_the_number_of_retries() -> None:
    from featnet.cli.parser import make_parser

    assert make_parser("").parse_args(["extract", "."]).retries == pool.RETRIES


def network() -> Any:
    return featnet.create_model("test_resnet", features_only=True, out_indices=(-1,)).eval()


def work(net: Any, **settings: Any) -> Any:
    from featnet.images.many.forward import Settings
    from featnet.images.many.job import Job

    return Job(net, featnet.create_transform(net), Settings(**settings), 16)


@pytest.mark.parametrize("form", [None, "gem"])
def test_kinds_of_images(form: str | None, images: Path) -> None:
    """Paths, bytes, arrays and Hugging Face's records give one result, that of the network."""
    peer("pyarrow")
    import pyarrow as pa

    from featnet.images.many import dataset

    net, paths = network(), [str(images / "000.png"), str(images / "005.png")]
    job = work(net, pool=form)
    outputs = dataset._outputs(job)
    (name,) = outputs
    files = [Path(path).read_bytes() for path in paths]
    columns = {
        "path": pa.array(paths),
        "bytes": pa.array(files),
        "record": pa.array([{"bytes": data, "path": None} for data in files]),
    }
    expected = net(job.transform([paths[0]]))
    expected = featnet.pool_features(expected, form) if form else expected[0]
    for kind, column in columns.items():
        worker = dataset.RowWorker(job, dataset.Columns(kind, outputs), pool.Pool(1, 1))
        table = worker(pa.table({kind: column, "row": [0, 1]}))
        assert ("path" in table.column_names) == (kind == "path")
        cells = table[name].combine_chunks()
        values = cells.flatten().to_numpy().reshape(2, -1) if form else cells.to_numpy_ndarray()
        good, bad = torch.from_numpy(values.reshape(2, *outputs[name]).copy())
        torch.testing.assert_close(good[None], expected)
        assert bad.isnan().all()
        assert table["error"].to_pylist()[0] is None and "cut off" in table["error"][1].as_py()
