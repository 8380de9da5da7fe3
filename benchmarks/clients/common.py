"""What the uses of several libraries share."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import types
from typing import Any

import torch


def module_alone(name: str, distribution: str) -> Any:
    """Import one module of a library without the ``__init__`` of the packages it is in, which need
    compiled operators."""
    root = importlib.metadata.distribution(distribution).locate_file("")
    *parents, _ = name.split(".")
    for end in range(1, len(parents) + 1):
        package = types.ModuleType(".".join(parents[:end]))
        package.__path__ = [str(root.joinpath(*parents[:end]))]
        sys.modules[package.__name__] = package
    return importlib.import_module(name)


def images(side: int = 64, *, count: int = 2, channels: int = 3) -> torch.Tensor:
    """Random images (N, C, side, side), the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, side, side, generator=generator)
