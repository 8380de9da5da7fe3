"""Golden numbers: the suite has meaning without a peer.

Checksums of features and logits with seeded noise in every parameter and statistic. When they were
written they were compared with timm's (``python tests/test_golden.py`` writes them again, and
refuses where timm does not agree); ``test_parity.py`` keeps doing so wherever timm is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error, fill_noise, image_batch, peer_model

import featnet

FILE = Path(__file__).parent / "golden" / "resnet.json"
GOLDEN: dict[str, Any] = json.loads(FILE.read_text("utf-8")) if FILE.exists() else {}
SIZE = (65, 97)


def checksum(y: torch.Tensor) -> dict[str, Any]:
    flat = y.double().flatten()
    at = torch.linspace(0, len(flat) - 1, 7).long()
    return {
        "shape": list(y.shape),
        "mean": flat.mean().item(),
        "std": flat.std().item(),
        "values": flat[at].tolist(),
    }


@torch.inference_mode()
def outputs(name: str, stride: int) -> dict[str, torch.Tensor]:
    model = fill_noise(featnet.create_model(name, output_stride=stride)).eval()
    x = image_batch(*SIZE, batch=2)
    features, maps = model.forward_intermediates(x)
    found = {level.module: y for level, y in zip(model.feature_info, maps, strict=True)}
    return {**found, "logits": model.forward_head(features)}


@pytest.mark.parametrize("key", GOLDEN)
def test_golden(key: str) -> None:
    name, stride = key.split("/")
    found = outputs(name, int(stride))
    assert list(found) == list(GOLDEN[key])
    for level, wanted in GOLDEN[key].items():
        got = checksum(found[level])
        assert got["shape"] == wanted["shape"]
        for field in ("mean", "std", "values"):
            scale = wanted["std"]  # errors are relative to what values look like
            apart = torch.tensor(got[field]) - torch.tensor(wanted[field])
            assert float(apart.abs().max()) <= 1e-4 * scale, (level, field)


def test_there_are_golden_numbers() -> None:
    assert len(GOLDEN) >= 5


def write() -> None:
    table: dict[str, Any] = {}
    torch.set_num_threads(1)
    for name in (
        "test_resnet",
        "resnet10t",
        "resnet18",
        "resnet26",
        "ecaresnet26t",
        "seresnet18",
        "resnetblur18",
    ):
        for stride in (32, 16) if name == "resnet18" else (32,):
            found = outputs(name, stride)
            peer = fill_noise(peer_model(name, output_stride=stride)).eval()
            with torch.inference_mode():
                assert error(found["logits"], peer(image_batch(*SIZE, batch=2))) < 1e-5, name
            table[f"{name}/{stride}"] = {level: checksum(y) for level, y in found.items()}
    FILE.write_text(json.dumps(table, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    write()
