"""Layers by name, where an argument may be a name or a callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from ..errors import ArgumentError, nearest
from .activations import QuickGelu
from .attention import EffectiveSqueezeExcite, EfficientChannelAttention, SqueezeExcite
from .channel_norm import LayerNorm2d, RmsNorm2d, SimpleNorm2d
from .context import GatedContext
from .evonorm import EvoNormS0
from .norm import GroupNorm
from .response_norm import FilterResponseNorm

Layer = Callable[..., nn.Module]

ACTS: Mapping[str, Layer] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGelu,
    "hard_swish": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}
NORMS: Mapping[str, Layer] = {
    "batchnorm": nn.BatchNorm2d,
    "batchnorm2d": nn.BatchNorm2d,
    "groupnorm": GroupNorm,
    "layernorm": partial(nn.LayerNorm, eps=1e-6),
    "rmsnorm": partial(nn.RMSNorm, eps=1e-6),
    "layernorm2d": LayerNorm2d,
    "rmsnorm2d": RmsNorm2d,
    "simplenorm2d": SimpleNorm2d,
    "evonorms0": partial(EvoNormS0, num_groups=32, eps=1e-5),
    "filterresponsenorm": FilterResponseNorm,
    "instancenorm2d": nn.InstanceNorm2d,
    "identity": nn.Identity,
}
ATTENTIONS: Mapping[str, Layer] = {
    "se": SqueezeExcite,
    "ese": EffectiveSqueezeExcite,
    "eca": EfficientChannelAttention,
    "gc": GatedContext,
}


def get_layer(kind: str, layer: str | Layer, table: Mapping[str, Layer]) -> Layer:
    """The argument ``kind``: a name in the table, or a callable, which stays itself.

    Raises:
        ArgumentError: neither.
    """
    if not isinstance(layer, str):
        if not callable(layer):
            raise ArgumentError(f"{kind}={layer!r}: a name or a callable is expected.")
        return layer
    if layer not in table:
        raise ArgumentError(
            f"{kind}={layer!r} does not exist.{nearest(layer, table)} There are {', '.join(table)}."
        )
    return table[layer]


def get_act(layer: str | Layer) -> Layer:
    """An activation by name; a callable stays itself."""
    return get_layer("act_layer", layer, ACTS)


def build_act(layer: Layer) -> nn.Module:
    """An activation that works in place, where it can."""
    try:
        return layer(inplace=True)
    except TypeError:
        return layer()


def get_norm(layer: str | Layer) -> Layer:
    """A normalisation ``f(channels)`` by name; a callable stays itself."""
    return get_layer("norm_layer", layer, NORMS)


def get_attention(layer: str | Layer) -> Layer:
    """A channel attention ``f(channels)`` by name; a callable stays itself."""
    return get_layer("attn_layer", layer, ATTENTIONS)
