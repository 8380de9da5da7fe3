"""ConvNeXt, a ResNet with the proportions and habits of a transformer.

Papers: ConvNeXt (https://arxiv.org/abs/2201.03545), ConvNeXt V2 with global response norm
(https://arxiv.org/abs/2301.00808). The sizes below tiny, the overlapping stems (ols), the head
with its norm first (hnf) and the other norms are timm's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_choice, check_stages
from ..layers import (
    Blocks,
    DropPath,
    GlobalResponseNorm,
    Layer,
    NormMlp,
    drop_path_rates,
    get_act,
    get_norm,
    initialize,
    make_divisible,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


class Mlp(nn.Module):
    """Four times as wide and back, each position for itself."""

    pointwise: Layer = staticmethod(partial(nn.Conv2d, kernel_size=1))
    channels_last = False

    def __init__(self, channels: int, *, act: Layer, grn: bool) -> None:
        super().__init__()
        hidden = 4 * channels
        self.fc1 = self.pointwise(channels, hidden)
        self.act = act()
        self.grn = GlobalResponseNorm(hidden, channels_last=self.channels_last) if grn else None
        self.fc2 = self.pointwise(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.fc1(x))  # (N, 4C, H, W)
        return self.fc2(x if self.grn is None else self.grn(x))


class LinearMlp(Mlp):
    """The same by matrix products, with the channels last in between; (N, C, H, W) outside."""

    pointwise = nn.Linear
    channels_last = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class ConvNeXtSettings:
    """Settings that all blocks of a network have in common.

    Attributes:
        norm: of each block, of the stem and between stages.
        mlp: ``f(channels)``, the second half of each block.
        ls_init_value: first scale of each block's output, learnt from there; None for
            no scale.
    """

    norm: Layer
    mlp: Layer
    ls_init_value: float | None = 1e-6


class Block(nn.Module):
    """Depthwise convolution, norm, MLP, and the scale of this branch (gamma)."""

    def __init__(
        self, chs: int, *, kernel_size: int, settings: ConvNeXtSettings, drop_path: float
    ) -> None:
        super().__init__()
        scale = settings.ls_init_value
        self.conv_dw = nn.Conv2d(chs, chs, kernel_size, padding=kernel_size // 2, groups=chs)
        self.norm = settings.norm(chs)
        self.mlp = settings.mlp(chs)
        self.gamma = nn.Parameter(torch.full((chs,), float(scale))) if scale is not None else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.conv_dw(x)))
        if self.gamma is not None:
            y = y * self.gamma.reshape(1, -1, 1, 1)
        return self.drop_path(y) + x


class Stage(nn.Module):
    """A norm and a 2x2 convolution to half the size, where it is halved, then blocks."""

    def __init__(
        self,
        in_chs: int,
        chs: int,
        *,
        stride: int,
        kernel_size: int,
        settings: ConvNeXtSettings,
        drop_paths: Sequence[float],
    ) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_chs != chs:
            self.downsample = nn.Sequential(
                settings.norm(in_chs), nn.Conv2d(in_chs, chs, stride, stride)
            )
        make = partial(Block, chs, kernel_size=kernel_size, settings=settings)
        self.blocks = Blocks(*(make(drop_path=drop) for drop in drop_paths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.downsample(x))  # (N, C, H/2, W/2)


def patch_stem(in_chans: int, chs: int, norm: Layer, act: Layer, *, patch_size: int) -> nn.Module:
    """Patches side by side."""
    del act
    return nn.Sequential(nn.Conv2d(in_chans, chs, patch_size, patch_size), norm(chs))


def overlap_stem(
    in_chans: int, chs: int, norm: Layer, act: Layer, *, tiered: bool = False, between: bool = False
) -> nn.Module:
    """Two strided 3x3 convolutions: the first of half the width (``tiered``), or with an
    activation ``between`` them."""
    mid = make_divisible(chs // 2) if tiered else chs
    return nn.Sequential(
        nn.Conv2d(in_chans, mid, 3, 2, 1),
        *([act()] if between else []),
        nn.Conv2d(mid, chs, 3, 2, 1),
        norm(chs),
    )


STEMS: dict[str, Layer] = {
    "patch": patch_stem,
    "overlap": overlap_stem,
    "overlap_tiered": partial(overlap_stem, tiered=True),
    "overlap_act": partial(overlap_stem, between=True),
}


class ConvNeXt(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    Args:
        depths, dims: blocks and channels of each stage.
        kernel_sizes: of the depthwise convolutions; one for all stages or one for each.
        stem_type: ``"patch"``, ``"overlap"``, ``"overlap_tiered"`` or ``"overlap_act"``.
        patch_size: of the patch stem, by default 4; with 2 the first stage halves the size too.
        ls_init_value: see :class:`ConvNeXtSettings`.
        conv_mlp: 1x1 convolutions in place of matrix products with the channels last.
        use_grn: global response norm in each MLP: ConvNeXt V2.
        norm_eps: in place of the norm's own.
        head_norm_first: norm the map before the pooling, not what the pooling gives.
        head_hidden_size: width of a layer before the classifier.
        head_init_scale: factor on the head's first weights.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        kernel_sizes: int | Sequence[int] = 7,
        stem_type: str = "patch",
        patch_size: int | None = None,
        ls_init_value: float | None = 1e-6,
        conv_mlp: bool = False,
        use_grn: bool = False,
        act_layer: str | Layer = "gelu",
        norm_layer: str | Layer = "layernorm2d",
        norm_eps: float | None = None,
        head_norm_first: bool = False,
        head_hidden_size: int | None = None,
        head_init_scale: float = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        kernels = (kernel_sizes,) * len(dims) if isinstance(kernel_sizes, int) else kernel_sizes
        check_stages(depths=depths, dims=dims, kernel_sizes=kernels)
        act, norm = get_act(act_layer), get_norm(norm_layer)
        if norm_eps is not None:
            norm = partial(norm, eps=norm_eps)
        mlp = partial(Mlp if conv_mlp else LinearMlp, act=act, grn=use_grn)
        settings = ConvNeXtSettings(norm, mlp, ls_init_value)
        reduction = self._add_stem(stem_type, patch_size, dims[0], norm, act)
        self.stages = nn.Sequential()
        drops = drop_path_rates(drop_path_rate, depths)
        in_chs = dims[0]
        for i, (chs, kernel) in enumerate(zip(dims, kernels, strict=True)):
            stride = 2 if i or reduction == 2 else 1
            stage = Stage(
                in_chs,
                chs,
                stride=stride,
                kernel_size=kernel,
                settings=settings,
                drop_paths=drops[i],
            )
            reduction *= stride
            self.add_stage(f"stages.{i}", stage, channels=chs, reduction=reduction)
            in_chs = chs
        self.norm_pre = norm(in_chs) if head_norm_first else nn.Identity()
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=NormMlp(norm=None if head_norm_first else norm, hidden=head_hidden_size),
        )
        start = [trunc_normal, zero_bias]
        initialize(self, conv=start, linear=start)
        initialize(
            self.get_submodule("head"), linear=[partial(trunc_normal, std=0.02 * head_init_scale)]
        )

    def _add_stem(
        self, kind: str, patch_size: int | None, width: int, norm: Layer, act: Layer
    ) -> int:
        """Returns its reduction."""
        check_choice("stem_type", kind, STEMS)
        if kind != "patch" and patch_size is not None:
            raise ArgumentError(f"patch_size={patch_size!r}: stem_type={kind!r} has no patches.")
        reduction = 4 if patch_size is None else patch_size
        options = {"patch_size": reduction} if kind == "patch" else {}
        self.stem = STEMS[kind](self.in_chans, width, norm, act, **options)
        return reduction

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm_pre(y)

    def normalize(self, y: torch.Tensor, index: int) -> torch.Tensor:
        return self.finish(y) if index == len(self.levels) - 1 else y

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^norm_pre", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}


V2: dict[str, Any] = {"use_grn": True, "ls_init_value": None}

VARIANTS: dict[str, dict[str, Any]] = {
    "convnext_zepto_rms": dict(
        depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), conv_mlp=True, norm_layer="simplenorm2d"
    ),
    "convnext_zepto_rms_ols": dict(
        depths=(2, 2, 4, 2),
        dims=(32, 64, 128, 256),
        conv_mlp=True,
        norm_layer="simplenorm2d",
        stem_type="overlap_act",
    ),
    "convnext_atto": dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True),
    "convnext_atto_ols": dict(
        depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True, stem_type="overlap_tiered"
    ),
    "convnext_atto_rms": dict(
        depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True, norm_layer="rmsnorm2d"
    ),
    "convnext_femto": dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True),
    "convnext_femto_ols": dict(
        depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True, stem_type="overlap_tiered"
    ),
    "convnext_pico": dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True),
    "convnext_pico_ols": dict(
        depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True, stem_type="overlap_tiered"
    ),
    "convnext_nano": dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True),
    "convnext_nano_ols": dict(
        depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True, stem_type="overlap"
    ),
    "convnext_tiny_hnf": dict(
        depths=(3, 3, 9, 3), dims=(96, 192, 384, 768), head_norm_first=True, conv_mlp=True
    ),
    "convnext_tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnext_small": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnext_base": dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnext_large": dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "convnext_large_mlp": dict(
        depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), head_hidden_size=1536
    ),
    "convnext_xlarge": dict(depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048)),
    "convnext_xxlarge": dict(depths=(3, 4, 30, 3), dims=(384, 768, 1536, 3072), norm_eps=1e-05),
    "convnextv2_atto": dict(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True, **V2),
    "convnextv2_femto": dict(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True, **V2),
    "convnextv2_pico": dict(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True, **V2),
    "convnextv2_nano": dict(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True, **V2),
    "convnextv2_tiny": dict(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768), **V2),
    "convnextv2_small": dict(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768), **V2),
    "convnextv2_base": dict(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024), **V2),
    "convnextv2_large": dict(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), **V2),
    "convnextv2_huge": dict(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816), **V2),
    "test_convnext": dict(
        depths=(1, 2, 4, 2), dims=(24, 32, 48, 64), norm_eps=1e-05, act_layer="gelu_tanh"
    ),
    "test_convnext2": dict(
        depths=(1, 1, 1, 1), dims=(32, 64, 96, 128), norm_eps=1e-05, act_layer="gelu_tanh"
    ),
    "test_convnext3": dict(
        depths=(1, 1, 1, 1),
        dims=(32, 64, 96, 128),
        norm_eps=1e-05,
        kernel_sizes=(7, 5, 5, 3),
        act_layer="silu",
    ),
}

FAMILY = Family(model=ConvNeXt, variants=VARIANTS, weights=weights_table("convnext"))
