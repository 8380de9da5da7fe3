"""Writers that are killed at any moment: what was there stays whole, and the next run cleans up."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import featnet
from featnet.cli import main

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
PHOTO = Path(__file__).parents[1] / "examples" / "chelsea.png"


def kill_while(work: Callable[[], object], *, after: float) -> None:
    """Do it over and over in a child, which is killed after some seconds."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        while True:
            work()
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_save_for_hub(tmp_path: Path) -> None:
    model = featnet.create_model("test_resnet")
    names = {path.name for path in featnet.save_for_hub(model, tmp_path).iterdir()}
    rng = random.Random(0)
    for _ in range(20):
        kill_while(lambda: featnet.save_for_hub(model, tmp_path), after=rng.uniform(0.001, 0.06))
        kept = load_file(tmp_path / "model.safetensors")
        assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())
        assert len([p for p in tmp_path.iterdir() if p.name not in names]) <= 1
    featnet.save_for_hub(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_extract(tmp_path: Path) -> None:
    command = ["extract", str(PHOTO), "--model", "test_resnet", "--out-indices", "1", "--overwrite"]
    command += ["--out", str(tmp_path)]
    assert main(command) == 0
    names = {path.name for path in tmp_path.iterdir()}
    wanted = (tmp_path / "features.safetensors").read_bytes()
    rng = random.Random(0)
    for _ in range(20):
        kill_while(lambda: main(command), after=rng.uniform(0.01, 0.3))
        assert (tmp_path / "features.safetensors").read_bytes() == wanted
        assert len([p for p in tmp_path.iterdir() if p.name not in names]) <= 1
    assert main(command) == 0
    assert {path.name for path in tmp_path.iterdir()} == names
