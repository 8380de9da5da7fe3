"""The command over many images, its lists and its words; one image is in test_cli.py."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import networks
import photographs
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import featnet
from featnet import registry
from featnet.capabilities import read_table
from featnet.cli import main
from featnet.cli.listing import short
from featnet.errors import ArgumentError
from featnet.images.finding import find_images
from featnet.images.reading import ImageError

NAME = "resnet18"


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forked from here (see test_alone.py); the workers of a run have tests of their
    own, in alone_many.py."""
    monkeypatch.setattr("featnet.images.many.job.count_cpus", lambda: 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them below, and a file that is none."""
    root = tmp_path / "photos"
    (root / "below").mkdir(parents=True)
    for i, name in enumerate(("b.png", "a.jpg", "below/c.PNG")):
        Image.effect_noise((64 + 16 * (i == 2), 48), 80).convert("RGB").save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def extract(*arguments: object, model: str = NAME) -> int:
    return run("extract", *arguments, "--model", model, "--out-indices", "1")


def tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2 and err.startswith("featnet: error: ") and err.count("\n") == 1, err
    return err


# Which images -----------------------------------------------------------------------------------


def names(*arguments: object) -> list[str]:
    return [item.name for item in find_images([str(a) for a in arguments])]


def test_files_folders_patterns_and_lists(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(folder) == ["a.jpg", "b.png", "below/c.PNG"]
    assert names(folder / "b.png", folder / "a.jpg") == ["b.png", "a.jpg"]
    assert names(folder / "b.png", folder / "b.png") == ["b.png"]
    assert names(folder / "*.png") == ["b.png"]
    assert names(folder / "**/*") == ["a.jpg", "b.png", "below/c.PNG", "notes.txt"]
    assert names(folder / "bel*/c.PNG") == ["below/c.PNG"]
    listing = tmp_path / "list.txt"
    listing.write_text(f"# two\n{folder / 'b.png'}\n\n{folder / 'a.jpg'}\n")
    assert names(f"@{listing}") == ["b.png", "a.jpg"]
    listing.write_text(f"{folder / 'b.png'}\n{folder / 'below' / 'c.PNG'}\n")
    assert names(f"@{listing}") == ["b.png", "below/c.PNG"]
    assert names("-") == ["stdin"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(str(folder).encode())))
    assert names("@-") == ["a.jpg", "b.png", "below/c.PNG"]
    monkeypatch.chdir(folder)
    assert names("a.jpg", "below") == ["a.jpg", "c.PNG"]
    Path("odd[1].png").write_bytes(b"")
    assert names("odd[1].png") == ["odd[1].png"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("no.png", "'.*no.png' does not exist"),
        ("photos/a.jpeg", "does not exist. Did you mean 'a.jpg'"),
        ("photos/*.tif", "no file matches"),
        ("@no.txt", "list 'no.txt' cannot be read"),
        ("@photos/empty.txt", "has no paths"),
        ("https://example.org/cat.jpg", "is a URL"),
        ("photos/empty", "has no images in it"),
        ("", "'' does not exist"),
    ],
)
def test_images_that_are_not_there(
    argument: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    (folder / "empty").mkdir()
    (folder / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(ImageError, match=words):
        find_images([argument])


def test_two_outputs_of_one_name(folder: Path) -> None:
    (folder / "c.PNG").write_bytes(b"")
    with pytest.raises(ArgumentError, match="would both be called 'c.PNG'"):
        find_images([str(folder / "c.PNG"), str(folder / "below" / "c.PNG")])


# Several images ---------------------------------------------------------------------------------


def test_many_images_in_one_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In batches or one by one, the maps are those of the image alone."""
    out = tmp_path / "out"
    assert extract(folder, "--out", out, "--batch-size", 2, "--workers", 0) == 0
    printed = capsys.readouterr().out
    assert "resnet18, 3 images, as they are" in printed and "random, seed 0" in printed
    features = featnet.read_features(out)
    assert list(features) == ["a.jpg", "b.png", "below/c.PNG"]
    for name in ("a.jpg", "below/c.PNG"):
        assert extract(folder / name, "--out", tmp_path / "one", "--overwrite") == 0
        one, metadata = tensors(tmp_path / "one" / "features.safetensors")
        torch.testing.assert_close(features[name]["layer1"], one["layer1"][0])
        assert metadata["image"] == str(folder / name) == features.record(name)["image"]
    assert "single photograph" in refused(capsys, folder, "--out", out, "--render")
    assert "one of many" in refused(capsys, folder, "-", "--out", out)


def test_what_is_there_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "out"
    options = (folder, "--out", out, "--workers", 0, "--shard-size", 1)
    assert extract(*options) == 0
    for suffix in ("jsonl", "safetensors"):
        (out / f"part-00001.{suffix}").unlink()
    (out / "summary.json").unlink()
    kept = (out / "part-00000.safetensors").stat().st_ino
    assert extract(*options) == 0
    assert (out / "part-00000.safetensors").stat().st_ino == kept
    assert "2 images were done already" in capsys.readouterr().out
    with monkeypatch.context() as patch:  # a finished run is known without a network
        patch.setattr(featnet, "create_model", None)
        assert extract(*options) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert "results.pool" in refused(capsys, *options, "--pool", "avg")
    (out / "part-00000.safetensors").write_bytes(b"old")
    assert extract(*options, "--overwrite") == 0
    assert (out / "part-00000.safetensors").read_bytes() != b"old"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line of a command that gives up."""
    assert extract(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_only_output_is_not_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in ((), ("--pool", "avg")):
        arguments = (folder / "a.jpg", "--out", tmp_path, *options)
        assert extract(*arguments) == 0
        capsys.readouterr()
        assert "exists; --overwrite replaces it" in refusal(capsys, extract(*arguments))
        assert extract(*arguments, "--overwrite") == 0


def test_images_that_cannot_be_read_are_skipped(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.png").write_bytes(b"no image")
    out = tmp_path / "out"
    options = (folder, "--out", out, "--workers", 0)
    assert extract(*options) == 1
    err = capsys.readouterr().err
    assert "skipped: " in err and "b.png" in err and "1 of 3 images were skipped" in err
    assert len(featnet.read_features(out)) == 2
    errors = out / "errors.jsonl"
    (line,) = map(json.loads, errors.read_text().splitlines())
    assert line["image"] == str(folder / "b.png") and "not an image" in line["error"]
    Image.new("RGB", (64, 48)).save(folder / "b.png")
    assert extract(*options) == 1 and errors.exists()  # finished is finished
    assert extract(*options, "--retry-failed") == 0 and not errors.exists()
    assert list(featnet.read_features(out)) == ["a.jpg", "b.png", "below/c.PNG"]


def test_vectors_of_many(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", NAME, "--pool", "gem", "--table", "npy", "--out", tmp_path)
    assert run("extract", folder, *options) == 0
    torch.manual_seed(0)
    net = featnet.create_model(NAME, features_only=True, out_indices=(-1,)).eval()
    x = featnet.create_transform(net)([folder / n for n in ("a.jpg", "b.png", "below/c.PNG")])
    with torch.no_grad():
        expected = featnet.pool_features(net(x), "gem")
    torch.testing.assert_close(featnet.read_features(tmp_path).matrix(), expected)
    assert "gem of layer4" in capsys.readouterr().out


def test_json_is_a_line_an_event(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.png").write_bytes(b"no image")
    for _ in range(2):
        assert extract(folder, "--out", tmp_path / "out", "--json") == 1
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert (rows[-1]["event"], rows[-1]["done"], rows[-1]["failed"]) == ("done", 3, 1)
        assert rows[0] == {"event": "start", "total": 3, "kept": 0} or len(rows) == 1
    assert extract(folder, "--pool", "max", "--json", "--no-normalize") == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [str(folder / n) for n in ("a.jpg", "below/c.PNG")]
    assert len(rows[0]["vector"]) == 64
    assert "--out DIR is missing" in refusal(capsys, extract(folder))


def test_an_image_from_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO((folder / "a.jpg").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(data))
    assert extract("-", "--pool", "avg", "--json") == 0
    there = json.loads(capsys.readouterr().out)
    assert extract(folder / "a.jpg", "--pool", "avg", "--json") == 0
    assert json.loads(capsys.readouterr().out)["vector"] == there["vector"]


@pytest.mark.skipif(sys.platform != "linux", reason="paths are bytes")
def test_paths_that_are_no_utf8(folder: Path, tmp_path: Path) -> None:
    """In a terminal that knows nothing but ASCII."""
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.jpg")
    os.rename(folder / "a.jpg", folder / name)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    environment["PYTHONPATH"] = str(Path(featnet.__file__).parents[1])
    for i, (images, options, code) in enumerate(
        [(name, ["--render"], 0), ("", ["--json"], 0), (f"x{name}", [], 2)]
    ):
        command = [sys.executable, "-m", "featnet", "extract", str(folder / images)]
        command += [
            "--model",
            NAME,
            "--out-indices",
            "0",
            "--out",
            str(tmp_path / str(i)),
            *options,
        ]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr


# How an image becomes an input ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "size", "words"),
    [
        ("resnet18", (), (48, 64), "input 48 x 64"),
        ("resnet18", ("--max-side", 32), (24, 32), "scaled to 24 x 32"),
        ("resnet18", ("--fit", "crop"), (224, 224), "cropped to the middle"),
        ("resnet18", ("--fit", "squash"), (224, 224), "squashed from an aspect of 1.33 to 1.00"),
        ("resnet18", ("--input-size", 64, 64), (64, 64), "padded around it"),
        ("vit_tiny_patch16_224", (), (224, 298), "scaled to 224 x 298"),
        ("eca_botnext26ts_256", (), (256, 256), "padded around it"),
    ],
)
def test_the_default_keeps_the_aspect_and_what_does_not_is_said(
    model: str,
    options: tuple[Any, ...],
    size: tuple[int, int],
    words: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (folder / "a.jpg", "--out", tmp_path, "--no-render", *options)
    assert run("extract", *arguments, "--model", model, "--out-indices", "-1") == 0
    assert words in capsys.readouterr().out.splitlines()[1]
    maps, metadata = tensors(tmp_path / "features.safetensors")
    assert json.loads(metadata["input_size"])[1:] == list(size)
    (reduction,) = json.loads(metadata["reductions"])
    (x,) = maps.values()
    assert tuple(x.shape[2:]) == tuple(-(-side // reduction) for side in size)


def test_random_weights_are_said_on_the_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featnet.images import render

    footers = []
    sheet = render.sheet
    monkeypatch.setattr(
        render, "sheet", lambda *a, footer="": (footers.append(footer), sheet(*a, footer=footer))[1]
    )
    assert extract(folder / "a.jpg", "--out", tmp_path / "random") == 0
    assert footers == ["resnet18, random weights, seed 0"]


def test_the_demo_says_whose_weights_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photographs.trained()
    image = photographs.PATHS["chelsea"]
    assert run("extract", image, "--demo", "--output-stride", 8, "--out", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tf_efficientnet_lite0, image 300 x 451")
    assert lines[-2] == "weights: trained on ImageNet, of featnet[demo]"
    assert run("extract", image, "--demo", "--model", "resnet18", "--out", tmp_path) == 2


def test_a_network_without_a_class_token(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = extract(folder / "a.jpg", "--pool", "cls", "--out", tmp_path)
    assert "resnet18 has no class token; avg, max and gem" in refusal(capsys, code)


# Lists ------------------------------------------------------------------------------------------


def test_the_table_of_capabilities_is_complete() -> None:
    assert [*read_table()] == [*registry._index()], "run: python -m featnet.registry"


@pytest.mark.parametrize("name", registry._names())
def test_the_table_says_what_the_network_has(name: str) -> None:
    record, model = read_table()[name], networks.full_model(name)
    info = model.feature_info
    assert record.params == sum(p.numel() for p in model.parameters())
    assert record.modules == tuple(info.module_name())
    assert record.channels == tuple(info.channels())
    assert record.reductions == tuple(info.reduction())
    assert record.output_strides == tuple(model.output_strides)
    assert record.prefix_tokens == model.num_prefix_tokens


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "tf_efficientnet_lite0"])
def test_the_table_is_measured(name: str) -> None:
    from featnet.survey import measure

    assert measure(name) == read_table()[name], "run: python -m featnet.registry NAME"


def test_multiply_adds_are_those_of_the_papers() -> None:
    """In 10^9: ResNet-50 3.8 (its stem counted, 4.1), ViT-B/16 17.6, EfficientNet-B0 0.39."""
    for name, billions in (
        ("resnet50", 4.09),
        ("vit_base_patch16_224", 17.56),
        ("efficientnet_b0", 0.386),
    ):
        assert read_table()[name].macs / 1e9 == pytest.approx(billions, rel=0.01)


def test_filters() -> None:
    table = read_table()
    found = featnet.list_models(stride=4, levels=4, max_params=30e6, output_stride=8)
    assert found and set(found) == {
        name
        for name, r in table.items()
        if 4 in r.reductions
        and len(r.reductions) == 4
        and r.params <= 30e6
        and 8 in r.output_strides
    }
    by_params = featnet.list_models("resnet*", sort="params", min_params=1e7)
    counts = [table[name].params for name in by_params]
    assert counts == sorted(counts) and counts[0] >= 1e7
    assert featnet.list_models(max_macs=1e8, sort="macs")
    assert set(featnet.list_models(family="vgg")) == set(featnet.list_models(module="vgg"))
    free = featnet.list_models("convnext*", pretrained=True, licence="apache-2.0")
    assert free and all(featnet.get_weights(name).license == "apache-2.0" for name in free)
    some = featnet.list_models("convnext*", licence=["apache-2.0", "mit"])
    assert {name.partition(".")[0] for name in free} <= set(some)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(family="vitt"), "family='vitt'.*'vit'"),
        (dict(licence="apache"), "licence='apache'.*'apache-2.0'"),
        (dict(sort="parameters"), "sort='parameters'.*'params'"),
    ],
)
def test_unknown_filters(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        featnet.list_models(**options)


def test_list_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list", "--stride", 4, "--levels", 4, "--max-params", "30M", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows and all(row["params"] <= 30e6 and len(row["channels"]) == 4 for row in rows)
    assert run("list", "resnet18", "resnet34", "--long", "--sort", "params") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "params", "MACs", "input", "levels", "strides", "licence"]
    assert lines[1].split()[:4] == ["resnet18", "11.7M", "1.81G", "224"]
    assert run("list", "--family", "no-such") == 2


def test_short_numbers() -> None:
    numbers = (0, 999, 1234, 999_600, 25_557_032, 4_089_184_256, 1e12)
    assert [short(n) for n in numbers] == ["0", "999", "1.23k", "1000k", "25.6M", "4.09G", "1000G"]


def test_info_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "resnet50.a1_in1k") == 0
    printed = capsys.readouterr().out
    for words in (
        "layer4",
        "25.6M (25,557,032)",
        "4.09G at 224",
        "apache-2.0",
        "resnet50.a1_in1k",
        "0.485, 0.456, 0.406",
        "https://arxiv.org/abs/1512.03385  ResNet\n",
    ):
        assert words in printed, words
    assert run("info", "resnet18", "--json", "--output-stride", 8) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["params"] == 11689512 and row["outputs"][-1]["reduction"] == 8


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(Path(featnet.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--stride", "4", "--levels", "4", "--licence", "apache-2.0", "--sort", "params"],
        ["info", "resnet50"],
        ["info", "resnet5O"],
        ["export", "swin_t", "--out", "o.onnx"],
        ["completion", "bash"],
    ],
)
def test_no_torch_is_imported_for_what_tables_know(arguments: list[str]) -> None:
    """A third of a second of the processor's time, of which half is Python's own start."""
    code = (
        "import sys, time\nfrom featnet.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'torch', 'PIL', 'numpy'} & set(sys.modules)))\n"
        "print('SECONDS', time.process_time())  # of the processor"
    )
    output = fresh(code)
    assert "LOADED []" in output, output
    assert float(re.findall(r"SECONDS (\S+)", output)[0]) < 0.3


# Words ------------------------------------------------------------------------------------------


def test_version_help_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0 and featnet.__version__ in capsys.readouterr().out
    assert run() == 0
    assert "extract" in capsys.readouterr().out


COMMANDS = ["extract", "list", "info", "prefetch", "convert", "export", "doctor", "completion"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    assert f"examples:\n  featnet {command}" in capsys.readouterr().out.replace('eval "$(', "")


def test_the_parser_knows_the_librarys_words() -> None:
    from featnet.cli import parser
    from featnet.images import fits, pooling

    assert tuple(fits.FITS) == parser.FITS and pooling.POOLS == parser.POOLS
    assert registry.SORTS == parser.SORTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["extrat", "x"], "Did you mean 'extract'"),
        (["list", "--max-parms", "3M"], "Did you mean '--max-params'"),
        (["list", "--max-params", "many"], "no number such as"),
        (["extract", "x.png", "--fit", "crp"], "Did you mean 'crop'"),
    ],
)
def test_words_that_are_misspelled(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2 and words in capsys.readouterr().err


ALIASES = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_v2_b": "swinv2_base_window8_256",
    "vit_b_16": "vit_base_patch16_224",
    "efficientnet_v2_m": "efficientnetv2_m",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "regnet_y_1_6gf": "regnety_016",
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2",
    "facebook/dinov2-small": "vit_small_patch14_dinov2",
    "facebook/convnext-tiny-224": "convnext_tiny",
    "microsoft/swin-tiny-patch4-window7-224": "swin_tiny_patch4_window7_224",
    "microsoft/resnet-50": "resnet50",
    "openai/clip-vit-base-patch32": "vit_base_patch32_clip_224.openai",
    "ViT-B/32": "vit_base_patch32_clip_224",
    "ResNet50": "resnet50",
}


@pytest.mark.parametrize("name", ALIASES)
def test_names_of_other_libraries(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = f"{name!r} is {ALIASES[name]!r} here"
    with pytest.raises(featnet.errors.UnknownModelError) as caught:
        featnet.create_model(name)
    assert expected in str(caught.value)
    assert expected in refusal(capsys, run("info", name))


def test_all_names_of_torchvisions_families(torchvision: Any) -> None:
    """Each that is not ours already and whose architecture is, gets its name."""
    from featnet import aliases

    ours = registry._names()
    others = [n for n in torchvision.models.list_models(torchvision.models) if n not in ours]
    wanted = [n for n in others if re.match(r"(vit|swin|regnet|mobilenet|efficientnet)_", n)]
    assert wanted and [n for n in wanted if not aliases.suggest(n, ours)] == []


def test_arguments_of_other_libraries() -> None:
    for options, words in (
        (dict(weights="DEFAULT"), "weights= is torchvision's: say pretrained=True"),
        (dict(out_features=["stage2"]), "say out_indices="),
        (dict(pretrained="imagenet"), "pretrained='imagenet': True, False or None"),
        (dict(features_only=True, global_pool="avg"), "featnet.pool_features"),
    ):
        with pytest.raises(ArgumentError, match=words):
            featnet.create_model(NAME, **options)
    with pytest.raises(featnet.errors.UnknownModelError, match="is a URL"):
        featnet.create_model("https://huggingface.co/timm/resnet18")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor") == 0
    printed = capsys.readouterr().out
    for words in (
        featnet.__version__,
        torch.__version__.partition("+")[0],
        "threads",
        "demo",
        "folder",
    ):
        assert words in printed
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["packages"]["torch"] == torch.__version__


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS) and "output-stride" in script


def test_bash_completes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("completion", "bash") == 0
    script = capsys.readouterr().out
    for words, expected in (
        (["featnet", "ext"], "extract"),
        (["featnet", "list", "--max-p"], "--max-params"),
    ):
        quoted = " ".join(words)
        code = (
            f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _featnet; "
            'echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]


def test_python_m_featnet() -> None:
    code = (
        "import runpy, sys; sys.argv = ['featnet', '--version']; "
        "runpy.run_module('featnet', run_name='__main__')"
    )
    assert fresh(code) == f"featnet {featnet.__version__}\n"
