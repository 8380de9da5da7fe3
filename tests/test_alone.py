"""The tests that run other engines or fork, each file in an interpreter of its own.

A process that has run ONNX Runtime or OpenVINO is lost now and then when it forks: with a
segmentation fault of the parent, in Python 3.11. The workers of pytest-xdist fork often.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("alone_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_in_an_interpreter_of_its_own(path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, path], cwd=path.parents[1], env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout.splitlines()[-1], done.stdout
