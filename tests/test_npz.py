"""Archives of NumPy's: Google's vision transformers, loaded as timm itself loads them."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch

from featnet import convert_checkpoint, create_model
from featnet.checkpoints import checkpoint
from featnet.errors import CheckpointError

np = pytest.importorskip("numpy")
VIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
# our name, options, how the archive is written
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, bool]]] = {
    "paper": ("vit_base_patch16_224", VIT, {}),
    "big_vision": ("vit_base_patch16_224", VIT, {"big": True}),
    "stacked": ("vit_base_patch16_224", VIT, {"big": True, "stacked": True}),
    "siglip": ("vit_base_patch16_siglip_224", VIT, {"big": True}),
    "hybrid": ("vit_tiny_r_s16_p8_224", VIT, {}),
    "hybrid, of stages": ("vit_small_r26_s32_224", {**VIT, "img_size": 64}, {}),
}


def archive(model: Any, *, big: bool = False, stacked: bool = False) -> dict[str, Any]:
    """A model's tensors, drawn anew, as the JAX code writes them."""
    rng, found = np.random.default_rng(0), {}
    heads = VIT["num_heads"]
    attention, mlp, norm2 = (0, 0, 1) if big else (1, 3, 2)

    def draw(name: str, *shape: int) -> None:
        value = rng.standard_normal(shape) * 0.1 + (name.endswith("scale"))
        found[name] = value.astype(np.float32)

    def dense(name: str, out: int, into: int) -> None:
        draw(f"{name}/kernel", into, out), draw(f"{name}/bias", out)

    def conv(name: str, module: Any) -> None:
        out, into, height, width = module.weight.shape
        draw(f"{name}/kernel", height, width, into, out)

    def norm(name: str, width: int, *axes: int) -> None:
        draw(f"{name}/scale", *axes, width), draw(f"{name}/bias", *axes, width)

    def attend(name: str, width: int) -> None:
        for part in ("query", "key", "value"):
            draw(f"{name}/{part}/kernel", width, heads, width // heads)
            draw(f"{name}/{part}/bias", heads, width // heads)
        draw(f"{name}/out/kernel", heads, width // heads, width), draw(f"{name}/out/bias", width)

    width = model.embed_dim
    trunk = getattr(model.patch_embed, "backbone", None)
    if trunk is not None:
        stem = getattr(trunk, "stem", trunk)
        conv("conv_root", stem.conv), norm("gn_root", stem.conv.out_channels, 1, 1, 1)
        for i, stage in enumerate(getattr(trunk, "stages", ())):
            for j, block in enumerate(stage.blocks):
                unit = f"block{i + 1}/unit{j + 1}"
                for r in (1, 2, 3):
                    module = getattr(block, f"conv{r}")
                    (
                        conv(f"{unit}/conv{r}", module),
                        norm(f"{unit}/gn{r}", module.out_channels, 1, 1, 1),
                    )
                if getattr(block, "downsample", None) is not None:
                    module = block.downsample.conv
                    conv(f"{unit}/conv_proj", module), norm(f"{unit}/gn_proj", module.out_channels)
    conv("embedding", model.patch_embed.proj), draw("embedding/bias", width)
    if model.cls_token is not None:
        draw("cls", 1, 1, width)
    draw(
        "pos_embedding" if big else "Transformer/posembed_input/pos_embedding",
        *model.pos_embed.shape,
    )
    norm("Transformer/encoder_norm", width)
    for i in range(VIT["depth"]):
        block = f"Transformer/encoderblock_{i}"
        norm(f"{block}/LayerNorm_0", width), norm(f"{block}/LayerNorm_{norm2}", width)
        attend(f"{block}/MultiHeadDotProductAttention_{attention}", width)
        hidden = model.blocks[0].mlp.fc1.out_features
        dense(f"{block}/MlpBlock_{mlp}/Dense_0", hidden, width)
        dense(f"{block}/MlpBlock_{mlp}/Dense_1", width, hidden)
    if getattr(model, "attn_pool", None) is not None:
        draw("MAPHead_0/probe", 1, 1, width), norm("MAPHead_0/LayerNorm_0", width)
        attend("MAPHead_0/MultiHeadDotProductAttention_0", width)
        hidden = model.attn_pool.mlp.fc1.out_features
        dense("MAPHead_0/MlpBlock_0/Dense_0", hidden, width)
        dense("MAPHead_0/MlpBlock_0/Dense_1", width, hidden)
    dense("head", 10, width)
    if stacked:
        first = [key for key in found if "encoderblock_0/" in key]
        for key in first:
            parts = [found.pop(key.replace("_0/", f"_{i}/", 1)) for i in range(VIT["depth"])]
            found[key.replace("encoderblock_0/", "encoderblock/")] = np.stack(parts)
    return found


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("kind", KINDS)
def test_as_timm_loads_it(kind: str, prefix: str, timm: Any, tmp_path: Path) -> None:
    name, options, how = KINDS[kind]
    if prefix == "params/" and not how:
        prefix = "opt/target/"  # the other is big_vision's
    theirs = timm.create_model(name, **options).eval()
    tensors = archive(theirs, **how)
    path = tmp_path / "vit.npz"
    np.savez(path, **{prefix + key: value for key, value in tensors.items()})
    theirs.load_pretrained(str(path))
    model = create_model(name, checkpoint_path=path, **options).eval()
    x = helpers.image_batch(options["img_size"], options["img_size"])
    with torch.no_grad():
        assert helpers.error(model(x), theirs(x)) < 1e-5
    report = model.load_report
    assert not report.dropped and not report.initial and "layout of JAX's ViT" in report.steps
    assert report.loaded + len(report.converted) == len(model.state_dict())
    assert (f"prefix {prefix!r} removed" in report.steps) == bool(prefix)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "flexivit_small"])
@pytest.mark.parametrize("size", [{"img_size": 64}, {"img_size": 48, "patch_size": 12}])
def test_another_size_as_timm_loads_it(
    name: str, size: dict[str, int], timm: Any, tmp_path: Path
) -> None:
    """Bilinear, as the JAX code does it, where checkpoints of PyTorch are resampled bicubically."""
    path = tmp_path / "vit.npz"
    np.savez(path, **archive(timm.create_model(name, **{**VIT, **size})))
    theirs = timm.create_model(name, **VIT).eval()
    theirs.load_pretrained(str(path))
    model = create_model(name, checkpoint_path=path, **VIT).eval()
    x = helpers.image_batch(32, 32)
    with torch.no_grad():
        assert helpers.error(model(x), theirs(x)) < 1e-5
    assert " to " in model.load_report.converted["pos_embed"]


def vit(tmp_path: Path, **more: Any) -> Path:
    model = create_model("vit_base_patch16_224", **VIT)
    np.savez(tmp_path / "vit.npz", **{**archive(model), **more})
    return tmp_path / "vit.npz"


def test_other_classes_sizes_and_channels(tmp_path: Path) -> None:
    path = vit(tmp_path)
    net = create_model(
        "vit_base_patch16_224",
        checkpoint_path=path,
        in_chans=1,
        **{**VIT, "img_size": 64, "num_classes": 3},
    )
    assert set(net.load_report.initial) == {"head.weight", "head.bias"}
    assert "3 input channels to 1" in net.load_report.converted["patch_embed.proj.weight"]
    net = create_model(
        "vit_base_patch16_224",
        features_only=True,
        checkpoint_path=path,
        **{k: v for k, v in VIT.items() if k != "num_classes"},
    )
    assert net(helpers.image_batch(32, 32))[-1].shape == (1, 32, 2, 2)


def test_a_classifier_behind_another_layer(tmp_path: Path) -> None:
    """The layer was taken out of the network; a classifier without it would give other numbers."""
    more = {"pre_logits/kernel": np.zeros((32, 32), "f4"), "pre_logits/bias": np.zeros(32, "f4")}
    model = create_model("vit_base_patch16_224", checkpoint_path=vit(tmp_path, **more), **VIT)
    assert set(model.load_report.dropped) == {*more, "head/kernel", "head/bias"}
    assert set(model.load_report.initial) == {"head.weight", "head.bias"}


def test_converted_on_the_way(tmp_path: Path) -> None:
    path = vit(tmp_path)
    np.savez(tmp_path / "tv.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="does not fit VisionTransformer"):
        create_model("vit_base_patch16_224", checkpoint_path=tmp_path / "tv.npz", **VIT)
    with pytest.raises(CheckpointError, match="It looks like JAX's ViT"):
        create_model("resnet18", checkpoint_path=path)
    with pytest.raises(CheckpointError, match="does not fit VisionTransformer"):
        convert_checkpoint(path, tmp_path / "out.safetensors", model="vit_tiny_patch16_224")


# Reading ----------------------------------------------------------------------------------------


def test_numbers_of_all_kinds(tmp_path: Path) -> None:
    arrays = {
        "a/b": np.arange(6, dtype="<f4").reshape(2, 3),
        "scalar": np.float64(3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "none": np.zeros((0, 2)),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    found = checkpoint.read(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, value in arrays.items():
        assert found[name].shape == value.shape and found[name].tolist() == value.tolist()
    half = torch.tensor([1.5, -2.0]).bfloat16()
    np.savez(tmp_path / "b.npz", a=half.view(torch.int16).numpy().view("V2"))
    assert torch.equal(checkpoint.read(tmp_path / "b.npz")["a"], half)


def member(shape: str, content: bytes, dtype: str = "<f4") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


BAD = {
    "huge": (member("(99999999999,)", b"1234"), "does not fill 4 bytes"),
    "negative": (member("(-1,)", b""), "does not fill|shape"),
    "objects": (member("(1,)", b"12345678", "|O"), "holds objects"),
    "text": (member("(1,)", b"1234", "<U1"), "numbers"),
    "no array": (b"hello", "truncated"),
    "version": (b"\x93NUMPY\x09\x00\x01\x00\n", "version"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_archive_of_numbers(kind: str, tmp_path: Path) -> None:
    content, why = BAD[kind]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("a.npy", content)
    with pytest.raises(CheckpointError, match=why):
        checkpoint.read(tmp_path / "a.npz")


def test_archives_that_are_not_what_they_seem(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(1000))
    with pytest.raises(CheckpointError, match="it is compressed"):
        checkpoint.read(path)
    np.savez(path, a=np.zeros(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path)
    flipped = bytearray(whole)
    flipped[4000] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="CRC"):
        checkpoint.read(path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as file:
        for _ in range(2):
            buffer = io.BytesIO()
            np.save(buffer, np.zeros(2))
            file.writestr("a.npy", buffer.getvalue())
    with pytest.raises(CheckpointError, match="occurs twice"):
        checkpoint.read(path)


def test_a_size_that_the_directory_of_the_archive_makes_up(tmp_path: Path) -> None:
    """Nothing is allocated for it."""
    path, size = tmp_path / "a.npz", 1 << 31
    content = member(f"({size // 4},)", b"1234")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", content)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\x01\x02") + 24
    whole[at : at + 4] = (len(content) - 4 + size).to_bytes(4, "little")
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"'a' ends after \d+ of \d+ bytes"):
        checkpoint.read(path)


def test_without_numpy(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(3.0))
    code = (
        "import sys; sys.modules['numpy'] = None; import warnings; "
        "warnings.simplefilter('ignore')\n"
        "from featnet.checkpoints import checkpoint; "
        "print(checkpoint.read(sys.argv[1])['a'].tolist())"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "a.npz")]
    assert (
        "[0.0, 1.0, 2.0]" in subprocess.run(run, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.parametrize(
    "header", ["{'a': " * 3000, "(" * 9000, "{'descr': ", "\x00", "9" * 6000, "{1: 2}"]
)
def test_headers_that_mean_nothing(header: str, tmp_path: Path) -> None:
    text = header.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(CheckpointError, match=r"a\.npz.*header"):
        checkpoint.read(tmp_path / "a.npz")
