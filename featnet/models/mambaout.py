"""MambaOut: gated convolutions, what is left of Mamba without its state space model.

Paper: MambaOut, Do We Really Need Mamba for Vision? (https://arxiv.org/abs/2405.07992).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_choice, check_stages
from ..layers import (
    Blocks,
    DropPath,
    Head,
    Layer,
    LayerScale,
    drop_path_rates,
    get_act,
    get_norm,
    initialize,
    rename_keys,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


class Stem(nn.Module):
    """Two strided convolutions; (N, C, H, W) -> (N, H/4, W/4, D)."""

    def __init__(self, in_chs: int, dim: int, *, mid_norm: bool, act: Layer, norm: Layer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, dim // 2, 3, 2, 1)
        self.norm1 = norm(dim // 2) if mid_norm else None
        self.act = act()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.norm2 = norm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        if self.norm1 is not None:
            x = self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm2(self.conv2(self.act(x)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """A convolution of stride 2 and a norm, behind or before it; (N, H, W, C)."""

    def __init__(self, in_chs: int, dim: int, *, norm: Layer, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        if norm_first:
            self.norm = norm(in_chs)
        self.conv = nn.Conv2d(in_chs, dim, 3, 2, 1)
        if not norm_first:
            self.norm = norm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x) if self.norm_first else x
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.norm_first else self.norm(x)


class GatedConvBlock(nn.Module):
    """A depthwise convolution of some hidden channels, under a gate; (N, H, W, C).

    Args:
        expansion_ratio: hidden width, as a multiple of ``dim``.
        conv_ratio: width of the convolution, alike.
        scale: first factor of each channel of the output; None for no such factors.
    """

    def __init__(
        self,
        dim: int,
        *,
        expansion_ratio: float,
        conv_ratio: float,
        kernel_size: int,
        norm: Layer,
        act: Layer,
        scale: float | None,
        drop_path: float,
    ) -> None:
        super().__init__()
        hidden, width = int(expansion_ratio * dim), int(conv_ratio * dim)
        self.widths = (hidden, hidden - width, width)
        self.norm = norm(dim)
        self.fc1 = nn.Linear(dim, hidden * 2)
        self.act = act()
        self.conv = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2, groups=width)
        self.fc2 = nn.Linear(hidden, dim)
        self.ls = LayerScale(dim, scale) if scale is not None else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, same, space = self.fc1(self.norm(x)).split(self.widths, -1)
        space = self.conv(space.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.fc2(self.act(gate) * torch.cat((same, space), -1))
        return self.drop_path(self.ls(y)) + x


class Stage(nn.Module):
    """A strided convolution, but for the first stage, and blocks; gives (N, C, H, W)."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = Blocks(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.downsample(x.permute(0, 2, 3, 1)))  # (N, H/2, W/2, C)
        return x.permute(0, 3, 1, 2)


