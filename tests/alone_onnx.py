"""``export`` to ONNX: files that ONNX Runtime runs, at sizes that nobody has compared yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, image_batch
from test_modes import assert_same, noisy, share

import featnet
from featnet.errors import InputSizeError


@pytest.fixture(scope="module")
def onnxruntime() -> Any:
    """ONNX Runtime, with what torch needs to write its files."""
    for package in ("onnx", "onnxscript"):
        helpers.peer(package)
    return helpers.peer("onnxruntime")


def test_levels(onnxruntime: Any, tmp_path: Path) -> None:
    net: Any = featnet.create_model(
        "test_resnet", features_only=True, feature_cls="dict", out_indices=(1, 2)
    )
    fill_noise(net.eval())
    report = featnet.export(net, tmp_path / "net.onnx", example=image_batch(64, 96, batch=2))
    assert report.checked == ((2, 3, 64, 96), (1, 3, 97, 145)) and report.difference <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [output.name for output in session.get_outputs()] == ["layer1", "layer2"]
    x = image_batch(72, 40, batch=3)
    found = session.run(["layer2"], {"image": x.numpy()})[0]
    with torch.no_grad():
        assert helpers.error(torch.from_numpy(found), net(x)["layer2"]) <= 1e-4


@pytest.mark.parametrize("name", share(3, 13))
@torch.no_grad()
def test_sizes_not_seen(onnxruntime: Any, name: str, tmp_path: Path) -> None:
    """featnet.export itself compares another size; here come those that it does not try."""
    kinds = (featnet.FeatureListNet, featnet.FeatureDictNet, featnet.FeatureHookNet)
    net, sizes = noisy(name, kinds[len(name) % 3]), helpers.sizes(name)
    report = featnet.export(net, tmp_path / "net.onnx", example=image_batch(*sizes[0], batch=2))
    assert report.difference <= 1e-4 and len(report.checked) == 2
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [output.name for output in session.get_outputs()] == net.feature_info.module_name()
    for size in (*sizes[1:], (96, 96)):
        x = image_batch(*size, batch=3)
        try:
            wanted = net(x)
        except InputSizeError:
            continue
        found = [torch.from_numpy(y) for y in session.run(None, {"image": x.numpy()})]
        assert_same(found, wanted, 1e-4)
