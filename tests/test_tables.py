"""tools/tables.py: what it writes from timm's registry is what the repository holds."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import helpers
import pytest

import featnet

TOOL = Path(__file__).resolve().parent.parent / "tools" / "tables.py"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    helpers.peer("timm")
    spec = importlib.util.spec_from_file_location("tables", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module  # where dataclasses and pickle look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", featnet.list_modules())
def test_a_committed_table_is_what_the_tool_writes(tables: Any, family: str, tmp_path: Any) -> None:
    tables.write_table(family, tables.modules_of(family), tmp_path)
    written = (tmp_path / f"{family}.json").read_bytes()
    assert written == (tables.MODELS / f"{family}.json").read_bytes()


def test_it_writes_every_module_of_the_peer(tables: Any, tmp_path: Any) -> None:
    """Also those of families that are not here: the next one is among them."""
    for module in tables._module_to_models:
        cfgs = tables.write_table(module, [module], tmp_path)
        assert list(tables.load(tmp_path / f"{module}.json")) == list(cfgs)


def test_pruned_shapes(tables: Any) -> None:
    variant = "efficientnet_b1_pruned"
    committed = tables.json.loads((tables.MODELS / "pruned.json").read_text(encoding="utf-8"))
    assert tables.differences(variant) == committed[variant]


def test_the_command_line(tables: Any, tmp_path: Any, capsys: Any) -> None:
    tables.main(["vovnet", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "('stem.0.conv', 'head.fc'): " in shown
    assert "/2 64 'stem.1' /4 256 'stages.0'" in shown
    with pytest.raises(ValueError, match="no models in a module 'vovnett'; near it: vovnet"):
        tables.main(["vovnett", "--out", str(tmp_path)])


def test_a_field_that_weights_lacks_is_not_dropped(
    tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tables.PretrainedCfg(label_names=("cat",))
    monkeypatch.setattr(tables, "get_arch_pretrained_cfgs", lambda variant: {variant: cfg})
    with pytest.raises(ValueError, match=r"vgg11: Weights has no field for label_names=\('cat',\)"):
        list(tables.checkpoints(["vgg"]))
