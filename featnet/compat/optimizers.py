"""timm's functions that make optimisers and losses: torch's, over featnet's parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, nearest
from ..training.groups import param_groups
from .modules import NotHereError

# timm's names of torch's optimisers, with what timm sets beside their defaults
OPTIMIZERS: Mapping[str, tuple[type[torch.optim.Optimizer], Mapping[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"nesterov": True}),
    "nesterov": (torch.optim.SGD, {"nesterov": True}),
    "momentum": (torch.optim.SGD, {"nesterov": False}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "adamax": (torch.optim.Adamax, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "radamw": (torch.optim.RAdam, {"decoupled_weight_decay": True}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-8}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9}),
}


def list_optimizers(*_filters: object, **_options: object) -> list[str]:
    """List timm's names of the optimisers that there are here, which are torch's."""
    return sorted(OPTIMIZERS)


def get_optimizer_class(name: str, bind_defaults: bool = False) -> type[torch.optim.Optimizer]:
    """Return the class of an optimiser.

    Raises:
        NotHereError: one that torch does not have.
    """
    return _row(name)[0]


def _row(name: str) -> tuple[type[torch.optim.Optimizer], Mapping[str, Any]]:
    if name.lower() not in OPTIMIZERS:
        raise NotHereError(
            f"featnet has no optimiser {name!r} of timm's, only torch's: "
            f"{', '.join(OPTIMIZERS)}.{nearest(name, OPTIMIZERS)} Give the groups of "
            "featnet.param_groups to an optimiser of another library, or run this code with timm."
        )
    return OPTIMIZERS[name.lower()]


def param_groups_weight_decay(
    model: nn.Module, weight_decay: float = 1e-5, no_weight_decay_list: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Sort parameters into those with and without weight decay: :func:`featnet.param_groups`."""
    return param_groups_layer_decay(model, weight_decay, no_weight_decay_list, layer_decay=1.0)


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Collection[str] = (),
    layer_decay: float = 0.75,
) -> list[dict[str, Any]]:
    """Sort parameters into layers with a share ``lr_scale`` of the rate each:
    :func:`featnet.param_groups`, which leaves ``lr`` to the optimiser here."""
    groups = _groups(model, 1.0, weight_decay, no_weight_decay_list, layer_decay)
    return [{name: value for name, value in group.items() if name != "lr"} for group in groups]


def _groups(
    model: nn.Module, lr: float, weight_decay: float, spared: Collection[str], layer_decay: float
) -> list[dict[str, Any]]:
    names = [
        name
        for name, _ in model.named_parameters()
        if any(name == word or name.endswith(f".{word}") for word in spared)
    ]
    return param_groups(
        model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, no_weight_decay=names
    )


def create_optimizer_v2(
    model_or_params: nn.Module | Iterable[Any],
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    foreach: bool | None = None,
    filter_bias_and_bn: bool = True,
    layer_decay: float | None = None,
    param_group_fn: Any = None,
    **kwargs: Any,
) -> torch.optim.Optimizer:
    """Make one of torch's optimisers over a network's parameter groups.

    Args:
        model_or_params: a network, or parameters or groups of them.
        opt: timm's name of the optimiser.
        lr: of the last layer; by default the optimiser's own.
        weight_decay: of all but norms, biases, tokens and tables of positions.
        momentum: of optimisers that have one.
        foreach: as in torch.
        filter_bias_and_bn: False: all parameters decay.
        layer_decay: share of the rate from one layer to the one before it.
        param_group_fn: ``f(network)`` that gives the groups.
        **kwargs: of the optimiser.

    Raises:
        NotHereError: an optimiser that torch does not have.
        ArgumentError: an argument that it does not take, or a value that cannot be.
    """
    kind, defaults = _row(opt)
    known = inspect.signature(kind).parameters
    rate = known["lr"].default if lr is None else lr
    options = {**defaults, "foreach": foreach, **kwargs}
    if "momentum" in known:
        options.setdefault("momentum", momentum)
    wrong = [name for name in options if name not in known]
    if wrong:
        raise ArgumentError(
            f"{', '.join(wrong)}: no argument of {kind.__name__}.{nearest(wrong[0], known)}"
        )
    if not isinstance(model_or_params, nn.Module):
        parameters: Any = model_or_params
    elif param_group_fn is not None:
        parameters = param_group_fn(model_or_params)
    elif layer_decay is not None or (weight_decay and filter_bias_and_bn):
        decay = 1.0 if layer_decay is None else layer_decay
        parameters = _groups(model_or_params, float(rate), weight_decay, (), decay)
    else:
        parameters = model_or_params.parameters()
    make: Any = kind
    return make(parameters, lr=rate, weight_decay=weight_decay, **options)


def optimizer_kwargs(cfg: Any) -> dict[str, Any]:
    """Collect, from a script's arguments, what :func:`create_optimizer_v2` takes."""
    rows = {"opt": "opt", "lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum"}
    rows |= {"eps": "opt_eps", "betas": "opt_betas", "layer_decay": "layer_decay"}
    values = {name: getattr(cfg, field, None) for name, field in rows.items()}
    named = {name: value for name, value in values.items() if value is not None}
    return {**named, **(getattr(cfg, "opt_args", None) or {})}


def create_optimizer(
    args: Any, model: nn.Module, filter_bias_and_bn: bool = True
) -> torch.optim.Optimizer:
    """Make an optimiser from a script's arguments: :func:`create_optimizer_v2` of them."""
    options = optimizer_kwargs(args)
    return create_optimizer_v2(model, filter_bias_and_bn=filter_bias_and_bn, **options)


class LabelSmoothingCrossEntropy(nn.CrossEntropyLoss):
    """torch's cross entropy, with its label smoothing under timm's name for it."""

    def __init__(self, smoothing: float = 0.1) -> None:
        super().__init__(label_smoothing=smoothing)
