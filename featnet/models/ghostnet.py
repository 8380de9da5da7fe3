"""GhostNet: half of a layer's maps are cheap depthwise views of the other half.

Papers: GhostNet (https://arxiv.org/abs/1911.11907); V2, whose blocks are gated by what lies along
their rows and columns (https://arxiv.org/abs/2211.12905); V3, trained with parallel branches that
become one convolution (https://arxiv.org/abs/2404.11202).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..layers import Blocks, ConvHead, Phased, add_branches, make_divisible, merge_parallel
from ..layers.mobile_spec import MobileSqueezeExcite
from ..registry import Family, weights_table

BRANCHES = 3  # equal convolutions side by side in V3

squeeze: Callable[..., nn.Module] = partial(
    MobileSqueezeExcite, gate_layer=nn.Hardsigmoid, rounding=partial(make_divisible, divisor=4)
)


def depthwise(channels: int, kernel: int | tuple[int, int], *, stride: int = 1) -> nn.Conv2d:
    """A depthwise convolution that keeps the size, up to its stride."""
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (sides[0] // 2, sides[1] // 2)
    return nn.Conv2d(channels, channels, sides, stride, padding, groups=channels, bias=False)


def pointwise(in_chs: int, out_chs: int) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(in_chs, out_chs, 1, bias=False)


def conv_norm(conv: nn.Conv2d, *more: tuple[str, nn.Module]) -> nn.Sequential:
    """A convolution, its norm, and what else is named."""
    layers = [("conv", conv), ("bn1", nn.BatchNorm2d(conv.out_channels)), *more]
    return nn.Sequential(OrderedDict(layers))


# Ghost modules: (N, C, H, W) -> (N, C', H, W) ---------------------------------------------------


class Ghost(nn.Module):
    """A 1x1 convolution to half of the channels, and a depthwise view of these beside them.

    Args:
        in_chs, out_chs: channels.
        act: behind both halves.
    """

    def __init__(self, in_chs: int, out_chs: int, *, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        half = out_chs // 2
        self.primary_conv = nn.Sequential(pointwise(in_chs, half), nn.BatchNorm2d(half), act())
        self.cheap_operation = nn.Sequential(depthwise(half, 3), nn.BatchNorm2d(half), act())

    def halves(self, x: torch.Tensor) -> torch.Tensor:
        """Return both halves, one behind the other."""
        x = self.primary_conv(x)
        return torch.cat((x, self.cheap_operation(x)), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.halves(x)


class BranchedGhost(nn.Module):
    """V3's: each of the two convolutions is a sum of branches until it is re-parameterised.

    ``primary_conv`` and ``cheap_operation`` take the branches' places then.
    """

    def __init__(self, in_chs: int, out_chs: int, *, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        half = out_chs // 2
        self.primary_conv: nn.Module = nn.Identity()
        self.cheap_operation: nn.Module = nn.Identity()
        self.primary_rpr_conv = nn.ModuleList(
            conv_norm(pointwise(in_chs, half)) for _ in range(BRANCHES)
        )
        self.primary_activation = act()
        self.cheap_rpr_skip: nn.Module = nn.BatchNorm2d(half)
        self.cheap_rpr_conv = nn.ModuleList(conv_norm(depthwise(half, 3)) for _ in range(BRANCHES))
        self.cheap_rpr_scale: nn.Module = conv_norm(depthwise(half, 1))
        self.cheap_activation = act()

    def cheap_branches(self) -> list[nn.Module]:
        """Return the branches of the depthwise convolution."""
        if not self.cheap_rpr_conv:
            return []
        return [self.cheap_rpr_scale, self.cheap_rpr_skip, *self.cheap_rpr_conv]

    def halves(self, x: torch.Tensor) -> torch.Tensor:
        """Return both halves, one behind the other."""
        x = self.primary_conv(add_branches(self.primary_rpr_conv, x))
        x = self.primary_activation(x)
        y = self.cheap_operation(add_branches(self.cheap_branches(), x))
        return torch.cat((x, self.cheap_activation(y)), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.halves(x)

    def reparameterize(self) -> None:
        """Put one convolution in the place of each sum of branches."""
        self.primary_conv = nn.Sequential(merge_parallel(self.primary_rpr_conv))
        self.cheap_operation = nn.Sequential(merge_parallel(self.cheap_branches()))
        self.primary_rpr_conv, self.cheap_rpr_conv = nn.ModuleList(), nn.ModuleList()
        self.cheap_rpr_skip = self.cheap_rpr_scale = nn.Identity()


class LongRange(Phased):
    """Mixin of a ghost module: gate it by the rows and columns of its input at half the size (the
    decoupled fully connected attention of GhostNetV2).

    The gate is interpolated back, so that under an output stride it all runs in phases.
    """

    channels_last = False
    halves: Callable[[torch.Tensor], torch.Tensor]

    def __init__(self, in_chs: int, out_chs: int, *, act: Callable[[], nn.Module]) -> None:
        super().__init__(in_chs, out_chs, act=act)
        layers = [
            pointwise(in_chs, out_chs),
            depthwise(out_chs, (1, 5)),
            depthwise(out_chs, (5, 1)),
        ]
        pairs = ((conv, nn.BatchNorm2d(out_chs)) for conv in layers)
        self.short_conv = nn.Sequential(*(layer for pair in pairs for layer in pair))

    def run(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.short_conv(F.avg_pool2d(x, 2)))  # (N, C', H/2, W/2)
        y = self.halves(x)
        return y * F.interpolate(gate, y.shape[-2:], mode="nearest")


class LongRangeGhost(LongRange, Ghost):
    """V2's."""


