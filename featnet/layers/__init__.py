"""Blocks that at least two families share."""

from .attention import EfficientChannelAttention, SqueezeExcite, make_divisible
from .blocks import Blocks, DropBlock2d, DropPath
from .factory import Layer, get_act, get_attention, get_layer, get_norm
from .narrow import narrow, pruned_widths
from .norm import GroupNorm
from .pool import BlurPool2d, GlobalPool

__all__ = [
    "Blocks",
    "BlurPool2d",
    "DropBlock2d",
    "DropPath",
    "EfficientChannelAttention",
    "GlobalPool",
    "GroupNorm",
    "SqueezeExcite",
    "Layer",
    "get_act",
    "get_attention",
    "get_layer",
    "get_norm",
    "make_divisible",
    "narrow",
    "pruned_widths",
]
