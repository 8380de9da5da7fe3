"""The command ``featnet``: what it prints, what it writes, and what it says to bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from featnet.cli import main

Image = pytest.importorskip("PIL.Image")

SIZE = (90, 61)  # width, height


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "ramp.png"
    width, height = SIZE
    pixels = (2 * x + c * y for y in range(height) for x in range(width) for c in range(3))
    Image.frombytes("RGB", SIZE, bytes(value % 256 for value in pixels)).save(path)
    return path


def extract(image: Path, out: Path, *options: str, model: str = "resnet18") -> int:
    return main(["extract", str(image), "--model", model, "--out", str(out), *options])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line on stderr of a command that gave up; nothing may be on stdout."""
    out, err = capsys.readouterr()
    assert code == 2 and not out
    assert err.startswith("featnet: error: ") and err.count("\n") == 1, err
    return err


# What comes out


def test_extract_table_and_files(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert extract(image, out, "--out-indices", "1", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("The weights are random (seed 0)")
    rows = [line.split() for line in lines]
    assert ["1", "layer1", "64", "4", "16", "x", "23", f"{64 * 16 * 23 * 4:,}"] in rows
    assert ["2", "layer2", "128", "8", "8", "x", "12", f"{128 * 8 * 12 * 4:,}"] in rows
    assert lines[-2:] == ["weights: random, seed 0", lines[-1]] and lines[-1].startswith("wrote ")
    assert sorted(path.name for path in out.iterdir()) == ["features.png", "features.safetensors"]
    with Image.open(out / "features.png") as sheet:
        assert sheet.mode == "RGB" and sheet.width > 3 * SIZE[0] and sheet.height > SIZE[1]


def test_extract_safetensors(image: Path, tmp_path: Path) -> None:
    assert extract(image, tmp_path, "--out-indices", "2", "1", "--output-stride", "16") == 0
    with safe_open(tmp_path / "features.safetensors", framework="pt") as file:
        maps = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "layer1": (1, 64, 16, 23),
        "layer2": (1, 128, 8, 12),
    }
    assert all(m.dtype == torch.float32 and m.isfinite().all() for m in maps.values())
    assert metadata == {
        "model": "resnet18",
        "out_indices": "[2, 1]",
        "modules": '["layer2", "layer1"]',
        "reductions": "[8, 4]",
        "output_stride": "16",
        "mean": "[0.485, 0.456, 0.406]",
        "std": "[0.229, 0.224, 0.225]",
        "interpolation": "bicubic",
        "format": "pt",
        "input_size": "[3, 61, 90]",
        "image": str(image),
        "image_size": "[61, 90]",
        "image_place": "[0, 0, 61, 90]",
        "weights": "random, seed 0",
    }


def test_extract_is_the_model_on_the_image(image: Path, tmp_path: Path) -> None:
    import featnet

    assert extract(image, tmp_path, "--out-indices", "2", "--seed", "3") == 0
    torch.manual_seed(3)
    net = featnet.create_model("resnet18", features_only=True, out_indices=(2,)).eval()
    cfg = net.pretrained_cfg
    with Image.open(image) as opened:
        pixels = torch.tensor(list(opened.tobytes())).view(61, 90, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        (expected,) = net(((pixels - mean) / std).unsqueeze(0))
    with safe_open(tmp_path / "features.safetensors", framework="pt") as file:
        torch.testing.assert_close(file.get_tensor("layer2"), expected)


def test_extract_repeats(image: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, ("0", "0", "1"), strict=True):
        assert extract(image, folder, "--out-indices", "1", "2", "--seed", seed) == 0
    for name in ("features.safetensors", "features.png"):
        first, second, other = ((folder / name).read_bytes() for folder in folders)
        assert first == second
        assert first != other


def test_extract_input_size(image: Path, tmp_path: Path) -> None:
    options = ("--out-strides", "4", "--input-size", "48", "40")
    assert extract(image, tmp_path, *options) == 0
    with safe_open(tmp_path / "features.safetensors", framework="pt") as file:
        assert file.get_tensor("layer1").shape == (1, 64, 12, 10)
        assert file.metadata()["input_size"] == "[3, 48, 40]"


def test_extract_checkpoint(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import featnet

    torch.manual_seed(5)
    checkpoint = tmp_path / "mine.pth"
    torch.save(featnet.create_model("resnet18").state_dict(), checkpoint)
    options = {
        "one": ("--checkpoint", str(checkpoint)),
        "other": ("--checkpoint", str(checkpoint), "--seed", "1"),
        "random": (),
    }
    maps, sources, printed = {}, {}, {}
    for name, given in options.items():
        assert extract(image, tmp_path / name, "--out-indices", "1", *given) == 0
        printed[name] = capsys.readouterr().out
        with safe_open(tmp_path / name / "features.safetensors", framework="pt") as file:
            maps[name], sources[name] = file.get_tensor("layer1"), file.metadata()["weights"]
    assert torch.equal(maps["one"], maps["other"])  # the seed plays no part in loaded weights
    assert not torch.equal(maps["one"], maps["random"])
    assert sources["one"] == "checkpoint mine.pth"
    assert "random" in printed["random"] and "random" not in printed["one"]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_image_modes(mode: str, tmp_path: Path) -> None:
    from featnet.images.reading import read_image

    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":  # 16 bits a pixel: half of the range is mid-grey, not white
        Image.frombytes(mode, (4, 4), (32768).to_bytes(2, "little") * 16).save(path)
    else:
        Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode).save(path)
    rgb = read_image(path)
    assert rgb.mode == "RGB" and rgb.size == (4, 4)
    expected = {"I;16": 127, "RGBA": 255, "LA": 255, "P": 255}.get(mode, 0)
    assert rgb.getpixel((1, 1)) == (expected,) * 3


def test_image_is_turned_upright(tmp_path: Path) -> None:
    from featnet.images.reading import read_image

    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn clockwise shows it upright
    Image.new("RGB", SIZE).save(tmp_path / "phone.jpg", exif=exif)
    assert read_image(tmp_path / "phone.jpg").size == SIZE[::-1]


# list and info


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "resnet1*"]) == 0
    assert "resnet18" in capsys.readouterr().out.splitlines()
    assert main(["list", "no-such-*"]) == 1
    assert "'no-such-*'" in capsys.readouterr().err


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--output-stride", "8", "--out-indices", "4", "2", "--input-size", "64", "96"]
    assert main(["info", "resnet18", *options]) == 0
    levels = capsys.readouterr().out.split("\n\n")[0]
    header, *rows = (line.split() for line in levels.splitlines())
    assert header == ["level", "module", "channels", "reduction", "map", "size"]
    assert rows == [
        ["4", "layer4", "512", "8", "8", "x", "12"],
        ["2", "layer2", "128", "8", "8", "x", "12"],
    ]


