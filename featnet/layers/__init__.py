"""Blocks that at least two families share."""

from .attention import (
    EfficientChannelAttention,
    EffectiveSqueezeExcite,
    SqueezeExcite,
    make_divisible,
)
from .blocks import Blocks, DropBlock2d, DropPath, chain
from .channel_norm import GlobalResponseNorm, LayerNorm2d, RmsNorm2d, SimpleNorm2d
from .conv import ConvNormAct, norm_and_act
from .evonorm import EvoNorm
from .factory import Layer, get_act, get_attention, get_layer, get_norm
from .narrow import narrow, pruned_widths
from .norm import GroupNorm
from .pool import BlurPool2d, GlobalPool

__all__ = [
    "Blocks",
    "BlurPool2d",
    "ConvNormAct",
    "DropBlock2d",
    "DropPath",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EvoNorm",
    "GlobalPool",
    "GlobalResponseNorm",
    "GroupNorm",
    "LayerNorm2d",
    "RmsNorm2d",
    "SimpleNorm2d",
    "SqueezeExcite",
    "Layer",
    "chain",
    "get_act",
    "get_attention",
    "get_layer",
    "get_norm",
    "make_divisible",
    "narrow",
    "norm_and_act",
    "pruned_widths",
]
