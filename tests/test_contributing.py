"""CONTRIBUTING.md: its template is a family that holds the laws, and its mistakes are answered."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fill_noise, image_batch

import featnet
from featnet import registry
from featnet.errors import ArgumentError, UnknownModelError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def template() -> str:
    """The page's one python block."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of families that holds the table of the template's."""
    tags = {"mynet_tiny.untrained": {}, "mynet_small.untrained": {}}
    (tmp_path / "mynet.json").write_text(json.dumps(tags), encoding="utf-8")
    monkeypatch.setattr(registry, "MODELS", tmp_path)
    monkeypatch.setattr(registry, "_registered", {})
    caches = (registry.weights_table, registry._index)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def written(monkeypatch: pytest.MonkeyPatch, source: str) -> Any:
    """The module that a family file of this source is."""
    module: Any = types.ModuleType("featnet.models.mynet")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, "mynet.py", "exec"), module.__dict__)
    return module


def test_the_template_is_a_family(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = written(monkeypatch, template()).FAMILY
    lines = "".join(f"{name} mynet\n" for name in family.variants)
    (models / "index.txt").write_text(lines, encoding="utf-8")
    x = image_batch(33, 64)
    for name in family.variants:
        model: Any = fill_noise(featnet.create_model(name, num_classes=5)).eval()
        net: Any = featnet.FeatureListNet(model, (2, 0))
        with torch.inference_mode():
            maps, every = net(x), model.forward_intermediates(x, intermediates_only=True)
            assert model(x).shape == (1, 5)
        assert all(torch.equal(a, b) for a, b in zip(maps, (every[2], every[0]), strict=True))
        assert net.feature_info.channels() == [y.shape[1] for y in maps]
        assert net.feature_info.sizes((33, 64)) == [tuple(y.shape[2:]) for y in maps]
        assert featnet.create_model(name, features_only=True, output_stride=4)(x)[2].shape[2:] == (
            9,
            16,
        )
        model.set_grad_checkpointing()
        rows = featnet.create_model(name, drop_path_rate=0.5).group_matcher()
        assert {*rows} == {"stem", "blocks"}


def test_a_row_with_an_unknown_argument(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = template().replace("dict(depths=(1, 1), widths=", "dict(depth=(1, 1), widths=")
    assert source != template()
    with pytest.raises(ArgumentError) as caught:
        written(monkeypatch, source)
    message = str(caught.value)
    assert "Row 'mynet_tiny': MyNet got an unexpected keyword argument 'depth'" in message
    assert "'depths'" in message and "It takes depths, widths, in_chans" in message


def test_weights_of_no_variant(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models / "mynet.json").write_text('{"mynet_tinny.in1k": {}}', encoding="utf-8")
    with pytest.raises(ArgumentError, match="'mynet_tinny.in1k' belong to no variant"):
        written(monkeypatch, template())


def test_a_family_that_is_not_in_the_index(models: Path) -> None:
    (models / "mynet.py").write_text(template(), encoding="utf-8")
    (models / "index.txt").write_text("resnet18 resnet\n", encoding="utf-8")
    with pytest.raises(UnknownModelError) as caught:
        featnet.create_model("mynet_small")
    assert "featnet/models/mynet.py names it" in str(caught.value)
    assert "run python -m featnet.registry." in str(caught.value)
    with pytest.raises(UnknownModelError) as caught:
        featnet.create_model("mynet_large")
    assert "index.txt" not in str(caught.value)


def test_the_modules_that_the_page_names_are_there() -> None:
    for path in re.findall(r"`((?:featnet|tests|tools|docs)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists() or "NAME" in path, path
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in tests or (ROOT / "tests" / f"{name}.py").exists(), name
    names = set(re.findall(r"`([A-Z]\w+|\w+_\w+)`", PAGE))
    for name in names & {"Phased", "Branches", "Blocks", "add_branches", "merge_parallel"}:
        assert hasattr(featnet.layers, name), name
