"""create_model: a name and what is wanted of it, to a module."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import blueprint, registry
from .assembly import (
    Load,
    Place,
    Source,
    build_network,
    check_mmap,
    describe,
    dilate,
    finish_classifier,
    finish_deployed,
    finish_extractor,
    make_place,
)
from .backbone import Backbone
from .checkpoints import files, hub, sources
from .checkpoints.checkpoint import Choices
from .collector import uncollected
from .errors import ArgumentError, CheckpointError, FeatnetError, UnknownModelError
from .extraction.extractors import FeatureNet
from .features import FeatureInfo
from .values import check_value, checked
from .weights import Weights

# Arguments that only mean something with features_only
FEATURE_ARGUMENTS = (
    "out_indices",
    "out_strides",
    "feature_cls",
    "out_map",
    "output_fmt",
    "taps",
    "return_dict",
    "prune",
    "norm",
    "return_prefix_tokens",
)


@checked
@uncollected()
def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    output_stride: int | None = None,
    feature_cls: str | type[FeatureNet] | Callable[..., nn.Module] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    global_pool: str | None = None,
    checkpoint_path: str | Path | Mapping[str, Any] | None = None,
    checkpoint_prefix: str | None = None,
    mmap: bool | None = None,
    reparameterized: bool = False,
    pretrained_cfg: str | Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    auto_mapping: bool | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    **overrides: object,
) -> Any:
    """Build a model, load its weights, and wrap it as an extractor if features are wanted.

    An argument that is None is one that was not given.

    Args:
        model_name: ``"resnet50"``, or with the tag of a checkpoint ``"resnet50.a1_in1k"``;
            ``"hf-hub:org/name"`` (``@revision``) or ``"local-dir:path"``, with a config.json there.
        pretrained: load the checkpoint of the tag, by default the model's first.
        features_only: return an extractor: (N, C, H, W) -> the maps of ``out_indices``.
        out_indices: which levels, in which order; an int for the last n, None for all.
        output_stride: the coarsest reduction; what would be coarser is dilated instead.
        feature_cls: ``"list"``, ``"dict"``, ``"hook"``, or a class or function that is called with
            the model and ``out_indices``.
        in_chans: input channels, 3 by default; a checkpoint's stem is adapted.
        num_classes: classes of the head, those of the checkpoint by default; 0 for none.
        global_pool: pooling before the classifier.
        checkpoint_path: a local ``.safetensors``, ``.pth``, index of shards or the folder with it,
            to load; or a state dict.
        checkpoint_prefix: of several networks in one file, the dictionary or the start of names
            that is meant: ``"teacher"``.
        mmap: True maps the file instead of reading it: nothing is read before it is used, but who
            writes into the file later changes the model, or crashes the process. By default only
            the hub's cache is mapped, where files are named by their contents and never written
            again; False reads these, too.
        reparameterized: build the deploy form, see :func:`featnet.reparameterize`; weights may be
            of either form.
        pretrained_cfg: a tag, or the fields of a checkpoint of one's own.
        pretrained_cfg_overlay: fields of the checkpoint to change, ``dict(file=...)`` for instance;
            with a source among them it is loaded, whatever ``pretrained`` says.
        cache_dir: in place of the hub's cache.
        device, dtype: of the parameters and buffers, by default torch's; weights go there at once,
            and their own dtype does not matter.
        auto_mapping: match a checkpoint's names that were flattened or prefixed
            (``features_0.weight``, ``body.``); ``load_report`` says which. True by default.
        scriptable: True is refused: there is no torch.jit.script; use torch.export or
            torch.jit.trace.
        exportable, no_jit: every model is exportable and none uses jit; accepted from callers of
            timm.
        **overrides: arguments of the model's constructor, and with ``features_only`` of the
            extractor (``out_strides``, ``out_map``, ``output_fmt``, ``taps``, ...).

    Raises:
        UnknownModelError: no such name or tag.
        ArgumentError: an argument that nothing takes, or that contradicts another.
        OutIndexError: levels that the network does not have.
        OutputStrideError: an output stride that the network cannot have.
        CheckpointError: weights that cannot be found or do not fit.

    Returns:
        A :class:`featnet.Backbone`; with ``features_only`` an extractor.

    Example:
        >>> model = featnet.create_model("resnet18", num_classes=10)
        >>> model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 10])
        >>> net = featnet.create_model("resnet18", features_only=True, output_stride=8)
        >>> net.feature_info.reduction()
        [2, 4, 8, 8, 8]
    """
    if scriptable:
        raise ArgumentError(
            "scriptable=True: torch.jit.script is not supported; every model goes through "
            "torch.export, torch.jit.trace and torch.compile."
        )
    features_only = _flag("features_only", features_only)
    pretrained = _flag("pretrained", pretrained)
    check_value("global_pool", global_pool, "str | None")
    if features_only and global_pool:
        raise ArgumentError(
            f"global_pool={global_pool!r} with features_only=True: maps are not pooled. "
            "featnet.pool_features(net(x)) makes vectors of them; the network's own embedding is "
            f"create_model({model_name!r}, num_classes=0, global_pool={global_pool!r})."
        )
    options = {"out_indices": out_indices, "feature_cls": feature_cls, **overrides}
    wrap = {k: options[k] for k in FEATURE_ARGUMENTS if options.get(k) is not None}
    if wrap and not features_only:
        raise ArgumentError(f"{', '.join(wrap)} need features_only=True: {model_name!r}.")
    row = {k: v for k, v in overrides.items() if v is not None and k not in FEATURE_ARGUMENTS}
    common = {"in_chans": in_chans, "num_classes": num_classes, "global_pool": global_pool}
    row |= {k: v for k, v in common.items() if v is not None}
    deployed = _flag("reparameterized", reparameterized)

    what, tag = f"create_model({model_name!r})", pretrained_cfg
    entry = sources.entry(
        model_name, tag=tag if isinstance(tag, str) else None, cache_dir=cache_dir
    )
    cfg = _weights(entry, pretrained_cfg, pretrained_cfg_overlay)
    place = make_place(device, dtype)
    # a function of one's own knows its checkpoint itself
    loads = pretrained and not entry.is_function
    source = _source(cfg, loads, checkpoint_path, pretrained_cfg_overlay, cache_dir)
    finish = _Finish(
        cfg, output_stride, deployed, features_only, wrap, new_classes=num_classes is not None
    )
    choices = _choices(cfg, checkpoint_path, checkpoint_prefix, mmap, auto_mapping)
    if entry.is_function:
        model = _call_function(entry, pretrained, {**entry.row, **row}, place, features_only)
        with _blamed(what, overrides, row):
            return finish(model, None if source is None else Load(source, choices, place))
    finish.name = entry.name
    finish.deployed = deployed or bool(entry.arguments.get("reparameterized"))
    finish.arguments = {**entry.arguments, **{k: row[k] for k in row if k != "num_classes"}}
    if cfg is not None:
        _follow(cfg, entry, row)
    registry.check_arguments(entry.build, row, what=what, near=_ARGUMENTS)
    registry.check_values(entry.build, {k: row[k] for k in overrides if k in row}, what=what)
    build = functools.partial(entry.build, **{**entry.row, **row})
    with _blamed(what, overrides, row):
        if source is not None:
            load = Load(source, choices, place, build)
            return finish(build_network(build, source, place), load)
        if finish.deployed or not _is_plain(entry, wrap):
            return finish(build_network(build, None, place))
        key = blueprint.key_of(
            entry.name, entry.build, entry.row, row, repr(cfg), features_only, wrap, output_stride
        )
        return blueprint.create(key, build, finish, place)


@dataclasses.dataclass
class _Finish:
    """The steps from a network that was built to what was asked for.

    Attributes:
        cfg, output_stride, deployed, features_only: of :func:`create_model`.
        wrap: arguments of the extractor.
        new_classes: the number of classes was asked for.
        name: of one of featnet's own.
        arguments: that were given beside the name.
    """

    cfg: Weights | None
    output_stride: int | None
    deployed: bool
    features_only: bool
    wrap: Mapping[str, Any]
    new_classes: bool
    name: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, model: nn.Module, load: Load | None = None) -> Any:
        if self.name and isinstance(model, Backbone):
            model.architecture, model.model_args = self.name, self.arguments
        describe(model, self.cfg)
        dilate(model, self.output_stride)
        return finish_deployed(model, load, self.form) if self.deployed else self.form(model, load)

    def form(self, model: nn.Module, load: Load | None) -> Any:
        """The extractor, or the classifier, with its weights."""
        if self.features_only:
            return finish_extractor(model, load, self.wrap)
        return finish_classifier(model, load, new_classes=self.new_classes)


def _choices(
    cfg: Weights | None,
    checkpoint_path: str | Path | Mapping[str, Any] | None,
    checkpoint_prefix: str | None,
    mmap: bool | None,
    auto_mapping: bool | None,
) -> Choices:
    """Say how a file is read: by default only the hub's own are mapped."""
    if check_mmap(mmap) is None:
        mmap = not _is_given(checkpoint_path) and cfg is not None and hub.is_immutable(cfg)
    return Choices(cfg, checkpoint_prefix, bool(mmap), auto_mapping is not False)