class MambaOut(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    Args:
        depths, dims: blocks and channels of each stage.
        kernel_size, conv_ratio, expansion_ratio: see :class:`GatedConvBlock`.
        stem_mid_norm: norm between the convolutions of the stem.
        ls_init_value: first factor of each channel of a block's output; None for no such factors.
        downsample: ``"conv"``, the norm follows the strided convolution, or ``"conv_nf"``, it
            comes first.
        head_fn: ``"default"``, a norm behind the hidden layer of the head, or ``"norm_mlp"``, none.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv1", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 576),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        kernel_size: int = 7,
        conv_ratio: float = 1.0,
        expansion_ratio: float = 8 / 3,
        stem_mid_norm: bool = True,
        ls_init_value: float | None = None,
        downsample: str = "conv",
        head_fn: str = "default",
        norm_layer: str | Layer = "layernorm",
        act_layer: str | Layer = "gelu",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        for name, value, allowed in (
            ("downsample", downsample, ("conv", "conv_nf")),
            ("head_fn", head_fn, ("default", "norm_mlp")),
        ):
            check_choice(name, value, allowed)
        check_stages(depths=depths, dims=dims)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        block = partial(
            GatedConvBlock,
            expansion_ratio=expansion_ratio,
            conv_ratio=conv_ratio,
            kernel_size=kernel_size,
            norm=norm,
            act=act,
            scale=ls_init_value,
        )
        stem = Stem(in_chans, dims[0], mid_norm=stem_mid_norm, act=act, norm=norm)
        self.stem, self.stages = stem, nn.Sequential()
        in_chs, rates = dims[0], drop_path_rates(drop_path_rate, depths)
        for i, dim in enumerate(dims):
            down: nn.Module = nn.Identity()
            if i:
                down = Downsample(in_chs, dim, norm=norm, norm_first=downsample == "conv_nf")
            stage = Stage(down, [block(dim, drop_path=rate) for rate in rates[i]])
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=4 * 2**i)
            in_chs = dim
        self._add_head(in_chs, num_classes, global_pool, drop_rate, norm, last=head_fn == "default")
        start = [trunc_normal, zero_bias]
        initialize(self, conv=start, linear=start)

    def _add_head(
        self, dim: int, classes: int, pool: str, drop: float, norm: Layer, *, last: bool
    ) -> None:
        hidden = 4 * dim
        layers = OrderedDict[str, nn.Module](fc=nn.Linear(dim, hidden), act=nn.GELU())
        if last:
            layers["norm"] = norm(hidden)
        self.head = nn.Sequential(OrderedDict(norm=norm(dim), pre_logits=nn.Sequential(layers)))
        head = Head("head.norm", "head.pre_logits", gives=hidden, channels_last=True)
        self.add_head(dim, num_classes=classes, global_pool=pool, drop_rate=drop, head=head)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x).permute(0, 3, 1, 2)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names."""
        if "downsample_layers.0.conv1.weight" not in state:
            return dict(state)
        return rename_keys(
            state,
            (
                (r"^downsample_layers\.0\.", "stem."),
                (r"^stages\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
                (r"^downsample_layers\.(\d+)", r"stages.\1.downsample"),
                (r"^head\.fc1\.", "head.pre_logits.fc."),
                (r"^head\.norm\.", "head.pre_logits.norm."),
                (r"^head\.fc2\.", "head.fc."),
                (r"^norm\.", "head.norm."),
            ),
        )


RW: dict[str, Any] = dict(
    stem_mid_norm=False, downsample="conv_nf", ls_init_value=1e-5, head_fn="norm_mlp"
)
BASE: dict[str, Any] = dict(dims=(128, 256, 512, 768), **RW)

VARIANTS: dict[str, dict[str, Any]] = {
    "mambaout_femto": dict(depths=(3, 3, 9, 3), dims=(48, 96, 192, 288)),
    "mambaout_kobe": dict(depths=(3, 3, 15, 3), dims=(48, 96, 192, 288)),
    "mambaout_tiny": dict(depths=(3, 3, 9, 3)),
    "mambaout_small": dict(depths=(3, 4, 27, 3)),
    "mambaout_base": dict(depths=(3, 4, 27, 3), dims=(128, 256, 512, 768)),
    "mambaout_small_rw": dict(depths=(3, 4, 27, 3), **RW),
    "mambaout_base_short_rw": dict(
        depths=(3, 3, 25, 3), expansion_ratio=3.0, conv_ratio=1.25, **BASE
    ),
    "mambaout_base_tall_rw": dict(
        depths=(3, 4, 30, 3), expansion_ratio=2.5, conv_ratio=1.25, **BASE
    ),
    "mambaout_base_wide_rw": dict(
        depths=(3, 4, 27, 3), expansion_ratio=3.0, conv_ratio=1.5, act_layer="silu", **BASE
    ),
    "mambaout_base_plus_rw": dict(
        depths=(3, 4, 30, 3), expansion_ratio=3.0, conv_ratio=1.5, act_layer="silu", **BASE
    ),
    "test_mambaout": dict(
        depths=(1, 1, 3, 1), dims=(16, 32, 48, 64), expansion_ratio=3, act_layer="silu", **RW
    ),
}

FAMILY = Family(model=MambaOut, variants=VARIANTS, weights=weights_table("mambaout"))
