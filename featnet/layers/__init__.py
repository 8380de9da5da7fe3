"""Blocks that at least two families share."""

from ..size import Size
from .activations import QuickGelu
from .attention import (
    EffectiveSqueezeExcite,
    EfficientChannelAttention,
    SqueezeExcite,
    make_divisible,
)
from .attention_pool import AttentionPool2d, LatentPool, TokenPool
from .bilinear_attention import BilinearAttention
from .blocks import Blocks, DropBlock2d, DropPath, Recomputed, chain, drop_path_rates, recompute
from .branches import Branches, add_branches, merge_parallel
from .channel_attention import CrossCovarianceAttention, FourierPositions
from .channel_norm import GlobalResponseNorm, LayerNorm2d, RmsNorm2d, SimpleNorm2d
from .context import GatedContext, GlobalContext
from .conv import ConvNormAct, norm_and_act, unit
from .dot_attention import (
    Attention,
    LocalAttention,
    add_qv_bias,
    attend,
    head_width,
    join_heads,
    split_heads,
)
from .evonorm import EvoNorm, EvoNormS0
from .factory import Layer, build_act, get_act, get_attention, get_layer, get_norm
from .fuse import absorb_norms, fold_norm, identity_kernel, merge_branches
from .heads import (
    AttentionPoolHead,
    ChannelsLast,
    ConvClassifier,
    ConvHead,
    DistilledHead,
    Head,
    NormMlp,
    TokenHead,
    classifiers,
)
from .inception import Inception, inception_conv
from .init import (
    Scheme,
    he_fan_in,
    he_fan_out,
    he_group_fan_out,
    init_tokens,
    initialize,
    lecun_normal,
    normal,
    normal_bias,
    scale_with_depth,
    trunc_normal,
    trunc_normal_,
    uniform_fan_out,
    xavier,
    zero_bias,
    zero_weight,
)
from .keys import rename_keys
from .linear_attention import relu_attention
from .memo import Memo
from .mlp import GluMlp, LayerScale, Mlp, SwiGlu, pointwise
from .mobile_conv import CondConv2d, Kernel, SamePadding, conv2d
from .narrow import narrow, pruned_widths
from .norm import GroupNorm
from .patch_embed import PatchConv, PatchEmbed, check_multiple, fit_to_patches, to_pair
from .phases import MapAndTokens, Phased, PhasedTokens, in_phases
from .pool import BlurPool2d, GlobalPool
from .positions import resample_grid, resample_patches, resample_positions
from .relative_position import RelativePositions, distances, resample_distances
from .response_norm import FilterResponseNorm
from .rotary import Augment, CentredRotaryEmbedding, MixedRotaryEmbedding, RotaryEmbedding, Rotation
from .self_attention import BottleneckAttention, HaloAttention, LambdaLayer, SelfAttention
from .static import ceil_div, crop, in_memory_format_of, same_size, stride_of
from .std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from .tokens import SEQUENCE_POOLS, PatchDropout, SequencePool, Tokens, as_image, as_sequence
from .windows import (
    block_mask,
    block_side,
    join_blocks,
    join_windows,
    pad_to_windows,
    relative_bias,
    shift_mask,
    split_blocks,
    split_windows,
)

__all__ = [
    "SEQUENCE_POOLS",
    "Attention",
    "AttentionPool2d",
    "AttentionPoolHead",
    "Augment",
    "BilinearAttention",
    "Blocks",
    "BlurPool2d",
    "BottleneckAttention",
    "Branches",
    "CentredRotaryEmbedding",
    "ChannelsLast",
    "CondConv2d",
    "ConvClassifier",
    "ConvHead",
    "ConvNormAct",
    "CrossCovarianceAttention",
    "DistilledHead",
    "DropBlock2d",
    "DropPath",
    "EffectiveSqueezeExcite",
    "EfficientChannelAttention",
    "EvoNorm",
    "EvoNormS0",
    "FilterResponseNorm",
    "FourierPositions",
    "GatedContext",
    "GlobalContext",
    "GlobalPool",
    "GlobalResponseNorm",
    "GluMlp",
    "GroupNorm",
    "HaloAttention",
    "Head",
    "Inception",
    "Kernel",
    "LambdaLayer",
    "LatentPool",
    "Layer",
    "LayerNorm2d",
    "LayerScale",
    "LocalAttention",
    "MapAndTokens",
    "Memo",
    "MixedRotaryEmbedding",
    "Mlp",
    "NormMlp",
    "PatchConv",
    "PatchDropout",
    "PatchEmbed",
    "Phased",
    "PhasedTokens",
    "QuickGelu",
    "Recomputed",
    "RelativePositions",
    "RmsNorm2d",
    "RotaryEmbedding",
    "Rotation",
    "SamePadding",
    "ScaledStdConv2d",
    "ScaledStdConv2dSame",
    "Scheme",
    "SelfAttention",
    "SequencePool",
    "SimpleNorm2d",
    "Size",
    "SqueezeExcite",
    "StdConv2d",
    "StdConv2dSame",
    "SwiGlu",
    "TokenHead",
    "TokenPool",
    "Tokens",
    "absorb_norms",
    "add_branches",
    "add_qv_bias",
    "as_image",
    "as_sequence",
    "attend",
    "block_mask",
    "block_side",
    "build_act",
    "ceil_div",
    "chain",
    "check_multiple",
    "classifiers",
    "conv2d",
    "crop",
    "distances",
    "drop_path_rates",
    "fit_to_patches",
    "fold_norm",
    "get_act",
    "get_attention",
    "get_layer",
    "get_norm",
    "he_fan_in",
    "he_fan_out",
    "he_group_fan_out",
    "head_width",
    "identity_kernel",
    "in_memory_format_of",
    "in_phases",
    "inception_conv",
    "init_tokens",
    "initialize",
    "join_blocks",
    "join_heads",
    "join_windows",
    "lecun_normal",
    "make_divisible",
    "merge_branches",
    "merge_parallel",
    "narrow",
    "norm_and_act",
    "normal",
    "normal_bias",
    "pad_to_windows",
    "pointwise",
    "pruned_widths",
    "recompute",
    "relative_bias",
    "relu_attention",
    "rename_keys",
    "resample_distances",
    "resample_grid",
    "resample_patches",
    "resample_positions",
    "same_size",
    "scale_with_depth",
    "shift_mask",
    "split_blocks",
    "split_heads",
    "split_windows",
    "stride_of",
    "to_pair",
    "trunc_normal",
    "trunc_normal_",
    "uniform_fan_out",
    "unit",
    "xavier",
    "zero_bias",
    "zero_weight",
]
