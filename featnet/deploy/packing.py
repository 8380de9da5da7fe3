"""Which layers are packed for inference on the CPU, with what follows them, and which are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .folding import replace
from .packed import POST_OPS, PackedConv2d, PackedLinear, PackedPointwise, Pointwise


def channels_last(model: nn.Module) -> nn.Module:
    """In place: kernels (O, I, kh, kw) lie as (O, kh, kw, I); ``Module.to`` refuses where there
    are kernels of other ranks too."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def can_pack(x: torch.Tensor) -> bool:
    """Whether oneDNN takes tensors like this one, here and in this type."""
    mkldnn: Any = torch.backends.mkldnn
    if x.device.type != "cpu" or not mkldnn.is_available():
        return False
    bfloat16 = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32 or bool(bfloat16)


def pack(
    model: nn.Module, feeds: Mapping[str, str], sizes: Mapping[str, torch.Size], *, batch: int
) -> tuple[str, ...]:
    """Pack, in place, every plain convolution and linear layer that ran, together with the
    activation behind it.

    Args:
        feeds: which module alone feeds which.
        sizes: of what modules are given, for a batch of one.
        batch: size of the batches to come.
    """
    modules = dict(model.named_modules())
    packed: list[str] = []
    for name, layer in modules.items():
        if name not in sizes or not _is_plain(layer):
            continue
        size = sizes[name]
        one_row = _is_one_row(layer, size)
        reader = _reader(name, modules, feeds)
        act: Any = modules.get(reader)
        fused = act if type(act) in POST_OPS and not one_row and not _hooked(act) else None
        made = _packed(layer, fused, one_row=one_row, size=(batch, *size[1:]))
        if made is None:
            continue
        replace(model, name, made)
        if fused is not None:
            replace(model, reader, nn.Identity())
        packed.append(name)
    return tuple(packed)


def pointwise(model: nn.Module, sizes: Mapping[str, torch.Size]) -> nn.Module:
    """Make, in place, every 1x1 convolution of a single position torch's own linear layer."""
    for name, layer in dict(model.named_modules()).items():
        if name not in sizes or type(layer) is not nn.Conv2d or not _is_plain(layer):
            continue
        if _is_pointwise(layer) and _is_one_row(layer, sizes[name]):
            replace(model, name, Pointwise(layer))
    return model


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and not any(conv.padding) and conv.groups == 1


def _is_one_row(layer: nn.Module, size: torch.Size) -> bool:
    """Whether a layer multiplies one row by its weight, as what is behind a pooling does."""
    return math.prod(size) == getattr(layer, "in_features", getattr(layer, "in_channels", 0))


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its class in torch does, on weights that can be packed."""
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
    layer: Any, act: nn.Module | None, *, one_row: bool, size: tuple[int, ...]
) -> nn.Module | None:
    """What takes a layer's place; None where nothing is gained. For one row oneDNN takes longer
    to begin than the product takes."""
    if isinstance(layer, nn.Linear):
        return None if one_row else PackedLinear(layer, act)
    if _is_pointwise(layer):
        return Pointwise(layer) if one_row else PackedPointwise(layer, act)
    return PackedConv2d(layer, act, size=size)


def _reader(name: str, modules: Mapping[str, nn.Module], feeds: Mapping[str, str]) -> str:
    """Who reads a module's output behind modules that do nothing."""
    reader = feeds.get(name, "")
    while reader and type(modules.get(reader)) is nn.Identity:
        reader = feeds.get(reader, "")
    return reader
