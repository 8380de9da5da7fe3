"""A network that was asked for: built, loaded, dilated, and wrapped as an extractor."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import registry
from .backbone import Backbone
from .checkpoints import checkpoint, files, instant
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


def finish(
    model: Any,
    *,
    cfg: Weights | None,
    source: Path | None,
    output_stride: int | None,
    features_only: bool,
    wrap: Mapping[str, Any],
    place: Place = Place(),
    build: Callable[[], nn.Module] | None = None,
    new_classes: bool = False,
    auto_mapping: bool = True,
) -> Any:
    """Weights, output stride and extractor, for a model that was built for this.

    Args:
        build: what built the model without initialising it; None where it is initialised.
        new_classes: a classifier that the weights lack is left as it is.
        auto_mapping: match a checkpoint's names that were flattened or prefixed.
    """
    if isinstance(model, Backbone) and cfg is not None:
        pool = tuple(-(-side // model._levels[-1].reduction) for side in cfg.input_size[1:])
        model.pretrained_cfg = cfg.replace(
            first_conv=model.first_conv, classifier=model.last_fc, pool_size=cfg.pool_size or pool
        )
    if output_stride is not None:
        if isinstance(model, Backbone):
            dilation.set_output_stride(model, output_stride)
        else:
            set_output_stride(model, output_stride, inplace=True)
    if not features_only:
        if source is not None:
            every = functools.partial(FeatureListNet, model)
            spare = _beyond(model, every) if new_classes else tuple
            _load(model, source, cfg, place, auto_mapping, spare)
            _initialise(model, model, build)
        return model
    options = dict(wrap)
    kind = _extractor(options.pop("feature_cls", FeatureListNet))
    registry.check_arguments(kind, options, what=f"feature_cls={kind!r}")
    own = isinstance(kind, type) and issubclass(kind, FeatureNet)
    if source is not None:
        alike = functools.partial(kind, model, **options)
        spare = _beyond(model, alike) if own else tuple
        _load(model, source, cfg, place, auto_mapping, spare)
    if own:
        options["copy"] = False
    net = kind(model, **options)
    if source is not None:
        _initialise(model, net, build)
        if own:
            net.load_report = model.load_report.restrict(net.state_dict())
    return net


def _load(
    model: Any,
    source: Path,
    cfg: Weights | None,
    place: Place,
    auto_mapping: bool,
    spare: Callable[[], Collection[str]],
) -> None:
    device = place.device or torch.get_default_device()
    model.load_report = checkpoint.load(
        model,
        files.read(source),
        source=str(source),
        cfg=cfg,
        device=device,
        dtype=place.dtype,
        spare=spare,
        auto_mapping=auto_mapping,
    )
    model.to(device, place.dtype)  # what no file holds


def _beyond(model: nn.Module, wrap: Callable[[], nn.Module]) -> Callable[[], Collection[str]]:
    """Gives the names of the tensors that an extractor of the model does not have."""
    return lambda: set(model.state_dict()) - set(wrap().state_dict())


def _initialise(model: Any, net: nn.Module, build: Callable[[], nn.Module] | None) -> None:
    """What the file left out and the result has, as without a file."""
    names = set(model.load_report.initial) & set(net.state_dict())
    if names and build is not None:
        instant.initialise(net, names, build)


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
