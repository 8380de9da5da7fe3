"""Other engines behind ``optimize``: the network's interface, the race, folders, refusals."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, image_batch
from torch import nn

import featnet
from featnet.deploy import engines, forms, optimizing, racing
from featnet.deploy.enginenet import EngineNet, Interface
from featnet.deploy.engines import ENGINES, Program
from featnet.errors import ArgumentError, CheckpointError, FeatnetError, InputSizeError

NAMES = tuple(ENGINES)
BATCHES = [(1, 64, 96), (2, 64, 96), (3, 33, 65), (1, 97, 40)]


def noisy(name: str = "test_resnet", **options: Any) -> Any:
    return fill_noise(featnet.create_model(name, features_only=True, **options)).eval()


@pytest.fixture(scope="module")
def net() -> Any:
    return noisy(feature_cls="dict", out_indices=(2, 0))


@pytest.fixture(scope="module")
def fast(net: Any) -> dict[str, Any]:
    """The network in each engine; it is written as ONNX once."""
    for package in ("onnx", "onnxscript", *NAMES):
        helpers.peer(package)
    programs: list[bytes] = []

    def once(model: nn.Module, x: torch.Tensor) -> bytes:
        programs.extend([] if programs else [write(model, x)])
        return programs[0]

    write = forms.onnx_program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "onnx_program", once)
        return {name: featnet.optimize(net, engine=name, example=example()) for name in NAMES}


def example() -> torch.Tensor:
    return image_batch(64, 96)


@torch.inference_mode()
def assert_same(made: Any, net: Any, x: torch.Tensor) -> None:
    outputs, wanted = made(x), net(x)
    assert type(outputs) is type(wanted) and list(outputs) == list(wanted)
    for key in wanted:
        assert outputs[key].shape == wanted[key].shape
        assert outputs[key].dtype == wanted[key].dtype
        assert not len(x) or helpers.error(outputs[key], wanted[key]) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_interface_is_the_networks(name: str, net: Any, fast: Any) -> None:
    made = fast[name]
    report = made.optimize_report
    assert report.engine == name and set(report.milliseconds) == {name}
    assert set(report.versions) == {name, "torch"} and report.difference < 1e-4
    for batch, *size in BATCHES:
        assert_same(made, net, image_batch(*size, batch=batch))
    assert_same(made, net, image_batch(64, 96, batch=0))
    assert_same(made, net, example().to(memory_format=torch.channels_last))
    info = made.feature_info
    assert list(info) == list(net.feature_info) and info.out_indices == (2, 0)
    assert info.sizes((33, 65)) == net.feature_info.sizes((33, 65))
    assert featnet.create_transform(made).mean == featnet.create_transform(net).mean
    assert not list(made.parameters()) and not made.training and made.eval() is made


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_threads(name: str, net: Any, fast: Any) -> None:
    made = fast[name]
    assert copy.deepcopy(made).program is made.program
    again = pickle.loads(pickle.dumps(made))
    assert again.program is not made.program and again.optimize_report == made.optimize_report
    inputs = [image_batch(*size, batch=batch, seed=i) for i, (batch, *size) in enumerate(BATCHES)]
    inputs *= 4
    wanted = [made(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(again, inputs))
    for a, b in zip(outputs, wanted, strict=True):
        assert all(torch.equal(a[key], b[key]) for key in b)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_callers(name: str, fast: Any) -> None:
    """The next call does not overwrite them."""
    first = fast[name](example())
    kept = {key: value.clone() for key, value in first.items()}
    fast[name](example() * 2)
    assert all(torch.equal(first[key], kept[key]) for key in kept)


@pytest.mark.parametrize("name", NAMES)
def test_folders(
    name: str, net: Any, fast: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "net"
    featnet.save_optimized(fast[name], folder)
    featnet.save_optimized(fast[name], folder)
    assert sorted(p.name for p in folder.iterdir()) == ["featnet.json", "program.onnx"]
    with monkeypatch.context() as patch:  # no network is built
        patch.setattr(nn.Module, "register_parameter", None)
        loaded = featnet.load_optimized(folder, threads=2)
    assert loaded.program.threads == 2 and loaded.program.engine == name
    assert loaded.optimize_report == fast[name].optimize_report
    assert loaded.interface == fast[name].interface
    for file in folder.iterdir():
        file.unlink()
    for batch, *size in BATCHES:
        assert_same(loaded, net, image_batch(*size, batch=batch))
    assert loaded.feature_info.sizes((33, 65)) == net.feature_info.sizes((33, 65))


def test_folders_that_cannot_be_read(
    fast: Any, net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="holds no network of save_optimized"):
        featnet.load_optimized(tmp_path)
    with pytest.raises(ArgumentError, match="runs in torch.*'onnxruntime' or 'openvino'"):
        featnet.save_optimized(net, tmp_path)
    featnet.save_optimized(fast["onnxruntime"], tmp_path)
    with pytest.raises(ArgumentError, match="threads=0"):
        featnet.load_optimized(tmp_path, threads=0)
    card = tmp_path / "featnet.json"
    row = json.loads(card.read_text("utf-8"))
    with monkeypatch.context() as patch:
        patch.setattr(engines.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(FeatnetError, match=r"onnxruntime is not installed: pip .*\[onnx\]"):
            featnet.load_optimized(tmp_path)
    card.write_text(json.dumps({**row, "format": 2, "featnet": "9.0"}), "utf-8")
    with pytest.raises(CheckpointError, match=r"format 2, written by featnet 9\.0.*reads format 1"):
        featnet.load_optimized(tmp_path)
    card.write_text(json.dumps({**row, "engine": "tensorrt"}), "utf-8")
    with pytest.raises(CheckpointError, match="damaged: KeyError"):
        featnet.load_optimized(tmp_path)
    card.write_text(json.dumps(row), "utf-8")
    (tmp_path / "program.onnx").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="is not the file that was saved"):
        featnet.load_optimized(tmp_path)
    card.write_text(json.dumps({**row, "sha256": hashlib.sha256(b"cut").hexdigest()}), "utf-8")
    with pytest.raises(CheckpointError, match="cannot read .*, which was made for version"):
        featnet.load_optimized(tmp_path)


def test_the_race(net: Any, fast: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that cannot take part are named; of the others the quickest one is taken."""

    def refuse(*_args: object) -> Any:
        raise FeatnetError("no compiler\nis there")

    monkeypatch.setattr(forms, "_compiled", refuse)
    monkeypatch.setattr(forms, "onnx_program", lambda *_: fast["openvino"].program.content)
    monkeypatch.setattr(forms, "can_pack", lambda x: False)
    find = engines.importlib.util.find_spec
    monkeypatch.setattr(
        engines.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
    )
    times = {"contiguous": 2.0, "channels_last": 3.0, "openvino": 1.0}
    monkeypatch.setattr(optimizing, "race", lambda nets, x: {n: times[n] for n in nets})
    made = featnet.optimize(net, example=example(), engine="auto")
    report: Any = made.optimize_report
    assert isinstance(made, EngineNet) and report.engine == "openvino"
    assert set(report.milliseconds) == set(times) == set(report.megabytes)
    missing = "onnxruntime is not installed: pip install 'featnet[onnx]'"
    assert report.left_out["inductor"] == "no compiler is there" and missing in str(report)
    times["openvino"] = 4.0
    made = featnet.optimize(net, example=example(), engine="auto")
    assert made.optimize_report.engine == "torch" and type(made) is type(net)
    with pytest.raises(FeatnetError, match=r"engine='onnxruntime': onnxruntime is not installed"):
        featnet.optimize(net, engine="onnxruntime")


