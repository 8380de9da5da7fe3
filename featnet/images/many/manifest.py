"""The facts that decide a run's results, in its folder: to repeat it, to go on with it, and to keep
another run out. Imports no torch, so that a finished run is known at once."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import OutputError
from ..finding import Item

if TYPE_CHECKING:
    from torch import nn

    from ..transform import ImageTransform
    from .forward import Settings

MANIFEST, SUMMARY, ERRORS = "manifest.json", "summary.json", "errors.jsonl"
FORMAT = 1  # of the folder


def hash_images(items: Sequence[Item]) -> str:
    """A hash of the images' keys and places, in order."""
    digest = hashlib.sha256()
    for item in items:
        place = os.path.abspath(item.path) if item.path is not None else ""
        digest.update(os.fsencode(f"{item.name}\0{place}\0"))
    return f"sha256:{digest.hexdigest()}"


def hash_weights(net: nn.Module) -> str:
    """A hash of a network's tensors: their names, types, shapes and values."""
    import torch

    digest = hashlib.sha256()
    for name, value in net.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(flat.view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def _hash_structure(net: nn.Module) -> str:
    """A hash of a network's modules and their settings, without addresses in memory."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(net))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def versions() -> dict[str, str]:
    """The packages that the values of results depend on."""
    from ... import __version__

    names = ("torch", "pillow")
    return {"featnet": __version__, **{name: importlib.metadata.version(name) for name in names}}


def describe(
    net: nn.Module,
    items: Sequence[Item],
    transform: ImageTransform,
    settings: Settings,
    *,
    device: str | None = None,
    **sizes: object,
) -> dict[str, Any]:
    """Write a manifest: everything that decides the results.

    Args:
        net: the network.
        items: the images.
        transform: from an image to an input.
        settings: the form of the results.
        device: kind of device that the network runs on; by default where it is.
        **sizes: ``batch_size``, ``shard_size``, ``table``.
    """
    info: Any = getattr(net, "feature_info", None)
    cfg = getattr(net, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    levels: list[dict[str, object]] = []
    if hasattr(info, "module_name"):
        facts = zip(info.module_name(), info.channels(), info.reduction(), strict=True)
        levels = [
            dict(zip(("module", "channels", "reduction"), fact, strict=True)) for fact in facts
        ]
    return {
        "format": FORMAT,
        "model": {
            "name": architecture or type(net).__name__,
            "weights": hash_weights(net),
            "structure": _hash_structure(net),
            "device": device or next((p.device.type for p in net.parameters()), "cpu"),
        },
        "levels": levels,
        "results": dataclasses.asdict(settings),
        "transform": json.loads(json.dumps(dataclasses.asdict(transform))),
        "images": {"count": len(items), "keys": hash_images(items)},
        **sizes,
        "versions": versions(),
    }


def prepare_folder(folder: Path) -> None:
    """Make the output folder, and write to it once to see that it can be done.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"output folder {str(folder)!r} cannot be written to: {error.strerror}"
        ) from error


def claim(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, or compare with the one that is there.

    Raises:
        OutputError: the folder is another run's, or it cannot be written to.
    """
    from ...checkpoints.writing import write_text

    path = folder / MANIFEST
    if not path.exists():
        write_text(path, json.dumps(manifest, indent=2) + "\n")
        return
    there, now = dict(_flat(read(folder))), dict(_flat(manifest))
    changes = [
        f"{name} was {there.get(name)!r} and is now {now.get(name)!r}"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]
    if changes:
        more = f", and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise OutputError(
            f"output folder {str(folder)!r} holds the results of another run: "
            f"{'; '.join(changes[:3])}{more}. Take another folder, or overwrite this one."
        )


def _flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Names such as ``model.weights`` and their values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        OutputError: there is none, or it is no manifest.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OutputError(
            f"{str(folder)!r} is no folder of features: there is no {MANIFEST} in it."
        ) from error
    except ValueError as error:
        raise OutputError(f"{str(path)!r} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise OutputError(f"{str(path)!r} is of another version of featnet.")
    return manifest


def summary(folder: Path) -> dict[str, Any] | None:
    """The last words of a finished run; None where it is not finished."""
    try:
        counts = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return counts if isinstance(counts, dict) else None
