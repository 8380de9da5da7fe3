"""Xception: depthwise separable convolutions throughout, in residual blocks of two or three.

Papers: Xception (https://arxiv.org/abs/1610.02357); the aligned form, which strides by convolutions
and has a norm after each of them (https://arxiv.org/abs/1802.02611). The forms with norms and
activations first (41p, 65p) are timm's.

The levels lie inside the blocks that stride: the last map before each stride.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_rate
from ..layers import (
    Blocks,
    ConvNormAct,
    DropPath,
    Layer,
    build_act,
    drop_path_rates,
    get_act,
    get_norm,
    he_fan_out,
    initialize,
    norm_and_act,
)
from ..registry import Family, weights_table


class Block(nn.Module):
    """A branch of separable convolutions, and a shortcut; perhaps with a level inside the branch.

    Attributes:
        branch: the name of the branch.
        before: number of its modules that come before the level; all of them without one.
        has_level: there is one.
    """

    branch: str
    before: int
    has_level: bool

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """The map that both branch and shortcut read."""
        return x

    def join(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The branch's end and what the shortcut reads -> the block's output."""
        raise NotImplementedError

    @property
    def modules_in_order(self) -> tuple[Blocks, list[nn.Module]]:
        branch = self.get_submodule(self.branch)
        assert isinstance(branch, Blocks)
        return branch, list(branch)

    def begin(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The map that the shortcut reads, and the level."""
        branch, modules = self.modules_in_order
        x = self.enter(x)
        return x, branch.run(modules[: self.before], x)

    def forward(
        self, x: torch.Tensor, begun: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """(N, C, H, W) -> the output; ``begun`` is what ``begin(x)`` gave, if that has run."""
        x, y = begun or self.begin(x)
        branch, modules = self.modules_in_order
        return self.join(branch.run(modules[self.before :], y), x)


def begin(block: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A block up to the level inside it; None of a block that has none."""
    assert isinstance(block, Block)
    return block.begin(x) if block.has_level else None


# Aligned ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """The form of a block.

    Attributes:
        widths: of its three separable convolutions.
        stride: of the last one.
        shortcut: False for none.
    """

    widths: tuple[int, int, int]
    stride: int = 1
    shortcut: bool = True


class SeparableConv(nn.Module):
    """Depthwise and pointwise convolution, each with a norm and perhaps an activation after it."""

    def __init__(
        self, in_chs: int, out_chs: int, *, stride: int, norm: Layer, act: Layer | None
    ) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
        self.bn_dw, self.act_dw = norm_and_act(norm, in_chs, act)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn_pw, self.act_pw = norm_and_act(norm, out_chs, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act_dw(self.bn_dw(self.conv_dw(x)))
        x = self.conv_pw(x)  # what it read need not be held during the norm
        return self.act_pw(self.bn_pw(x))


class PreSeparableConv(nn.Module):
    """A norm and an activation, then depthwise and pointwise convolution."""

    def __init__(
        self, in_chs: int, out_chs: int, *, stride: int, before: tuple[nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.norm, self.act = before
        self.conv_dw = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_pw(self.conv_dw(self.act(self.norm(x))))


class AlignedBlock(Block):
    """Three times an activation and a separable convolution.

    A block without a shortcut has its activations within the convolutions, after each norm.
    """

    branch, preact = "stack", False

    def __init__(self, in_chs: int, row: Row, *, norm: Layer, act: Layer, drop_path: float) -> None:
        super().__init__()
        self.shortcut: nn.Module | None = nn.Identity() if row.shortcut else None
        if row.shortcut and (row.stride > 1 or row.widths[-1] != in_chs):
            self.shortcut = self.project(in_chs, row.widths[-1], row.stride, norm)
        self.norm, self.act = self.first_norm(in_chs, norm, act)
        self.stack = Blocks()
        for i, width in enumerate(row.widths, 1):
            self.add_conv(i, in_chs, width, row, norm, act)
            in_chs = width
        self.has_level = row.stride > 1
        self.before = len(self.stack) - self.has_level
        self.drop_path = DropPath(drop_path)

    def project(self, in_chs: int, out_chs: int, stride: int, norm: Layer) -> nn.Module:
        """The shortcut of a block that changes sizes."""
        return ConvNormAct(in_chs, out_chs, stride=stride, norm=norm, act=None)

    def first_norm(self, in_chs: int, norm: Layer, act: Layer) -> tuple[nn.Module, nn.Module]:
        """The norm and the activation before both branch and shortcut."""
        del in_chs, norm, act
        return nn.Identity(), nn.Identity()

    def add_conv(
        self, i: int, in_chs: int, out_chs: int, row: Row, norm: Layer, act: Layer
    ) -> None:
        """Number i of the separable convolutions."""
        if row.shortcut:  # the first must leave the block's input as it is
            self.stack.add_module(f"act{i}", build_act(act) if i > 1 else act())
        conv = SeparableConv(
            in_chs,
            out_chs,
            stride=row.stride if i == 3 else 1,
            norm=norm,
            act=None if row.shortcut else act,
        )
        self.stack.add_module(f"conv{i}", conv)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(x))

    def join(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y if self.shortcut is None else self.drop_path(y) + self.shortcut(x)


class PreAlignedBlock(AlignedBlock):
    """The same with norms and activations first; the shortcut reads what the first one gives."""

    preact = True

    def project(self, in_chs: int, out_chs: int, stride: int, norm: Layer) -> nn.Module:
        del norm
        return nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)

    def first_norm(self, in_chs: int, norm: Layer, act: Layer) -> tuple[nn.Module, nn.Module]:
        return norm_and_act(norm, in_chs, act)

    def add_conv(
        self, i: int, in_chs: int, out_chs: int, row: Row, norm: Layer, act: Layer
    ) -> None:
        before = self.first_norm if i > 1 else super().first_norm
        conv = PreSeparableConv(
            in_chs, out_chs, stride=row.stride if i == 3 else 1, before=before(in_chs, norm, act)
        )
        self.stack.add_module(f"conv{i}", conv)


class XceptionAligned(Backbone):
    """Two 3x3 convolutions to half the size, then blocks, four of which halve it.

    Args:
        rows: the blocks, see :class:`Row`.
        block: their class; with :class:`PreAlignedBlock` an activation ends the network.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0.conv", "head.fc"

    def __init__(
        self,
        rows: Sequence[Row],
        block: type[AlignedBlock] = AlignedBlock,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_rate("drop_path_rate", drop_path_rate)
        act, norm = get_act(act_layer), get_norm(norm_layer)
        conv = partial(ConvNormAct, kernel_size=3, norm=norm, act=act)
        second = nn.Conv2d(32, 64, 3, padding=1, bias=False) if block.preact else conv(32, 64)
        self.stem = nn.Sequential(conv(in_chans, 32, stride=2), second)
        self.blocks = nn.Sequential()
        drops = drop_path_rates(drop_path_rate, len(rows))
        width, reduction = 64, 2
        for i, (row, drop) in enumerate(zip(rows, drops, strict=True)):
            unit = block(width, row, norm=norm, act=act, drop_path=drop)
            self.blocks.append(unit)
            if row.stride > 1:
                inside = [name for name, _ in unit.stack.named_children()][-2]
                self.add_level(
                    f"blocks.{i}.stack.{inside}", channels=row.widths[-2], reduction=reduction
                )
            width, reduction = row.widths[-1], reduction * row.stride
        self.add_level(f"blocks.{len(rows) - 1}", channels=width, reduction=reduction)
        self.act: nn.Module = act() if block.preact else nn.Identity()
        self.add_head(width, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, 64, H/2, W/2)
        for block in self.blocks:
            begun = begin(block, x)
            if begun is not None:
                yield begun[1]  # (N, 128, H/2, W/2), then halved and wider
            x = block(x, begun)
        yield x  # (N, 2048, H/32, W/32)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.act(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        del coarse
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}


# The original -------------------------------------------------------------------------------


class PlainSeparableConv(nn.Module):
    """Depthwise and pointwise convolution with nothing between them."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, in_chs, 3, padding=1, groups=in_chs, bias=False)
        self.pointwise = nn.Conv2d(in_chs, out_chs, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.conv1(x))


class PlainBlock(Block):
    """Several times activation, separable convolution, norm; then max pooling where it strides.

    Its first activation is a level where it strides.

    Args:
        widths: of the convolutions.
        first_act: it begins with an activation.
    """

    branch = "rep"

    def __init__(
        self, in_chs: int, widths: Sequence[int], *, stride: int = 1, first_act: bool = True
    ) -> None:
        super().__init__()
        projects = stride > 1 or widths[-1] != in_chs
        self.skip: nn.Module = nn.Identity()
        self.skipbn: nn.Module = nn.Identity()
        if projects:
            self.skip = nn.Conv2d(in_chs, widths[-1], 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        self.rep = Blocks()
        for i, width in enumerate(widths):
            if i or first_act:  # the first must leave the block's input as it is
                self.rep.append(nn.ReLU(inplace=i > 0))
            self.rep.append(PlainSeparableConv(in_chs, width))
            self.rep.append(nn.BatchNorm2d(width))
            in_chs = width
        if stride > 1:
            self.rep.append(nn.MaxPool2d(3, stride, 1))
        self.has_level = stride > 1 and first_act
        self.before = 1 if self.has_level else len(self.rep)

    def join(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return y + self.skipbn(self.skip(x))


class Xception(Backbone):
    """Two unpadded 3x3 convolutions, twelve blocks, and two separable convolutions.

    The arguments are every Backbone's.
    """

    first_conv, last_fc = "conv1", "fc"
    act2: nn.ReLU
    act4: nn.ReLU

    def __init__(
        self,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        self.conv1 = nn.Conv2d(in_chans, 32, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.add_stage("act2", nn.ReLU(inplace=True), channels=64, reduction=2)
        self.block1 = PlainBlock(64, (128, 128), stride=2, first_act=False)
        self.block2 = PlainBlock(128, (256, 256), stride=2)
        self.block3 = PlainBlock(256, (728, 728), stride=2)
        for i in range(4, 12):
            self.add_module(f"block{i}", PlainBlock(728, (728, 728, 728)))
        self.block12 = PlainBlock(728, (728, 1024), stride=2)
        for i, channels, reduction in ((2, 128, 4), (3, 256, 8), (12, 728, 16)):
            self.add_level(f"block{i}.rep.0", channels=channels, reduction=reduction)
        self.conv3 = PlainSeparableConv(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = PlainSeparableConv(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)
        self.add_stage("act4", nn.ReLU(inplace=True), channels=2048, reduction=32)
        self.add_head(2048, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, conv=[he_fan_out])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))  # (N, 64, H/2, W/2)
        yield x
        for i in range(1, 13):
            block = getattr(self, f"block{i}")
            begun = begin(block, x)
            if begun is not None:
                yield begun[1]  # (N, 128, H/4, W/4), (N, 256, H/8, W/8), (N, 728, H/16, W/16)
            x = block(x, begun)
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.bn4(self.conv4(x)))  # (N, 2048, H/32, W/32)
        yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        del coarse
        last = (99,)
        blocks = [(r"^block(\d+)", None), (r"^conv[34]|bn[34]", last)]
        return {"stem": r"^conv[12]|bn[12]", "blocks": blocks}


def same(width: int, stride: int = 1) -> Row:
    """Three convolutions of one width."""
    return Row((width, width, width), stride)


ENTRY = (same(128, 2), same(256, 2), same(728, 2))
ENTRY_71 = (same(128, 2), same(256), same(256, 2), same(728), same(728, 2))
EXIT = (Row((728, 1024, 1024), 2), Row((1536, 1536, 2048), shortcut=False))
MIDDLE = (same(728),)
TF = partial(nn.BatchNorm2d, eps=1e-3)

VARIANTS: dict[str, Any] = {
    "legacy_xception": (Xception, {}),
    "xception41": dict(rows=(*ENTRY, *MIDDLE * 8, *EXIT), norm_layer=TF),
    "xception65": dict(rows=(*ENTRY, *MIDDLE * 16, *EXIT), norm_layer=TF),
    "xception71": dict(rows=(*ENTRY_71, *MIDDLE * 16, *EXIT), norm_layer=TF),
    "xception41p": dict(rows=(*ENTRY, *MIDDLE * 8, *EXIT), block=PreAlignedBlock),
    "xception65p": dict(rows=(*ENTRY, *MIDDLE * 16, *EXIT), block=PreAlignedBlock, norm_layer=TF),
}

FAMILY = Family(model=XceptionAligned, variants=VARIANTS, weights=weights_table("xception"))
