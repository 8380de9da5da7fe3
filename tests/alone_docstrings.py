"""Examples in the docstrings of what runs other engines."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from test_docstrings import APART, alone, module_of, relative, run_examples

__all__ = ["alone"]  # the fixture


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("path", APART, ids=relative)
def test_examples_run(path: Path) -> None:
    assert not (wrong := run_examples(importlib.import_module(module_of(path)))), wrong