class Slow(nn.Module):
    def __init__(self, loops: int) -> None:
        super().__init__()
        self.loops, self.calls = loops, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        for _ in range(self.loops):
            x = x.sin()
        return x


def test_what_is_far_behind_leaves_the_race() -> None:
    forms = {"slow": Slow(400), "quick": Slow(1)}
    times = racing.race(forms, torch.randn(1, 3, 64, 64))
    assert times["quick"] < times["slow"]
    assert forms["slow"].calls == 6 and forms["quick"].calls >= 15
    with racing.Growth() as growth:
        kept = torch.ones(20_000_000)
    assert growth.megabytes is None or 70 < growth.megabytes < 120, kept.shape


@pytest.mark.parametrize("name", NAMES)
def test_wrong_numbers_are_refused(
    name: str, fast: Any, net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the size of the example, and at others."""
    start = ENGINES[name].start

    def wrong(content: bytes, shape: Any, threads: int) -> Any:
        run = start(content, shape, threads)
        return lambda x: [y * (1.01 if x.shape[2] > least else 1) for y in run(x)]

    worse = forms.ENGINES | {name: engines.dataclasses.replace(ENGINES[name], start=wrong)}
    for module in (engines, forms, optimizing):
        monkeypatch.setattr(module, "ENGINES", worse)
    monkeypatch.setattr(forms, "onnx_program", lambda *_: fast[name].program.content)
    for size in (0, 64):
        least = size
        with pytest.raises(FeatnetError, match="differs from the original by .* not only round"):
            featnet.optimize(net, engine=name, example=example())


class Branches(nn.Module):
    """Goes another way for other values, which no program can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.relu() if x.sum() > 0 else x)


