"""Extractors with the interface that other libraries expect of a backbone.

None of those libraries is imported: what they ask of a backbone is a few attributes and the form of
its output. Each adapter is a module around an extractor (``create_model(..., features_only=True)``,
``FeatureListNet(model, ...)``, ``create_feature_extractor(...)``), whose ``feature_info`` it reads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ArgumentError
from ..features import FeatureInfo


class ShapeSpec(NamedTuple):
    """What detectron2 wants to know of a map; fields as in its own ``ShapeSpec``."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class _Adapter(nn.Module):
    """An extractor, and names for its maps.

    Raises:
        ArgumentError: no extractor, not as many distinct names as maps, or maps of layouts other
            than (N, C, H, W).
    """

    def __init__(self, net: nn.Module, names: Sequence[str] | None, prefix: str) -> None:
        super().__init__()
        info = getattr(net, "feature_info", None)
        if not isinstance(info, FeatureInfo) or not callable(getattr(net, "forward", None)):
            raise ArgumentError(
                f"{type(net).__name__} is no extractor: create_model(..., features_only=True) or "
                "featnet.extract(model) makes one."
            )
        if getattr(net, "output_fmt", "NCHW") != "NCHW":
            raise ArgumentError(f"output_fmt={net.output_fmt!r}: an adapter takes NCHW.")
        given = [f"{prefix}{i}" for i in range(len(info))] if names is None else list(names)
        if isinstance(names, str) or len(set(given)) != len(info) or len(given) != len(info):
            raise ArgumentError(f"names={names!r}: {len(info)} distinct names are expected.")
        self.net, self.names = net, tuple(given)

    @property
    def feature_info(self) -> FeatureInfo:
        """The extractor's."""
        info: FeatureInfo = self.net.feature_info  # type: ignore[assignment]
        return info

    @property
    def size_divisibility(self) -> int:
        """The coarsest reduction: an input whose sides it divides has maps that fit each other."""
        return max(self.feature_info.reduction())

    def maps(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """(N, C, H, W) -> name to map."""
        found = self.net(x)
        values = found.values() if isinstance(found, dict) else found
        return OrderedDict(zip(self.names, values, strict=True))


class TorchvisionBackbone(_Adapter):
    """For torchvision's detection models: an OrderedDict of maps, and ``out_channels``.

    Args:
        net: an extractor.
        neck: what the maps go through, an ``OrderedDict -> OrderedDict`` such as
            ``torchvision.ops.FeaturePyramidNetwork(net.feature_info.channels(), 256)``.
        out_channels: of every map behind the neck; without one it is the maps', which must be one.
        names: of the maps; "0", "1", ... by default, which ``MultiScaleRoIAlign`` is given.

    Raises:
        ArgumentError: ``out_channels`` is not said and not one number.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        neck: nn.Module | None = None,
        out_channels: int | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(net, names, "")
        self.neck = neck
        channels = set(self.feature_info.channels())
        if out_channels is None and neck is not None:
            found = getattr(neck, "out_channels", None)
            blocks = [m for m in neck.modules() if isinstance(m, nn.Conv2d)]
            channels = {found} if isinstance(found, int) else {b.out_channels for b in blocks}
        if out_channels is None and len(channels) != 1:
            raise ArgumentError(
                f"The maps have {sorted(channels)} channels: give out_channels, or a neck that "
                "makes them one number."
            )
        self.out_channels = channels.pop() if out_channels is None else out_channels

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        found = self.maps(x)
        return found if self.neck is None else self.neck(found)


class Detectron2Backbone(_Adapter):
    """For detectron2: a dict of maps, ``output_shape()``, ``size_divisibility``.

    Args:
        net: an extractor.
        names: of the maps; by default "res1", "res2", ... after their reductions (``res2`` is at
            4), which detectron2's FPN and heads ask for.
    """

    def __init__(self, net: nn.Module, *, names: Sequence[str] | None = None) -> None:
        info = getattr(net, "feature_info", None)
        if names is None and isinstance(info, FeatureInfo):
            names = [f"res{max(0, level.reduction.bit_length() - 1)}" for level in info]
            names = names if len(set(names)) == len(names) else None
        super().__init__(net, names, "p")
        self._out_features = list(self.names)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(self.maps(x))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Name to channels and stride."""
        pairs = zip(self.names, self.feature_info, strict=True)
        return {name: ShapeSpec(channels=f.channels, stride=f.reduction) for name, f in pairs}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """None: the maps of any size fit, see ``size_divisibility`` for those of an FPN."""
        return {}


class BackboneOutput:
    """What transformers reads of a backbone's output: ``feature_maps``, ``hidden_states``,
    ``attentions``; by name, key or position, those that are not None."""

    def __init__(self, feature_maps: tuple[torch.Tensor, ...]) -> None:
        self.feature_maps = feature_maps
        self.hidden_states = None
        self.attentions = None

    def __getitem__(self, key: int | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else (self.feature_maps,)[key]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.feature_maps,))

    def __len__(self) -> int:
        return 1


class TransformersBackbone(_Adapter):
    """For models of transformers that take a backbone: ``feature_maps``, ``channels``.

    Args:
        net: an extractor.
        names: of the stages; "stage1", "stage2", ... by default.
    """

    def __init__(self, net: nn.Module, *, names: Sequence[str] | None = None) -> None:
        given = names
        if given is None and isinstance(getattr(net, "feature_info", None), FeatureInfo):
            info: Any = net.feature_info
            given = [f"stage{i + 1}" for i in range(len(info))]
        super().__init__(net, given, "stage")
        self.stage_names = ["stem", *self.names]
        self.out_features = list(self.names)
        self.out_indices = list(range(1, len(self.names) + 1))
        self.num_features = [self.feature_info.channels()[0], *self.feature_info.channels()]

    @property
    def channels(self) -> list[int]:
        """Channels of the maps."""
        return list(self.feature_info.channels())

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Name to channels."""
        return dict(zip(self.names, self.channels, strict=True))

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        if output_hidden_states or output_attentions:
            raise ArgumentError("A featnet backbone has neither hidden_states nor attentions.")
        maps = tuple(self.maps(pixel_values).values())
        return (maps,) if return_dict is False else BackboneOutput(maps)
