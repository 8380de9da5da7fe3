"""Write a file of any layout as a file of a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import ArgumentError
from ..values import checked
from . import checkpoint, files, instant, writing


@checked
def convert_checkpoint(
    path: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    model: str,
    options: Mapping[str, Any] | None = None,
    checkpoint_prefix: str | None = None,
) -> checkpoint.LoadReport:
    """Write any checkpoint that featnet reads as safetensors with the names of one of its models.

    The result has the file's own classes and input channels, and no classifier where it has none.

    Args:
        path: the file, or a state dict.
        out: the file to write, ``*.safetensors``; not the one that is read.
        model: name of the network.
        options: arguments of the model, such as ``{"act_layer": "gelu_tanh"}``; whoever loads the
            result gives them again.
        checkpoint_prefix: of several networks in the file, the dictionary or the start of names
            that is meant.

    Returns:
        what became of the file's tensors.

    Raises:
        ArgumentError: an option that the model does not take, or an ``out`` that would hide what is
            written: another suffix, the file that is read.
        UnknownModelError: no such model.
        CheckpointError: the file cannot be read, is of another network, or ``out`` cannot be
            written (an OutputError).

    Example:
        >>> state = featnet.create_model("test_resnet", num_classes=7).state_dict()
        >>> state = {f"module.{name}": value for name, value in state.items()}
        >>> report = featnet.convert_checkpoint(state, "ours.safetensors", model="test_resnet")
        >>> report.dropped
        {}
    """
    target_file = _check_out(path, out)
    entry = registry.find(model)
    if entry.is_function:
        raise ArgumentError(f"{model!r} is a function of your own: save its state_dict().")
    contents = files.contents(path)
    choices = checkpoint.Choices(prefix=checkpoint_prefix)
    arguments = {**entry.row, **(options or {})}
    registry.check_arguments(entry.build, arguments, what=f"convert_checkpoint({model!r})")
    meta_model = instant.meta_model(lambda: entry.build(**arguments))
    tensors = checkpoint.translate(meta_model, contents, choices).tensors
    row: dict[str, Any] = {"num_classes": 0}
    fc, stem = (
        f"{checkpoint.first(n)}.weight" for n in (meta_model.last_fc, meta_model.first_conv)
    )
    if fc in tensors:
        row["num_classes"] = tensors[fc].shape[0]
    target = meta_model.state_dict()
    if stem in tensors and stem in target and tensors[stem].ndim == target[stem].ndim == 4:
        row["in_chans"] = meta_model.in_chans * tensors[stem].shape[1] // target[stem].shape[1]
    with instant.SkipInit():
        net = entry.build(**{**arguments, **row})
    draft = checkpoint.fit(net, contents, choices)
    report = checkpoint.assign(net, draft, source=contents.source, adopt=True)
    writing.write_safetensors(net.state_dict(), target_file)
    return report


def _check_out(path: str | Path | Mapping[str, Any], out: str | Path) -> Path:
    """The file to write, if it may be written.

    Raises:
        ArgumentError: it is the one that is read, or called what it is not.
    """
    file = files.local(out)
    if file.suffix != ".safetensors":
        raise ArgumentError(
            f"out={str(out)!r}: safetensors are written, *.safetensors is expected: "
            f"{file.stem + '.safetensors'!r} for instance."
        )
    read = None if isinstance(path, Mapping) else files.local(path)
    if read is not None and read.exists() and file.exists() and file.samefile(read):
        raise ArgumentError(f"out={str(out)!r} is the file that is read: give another name.")
    return file
