"""Models to folders and to the hub, in the field's layout: safetensors, config.json, model card."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import registry
from ..backbone import Backbone
from ..errors import ArgumentError, CheckpointError
from ..values import checked
from ..weights import Weights
from . import instant, writing
from .files import some

SOURCES = ("url", "file", "hf_hub_id", "hf_hub_filename", "custom_load", "sha256", "label_offset")

CARD = """---
tags:
- {task}
- timm
- featnet
library_name: timm
{license}---
# {name}

A `{architecture}` with {classes}, {parameters:.1f} million parameters, for inputs of
{size} pixels.

```python
import featnet

model = featnet.create_model("{source}", pretrained=True)
backbone = featnet.create_model("{source}", pretrained=True, features_only=True)
```

The same files are read by `timm.create_model("{source}", pretrained=True)`.
"""


@checked
def save_for_hub(
    model: Backbone, folder: str | Path, *, model_args: Mapping[str, Any] | None = None
) -> Path:
    """Write ``model.safetensors``, ``config.json`` and, unless there is one, ``README.md``.

    ``create_model("local-dir:<folder>", pretrained=True)`` builds the same model again, bit for
    bit, and so does timm's function of that name. Each file is written as a whole or not at all.

    Args:
        model: made by ``create_model``, without ``features_only``.
        folder: made if it is missing.
        model_args: arguments of the network that replace those it was created with, where these
            cannot be written as JSON.

    Raises:
        ArgumentError: not such a model, or arguments that JSON cannot hold.
        OutputError: the folder cannot be written.

    Returns:
        The folder.

    Example:
        >>> model = featnet.create_model("resnet18", num_classes=10)
        >>> folder = featnet.save_for_hub(model, "mine")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise ArgumentError(f"folder={folder!r}: a path is expected.")
    folder = Path(folder)
    return _save(model, folder, model_args, source=f"local-dir:{folder}")


def _save(
    model: Backbone, folder: Path, model_args: Mapping[str, Any] | None, *, source: str
) -> Path:
    config = make_config(model, model_args)
    text = json.dumps(config, indent=2) + "\n"
    writing.write_safetensors(model.state_dict(), folder / "model.safetensors")
    if not (folder / "README.md").exists():
        writing.write_text(folder / "README.md", make_card(model, config, source))
    writing.write_text(folder / "config.json", text)
    return folder


def make_config(model: Backbone, model_args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make the contents of ``config.json``: architecture, arguments, preparation of inputs.

    Raises:
        ArgumentError: a model that ``create_model`` did not make, or arguments that JSON cannot
            hold.
    """
    if not isinstance(model, Backbone) or not model.architecture:
        what = type(model).__name__
        raise ArgumentError(
            f"A {what} cannot be saved for the hub: a model that create_model made, with a "
            "registered name and without features_only, is expected."
        )
    arguments = {**model.model_args, **(model_args or {})}
    _check_rebuild(model, arguments)
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"{name}={value!r} cannot be written as JSON: give what can as "
                f"model_args={{{name!r}: ...}}."
            ) from error
    cfg = model.pretrained_cfg or Weights()
    fields = {k: v for k, v in cfg.to_dict().items() if k not in SOURCES and k != "architecture"}
    fields["input_size"] = (model.in_chans, *cfg.input_size[1:])
    for name in ("test_input_size", "min_input_size"):
        if fields.get(name):
            fields[name] = (model.in_chans, *fields[name][1:])
    fields |= {
        "num_classes": model.num_classes,
        "first_conv": model.first_conv,
        "classifier": model.last_fc,
        "custom_load": False,
    }
    config = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.global_pool.pool_type,
        "model_args": arguments,
        "pretrained_cfg": fields,
    }
    return {name: value for name, value in config.items() if value not in ("", {})}


def _check_rebuild(model: Backbone, arguments: dict[str, Any]) -> None:
    """Make the arguments say what the model has become since: its pooling; refuse other changes."""
    entry = registry.find(model.architecture)
    if entry.is_function or arguments.get("reparameterized"):
        return
    registry.check_arguments(entry.build, arguments, what=f"model_args of {model.architecture!r}")
    near = model.global_pool.pool_type
    row = {**entry.row, **arguments, "num_classes": model.num_classes}
    again = instant.meta_model(lambda: entry.build(**row))
    if again.global_pool.pool_type != near:
        arguments["global_pool"] = near
    shapes = {k: v.shape for k, v in again.state_dict().items()}
    changed = [k for k, v in model.state_dict().items() if shapes.pop(k, None) != v.shape]
    if changed or shapes:
        raise ArgumentError(
            f"The {model.architecture} was changed since it was created "
            f"({some([*changed, *shapes])}); "
            "give the arguments that make it what it is as model_args=."
        )


def make_card(model: Backbone, config: Mapping[str, Any], source: str) -> str:
    """The text of ``README.md``."""
    cfg = config["pretrained_cfg"]
    count = sum(p.numel() for p in model.parameters())
    classes = f"{model.num_classes} classes" if model.num_classes else "no classifier"
    return CARD.format(
        task="image-classification" if model.num_classes else "image-feature-extraction",
        license=f"license: {cfg['license']}\n" if cfg.get("license") else "",
        name=Path(source.partition(":")[2]).name,
        architecture=config["architecture"],
        classes=classes,
        parameters=count / 1e6,
        source=source,
        size=" x ".join(map(str, cfg["input_size"][1:])),
    )


@checked
def push_to_hub(
    model: Backbone,
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    message: str = "Add model",
    token: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> str:
    """Save a model as :func:`save_for_hub` does, in a repository of the hub, in one commit.

    The repository is made if it is missing; if it has a README.md, that is kept.

    Args:
        model: made by ``create_model``, without ``features_only``.
        repo_id: of the repository, ``owner/name``.
        revision: branch; by default the main one.
        private: make a new repository private.
        create_pr: open a pull request in place of a commit on the branch.
        message: of the commit.
        token: of the hub; by default the one that ``hf auth login`` stored.
        model_args: as for :func:`save_for_hub`.

    Returns:
        Address of the commit.

    Raises:
        ArgumentError: as :func:`save_for_hub`.
        CheckpointError: the hub refused, or cannot be reached.

    Example:
        >>> model = featnet.create_model("resnet18", num_classes=10)
        >>> featnet.push_to_hub(model, "owner/name", private=True)  # doctest: +SKIP
        'https://huggingface.co/owner/name/commit/...'
    """
    from huggingface_hub import HfApi

    make_config(model, model_args)
    api = HfApi(token=token, library_name="featnet")
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        has_card = api.file_exists(repo, "README.md", revision=revision)
        with tempfile.TemporaryDirectory() as folder:
            _save(model, Path(folder), model_args, source=f"hf-hub:{repo}")
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=message,
                ignore_patterns=["README.md"] if has_card else None,
            )
    except (ArgumentError, CheckpointError):
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{repo_id!r} cannot be pushed: {reason} Are you logged in ('hf auth login', or the "
            "environment variable HF_TOKEN), with the right to write there?"
        ) from error
    return str(commit.commit_url)
