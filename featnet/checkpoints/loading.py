"""Load a file into a model, and write it as a file of this model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import registry
from ..errors import ArgumentError
from . import checkpoint, files, instant, writing


def load_checkpoint(model: nn.Module, path: str | Path) -> checkpoint.LoadReport:
    """Load a file into a model that is there, as ``create_model(..., checkpoint_path=path)`` does.

    Raises:
        CheckpointError: the file cannot be read or does not fit. The model is then what it was.
    """
    return checkpoint.load(model, files.read(path), source=str(path))


def convert_checkpoint(
    path: str | Path, out: str | Path, *, model: str, options: Mapping[str, Any] | None = None
) -> checkpoint.LoadReport:
    """Write any checkpoint that featnet reads as safetensors with the names of one of its models.

    The result has the file's own classes and input channels, and no classifier where it has none.

    Args:
        options: arguments of the model, such as ``{"act_layer": "gelu_tanh"}``; whoever loads the
            result gives them again.

    Raises:
        ArgumentError: an option that the model does not take.
        UnknownModelError: no such model.
        CheckpointError: the file cannot be read, is of another network, or ``out`` cannot be written
            (an OutputError).
    """
    entry = registry.find(model)
    if entry.is_function:
        raise ArgumentError(f"{model!r} is a function of your own: save its state_dict().")
    contents = files.read(path)
    given = {**entry.row, **(options or {})}
    registry.check_arguments(entry.build, given, what=f"convert_checkpoint({model!r})")
    meta_model = instant.meta_model(lambda: entry.build(**given))
    found = checkpoint.translate(meta_model, contents).tensors
    row: dict[str, Any] = {"num_classes": 0}
    fc, stem = (
        f"{checkpoint.first(n)}.weight" for n in (meta_model.last_fc, meta_model.first_conv)
    )
    if fc in found:
        row["num_classes"] = found[fc].shape[0]
    target = meta_model.state_dict()
    if stem in found and stem in target and found[stem].ndim == target[stem].ndim == 4:
        row["in_chans"] = meta_model.in_chans * found[stem].shape[1] // target[stem].shape[1]
    with instant.SkipInit():
        net = entry.build(**{**given, **row})
    report = checkpoint.load(net, contents, source=str(path))
    writing.write_safetensors(net.state_dict(), Path(out))
    return report
