"""The benchmarks: tables and their pages, the overview made of them, and the GPU command."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import command, families, overview, pages
from benchmarks.common import TIMES, Table, alternate, summarise
from benchmarks.core import FAMILIES as MADE
from benchmarks.engines import NAMES as ENGINES
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import figures
from benchmarks.gpu.record import Outcome, Record
from benchmarks.large import NAMES as LARGE
from featnet import registry

TABLE = Table(
    "Some networks, cpu",
    ["model", "library", *TIMES],
    [
        ["a", "timm", "1,000.5", "1.00", "-"],
        ["a", "featnet", "500.0", "2.01", "1.90 to 2.10"],
        ["b", "featnet", "2.0", "-", "-"],
        ["c", "failed: a | b"],
    ],
    "A note.",
    "some",
    "Measured on 2026-01-02: a machine, 1 torch thread; torch 0; `python -m nothing`.",
)


def test_known_networks() -> None:
    """Every name that is timed is one of the registry's."""
    names = {*families.NAMES, *families.HEADS, *MADE, *ENGINES, *LARGE}
    names |= {*figures.FAMILIES, *figures.QUICK}
    assert sorted(names - {*registry.list_models()}) == []


# Tables and pages --------------------------------------------------------------------------------


def test_a_table_is_read_as_it_was_written() -> None:
    assert pages.parse(str(TABLE), "some") == TABLE


def test_numbers_of_a_column() -> None:
    assert TABLE.column(TIMES[1], library="featnet") == {"a": 2.01}
    assert TABLE.column(TIMES[0], library="timm") == {"a": 1000.5}
    assert TABLE.column("no column") == {}


NONE = ("## Title\n\nNo table.\n", "## Title\n\n| a |\n| --- |\n| 1 | 2 |\n")


@pytest.mark.parametrize("section", NONE)
def test_a_section_that_is_no_table(section: str) -> None:
    with pytest.raises(ValueError, match="is not one table with a header"):
        pages.parse(section)


def test_a_table_takes_the_place_of_its_own_and_of_no_other(tmp_path: Path) -> None:
    other = dataclasses.replace(TABLE, title="Other networks, cpu")
    path = tmp_path / "some.md"
    path.write_text(f"# By hand\n\nProse.\n\n{TABLE}\n{other}", encoding="utf-8")
    new = dataclasses.replace(TABLE, rows=[["z", "featnet", "1.0", "1.00", "-"]])
    assert pages.put(tmp_path, new) == path
    assert path.read_text(encoding="utf-8") == f"# By hand\n\nProse.\n\n{new}\n{other}"
    pages.put(tmp_path, dataclasses.replace(TABLE, title="Third"))
    assert [table.title for table in pages.read(path)[1]] == [TABLE.title, other.title, "Third"]


def test_a_command_writes_its_table_and_the_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call rewrites one page: the others keep every byte."""
    folder = tmp_path / "benchmarks"
    row = overview.ROWS[3]
    first = dataclasses.replace(TABLE, page=row.page, title=row.title, measured="")
    pages.put(folder, dataclasses.replace(TABLE, page="other"))
    before = (folder / "other.md").read_bytes()
    parser = command.parser_of("benchmarks.x", None)
    args = command.parsed(parser, ["--threads", "1", "--out", str(folder)])
    assert command.report(args, iter([first]), ()) == 0
    assert (folder / "other.md").read_bytes() == before
    (table,) = pages.read(folder / f"{row.page}.md")[1]
    assert re.fullmatch(MEASURED, table.measured)
    assert table.measured.endswith("`python -m benchmarks.x --threads 1`.")
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert f"| {row.what} | 2.01 | " in page and table.measured in page
    assert (tmp_path / "benchmarks.svg").exists()


def test_more_threads_are_another_table(tmp_path: Path) -> None:
    args = command.parsed(
        command.parser_of("benchmarks.x", None), ["--threads", "2", "--out", str(tmp_path / "b")]
    )
    try:
        command.report(args, iter([TABLE]), ())
    finally:
        torch.set_num_threads(1)
    (table,) = pages.read(tmp_path / "b" / "some.md")[1]
    assert table.title == f"{TABLE.title}, 2 threads" and "2 torch threads" in table.measured


def test_quick_figures_are_none_for_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command.parser_of("benchmarks.x", None)
    command.add_device(parser)
    with pytest.raises(SystemExit):
        command.parsed(parser, ["--quick", "--out", str(pages.FOLDER)])
    assert "none for docs/benchmarks" in capsys.readouterr().err


# The documentation's -----------------------------------------------------------------------------

MEASURED = (
    r"Measured on \d{4}-\d\d-\d\d( and \d\d)?: .*\d+ cores.*, \d+ torch threads?.*; Python "
    r"[\d.]+, torch [\d.]+.*; `python -m benchmarks.*`\."
)


@pytest.mark.parametrize("path", sorted(pages.FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_every_table_says_when_where_and_how(path: Path) -> None:
    for table in pages.read(path)[1]:
        assert re.fullmatch(MEASURED, table.measured), table.title


def test_the_overview_is_what_its_command_writes() -> None:
    written = pages.FOLDER.with_suffix(".md").read_text(encoding="utf-8")
    assert written == overview.page(pages.FOLDER)
    for row in overview.ROWS:
        assert f"| {row.what} | not measured" not in written


def test_commands_of_the_overview_exist() -> None:
    root = pages.FOLDER.parents[1]
    for words in overview.COMMANDS:
        module = words.split()[2].replace(".", "/")
        assert (root / f"{module}.py").exists(), words
    named = {page for names in overview.COMMANDS.values() for page in names}
    assert named == {path.stem for path in pages.FOLDER.glob("*.md")}


def test_each_mode_has_a_page() -> None:
    assert families.PAGES.keys() == {mode for mode, _, _ in families.MODES.values()}
    assert {*families.PAGES.values()} <= {path.stem for path in pages.FOLDER.glob("*.md")}


# Timing ------------------------------------------------------------------------------------------


def test_ratios_are_those_within_a_round() -> None:
    rounds = [{"timm": 2.0 * slow, "featnet": 1.0 * slow} for slow in (1, 100, 7)]
    timing = summarise(rounds, "timm")["featnet"]
    assert (timing.ratio, timing.low, timing.high) == (2.0, 2.0, 2.0)


def test_short_calls_get_more_rounds_while_there_is_time() -> None:
    calls = []
    alternate({"timm": lambda: calls.append(0)}, rounds=2, warmup=0, enough=0.0)
    assert len(calls) == 2
    alternate({"timm": lambda: calls.append(0)}, rounds=2, warmup=0, enough=60.0)
    assert len(calls) == 2 + 30


# The GPU command ---------------------------------------------------------------------------------


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but torch, safetensors and huggingface_hub is there."""
    absent = ("timm", "torchvision", "numpy", "pytest", "helpers", "PIL", "onnx", "onnxruntime")
    real: Callable[..., Any] = builtins.__import__

    def restricted(name: str, *args: Any, **kwargs: Any) -> Any:
        own = str((args[0] or {}).get("__name__", "")).partition(".")[0] if args else ""
        if own in ("benchmarks", "featnet", "safetensors") and name.partition(".")[0] in absent:
            raise ImportError(f"{own} imports {name}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", restricted)
    monkeypatch.setattr(families.Pair, "has_peer", False)


