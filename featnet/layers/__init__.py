"""Blocks that at least two families share."""

from .attention import (
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    SqueezeExcite,
    make_divisible,
)
from .blocks import Blocks, DropBlock2d, DropPath, chain
from .channel_norm import GlobalResponseNorm, LayerNorm2d, RmsNorm2d, SimpleNorm2d
from .context import GatedContext, GlobalContext
from .conv import ConvNormAct, norm_and_act
from .evonorm import EvoNorm
from .factory import Layer, build_act, get_act, get_attention, get_layer, get_norm
from .mobile_conv import CondConv2d, Kernel, SamePadding, conv2d
from .narrow import narrow, pruned_widths
from .norm import GroupNorm
from .norm_act import NormAct, with_act
from .pool import BlurPool2d, GlobalPool

__all__ = [
    "Blocks",
    "BlurPool2d",
    "CondConv2d",
    "ConvNormAct",
    "DropBlock2d",
    "DropPath",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EvoNorm",
    "GatedContext",
    "GlobalContext",
    "GlobalPool",
    "GlobalResponseNorm",
    "GroupNorm",
    "Kernel",
    "Layer",
    "LayerNorm2d",
    "NormAct",
    "RmsNorm2d",
    "SamePadding",
    "SimpleNorm2d",
    "SqueezeExcite",
    "build_act",
    "chain",
    "conv2d",
    "get_act",
    "get_attention",
    "get_layer",
    "get_norm",
    "make_divisible",
    "narrow",
    "norm_and_act",
    "pruned_widths",
    "with_act",
]