def _is_plain(entry: registry.Entry, wrap: Mapping[str, Any]) -> bool:
    """Tell if nobody else's code looks at the network while it is made."""
    kind = wrap.get("feature_cls", "list")
    ours = isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, FeatureNet))
    families = f"{__name__.rpartition('.')[0]}.models."
    return ours and getattr(entry.build, "__module__", "").startswith(families)


def _follow(cfg: Weights, entry: registry.Entry, row: dict[str, Any]) -> None:
    """Let a checkpoint say the number of classes and the input size that nobody else says."""
    row.setdefault("num_classes", cfg.num_classes)
    built_for = inspect.signature(entry.build).parameters.keys() - entry.row.keys()
    if cfg.fixed_input_size and "img_size" in built_for:
        row.setdefault("img_size", cfg.input_size[1:])


@contextlib.contextmanager
def _blamed(what: str, overrides: Mapping[str, Any], row: Mapping[str, Any]) -> Iterator[None]:
    """Context: an error of another library is due to the overrides that are in a model's row."""
    try:
        yield
    except (FeatnetError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        changes = ", ".join(f"{k}={v!r}" for k, v in overrides.items() if k in row)
        if not changes:
            raise
        raise ArgumentError(f"{what} cannot be built with {changes}: {error}") from error


_ARGUMENTS = (*inspect.signature(create_model).parameters, *FEATURE_ARGUMENTS)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool) and value is not None:
        hint = (
            f" The tag of a checkpoint belongs to the name: 'NAME.{value}', or pretrained_cfg=."
            if name == "pretrained" and isinstance(value, str)
            else ""
        )
        raise ArgumentError(f"{name}={value!r}: True or False is expected.{hint}")
    return bool(value)


