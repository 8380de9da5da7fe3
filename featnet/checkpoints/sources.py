"""Sources of models: the grammar of their names.

A source is ``name`` or ``name.tag`` of the tables, ``hf-hub:org/name[@revision]`` or
``local-dir:path``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import ArgumentError, CheckpointError, UnknownModelError, nearest
from ..values import checked
from ..weights import Weights
from . import files, hub

SOURCES = {
    "hf-hub": "hf-hub",
    "hf_hub": "hf-hub",
    "local-dir": "local-dir",
    "local_dir": "local-dir",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """The source behind the name of a model: ``kind`` is ``hf-hub`` or ``local-dir``."""

    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


@dataclasses.dataclass(frozen=True)
class Config:
    """The contents of a ``config.json``: a network, its arguments, and its checkpoint."""

    architecture: str
    arguments: Mapping[str, Any]
    weights: Weights
    path: Path


def parse(name: object) -> Source | None:
    """The source that a name states; None for a name of the tables.

    Raises:
        UnknownModelError: an unknown source, nothing behind it, or what looks like a path.
    """
    if not isinstance(name, str):
        return None
    kind, colon, place = name.partition(":")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z_-]+", kind):  # one letter is a drive of Windows
        if place.startswith("//"):
            raise registry.unknown_model(name)  # a URL
        if kind.lower() not in SOURCES:
            raise UnknownModelError(
                f"Unknown source {kind!r} of {name!r}: hf-hub:org/name[@revision] or "
                f"local-dir:path is expected.{nearest(kind.lower(), SOURCES)}"
            )
        if not place.strip():
            raise UnknownModelError(f"{name!r} has nothing behind the colon.")
        return Source(SOURCES[kind.lower()], place)
    if any(c in name for c in "/\\:"):
        raise registry.unknown_model(name)
    return None


def config(source: Source, *, cache_dir: str | Path | None = None) -> Config:
    """The ``config.json`` of a repository or a folder.

    Raises:
        CheckpointError: it cannot be had, or is none.
    """
    if source.kind == "local-dir":
        path = Path(source.place) / "config.json"
        if not path.is_file():
            what = "has no config.json" if path.parent.is_dir() else "does not exist"
            raise CheckpointError(f"{str(source)!r}: the folder {what}.")
        where: dict[str, Any] = {"file": source.place}
    else:
        path = hub.hub_file(source.place, "config.json", cache_dir)
        where = {"hf_hub_id": source.place}
    try:
        return _config(files.read_json(path), path, where)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        why = error if isinstance(error, ArgumentError) else repr(error)
        raise CheckpointError(f"{str(path)!r} is no config.json of a model: {why}") from error


def _config(content: object, path: Path, where: Mapping[str, Any]) -> Config:
    if not isinstance(content, dict):
        raise TypeError("an object is expected")
    if "architecture" not in content:
        kind = content.get("model_type") or ", ".join(map(str, content.get("architectures") or ()))
        hint = (
            f" It is one of transformers, {kind}: build the same network by its name here, "
            "and give the file as checkpoint_path=."
            if kind
            else ""
        )
        raise CheckpointError(f"{str(path)!r} names no architecture.{hint}")
    name = content["architecture"]
    if not isinstance(name, str):
        raise TypeError(f"architecture is {name!r}")
    # older files are flat: the fields of pretrained_cfg beside the architecture
    fields = dict(content.get("pretrained_cfg", content))
    if content.get("num_classes") is not None:
        fields["num_classes"] = content["num_classes"]
    arguments = {k: _tuples(v) for k, v in (content.get("model_args") or {}).items()}
    architecture, _, tag = name.partition(".")
    sources = ("url", "file", "hf_hub_id", "hf_hub_filename", "custom_load", "architecture")
    known = {f.name for f in dataclasses.fields(Weights)} - set(sources)
    kept = {k: _tuples(v) for k, v in fields.items() if k in known and v is not None}
    kept.setdefault("tag", tag)
    weights = Weights(architecture=architecture, **where).replace(**kept)
    return Config(architecture, arguments, weights, path)


def _tuples(value: object) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def entry(
    name: str, *, tag: str | None = None, cache_dir: str | Path | None = None
) -> registry.Entry:
    """Look up a name of any source.

    Raises:
        UnknownModelError, CheckpointError: there is no such model, or it cannot be had.
    """
    source = parse(name)
    if source is None:
        return registry.find(name, tag=tag)
    if tag is not None:
        raise ArgumentError(f"{name!r} has a config.json; pretrained_cfg={tag!r} contradicts it.")
    written = config(source, cache_dir=cache_dir)
    try:
        base = registry.find(written.architecture)
        if not base.is_function:
            arguments = {k: v for k, v in written.arguments.items() if k != "reparameterized"}
            registry.check_arguments(base.build, arguments, what="model_args")
    except (UnknownModelError, ArgumentError) as error:
        raise type(error)(f"{str(written.path)!r}: {error}") from error
    row = {**base.row, **written.arguments}
    row.pop("reparameterized", None)  # no argument of the network, but of create_model
    return dataclasses.replace(base, row=row, weights=written.weights, arguments=written.arguments)


@checked
def prefetch(names: str | Iterable[str], *, cache_dir: str | Path | None = None) -> dict[str, Path]:
    """Fetch checkpoints, so that ``create_model(name, pretrained=True)`` needs no network later.

    The hub's client shows the progress. A file in the cache is fetched again only if the hub has
    another one.

    Args:
        names: one or several names of any source.
        cache_dir: in place of the hub's cache; ``create_model`` needs the same.

    Returns:
        Names to local files.

    Raises:
        ArgumentError: no names.
        UnknownModelError: there is no such model. All names are looked up before one is fetched.
        CheckpointError: it has no checkpoint, or the hub does not give it.

    Example:
        >>> model = featnet.create_model("resnet18")
        >>> folder = featnet.save_for_hub(model, "mine")
        >>> featnet.prefetch("local-dir:mine")["local-dir:mine"].name
        'model.safetensors'
    """
    if not isinstance(names, Iterable):
        raise ArgumentError(f"names={names!r}: the name of a model, or several, is expected.")
    listed = [names] if isinstance(names, str) else list(names)
    table = {name: registry.get_weights(name) for name in listed if parse(name) is None}
    files = {}
    for name in listed:
        source = parse(name)
        if source is None:
            cfg = table[name]
        elif source.kind == "hf-hub":
            hub.hub_file(source.place, "config.json", cache_dir, refresh=True)
            cfg = config(source, cache_dir=cache_dir).weights
        else:
            cfg = config(source).weights
        if cfg is None:
            raise CheckpointError(f"There are no pretrained weights for {name!r}.")
        files[name] = hub.locate(cfg, cache_dir=cache_dir, refresh=True)
    return files
