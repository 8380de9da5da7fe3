"""What the tests of foreign models share: torchvision's models, and small networks of our own."""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

import helpers
import torch
from torch import nn

from featnet.checkpoints.instant import SkipInit


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """The smallest of each of torchvision's files; with FEATNET_EXHAUSTIVE=1 all of its
    classification models."""
    models = helpers.peer("torchvision.models")
    names = models.list_models(module=models)
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return tuple(names)
    smallest: dict[Any, str] = {}

    def size(name: str) -> int:
        return int(models.get_model_weights(name).DEFAULT.meta["num_params"])

    for name in sorted(names, key=size):
        smallest.setdefault(models.get_model_builder(name).__module__, name)
    return tuple(smallest.values())


# Enough to meet every kind of operation, in seconds
_SOME = (
    "resnet18",
    "densenet121",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "googlenet",
    "swin_t",
)


def some_torchvision_names() -> tuple[str, ...]:
    """A few of torchvision's classification models; with FEATNET_EXHAUSTIVE=1 all."""
    exhaustive = os.environ.get("FEATNET_EXHAUSTIVE") == "1"
    return torchvision_names() if exhaustive else _SOME


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
    if name in ("googlenet", "inception_v3"):
        options.setdefault("init_weights", False)  # what it does takes long
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
