"""``torch.hub`` on this repository, also from a directory with packages of the same names."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import featnet

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hubconf() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf_under_test", ROOT / "hubconf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_entry_points_are_the_registry(hubconf: ModuleType) -> None:
    entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name))]
    assert sorted(entries) == sorted(featnet.list_models())
    assert hubconf.dependencies == ["torch", "safetensors", "huggingface_hub"]


def test_an_entry_point_says_what_it_is(hubconf: ModuleType) -> None:
    entry = hubconf.resnet18
    assert entry.__name__ == "resnet18"
    for part in ("family resnet:", "create_model", "resnet18.a1_in1k", "resnet18.gluon_in1k"):
        assert part in entry.__doc__
    assert "resnet18d" not in entry.__doc__
    bare = next(n for n in featnet.list_models() if not featnet.list_pretrained(n))
    assert "Checkpoints: none" in getattr(hubconf, bare).__doc__


@pytest.mark.parametrize("name", ["resnet51", "_private", "create_model", "__path__"])
def test_other_names_are_no_entry_points(hubconf: ModuleType, name: str) -> None:
    assert not hasattr(hubconf, name)


CODE = """
import torch, pathlib
repo = {root!r}
# list and help have no source= yet: they clone a repository, here it is the one at hand
torch.hub._get_cache_or_reload = lambda *args, **kwargs: repo
hub_list, hub_help = torch.hub.list, torch.hub.help
names = hub_list(repo)
assert "resnet18" in names and "resnet50" in names, names
assert not [n for n in names if n.startswith("_")], names
assert "resnet18.a1_in1k" in hub_help(repo, "resnet18")
net = torch.hub.load(
    repo, "test_resnet", source="local", features_only=True, out_indices=(1, -1), output_stride=8
)
assert [tuple(y.shape[-2:]) for y in net.eval()(torch.zeros(1, 3, 64, 64))] == [(16, 16), (8, 8)]
model = torch.hub.load(repo, "test_resnet", False, source="local", num_classes=7)
assert model.num_classes == 7
import utils, models
assert utils.MINE and models.MINE  # the working directory's own are still there
try:
    torch.hub.load(repo, "resnet51", source="local")
except RuntimeError as error:
    assert "resnet51" in str(error)
else:
    raise AssertionError("an unknown entry point was found")
"""


def test_torch_hub_from_a_directory_with_its_own_packages(tmp_path: Path) -> None:
    for name in ("utils", "models", "layers", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("MINE = True\n", encoding="utf-8")
    (tmp_path / "job.py").write_text(CODE.format(root=str(ROOT)), encoding="utf-8")
    # featnet must come from the repository alone: neither installed nor on the path by chance
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "job.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
