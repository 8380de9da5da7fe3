"""The documentation is run: every python block of every page, and the README's commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import photographs
import pytest
import torch

from featnet import registry
from featnet.cli import main

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"  # test_contributing.py runs its blocks
CLUSTER = ROOT / "docs" / "ray.md"  # test_ray.py does, on a cluster
PAGES = [ROOT / "README.md", CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
RUN = [page for page in PAGES if page not in (CONTRIBUTING, CLUSTER)]
NETWORK = ("--pretrained", "prefetch")


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """(line number, text) of the fenced blocks in a language."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in found]


def commands() -> list[str]:
    """The README's ``featnet`` commands that need no network."""
    lines = [line for _, block in blocks(ROOT / "README.md", "sh") for line in block.split("\n")]
    return [x for x in lines if x.startswith("featnet ") and not any(n in x for n in NETWORK)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with the photographs; registered models are forgotten afterwards."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    torch.manual_seed(0)
    yield tmp_path


# The first acts on what is imported afterwards, the others run engines (see test_alone.py): pages
# with one of them run in a new interpreter
SWITCHES = ("use_as_timm", ".onnx", "engine=")


def switches(page: Path) -> bool:
    """Whether it changes the interpreter that runs it."""
    code = "".join(text for _, text in blocks(page, "python"))
    return any(words in code for words in SWITCHES)


APART = [page for page in RUN if switches(page)]


# Of these only the modules that the pages import can be had, without what the whole libraries need:
# packages, by distribution, whose __init__ is not run
BARE = {
    "anomalib": "anomalib/models/components/feature_extractors",
    "mmsegmentation": "mmseg/models/backbones",
    "mmpretrain": "mmpretrain/models/backbones",
}
NOT_HERE = {"fastai", "lightly"}  # make consumers leaves them out, and their pages say so

RUNNER = """
import importlib.metadata as metadata, json, socket, sys, types
socket.getaddrinfo = None
for distribution, path in BARE.items():
    try:
        root = metadata.distribution(distribution).locate_file("")
    except metadata.PackageNotFoundError:
        continue
    parts = path.split("/")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root.joinpath(*parts[:end]))]
sys.modules["mmcv"] = types.ModuleType("mmcv")  # imported, and not used
missing = set()
for page, sources in PAGES.items():
    namespace = {"__name__": page}
    for source in sources:
        try:
            exec(compile(source, page, "exec"), namespace)
        except ModuleNotFoundError as error:  # a library that is not installed
            missing.add((error.name or "timm").partition(".")[0])
print(json.dumps(sorted(missing)))
"""


@pytest.mark.parametrize("folder", sorted({page.parent for page in APART}), ids=lambda f: f.name)
def test_python_blocks_apart(folder: Path, workplace: Path) -> None:
    """The pages of a folder in one interpreter, one after the other, each in names of its own."""
    pages = [page for page in APART if page.parent == folder]
    if any("torchvision" in page.read_text(encoding="utf-8") for page in pages):
        helpers.peer("torchvision")
    sources = {page.name: [text for _, text in blocks(page, "python")] for page in pages}
    code = f"PAGES = {sources!r}\nBARE = {BARE!r}\n{RUNNER}"
    if "demo_weights" in code:
        photographs.trained()  # or skip
    command, before = [sys.executable, "-W", "ignore", "-c", code], sorted(workplace.rglob("*"))
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(workplace.rglob("*")) == before, "blocks leave files in the reader's folder"
    missing = {*json.loads(done.stdout.splitlines()[-1])}
    assert not missing & {"timm", "featnet"}
    if os.environ.get("FEATNET_REQUIRE_PEERS") == "1":
        assert missing <= NOT_HERE


def test_each_library_has_a_page_with_a_block() -> None:
    """The contents name the pages that there are, and each turns the switch on."""
    folder = ROOT / "docs" / "libraries"
    pages = {page.stem for page in folder.glob("*.md")} - {"index"}
    (contents,) = blocks(folder / "index.md", "{toctree}")
    assert {*contents[1].split("\n\n")[1].split()} == pages
    assert all(folder / f"{page}.md" in APART for page in pages)


@pytest.mark.parametrize(
    "page",
    [page for page in RUN if blocks(page, "python") and page not in APART],
    ids=lambda page: page.name,
)
def test_python_blocks(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"{page.name} needs a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    if "demo_weights" in page.read_text(encoding="utf-8"):
        photographs.trained()  # or skip
    namespace: dict[str, Any] = {"__name__": f"docs_{page.stem}"}
    before = sorted(workplace.rglob("*"))
    for line, source in blocks(page, "python"):
        # Empty lines in front, so that a traceback has the page's line numbers
        exec(compile("\n" * line + source, str(page), "exec"), namespace)
    assert sorted(workplace.rglob("*")) == before, "blocks leave files in the reader's folder"


COMING_FROM = ROOT / "docs" / "coming_from.md"
THERE = [(re.sub("^# ", "", text.split("\n")[0]), text) for _, text in blocks(COMING_FROM, "py")]


@pytest.mark.parametrize(("library", "source"), THERE, ids=[library for library, _ in THERE])
@pytest.mark.filterwarnings("ignore")  # theirs
def test_blocks_of_other_libraries(library: str, source: str, workplace: Path) -> None:
    """What a page shows of another library is run by it: the first line says which it is."""
    helpers.peer(library)
    exec(compile(source, str(COMING_FROM), "exec"), {"__name__": library})


def test_each_library_is_shown() -> None:
    """Side by side: a block of theirs, which is run where it can be installed, then one of ours."""
    text = COMING_FROM.read_text(encoding="utf-8")
    shown = re.findall(r"^```(\w+)\n# (\w+)", text, re.MULTILINE)
    assert [library for _, library in shown[1::2]] == ["featnet"] * len(shown[::2])
    run = ["timm", "torchvision", "segmentation_models_pytorch"]
    assert [library for library, _ in THERE] == run
    assert {library for language, library in shown[::2] if language != "py"} == {"MindCV"}


@pytest.mark.parametrize("command", commands())
def test_commands(command: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("PIL.Image")
    if "--demo" in command:
        photographs.trained()  # or skip
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_links() -> None:
    """What a page links to inside the repository is there."""
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        broken = [target for target in targets if not (page.parent / target).exists()]
        assert not broken, f"{page.name}: {broken}"


def test_the_number_of_models() -> None:
    """Where a page counts models, it is the registry that is counted."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    counts = re.findall(r"\b(\d{3,})\s+models\b", text)
    assert counts and {*map(int, counts)} == {len(registry.list_models())}


def test_named_commands_are_targets() -> None:
    """``make demo`` and the others that pages and workflows name exist in the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, *workflows])
    named = set(re.findall(r"(?:^|[`&|:] *)make ([a-z]+)", text, re.MULTILINE))
    assert {"demo", "test", "peers", "consumers"} <= named
    assert not [name for name in named if f"\n{name}:" not in makefile]


def test_blocks_are_found(tmp_path: Path) -> None:
    """The extraction finds blocks, and counts their lines."""
    page = tmp_path / "page.md"
    page.write_text("# a\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n", encoding="utf-8")
    assert blocks(page, "python") == [(3, "x = 1\n")]
    assert blocks(page, "sh") == [(7, "ls\n")]