def _weights(
    entry: registry.Entry, config: str | Mapping[str, Any] | None, overlay: Mapping[str, Any] | None
) -> Weights | None:
    cfg = entry.weights
    if not isinstance(config, (str, Mapping, type(None))):
        raise ArgumentError(
            f"pretrained_cfg={config!r}: a tag or a mapping is expected, not a "
            f"{type(config).__name__}."
        )
    if not isinstance(overlay, (Mapping, type(None))):
        raise ArgumentError(
            f"pretrained_cfg_overlay={overlay!r}: a mapping is expected, not a "
            f"{type(overlay).__name__}."
        )
    if isinstance(config, Weights):
        cfg = config
    elif isinstance(config, Mapping):
        cfg = Weights(architecture=entry.name).replace(**config)
    if overlay:
        cfg = (cfg or Weights(architecture=entry.name)).replace(**overlay)
    return cfg


def _is_given(checkpoint_path: object) -> bool:
    """Tell if there is a path or a state dict: an empty path is none."""
    return checkpoint_path is not None and checkpoint_path != ""


def _source(
    cfg: Weights | None,
    pretrained: bool,
    checkpoint_path: str | Path | Mapping[str, Any] | None,
    overlay: Mapping[str, Any] | None,
    cache_dir: str | Path | None,
) -> Source | None:
    """The file or state dict to load, if any."""
    if checkpoint_path is not None and _is_given(checkpoint_path):
        if isinstance(checkpoint_path, Mapping):
            return checkpoint_path
        return files.local(checkpoint_path)
    asked = {"file", "url", "hf_hub_id"} & set(overlay or ())
    if not pretrained and not asked:
        return None
    if cfg is None:
        raise CheckpointError("pretrained=True: this model has no checkpoints.")
    return hub.locate(cfg, cache_dir=cache_dir)


