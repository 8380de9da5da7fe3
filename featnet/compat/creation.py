"""timm's functions that create, list and describe models."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from .. import factory, registry
from ..checkpoints import sources
from ..errors import ArgumentError, UnknownModelError
from ..extraction.extractors import FeatureNet
from ..weights import Weights
from . import modules, options

Function = TypeVar("Function", bound=Callable[..., Any])
Patterns = str | Sequence[str]
# Extractors of timm's that differ in how they get at the maps, not in what comes out
SAME_MAPS = {"getter": "list", "fx": "list"}
# Levels that timm's features nets give unless they are told; where it is not the whole list
DEFAULT_LEVELS: Mapping[str, int | tuple[int, ...]] = {
    "dla": (1, 2, 3, 4, 5),
    "selecsls": (0, 1, 2, 3, 4),
    "tresnet": (1, 2, 3, 4),
    **dict.fromkeys(("beit", "convmixer", "deit", "eva", "vision_transformer"), 3),
    **dict.fromkeys((f"vision_transformer_{kind}" for kind in ("hybrid", "relpos", "sam")), 3),
}


def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: str | Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Build a model: :func:`featnet.create_model` with timm's order of arguments.

    ``pretrained`` and ``features_only`` may be any value that is true or false; ``feature_cls`` may
    be ``"getter"`` or ``"fx"``, whose maps are those of ``"list"``; ``feature_cfg`` holds options
    of the extractor. The levels come out in the order of ``out_indices``, not in timm's; without
    them they are those that timm gives, of a ViT the last three.

    Args:
        model_name: as for :func:`featnet.create_model`.
        pretrained, pretrained_cfg, pretrained_cfg_overlay, checkpoint_path, cache_dir: likewise.
        scriptable, exportable, no_jit: likewise.
        **kwargs: likewise.

    Returns:
        A network, or with ``features_only`` an extractor.

    Raises:
        FeatnetError: as :func:`featnet.create_model`; of a model that timm has and featnet lacks,
            it says so.
    """
    kwargs = {**kwargs, **(kwargs.pop("feature_cfg", None) or {})}
    kwargs.pop("flatten_sequential", None)  # which is what flat=True is about
    kind = kwargs.get("feature_cls")
    if isinstance(kind, str):
        kwargs["feature_cls"] = SAME_MAPS.get(kind, kind)
    features_only = bool(kwargs.pop("features_only", False))
    if features_only and kwargs.get("out_indices") is None and "out_strides" not in kwargs:
        kwargs["out_indices"] = _default_levels(model_name)
    try:
        model = factory.create_model(
            model_name,
            bool(pretrained),
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            checkpoint_path=checkpoint_path,
            cache_dir=cache_dir,
            scriptable=scriptable,
            exportable=exportable,
            no_jit=no_jit,
            features_only=features_only,
            **kwargs,
        )
    except UnknownModelError as error:
        name = get_arch_name(model_name) if isinstance(model_name, str) else ""
        if name not in modules.peer_models() or registry.is_model(name):
            raise
        raise UnknownModelError(
            f"{error} timm {modules.VERSION} itself has {name!r}: that code needs timm, without "
            "use_as_timm()."
        ) from None
    if not features_only and isinstance(model, _vit()):
        _as_timms_vit(model)
    if options.flat and isinstance(model, FeatureNet):
        from .flat import flatten

        return flatten(model)
    return model


def _default_levels(name: object) -> int | tuple[int, ...] | None:
    """Levels that timm gives unless it is told; None for all."""
    module = modules.peer_models().get(get_arch_name(name)) if isinstance(name, str) else None
    return DEFAULT_LEVELS.get(module or "")


def _vit() -> type[nn.Module]:
    """The class of all vision transformers, which is loaded already where there is one."""
    kind: type[nn.Module] = importlib.import_module("featnet.models.vit").VisionTransformer
    return kind


def _as_timms_vit(model: Any) -> None:
    """Say in timm's words what a ViT is: its features are tokens, which no map is pooled from, and
    its ``patch_embed`` gives (N, h, w, C), as timm's does with ``dynamic_img_size``."""
    if isinstance(model.pretrained_cfg, Weights):
        model.pretrained_cfg = model.pretrained_cfg.replace(pool_size=None)
    model.dynamic_img_size = True


def entrypoint(name: str) -> Callable[..., Any]:
    """Return the function under a model's name, as ``timm.models.resnet50``."""

    def build(pretrained: bool = False, **kwargs: Any) -> Any:
        return create_model(name, pretrained, **kwargs)

    build.__name__ = build.__qualname__ = name
    return build


