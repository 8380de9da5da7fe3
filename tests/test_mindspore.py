"""MindSpore's files, read without it, and MindCV's networks: their numbers are in tests/golden.

``mindspore.ckpt`` and ``mindspore.npz`` were written by MindSpore 2.10, with a checksum. The
outputs in ``mindcv.json.gz`` are MindCV 0.3's, with parameters drawn as :func:`drawn` draws them,
of networks
as large as ``options`` make ours: VGG's classifier is narrow, and HRNet does not round to float16.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from featnet import create_model, load_checkpoint
from featnet.checkpoints import checkpoint, mindspore
from featnet.cli import main
from featnet.errors import CheckpointError

np = pytest.importorskip("numpy")
GOLDEN = Path(__file__).parent / "golden"
REFERENCE = json.loads(gzip.decompress((GOLDEN / "mindcv.json.gz").read_bytes()))


def test_a_file_that_mindspore_wrote() -> None:
    wanted = np.load(GOLDEN / "mindspore.npz")
    found = checkpoint.read(GOLDEN / "mindspore.ckpt")
    assert list(found) == list(wanted)
    for name, value in found.items():
        assert value.dtype == torch.from_numpy(wanted[name]).dtype, name
        assert torch.equal(value.reshape(-1), torch.from_numpy(wanted[name]).reshape(-1)), name


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def encode(name: str, value: Any, *, pieces: int = 1) -> bytes:
    """A parameter as MindSpore writes it, a large one in several pieces."""
    dims = b"".join(varint(1 << 3) + varint(n) for n in value.shape)
    kind = {"float32": b"Float32", "int64": b"Int64", "float16": b"Float16"}[value.dtype.name]
    out = b""
    for piece in np.array_split(value.reshape(-1), pieces):
        tensor = dims + field(2, kind) + field(3, piece.tobytes())
        out += field(1, field(1, name.encode()) + field(2, tensor))
    return out


def test_the_writer_of_these_tests_writes_what_mindspore_does() -> None:
    wanted = np.load(GOLDEN / "mindspore.npz")
    content = (GOLDEN / "mindspore.ckpt").read_bytes()
    assert encode("conv.weight", wanted["conv.weight"]) in content


def test_a_large_parameter_in_pieces(tmp_path: Path) -> None:
    value = np.arange(77, dtype=np.float32).reshape(7, 11)
    path = tmp_path / "m.ckpt"
    path.write_bytes(encode("a", value, pieces=5) + encode("b", value[:2]))
    found = checkpoint.read(path)
    assert torch.equal(found["a"], torch.from_numpy(value)) and found["b"].shape == (2, 11)


def drawn(rng: Any, name: str, shape: list[int], scale: float) -> Any:
    value = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("gamma"):
        value = 1 + 0.2 * value
    elif name.endswith("moving_variance"):
        value = 0.5 + np.abs(value) * 0.5
    elif len(shape) >= 2:
        value = value * (scale / np.sqrt(np.prod(shape[1:])))
    else:
        value = 0.1 * value
    return value.astype(np.float32)


def written(name: str, path: Path) -> Any:
    """A file of the network as MindCV keeps it; the generator of its numbers."""
    rng, scale = np.random.default_rng(0), REFERENCE[name]["scale"]
    with path.open("wb") as file:
        for key, shape, *constant in REFERENCE[name]["parameters"]:
            # what is counted, and not learnt, is of no importance
            zeros = np.zeros(shape, dtype=np.float32)
            file.write(encode(key, zeros if constant else drawn(rng, key, shape, scale)))
    return rng


@pytest.mark.parametrize("name", REFERENCE)
def test_mindcv(name: str, tmp_path: Path) -> None:
    wanted, path = REFERENCE[name], tmp_path / "m.ckpt"
    rng = written(name, path)
    x = rng.standard_normal(wanted["x"]).astype(np.float32)
    assert float(x.ravel()[0]) == pytest.approx(wanted["first"]), "numpy draws other numbers now"
    options = {**wanted["options"], "num_classes": 10, "checkpoint_path": path}
    if "act_layer" in options:
        with pytest.raises(
            CheckpointError, match=f"build the network with act_layer=.{options['act_layer']}"
        ):
            create_model(name, **{k: v for k, v in options.items() if k != "act_layer"})
    model = create_model(name, **options).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(x))
    # of V2's norms the epsilon is another, which the report says
    assert helpers.error(found, torch.tensor([wanted["outputs"]])) < (
        1e-4 if "swinv2" in name else 1e-5
    )
    report = model.load_report
    assert report.loaded + len(report.converted) + len(report.initial) == len(model.state_dict())
    assert set(report.dropped.values()) <= {"is counted from the size of the image"}
    assert all(key.endswith("num_batches_tracked") for key in report.initial)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "m.ckpt", tmp_path / "m.safetensors"
    written("convnextv2_atto", path)
    arguments = ["convert", str(path), str(out), "--model", "convnextv2_atto"]
    assert main(arguments) == 2 and "gelu_tanh" in capsys.readouterr().err
    assert main([*arguments, "--option", "act_layr=gelu_tanh"]) == 2
    assert "Did you mean 'act_layer'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments, "--option", "act_layer"])
    assert main([*arguments, "--option", "act_layer=gelu_tanh"]) == 0
    model = create_model("convnextv2_atto", num_classes=10, checkpoint_path=out)
    assert model.load_report.loaded == len(model.state_dict())


# One of each that is refused: two of MindCV's names for its parameters, and the reason
REFUSED = {
    "resnet18": ("bn1.gamma", "layer1.0.conv1.weight", "ResNet is not loaded: its pooling"),
    "resnest14d": ("bn1.gamma", "layer1.0.conv2.fc1.weight", "ResNeSt is not loaded: its pooling"),
    "skresnet18": (
        "bn1.gamma",
        "layer1.0.conv1.paths.0.features.0.weight",
        "SKNet is not loaded: its pool",
    ),
    "skresnet50": (
        "bn1.gamma",
        "layer1.0.conv2.paths.0.features.0.weight",
        "SKNet is not loaded: its pool",
    ),
    "legacy_seresnet18": (
        "layer0.1.gamma",
        "layer1.0.se_module.conv_reduce.weight",
        "SENet is not loaded: its",
    ),
    "mobilenetv3_small_100": (
        "features.1.gamma",
        "features.3.layers.0.weight",
        "V3 is not loaded: its depthwise",
    ),
    "mixnet_s": ("stem_conv.0.weight", "stem_conv.1.gamma", "MixNet is not loaded: its squeeze"),
    "pvt_v2_b0": ("patch_embed_list.0.proj.weight", "head.bias", "PVTv2 is not loaded: its patch"),
    "halonet26t": (
        "stem.conv1.conv.weight",
        "stem.conv1.bn.gamma",
        "HaloNet is not loaded: its windows",
    ),
}
ONE = np.ones((4, 3), dtype=np.float32)


@pytest.mark.parametrize("name", REFUSED)
def test_networks_that_are_others_under_the_same_name(name: str, tmp_path: Path) -> None:
    *names, why = REFUSED[name]
    path = tmp_path / "m.ckpt"
    names += ["classifier.0.weight"] * name.startswith("mobilenet")
    path.write_bytes(b"".join(encode(key, ONE) for key in names))
    with torch.device("meta"):
        model = create_model(name)
    with pytest.raises(CheckpointError, match=f"A checkpoint of MindCV's \\w*{why}"):
        load_checkpoint(model, path)


def test_a_classifier_without_its_bias(tmp_path: Path) -> None:
    """Only convolutions have none in MindCV's VGG."""
    path = tmp_path / "m.ckpt"
    kernels = [f"features.{i}.weight" for i in (0, 3, 6, 8, 11, 13, 16, 18)]
    matrices = [f"classifier.{i}.weight" for i in (0, 3, 6)]
    path.write_bytes(
        b"".join(
            encode(key, ONE[..., None, None] if key in kernels else ONE)
            for key in (*kernels, *matrices)
        )
    )
    with pytest.raises(
        CheckpointError, match=r"missing \(3\): pre_logits.fc1.bias, .* head.fc.bias"
    ):
        create_model("vgg11", mlp_ratio=1 / 4096, checkpoint_path=path)