class _FeaturesOnly(threading.local):
    """Tell if this thread is in a create_model that will make the extractor itself."""

    on = False


_features_only = _FeaturesOnly()


def _call_function(
    entry: registry.Entry,
    pretrained: bool,
    row: Mapping[str, Any],
    place: Place,
    features_only: bool,
) -> nn.Module:
    registry.check_arguments(entry.build, row, what=f"create_model({entry.name!r})")
    parameters = inspect.signature(entry.build).parameters
    for name in (name for name in row if name not in parameters):  # a **kwargs may swallow it
        meant = difflib.get_close_matches(name, _MEANT, n=1, cutoff=0.9)
        if meant:
            raise ArgumentError(
                f"create_model({entry.name!r}) got {name!r}. Did you mean {meant[0]!r}?"
            )
    build = functools.partial(entry.build, pretrained=pretrained, **row)
    tell = features_only and any(
        p.kind is p.VAR_KEYWORD or p.name == "features_only" for p in parameters.values()
    )
    with place.device or contextlib.nullcontext():
        model = _call_features_only(build) if tell else build()
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{entry.name!r} returned a {type(model).__name__}, not a module.")
    return model.to(place.device, place.dtype)


_MEANT = (
    "features_only",
    "out_indices",
    "out_strides",
    "feature_cls",
    "output_stride",
    "checkpoint_path",
    "auto_mapping",
)


def _call_features_only(build: Callable[..., Any]) -> Any:
    """Call a function with ``features_only=True``, which may choose another class for it; the
    extractor itself is made afterwards. One whose class does not know the word is not told."""
    outer, _features_only.on = _features_only.on, True
    try:
        return build(features_only=True)
    except TypeError as error:
        if "features_only" not in str(error):
            raise
    finally:
        _features_only.on = outer
    return build()


