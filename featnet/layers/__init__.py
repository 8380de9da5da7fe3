"""Blocks that at least two families share."""

from .attention import (
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    SqueezeExcite,
    make_divisible,
)
from .attention_pool import AttentionPool2d, TokenPool
from .bilinear_attention import BilinearAttention
from .blocks import Blocks, DropBlock2d, DropPath, chain
from .channel_norm import GlobalResponseNorm, LayerNorm2d, RmsNorm2d, SimpleNorm2d
from .context import GatedContext, GlobalContext
from .conv import ConvNormAct, norm_and_act
from .evonorm import EvoNorm
from .factory import Layer, build_act, get_act, get_attention, get_layer, get_norm
from .fuse import fold_norm, identity_kernel, merge_branches
from .mobile_conv import CondConv2d, Kernel, SamePadding, conv2d
from .narrow import narrow, pruned_widths
from .norm import GroupNorm
from .norm_act import NormAct, with_act
from .phases import Phased, in_phases
from .pool import BlurPool2d, GlobalPool
from .self_attention import BottleneckAttention, HaloAttention, LambdaLayer, SelfAttention

__all__ = [
    "AttentionPool2d",
    "BilinearAttention",
    "Blocks",
    "BlurPool2d",
    "BottleneckAttention",
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
    "HaloAttention",
    "Kernel",
    "LambdaLayer",
    "Layer",
    "LayerNorm2d",
    "NormAct",
    "Phased",
    "RmsNorm2d",
    "SamePadding",
    "SelfAttention",
    "SimpleNorm2d",
    "SqueezeExcite",
    "TokenPool",
    "build_act",
    "chain",
    "conv2d",
    "fold_norm",
    "get_act",
    "get_attention",
    "get_layer",
    "get_norm",
    "identity_kernel",
    "in_phases",
    "make_divisible",
    "merge_branches",
    "narrow",
    "norm_and_act",
    "pruned_widths",
    "with_act",
]
