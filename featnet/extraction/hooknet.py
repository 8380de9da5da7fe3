"""FeatureHookNet: levels, or the outputs of any modules, read by forward hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..tracing import sizes, structure
from ..values import checked
from .extractors import FeatureNet
from .hooks import FeatureHooks, Taps, refuse_beside_taps
from .sources import Hooked, HookedLevels, Source, Tapped, TappedBackbone


class FeatureHookNet(FeatureNet):
    """Turn images (N, C, H, W) into levels, or into the outputs of any modules, by forward hooks.

    Args:
        model: as for the other extractors; with ``taps`` any module.
        out_indices: levels that come out, in their order.
        taps: in place of levels: names of modules, patterns and :class:`featnet.Tap` s, or a dict
            of them to keys.
        return_dict: an OrderedDict instead of a list; by default if ``taps`` or ``out_map`` name
            the outputs.
        **options: the other arguments of every extractor.

    Example:
        >>> net = featnet.FeatureHookNet(featnet.create_model("resnet18"), taps=["layer1.*.bn2"])
        >>> list(net(torch.randn(1, 3, 64, 64)))
        ['layer1.0.bn2', 'layer1.1.bn2']
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        *,
        taps: Taps | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> None:
        if taps is None:
            super().__init__(model, out_indices, **options)
        else:
            refuse_beside_taps({"out_indices": out_indices, **options})
            self._tap(model, taps, **options)
        named = taps is not None or options.get("out_map") is not None
        self.return_dict = named if return_dict is None else return_dict

    def _tap(
        self,
        model: nn.Module,
        taps: Taps,
        *,
        prune: bool = True,
        copy: bool = True,
        input_size: Sequence[int] | None = None,
        **levels: object,
    ) -> None:
        """Read modules in place of levels; the arguments for levels have no meaning here."""
        del levels
        nn.Module.__init__(self)
        structure.check_module(model)
        network = model.body if isinstance(model, FeatureNet) else model
        source = (TappedBackbone if isinstance(network, Backbone) else Tapped)(taps)
        self.input_size = sizes.check_size(input_size)
        with sizes.at_size(self.input_size):
            self._wrap(model, source, prune=prune, copy=copy)
        self._indices = source.indices
        self._keys = tuple(tap.key for tap in source.hooks.taps)

    def _source_class(self, network: nn.Module) -> type[Source]:
        return HookedLevels if isinstance(network, Backbone) else super()._source_class(network)

    @property
    def _hooks(self) -> FeatureHooks:
        source = self._source
        assert isinstance(source, Hooked)
        return source.hooks

    def forward(self, x: torch.Tensor) -> Any:
        if self.return_dict:
            return OrderedDict(zip(self._keys, self._maps(x), strict=True))
        return self._maps(x)