@checked
def build_model_with_cfg(model_cls: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Any:
    """Build a model inside a function that ``@register_model`` adds, timm's and MindCV's way.

    ``build_model_with_cfg(Cls, "name", pretrained, **kwargs)`` and
    ``build_model_with_cfg(Cls, pretrained, **kwargs)`` (``default_cfg`` third or by name) both do.
    Arguments of ``create_model`` act on the result; the others are the class's.

    Args:
        model_cls: a class or function that builds the network.
        *args: name, ``pretrained`` and ``default_cfg``, told apart by their types.
        **kwargs: the same by name, arguments of ``create_model``, and arguments of the class.

    Returns:
        The network; with ``features_only`` an extractor.

    Raises:
        ArgumentError: as ``create_model``.
        CheckpointError: likewise.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def __init__(self, num_classes=1000):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(3, num_classes, 3, stride=2)
        ...     def forward(self, x):
        ...         return self.conv(x).mean((2, 3))
        >>> featnet.build_model_with_cfg(Net, pretrained=False, num_classes=7).conv.out_channels
        7
    """
    if not callable(model_cls):
        raise ArgumentError(f"{model_cls!r} builds no network: a class or function is expected.")
    variant, pretrained, cfg = "", kwargs.pop("pretrained", False), kwargs.pop("default_cfg", None)
    for value in args:
        if isinstance(value, str):
            variant = value
        elif isinstance(value, Mapping):
            cfg = value
        else:
            pretrained = bool(value)
    cfg = kwargs.pop("pretrained_cfg", None) or cfg
    overlay = kwargs.pop("pretrained_cfg_overlay", None)
    if cfg is not None and not isinstance(cfg, Weights):
        known = Weights.__dataclass_fields__
        cfg = Weights(**{k: v for k, v in cfg.items() if k in known})
    if overlay:
        cfg = (cfg or Weights()).replace(**overlay)
    features_only = kwargs.pop("features_only", False)
    stride = kwargs.pop("output_stride", None)
    wrap = {k: kwargs.pop(k) for k in FEATURE_ARGUMENTS if k in kwargs}
    wrap = {k: v for k, v in wrap.items() if v is not None}
    if wrap and not features_only:
        raise ArgumentError(f"{', '.join(wrap)} need features_only=True.")
    features_only = features_only and not _features_only.on
    auto_mapping = kwargs.pop("auto_mapping", None) is not False
    source = _source(cfg, pretrained, None, overlay, None)
    kwargs = {k: v for k, v in kwargs.items() if v is not None}
    registry.check_arguments(model_cls, kwargs, what=variant or "build_model_with_cfg")
    model = model_cls(**kwargs)
    if cfg is not None and not isinstance(model, Backbone):
        model.pretrained_cfg = model.default_cfg = cfg
    load = None
    if source is not None:
        mapped = cfg is not None and hub.is_immutable(cfg)
        load = Load(source, Choices(cfg, mmap=mapped, auto_mapping=auto_mapping))
    return _Finish(cfg, stride, False, features_only, wrap, new_classes=False)(model, load)


@checked
def feature_info(model_name: str, **arguments: Any) -> FeatureInfo:
    """Describe the outputs of ``create_model(model_name, features_only=True, **arguments)``.

    What the name alone says is read from a table; else the network is built on the meta device: no
    memory is allocated and no value computed.

    Args:
        model_name: as for :func:`create_model`.
        **arguments: likewise; those that only concern weights have no effect.

    Returns:
        The levels that come out, in their order.

    Raises:
        FeatnetError: as :func:`create_model`.

    Example:
        >>> info = featnet.feature_info("resnet50", out_indices=(2, 4), output_stride=16)
        >>> info.channels(), info.reduction(), info.sizes((224, 320))
        ([512, 2048], [8, 16], [(28, 40), (14, 20)])
    """
    record = registry.measured(model_name) if arguments.keys() <= {"out_indices"} else None
    if record is not None:
        registry.find(model_name)  # its tag may not exist
        columns = zip(record.channels, record.reductions, record.modules, strict=True)
        return FeatureInfo(
            [dict(channels=c, reduction=r, module=name) for c, r, name in columns],
            arguments.get("out_indices"),
            measure=lambda size: _measure(model_name, size),
        )
    arguments = {"features_only": True, **arguments}
    for name in ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg_overlay"):
        arguments.pop(name, None)
    with torch.device("meta"):
        info: FeatureInfo = create_model(model_name, **arguments).feature_info
    return info


def _measure(model_name: str, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The size of every level of a network."""
    with torch.device("meta"):
        return create_model(model_name, features_only=True).feature_info.sizes(size)


@checked
def model_entrypoint(model_name: str) -> Callable[..., Any]:
    """Return the function that builds a model.

    Args:
        model_name: of a model, with or without the tag of a checkpoint.

    Returns:
        A function ``f(pretrained=False, **kwargs)``.

    Raises:
        UnknownModelError: no such name.

    Example:
        >>> featnet.model_entrypoint("resnet18")(num_classes=5).fc.out_features
        5
    """
    entry = registry.find(model_name)
    if entry.is_function:
        return entry.build
    return functools.partial(create_model, model_name)


__all__ = ["UnknownModelError", "build_model_with_cfg", "create_model", "feature_info"]
