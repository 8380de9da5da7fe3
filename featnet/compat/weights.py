"""timm's functions that read, write and adapt weights."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import assembly, registry
from ..backbone import Backbone
from ..checkpoints import files, hub, publish, sources
from ..errors import ArgumentError, CheckpointError
from ..weights import Weights
from .modules import NotHereError

PREFIXES = ("module.", "_orig_mod.")


def clean_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict without the prefixes that wrappers put before its names."""

    def clean(name: str) -> str:
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        return name

    return {clean(name): value for name, value in state_dict.items()}


def load_state_dict(
    checkpoint_path: str | Path,
    use_ema: bool = True,
    device: str | torch.device = "cpu",
    weights_only: bool = True,
) -> dict[str, torch.Tensor]:
    """Read the tensors of a file.

    Args:
        checkpoint_path: the file.
        use_ema: of a file with averaged weights these.
        device: where the tensors go.
        weights_only: must be true: a file's code is not run.

    Returns:
        Names and tensors, without the prefixes of wrappers.

    Raises:
        CheckpointError: the file cannot be read.
    """
    content = _content(checkpoint_path, device)
    ema = ("state_dict_ema", "model_ema") if use_ema else ()
    for key in (*ema, "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    return clean_state_dict(content)


def _content(checkpoint_path: str | Path, device: str | torch.device = "cpu") -> Any:
    """All that a file holds; of Python's classes only what training scripts put beside weights.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = files.local(checkpoint_path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path, device=str(device))
    if not path.is_file():
        files.read(path)  # says what is near
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{str(path)!r} holds more than tensors. No automatic unsafe pickle fallback is "
            f"performed, with weights_only=False neither: {error}"
        ) from error


def load_checkpoint(
    model: nn.Module,
    checkpoint_path: str | Path,
    use_ema: bool = True,
    device: str | torch.device = "cpu",
    strict: bool = True,
    remap: bool = False,
    filter_fn: Callable[..., Mapping[str, torch.Tensor]] | None = None,
    weights_only: bool = True,
) -> nn.modules.module._IncompatibleKeys:
    """Load a file into a model; what does not fit is an error, unless ``strict`` is false.

    Args:
        model: any module.
        checkpoint_path: the file.
        use_ema: of a file with averaged weights these.
        device: where the file is read to.
        strict: False: missing and unexpected names are returned.
        remap: accepted: names that were flattened or prefixed are matched anyway.
        filter_fn: ``f(state, model)`` or ``f(state)``, which gives the tensors to load.
        weights_only: must be true.

    Returns:
        torch's record of missing and unexpected names.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    state: Mapping[str, torch.Tensor] = load_state_dict(checkpoint_path, use_ema, device)
    if filter_fn is not None:
        try:
            state = filter_fn(state, model)
        except TypeError:
            state = filter_fn(state)
    if not strict:
        return model.load_state_dict(state, strict=False)
    assembly.load_checkpoint(model, state)
    return nn.modules.module._IncompatibleKeys([], [])


def remap_state_dict(
    state_dict: Mapping[str, torch.Tensor], model: nn.Module, allow_reshape: bool = True
) -> dict[str, torch.Tensor]:
    """Give the tensors of a state dict a model's names, by their order.

    Args:
        state_dict: tensors in the order of the model's.
        model: has the names and shapes.
        allow_reshape: tensors of other shapes with as many values are reshaped.

    Raises:
        CheckpointError: another number of tensors, or a shape that does not fit.
    """
    own = model.state_dict()
    if len(own) != len(state_dict):
        raise CheckpointError(f"{len(state_dict)} tensors; the model has {len(own)}.")
    found: dict[str, torch.Tensor] = {}
    for (name, old), (other, new) in zip(own.items(), state_dict.items(), strict=True):
        if old.shape != new.shape and not (allow_reshape and old.numel() == new.numel()):
            raise CheckpointError(
                f"{other!r} of shape {tuple(new.shape)} is in the place of {name!r}, "
                f"{tuple(old.shape)}."
            )
        found[name] = new.reshape(old.shape)
    return found


def resume_checkpoint(
    model: nn.Module,
    checkpoint_path: str | Path,
    optimizer: torch.optim.Optimizer | None = None,
    **_logging: object,
) -> int | None:
    """Go on from a file of timm's training script.

    Args:
        model: gets the file's ``state_dict``.
        checkpoint_path: the file.
        optimizer: gets the file's ``optimizer``, if there is one.

    Returns:
        The epoch to go on with, if the file says it.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    load_checkpoint(model, checkpoint_path, use_ema=False)
    content = _content(checkpoint_path)
    if optimizer is not None and "optimizer" in content:
        optimizer.load_state_dict(content["optimizer"])
    epoch: int | None = content.get("epoch")
    return epoch if epoch is None or content.get("version", 1) < 2 else epoch + 1


def load_pretrained(
    model: nn.Module, pretrained_cfg: Mapping[str, Any] | None = None, **_more: object
) -> None:
    """Load the weights of a record into a model.

    Args:
        model: made by ``create_model``.
        pretrained_cfg: by default the model's own.

    Raises:
        CheckpointError: there are none, or they cannot be had.
    """
    cfg: Any = pretrained_cfg or getattr(model, "pretrained_cfg", None)
    if cfg is None:
        raise CheckpointError(f"{type(model).__name__} has no record of weights.")
    weights = cfg if isinstance(cfg, Weights) else Weights().replace(**cfg)
    assembly.load_checkpoint(model, hub.locate(weights))


def adapt_input_conv(in_chans: int, conv_weight: torch.Tensor, base_chans: int = 3) -> torch.Tensor:
    """Adapt the weight of a first convolution to another number of channels.

    One channel is the sum of all; of more they repeat, scaled so that the output keeps its size.

    Raises:
        ArgumentError: a number of channels below 1.
        NotImplementedError: a weight that is not of ``base_chans`` channels.
    """
    if in_chans < 1 or base_chans < 1:
        raise ArgumentError(f"in_chans={in_chans!r}, base_chans={base_chans!r}: 1 or more.")
    if in_chans == base_chans:
        return conv_weight
    if conv_weight.ndim != 4 or conv_weight.shape[1] % base_chans:
        raise NotHereError(f"A weight of shape {tuple(conv_weight.shape)} cannot be adapted.")
    weight, groups = conv_weight.float(), conv_weight.shape[1] // base_chans
    if in_chans == 1:
        return torch.unflatten(weight, 1, (groups, base_chans)).sum(2).to(conv_weight.dtype)
    if groups > 1:
        raise NotHereError(f"A weight of shape {tuple(conv_weight.shape)} cannot be adapted.")
    times = math.ceil(in_chans / base_chans)
    weight = weight.repeat(1, times, 1, 1)[:, :in_chans] * (base_chans / in_chans)
    return weight.to(conv_weight.dtype)


def load_model_config_from_hf(
    model_id: str, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Read the ``config.json`` of a repository of the hub.

    Returns:
        The record of its weights, the name of the model, and its arguments.

    Raises:
        CheckpointError: it cannot be had.
    """
    config = sources.config(sources.Source("hf-hub", model_id), cache_dir=cache_dir)
    return dict(config.weights), config.architecture, dict(config.arguments)


def load_model_config_from_path(
    model_path: str | Path,
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """Read the ``config.json`` of a folder, as :func:`load_model_config_from_hf` does."""
    config = sources.config(sources.Source("local-dir", str(model_path)))
    return dict(config.weights), config.architecture, dict(config.arguments)


def load_state_dict_from_hf(
    model_id: str,
    filename: str | None = None,
    weights_only: bool = True,
    cache_dir: str | Path | None = None,
) -> dict[str, torch.Tensor]:
    """Read the tensors of a repository of the hub.

    Raises:
        CheckpointError: they cannot be had.
    """
    cfg = Weights(hf_hub_id=model_id, hf_hub_filename=filename)
    return load_state_dict(hub.locate(cfg, cache_dir=cache_dir))


def load_state_dict_from_path(
    path: str | Path, weights_only: bool = True
) -> dict[str, torch.Tensor]:
    """Read the tensors of a folder; of several files with one ending the first.

    Raises:
        CheckpointError: there are none.
    """
    folder = Path(path)
    usual = [folder / name for name in files.WEIGHTS if (folder / name).is_file()]
    others = [sorted(folder.glob(f"*{ending}")) for ending in files.ENDINGS]
    paths = usual or next(filter(None, others), [])
    if not paths:
        raise CheckpointError(f"No suitable checkpoints in {str(folder)!r}.")
    if not usual and len(paths) > 1:
        names = ", ".join(file.name for file in paths)
        logging.getLogger(__name__).warning("%s has %s: the first is read.", folder, names)
    return load_state_dict(paths[0])


def save_for_hf(
    model: nn.Module,
    save_directory: str | Path,
    model_config: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None,
    safe_serialization: bool | str = "both",
) -> None:
    """Write a model for the hub: :func:`featnet.save_for_hub`, which writes safetensors.

    Raises:
        ArgumentError: a model that ``create_model`` did not make, or another ``config.json``.
    """
    if model_config:
        raise ArgumentError("model_config= is not taken: config.json says what the model is.")
    publish.save_for_hub(_backbone(model), save_directory, model_args=model_args)


def push_to_hf_hub(
    model: nn.Module,
    repo_id: str,
    commit_message: str = "Add model",
    token: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    model_args: Mapping[str, Any] | None = None,
    **others: object,
) -> str:
    """Save a model in a repository of the hub: :func:`featnet.push_to_hub`.

    Raises:
        ArgumentError: as :func:`save_for_hf`; an option that featnet does not take.
    """
    for name in (name for name, value in others.items() if value):
        raise ArgumentError(f"{name}= is not taken.")
    return publish.push_to_hub(
        _backbone(model),
        repo_id,
        message=commit_message,
        token=token,
        revision=revision,
        private=private,
        create_pr=create_pr,
        model_args=model_args,
    )


def _backbone(model: nn.Module) -> Backbone:
    if not isinstance(model, Backbone) or not registry.is_model(model.architecture):
        raise ArgumentError(f"A {type(model).__name__}: a model of create_model is expected.")
    return model
