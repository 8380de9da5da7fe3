"""The site: it builds without a warning; its table and its search work in a browser."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest

import featnet
from featnet import registry
from tools import drawings

pytest.importorskip("furo")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.xdist_group("site")  # one build, one browser


def build(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build as ``make docs`` does."""
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "-b", "html"]
    folders = ["-d", str(target.parent / f"{target.name}.doctrees"), str(source), str(target)]
    return subprocess.run(
        [*command, *options, *folders], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "html"
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.running(tmp_path_factory.mktemp("profile")) as window:
        yield window


def test_make_docs_is_what_is_tested() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m sphinx -W -n --keep-going -q -b html" in recipe


def test_public_names_have_examples(site: Path) -> None:
    """Each name of the front door is in the reference, with its example."""
    text = "\n".join(p.read_text(encoding="utf-8") for p in (site / "reference").glob("*.html"))
    parts = re.split(r'<dt[^>]* id="(featnet\.\w+)">', text)[1:]
    entries = dict(zip(parts[::2], parts[1::2], strict=True))
    assert entries.keys() >= {f"featnet.{name}" for name in featnet.__all__}
    lacking = [n for n in featnet.__all__ if "&gt;&gt;&gt; " not in entries[f"featnet.{n}"]]
    assert not lacking


FAULTS = """# Page

[a page that is not there](nowhere.md), [a heading that is not there](index.md#here)

```{eval-rst}
:func:`featnet.create_modle`
```
"""


def test_faults_fail_the_build(tmp_path: Path) -> None:
    """A small site under the same settings: each fault is a warning, and warnings are errors."""
    source = tmp_path / "docs"
    source.mkdir()
    (source / "conf.py").symlink_to(DOCS / "conf.py")
    (source / "index.md").write_text("# Home\n\n```{toctree}\npage\n```\n", encoding="utf-8")
    (source / "page.md").write_text(FAULTS, encoding="utf-8")
    (source / "lost.md").write_text("# In no contents\n", encoding="utf-8")
    done = build(source, tmp_path / "html")
    assert done.returncode != 0
    for message in (
        "'nowhere.md'",
        "'here'",
        "featnet.create_modle",
        "lost.md: WARNING: document isn't included in any toctree",
        "the reference lacks the public name featnet.create_model",
    ):
        assert message in done.stderr


def test_figures_name_their_command() -> None:
    """A page with measured times or rates names a command that measures."""
    measured = re.compile(r"\d(?: ms| img/s| MiB| GiB)\b|\| [\d.]+ (?:s|MB|GB) \|")
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        if measured.search(text):
            assert re.search(r"python -m |python [\w/]+\.py|featnet \w+", text), path.name


# The table of models -----------------------------------------------------------------------------

SHOWN = "[...document.querySelectorAll('#models-table tbody tr:not([hidden])')]"


def column(page: browser.Browser, number: int) -> list[str]:
    values: list[str] = page.run(
        f"{SHOWN}.map(r => r.cells[{number}].dataset.value ?? r.cells[{number}].textContent)"
    )
    return values


def test_the_csv_file_has_every_model(site: Path) -> None:
    with (site / "models.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == registry.list_models()
    row = rows["resnet50"]
    net = featnet.create_model("resnet50")
    assert int(row["parameters"]) == sum(p.numel() for p in net.parameters())
    assert row["channels"] == "64 256 512 1024 2048" and row["reductions"] == "2 4 8 16 32"
    assert row["input"] == "224x224" and row["sizes"] == "any"
    for name in registry.list_models()[::50]:
        for checkpoint in registry.checkpoints_of(name):
            licence = getattr(registry.get_weights(checkpoint), "license", None) or "not stated"
            lines = dict(line.split(": ") for line in rows[name]["licences"].split("; "))
            assert (checkpoint.partition(".")[2] or name) in lines[licence].split(", ")


def test_the_table_is_searched_and_sorted(site: Path, page: browser.Browser) -> None:
    page.errors.clear()
    page.resize(1280, 900)
    page.open((site / "models.html").as_uri())
    assert column(page, 0) == registry.list_models()
    page.click("#models-search")
    page.write("ConvNeXt apache-2.0")
    names = column(page, 0)
    assert "convnext_atto" in names and "resnet50" not in names
    count = page.run("document.getElementById('models-count').textContent")
    assert count == f"{len(names)} of {len(registry.list_models())} models"
    page.click("#models-table thead th:nth-child(3) button")
    numbers = [int(value) for value in column(page, 2)]
    assert numbers == sorted(numbers) and len(numbers) == len(names)
    page.click("#models-table thead th:nth-child(3) button")
    assert [int(value) for value in column(page, 2)] == numbers[::-1]
    page.picture(site / "models.png")
    page.open((site / "models.html").as_uri() + "?again#search=resnet50")
    names = column(page, 0)
    assert "resnet50" in names and all("resnet50" in name for name in names)
    assert page.errors == []


@pytest.mark.parametrize(
    "name", ["models.html", "index.html", "benchmarks.html", "how_it_works.html"]
)
def test_a_phone_shows_it(site: Path, page: browser.Browser, name: str) -> None:
    """Nothing is wider than the window but what scrolls in a box of its own; letters are large."""
    page.errors.clear()
    page.resize(390, 844, mobile=True)
    page.open((site / name).as_uri())
    assert page.run("document.documentElement.scrollWidth") <= 390
    if name == "models.html":
        head = "document.querySelector('#models-table tbody th')"
        assert float(page.run(f"getComputedStyle({head}).fontSize").removesuffix("px")) >= 12
        page.run("document.querySelector('.models-box').scrollLeft = 400")
        assert 0 <= page.run(f"{head}.getBoundingClientRect().left") < 40  # it stays in sight
    page.picture(site / f"{name}.png")
    assert page.errors == []


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_a_committed_drawing_is_what_the_tool_draws(name: str) -> None:
    path = DOCS / "drawings" / f"{name}.svg"
    assert path.read_text(encoding="utf-8") == drawings.DRAWINGS[name]()


# The search --------------------------------------------------------------------------------------

# What a newcomer types, and a page that must be among the first five
QUESTIONS = {
    "one vector per image": "faq.html",
    "freeze": "finetuning.html",
    "lower learning rate": "faq.html",
    "U-Net": "heads.html",
    "FPN": "heads.html",
    "detector": "heads.html",
    "ONNX": "deploy.html",
    "DINOv2 at 700 x 500": "faq.html",
    "attention maps": "transformers.html",
    "a folder": "faq.html",
    "multi-GPU": "faq.html",
    "which model may be used commercially": "faq.html",
    "my .pth does not load": "faq.html",
    "add my network": "faq.html",
    "odd sizes": "faq.html",
    "memory": "finetuning.html",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_search_finds(site: Path, page: browser.Browser, question: str) -> None:
    page.resize(1280, 900)
    page.open(f"{(site / 'search.html').as_uri()}?q={urllib.parse.quote_plus(question)}")
    links = "[...document.querySelectorAll('#search-results li > a')]"
    page.wait("document.querySelector('.search-summary')?.textContent.includes('finished')")
    found = page.run(f"{links}.map(a => a.getAttribute('href').split('?')[0].split('#')[0])")
    assert QUESTIONS[question] in found[:5], found[:10]
