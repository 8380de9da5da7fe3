"""Blocks that at least two families share."""

from .attention import EfficientChannelAttention, SqueezeExcite, make_divisible
from .blocks import Blocks, DropBlock2d, DropPath
from .channel_norm import GlobalResponseNorm, LayerNorm2d, RmsNorm2d, SimpleNorm2d
from .factory import Layer, get_act, get_attention, get_norm
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
    "GlobalResponseNorm",
    "GroupNorm",
    "LayerNorm2d",
    "RmsNorm2d",
    "SimpleNorm2d",
    "SqueezeExcite",
    "Layer",
    "get_act",
    "get_attention",
    "get_norm",
    "make_divisible",
    "narrow",
    "pruned_widths",
]