def test_networks_that_no_engine_takes() -> None:
    odd = Branches().eval()
    with pytest.raises(FeatnetError, match="Branches cannot be exported with batch, height, width"):
        featnet.optimize(odd, engine="openvino")
    for x in (image_batch(8, 8, dtype=torch.bfloat16), image_batch(8, 8, dtype=torch.float64)):
        conv = nn.Conv2d(3, 4, 3).eval().to(x.dtype)
        with pytest.raises(ArgumentError, match="'onnxruntime': it runs float32 on the CPU"):
            featnet.optimize(conv, engine="onnxruntime", example=x)


def test_arguments(net: Any) -> None:
    with pytest.raises(ArgumentError, match="engine='onxruntime'.*Did you mean 'onnxruntime'"):
        featnet.optimize(net, engine="onxruntime")
    with pytest.raises(ArgumentError, match=r"'auto' times the engines .* give example="):
        featnet.optimize(net, engine="auto")
    with pytest.raises(ArgumentError, match="compile= belongs to engine='torch'"):
        featnet.optimize(net, engine="openvino", compile=True)
    with pytest.raises(InputSizeError, match="65 x 97 has no whole number of patches"):
        featnet.optimize(noisy("test_vit"), engine="openvino", example=image_batch(65, 97))


def test_inputs_that_an_engine_does_not_take(fast: Any) -> None:
    made = fast["onnxruntime"]
    x = example()
    with pytest.raises(InputSizeError, match=r"\(1, 4, 8, 8\): \(N, 3, H, W\)"):
        made(torch.zeros(1, 4, 8, 8))
    with pytest.raises(ArgumentError, match=r"torch\.float16 on cpu: onnxruntime runs float32"):
        made(x.half())
    with pytest.raises(ArgumentError, match="has no gradients"):
        made(x.requires_grad_())
    with pytest.raises(ArgumentError, match="does not train"):
        made.train()
    for convert in (made.half, lambda: made.to("meta")):
        with pytest.raises(ArgumentError, match="cannot become torch.*convert the network before"):
            convert()
    assert made.float() is made


class Copied(Program):
    """Runs nothing."""

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]


def test_sizes_that_the_network_does_not_take() -> None:
    """An engine would give a map of something: the program has lost the rule."""
    vit = noisy("test_vit", out_indices=(-1,))
    x = image_batch(*vit.body.img_size)
    interface = Interface.of(vit, x, vit(x))
    made = EngineNet(Copied("onnxruntime", b"", x.shape, 1), interface)
    patch = vit.feature_info.reduction()[0]
    assert interface.steps == (patch, patch)
    with pytest.raises(InputSizeError, match=f"width must be a multiple of {patch}. The nearest"):
        made(torch.zeros(1, 3, patch * 3, patch * 3 + 1))
    assert made(torch.zeros(1, 3, patch * 3, patch * 4))[0].shape[-1] == patch * 4
    assert Interface.of(noisy(), x, x).steps == (1, 1)


def test_layouts_of_maps() -> None:
    nets = [noisy("test_vit", output_fmt=layout) for layout in ("NHWC", "NLC", "NCHW")]
    nets.append(noisy("test_vit", return_prefix_tokens=True))
    for vit in nets:
        x = image_batch(*vit.body.img_size)
        output = vit(x)

        class Fixed(Program):
            def __call__(self, _x: torch.Tensor, output: Any = output) -> list[torch.Tensor]:
                return list(featnet.tracing.trace.tensors(output))

        made = EngineNet(Fixed("onnxruntime", b"", x.shape, 1), Interface.of(vit, x, output))
        assert made.feature_info.sizes(vit.body.img_size) == vit.feature_info.sizes(
            vit.body.img_size
        )
