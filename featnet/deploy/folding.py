"""Fold batch norms into the convolution or linear layer before them, where that is exact."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..layers.frozen_norm import FrozenBatchNorm2d

LINEAR = (nn.Linear, _ConvNd)
Layer: TypeAlias = nn.Linear | _ConvNd
Norm: TypeAlias = _BatchNorm | FrozenBatchNorm2d
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, FrozenBatchNorm2d)


def fold(model: nn.Module, feeds: Mapping[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Fold every batch norm that can be folded, in place; an Identity keeps its name.

    Args:
        model: in eval mode.
        feeds: names of modules whose output one other module reads, and nothing else, to that
            module's name.

    Returns:
        Names of the batch norms that were folded, and of the others, each with the reason.
    """
    modules = dict(model.named_modules())
    before = {reader: maker for maker, reader in feeds.items()}
    folded: list[str] = []
    left: dict[str, str] = {}
    for name, norm in modules.items():
        if not isinstance(norm, NORM):
            continue
        layer = modules.get(before.get(name, ""))
        if not isinstance(layer, LINEAR):
            left[name] = "no convolution or linear layer feeds it alone"
            continue
        if type(norm).forward is not _plain(norm).forward:
            left[name] = f"{type(norm).__name__} does more than its base class"
            continue
        if norm.running_var is None or "weight" not in layer._parameters:
            left[name] = "statistics of the batch, or a weight that is computed"
            continue
        if getattr(layer, "transposed", False) and getattr(layer, "groups", 1) > 1:
            left[name] = "a transposed convolution in groups feeds it"
            continue
        if not _is_linear(layer, norm):
            left[name] = f"{type(layer).__name__} is not linear in its weight"
            continue
        replace(model, before[name], _folded(layer, norm))
        replace(model, name, nn.Identity())
        folded.append(name)
    return tuple(folded), left


def _plain(norm: nn.Module) -> type[nn.Module]:
    """Return the class of :data:`NORM` that a norm is, or is derived from."""
    return next(cls for cls in type(norm).__mro__ if cls in NORM)


def _folded(layer: Layer, norm: Norm) -> nn.Module:
    """Copy a layer, with a weight and a bias that have the norm in them, and shared tensors."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, var = _single(norm.running_mean), _single(norm.running_var)
    gamma = torch.ones_like(var) if norm.weight is None else _single(norm.weight)
    beta = torch.zeros_like(mean) if norm.bias is None else _single(norm.bias)
    weight, bias = _single(layer.weight), None if layer.bias is None else _single(layer.bias)
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_weights(weight, bias, mean, var, norm.eps, gamma, beta)
    else:
        fused = fuse_conv_bn_weights(
            weight, bias, mean, var, norm.eps, gamma, beta, layer.transposed
        )
    folded = copy.copy(layer)
    folded._parameters = dict(layer._parameters)
    for key, value in zip(("weight", "bias"), fused, strict=True):
        rounded = value.detach().to(layer.weight.dtype)
        folded._parameters[key] = nn.Parameter(rounded, requires_grad=False)
    return folded


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """Convert to float32 unless it is wider already, so that a product is rounded once."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.inference_mode()
def _is_linear(layer: Layer, norm: Norm) -> bool:
    """Compare the folded layer with the two, on a little noise: a subclass may use its weight in
    another way."""
    if layer.weight.dtype != _single(layer.weight).dtype:  # whose rounding would hide it
        layer, norm = copy.deepcopy(layer).float(), copy.deepcopy(norm).float()
    folded = _folded(layer, norm)
    reach = [1]
    if not isinstance(layer, nn.Linear):
        pairs = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        reach = [d * (k - 1) + 1 + s for k, d, s in pairs]
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (2, channels) if isinstance(layer, nn.Linear) else (1, channels, *reach)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)
    wanted = _plain(norm).forward(norm, layer(x))
    scale = float(wanted.abs().max())
    return bool((folded(x) - wanted).abs().max() <= 1e-3 * scale) or not scale


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module, in eval mode, in the place of the one with this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.eval())
