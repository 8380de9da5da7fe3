"""A network that was asked for: built, loaded, dilated, and wrapped as an extractor."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import registry
from .backbone import Backbone
from .checkpoints import checkpoint, files, instant
from .checkpoints.conversion import Draft
from .dilation import rule as dilation
from .dilation.stride import set_output_stride
from .errors import ArgumentError, nearest
from .extraction.extractors import FeatureDictNet, FeatureListNet, FeatureNet
from .extraction.hooknet import FeatureHookNet
from .weights import Weights

EXTRACTORS: Mapping[str, type[FeatureNet]] = {
    "list": FeatureListNet,
    "dict": FeatureDictNet,
    "hook": FeatureHookNet,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a model's tensors are to be; None as torch would have it."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None


def make_place(device: Any, dtype: Any) -> Place:
    """Where ``device=`` and ``dtype=`` say.

    Raises:
        ArgumentError: no such device, or no floating-point dtype.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype={dtype!r}: a floating-point torch.dtype is expected.")
    try:
        return Place(None if device is None else torch.device(device), dtype)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device={device!r}: {str(error).splitlines()[0]}") from error


def build_network(build: Callable[[], nn.Module], source: Path | None, place: Place) -> nn.Module:
    """The network: initialised in its place, or only allocated where a file will replace it."""
    meta = (place.device or torch.get_default_device()).type == "meta"
    if source is not None:
        if meta:
            raise ArgumentError(f"The meta device holds no weights: {str(source)!r}.")
        with torch.device("cpu"), instant.SkipInit():
            return build()
    if meta:
        return instant.meta_model(build).to(dtype=place.dtype)
    with place.device or contextlib.nullcontext():
        return build().to(dtype=place.dtype)


def describe(model: nn.Module, cfg: Weights | None) -> None:
    """Tell a Backbone which checkpoint it is for, its own stem, classifier and pooling filled in."""
    if isinstance(model, Backbone) and cfg is not None:
        pool = tuple(-(-side // model._levels[-1].reduction) for side in cfg.input_size[1:])
        model.pretrained_cfg = cfg.replace(
            first_conv=model.first_conv, classifier=model.last_fc, pool_size=cfg.pool_size or pool
        )


def dilate(model: nn.Module, output_stride: int | None) -> None:
    """Set an output stride, in place; None leaves the model as it is."""
    if output_stride is None:
        return
    if isinstance(model, Backbone):
        dilation.set_output_stride(model, output_stride)
    else:
        set_output_stride(model, output_stride, inplace=True)


def finish_classifier(model: Any, load: Load | None, *, new_classes: bool = False) -> Any:
    """Give a model its weights, if there are any.

    Args:
        new_classes: what no level needs, the classifier before all, may be absent in the file.
    """
    if load is not None:
        draft = load.fit(model)
        optional: set[str] = set()
        if new_classes and draft.tensors.keys() < model.state_dict().keys():
            optional = model.state_dict().keys() - FeatureListNet(model).state_dict().keys()
        load.assign(model, draft, optional=optional)
    return model


def finish_extractor(model: nn.Module, load: Load | None, wrap: Mapping[str, Any]) -> Any:
    """Wrap a model as an extractor, and give the extractor its weights, if there are any.

    Args:
        model: is taken over: what the levels do not need is pruned.
        wrap: arguments of the extractor, and ``feature_cls``, its class.

    Raises:
        ArgumentError: an argument that the class does not take.
    """
    options = dict(wrap)
    kind = _extractor(options.pop("feature_cls", FeatureListNet))
    registry.check_arguments(kind, options, what=f"feature_cls={kind!r}")
    ours = isinstance(kind, type) and issubclass(kind, FeatureNet)
    if not ours:
        return kind(finish_classifier(model, load), **options)
    if load is None:
        return kind(model, copy=False, **options)
    draft, names = load.fit(model), tuple(model.state_dict())
    net = kind(model, copy=False, **options)
    load.assign(net, draft, pruned=set(names) - net.state_dict().keys())
    return net


@dataclasses.dataclass(frozen=True)
class Load:
    """A file to load, and what is known of it and of where its tensors are to be.

    Attributes:
        build: what built the network without initialising it; None where it is initialised.
        auto_mapping: match a checkpoint's names that were flattened or prefixed.
    """

    source: Path
    cfg: Weights | None
    place: Place = Place()
    build: Callable[[], nn.Module] | None = None
    auto_mapping: bool = True

    def fit(self, model: nn.Module) -> Draft:
        """Read the file, under the names of the whole network."""
        contents = files.read(self.source)
        return checkpoint.fit(model, contents, self.cfg, auto_mapping=self.auto_mapping)

    def assign(self, net: Any, draft: Draft, **options: Any) -> None:
        """Put tensors into a network or its extractor; what the file lacks is initialised."""
        device = self.place.device or torch.get_default_device()
        net.load_report = checkpoint.assign(
            net,
            draft,
            source=str(self.source),
            cfg=self.cfg,
            device=device,
            dtype=self.place.dtype,
            **options,
        )
        net.to(device, self.place.dtype)  # what no file holds
        if self.build is not None and net.load_report.initial:
            instant.initialise(net, set(net.load_report.initial), self.build)


def _extractor(kind: Any) -> Callable[..., nn.Module]:
    """An extractor's class (or function) by its name."""
    if isinstance(kind, str) and kind in EXTRACTORS:
        return EXTRACTORS[kind]
    if not callable(kind):
        raise ArgumentError(
            f"feature_cls={kind!r}: one of {', '.join(EXTRACTORS)}, or a class, is expected."
            + nearest(kind, EXTRACTORS)
        )
    return kind
