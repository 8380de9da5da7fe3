"""HRNet: branches at four resolutions side by side, which exchange what they see.

Papers: HRNet (https://arxiv.org/abs/1908.07919), SSLD (https://arxiv.org/abs/2103.05959).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..errors import check_choice
from ..layers import Blocks, chain, crop, he_fan_out, initialize
from ..registry import Family, weights_table
from .resnet import BasicBlock, Bottleneck, Residual, conv_shortcut

LOCATIONS = ("incre", "")
HEAD = (32, 64, 128, 256)  # planes of the Bottlenecks that widen the branches

Maps = list[torch.Tensor]  # one a branch, finest first


class Level(NamedTuple):
    """The maps from which a level is made when somebody asks for it.

    Attributes:
        branches: before their last exchange.
        branch: the number of the one that receives.
        done: the maps that this forward has made already, by branch.
    """

    branches: Maps
    branch: int
    done: dict[int, torch.Tensor]


def conv_norm(
    in_chs: int, out_chs: int, kernel: int, *, stride: int = 1, bias: bool = False, act: bool = True
) -> nn.Sequential:
    """Convolution, norm, and if wanted activation."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=bias)
    after = [nn.ReLU(inplace=True)] if act else []
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), *after)


def down(in_chs: int, out_chs: int, times: int, *, act: bool) -> nn.Module:
    """Halve the size so many times; ``act`` says whether the last time ends in an activation."""
    last = times - 1
    return nn.Sequential(
        *(
            conv_norm(in_chs, out_chs if k == last else in_chs, 3, stride=2, act=act or k < last)
            for k in range(times)
        )
    )


def up(in_chs: int, out_chs: int, times: int) -> nn.Module:
    """Double the size so many times."""
    larger = nn.Upsample(scale_factor=2**times)
    return conv_norm(in_chs, out_chs, 1, act=False).append(larger)


def blocks(kind: type[Residual], in_chs: int, planes: int, depth: int) -> nn.Module:
    """Residual blocks at one size, the first with a projection where the width changes."""
    make, out_chs = partial(kind), planes * kind.expansion
    project = in_chs != out_chs
    shortcut = conv_shortcut(1, in_chs, out_chs, 1, nn.BatchNorm2d) if project else None
    later = (make(out_chs, planes) for _ in range(depth - 1))
    return Blocks(make(in_chs, planes, shortcut=shortcut), *later)


class Transition(nn.ModuleList):
    """Maps of n branches -> of n + 1; the new one comes from the coarsest."""

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        for i, out_chs in enumerate(after):
            if i >= len(before):
                self.append(down(before[-1], out_chs, i + 1 - len(before), act=True))
            elif before[i] != out_chs:
                self.append(conv_norm(before[i], out_chs, 3))
            else:
                self.append(nn.Identity())

    def forward(self, maps: Maps) -> Maps:
        return [f(maps[min(i, len(maps) - 1)]) for i, f in enumerate(self)]