def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., Any]:
    """Return the function that builds a model.

    Args:
        model_name: with or without a tag.
        module_filter: name of the family's module in which it must be.

    Returns:
        ``f(pretrained=False, **kwargs)``.

    Raises:
        UnknownModelError: no such model, or not in that module.
    """
    name = get_arch_name(model_name)
    if module_filter and not is_model_in_modules(name, [module_filter]):
        raise UnknownModelError(f"Unknown model {name!r} in module {module_filter!r}.")
    if not registry.is_model(name):
        raise registry.unknown_model(name)
    entry = registry.find(name)
    return entry.build if entry.is_function else entrypoint(name)


def list_models(
    filter: Patterns = "",
    module: Patterns = "",
    pretrained: bool = False,
    exclude_filters: Patterns = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """List the names of models.

    Args:
        filter: a pattern with wildcards, or several.
        module: timm's name of a family's module, or several.
        pretrained: only those with weights, by default with their tags.
        exclude_filters: patterns of names to leave out.
        name_matches_cfg: accepted; every model has a record of its weights.
        include_tags: names with tags.

    Returns:
        The names, in natural order.
    """
    asked = [module] if isinstance(module, str) else list(module)
    names = registry.list_models(
        filter or "",
        pretrained=pretrained,
        exclude_filters=exclude_filters or "",
        include_tags=include_tags,
    )
    return [n for n in names if not any(asked) or is_model_in_modules(get_arch_name(n), asked)]


def list_pretrained(filter: Patterns = "", exclude_filters: Patterns = "") -> list[str]:
    """List the names, with tags, that have weights.

    Args:
        filter: a pattern with wildcards, or several.
        exclude_filters: patterns of names to leave out.
    """
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters, include_tags=True)


def list_modules() -> list[str]:
    """List timm's names of the modules of families that featnet has."""
    return sorted({_module_of(name) for name in registry.list_models()})


def _module_of(name: str) -> str:
    """timm's module of a model; of one that was registered its own."""
    return modules.peer_models().get(name) or registry.family_of(name)


def is_model(model_name: str) -> bool:
    """Tell if there is a model of this name, with or without a tag."""
    return registry.is_model(get_arch_name(model_name))


def is_model_in_modules(model_name: str, module_names: Iterable[str]) -> bool:
    """Tell if a model is in one of the families' modules, by timm's names of these."""
    name = get_arch_name(model_name)
    return registry.is_model(name) and _module_of(name) in set(module_names)


def is_model_pretrained(model_name: str) -> bool:
    """Tell if a model, or with a tag that checkpoint of it, has weights."""
    name, tag = split_model_name_tag(model_name)
    rows = registry.checkpoints_of(name) if registry.is_model(name) else []
    return bool(rows) and (not tag or f"{name}.{tag}" in rows)


def split_model_name_tag(model_name: str, no_tag: str = "") -> tuple[str, str]:
    """Split ``"resnet50.a1_in1k"``; ``no_tag`` is given where there is none."""
    name, _, tag = model_name.partition(".")
    return name, tag or no_tag


def get_arch_name(model_name: str) -> str:
    """Return the name without the tag."""
    return model_name.partition(".")[0]


def get_pretrained_cfg(model_name: str, allow_unregistered: bool = True) -> Weights | None:
    """Return the record of a checkpoint.

    Args:
        model_name: with a tag, or without for the default.
        allow_unregistered: None for an unknown name, in place of an error.

    Raises:
        UnknownModelError: an unknown name or tag.
    """
    if allow_unregistered and not is_model(model_name):
        return None
    return registry.get_weights(model_name)


def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> Any:
    """Return a field of a checkpoint's record; None where it has none."""
    return getattr(get_pretrained_cfg(model_name), cfg_key, None)


def get_arch_pretrained_cfgs(model_name: str) -> dict[str, Weights | None]:
    """Return the records of all checkpoints of a model, by their full names."""
    rows = registry.checkpoints_of(get_arch_name(model_name))
    return {name: registry.get_weights(name) for name in rows}


def register_model(function: Function) -> Function:
    """Decorate a function that builds a model; as in timm, an earlier one of the name is replaced,
    with a warning."""
    if registry.is_model(function.__name__):
        warnings.warn(f"Overwriting the model {function.__name__}.", stacklevel=2)
    registry.register_model(function, override=True)
    return function


def generate_default_cfgs(cfgs: Mapping[str, Mapping[str, Any]]) -> dict[str, Weights]:
    """Make records of checkpoints from dicts by ``"name.tag"``.

    A ``*`` behind a tag marks the default, which comes first.
    """
    known = Weights.__dataclass_fields__
    first = sorted(cfgs.items(), key=lambda item: not item[0].endswith("*"))
    rows: dict[str, Weights] = {}
    for key, fields in first:
        name, tag = split_model_name_tag(key.rstrip("*"))
        kept = {k: v for k, v in fields.items() if k in known}
        rows[key.rstrip("*")] = Weights(**{"architecture": name, "tag": tag, **kept})
    return rows


