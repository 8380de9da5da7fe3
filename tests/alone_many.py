"""The features of many images in a folder: what is written, resumed, refused and read back."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import featnet
from featnet.errors import ArgumentError, OutputError
from featnet.images.many import decoding
from featnet.images.reading import ImageError

ROOT = Path(__file__).parents[1]
COUNT, BROKEN = 23, (4, 5, 17)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three sizes, three of them broken, in two folders."""
    root = tmp_path_factory.mktemp("photos")
    (root / "below").mkdir()
    for i in range(COUNT):
        path = root / ("below" if i % 3 else "") / f"{i:02}.png"
        Image.effect_noise((40 + 8 * (i % 3), 32), 80).convert("RGB").save(path)
        if i in BROKEN:
            data = path.read_bytes()
            path.write_bytes({4: b"", 5: b"no image", 17: data[: len(data) // 2]}[i])
    return root


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return featnet.create_model("test_resnet", features_only=True, out_indices=(-1, 0)).eval()


def run(net: Any, images: object, out: Path, **options: Any) -> Any:
    options = {"workers": 0, "batch_size": 4, "shard_size": 8, "progress": False, **options}
    return featnet.extract_images(net, images, out=out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(net: Any, path: Path, transform: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [x[0] for x in net(featnet.pad_to_divisor(transform([path]), net))]


@pytest.mark.parametrize("table", ["parquet", "npy"])
def test_vectors(table: str, net: Any, photos: Path, tmp_path: Path) -> None:
    if table == "parquet":
        pytest.importorskip("pyarrow")
    summary = run(net, photos, tmp_path, pool="gem", table=table)
    assert (summary.images, summary.failed, summary.kept) == (COUNT, 3, 0)
    features = featnet.read_features(tmp_path)
    keys = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    bad = [key for key in keys if int(key[-6:-4]) in BROKEN]
    assert list(features) == [key for key in keys if key not in bad]
    assert sorted(features.errors) == bad
    transform = featnet.create_transform(net)
    for key in list(features)[::6]:
        maps = [x[None] for x in alone(net, photos / key, transform)]
        torch.testing.assert_close(features[key], featnet.pool_features(maps, "gem")[0])
        assert features.record(key)["image"] == str(photos / key)
    every = features.matrix()
    assert len(every) == COUNT - 3 and torch.equal(every[2], features[list(features)[2]])
    lines = [json.loads(x) for x in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == bad and "not an image" in lines[0]["error"]


@pytest.mark.parametrize("fit", ["pad", "keep"])
def test_maps(fit: str, net: Any, photos: Path, tmp_path: Path) -> None:
    """Those of inputs that differ in size too, in the order of the network's levels."""
    transform = featnet.create_transform(net, fit=fit, input_size=64 if fit == "pad" else None)
    assert run(net, photos, tmp_path, transform=transform).failed == 3
    features = featnet.read_features(tmp_path)
    for key in list(features)[::4]:
        maps = features[key]
        assert list(maps) == net.feature_info.module_name()
        for x, y in zip(maps.values(), alone(net, photos / key, transform), strict=True):
            torch.testing.assert_close(x, y)
    with pytest.raises(ArgumentError, match="holds maps"):
        features.matrix()


def test_processes_change_nothing(net: Any, photos: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, options in {"one": {}, "fork": dict(workers=2, start="fork")}.items():
        run(net, photos, tmp_path / name, pool="avg", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "fork")
    assert torch.equal(state, torch.get_rng_state())


def test_spawned_processes(tmp_path: Path) -> None:
    """In an interpreter of its own, as the children import the main module."""
    program = tmp_path / "program.py"
    program.write_text(
        "import featnet\n"
        "if __name__ == '__main__':\n"
        "    net = featnet.create_model('test_resnet', features_only=True).eval()\n"
        "    options = dict(batch_size=1, workers=1, start='spawn')\n"
        "    print(featnet.extract_images(net, 'examples', out='build', **options).images)\n"
    )
    os.symlink(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout == "4\n", done.stderr


def test_a_list_of_paths_and_a_dict(net: Any, photos: Path, tmp_path: Path) -> None:
    listed = [photos / "00.png", photos / "below" / "01.png"]
    run(net, listed, tmp_path / "list", pool="avg")
    run(net, dict(zip("xy", listed, strict=True)), tmp_path / "dict", pool="avg")
    one, other = (featnet.read_features(tmp_path / name) for name in ("list", "dict"))
    assert list(one) == ["00.png", "below/01.png"] and list(other) == ["x", "y"]
    assert torch.equal(one.matrix(), other.matrix())


def test_networks_that_return_vectors(photos: Path, tmp_path: Path) -> None:
    """And half the bytes, and a loader in processes."""
    net = featnet.create_model("test_resnet", num_classes=0).eval()
    run(net, photos, tmp_path, dtype="float16")
    features = featnet.read_features(tmp_path)
    assert features.manifest["shard_size"] == 8 and features.matrix().dtype == torch.float16
    loader = DataLoader(features.dataset(), batch_size=8, num_workers=1)
    batches = list(loader)
    assert [key for keys, _ in batches for key in keys] == list(features)
    assert torch.equal(torch.cat([x for _, x in batches]), features.matrix())


# Stopped and gone on with -------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_any_moment(net: Any, photos: Path, tmp_path: Path) -> None:
    """The bytes are those of a run that nothing happened to."""
    options: dict[str, Any] = dict(pool="avg", shard_size=2, batch_size=1)
    run(net, photos, tmp_path / "whole", **options)
    rng, killed = random.Random(0), 0
    while killed < 8 or not (tmp_path / "out" / "summary.json").exists():
        child = os.fork()
        if child == 0:
            run(net, photos, tmp_path / "out", **options)
            os._exit(0)
        time.sleep(rng.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if killed > 60:
            break
    run(net, photos, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # by a signal
def test_a_process_that_dies(
    net: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is replaced; an image that kills each is named, and the rest is kept."""
    decode, events = decoding.decode, []
    options: dict[str, Any] = dict(pool="avg", workers=1, start="fork", batch_size=1)
    run(net, photos, tmp_path / "whole", **options)

    def fatal(item: Any, transform: Any) -> Any:
        if item.name == "12.png" and (always or not (tmp_path / "died").exists()):
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(item, transform)

    monkeypatch.setattr(decoding, "decode", fatal)
    always = False
    run(net, photos, tmp_path / "once", **options, progress=events.append)
    assert [event["event"] for event in events].count("worker") == 1
    assert contents(tmp_path / "once") == contents(tmp_path / "whole")
    always = True
    with pytest.raises(RuntimeError, match="died .*, twice between '.*00.png' and '.*'"):
        run(net, photos, tmp_path / "twice", **options)
    monkeypatch.undo()
    run(net, photos, tmp_path / "twice", **options)
    assert contents(tmp_path / "twice") == contents(tmp_path / "whole")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="patches a process that is forked")
def test_inputs_are_stacked_where_the_other_process_reads(
    net: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stacks that were copied there made a process grow, now and then by one with each batch."""
    stack = decoding.stack

    def seen(*given: Any) -> decoding.Unit:
        unit = stack(*given)
        assert all(chunk.x.is_shared() for chunk in unit.chunks), "copied"
        return unit

    monkeypatch.setattr(decoding, "stack", seen)
    run(net, photos, tmp_path / "out", workers=1, start="fork", pool="avg")
    with pytest.raises(AssertionError, match="copied"):  # it is seen
        run(net, photos, tmp_path / "here", pool="avg")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a process")
def test_no_space(net: Any, photos: Path, tmp_path: Path) -> None:
    """Files may have 3 kB, then any size."""
    import resource

    options: dict[str, Any] = dict(shard_size=4, dtype="float16")
    run(net, photos, tmp_path / "whole", **options)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
            run(net, photos, tmp_path / "out", **options)
        except OutputError as error:
            code = 0 if "too large" in str(error) and "kept" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"manifest.json"}
    run(net, photos, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# Refused ------------------------------------------------------------------------------------------


def test_the_folder_of_another_run(net: Any, photos: Path, tmp_path: Path) -> None:
    run(net, photos, tmp_path, pool="avg")
    before = contents(tmp_path)
    other = featnet.create_model("test_resnet", features_only=True, out_indices=(-1, 0)).eval()
    with pytest.raises(OutputError, match="another run: model.weights was 'sha256:"):
        run(other, photos, tmp_path, pool="avg")
    with pytest.raises(OutputError, match="results.pool was 'avg' and is now 'max'"):
        run(net, photos, tmp_path, pool="max")
    with pytest.raises(OutputError, match="images.count was 23 and is now 8"):
        run(net, photos / "*.png", tmp_path, pool="avg")
    assert contents(tmp_path) == before
    assert run(net, photos, tmp_path, pool="avg").kept == COUNT
    assert run(net, photos, tmp_path, pool="max", overwrite=True).kept == 0
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="is damaged"):
        run(net, photos, tmp_path, pool="max")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("nothing", "does not exist"),
        ([], "is empty"),
        ({}, "is empty"),
        (3, "a folder, a pattern"),
        ([3], "a path is expected"),
    ],
)
def test_no_images(images: object, words: str, net: Any, tmp_path: Path) -> None:
    with pytest.raises((ImageError, ArgumentError), match=words):
        run(net, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(pool="sum"), "pool='sum'"),
        (dict(dtype="int8"), "dtype='int8'"),
        (dict(start="thread"), "start='thread'"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(workers=-1), "workers=-1"),
        (dict(pool="avg", table="csv"), "table='csv'"),
    ],
)
def test_wrong_values(options: dict[str, Any], words: str, net: Any, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=words):
        run(net, ROOT / "examples", tmp_path, **options)


def test_more_bad_input(net: Any, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="training mode"):
        run(featnet.create_model("test_resnet"), photos, tmp_path)
    with pytest.raises(OutputError, match="no folder of features"):
        featnet.read_features(tmp_path)
    with pytest.raises(OutputError, match="cannot be written to"):
        run(net, photos, photos / "00.png")
    run(net, photos, tmp_path, pool="avg")
    features = featnet.read_features(tmp_path)
    with pytest.raises(KeyError, match="Did you mean '00.png'"):
        features["00.pgn"]
    with pytest.raises(KeyError, match="has no result: .* not an image"):
        features["below/05.png"]


def test_images_that_are_too_large(
    net: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For Pillow; others go on."""
    Image.new("RGB", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # an error from twice as many
    run(net, [photos / "00.png", tmp_path / "large.png"], tmp_path / "out", pool="avg")
    (reason,) = featnet.read_features(tmp_path / "out").errors.values()
    assert "is too large: Image size (90000 pixels)" in reason


@pytest.mark.parametrize("size", [(0, 0), (24, 0)])
def test_a_terminal_without_width(
    size: tuple[int, int], net: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pty
    import termios

    from featnet.images.many import progress

    monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("QUIET", "EVERY", "EVENT"):
        monkeypatch.setattr(progress, name, 0)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, size)
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert run(net, photos, tmp_path, pool="avg", progress=True).images == COUNT
        shown = os.read(master, 100_000).decode()
    os.close(master)
    assert f"{COUNT}" in shown and "Traceback" not in shown


def test_lines_without_a_terminal(
    net: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from featnet.images.many import progress

    monkeypatch.setattr(progress, "QUIET", 0)
    monkeypatch.setattr(progress, "EVERY", 0)
    monkeypatch.setattr(progress, "EVENT", 0)
    run(net, photos, tmp_path, pool="avg", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 2 and lines[-1].startswith("23 of 23 images, 3 failed, ")
    assert lines[-1].endswith(" images/s, 0 s left")
