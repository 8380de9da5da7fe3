"""The class of stand-ins for timm's networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ...layers import BlurPool2d

Layer = str | Callable[..., nn.Module]


def smoothing(layer: Any) -> Any:
    """Return anti-aliasing by its name, where timm takes a class too."""
    return {nn.AvgPool2d: "avg", BlurPool2d: "blur"}.get(layer, layer)


class StandIn(type):
    """Class of a stand-in: its instances are also those of the network that it inherits from, so
    that ``isinstance(create_model("resnet18"), timm.models.resnet.ResNet)``."""

    def __instancecheck__(cls, instance: object) -> bool:
        return issubclass(type(instance), cls)

    def __subclasscheck__(cls, kind: type) -> bool:
        own = cls.__bases__[0] if "stands_in" in cls.__dict__ else cls
        return type.__subclasscheck__(own, kind)
