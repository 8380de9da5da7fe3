"""Types: mypy, strict, over the whole package."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_mypy() -> None:
    api = pytest.importorskip("mypy.api")
    root = Path(__file__).parents[1]
    found, errors, code = api.run(
        ["--config-file", str(root / "pyproject.toml"), str(root / "featnet")]
    )
    assert code == 0, found + errors
