"""Choose the layers that are packed for inference on the CPU, and pack them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import nn

from .folding import replace
from .packed import POST_OPS, PackedConv2d, PackedLinear, PackedPointwise, Pointwise


def channels_last(model: nn.Module) -> nn.Module:
    """Lay kernels (O, I, kh, kw) out as (O, kh, kw, I), in place.

    ``Module.to`` refuses a model that has kernels of other ranks as well.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def can_pack(x: torch.Tensor) -> bool:
    """Tell if oneDNN takes tensors of this device and type on this machine."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    bfloat16 = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32 or bool(bfloat16)


def pack(
    model: nn.Module, feeds: Mapping[str, str], sizes: Mapping[str, torch.Size], *, batch: int
) -> tuple[str, ...]:
    """Pack every plain convolution and linear layer that ran, with the activation behind it, in
    place.

    Args:
        model: in eval mode.
        feeds: names of modules whose output one other module reads, and nothing else, to that
            module's name.
        sizes: names of modules to the size of their input, for a batch of one.
        batch: number of images in the batches to come.

    Returns:
        Names of the layers that were packed.
    """
    modules = dict(model.named_modules())
    packed: list[str] = []
    for name, layer in modules.items():
        if name not in sizes or not _is_plain(layer):
            continue
        size = sizes[name]
        one_row = _is_one_row(layer, size)
        reader = _reader(name, modules, feeds)
        act = modules.get(reader)
        fuses = act is not None and type(act) in POST_OPS and not one_row and not _hooked(act)
        fused = act if fuses else None
        replacement = _packed(layer, fused, one_row=one_row, size=(batch, *size[1:]))
        if replacement is None:
            continue
        replace(model, name, replacement)
        if fused is not None:
            replace(model, reader, nn.Identity())
        packed.append(name)
    return tuple(packed)


def pointwise(model: nn.Module, sizes: Mapping[str, torch.Size]) -> nn.Module:
    """Replace each 1x1 convolution that reads a single position by a linear layer, in place."""
    for name, layer in dict(model.named_modules()).items():
        if name not in sizes or not _is_plain(layer) or not isinstance(layer, nn.Conv2d):
            continue
        if _is_pointwise(layer) and _is_one_row(layer, sizes[name]):
            replace(model, name, Pointwise(layer))
    return model


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and not any(conv.padding) and conv.groups == 1


def _is_one_row(layer: nn.Module, size: torch.Size) -> bool:
    """Tell if a layer multiplies its weight by a single row, as layers behind a pooling do."""
    return math.prod(size) == getattr(layer, "in_features", getattr(layer, "in_channels", 0))


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Tell if a layer computes what its class in torch does, with weights that can be packed."""
    if type(layer) is nn.Conv2d and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        return False
    if type(layer) not in (nn.Conv2d, nn.Linear) or not isinstance(layer.weight, nn.Parameter):
        return False
    return can_pack(layer.weight) and not _hooked(layer)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _packed(
    layer: nn.Linear | nn.Conv2d, act: nn.Module | None, *, one_row: bool, size: tuple[int, ...]
) -> nn.Module | None:
    """Return the packed layer; None where nothing is gained. For one row oneDNN takes longer to
    begin than the product takes."""
    if isinstance(layer, nn.Linear):
        return None if one_row else PackedLinear(layer, act)
    if _is_pointwise(layer):
        return Pointwise(layer) if one_row else PackedPointwise(layer, act)
    return PackedConv2d(layer, act, size=size)


def _reader(name: str, modules: Mapping[str, nn.Module], feeds: Mapping[str, str]) -> str:
    """Return the name of the module that reads an output, behind modules that do nothing."""
    reader = feeds.get(name, "")
    while reader and type(modules.get(reader)) is nn.Identity:
        reader = feeds.get(reader, "")
    return reader
