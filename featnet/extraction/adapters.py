"""Extractors with the interface that other libraries expect of a backbone.

None of those libraries is imported: they need a few attributes and a certain form of the output.
    Each adapter is a module around an extractor (``create_model(..., features_only=True)``,
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
    """The size of a map, as detectron2 describes it in its own ``ShapeSpec``.

    Attributes:
        channels: of the map.
        height: in positions, if it is fixed.
        width: in positions, if it is fixed.
        stride: input pixels per position.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1,))
        >>> featnet.adapters.Detectron2Backbone(net).output_shape()["res2"].stride
        4
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


class _Adapter(nn.Module):
    """An extractor, and names for its maps.

    Args:
        net: an extractor.
        names: of the maps, in their order.

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
        keys = [f"{prefix}{i}" for i in range(len(info))] if names is None else list(names)
        if isinstance(names, str) or len(set(keys)) != len(info) or len(keys) != len(info):
            raise ArgumentError(f"names={names!r}: {len(info)} distinct names are expected.")
        self.net, self.names = net, tuple(keys)

    @property
    def feature_info(self) -> FeatureInfo:
        """The levels of the extractor."""
        info: FeatureInfo = self.net.feature_info  # type: ignore[assignment]
        return info

    @property
    def size_divisibility(self) -> int:
        """The coarsest reduction: an input whose sides it divides has maps that fit each other."""
        return max(self.feature_info.reduction())

    def maps(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Compute the maps of images.

        Args:
            x: (N, C, H, W).

        Returns:
            Names to maps, in the order of ``names``.
        """
        maps = self.net(x)
        values = maps.values() if isinstance(maps, dict) else maps
        return OrderedDict(zip(self.names, values, strict=True))


class TorchvisionBackbone(_Adapter):
    """A backbone for torchvision's detection models: an OrderedDict of maps, and ``out_channels``.

    Args:
        net: an extractor.
        neck: a module ``OrderedDict -> OrderedDict`` behind it, such as
            ``torchvision.ops.FeaturePyramidNetwork(net.feature_info.channels(), 256)``.
        out_channels: of each map behind the neck. By default it is read from the neck, or without
            a neck from the maps.
        names: of the maps, which ``MultiScaleRoIAlign`` needs; "0", "1", ... by default.

    Raises:
        ArgumentError: ``out_channels`` is not given, and the maps have several.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(4,))
        >>> backbone = featnet.adapters.TorchvisionBackbone(net)
        >>> backbone.out_channels, list(backbone(torch.randn(1, 3, 64, 64)))
        (512, ['0'])
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
            own = getattr(neck, "out_channels", None)
            blocks = [m for m in neck.modules() if isinstance(m, nn.Conv2d)]
            channels = {own} if isinstance(own, int) else {b.out_channels for b in blocks}
        if out_channels is None and len(channels) != 1:
            raise ArgumentError(
                f"The maps have {sorted(channels)} channels: give out_channels, or a neck that "
                "makes them one number."
            )
        self.out_channels = channels.pop() if out_channels is None else out_channels

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        maps = self.maps(x)
        return maps if self.neck is None else self.neck(maps)


class Detectron2Backbone(_Adapter):
    """A backbone for detectron2: a dict of maps, ``output_shape()``, ``size_divisibility``.

    Args:
        net: an extractor.
        names: of the maps; by default "res1", "res2", ... after their reductions (``res2`` is at
            4), which detectron2's FPN and heads ask for.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2))
        >>> backbone = featnet.adapters.Detectron2Backbone(net)
        >>> list(backbone(torch.randn(1, 3, 64, 64))), backbone.size_divisibility
        (['res2', 'res3'], 8)
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
        """Return the channels and the stride of each map.

        Returns:
            Names to shapes.
        """
        pairs = zip(self.names, self.feature_info, strict=True)
        return {name: ShapeSpec(channels=f.channels, stride=f.reduction) for name, f in pairs}

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Empty: an input may have any size; for an FPN see ``size_divisibility``."""
        return {}


class BackboneOutput:
    """The output of a backbone as transformers reads it, by attribute, key or position.

    Args:
        feature_maps: the maps; ``hidden_states`` and ``attentions`` are None.

    Example:
        >>> output = featnet.adapters.BackboneOutput((torch.ones(1, 8, 4, 4),))
        >>> output.feature_maps is output["feature_maps"] is output[0]
        True
    """

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
    """A backbone for models of transformers: ``feature_maps``, ``channels``.

    Args:
        net: an extractor.
        names: of the stages; "stage1", "stage2", ... by default.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2))
        >>> backbone = featnet.adapters.TransformersBackbone(net)
        >>> backbone.channels, len(backbone(torch.randn(1, 3, 64, 64)).feature_maps)
        ([64, 128], 2)
    """

    def __init__(self, net: nn.Module, *, names: Sequence[str] | None = None) -> None:
        info = getattr(net, "feature_info", None)
        if names is None and isinstance(info, FeatureInfo):
            names = [f"stage{i + 1}" for i in range(len(info))]
        super().__init__(net, names, "stage")
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
        """Names of the stages to the channels of their maps."""
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
