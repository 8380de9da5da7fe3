"""An extractor with timm's flat children."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from torch import nn

from ..extraction.extractors import FeatureNet


class FlatFeatureNet(nn.Module):
    """An extractor whose stages are children of its own: ``stages_0`` in the place of
    ``stages.0``, in the order in which they run.

    State-dict keys follow the children, as in timm. Everything else is the extractor's.

    Args:
        net: the extractor, with which modules and tensors are shared.
    """

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.training = net.training
        for name, child in _children(net):
            self.add_module(name, child)
        self.__dict__["net"] = net  # no child: its modules are here under other names

    def forward(self, x: object) -> Any:
        return self.__dict__["net"](x)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.__dict__["net"].train(mode)
        return self

    @property
    def return_layers(self) -> dict[str, str]:
        """Names of children to the keys of what comes out."""
        layers: dict[str, str] = self.__dict__["net"].return_layers
        return {name.replace(".", "_"): key.replace(".", "_") for name, key in layers.items()}

    def __len__(self) -> int:
        return len(self.__dict__["net"])

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name not in modules and "net" in self.__dict__ and not name.startswith("_"):
            return getattr(self.__dict__["net"], name)
        return super().__getattr__(name)


def flatten(net: FeatureNet) -> nn.Module:
    """Return an extractor with flat children; one whose children are flat already as it is."""
    return FlatFeatureNet(net) if any("." in name for name in _levels(net)) else net


def _levels(net: FeatureNet) -> list[str]:
    return [level.module for level in net.feature_info.info]


def _children(net: FeatureNet) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children, in the place of those that hold levels what they hold."""
    holders = {name.partition(".")[0] for name in _levels(net) if "." in name}
    for name, child in net.named_children():
        if name in holders:
            for key, inner in child.named_children():
                yield f"{name}_{key}", inner
        else:
            yield name, child
