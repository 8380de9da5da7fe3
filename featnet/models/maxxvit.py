"""MaxViT and CoAtNet: convolutions, then attention within blocks and grids, or over the whole map.

Papers: MaxViT (https://arxiv.org/abs/2204.01697); CoAtNet (https://arxiv.org/abs/2106.04803). The
forms "rw", "rmlp", "maxxvit" and "coatnext", with ConvNeXt's blocks or distances by an MLP, are
timm's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_choice, check_stages
from ..layers import (
    NormMlp,
    Scheme,
    Size,
    Stage,
    conv2d,
    drop_path_rates,
    fit_tables,
    get_act,
    he_group_fan_out,
    initialize,
    norm_and_act,
    normal,
    normal_bias,
    rename_keys,
    to_pair,
    trunc_normal,
    xavier,
    zero_bias,
)
from ..registry import Family, weights_table
from ._maxxvit_blocks import (
    AttentionSettings,
    ConvSettings,
    ParallelAttention,
    PartitionAttention,
    TransformerBlock,
    conv_block,
)

BlockType = str | Sequence[str]


class MaxxVitBlock(nn.Module):
    """A convolutional block, attention within blocks, attention within grids; (N, C, H, W)."""

    def __init__(self, conv: nn.Module, attentions: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.conv = conv
        for name, attention in attentions.items():
            self.add_module(name, attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)  # (N, H, W, C)
        for name, attention in self.named_children():
            x = x if name == "conv" else attention(x)
        return x.permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Two convolutions, the first of which halves the size."""

    def __init__(
        self, in_chs: int, widths: tuple[int, ...], *, bias: bool, settings: ConvSettings
    ) -> None:
        super().__init__()
        conv = partial(conv2d, kernel=3, pad_type=settings.padding)
        self.conv1: Any = conv(in_chs, widths[0], stride=2)
        self.norm1, self.act1 = norm_and_act(settings.norm, widths[0], get_act(settings.act_layer))
        self.conv2: Any = conv(widths[0], widths[1])
        if bias:
            self.conv1.bias = nn.Parameter(torch.zeros(widths[0]))
            self.conv2.bias = nn.Parameter(torch.zeros(widths[1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.act1(self.norm1(self.conv1(x))))


class MaxxVit(Backbone):
    """A stem at half the size, then four stages that halve it.

    Windows of attention within blocks and grids have 1/32 of the sides of ``img_size``; at another
    input they keep their size, and maps are filled up to whole windows. Attention over the whole
    map resamples its table of distances. With an output stride attention runs on the interleaved
    maps by themselves.

    Args:
        depths, embed_dim: blocks and channels of each stage.
        block_type: of each stage's blocks: ``"C"``, convolutions, ``"T"``, attention over the map
            (CoAtNet), ``"M"``, convolutions and both partitions (MaxViT), ``"PM"``, the partitions
            side by side; or a sequence of these, one for each block, of which the last is repeated.
        stem_width: channels of the stem, or of its two convolutions.
        stem_bias: biases of the stem.
        conv, attention: settings of the blocks.
        img_size: (height, width) that windows and tables of distances are made for.
        head_hidden_size: width of a layer before the classifier.
        weight_init: ``"vit_eff"``, ``"normal"``, ``"trunc_normal"``, ``"xavier_normal"``, or
            ``""`` for torch's own.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv1", "head.fc"
    stem: nn.Module

    def __init__(
        self,
        depths: Sequence[int] = (2, 3, 5, 2),
        embed_dim: Sequence[int] = (96, 192, 384, 768),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        block_type: Sequence[BlockType] = ("C", "C", "T", "T"),
        stem_width: int | tuple[int, int] = 64,
        stem_bias: bool = False,
        conv: ConvSettings = ConvSettings(),
        attention: AttentionSettings = AttentionSettings(),
        img_size: int | Size = 224,
        head_hidden_size: int | None = None,
        weight_init: str = "vit_eff",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, embed_dim=embed_dim, block_type=block_type)
        self.img_size = to_pair(img_size)
        self.conv, self.attention = conv, attention
        self.window = (max(self.img_size[0] // 32, 1), max(self.img_size[1] // 32, 1))
        widths = (stem_width, stem_width) if isinstance(stem_width, int) else tuple(stem_width)
        stem = Stem(in_chans, widths, bias=stem_bias, settings=conv)
        self.add_stage("stem", stem, channels=widths[-1], reduction=2)
        self.stages = nn.Sequential()
        in_chs, height, width = widths[-1], *(-(-side // 2) for side in self.img_size)
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            height, width = -(-height // 2), -(-width // 2)
            kinds = block_type[i]
            kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
            kinds += kinds[-1:] * (len(rates) - len(kinds))
            blocks = []
            for j, (kind, rate) in enumerate(zip(kinds, rates, strict=True)):
                options = dict(stride=1 if j else 2, drop_path=rate)
                blocks.append(self.block(kind, in_chs, embed_dim[i], (height, width), options))
                in_chs = embed_dim[i]
            self.add_stage(f"stages.{i}", Stage(blocks), channels=in_chs, reduction=4 * 2**i)
        norm = attention.norm
        self.norm = nn.Identity() if head_hidden_size else norm(in_chs)
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=NormMlp(
                norm=norm if head_hidden_size else None, hidden=head_hidden_size, act=nn.Tanh
            ),
        )
        self._init(weight_init)

    def block(
        self, kind: str, in_chs: int, chs: int, size: Size, options: dict[str, Any]
    ) -> nn.Module:
        """A block of a stage, whose output has a size."""
        check_choice("block_type", kind, ("C", "T", "M", "PM"))
        if kind == "T":
            return TransformerBlock(in_chs, chs, size=size, settings=self.attention, **options)
        conv = partial(conv_block, settings=self.conv)
        first, rate = conv(in_chs, chs, **options), options["drop_path"]
        if kind == "C":
            return first
        shared: dict[str, Any] = dict(settings=self.attention, window=self.window, drop_path=rate)
        if kind == "PM":
            second = conv(chs, chs, stride=1, drop_path=rate)
            parallel = ParallelAttention(chs, **shared)
            return MaxxVitBlock(nn.Sequential(first, second), OrderedDict(attn=parallel))
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if not self.attention.no_block_attn:
            parts["attn_block"] = PartitionAttention(chs, grid=False, **shared)
        parts["attn_grid"] = PartitionAttention(chs, grid=True, **shared)
        return MaxxVitBlock(first, parts)

    def _init(self, scheme: str) -> None:
        schemes: dict[str, tuple[Scheme | None, Scheme | None]] = {
            "": (None, None),
            "vit_eff": (he_group_fan_out, xavier),
            "normal": (partial(normal, std=0.02),) * 2,
            "trunc_normal": (partial(trunc_normal, cut=2),) * 2,
            "xavier_normal": (xavier_normal, xavier_normal),
        }
        check_choice("weight_init", scheme, schemes)
        conv, linear = schemes[scheme]
        if conv is None or linear is None:
            return
        initialize(self.stem, conv=[conv, zero_bias])
        mobile = self.conv.block_type == "mbconv"
        for name, module in self.stages.named_modules():
            attends = isinstance(module, (TransformerBlock, PartitionAttention))
            if attends:
                initialize(module, conv=[linear, zero_bias], linear=[linear, zero_bias])
            if attends and scheme == "vit_eff":
                for part, layer in module.named_modules():
                    if "mlp" in part:
                        normal_bias(layer, std=1e-6)
            parent = self.stages.get_submodule(name.rpartition(".")[0])
            block = mobile and name.count(".") == 2 and not attends
            if block or (isinstance(parent, MaxxVitBlock) and name.endswith(".conv")):
                initialize(module, conv=[conv, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/2, W/2)
        yield x
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm(y)

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.finish(y) if index == len(self.levels) - 1 else y

    def no_weight_decay(self) -> set[str]:
        parts = ("relative_position_bias_table", "rel_pos.mlp")
        return {n for n, _ in self.named_parameters() if any(part in n for part in parts)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        del coarse
        return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)", None), (r"^norm", (99999,))]}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; tables of other windows."""
        # 1x1 convolutions were linear layers
        return fit_tables(rename_keys(state, (), like=self), self)


def xavier_normal(layer: Any) -> None:
    """Glorot's normal distribution."""
    nn.init.xavier_normal_(layer.weight)


RW = ConvSettings(act_layer="silu", expand_output=False)
RW_POOL = replace(RW, stride_mode="pool")
RW_PRE = replace(RW, output_bias=False, pre_norm_act=True)
RW_RELU = replace(RW_PRE, attn_act_layer="relu")
RW_CC = replace(RW_RELU, stride_mode="pool")
RW_EARLY = replace(RW_RELU, attn_early=True)
RW_0 = replace(RW_EARLY, stride_mode="pool")
RMLP_1 = replace(RW_0, pool_type="max")
NEXT = ConvSettings(block_type="convnext", expand_output=False)
NEXT_5 = replace(NEXT, init_values=1e-5)
TF_CONV = ConvSettings(act_layer="gelu_tanh", norm_eps=1e-3, padding="same")
MAX = replace(RW, attn_ratio=1 / 16, output_bias=False)

LATE = AttentionSettings(expand_first=False)
LATE_BARE = replace(LATE, shortcut_bias=False)
BATCH_NORM = replace(LATE_BARE, norm_layer="batchnorm2d")
SCALED = replace(LATE, init_values=1e-6)
MLP = replace(LATE, rel_pos_type="mlp")
MLP_SCALED = replace(MLP, init_values=1e-6)
MLP_384 = replace(MLP, rel_pos_dim=384)
MLP_MAX = replace(MLP_384, pool_type="max", shortcut_bias=False)
GRID = replace(SCALED, no_block_attn=True)
GRID_MLP = replace(GRID, rel_pos_type="mlp")
TF_ATTENTION = AttentionSettings(
    act_layer="gelu_tanh", head_first=False, norm_eps=1e-5, rel_pos_type="bias_tf"
)

W32, W64, W128 = (32, 64, 128, 256), (64, 128, 256, 512), (128, 256, 512, 1024)
W160, W192 = (160, 320, 640, 1280), (192, 384, 768, 1536)
D, D_NANO, D_SMALL, D_RW = (2, 6, 14, 2), (1, 2, 3, 1), (2, 2, 5, 2), (2, 3, 7, 2)

STEM: dict[str, Any] = dict(stem_width=(32, 64))
NANO: dict[str, Any] = dict(embed_dim=W64, depths=(3, 4, 6, 3), **STEM)
ONE: dict[str, Any] = dict(depths=D, **STEM)
TWO: dict[str, Any] = dict(embed_dim=W128, depths=D, stem_width=(64, 128), conv=RW_PRE)
THREE: dict[str, Any] = dict(embed_dim=W192, depths=D, stem_width=(96, 192), conv=RW_PRE)
WIDE: dict[str, Any] = dict(embed_dim=W192, stem_width=192, head_hidden_size=1536)

PARTITIONS: dict[str, Any] = dict(block_type=("M", "M", "M", "M"))
TF: dict[str, Any] = dict(stem_bias=True, conv=TF_CONV, attention=TF_ATTENTION, **PARTITIONS)
RW_MAX: dict[str, Any] = dict(conv=MAX, **PARTITIONS)
PICO_MAX: dict[str, Any] = dict(embed_dim=W32, depths=D_SMALL, stem_width=(24, 32), **RW_MAX)
NANO_MAX: dict[str, Any] = dict(embed_dim=W64, depths=D_NANO, **STEM, **RW_MAX)
TINY_MAX: dict[str, Any] = dict(embed_dim=W64, depths=D_SMALL, **STEM, **RW_MAX)
NEXT_MAX: dict[str, Any] = dict(conv=NEXT, **PARTITIONS)
TEST: dict[str, Any] = dict(embed_dim=(32, 64, 96, 128), stem_width=(16, 32), attention=LATE)


def _sizes(name: str, *sizes: int, **row: Any) -> dict[str, dict[str, Any]]:
    """Variants of one network for inputs of several sizes."""
    return {f"{name}_{size}": row for size in sizes}


VARIANTS: dict[str, dict[str, Any]] = {
    "coatnet_0_224": dict(head_hidden_size=768),
    "coatnet_0_rw_224": dict(depths=D_RW, conv=RW_0, attention=LATE_BARE, **STEM),
    "coatnet_1_224": dict(depths=D, head_hidden_size=768),
    "coatnet_1_rw_224": dict(conv=RW_EARLY, attention=LATE_BARE, **ONE),
    "coatnet_2_224": dict(embed_dim=W128, depths=D, stem_width=128, head_hidden_size=1024),
    "coatnet_2_rw_224": dict(attention=LATE, **TWO),
    "coatnet_3_224": dict(depths=D, **WIDE),
    "coatnet_3_rw_224": dict(attention=SCALED, **THREE),
    "coatnet_4_224": dict(depths=(2, 12, 28, 2), **WIDE),
    "coatnet_5_224": dict(
        embed_dim=(256, 512, 1280, 2048),
        depths=(2, 12, 28, 2),
        stem_width=192,
        head_hidden_size=2048,
    ),
    "coatnet_bn_0_rw_224": dict(depths=D_RW, conv=RW_EARLY, attention=BATCH_NORM, **STEM),
    "coatnet_nano_cc_224": dict(
        block_type=("C", "C", ("C", "T"), ("C", "T")), conv=RW_CC, attention=LATE, **NANO
    ),
    "coatnet_nano_rw_224": dict(conv=RW_POOL, attention=LATE, **NANO),
    "coatnet_pico_rw_224": dict(embed_dim=W64, conv=RW, attention=LATE, **STEM),
    "coatnet_rmlp_0_rw_224": dict(depths=D_RW, conv=RW_RELU, attention=MLP, **STEM),
    "coatnet_rmlp_1_rw2_224": dict(conv=RW_RELU, attention=MLP, **ONE),
    "coatnet_rmlp_1_rw_224": dict(conv=RMLP_1, attention=MLP_MAX, **ONE),
    **_sizes("coatnet_rmlp_2_rw", 224, 384, attention=MLP_SCALED, **TWO),
    "coatnet_rmlp_3_rw_224": dict(attention=MLP_SCALED, **THREE),
    "coatnet_rmlp_nano_rw_224": dict(conv=RW, attention=MLP_384, **NANO),
    "coatnext_nano_rw_224": dict(weight_init="normal", conv=NEXT_5, attention=LATE, **NANO),
    **_sizes("maxvit_base_tf", 224, 384, 512, depths=D, head_hidden_size=768, **TF),
    **_sizes(
        "maxvit_large_tf",
        224,
        384,
        512,
        embed_dim=W128,
        depths=D,
        stem_width=128,
        head_hidden_size=1024,
        **TF,
    ),
    "maxvit_nano_rw_256": dict(attention=LATE, **NANO_MAX),
    "maxvit_pico_rw_256": dict(attention=LATE, **PICO_MAX),
    **_sizes("maxvit_rmlp_base_rw", 224, 384, head_hidden_size=768, attention=MLP, **ONE, **RW_MAX),
    "maxvit_rmlp_nano_rw_256": dict(attention=MLP, **NANO_MAX),
    "maxvit_rmlp_pico_rw_256": dict(attention=MLP, **PICO_MAX),
    **_sizes(
        "maxvit_rmlp_small_rw", 224, 256, depths=D_SMALL, attention=MLP_SCALED, **STEM, **RW_MAX
    ),
    "maxvit_rmlp_tiny_rw_256": dict(attention=MLP, **TINY_MAX),
    **_sizes("maxvit_small_tf", 224, 384, 512, depths=D_SMALL, head_hidden_size=768, **TF),
    "maxvit_tiny_pm_256": dict(attention=LATE, **TINY_MAX | {"block_type": ("PM",) * 4}),
    **_sizes("maxvit_tiny_rw", 224, 256, attention=LATE, **TINY_MAX),
    **_sizes(
        "maxvit_tiny_tf", 224, 384, 512, embed_dim=W64, depths=D_SMALL, head_hidden_size=512, **TF
    ),
    **_sizes("maxvit_xlarge_tf", 224, 384, 512, depths=D, **WIDE, **TF),
    "maxxvit_rmlp_nano_rw_256": dict(
        embed_dim=W64, depths=D_NANO, weight_init="normal", attention=MLP_SCALED, **STEM, **NEXT_MAX
    ),
    "maxxvit_rmlp_small_rw_256": dict(
        depths=D_SMALL, stem_width=(48, 96), attention=MLP_SCALED, **NEXT_MAX
    ),
    "maxxvit_rmlp_tiny_rw_256": dict(
        embed_dim=W64, depths=D_SMALL, attention=MLP_SCALED, **STEM, **NEXT_MAX
    ),
    "maxxvitv2_nano_rw_256": dict(
        depths=D_NANO, stem_width=(48, 96), weight_init="normal", attention=GRID, **NEXT_MAX
    ),
    **_sizes(
        "maxxvitv2_rmlp_base_rw",
        224,
        384,
        embed_dim=W128,
        depths=(2, 6, 12, 2),
        stem_width=(64, 128),
        attention=GRID_MLP,
        **NEXT_MAX,
    ),
    "maxxvitv2_rmlp_large_rw_224": dict(
        embed_dim=W160,
        depths=(2, 6, 16, 2),
        stem_width=(80, 160),
        head_hidden_size=1280,
        attention=GRID_MLP,
        **NEXT_MAX,
    ),
    "test_coatnet": dict(depths=(1, 1, 2, 1), conv=RW_POOL, **TEST),
    "test_maxvit": dict(depths=(1, 1, 1, 1), **RW_MAX, **TEST),
}

FAMILY = Family(model=MaxxVit, variants=VARIANTS, weights=weights_table("maxxvit"))
