"""DPN: blocks whose output is added on some channels and appended on the others.

Paper: Dual Path Networks (https://arxiv.org/abs/1707.01629).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import Blocks, ConvClassifier, ConvNormAct, Head, Layer, build_act, get_act, get_norm
from ..registry import Family, weights_table

EPS = 1e-3  # of every norm


class NormAct(nn.Sequential):
    """A norm and an activation."""

    def __init__(
        self, channels: int, *, norm: Layer = nn.BatchNorm2d, act: Layer = nn.ReLU
    ) -> None:
        super().__init__(OrderedDict(bn=norm(channels, eps=EPS), act=build_act(act)))


class NormActConv(NormAct):
    """A batch norm, a ReLU and a convolution that pads to keep the size, up to its stride."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_chs)
        self.conv = nn.Conv2d(
            in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False
        )


class DualPathBlock(nn.Module):
    """1x1, grouped 3x3, 1x1: the first channels of the result are added, the others appended.

    Args:
        in_chs: channels of the input, both paths side by side.
        mid_chs: inside of the block.
        residual: channels that are added.
        dense: channels that are appended.
        groups: of the 3x3 convolution.
        stride: of the 3x3 convolution; None in a block whose input is its own shortcut.
        separate: a convolution for each path at the end.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        residual: int,
        dense: int,
        *,
        groups: int,
        stride: int | None = None,
        separate: bool = False,
    ) -> None:
        super().__init__()
        self.residual, step = residual, stride or 1
        self.shortcut = "" if stride is None else f"c1x1_w_s{stride}"
        if stride is not None:
            projection = NormActConv(in_chs, residual + 2 * dense, stride=stride)
            self.add_module(self.shortcut, projection)
        self.c1x1_a = NormActConv(in_chs, mid_chs)
        self.c3x3_b = NormActConv(mid_chs, mid_chs, 3, stride=step, groups=groups)
        self.separate = separate
        if separate:
            self.c1x1_c: nn.Module = NormAct(mid_chs)
            self.c1x1_c1 = nn.Conv2d(mid_chs, residual, 1, bias=False)
            self.c1x1_c2 = nn.Conv2d(mid_chs, dense, 1, bias=False)
        else:
            self.c1x1_c = NormActConv(mid_chs, residual + dense)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.get_submodule(self.shortcut)(x) if self.shortcut else x
        kept, past = shortcut[:, : self.residual], shortcut[:, self.residual :]
        x = self.c1x1_c(self.c3x3_b(self.c1x1_a(x)))
        if self.separate:
            added, new = self.c1x1_c1(x), self.c1x1_c2(x)
        else:
            added, new = x[:, : self.residual], x[:, self.residual :]
        return torch.cat((kept + added, past, new), 1)  # (N, C + dense, H, W)


class DPN(Backbone):
    """A strided convolution, then four stages of dual path blocks; a stage's last block is a level.

    Args:
        depths: blocks in each stage.
        growths: channels that each block of a stage appends.
        width: of the convolutions inside of the first stage's blocks.
        groups: of the 3x3 convolutions.
        stem_chs: channels of the first convolution.
        small: a first kernel of 3 instead of 7, and a quarter of the channels that are added.
        separate: a convolution for each path at a block's end.
        act_layer: activation behind the first convolution and the last level; blocks have ReLU.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "features.conv1_1.conv", "classifier"

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 20, 3),
        growths: Sequence[int] = (16, 32, 24, 128),
        *,
        width: int = 96,
        groups: int = 32,
        stem_chs: int = 64,
        small: bool = False,
        separate: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer = "batchnorm",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(4, depths=depths, growths=growths)
        norm, act = get_norm(norm_layer), get_act(act_layer)
        self.features = Blocks()
        stem = ConvNormAct(
            in_chans,
            stem_chs,
            kernel_size=3 if small else 7,
            stride=2,
            norm=partial(norm, eps=EPS),
            act=act,
        )
        self.add_stage("features.conv1_1", stem, channels=stem_chs, reduction=2)
        self.features.add_module("conv1_pool", nn.MaxPool2d(3, 2, 1))
        chs = stem_chs
        for i, (depth, dense) in enumerate(zip(depths, growths, strict=True)):
            residual = 2**i * (64 if small else 256)
            for j in range(depth):
                block = DualPathBlock(
                    chs,
                    width * 2**i,
                    residual,
                    dense,
                    groups=groups,
                    stride=None if j else min(i + 1, 2),
                    separate=separate,
                )
                self.features.add_module(f"conv{i + 2}_{j + 1}", block)
                chs = chs + dense if j else residual + 3 * dense
            name = f"features.conv{i + 2}_{depth}"
            self.add_level(name, channels=chs, reduction=4 * 2**i)
        last = NormAct(chs, norm=norm, act=act)
        self.features.add_module("conv5_bn_ac", last)
        self.add_head(
            chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(classifier=ConvClassifier),
        )

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        yield from self.through("features", x)  # (N, C, H/2, W/2), then (N, C, H/4, W/4), ...

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.rest("features", y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^features\.conv(\d+)" if coarse else r"^features\.conv(\d+)_(\d+)"
        last = (r"^features\.conv5_bn_ac", (99999,))
        return {"stem": r"^features\.conv1", "blocks": [(blocks, None), last]}


SMALL: dict[str, Any] = dict(small=True, stem_chs=10, width=128, growths=(16, 32, 32, 64))

VARIANTS: dict[str, dict[str, Any]] = {
    "dpn48b": dict(depths=(3, 4, 6, 3), separate=True, act_layer="silu", **SMALL),
    "dpn68": dict(depths=(3, 4, 12, 3), **SMALL),
    "dpn68b": dict(depths=(3, 4, 12, 3), separate=True, **SMALL),
    "dpn92": dict(),
    "dpn98": dict(
        depths=(3, 6, 20, 3), growths=(16, 32, 32, 128), stem_chs=96, width=160, groups=40
    ),
    "dpn131": dict(
        depths=(4, 8, 28, 3), growths=(16, 32, 32, 128), stem_chs=128, width=160, groups=40
    ),
    "dpn107": dict(
        depths=(4, 8, 20, 3), growths=(20, 64, 64, 128), stem_chs=128, width=200, groups=50
    ),
}

FAMILY = Family(model=DPN, variants=VARIANTS, weights=weights_table("dpn"))
