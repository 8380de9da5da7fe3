"""MobileNetV5: the image encoder of Gemma 3n, of MobileNetV4's blocks.

It has no paper; MobileNetV4 (https://arxiv.org/abs/2404.10518) describes the blocks, the code of
timm and of transformers the fusion of levels that language models are given.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..layers import Head, Layer, conv2d
from ..layers.mobile_blocks import build_block
from ..layers.mobile_spec import MobileSettings, Spec
from ..registry import Family, weights_table
from .efficientnet import Arch, EfficientNet

GRID = 16  # rows and columns of the final features


@torch.fx.wrap
def to_grid(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, 16, 16): by a mean where 16 divides the size, else interpolated; one
    step of a graph."""
    height, width = x.shape[-2:]
    if height % GRID or width % GRID:
        return F.interpolate(x, (GRID, GRID), mode="bilinear")
    return F.avg_pool2d(x, (height // GRID, width // GRID))


class Fusion(nn.Module):
    """Two levels at the finer one's size, mixed by a block, then at 16 x 16.

    Args:
        in_chs: of both levels together.
        out_chs: that come out.
        settings: of the network's blocks.
    """

    def __init__(self, in_chs: int, out_chs: int, *, settings: MobileSettings) -> None:
        super().__init__()
        plain = dataclasses.replace(settings, layer_scale=None, pad_type="")
        spec = Spec("uir", kernel=0, expand=2.0, channels=out_chs, skip=False)
        self.ffn = build_block(in_chs, spec, settings=plain, drop_path=0.0)
        self.norm = settings.last_norm(out_chs)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), (N, C', H', W') -> (N, C'', 16, 16)."""
        coarse = F.interpolate(coarse, (fine.shape[-2], fine.shape[-1]), mode="nearest")
        return self.norm(to_grid(self.ffn(torch.cat((fine, coarse), 1))))


class LastLevel(NamedTuple):
    """The last level's map, and the one before it, which the fusion is given too."""

    map: torch.Tensor
    finer: torch.Tensor


class MobileNetV5(EfficientNet):
    """A strided convolution and four stages of blocks; the final features are the fusion of the
    last two levels, at 16 x 16 for any input.

    With an output stride attention runs on the interleaved maps by themselves.

    Args:
        arch: see :class:`featnet.models.efficientnet.Arch`; ``head`` is the fusion's width.
        channel_multiplier: factor on the channels of the stages.
        pad_type: ``""``, or ``"same"`` as in TensorFlow.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv = "conv_stem.conv"
    stem_level = "conv_stem"

    def __init__(
        self,
        arch: Arch,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        channel_multiplier: float = 1.0,
        pad_type: str = "",
        act_layer: str | Layer = "gelu_tanh",
        norm_layer: str | Layer = "rmsnorm2d",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            dataclasses.replace(arch, width=arch.width * channel_multiplier),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            pad_type=pad_type,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )

    def add_stem(self, arch: Arch, settings: MobileSettings) -> None:
        conv = conv2d(self.in_chans, arch.stem, 3, stride=2, pad_type=settings.pad_type)
        conv.bias = nn.Parameter(torch.zeros(arch.stem))
        norm, act = settings.norm_act(arch.stem)
        self.conv_stem = nn.Sequential(OrderedDict(conv=conv, bn=norm, act=act))

    def run_stem(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_stem(x)

    def add_tail(self, in_chs: int, arch: Arch, settings: MobileSettings) -> Head:
        self.num_features = arch.head
        finer = self._levels[-2].channels
        self.msfa = Fusion(finer + in_chs, arch.head, settings=settings)
        return Head()

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        finer: Any = None  # held only where it is needed
        fuses, last = "msfa" in self._modules, len(self._levels) - 1
        for index, level in enumerate(super().forward_levels(x)):
            y = self.as_map(level)
            yield LastLevel(y, finer) if fuses and index == last else y
            finer = y if fuses and index == last - 1 else None

    def finish(self, y: Any) -> torch.Tensor:
        """Return the final features, (N, 2048, 16, 16)."""
        return self.msfa(y.finer, y.map)

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; Gemma 3n's whole checkpoints, of which this is the image
        tower."""
        for prefix in ("model.vision_tower.timm_model.", "vision_tower.timm_model."):
            inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            state = inside or state
        return dict(state)


# Architectures, a line a stage -------------------------------------------------------------------


def attending(count: int, attention: str, channels: int) -> str:
    """``count`` pairs of attention and what each position does for itself."""
    return f" {attention}_c{channels} uir_r1_a0_k0_s1_e2_c{channels}" * count


START = (
    "er_r1_k3_s2_e4_c128 er_r2_k3_s1_e4_c128\n"
    "uir_r1_a3_k5_s2_e6_c256 uir_r1_a5_k0_s1_e4_c256 uir_r1_a3_k0_s1_e4_c256 "
    "uir_r1_a5_k0_s1_e4_c256 uir_r1_a3_k0_s1_e4_c256\n"
)
STAGES_300M = (
    START
    + "uir_r1_a5_k5_s2_e6_c640 uir_r7_a5_k0_s1_e4_c640 uir_r1_a0_k0_s1_e1_c640"
    + attending(14, "mqa_r1_k3_h12_v2_s1_d64", 640)
    + "\nuir_r1_a5_k5_s2_e6_c1280"
    + attending(19, "mqa_r1_k3_h16_s1_d96", 1280)
)
STAGES_BASE = (
    START
    + "uir_r1_a5_k5_s2_e6_c512 uir_r2_a5_k0_s1_e4_c512 uir_r1_a0_k0_s1_e1_c512"
    + attending(6, "mqa_r1_k3_h8_s1_d64", 512)
    + "\nuir_r1_a5_k5_s2_e6_c1024"
    + attending(7, "mqa_r1_k3_h16_s1_d64", 1024)
)
LARGE = Arch(STAGES_300M, stem=64, head=2048, layer_scale=1e-5)

VARIANTS: dict[str, dict[str, Any]] = {
    "mobilenetv5_300m": dict(arch=LARGE),
    "mobilenetv5_300m_enc": dict(arch=LARGE, pad_type="same", num_classes=0, global_pool=""),
    "mobilenetv5_base": dict(arch=dataclasses.replace(LARGE, stages=STAGES_BASE)),
}

FAMILY = Family(model=MobileNetV5, variants=VARIANTS, weights=weights_table("mobilenetv5"))