def test_help_is_quick_to_answer() -> None:
    """Neither torch nor Pillow is imported for it."""
    code = (
        "import sys\nfrom featnet.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert "extract" in done.stdout and done.stdout.endswith("[]\n")


# Bad input


def test_missing_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, extract(tmp_path / "no.png", tmp_path / "out"))
    assert "no.png" in message and "does not exist" in message
    assert not (tmp_path / "out").exists()


def test_folder_as_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    assert "has no images in it" in refusal(capsys, extract(tmp_path, tmp_path / "out"))


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_not_an_image(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.png").write_bytes(content)
    message = refusal(capsys, extract(tmp_path / "notes.png", tmp_path / "out"))
    assert "notes.png" in message and "is not an image" in message


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp"])
def test_truncated_image(
    suffix: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / f"cut.{suffix}"
    with Image.open(image) as whole:
        whole.save(cut)
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    message = refusal(capsys, extract(cut, tmp_path / "out"))
    assert str(cut) in message
    assert "cut off" in message or "is not an image" in message


def test_output_folder_is_a_file(
    image: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import featnet

    def build(*args: object, **kwargs: object) -> None:
        pytest.fail("the model was built before the output folder was looked at")

    monkeypatch.setattr(featnet, "create_model", build)
    for out in (image, image / "below"):
        message = refusal(capsys, extract(image, out))
        assert f"output folder {str(out)!r} cannot be written to" in message


def test_output_file_is_a_folder(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "features.png").mkdir()
    message = refusal(capsys, extract(image, tmp_path))
    assert "features.png" in message and "is a folder" in message


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_output_folder_without_permission(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written to" in refusal(capsys, extract(image, locked))


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    from featnet.checkpoints.writing import staged
    from featnet.errors import OutputError

    path = tmp_path / "features.png"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="No space left"), staged(path) as draft:
        draft.write_bytes(b"half of the n")
        raise OSError(28, "No space left on device")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "model", "expected"),
    [
        ((), "resnet81", "'resnet18'"),
        (("--out-indices", "9"), "resnet18", "9"),
        (("--output-stride", "7"), "resnet18", "7"),
        (("--checkpoint", "no-such.pth"), "resnet18", "no-such.pth"),
        (("--device", "toaster"), "resnet18", "'toaster'"),
        (("--device", "meta"), "resnet18", "'meta'"),
    ],
)
def test_errors_of_the_library(
    options: tuple[str, ...],
    model: str,
    expected: str,
    image: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = extract(image, tmp_path / "out", *options, model=model)
    assert expected in refusal(capsys, code)


@pytest.mark.parametrize("size", [("0", "32"), ("32", "-1"), ("a", "b"), ("32",)])
def test_malformed_input_size(
    size: tuple[str, ...], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        extract(image, tmp_path, "--input-size", *size)
    assert stop.value.code == 2
    assert "--input-size" in capsys.readouterr().err


def test_without_pillow(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    message = refusal(capsys, extract(image, tmp_path))
    assert "featnet[cli]" in message


def test_metadata_is_json(image: Path, tmp_path: Path) -> None:
    """Every list in the metadata reads back with the standard library alone."""
    assert extract(image, tmp_path, "--out-indices", "1") == 0
    data = (tmp_path / "features.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["out_indices"]) == [1]
    assert header["layer1"]["data_offsets"][1] + 8 + int.from_bytes(data[:8], "little") == len(data)