class LongRangeBranchedGhost(LongRange, BranchedGhost):
    """V3's."""


# Blocks -----------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """Ghost module to a wider map, depthwise where it strides, ghost module back.

    Args:
        in_chs, mid_chs, out_chs: channels before, inside and behind.
        kernel: of the depthwise convolutions.
        stride: 1 or 2.
        se_ratio: share of ``mid_chs`` inside squeeze-excite; 0 for none.
        long_range: gate the first ghost module.
    """

    plain: type[nn.Module] = Ghost
    gated: type[nn.Module] = LongRangeGhost

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        *,
        kernel: int,
        stride: int,
        se_ratio: float,
        long_range: bool,
    ) -> None:
        super().__init__()
        relu = partial(nn.ReLU, inplace=True)
        self.conv_dw: nn.Module = nn.Identity()
        self.bn_dw: nn.Module = nn.Identity()
        self.ghost1 = (self.gated if long_range else self.plain)(in_chs, mid_chs, act=relu)
        if stride > 1:
            self.add_depthwise(mid_chs, kernel, stride)
        self.se = squeeze(mid_chs, rd_ratio=se_ratio) if se_ratio else nn.Identity()
        self.ghost2 = self.plain(mid_chs, out_chs, act=nn.Identity)
        self.shortcut = nn.Sequential()
        if stride > 1 or in_chs != out_chs:
            self.shortcut = nn.Sequential(
                depthwise(in_chs, kernel, stride=stride),
                nn.BatchNorm2d(in_chs),
                pointwise(in_chs, out_chs),
                nn.BatchNorm2d(out_chs),
            )

    def add_depthwise(self, channels: int, kernel: int, stride: int) -> None:
        """Add what strides."""
        del self.conv_dw, self.bn_dw  # in the state dict they come behind ghost1
        self.conv_dw = depthwise(channels, kernel, stride=stride)
        self.bn_dw = nn.BatchNorm2d(channels)

    def strided(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H/stride, W/stride)."""
        return self.bn_dw(self.conv_dw(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.strided(self.ghost1(x))
        return self.ghost2(self.se(y)) + self.shortcut(x)


class BranchedBottleneck(Bottleneck):
    """V3's: what strides is a sum of branches, too."""

    plain, gated = BranchedGhost, LongRangeBranchedGhost

    dw_rpr_conv: nn.ModuleList
    dw_rpr_scale: nn.Module

    def add_depthwise(self, channels: int, kernel: int, stride: int) -> None:
        convs = (conv_norm(depthwise(channels, kernel, stride=stride)) for _ in range(BRANCHES))
        self.dw_rpr_conv = nn.ModuleList(convs)
        self.dw_rpr_scale = conv_norm(depthwise(channels, 1, stride=stride))

    def branches(self) -> list[nn.Module]:
        """Return the branches of what strides; none where nothing does, or they are merged."""
        convs = getattr(self, "dw_rpr_conv", ())
        return [self.dw_rpr_scale, *convs] if convs else []

    def strided(self, x: torch.Tensor) -> torch.Tensor:
        return super().strided(add_branches(self.branches(), x))

    def reparameterize(self) -> None:
        """Put one convolution in the place of the branches; the ghost modules do so themselves."""
        if self.branches():
            self.conv_dw = merge_parallel(self.branches())
            del self.dw_rpr_conv, self.dw_rpr_scale


# The network ------------------------------------------------------------------------------------

# Rows of (kernel, width inside, width, squeeze-excite, stride); a stage ends where the next strides
Stages = tuple[tuple[tuple[int, int, int, float, int], ...], ...]
STAGES: Stages = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((3, 72, 24, 0, 1),),
    ((5, 72, 40, 0.25, 2),),
    ((5, 120, 40, 0.25, 1),),
    ((3, 240, 80, 0, 2),),
    (
        (3, 200, 80, 0, 1),
        (3, 184, 80, 0, 1),
        (3, 184, 80, 0, 1),
        (3, 480, 112, 0.25, 1),
        (3, 672, 112, 0.25, 1),
    ),
    ((5, 672, 160, 0.25, 2),),
    ((5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1)),
)
HIDDEN = 1280  # width of the classifier's hidden layer


class GhostNet(Backbone):
    """A strided convolution and ghost bottlenecks; a level is the map of each block that strides.

    Args:
        width: factor on all channels.
        block: ``Bottleneck`` or ``BranchedBottleneck``.
        long_range: gate all blocks but the first two.
        stages: the blocks, before their channels are scaled.
        last_ratio: width of the final features by that inside of the last block.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv_stem", "classifier"

    conv_stem: nn.Conv2d

    def __init__(
        self,
        width: float = 1.0,
        *,
        block: type[Bottleneck] = Bottleneck,
        long_range: bool = False,
        stages: Stages = STAGES,
        last_ratio: int = 1,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.2,
    ) -> None:
        super().__init__(in_chans=in_chans)
        scaled = partial(make_divisible, divisor=4)
        in_chs, reduction, count = scaled(16 * width), 2, 0
        stem = nn.Conv2d(in_chans, in_chs, 3, 2, 1, bias=False)
        self.add_stage("conv_stem", stem, channels=in_chs, reduction=2)
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential()
        mid = 16
        for i, rows in enumerate(stages):
            stage = Blocks()
            for kernel, mid, out, se_ratio, stride in rows:
                out_chs = scaled(out * width)
                layer = block(
                    in_chs,
                    scaled(mid * width),
                    out_chs,
                    kernel=kernel,
                    stride=stride,
                    se_ratio=se_ratio,
                    long_range=long_range and count > 1,
                )
                stage.append(layer)
                in_chs, reduction, count = out_chs, reduction * stride, count + 1
            self.blocks.append(stage)
            if rows[-1][-1] > 1:
                self.add_level(f"blocks.{i}", channels=in_chs, reduction=reduction)
        mid_chs = scaled(mid * width * last_ratio)
        last = conv_norm(pointwise(in_chs, mid_chs), ("act1", nn.ReLU(inplace=True)))
        self.blocks.append(nn.Sequential(last))
        self.add_head(
            mid_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=ConvHead(HIDDEN, act=nn.ReLU),
        )

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.conv_stem(x)  # (N, 16, H/2, W/2)
        yield x
        yield from self.through("blocks", self.act1(self.bn1(x)))  # (N, 24, H/4, W/4), ...

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        """Return the final features (N, 960, H/32, W/32)."""
        return self.rest("blocks", y)

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """V3's authors call the norms of branches ``bn``, and counted operations in buffers."""
        counts = ("total_ops", "total_params")
        return {
            key.replace(".bn.", ".bn1.") if "_rpr_" in key else key: value
            for key, value in state.items()
            if key.rpartition(".")[2] not in counts
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"
        return {"stem": r"^conv_stem|bn1", "blocks": [(blocks, None), (r"conv_head", (99999,))]}


V2: dict[str, Any] = dict(long_range=True)
V3: dict[str, Any] = dict(long_range=True, block=BranchedBottleneck)

VARIANTS: dict[str, dict[str, Any]] = {
    "ghostnet_050": dict(width=0.5),
    "ghostnet_100": dict(width=1.0),
    "ghostnet_130": dict(width=1.3),
    "ghostnetv2_100": dict(width=1.0, **V2),
    "ghostnetv2_130": dict(width=1.3, **V2),
    "ghostnetv2_160": dict(width=1.6, **V2),
    "ghostnetv3_050": dict(width=0.5, **V3),
    "ghostnetv3_100": dict(width=1.0, **V3),
    "ghostnetv3_130": dict(width=1.3, **V3),
    "ghostnetv3_160": dict(width=1.6, **V3),
}

FAMILY = Family(model=GhostNet, variants=VARIANTS, weights=weights_table("ghostnet"))
