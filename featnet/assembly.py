"""A network that was asked for: built, loaded, dilated, and wrapped as an extractor."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import registry
from .backbone import Backbone
from .checkpoints import checkpoint, files, instant
from .checkpoints.checkpoint import Choices, LoadReport
from .checkpoints.conversion import Draft
from .deploy.reparam import reparameterize
from .dilation import rule as dilation
from .dilation.stride import set_output_stride
from .errors import ArgumentError, CheckpointError, nearest
from .extraction.extractors import FeatureDictNet, FeatureListNet, FeatureNet
from .extraction.fx.graphnet import GraphExtractor
from .extraction.hooknet import FeatureHookNet
from .values import checked
from .weights import Weights

Source = str | Path | Mapping[str, Any]  # of weights: a file, or a state dict
EXTRACTORS: Mapping[str, type[FeatureNet]] = {
    "list": FeatureListNet,
    "dict": FeatureDictNet,
    "hook": FeatureHookNet,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Device and type of a model's tensors; None leaves them to torch."""

    device: torch.device | None = None
    dtype: torch.dtype | None = None


def make_place(device: Any, dtype: Any) -> Place:
    """Make the place that ``device=`` and ``dtype=`` name.

    Raises:
        ArgumentError: no such device, or no floating-point dtype.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentError(f"dtype={dtype!r}: a floating-point torch.dtype is expected.")
    try:
        place = Place(None if device is None else torch.device(device), dtype)
        if place.device is not None and place.device.type not in ("cpu", "meta"):
            torch.empty(0, device=place.device)  # tells at once that it is not there
        return place
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ArgumentError(f"device={device!r}: {str(error).splitlines()[0]}") from error


def build_network(build: Callable[[], nn.Module], source: Source | None, place: Place) -> nn.Module:
    """The network: initialised in its place, or only allocated where a file will replace it."""
    meta = (place.device or torch.get_default_device()).type == "meta"
    if source is not None:
        if meta:
            raise ArgumentError(f"The meta device holds no weights: {name_of(source)!r}.")
        with torch.device("cpu"), instant.SkipInit():
            return build()
    if meta:
        return instant.meta_model(build).to(dtype=place.dtype)
    with place.device or contextlib.nullcontext():
        return build().to(dtype=place.dtype)


def describe(model: nn.Module, cfg: Weights | None) -> None:
    """Tell a Backbone which checkpoint it is for, its own stem, classifier and pooling filled
    in."""
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


@dataclasses.dataclass(frozen=True)
class Load:
    """A file to load, and what is known of it and of where its tensors are to be.

    Attributes:
        source: the file, or a state dict.
        choices: what the caller says of it.
        build: what built the network without initialising it; None where it is initialised.
    """

    source: Source
    choices: Choices = Choices()
    place: Place = Place()
    build: Callable[[], nn.Module] | None = None

    def fit(self, model: nn.Module) -> Draft:
        """Read the file, under the names of the whole network."""
        return checkpoint.fit(model, files.contents(self.source), self.choices)

    def assign(self, net: Any, draft: Draft, **options: Any) -> None:
        """Put tensors into a network or its extractor; what the file lacks is initialised."""
        device = self.place.device or torch.get_default_device()
        net.load_report = checkpoint.assign(
            net,
            draft,
            source=name_of(self.source),
            cfg=self.choices.cfg,
            adopt=True,
            device=device,
            dtype=self.place.dtype,
            **options,
        )
        net.to(device, self.place.dtype)  # what no file holds
        if self.build is not None and net.load_report.initial:
            instant.initialise(net, set(net.load_report.initial), self.build)


def name_of(source: Source) -> str:
    """Name a file or a state dict for messages and reports."""
    return "the state dict" if isinstance(source, Mapping) else str(source)


def finish_classifier(model: Any, load: Load | None, *, new_classes: bool = False) -> Any:
    """Give a model its weights, if there are any.

    Args:
        new_classes: what no level needs, the classifier before all, may be absent in the file, and
            the file's own head is dropped then.
    """
    if load is None:
        return model
    draft = load.fit(model)
    headless = getattr(model, "num_classes", None) == 0
    optional: set[str] = set()
    if new_classes and model.state_dict().keys() - draft.tensors.keys():
        optional = model.state_dict().keys() - FeatureListNet(model).state_dict().keys()
        headless |= not optional <= draft.tensors.keys()
    load.assign(model, draft, optional=optional, headless=headless)
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
    if isinstance(kind, nn.Module):
        raise ArgumentError(f"feature_cls={kind!r}: a class is expected, not a module.")
    registry.check_arguments(kind, options, what=f"feature_cls={kind!r}")
    ours = isinstance(kind, type) and issubclass(kind, FeatureNet)
    if not ours:
        return kind(finish_classifier(model, load), **options)
    if load is None:
        return kind(model, copy=False, **options)
    draft, names = load.fit(model), set(model.state_dict())
    net = kind(model, copy=False, **options)
    load.assign(net, draft, pruned=names - net.state_dict().keys(), headless=True)
    return net


def finish_deployed(
    model: Any, load: Load | None, finish: Callable[[nn.Module, Load | None], Any]
) -> Any:
    """As ``finish``, in the deploy form of the model, with weights of either form.

    Raises:
        ArgumentError: the model has nothing to re-parameterise.
        CheckpointError: weights that fit neither form.
    """
    if load is None:
        return finish(reparameterize(model), None)
    build = load.build
    again = None if build is None else lambda: reparameterize(build())
    try:
        return finish(reparameterize(model), dataclasses.replace(load, build=again))
    except CheckpointError as error:
        try:
            return reparameterize(finish(model, load))
        except CheckpointError:
            raise error from None


@checked
def load_checkpoint(
    model: nn.Module, path: Source, *, checkpoint_prefix: str | None = None, mmap: bool = False
) -> LoadReport:
    """Load a file into a model or an extractor that is there, as ``create_model(...,
    checkpoint_path=path)`` does.

    Parameters and buffers stay the objects that they are, so that an optimiser goes on with them.

    Args:
        model: a Backbone, an extractor, or any module with the names of the file.
        path: the file, the folder with it, or a state dict.
        checkpoint_prefix: of several networks in the file, the dictionary or the start of names
            that is meant: ``"teacher"``.
        mmap: map the file instead of reading it. Nothing is read before it is used; the parameters
            are replaced by others, which change or crash the process when somebody writes into the
            file.

    Returns:
        what became of the file's tensors; ``model.load_report`` is the same.

    Raises:
        ArgumentError: no module.
        CheckpointError: the file cannot be read or does not fit. The model is then what it was.

    Example:
        >>> import featnet
        >>> net = featnet.create_model("test_resnet", features_only=True)
        >>> state = featnet.create_model("test_resnet").state_dict()
        >>> report = featnet.load_checkpoint(net, state)
        >>> report.loaded == len(net.state_dict()), report.dropped["fc.bias"]
        (True, 'no level needs it')
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"The model is a {type(model).__name__}, not a torch.nn.Module.")
    contents = files.contents(path)
    choices = Choices(prefix=checkpoint_prefix, mmap=check_mmap(mmap) or False)
    extractor = isinstance(model, (FeatureNet, GraphExtractor))
    whole = _whole(model)
    draft, target = checkpoint.fit(whole, contents, choices), model.state_dict()
    headless = extractor or getattr(model, "num_classes", None) == 0
    pruned = whole.state_dict().keys() - target.keys()
    if extractor and not pruned:  # not known: what a level needs must be there, the rest may
        pruned = draft.tensors.keys() - target.keys()
    report = checkpoint.assign(
        model,
        draft,
        source=name_of(path),
        adopt=choices.mmap,
        pruned=pruned if extractor else (),
        headless=headless,
        advice="load it after model.reset_classifier(0), and give the model its new one with "
        "model.reset_classifier(n) then.",
    )
    model.load_report = report  # type: ignore[assignment]
    return report