def resolve_pretrained_cfg(
    variant: str,
    pretrained_cfg: str | Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
) -> Weights:
    """Return the record of a checkpoint.

    Args:
        variant: name of the model.
        pretrained_cfg: a tag, or the fields of a record.
        pretrained_cfg_overlay: fields to change.

    Raises:
        UnknownModelError: an unknown tag.
        ArgumentError: an unknown field.
    """
    if isinstance(pretrained_cfg, Mapping):
        cfg: Weights | None = Weights().replace(**pretrained_cfg)
    else:
        cfg = get_pretrained_cfg(f"{variant}.{pretrained_cfg}" if pretrained_cfg else variant)
    cfg = cfg or Weights(architecture=get_arch_name(variant))
    return cfg.replace(**(pretrained_cfg_overlay or {}))


def describe(url: str = "", **fields: object) -> dict[str, Any]:
    """Return the record of a checkpoint as a dict, of a model of one's own.

    Args:
        url: of the file; kept, not fetched.
        **fields: of :class:`featnet.Weights`, in place of the defaults.
    """
    return {**Weights().to_dict(), "url": url, **fields}


def filter_pretrained_cfg(
    cfg: Mapping[str, Any], remove_source: bool = False, remove_null: bool = True
) -> dict[str, Any]:
    """Return a record as a dict, without its sources or without what is None."""
    gone = {"url", "file", "hf_hub_id", "hf_hub_filename", "source"} if remove_source else set()
    keep_null = {"pool_size", "first_conv", "classifier"}
    return {
        name: value
        for name, value in cfg.items()
        if name not in gone and not (remove_null and value is None and name not in keep_null)
    }


def parse_model_name(model_name: str) -> tuple[str | None, str]:
    """Split a name into its source (``"hf-hub"``, ``"local-dir"``, None) and what is behind it.

    Raises:
        UnknownModelError: an unknown source, or nothing behind it.
    """
    kind, _, place = model_name.partition(":")
    if kind.lower() == "local-dir" and place.strip():
        return "local-dir", place  # whatever it looks like, //server/share too
    source = sources.parse(model_name)
    return (None, model_name) if source is None else (source.kind, source.place)


def safe_model_name(model_name: str, remove_source: bool = True) -> str:
    """Return a name in which all but letters and digits is ``_``, for files."""
    name = parse_model_name(model_name)[1] if remove_source else model_name
    return "".join(c if c.isalnum() else "_" for c in name).rstrip("_")


def build_model_with_cfg(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: bool,
    *,
    model_cfg: object = None,
    feature_cfg: Mapping[str, Any] | None = None,
    pretrained_strict: bool = True,
    pretrained_filter_fn: Callable[..., Any] | None = None,
    kwargs_filter: Sequence[str] | None = None,
    **kwargs: Any,
) -> Any:
    """Build a model inside a registered function: :func:`featnet.build_model_with_cfg`.

    Args:
        model_cls: a class or function that builds the network.
        variant: name of the model.
        pretrained: load the weights of ``pretrained_cfg``.
        model_cfg: the class's argument ``cfg``.
        feature_cfg: options of the extractor.
        pretrained_strict: must be True: what does not fit is an error.
        pretrained_filter_fn: accepted; a Backbone converts in ``convert_state_dict``.
        kwargs_filter: names of arguments that are dropped.
        **kwargs: as for :func:`featnet.build_model_with_cfg`.

    Raises:
        ArgumentError: ``pretrained_strict=False``; ``pretrained_filter_fn`` with ``pretrained``.
    """
    if not pretrained_strict:
        raise ArgumentError("pretrained_strict=False: weights that do not fit are an error here.")
    if pretrained and pretrained_filter_fn is not None:
        raise ArgumentError(
            "pretrained_filter_fn= is not called here: a featnet.Backbone converts foreign names "
            "in its convert_state_dict(); or load the result with featnet.load_checkpoint."
        )
    kwargs = {k: v for k, v in kwargs.items() if k not in (kwargs_filter or ())}
    if kwargs.get("features_only"):
        kwargs = {**{k: v for k, v in (feature_cfg or {}).items() if k == "out_indices"}, **kwargs}
    if model_cfg is not None:
        kwargs["cfg"] = model_cfg
    return factory.build_model_with_cfg(model_cls, variant, pretrained, **kwargs)
