"""The features of many images in a folder: what is written, resumed, refused and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import featnet
from featnet.errors import ArgumentError

ROOT = Path(__file__).parents[1]
COUNT, BROKEN = 23, (4, 5, 17)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three sizes, three of them broken, in two folders."""
    root = tmp_path_factory.mktemp("photos")
    (root / "below").mkdir()
    for i in range(COUNT):
        path = root / ("below" if i % 3 else "") / f"{i:02}.png"
        Image.effect_noise((40 + 8 * (i % 3), 32), 80).convert("RGB").save(path)
        if i in BROKEN:
            data = path.read_bytes()
            path.write_bytes({4: b"", 5: b"no image", 17: data[: len(data) // 2]}[i])
    return root


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return featnet.create_model("test_resnet", features_only=True, out_indices=(-1, 0)).eval()


def run(net: Any, images: object, out: Path, **options: Any) -> Any:
    options = {"workers": 0, "batch_size": 4, "shard_size": 8, "progress": False, **options}
    return featnet.extract_images(net, images, out=out, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def alone(net: Any, path: Path, transform: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        return [x[0] for x in net(featnet.pad_to_divisor(transform([path]), net))]


@pytest.mark.parametrize("table", ["parquet", "npy"])
def test_vectors(table: str, net: Any, photos: Path, tmp_path: Path) -> None:
    if table == "parquet":
        pytest.importorskip("pyarrow")
    summary = run(net, photos, tmp_path, pool="gem", table=table)
    assert (summary.images, summary.failed, summary.kept) == (COUNT, 3, 0)
    features = featnet.read_features(tmp_path)
    keys = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    bad = [key for key in keys if int(key[-6:-4]) in BROKEN]
    assert list(features) == [key for key in keys if key not in bad]
    assert sorted(features.errors) == bad
    transform = featnet.create_transform(net)
    for key in list(features)[::6]:
        maps = [x[None] for x in alone(net, photos / key, transform)]
        torch.testing.assert_close(features[key], featnet.pool_features(maps, "gem")[0])
        assert features.record(key)["image"] == str(photos / key)
    every = features.matrix()
    assert len(every) == COUNT - 3 and torch.equal(every[2], features[list(features)[2]])
    lines = [json.loads(x) for x in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == bad and "not an image" in lines[0]["error"]


@pytest.mark.parametrize("fit", ["pad", "keep"])
def test_maps(fit: str, net: Any, photos: Path, tmp_path: Path) -> None:
    """Those of inputs that differ in size too, in the order of the network's levels."""
    transform = featnet.create_transform(net, fit=fit, input_size=64 if fit == "pad" else None)
    assert run(net, photos, tmp_path, transform=transform).failed == 3
    features = featnet.read_features(tmp_path)
    for key in list(features)[::4]:
        maps = features[key]
        assert list(maps) == net.feature_info.module_name()
        for x, y in zip(maps.values(), alone(net, photos / key, transform), strict=True):
            torch.testing.assert_close(x, y)
    with pytest.raises(ArgumentError, match="holds maps"):
        features.matrix()


def test_processes_change_nothing(net: Any, photos: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, options in {"one": {}, "fork": dict(workers=2, start="fork")}.items():
        run(net, photos, tmp_path / name, pool="avg", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "fork")
    assert torch.equal(state, torch.get_rng_state())
