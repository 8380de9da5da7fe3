"""Extractors with the interface that other libraries expect of a backbone.

None of those libraries is imported: they need a few attributes and a certain form of the output.
Each adapter is a module around an extractor (``create_model(..., features_only=True)``,
``FeatureListNet(model, ...)``, ``create_feature_extractor(...)``), whose ``feature_info`` it reads.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import ArgumentError
from ..features import FeatureInfo
from ..size import Size
from .necks import input_size_for, levels_behind, maps_of, run_neck, try_neck


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
    """An extractor, perhaps a neck behind it, and names for the maps that come out.

    Args:
        net: an extractor.
        neck: a module that makes maps of the extractor's maps: a :class:`featnet.SimplePyramid`,
            torchvision's ``FeaturePyramidNetwork``, any module from an OrderedDict of maps (or a
            list) to one.
        names: of the extractor's maps, in their order.

    Raises:
        ArgumentError: no extractor, not as many distinct names as maps, maps of layouts other than
            (N, C, H, W), or a neck that does not take them.
    """

    def __init__(
        self, net: nn.Module, neck: nn.Module | None, names: Sequence[str] | None, prefix: str = ""
    ) -> None:
        super().__init__()
        info = _info_of(net)
        keys = [f"{prefix}{i}" for i in range(len(info))] if names is None else list(names)
        if isinstance(names, str) or len(set(keys)) != len(info) or len(keys) != len(info):
            raise ArgumentError(f"names={names!r}: {len(info)} distinct names are expected.")
        self.net, self.neck = net, neck
        self._levels = tuple(keys)
        self.names = self._levels
        self._behind: FeatureInfo | None = None
        size = None if neck is None else input_size_for(net, info)
        if neck is not None and size is not None:
            maps = try_neck(neck, info, keys, size)
            self.names = tuple(maps)
            self._behind = FeatureInfo(levels_behind(neck, maps, size), measure=self._measure)

    def _measure(self, size: Size) -> list[Size]:
        info, neck = _info_of(self.net), self.neck
        assert neck is not None
        maps = try_neck(neck, info, self._levels, size).values()
        return [(y.shape[-2], y.shape[-1]) for y in maps]

    @property
    def feature_info(self) -> FeatureInfo:
        """The maps that come out, the extractor's levels, or those behind the neck."""
        return _info_of(self.net) if self._behind is None else self._behind

    @property
    def size_divisibility(self) -> int:
        """The coarsest reduction; an input whose sides it divides has maps that fit each other."""
        reductions = [*_info_of(self.net).reduction(), *self.feature_info.reduction()]
        return max(math.ceil(r) for r in reductions)

    def maps(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Compute the maps of images.

        Args:
            x: (N, C, H, W).

        Returns:
            Names to maps, in the order of ``names``.
        """
        maps = OrderedDict(zip(self._levels, maps_of(self.net(x)), strict=True))
        return maps if self.neck is None else run_neck(self.neck, maps)


def _info_of(net: nn.Module) -> FeatureInfo:
    """Return the levels of an extractor.

    Raises:
        ArgumentError: it is none, or gives other layouts than (N, C, H, W).
    """
    info = getattr(net, "feature_info", None)
    if not isinstance(info, FeatureInfo) or not callable(getattr(net, "forward", None)):
        raise ArgumentError(
            f"{type(net).__name__} is no extractor: create_model(..., features_only=True) or "
            "featnet.extract(model) makes one."
        )
    if getattr(net, "output_fmt", "NCHW") != "NCHW":
        raise ArgumentError(f"output_fmt={net.output_fmt!r}: an adapter takes NCHW.")
    return info


class TorchvisionBackbone(_Adapter):
    """A backbone for torchvision's detection models: an OrderedDict of maps, and ``out_channels``.

    Args:
        net: an extractor.
        neck: a module behind it, such as :class:`featnet.SimplePyramid` or
            ``torchvision.ops.FeaturePyramidNetwork(net.feature_info.channels(), 256)``.
        out_channels: of each map that comes out; by default as the maps have it.
        names: of the extractor's maps, which ``MultiScaleRoIAlign`` needs; "0", "1", ... by
            default. Behind a neck the names are the neck's, or "0", "1", ... for a list.

    Raises:
        ArgumentError: the maps have several numbers of channels, or another than ``out_channels``.

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
        super().__init__(net, neck, names)
        known = neck is None or self._behind is not None
        channels = sorted(set(self.feature_info.channels())) if known else [out_channels]
        if len(channels) != 1 or (out_channels is not None and out_channels != channels[0]):
            wish = "" if out_channels is None else f"out_channels={out_channels!r}: "
            raise ArgumentError(
                f"{wish}The maps have {channels} channels. A detector needs one number: give a "
                "neck that makes them one, or one level."
            )
        if channels[0] is None:
            raise ArgumentError(
                f"Give out_channels: what {type(neck).__name__} makes of these maps is not known."
            )
        self.out_channels: int = channels[0]

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return self.maps(x)


class Detectron2Backbone(_Adapter):
    """A backbone for detectron2: a dict of maps, ``output_shape()``, ``size_divisibility``.

    Args:
        net: an extractor.
        neck: a module behind it that makes maps of the maps.
        names: of the extractor's maps; by default "res1", "res2", ... after their reductions
            (``res2`` is at 4), which detectron2's FPN and heads ask for.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2))
        >>> backbone = featnet.adapters.Detectron2Backbone(net)
        >>> list(backbone(torch.randn(1, 3, 64, 64))), backbone.size_divisibility
        (['res2', 'res3'], 8)
    """

    def __init__(
        self, net: nn.Module, *, neck: nn.Module | None = None, names: Sequence[str] | None = None
    ) -> None:
        if names is None:
            names = [f"res{max(0, level.reduction.bit_length() - 1)}" for level in _info_of(net)]
            names = names if len(set(names)) == len(names) else None
        super().__init__(net, neck, names, "p")
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
        """Empty, since an input may have any size; for an FPN see ``size_divisibility``."""
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
        neck: a module behind it that makes maps of the maps.
        names: of the extractor's stages; "stage1", "stage2", ... by default.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2))
        >>> backbone = featnet.adapters.TransformersBackbone(net)
        >>> backbone.channels, len(backbone(torch.randn(1, 3, 64, 64)).feature_maps)
        ([64, 128], 2)
    """

    def __init__(
        self, net: nn.Module, *, neck: nn.Module | None = None, names: Sequence[str] | None = None
    ) -> None:
        if names is None:
            names = [f"stage{i + 1}" for i in range(len(_info_of(net)))]
        super().__init__(net, neck, names)
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
