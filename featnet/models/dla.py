"""DLA: trees of residual blocks, whose roots aggregate the maps of all blocks below them.

Papers: Deep Layer Aggregation (https://arxiv.org/abs/1707.06484); with Res2Net's blocks
(https://arxiv.org/abs/1904.01169).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import Blocks, ConvClassifier, Head, he_fan_out, initialize
from ..registry import Family, weights_table
from . import res2net, resnet
from .resnet import BasicBlock, Residual, ResNetSettings

Maps = tuple[torch.Tensor, ...]
MakeBlock = Callable[..., nn.Module]  # f(in_chs, out_chs, stride=), whose map has ``out_chs``


class Bottleneck(resnet.Bottleneck):
    """1x1 to half of the channels, 3x3, 1x1."""

    expansion = 2


class ScaleBottleneck(res2net.ScaleBottleneck):
    """1x1 to parts, 3x3 convolutions that feed each other, 1x1."""

    expansion = 2


# Trees: (N, C, H, W) -> (N, C', H/stride, W/stride) -----------------------------------------------


def halved(stride: int) -> nn.Module:
    """A maximum of each ``stride`` x ``stride`` positions; of an odd map the last row is kept."""
    return nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()


class Root(nn.Module):
    """1x1 convolution over maps side by side.

    Args:
        in_chs, out_chs: channels of all maps together, and of the result.
        shortcut: add the first map.
    """

    def __init__(self, in_chs: int, out_chs: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, maps: Maps) -> torch.Tensor:
        x = self.bn(self.conv(torch.cat(maps, 1)))
        if self.shortcut:
            x += maps[0]
        return self.relu(x)


class Pair(Blocks):
    """The smallest tree: two blocks and the root over them, and over the maps that it is given.

    Args:
        block: see ``MakeBlock``.
        in_chs, out_chs: channels.
        stride: of the first block.
        below: channels of the further maps.
        keep_input: the root reads the pooled input, too.
        root_shortcut: see :class:`Root`.
    """

    def __init__(
        self,
        block: MakeBlock,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        below: int = 0,
        keep_input: bool = False,
        root_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.keep_input = keep_input
        self.downsample, self.project = halved(stride), nn.Sequential()
        if in_chs != out_chs:
            conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
            self.project.extend([conv, nn.BatchNorm2d(out_chs)])
        self.tree1 = block(in_chs, out_chs, stride=stride)
        self.tree2 = block(out_chs, out_chs, stride=1)
        aggregated = 2 * out_chs + below + (in_chs if keep_input else 0)
        self.root = Root(aggregated, out_chs, shortcut=root_shortcut)

    def forward(self, x: torch.Tensor, maps: Maps = ()) -> torch.Tensor:
        grow = partial(self._grow, maps=maps)
        return self.run((grow,), x) if self.whole else grow(x)

    def _grow(self, x: torch.Tensor, maps: Maps) -> torch.Tensor:
        pooled = self.downsample(x)
        first = partial(self.tree1, shortcut=self.project(pooled))
        one = self._one(first, x)
        two = self._one(self.tree2, one)
        return self.root((two, one, *((pooled,) if self.keep_input else ()), *maps))

    def _one(self, block: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Any:
        return block(x) if self.whole else self.run((block,), x)


class Tree(nn.Module):
    """Two smaller trees; the root of the second one reads what the first puts out, too.

    Args:
        trees: ``f(in_chs, out_chs, stride=, below=)`` of the smaller ones.
        in_chs, out_chs, stride, below, keep_input: see :class:`Pair`.
    """

    def __init__(
        self,
        trees: Callable[..., nn.Module],
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        below: int = 0,
        keep_input: bool = False,
    ) -> None:
        super().__init__()
        self.downsample = halved(stride) if keep_input else None
        below += in_chs if keep_input else 0
        self.tree1 = trees(in_chs, out_chs, stride=stride)
        self.tree2 = trees(out_chs, out_chs, stride=1, below=below + out_chs)

    def forward(self, x: torch.Tensor, maps: Maps = ()) -> torch.Tensor:
        if self.downsample is not None:
            maps = (*maps, self.downsample(x))
        one = self.tree1(x)
        return self.tree2(one, (*maps, one))


def grow(depth: int, block: MakeBlock, *, root_shortcut: bool) -> Callable[..., nn.Module]:
    """``f(in_chs, out_chs, stride=, ...)`` of a tree with ``2**depth`` blocks."""
    if depth == 1:
        return partial(Pair, block, root_shortcut=root_shortcut)
    return partial(Tree, grow(depth - 1, block, root_shortcut=root_shortcut))


# The network --------------------------------------------------------------------------------------


class DLA(Backbone):
    """Three convolutions, of which the last strides, then four trees; a level is each of these but
    the first.

    Args:
        block: of the trees: ``BasicBlock``, ``Bottleneck`` or ``ScaleBottleneck``.
        depths: convolutions in each of the first two levels, then of each tree: it has
            ``2**depth`` blocks.
        widths: channels of each level.
        cardinality, base_width: groups of the 3x3 convolutions, and channels of each per 64.
        root_shortcut: see :class:`Root`.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "base_layer.0", "fc"

    def __init__(
        self,
        block: type[Residual],
        depths: Sequence[int],
        widths: Sequence[int],
        *,
        cardinality: int = 1,
        base_width: int = 64,
        root_shortcut: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(6, depths=depths, widths=widths)
        settings = ResNetSettings(cardinality=cardinality, base_width=base_width)
        chs = widths[0]
        self.base_layer = nn.Sequential(
            nn.Conv2d(in_chans, chs, 7, padding=3, bias=False),
            nn.BatchNorm2d(chs),
            nn.ReLU(inplace=True),
        )

        def make(in_chs: int, out_chs: int, *, stride: int) -> nn.Module:
            return block(in_chs, out_chs // block.expansion, stride=stride, settings=settings)

        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if i < 2:
                level: nn.Module = self._convolutions(depth, chs, width, stride=i + 1)
            else:
                tree = grow(depth, make, root_shortcut=root_shortcut)
                level = tree(chs, width, stride=2, keep_input=i > 2)
            self.add_stage(f"level{i}", level, channels=width, reduction=2**i)
            chs = width
        self.add_head(
            chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(classifier=ConvClassifier),
        )
        initialize(self, conv=[he_fan_out])

    @staticmethod
    def _convolutions(depth: int, in_chs: int, out_chs: int, *, stride: int) -> nn.Module:
        """3x3 convolutions, the first of which strides."""
        layers: list[nn.Module] = []
        for _ in range(depth):
            conv = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]
            in_chs, stride = out_chs, 1
        return nn.Sequential(*layers)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.base_layer(x)  # (N, 16, H, W)
        for level in self.levels:
            x = getattr(self, level.module)(x)  # (N, 16, H, W), (N, 32, H/2, W/2), ...
            yield x

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The authors' larger trees have projections that nothing reads."""
        own = self.state_dict().keys()
        return {k: value for k, value in state.items() if ".project." not in k or k in own}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [
            (r"^level(\d+)\.tree(\d+)", None),
            (r"^level(\d+)\.root", (2,)),
            (r"^level(\d+)", (1,)),
        ]
        return {"stem": r"^base_layer", "blocks": r"^level(\d+)" if coarse else fine}


SMALL: dict[str, Any] = dict(widths=(16, 32, 64, 64, 128, 256))
LARGE: dict[str, Any] = dict(widths=(16, 32, 128, 256, 512, 1024))
X: dict[str, Any] = dict(cardinality=32, base_width=4)
D46, D60, D102 = (1, 1, 1, 2, 2, 1), (1, 1, 1, 2, 3, 1), (1, 1, 1, 3, 4, 1)

VARIANTS: dict[str, dict[str, Any]] = {
    "dla34": dict(block=BasicBlock, depths=D46, widths=(16, 32, 64, 128, 256, 512)),
    "dla46_c": dict(block=Bottleneck, depths=D46, **SMALL),
    "dla46x_c": dict(block=Bottleneck, depths=D46, **SMALL, **X),
    "dla60x_c": dict(block=Bottleneck, depths=D60, **SMALL, **X),
    "dla60": dict(block=Bottleneck, depths=D60, **LARGE),
    "dla60x": dict(block=Bottleneck, depths=D60, **LARGE, **X),
    "dla60_res2net": dict(block=ScaleBottleneck, depths=D60, base_width=28, **LARGE),
    "dla60_res2next": dict(block=ScaleBottleneck, depths=D60, cardinality=8, base_width=4, **LARGE),
    "dla102": dict(block=Bottleneck, depths=D102, root_shortcut=True, **LARGE),
    "dla102x": dict(block=Bottleneck, depths=D102, root_shortcut=True, **LARGE, **X),
    "dla102x2": dict(
        block=Bottleneck, depths=D102, root_shortcut=True, cardinality=64, base_width=4, **LARGE
    ),
    "dla169": dict(block=Bottleneck, depths=(1, 1, 2, 3, 5, 1), root_shortcut=True, **LARGE),
}

FAMILY = Family(model=DLA, variants=VARIANTS, weights=weights_table("dla"))
