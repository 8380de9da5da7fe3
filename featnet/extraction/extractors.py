"""The extractors: a network seen from another forward, which returns its levels."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from ..backbone import Backbone, LevelReader
from ..contract import undeclared
from ..errors import ArgumentError, TraceError, nearest
from ..features import FeatureInfo, output_keys, resolve, resolve_strides
from ..inputs import explain_size
from ..tracing import sizes, structure, trace
from ..values import checked
from . import declared, layout, pruning
from .declared import Declaration
from .shared import SharedNet
from .sources import Driven, Hooked, Returned, Source

REGISTRIES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")

# Attributes of an extractor that are those of its network
SHARED = frozenset(
    {
        "default_cfg",
        "drop_rate",
        "group_matcher",
        "in_chans",
        "no_weight_decay",
        "num_prefix_tokens",
        "output_strides",
        "pretrained_cfg",
        "set_fused_attn",
        "set_grad_checkpointing",
        "size_divisibility",
    }
)


class FeatureNet(SharedNet):
    """Base of the extractors; use one of its subclasses.

    An extractor shares the registries of the network it was built from, so that modules and
    state-dict keys keep their names. What the levels do not need is pruned. A network that the
    caller keeps is left as it was: the extractor has a structure of its own over the same tensors,
    which follow each other when either is cast or moved (:mod:`featnet.extraction.shared`).

    Args:
        model: a Backbone, or any module with a ``feature_info`` (a list of dicts in timm's or
            MindCV's vocabulary) whose modules of those names put out the levels.
        out_indices: which levels, in which order (see :func:`featnet.features.resolve`).
        out_strides: which levels, by their reductions.
        out_map: names of the levels that come out, in their order, for dicts.
        output_fmt: layout of the maps: ``NCHW``, ``NHWC``, ``NLC``.
        norm: under the network's final norm; None: as ``model.dense_norm`` says.
        return_prefix_tokens: ``(map, prefix tokens)`` in place of each map.
        feature_info: the levels of a model that declares none, :func:`featnet.discover`'s for
            instance.
        input_size: (H, W) or (C, H, W) at which to look into a model that takes one size only; by
            default that of ``feature_info``, a size that the model claims, or one that runs.
        prune: remove what no level needs.
        copy: leave the caller's model alone. False takes it over.

    Raises:
        ArgumentError, OutIndexError, MissingFeatureError: see there.
    """

    body: nn.Module

    @checked
    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        *,
        out_strides: Sequence[int] | None = None,
        out_map: Sequence[str] | Mapping[str, str] | None = None,
        output_fmt: str = "NCHW",
        norm: bool | None = None,
        return_prefix_tokens: bool = False,
        feature_info: Declaration | None = None,
        input_size: Sequence[int] | None = None,
        prune: bool = True,
        copy: bool = True,
    ) -> None:
        super().__init__()
        structure.check_module(model)
        network = _network(model)
        read = LevelReader(
            network, norm=norm, output_fmt=output_fmt, prefix_tokens=return_prefix_tokens
        )
        if feature_info is None and isinstance(network, Backbone):
            every = network._levels  # held to the run that comes anyway
            if not every:
                raise undeclared(type(network).__name__)
        else:
            every = declared.levels(network, feature_info)
        levels = tuple(read.level(network, level) for level in every)
        if out_strides is not None:
            if out_indices is not None:
                raise ArgumentError("Give out_indices or out_strides, not both.")
            out_indices = resolve_strides(out_strides, levels)
        self._indices = FeatureInfo(levels, out_indices).out_indices
        indices = resolve(self._indices, levels)
        self._keys: tuple[Any, ...] = output_keys(out_map, [levels[i].module for i in indices])
        # where whoever looks into this net later finds it (featnet.tracing.sizes.claimed)
        self.input_size = sizes.check_size(input_size or getattr(feature_info, "input_size", None))
        source = self._source_class(network)(levels, indices, read)
        with sizes.at_size(self.input_size):
            self._wrap(model, source, prune=prune, copy=copy)

    def _source_class(self, network: nn.Module) -> type[Source]:
        """Choose the source of a network's levels."""
        if isinstance(network, Backbone):
            return Driven
        return Returned if declared.returns_levels(network) else Hooked

    def _wrap(self, model: nn.Module, source: Source, *, prune: bool, copy: bool) -> None:
        """Take over a network, or a structure of one's own over its tensors, as far as a source
        needs it."""
        network = _network(model)
        self._source, self.output_fmt = source, source.read.output_fmt
        self._share(model if copy else None)
        self._adopt(structure.view(network) if copy else network)
        body, size = self.body, trace.probe_size(self.body)
        try:
            record = source.prepare(body, size)
        except TraceError as error:
            if model is network:
                raise
            raise ArgumentError(
                f"{type(model).__name__} is an extractor, whose {type(body).__name__} was cut to "
                "what it needs and does not run to its end: give the model that it was made from."
            ) from error
        self._deepest = max(source.indices) if prune else len(source.levels) - 1
        if prune:
            also = None
            if isinstance(source, Hooked) and not isinstance(body, Backbone):
                until = source.hooks.places if source.hooks.can_stop else frozenset()
                also = pruning.in_training(body, record, size, until)
            again = functools.partial(source.run, body, size, _every_module)
            pruning.prune(body, record, again, driven=isinstance(source, Driven), also=also)
            self._adopt(body)  # of which tables may have been replaced

    def _adopt(self, body: nn.Module) -> None:
        for name in REGISTRIES:
            self.__dict__[name] = body.__dict__[name]
        self.__dict__["body"] = body  # not a child: same tensors, same names
        self.training = body.training

    # The forward --------------------------------------------------------------------------

    def _maps(self, x: torch.Tensor) -> list[Any]:
        """Compute the outputs, in the order asked."""
        self._check_shared()
        return self._source.maps(self.body, x)

    @property
    def feature_info(self) -> FeatureInfo:
        """The levels that come out, in their order."""
        return FeatureInfo(
            self._source.levels, self._indices, measure=self._measure, input_size=self.input_size
        )

    def _measure(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return (h, w) of every level for an input (H, W); 0 for those that were pruned, which no
        selection has."""
        with explain_size(self.body, size):
            shapes = self._source.shapes(self.body, size)
        gone = torch.Size((1, 1, 0, 0))
        levels = self._source.levels
        return [layout.sides(shapes.get(f.index, gone), f, size) for f in levels]

    def observe(self, size: tuple[int, int]) -> tuple[trace.Run, frozenset[str]]:
        """Run the extractor on the meta device.

        Args:
            size: (height, width) of the input.

        Returns:
            The run, as far as a call goes, and names of the modules whose output comes out.
        """
        return self._source.run(self.body, size), self._source.outputs

    @property
    def return_layers(self) -> dict[str, str]:
        """Module names to output keys. Setting it selects other levels among those that were
        kept."""
        source = self._source
        names = (source.levels[i].module for i in source.indices)
        return dict(zip(names, self._keys, strict=True))

    @return_layers.setter
    def return_layers(self, layers: Mapping[str, str]) -> None:
        source = self._source
        if not source.selectable:
            raise ArgumentError("return_layers cannot be changed where hooks collect.")
        index = {level.module: level.index for level in source.levels}
        for name in (name for name in layers if name not in index):
            raise ArgumentError(f"{name!r} is no level.{nearest(name, index)}")
        kept = [name for name in layers if index[name] <= self._deepest]
        if not kept:
            there = [*index][: self._deepest + 1]
            raise ArgumentError(f"return_layers={layers!r}: all were pruned; there are {there}.")
        self._indices = source.indices = tuple(index[name] for name in kept)
        self._keys = tuple(str(layers[name]) for name in kept)

    def __len__(self) -> int:
        return len(self._keys)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.body.train(mode)  # its own flag, and what its class does beyond that
        return self

    def __getattr__(self, name: str) -> Any:
        if name in SHARED and "body" in self.__dict__:
            return getattr(self.__dict__["body"], name)
        return super().__getattr__(name)

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by the network's name for it, a ``body`` of its own too.

        Args:
            target: the name; ``""`` is the extractor.

        Returns:
            The module.
        """
        return self.body.get_submodule(target) if target else self

    def set_submodule(self, target: str, module: nn.Module, strict: bool = False) -> None:
        """Put a module in the place of another.

        Args:
            target: the network's name for it.
            module: the new one.
            strict: refuse a name that is not there.
        """
        self.body.set_submodule(target, module, strict)

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        body: Any = self.body._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        for name in REGISTRIES:
            body.__dict__[name] = replica.__dict__[name]
        replica.__dict__["body"] = body
        return replica


def _network(model: nn.Module) -> nn.Module:
    """Return the network of an extractor; any other module itself."""
    return model.body if isinstance(model, FeatureNet) else model


def _every_module(_module: nn.Module) -> bool:
    """``watched`` of a run whose calls are compared."""
    return True


def probe_size(net: nn.Module) -> tuple[int, int]:
    """Return an input size, (H, W), that a network or an extractor can take: an extractor's own, if
    one was given when it was made."""
    if isinstance(net, FeatureNet):
        return net.input_size or trace.probe_size(net.body)
    return trace.probe_size(net)


class FeatureListNet(FeatureNet):
    """Turn images (N, C, H, W) into a list of maps, in the order of ``feature_info``.

    Example:
        >>> model = featnet.create_model("resnet18")
        >>> net = featnet.FeatureListNet(model, out_indices=(4, 2))
        >>> [tuple(y.shape) for y in net(torch.randn(1, 3, 64, 64))]
        [(1, 512, 2, 2), (1, 128, 8, 8)]
        >>> net.feature_info.module_name()
        ['layer4', 'layer2']
    """

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self._maps(x)


class FeatureDictNet(FeatureNet):
    """Turn images (N, C, H, W) into an OrderedDict of maps, in the order of ``feature_info``.

    Its keys are the levels' module names, or those of ``out_map``.

    Example:
        >>> model = featnet.create_model("resnet18")
        >>> net = featnet.FeatureDictNet(model, out_indices=(1, 2), out_map=("p2", "p3"))
        >>> {key: tuple(y.shape) for key, y in net(torch.randn(1, 3, 64, 64)).items()}
        {'p2': (1, 64, 16, 16), 'p3': (1, 128, 8, 8)}
    """

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        return OrderedDict(zip(self._keys, self._maps(x), strict=True))
