"""Style: the rules and the format of ruff hold over the whole tree, and types are said."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "--no-cache", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_few_annotations_say_nothing() -> None:
    """At most one in twenty outside the families is ``Any``, which checks nothing."""
    core = [p for p in (ROOT / "featnet").rglob("*.py") if p.parts[-2] != "models"]
    annotations = [x for path in core for x in _annotations(ast.parse(path.read_text("utf-8")))]
    plain = sum(isinstance(x, ast.Name) and x.id == "Any" for x in annotations)
    assert len(annotations) > 4000 and plain / len(annotations) <= 0.05


def _annotations(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as annotation):
                yield annotation
            case ast.AnnAssign(annotation=annotation):
                yield annotation
            case ast.FunctionDef(returns=ast.expr() as returns):
                yield returns


def test_every_extra_that_is_named_exists() -> None:
    """pip only warns of one that does not."""
    paths = [
        ROOT / "pyproject.toml",
        ROOT / "Makefile",
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
    ]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    named = {
        extra
        for text in texts
        for group in re.findall(r"(?:\bfeatnet|'\.)\[([a-z,]+)\]", text)
        for extra in group.split(",")
    }
    extras = tomllib.loads(texts[0])["project"]["optional-dependencies"]
    assert {"docs", "demo"} <= named <= extras.keys()
