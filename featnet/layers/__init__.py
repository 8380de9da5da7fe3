"""Blocks that at least two families share."""

from .attention import EfficientChannelAttention, SqueezeExcite, make_divisible
from .attention_pool import AttentionPool2d, TokenPool
from .bilinear_attention import BilinearAttention
from .blocks import Blocks, DropBlock2d, DropPath
from .context import GlobalContext
from .conv import ConvNormAct, norm_and_act
from .evonorm import EvoNorm
from .factory import Layer, get_act, get_attention, get_norm
from .fuse import fold_norm, identity_kernel, merge_branches
from .narrow import narrow, pruned_widths
from .norm import GroupNorm
from .pool import BlurPool2d, GlobalPool
from .self_attention import BottleneckAttention, HaloAttention, LambdaLayer, SelfAttention

__all__ = [
    "AttentionPool2d",
    "BilinearAttention",
    "Blocks",
    "BlurPool2d",
    "BottleneckAttention",
    "ConvNormAct",
    "DropBlock2d",
    "DropPath",
    "EfficientChannelAttention",
    "EvoNorm",
    "GlobalContext",
    "GlobalPool",
    "GroupNorm",
    "HaloAttention",
    "LambdaLayer",
    "Layer",
    "SelfAttention",
    "SqueezeExcite",
    "TokenPool",
    "fold_norm",
    "get_act",
    "get_attention",
    "get_norm",
    "identity_kernel",
    "make_divisible",
    "merge_branches",
    "narrow",
    "norm_and_act",
    "pruned_widths",
]
