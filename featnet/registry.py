"""The names of models, and the files that define them. Imports neither torch nor a family."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import aliases
from .capabilities import Capabilities, read_table
from .errors import ArgumentError, UnknownModelError, nearest
from .values import check_value, checked
from .weights import Weights

MODELS = Path(__file__).parent / "models"
Function = TypeVar("Function", bound=Callable[..., Any])
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Family:
    """The variants and checkpoints of one architecture, as tables.

    Attributes:
        model: the class (or function) that builds a variant.
        variants: name to constructor arguments; checked against the constructor's signature. A
            variant of another class than ``model`` is ``(class, arguments)``.
        weights: ``"variant.tag"`` to Weights; a variant's first row is its default.

    Raises:
        ArgumentError: a row has an argument that the constructor does not take, or a checkpoint
            belongs to no variant.

    Example:
        >>> from featnet.models.resnet import BasicBlock, ResNet
        >>> tiny = dict(block=BasicBlock, depths=(1, 1, 1, 1))
        >>> family = featnet.Family(model=ResNet, variants={"resnet_tiny": tiny})
        >>> _ = featnet.register(family)
        >>> featnet.create_model("resnet_tiny", features_only=True).feature_info.channels()
        [64, 64, 128, 256, 512]
    """

    model: Callable[..., Any]
    variants: Mapping[str, Row | tuple[Callable[..., Any], Row]]
    weights: Mapping[str, Weights] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for variant in self.variants:
            model, row = self.recipe(variant)
            check_arguments(model, row, what=f"Row {variant!r}")
        for key in self.weights:
            if key.partition(".")[0] not in self.variants:
                raise ArgumentError(f"Weights {key!r} belong to no variant of the family.")

    def recipe(self, variant: str) -> tuple[Callable[..., Any], Row]:
        """Look up the constructor of a variant and its arguments.

        Args:
            variant: a name in ``variants``.

        Returns:
            The class (or function), and the arguments of the row.
        """
        row = self.variants[variant]
        return row if isinstance(row, tuple) else (self.model, row)


@functools.lru_cache(maxsize=16)  # the rows of a family have one constructor, or a few
def _parameters(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    return tuple(inspect.signature(function).parameters.values())


def check_arguments(
    function: Callable[..., Any], names: Mapping[str, Any], *, what: str, near: Sequence[str] = ()
) -> None:
    """Refuse arguments that a function does not take.

    Args:
        function: a class or function.
        names: arguments by name; their values are not looked at.
        what: of what the arguments are, as the message begins.
        near: further names that the caller could have meant.

    Raises:
        ArgumentError: names the argument, the nearest right one, and all that there are.
    """
    hashable = getattr(function, "__hash__", None) is not None
    parameters = (_parameters if hashable else _parameters.__wrapped__)(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    for name in names:
        if name not in allowed:
            raise ArgumentError(
                f"{what}: {getattr(function, '__name__', function)} got an unexpected keyword "
                f"argument {name!r}.{_hint(name, {*allowed, *near})} It takes {', '.join(allowed)}."
            )


def check_values(function: Callable[..., Any], values: Mapping[str, Any], *, what: str) -> None:
    """Refuse values that a function's annotations do not allow.

    Args:
        function: a class or function.
        values: arguments by name.
        what: of what the arguments are, as the message begins.

    Raises:
        ArgumentError: names the argument, its value, and what is expected.
    """
    for parameter in _parameters(function) if values else ():
        if parameter.name in values and parameter.annotation is not parameter.empty:
            written = parameter.annotation
            annotation = written if isinstance(written, str) else inspect.formatannotation(written)
            value = values[parameter.name]
            check_value(parameter.name, value, annotation, where=f"{what}: ")


def _hint(name: str, allowed: Collection[str]) -> str:
    """Give the word here for an argument of another library, or else the nearest name."""
    other = aliases.ARGUMENTS.get(name)
    return f" {other}" if other else nearest(name, allowed)


@functools.cache
def weights_table(family: str) -> Mapping[str, Weights]:
    """Read ``models/<family>.json``; the hub repository is ``timm/<key>`` where a row has none."""
    rows = json.loads((MODELS / f"{family}.json").read_text(encoding="utf-8"))
    return {key: _weights(key, row) for key, row in rows.items()}


def _weights(key: str, row: Mapping[str, Any]) -> Weights:
    architecture, _, tag = key.partition(".")
    return Weights(**{"architecture": architecture, "tag": tag, "hf_hub_id": f"timm/{key}", **row})


@functools.cache
def _index() -> dict[str, tuple[str, tuple[str, ...]]]:
    """variant -> (family, tags that have weights), from the generated file."""
    lines = (MODELS / "index.txt").read_text(encoding="utf-8").split("\n")
    rows = (line.split(" ") for line in lines if line)
    return {variant: (family, tuple(tags)) for variant, family, *tags in rows}


# Names that were registered at run time: a row of a Family, or a function.
_registered: dict[str, Family | Callable[..., Any]] = {}


def _claim(name: str, entry: Family | Callable[..., Any], *, override: bool) -> None:
    if not isinstance(name, str) or not name or "." in name or any(c.isspace() for c in name):
        raise ArgumentError(f"{name!r} cannot be a model's name: a word without dots or spaces.")
    known = _registered.get(name)

    def origin(value: object) -> Any:
        return getattr(value, "__module__", None), getattr(value, "__qualname__", None)

    again = known is not None and callable(entry) and origin(known) == origin(entry)
    if not override and not again and (known is not None or name in _index()):
        raise ArgumentError(
            f"A model named {name!r} exists already. Choose another name, or say override=True."
        )
    _registered[name] = entry


@checked
def register(family: Family, *, override: bool = False) -> Family:
    """Add the variants of a family under their names.

    Args:
        family: tables of variants and checkpoints.
        override: replace models of the same names.

    Returns:
        The family itself.

    Raises:
        ArgumentError: a name that exists, unless ``override``.

    Example:
        >>> from featnet.models.resnet import BasicBlock, ResNet
        >>> rows = {"resnet10x": dict(block=BasicBlock, depths=(1, 1, 1, 1))}
        >>> _ = featnet.register(featnet.Family(model=ResNet, variants=rows))
        >>> featnet.is_model("resnet10x")
        True
    """
    for name in family.variants:
        _claim(name, family, override=override)
    return family


@checked
def register_model(
    function: Function | None = None, *, override: bool = False
) -> Function | Callable[[Function], Function]:
    """Decorate a function that builds a model, so that ``create_model`` knows it by its name.

    Defining the same function of the same module again replaces it, as a notebook does.

    Args:
        function: ``f(pretrained=False, **kwargs) -> nn.Module``.
        override: replace a model of the same name.

    Returns:
        The function itself; without a function, the decorator.

    Raises:
        ArgumentError: a name that exists, unless ``override``.

    Example:
        >>> @featnet.register_model
        ... def my_stem(pretrained=False, **kwargs):
        ...     return torch.nn.Conv2d(3, 8, 3, stride=2)
        >>> featnet.create_model("my_stem").out_channels
        8
    """
    if function is None:
        return lambda f: register_model(f, override=override)  # type: ignore[return-value]
    _claim(function.__name__, function, override=override)
    return function


@dataclasses.dataclass(frozen=True)
class Entry:
    """The constructor, arguments and checkpoint that a name stands for."""

    name: str
    build: Callable[..., Any]
    row: Mapping[str, Any]
    weights: Weights | None
    is_function: bool = False
    # those of the row that were stated beside the name, in a config.json
    arguments: Row = dataclasses.field(default_factory=dict)


def measured(name: str) -> Capabilities | None:
    """Return what is known of a model of featnet's own; None of others, and of those that were
    registered in their place."""
    variant = name.partition(".")[0]
    return None if variant in _registered else read_table().get(variant)


def split_name(name: object) -> tuple[str, str]:
    """Split ``"resnet50.a1_in1k"`` into ``("resnet50", "a1_in1k")``.

    Raises:
        ArgumentError: not a string.
        UnknownModelError: an empty name, or one with spaces.
    """
    if not isinstance(name, str):
        raise ArgumentError(
            f"Unknown model {name!r}: a name is a str, not a {type(name).__name__}; "
            "featnet.list_models() has them all."
        )
    variant, _, tag = name.partition(".")
    if not variant or any(c.isspace() for c in name):
        raise UnknownModelError(
            f"Unknown model {name!r}: a name is a word without spaces, such as 'resnet50' or "
            f"'resnet50.a1_in1k'.{nearest(name.strip(), _names())}"
        )
    return variant, tag


def _names() -> list[str]:
    return [*_index(), *(name for name in _registered if name not in _index())]


def unknown_model(name: str) -> UnknownModelError:
    """Make the error for a name that no model has: with its name here if it is another library's,
    or else with the nearest."""
    if "//" in name and re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
        return UnknownModelError(
            f"{name!r} is a URL, not the name of a model: download the file, and give it as "
            "checkpoint_path= beside the name."
        )
    hint = aliases.suggest(name, _names())
    if any(c in name for c in "/\\:"):
        hint += (
            f" Say 'hf-hub:{name}' for a repository of the hub, or 'local-dir:{name}' for a folder."
        )
    return UnknownModelError(
        f"Unknown model {name!r}.{hint or nearest(name, _names())} "
        f"featnet.list_models() has all {len(_names())}.{_unindexed(name)}"
    )


def find(name: str, *, tag: str | None = None) -> Entry:
    """Look up the entry of a name, importing its family.

    Raises:
        UnknownModelError: no such model (with the nearest names), or no such tag of it.
    """
    variant, named_tag = split_name(name)
    tag = named_tag if tag is None else tag
    entry = _registered.get(variant)
    if entry is None:
        if variant not in _index():
            raise unknown_model(variant)
        entry = importlib.import_module(f"featnet.models.{_index()[variant][0]}").FAMILY
    if not isinstance(entry, Family):
        return Entry(variant, entry, {}, get_weights(name, tag=tag), is_function=True)
    return Entry(variant, *entry.recipe(variant), get_weights(name, tag=tag))


def _unindexed(variant: str) -> str:
    """A hint for who writes a family: its file names the variant, but the index does not."""
    for path in sorted(MODELS.glob("[!_]*.py")):
        if re.search(rf"""["']{re.escape(variant)}["']""", path.read_text(encoding="utf-8")):
            return (
                f" featnet/models/{path.name} names it, models/index.txt does not: "
                "run python -m featnet.registry."
            )
    return ""


def _rows(variant: str) -> dict[str, Weights]:
    """tag -> Weights, the default first."""
    entry = _registered.get(variant)
    table: Mapping[str, Weights]
    if entry is None:
        table = weights_table(_index()[variant][0]) if variant in _index() else {}
    else:
        table = entry.weights if isinstance(entry, Family) else {}
    keys = [key for key in table if key.partition(".")[0] == variant]
    return {key.partition(".")[2]: table[key] for key in keys}


@checked
def get_weights(name: str, *, tag: str | None = None) -> Weights | None:
    """Look up the record of a checkpoint. Imports neither torch nor a family.

    Args:
        name: of a model, with or without a tag.
        tag: of the checkpoint, in place of the one in the name.

    Returns:
        The record of this tag, or of the model's default; None if the model has no checkpoints.

    Raises:
        UnknownModelError: no such model, or no such tag of it.

    Example:
        >>> featnet.get_weights("resnet50").tag
        'a1_in1k'
        >>> featnet.get_weights("resnet50", tag="a2_in1k").crop_pct
        0.95
    """
    variant, named_tag = split_name(name)
    tag = named_tag if tag is None else tag
    if variant not in _registered and variant not in _index():
        raise unknown_model(variant)
    rows = _rows(variant)
    if tag and tag not in rows:
        raise UnknownModelError(
            f"Unknown model tag {tag!r} of {variant!r}.{nearest(tag, rows)} "
            f"It has {', '.join(rows) or 'none'}."
        )
    return rows[tag] if tag else next(iter(rows.values()), None)


@checked
def is_model(name: str) -> bool:
    """Tell if a model of this name exists.

    Args:
        name: of a model, without a tag.

    Returns:
        True if ``create_model`` knows the name.

    Example:
        >>> featnet.is_model("resnet18"), featnet.is_model("resnet19")
        (True, False)
    """
    return isinstance(name, str) and (name in _registered or name in _index())


def _pretrained_tags(variant: str) -> tuple[str, ...]:
    if variant in _registered:
        return tuple(tag for tag, row in _rows(variant).items() if row.has_weights)
    return _index()[variant][1]


def _module_of(variant: str) -> str:
    entry = _registered.get(variant)
    if entry is None:
        return _index()[variant][0]
    origin = entry.model if isinstance(entry, Family) else entry
    return str(getattr(origin, "__module__", "")).rpartition(".")[2]


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


@checked
def list_models(
    filter: str | Sequence[str] = "",
    *,
    pretrained: bool = False,
    module: str | Sequence[str] = "",
    exclude_filters: str | Sequence[str] = "",
    include_tags: bool | None = None,
    family: str | Sequence[str] = "",
    stride: int | None = None,
    levels: int | None = None,
    output_stride: int | None = None,
    min_params: float | None = None,
    max_params: float | None = None,
    max_macs: float | None = None,
    licence: str | Sequence[str] = "",
    sort: str = "name",
) -> list[str]:
    """List the names of models. Imports neither torch nor a family.

    Models that were registered at run time have no sizes: they pass no filter by size.

    Args:
        filter: a pattern with wildcards (``"resnet*"``), or several: a name matches any.
        pretrained: only models that have weights; with their tags, unless ``include_tags=False``.
        module, family: only the family file(s) of this name.
        exclude_filters: patterns of names to leave out.
        include_tags: names with tags (``resnet50.a1_in1k``); by default with ``pretrained``.
        stride: only networks with a level of this reduction.
        levels: only networks with so many levels.
        output_stride: only networks that can be dilated to it.
        min_params, max_params: bounds of the number of parameters.
        max_macs: upper bound of the multiply-adds for one image of the default input size.
        licence: only models with a checkpoint under this licence (or one of several), and with
            ``pretrained`` only those checkpoints.
        sort: ``"name"``, ``"params"``, ``"macs"`` or ``"levels"``.

    Returns:
        Names in natural order (``resnet18`` before ``resnet101``), or the smallest first.

    Raises:
        ArgumentError: a family, licence or order that does not exist.

    Example:
        >>> featnet.list_models("resnet?8")
        ['resnet18']
        >>> featnet.list_models("vgg1*", exclude_filters="*_bn")
        ['vgg11', 'vgg13', 'vgg16', 'vgg19']
        >>> featnet.list_models("resnet*", max_params=12e6, stride=4, sort="params")[0]
        'resnet10t'
    """
    with_tags = pretrained if include_tags is None else include_tags
    modules = {*_patterns(module), *_patterns(family)}
    licences = {word.lower() for word in _patterns(licence)}
    _check_words("module", _patterns(module), list_modules())
    _check_words("family", _patterns(family), list_modules())
    _check_words("licence", licences, _licences() if licences else ())
    _check_words("sort", {sort}, SORTS)
    sizes = {
        "stride": stride,
        "levels": levels,
        "output_stride": output_stride,
        "min_params": min_params,
        "max_params": max_params,
        "max_macs": max_macs,
    }
    asked = {name: value for name, value in sizes.items() if value is not None}
    names: list[str] = []
    for variant in _names():
        if modules and _module_of(variant) not in modules:
            continue
        if asked and not _passes(read_table().get(variant), asked):
            continue
        tags = _tags(variant, pretrained=pretrained, licences=licences)
        if (pretrained or licences) and not tags:
            continue
        full = [f"{variant}.{tag}" if tag else variant for tag in tags] if with_tags else []
        names += full or [variant]
    wanted, unwanted = _patterns(filter), _patterns(exclude_filters)
    if wanted:
        names = [name for name in names if any(_matches(name, p) for p in wanted)]
    names = [name for name in names if not any(_matches(name, p) for p in unwanted)]
    return sorted(names, key=lambda name: (_order(name, sort), _natural(name)))


SORTS = ("name", "params", "macs", "levels")


def _patterns(value: str | Sequence[str]) -> list[str]:
    if isinstance(value, str):
        return [value] * bool(value)
    if not isinstance(value, Iterable) or not all(isinstance(each, str) for each in value):
        raise ArgumentError(f"{value!r}: a pattern of names, or several, is expected.")
    return list(value)


def _matches(name: str, pattern: str) -> bool:
    base = name.partition(".")[0]
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(base, pattern)


def _check_words(what: str, words: Collection[str], choices: Sequence[str]) -> None:
    for word in words:
        if word not in choices:
            raise ArgumentError(
                f"{what}={word!r}: one of {', '.join(choices)} is expected.{nearest(word, choices)}"
            )


def _licences() -> list[str]:
    """The licences of all checkpoints."""
    rows = (row for variant in _names() for row in _rows(variant).values())
    return sorted({row.license for row in rows if row.license})


def _tags(variant: str, *, pretrained: bool, licences: Collection[str]) -> list[str]:
    """The tags with weights of a variant, under one of the licences if there are any."""
    tags = list(_pretrained_tags(variant))
    if licences:
        rows = _rows(variant)
        kept = tags if pretrained else list(rows)
        tags = [tag for tag in kept if (rows[tag].license or "") in licences]
    return tags


def _passes(record: Capabilities | None, asked: Mapping[str, Any]) -> bool:
    """Tell if a network is as it was asked for; one that was never measured is not."""
    if record is None:
        return False
    rules: Mapping[str, Callable[[Capabilities, Any], bool]] = {
        "stride": lambda r, n: n in r.reductions,
        "levels": lambda r, n: n == len(r.reductions),
        "output_stride": lambda r, n: n in r.output_strides,
        "min_params": lambda r, n: r.params >= n,
        "max_params": lambda r, n: r.params <= n,
        "max_macs": lambda r, n: r.macs <= n,
    }
    return all(rules[name](record, value) for name, value in asked.items())


def _order(name: str, sort: str) -> float:
    record = read_table().get(name.partition(".")[0]) if sort != "name" else None
    if sort == "name":
        return 0
    if record is None:
        return float("inf")
    return len(record.reductions) if sort == "levels" else getattr(record, sort)


def family_of(variant: str) -> str:
    """Give the name of the family file of a variant."""
    return _module_of(variant)


@functools.cache
def _papers(family: str) -> dict[str, str]:
    text = (MODELS / f"{family}.py").read_text(encoding="utf-8")
    words = " ".join(text.split('"""')[1].split())  # the docstring, without importing the file
    pairs = re.findall(r"([^,;:().]+?),? \(?(?:\w+, )?(https://arxiv\.org/abs/[\d.]+\d)", words)
    return {title.strip().removeprefix("and "): address for title, address in pairs}


def checkpoints_of(variant: str) -> list[str]:
    """Give the names, with tags, of a variant's checkpoints."""
    return [f"{variant}.{tag}" if tag else variant for tag in _pretrained_tags(variant)]


def papers_of(variant: str) -> dict[str, str]:
    """Give the papers that the family file of a variant names, by what it calls them.

    Those whose names are in the variant's, where there are any: ``{"ResNet": "https://..."}``.
    """
    papers = {} if variant in _registered else _papers(_module_of(variant))

    def plain(words: str) -> str:
        return re.sub(r"[^a-z0-9]", "", words.lower())

    own = {title: url for title, url in papers.items() if plain(title) in plain(variant)}
    return own or papers


@checked
def list_pretrained(filter: str | Sequence[str] = "", **options: Any) -> list[str]:
    """List the names, with tags, of everything that has weights.

    Args:
        filter: a pattern with wildcards, or several: a name matches any.
        **options: the other arguments of :func:`list_models`.

    Returns:
        Names in natural order.

    Example:
        >>> featnet.list_pretrained("densenet161")
        ['densenet161.tv_in1k']
    """
    return list_models(filter, pretrained=True, **options)


@checked
def list_modules() -> list[str]:
    """List the names of the family files, which ``list_models(module=...)`` takes.

    Returns:
        Names in alphabetical order.

    Example:
        >>> "resnet" in featnet.list_modules()
        True
    """
    return sorted({_module_of(name) for name in _names()})


def render_index() -> str:
    """Return the text for ``models/index.txt``; ``python -m featnet.registry`` writes it."""
    lines = []
    for path in sorted(MODELS.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        family = importlib.import_module(f"featnet.models.{path.stem}").FAMILY
        for variant in family.variants:
            rows = ((key.partition("."), row) for key, row in family.weights.items())
            tags = [tag for (name, _, tag), row in rows if name == variant and row.has_weights]
            lines.append(" ".join([variant, path.stem, *tags]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    (MODELS / "index.txt").write_text(render_index(), encoding="utf-8")
    # names, families: to be measured again; it is above this file, and needs torch
    importlib.import_module("featnet.survey").main(sys.argv[1:])
