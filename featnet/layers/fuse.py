"""Linear layers in a row as one: what re-parameterisation is made of."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError

Affine = tuple[torch.Tensor, torch.Tensor]  # kernel (O, I / groups, kh, kw), bias (O)


def fold_norm(kernel: torch.Tensor, norm: nn.Module, *, bias: torch.Tensor | None = None) -> Affine:
    """Return a convolution's kernel and bias, and the batch norm after it, as one, in float64.

    Raises:
        ArgumentError: a norm that depends on its input, and so is no linear layer.
    """
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_var is None:
        raise ArgumentError(
            f"{type(norm).__name__} cannot be re-parameterised: only a batch norm with running "
            "statistics is a linear layer."
        )
    assert norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return kernel.double() * scale.view(-1, 1, 1, 1), shift


def identity_kernel(conv: nn.Conv2d) -> torch.Tensor:
    """The kernel with which a convolution, of its shape and groups, changes nothing."""
    kernel = torch.zeros_like(conv.weight)
    channels = torch.arange(conv.out_channels, device=kernel.device)
    centre = [k // 2 for k in conv.kernel_size]
    kernel[channels, channels % (conv.in_channels // conv.groups), centre[0], centre[1]] = 1
    return kernel


@torch.no_grad()
def merge_branches(main: nn.Conv2d, branches: Sequence[Affine]) -> nn.Conv2d:
    """One convolution for the sum of parallel ones: placed as ``main`` is, with a bias.

    A smaller kernel stands at the middle of the larger one.
    """
    height, width = main.kernel_size
    kernels, biases = [], []
    for kernel, bias in branches:
        down, right = (height - kernel.shape[2]) // 2, (width - kernel.shape[3]) // 2
        kernels.append(F.pad(kernel, (right, right, down, down)))
        biases.append(bias)
    merged = copy.deepcopy(main)
    kernel, bias = torch.stack(kernels).sum(0), torch.stack(biases).sum(0)
    merged.weight = nn.Parameter(kernel.to(main.weight.dtype))
    merged.bias = nn.Parameter(bias.to(main.weight.dtype))
    return merged


@torch.no_grad()
def absorb_norms(layer: nn.Linear | nn.Conv2d, *norms: nn.Module) -> None:
    """Make batch norms before a linear layer or 1x1 convolution, one after the other, part of it.

    Raises:
        ArgumentError: a norm that depends on its input, and so is no linear layer.
    """
    assert layer.bias is not None
    weight, bias = layer.weight.double().flatten(1), layer.bias.double()
    for norm in reversed(norms):
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
        if not isinstance(norm, kinds) or norm.running_var is None:
            raise ArgumentError(
                f"{type(norm).__name__} cannot be re-parameterised: only a batch norm with running "
                "statistics is a linear layer."
            )
        assert norm.running_mean is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        shift = -norm.running_mean.double() * scale
        shift = shift if norm.bias is None else shift + norm.bias.double()
        bias = bias + weight @ shift
        weight = weight * scale
    layer.weight.copy_(weight.view_as(layer.weight))
    layer.bias.copy_(bias)