def _whole(model: nn.Module) -> nn.Module:
    """The network that an extractor was cut from, on the meta device; what a file is fitted to."""
    body: Any = model.__dict__.get("body", model)
    if body is model or not isinstance(body, Backbone) or not registry.is_model(body.architecture):
        return body
    entry = registry.find(body.architecture)
    if entry.is_function:
        return body
    row = {**entry.row, **body.model_args, "in_chans": body.in_chans}
    reparameterized = row.pop("reparameterized", False)
    if body.img_size is not None:
        row["img_size"] = body.img_size
    whole: nn.Module = instant.meta_model(functools.partial(entry.build, **row))
    if reparameterized:
        whole = reparameterize(whole)
    return whole if body.state_dict().keys() <= whole.state_dict().keys() else body


def check_mmap(mmap: object) -> bool | None:
    """Refuse what is neither True nor False nor None.

    Raises:
        ArgumentError: it is none of these.
    """
    if mmap is not None and not isinstance(mmap, bool):
        raise ArgumentError(f"mmap={mmap!r}: True or False is expected.")
    return mmap


def _extractor(kind: object) -> Callable[..., nn.Module]:
    """An extractor's class (or function) by its name."""
    if isinstance(kind, str) and kind in EXTRACTORS:
        return EXTRACTORS[kind]
    if not callable(kind):
        raise ArgumentError(
            f"feature_cls={kind!r}: one of {', '.join(EXTRACTORS)}, or a class, is expected."
            + nearest(kind, EXTRACTORS)
        )
    return kind