def test_padding_that_the_network_was_not_built_with(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    written("tf_efficientnet_b0", path)
    options = {"num_classes": 10, "checkpoint_path": path}
    with pytest.raises(
        CheckpointError, match="MindCV's EfficientNet was .* TensorFlow's padding: build"
    ):
        create_model("efficientnet_b0", **options)
    assert create_model("efficientnet_b0", pad_type="same", **options).load_report.loaded


def test_what_is_no_network_of_mindcvs(tmp_path: Path) -> None:
    """Names alone, even the model's own, do not make a file of MindSpore's fit."""
    path = tmp_path / "m.ckpt"
    state = {
        k: v.numpy() for k, v in create_model("vgg11", mlp_ratio=1 / 4096).state_dict().items()
    }
    path.write_bytes(b"".join(encode(k, v) for k, v in state.items() if "features" in k))
    with pytest.raises(
        CheckpointError, match="architecture that is not known: it begins with .features.0.w"
    ):
        create_model("vgg11", mlp_ratio=1 / 4096, checkpoint_path=path)
    written("regnetx_002", path)
    with pytest.raises(
        CheckpointError, match="A checkpoint of MindCV's RegNet does not fit DenseNet"
    ):
        create_model("densenet121", checkpoint_path=path)


BAD = {
    "cut": lambda content: content[:-30],
    "checksum": lambda content: content[:20] + b"\x7f" + content[21:],
    "twice": lambda content: encode("a", np.ones(3, "f4")) + encode("a", np.ones(4, "f4")),
    "too little": lambda content: encode("a", np.ones(3, "f4")).replace(b"Float32", b"Float64"),
    "unknown dtype": lambda content: encode("a", np.ones(3, "f4")).replace(b"Float32", b"Float39"),
    "nothing": lambda content: encode("a", np.ones(3, "f4")).replace(b"Float32", b"strings"),
    "huge": lambda content: b"\n\x08\n\x01a" + b"\xff" * 9 + b"\x01",
    "endless": lambda content: b"\n\x08\n\x01a" + b"\xff" * 20,
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_such_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    path.write_bytes(BAD[kind]((GOLDEN / "mindspore.ckpt").read_bytes()))
    assert mindspore.is_checkpoint(path.read_bytes()[:64])
    with pytest.raises(CheckpointError, match="is truncated, encrypted or not a MindSpore"):
        checkpoint.read(path)
