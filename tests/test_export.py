"""``export``: files that other runtimes read, run against the network at sizes they have not
seen."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, image_batch

import featnet
from featnet.cli import main
from featnet.errors import ArgumentError, FeatnetError, InputSizeError


def noisy(name: str = "test_resnet", **options: Any) -> Any:
    return fill_noise(featnet.create_model(name, **options)).eval()


@pytest.mark.parametrize("kind", ["list", "dict", "hook"])
def test_pt2(tmp_path: Path, kind: str) -> None:
    net = noisy(features_only=True, feature_cls=kind, out_indices=(3, 1), output_stride=16)
    report = featnet.export(net, tmp_path / "net.pt2", example=image_batch(64, 96, batch=2))
    assert report.checked == ((2, 3, 64, 96), (1, 3, 97, 145)) and report.difference <= 1e-5
    assert report.outputs == ("layer3", "layer1") and report.bytes > 10_000
    program = torch.export.load(tmp_path / "net.pt2").module()
    x = image_batch(33, 65, batch=3)
    with torch.no_grad():
        found = program(x)
        for a, b in zip(
            featnet.tracing.trace.tensors(found), featnet.tracing.trace.tensors(net(x)), strict=True
        ):
            assert helpers.error(a, b) <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
def test_aoti(tmp_path: Path) -> None:
    net = noisy(features_only=True, out_indices=(0,))  # a stem: quick to compile
    report = featnet.export(net, tmp_path / "net.pt2", format="aoti")
    assert report.format == "aoti" and len(report.checked) == 2 and report.difference <= 1e-5
    loaded: Any = torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))
    x = image_batch(72, 40, batch=3)
    with torch.no_grad():
        assert helpers.error(loaded(x)[0], net(x)[0]) <= 1e-5


def test_one_size_only(tmp_path: Path) -> None:
    report = featnet.export(
        noisy(), tmp_path / "net.pt2", example=image_batch(64, 64, batch=2), dynamic=["batch"]
    )
    assert report.dynamic == ("batch",) and report.outputs == ("logits",)
    with pytest.raises(Exception, match="64|size|shape"):
        torch.export.load(tmp_path / "net.pt2").module()(image_batch(96, 96))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "levels.pt2"
    assert main(["export", "test_resnet", "--out-indices", "0", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "weights: random, seed 0" in said and "image -> act1; free: batch, height" in said
    assert out.is_file()
    assert main(["export", "test_resnet", "--out", str(tmp_path / "x.bin")]) == 2
    assert ".onnx, .pt2" in capsys.readouterr().err


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = noisy(features_only=True)
    with pytest.raises(ArgumentError, match=r"'onxx': one of onnx, pt2, aoti.*'onnx'"):
        featnet.export(net, tmp_path / "a", format="onxx")
    with pytest.raises(ArgumentError, match="'heigth' is none of batch, height, width.*'height'"):
        featnet.export(net, tmp_path / "a.pt2", dynamic=["heigth"])
    with pytest.raises(ArgumentError, match=r"N >= 2"):
        featnet.export(net, tmp_path / "a.pt2", example=image_batch(64, 64))
    with pytest.raises(InputSizeError, match="3 channels|in_chans=3"):
        featnet.export(net, tmp_path / "a.pt2", example=torch.zeros(2, 4, 64, 64))
    vit = noisy("test_vit", features_only=True)
    with pytest.raises(InputSizeError, match=r"65 x 97 has no whole number of patches"):
        featnet.export(vit, tmp_path / "a.pt2", example=image_batch(65, 97, batch=2))
    with pytest.raises(FeatnetError, match="not a folder"):
        featnet.export(net, tmp_path / "none" / "a.pt2")
    with pytest.raises(ArgumentError, match="packed.*before optimize"):
        featnet.export(featnet.optimize(net), tmp_path / "a.pt2")
    with pytest.raises(ArgumentError, match="training mode"):
        featnet.export(net.train(), tmp_path / "a.pt2")
    monkeypatch.setitem(featnet.deploy.exporting.NEEDED, "onnx", ("a_package_that_is_not_there",))
    with pytest.raises(FeatnetError, match=r"a_package.*pip install 'featnet\[onnx\]'"):
        featnet.export(net.eval(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_run_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(x: torch.Tensor) -> list[torch.Tensor]:
        raise RuntimeError("no such reshape")

    monkeypatch.setattr(featnet.deploy.exporting, "_runner", lambda kind, path: run)
    with pytest.raises(FeatnetError, match=r"does not run at 2 x 3 x 64 x 96 or .*no such reshape"):
        featnet.export(noisy(), tmp_path / "a.pt2", example=image_batch(64, 96, batch=2))
    assert not list(tmp_path.iterdir())


class Branches(torch.nn.Module):
    """Goes another way for other values, which no graph can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() if x.sum() > 0 else x


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    with pytest.raises(FeatnetError, match="Branches cannot be exported.*free: "):
        featnet.export(Branches().eval(), tmp_path / "a.pt2", example=image_batch(8, 8, batch=2))
    assert not list(tmp_path.iterdir())


FULL = """
import resource, signal, sys, torch, featnet
net = featnet.create_model("test_resnet", features_only=True, out_indices=(0,)).eval()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    featnet.export(net, sys.argv[1], example=torch.randn(2, 3, 64, 64))
except featnet.errors.OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process")
@pytest.mark.parametrize("suffix", [".pt2"])
def test_a_file_that_does_not_fit(suffix: str, tmp_path: Path) -> None:
    """A limit of the file's size stands for a full disk: the process lives, and nothing is left."""
    out = tmp_path / f"net{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    assert "cannot be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
