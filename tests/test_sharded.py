"""Two processes: sharded by blocks, recomputed, saved in parts, and read back by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

import featnet

ROOT = Path(__file__).parent.parent
NETWORKS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": dict(depth=4, img_size=32, out_indices=(1, 2)),  # pruned: three of four
    "resnet18": dict(out_indices=(2, 4)),
    "convnext_atto": dict(depths=(1, 1, 1, 1), out_indices=(1, 3)),
}
# What each process runs, in the environment of torchrun. It ends without the interpreter's own
# clearing up: torch aborts there at times ("terminate called"), when gloo's threads still run.
PROCESS = """
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import fully_shard

import featnet
from featnet.layers import Blocks
from test_sharded import NETWORKS, batch, build, step

dist.init_process_group("gloo")
rank, folder = dist.get_rank(), Path(sys.argv[1])
mesh = dist.init_device_mesh("cpu", (2,))
for name in NETWORKS:
    net, alone = build(name), build(name)
    net.set_grad_checkpointing(True)
    for blocks in [m for m in net.modules() if isinstance(m, Blocks)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    step(net, batch()[rank : rank + 1])
    step(alone, batch())
    state = net.state_dict()
    whole = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in state.items()}
    for key, wanted in alone.state_dict().items():
        torch.testing.assert_close(whole[key], wanted, rtol=1e-4, atol=1e-5)
    try:
        featnet.freeze(net, until=0)
    except featnet.errors.ArgumentError as error:
        assert "shard" in str(error), error
    else:
        raise AssertionError("it was frozen after it was sharded")
    dcp.save({"model": state}, checkpoint_id=str(folder / name))
    if rank == 0:
        torch.save(whole, folder / f"{name}.pth")
dist.barrier()
os._exit(0)
"""


def build(name: str) -> Any:
    torch.manual_seed(0)
    return featnet.create_model(name, features_only=True, **NETWORKS[name])


def batch() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def step(net: torch.nn.Module, x: torch.Tensor) -> None:
    """One step without what depends on the share of the batch: eval mode, SGD."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.eval()
    sum(y.square().mean() for y in net(x)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_two_processes_and_one(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in NETWORKS:
        net = build(name)
        state = {"model": {key: torch.zeros_like(v) for key, v in net.state_dict().items()}}
        dcp.load(state, checkpoint_id=tmp_path / name, no_dist=True)
        wanted = torch.load(tmp_path / f"{name}.pth")
        assert wanted.keys() == state["model"].keys() == net.state_dict().keys()
        assert all(torch.equal(value, wanted[key]) for key, value in state["model"].items())
        assert featnet.load_checkpoint(net, state["model"]).loaded == len(wanted)
