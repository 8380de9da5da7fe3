"""What the tests of foreign models share: torchvision's models, and small networks of our own."""

from __future__ import annotations

import functools
import os
import re
import warnings
from typing import Any

import helpers
import torch
from torch import nn

from featnet.instant import SkipInit


def _kind(name: str) -> tuple[Any, ...]:
    """What tells torchvision's families apart: the part before the size."""
    models = helpers.peer("torchvision.models")
    stem = re.match(r"[a-z]+(_[vxy](?![a-z])\d?)?", name)
    assert stem
    return models.get_model_builder(name).__module__, stem.group(), name.endswith("_bn")


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """The smallest of each of torchvision's families; with FEATNET_EXHAUSTIVE=1 all of its
    classification models."""
    models = helpers.peer("torchvision.models")
    names = models.list_models(module=models)
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return tuple(names)
    smallest: dict[Any, str] = {}

    def size(name: str) -> int:
        return int(models.get_model_weights(name).DEFAULT.meta["num_params"])

    for name in sorted(names, key=size):
        smallest.setdefault(_kind(name), name)
    return tuple(smallest.values())


def light(names: tuple[str, ...], *, also: str) -> tuple[str, ...]:
    """Those of at most 12 million parameters, and one that pools by functions; with
    FEATNET_EXHAUSTIVE=1 all."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return names
    models = helpers.peer("torchvision.models")

    def size(name: str) -> int:
        return int(models.get_model_weights(name).DEFAULT.meta["num_params"])

    return tuple(name for name in names if size(name) <= 12_000_000 or name == also)


def torchvision_model(name: str, *, device: str = "cpu", **options: Any) -> Any:
    """A torchvision model in eval mode, of seeded noise, or on the meta device."""
    models = helpers.peer("torchvision.models")
    with warnings.catch_warnings(), SkipInit():
        warnings.simplefilter("ignore")
        model = models.get_model(name, weights=None, **options).eval()
    return model.to("meta") if device == "meta" else helpers.fill_noise(model)


def side_of(model: nn.Module) -> int:
    """An input side that a torchvision model takes."""
    if hasattr(model, "image_size"):
        return int(model.image_size)
    return {"MaxVit": 224, "Inception3": 128, "AlexNet": 96}.get(type(model).__name__, 64)


class Scaled(nn.Module):
    """A block with what a graph has trouble with: in-place operations and a repeated module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(8, 8, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        y = self.down(x)
        y += 1
        y.mul_(2)  # its result is thrown away, its effect is not
        return self.relu(y)