class Fuse(nn.ModuleList):
    """Maps of all branches -> the one of branch ``index``: their sum at its size and width.

    Of a size that halving rounds up, what upsampling adds at the end is left away.
    """

    def __init__(self, index: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.index = index
        for j, in_chs in enumerate(widths):
            if j > index:
                self.append(up(in_chs, widths[index], j - index))
            elif j < index:
                self.append(down(in_chs, widths[index], index - j, act=False))
            else:
                self.append(nn.Identity())

    def forward(self, maps: Maps) -> torch.Tensor:
        height, width = maps[self.index].shape[-2:]
        first, *others = (
            crop(f(x), (height, width), axis=2) for f, x in zip(self, maps, strict=True)
        )
        for other in others:
            first = first + other
        return F.relu(first)


class Exchange(nn.Module):
    """Each branch runs its blocks; then each gets the sum of all."""

    def __init__(self, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(blocks(BasicBlock, c, c, depth) for c in widths)
        self.fuse_layers = nn.ModuleList(Fuse(i, widths) for i in range(len(widths)))

    def run(self, maps: Maps) -> Maps:
        """The layers of the branches before they exchange their maps."""
        return [f(x) for f, x in zip(self.branches, maps, strict=True)]

    def forward(self, maps: Maps) -> Maps:
        maps = self.run(maps)
        return [fuse(maps) for fuse in self.fuse_layers]


class HRNet(Backbone):
    """A stem at a quarter of the size, then stages of two, three and four branches.

    Args:
        width: channels of the finest branch; each coarser one has twice as many.
        modules: exchanges in the stages of two, three and four branches.
        depth: blocks of a branch in each exchange.
        stem_planes, stem_depth: of the Bottlenecks before the branches.
        head_conv_bias: biases in the convolutions of the head, though norms follow.
        feature_location: ``"incre"``: the levels are the branches as the head widens them;
            ``""``: as they are.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "conv1", "classifier"
    breaks_law = ("resampling",)  # a branch receives the upsampled maps of coarser ones

    act1: nn.Module
    stage2: nn.Sequential
    stage3: nn.Sequential
    stage4: nn.Sequential
    transition1: nn.Module
    transition2: nn.Module
    transition3: nn.Module

    def __init__(
        self,
        width: int,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        modules: Sequence[int] = (1, 4, 3),
        depth: int = 4,
        stem_planes: int = 64,
        stem_depth: int = 4,
        head_conv_bias: bool = True,
        feature_location: str = "incre",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_choice("feature_location", feature_location, LOCATIONS)
        self.feature_location = feature_location
        self.conv1 = nn.Conv2d(in_chans, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.add_stage("act1", nn.ReLU(inplace=True), channels=64, reduction=2)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = nn.ReLU(inplace=True)
        self.layer1 = blocks(Bottleneck, 64, stem_planes, stem_depth)
        widths = [stem_planes * Bottleneck.expansion]
        for i, count in enumerate(modules, 1):
            before, widths = widths, [width * 2**k for k in range(i + 1)]
            self.add_module(f"transition{i}", Transition(before, widths))
            stage = nn.Sequential(*(Exchange(widths, depth) for _ in range(count)))
            self.add_module(f"stage{i + 1}", stage)
        self._add_levels(widths)
        self._add_aggregation(head_conv_bias)
        self.add_head(2048, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_fan_out])

    def _add_levels(self, widths: Sequence[int]) -> None:
        last = f"stage4.{len(self.stage4) - 1}.fuse_layers"
        self.incre_modules = nn.ModuleList()
        for i, (width, planes) in enumerate(zip(widths, HEAD, strict=True)):
            wider, reduction = blocks(Bottleneck, width, planes, 1), 4 * 2**i
            if self.feature_location == "incre":
                channels = planes * Bottleneck.expansion
                self.add_stage(f"incre_modules.{i}", wider, channels=channels, reduction=reduction)
            else:
                self.incre_modules.append(wider)
                self.add_level(f"{last}.{i}", channels=width, reduction=reduction)

    def _add_aggregation(self, bias: bool) -> None:
        """Bring the widened branches together, for the classifier."""
        wide = [planes * Bottleneck.expansion for planes in HEAD]
        self.downsamp_modules = nn.ModuleList(
            conv_norm(a, b, 3, stride=2, bias=bias) for a, b in itertools.pairwise(wide)
        )
        self.final_layer = conv_norm(wide[-1], 2048, 1, bias=bias)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor | Level]:
        x = self.act1(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        yield x
        x = self.act2(self.bn2(self.conv2(x)))
        maps = self.stage2(self.transition1([self.layer1(x)]))  # H/4, H/8
        maps = self.stage3(self.transition2(maps))  # H/4, H/8, H/16
        maps = self.transition3(maps)  # H/4, H/8, H/16, H/32
        *exchanges, last = self._exchanges()
        maps = last.run(chain(exchanges, maps))  # all that the levels share
        done: dict[int, torch.Tensor] = {}
        for i in range(len(maps)):
            yield Level(maps, i, done)

    def _exchanges(self) -> list[Any]:
        return list(self.stage4)

    def as_map(self, y: Any) -> torch.Tensor:
        if isinstance(y, torch.Tensor):
            return y
        if y.branch not in y.done:
            x = self._exchanges()[-1].fuse_layers[y.branch](y.branches)
            y.done[y.branch] = self.incre_modules[y.branch](x) if self.feature_location else x
        return y.done[y.branch]

    def finish(self, y: Level) -> torch.Tensor:
        """All branches -> (N, 2048, H/32, W/32)."""
        maps = [self.as_map(y._replace(branch=i)) for i in range(len(y.branches))]
        if not self.feature_location:
            maps = [wider(x) for wider, x in zip(self.incre_modules, maps, strict=True)]
        x, *coarser = maps
        for smaller, other in zip(self.downsamp_modules, coarser, strict=True):
            x = other + smaller(x)
        return self.final_layer(x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: Any = r"^(?:layer|stage|transition)(\d+)"
        if not coarse:
            blocks = [
                (r"^layer(\d+)\.(\d+)", None),
                (r"^stage(\d+)\.(\d+)", None),
                (r"^transition(\d+)", (99999,)),
            ]
        return {"stem": r"^conv[12]|bn[12]", "blocks": blocks}


SMALL: dict[str, Any] = dict(modules=(1, 1, 1), depth=2, stem_planes=32, stem_depth=1)
SMALL_V2: dict[str, Any] = dict(modules=(1, 3, 2), depth=2, stem_depth=2)

VARIANTS: dict[str, dict[str, Any]] = {
    "hrnet_w18_small": dict(width=16, **SMALL),
    "hrnet_w18_small_v2": dict(width=18, **SMALL_V2),
    "hrnet_w18": dict(width=18),
    "hrnet_w30": dict(width=30),
    "hrnet_w32": dict(width=32),
    "hrnet_w40": dict(width=40),
    "hrnet_w44": dict(width=44),
    "hrnet_w48": dict(width=48),
    "hrnet_w64": dict(width=64),
    "hrnet_w18_ssld": dict(width=18, head_conv_bias=False),
    "hrnet_w48_ssld": dict(width=48, head_conv_bias=False),
}

FAMILY = Family(model=HRNet, variants=VARIANTS, weights=weights_table("hrnet"))
