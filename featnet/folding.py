"""Batch norms become part of the convolution or linear layer before them, where that is exact."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from .layers import NormAct, with_act

LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold(model: nn.Module, feeds: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Fold, in place, every batch norm that can be; its name stays with what is left of it."""
    modules = dict(model.named_modules())
    before = {reader: maker for maker, reader in feeds.items()}
    folded: list[str] = []
    left: dict[str, str] = {}
    for name, norm in modules.items():
        if not isinstance(norm, NORM):
            continue
        layer: Any = modules.get(before.get(name, ""))
        if not isinstance(layer, LINEAR):
            left[name] = "no convolution or linear layer feeds it alone"
            continue
        if not isinstance(norm, NormAct) and type(norm).forward is not _plain(norm).forward:
            left[name] = f"{type(norm).__name__} does more than its base class"
            continue
        if norm.running_var is None or "weight" not in layer._parameters:
            left[name] = "statistics of the batch, or a weight that is computed"
            continue
        if getattr(layer, "transposed", False) and getattr(layer, "groups", 1) > 1:
            left[name] = "a transposed convolution in groups feeds it"
            continue
        made = _folded(layer, norm)
        if not _same(layer, norm, made):
            left[name] = f"{type(layer).__name__} is not linear in its weight"
            continue
        replace(model, before[name], made)
        rest = nn.Identity()
        # A family may ask whether this holds the activation, so it goes on doing so
        replace(model, name, with_act(rest, norm.act) if isinstance(norm, NormAct) else rest)
        folded.append(name)
    return tuple(folded), left


def _plain(norm: nn.Module) -> Any:
    """The class of torch's that a norm is."""
    return next(cls for cls in type(norm).__mro__ if cls.__module__.startswith("torch."))


def _folded(layer: Any, norm: Any) -> nn.Module:
    """A layer with the same tensors but for weight and bias, which have taken in the norm."""
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    gamma = torch.ones_like(var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, mean, var, eps, gamma, beta)
    else:
        weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, mean, var, eps, gamma, beta, layer.transposed
        )
    made = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    for key, value in (("weight", weight), ("bias", bias)):
        made._parameters[key] = nn.Parameter(value.detach(), requires_grad=False)
    return made


@torch.inference_mode()
def _same(layer: Any, norm: Any, made: nn.Module) -> bool:
    """Whether the folded layer does what the two did, on a little noise: a subclass may do with
    its weight what it likes."""
    reach = [1]
    if not isinstance(layer, nn.Linear):
        pairs = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        reach = [d * (k - 1) + 1 + s for k, d, s in pairs]
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (2, channels) if isinstance(layer, nn.Linear) else (1, channels, *reach)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)
    wanted = _plain(norm).forward(norm, layer(x))  # without what a NormAct does after it
    scale = float(wanted.abs().max())
    found = made(x)
    return bool((found - wanted).abs().max() <= 1e-3 * scale) or not scale


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module, in eval mode, where one of this name is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.eval())