@pytest.mark.usefixtures("_alone")
def test_the_gpu_command_without_a_gpu(tmp_path: Path) -> None:
    """All but CUDA runs: each check passes or needs CUDA; each table is there, or left out."""
    words = ["--device", "cpu", "--quick", "--minutes", "60", "--out", str(tmp_path)]
    assert gpu.main(words) == 0
    data = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    outcomes = {check["check"]: check["outcome"] for check in data["checks"]}
    assert {*outcomes.values()} == {"passed", "needs CUDA"} and data["failures"] == []
    assert outcomes["no host synchronisation: test_vit, hook net"] == "needs CUDA"
    assert outcomes["output stride 8, bfloat16, channels_last, compiled"] == "passed"
    titles = [table["title"] for table in data["tables"]]
    assert titles == [part.title for part in figures.PARTS if not part.cuda]
    assert data["left_out"] == {"CUDA graphs": "needs CUDA"}
    for table in data["tables"]:
        assert all(len(row) == len(table["header"]) for row in table["rows"])
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "python -m benchmarks.gpu --device cpu --quick" in page and "- CUDA graphs: " in page


def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "--device cpu --quick" in capsys.readouterr().err


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path, "Measured.")


@pytest.fixture
def budget(record: Record) -> Iterator[gpu.Budget]:
    made = gpu.Budget(3600, record)
    yield made
    made.close()


def test_what_fails_hides_nothing(
    record: Record, budget: gpu.Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(setting: object, name: str) -> list[list[str]]:
        """A note."""
        if name == "test_resnet":
            raise RuntimeError("no kernel")
        return [[name, "1"]]

    monkeypatch.setattr(figures, "QUICK", ("test_resnet", "test_vit"))
    part = figures.Part("Title", fails, ("model", "ms"))
    gpu.measure(part, gpu.Setting("cpu", quick=True), budget, record)
    record.add(Outcome("a check", "FAILED", "AssertionError"))
    data = json.loads((record.folder / "gpu.json").read_text(encoding="utf-8"))
    assert data["tables"][0]["rows"] == [
        ["test_resnet", "failed: RuntimeError: no kernel"],
        ["test_vit", "1"],
    ]
    assert data["failures"] == ["a check", "Title: test_resnet"]


def test_what_does_not_fit_into_the_time_is_named(
    record: Record, budget: gpu.Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = figures.Part("Title", lambda setting, name: [[name, "1"]], ("model", "ms"), guess=9.0)
    monkeypatch.setattr(gpu.Budget, "left", 8.0)
    setting = gpu.Setting("cpu", quick=True)
    gpu.measure(part, setting, budget, record)
    assert record.left_out == {f"Title: {n}": "no time left" for n in part.chosen(setting)}
    monkeypatch.setattr(gpu.Budget, "left", -1.0)
    gpu.check(setting, budget, record)
    assert {outcome.outcome for outcome in record.outcomes} == {"needs CUDA", "no time left"}


def test_nothing_outlasts_the_time(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is ended, with its name and all that was found before in the files."""
    ended: list[int] = []
    monkeypatch.setattr(gpu.os, "_exit", ended.append)
    record.add(Outcome("before", "passed"))
    budget = gpu.Budget(5.01, record)
    budget.at = "what hangs"
    for _ in range(500):
        if ended:
            break
        time.sleep(0.01)
    budget.close()
    data = json.loads((record.folder / "gpu.json").read_text(encoding="utf-8"))
    assert ended == [1] and data["left_out"] == {"what hangs": "cut off when the time was over"}
    assert [check["check"] for check in data["checks"]] == ["before"]
