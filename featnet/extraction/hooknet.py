"""FeatureHookNet: levels, or what any modules put out, read by forward hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..features import Feature
from ..tracing import trace
from . import layout
from .declared import Declaration
from .extractors import FeatureNet
from .hooks import Taps, refuse_beside_taps


class FeatureHookNet(FeatureNet):
    """Levels, or what any modules put out, read by forward hooks.

    Args:
        model: as for the other extractors; with ``taps`` any module whatever.
        out_indices: which levels.
        taps: instead of levels: names of modules, patterns and :class:`featnet.Tap` s, or a dict of
            them to keys.
        return_dict: an OrderedDict instead of a list; by default where ``taps`` or ``out_map`` name
            what comes out.

    The other arguments are every extractor's.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        *,
        taps: Taps | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> None:
        self.__dict__["_taps"] = taps
        if taps is not None:
            refuse_beside_taps({"out_indices": out_indices, **options})
        super().__init__(model, out_indices, **options)
        named = taps is not None or options.get("out_map") is not None
        self.return_dict = named if return_dict is None else return_dict

    def _declared(self, model: nn.Module, given: Declaration | None) -> tuple[Feature, ...]:
        return () if self.__dict__["_taps"] is not None else super()._declared(model, given)

    def _setup(self, prune: bool) -> None:
        size, taps = trace.probe_size(self.body), self.__dict__.pop("_taps")
        if taps is not None:
            seen = self._tap(taps, size)
            self._raw = True
            self._describe(size)
        elif isinstance(self.body, Backbone):
            seen = self._tap(self._level_taps(), size)
        else:
            seen = self._setup_declared(size)
        if prune:
            trace.prune(self.body, seen)

    def _describe(self, size: tuple[int, int]) -> None:
        """A level for each tap: of tokens (N, L, C) and vectors (N, C) as of maps."""
        assert self._hooks is not None
        rows = [
            layout.feature(shape, size, module=name, index=index)
            for index, (name, shape) in enumerate(self._tapped(size).items())
        ]
        self._levels = tuple(rows)
        self._features_only = self._indices = tuple(range(len(rows)))
        self._keys = tuple(tap.key for tap in self._hooks.taps)

    def forward(self, x: torch.Tensor) -> Any:
        if self.return_dict:
            return OrderedDict(zip(self._keys, self._maps(x), strict=True))
        return self._maps(x)
