"""ResNeSt: a bottleneck with attention over splits of its 3x3 convolution.

Paper: https://arxiv.org/abs/2004.08955.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..layers import make_divisible
from ..registry import Family, weights_table
from .resnet import Residual, ResNet, ResNetSettings, Stem


class SplitAttention(nn.Module):
    """A 3x3 convolution to ``radix`` splits of each channel, mixed by attention over the splits.

    With one split each channel is gated by itself.
    """

    def __init__(self, channels: int, *, stride: int, radix: int, settings: ResNetSettings) -> None:
        super().__init__()
        if radix < 1:
            raise ArgumentError(f"radix={radix!r}: an int from 1 is expected.")
        self.radix, self.groups = radix, settings.cardinality
        split = channels * radix
        squeezed = make_divisible(split * 0.25, minimum=32)
        self.conv = nn.Conv2d(channels, split, 3, stride, 1, groups=self.groups * radix, bias=False)
        self.bn0 = settings.norm(split)
        self.drop = settings.drop_block()
        self.act0 = settings.act(inplace=True)
        self.fc1 = nn.Conv2d(channels, squeezed, 1, groups=self.groups)
        self.bn1 = settings.norm(squeezed)
        self.act1 = settings.act(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, split, 1, groups=self.groups)

    def attend(self, gate: torch.Tensor) -> torch.Tensor:
        """(N, groups * radix * C', 1, 1) -> shares (N, radix, groups * C', 1, 1)."""
        if self.radix == 1:
            return gate.sigmoid()[:, None]
        width = gate.shape[1] // (self.groups * self.radix)  # no -1: a batch may be empty
        gate = gate.view(gate.shape[0], self.groups, self.radix, width).transpose(1, 2).softmax(1)
        return gate.flatten(2)[..., None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act0(self.drop(self.bn0(self.conv(x))))
        splits = torch.unflatten(x, 1, (self.radix, -1))  # (N, radix, C, H, W)
        gate = self.sum(splits).mean((2, 3), keepdim=True)
        gate = self.fc2(self.act1(self.bn1(self.fc1(gate))))
        return self.sum(splits * self.attend(gate))

    def sum(self, splits: torch.Tensor) -> torch.Tensor:
        """(N, radix, C, H, W) -> (N, C, H, W), whose channels lie as those of the splits do."""
        return reduce(torch.add, (splits[:, i] for i in range(self.radix)))


class SplitBottleneck(Residual):
    """1x1, 3x3 with split attention, 1x1; average pooling strides.

    Args:
        radix: splits of each channel.
        avd_first: pool before the 3x3 convolution, not after it.
    """

    expansion, last_norm, last_act = 4, "bn3", "act3"

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        settings: ResNetSettings = ResNetSettings(),
        drop_path: float = 0.0,
        radix: int = 2,
        avd_first: bool = False,
    ) -> None:
        super().__init__()
        settings.refuse(self, "reduce_first", "attention", "smooth")
        width = planes * settings.base_width // 64 * settings.cardinality
        out_chs = planes * self.expansion
        pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else None
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = settings.norm(width)
        self.act1 = settings.act(inplace=True)
        self.avd_first = pool if avd_first else None
        self.conv2 = SplitAttention(width, stride=1, radix=radix, settings=settings)
        self.avd_last = None if avd_first else pool
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = settings.norm(out_chs)
        self.act3 = settings.act(inplace=True)
        self.add_end(out_chs, shortcut, settings, drop_path)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        if self.avd_first is not None:
            x = self.avd_first(x)
        x = self.conv2(x)
        if self.avd_last is not None:
            x = self.avd_last(x)
        x = self.conv3(x)
        return self.bn3(x)


def _row(stem: int, depths: tuple[int, ...], **more: Any) -> dict[str, Any]:
    wide = Stem((stem, stem, stem * 2))
    return dict(block=SplitBottleneck, depths=depths, stem=wide, avg_down=True, **more)


VARIANTS: dict[str, dict[str, Any]] = {
    "resnest14d": _row(32, (1, 1, 1, 1)),
    "resnest26d": _row(32, (2, 2, 2, 2)),
    "resnest50d": _row(32, (3, 4, 6, 3)),
    "resnest101e": _row(64, (3, 4, 23, 3)),
    "resnest200e": _row(64, (3, 24, 36, 3)),
    "resnest269e": _row(64, (3, 30, 48, 8)),
    "resnest50d_4s2x40d": _row(
        32, (3, 4, 6, 3), base_width=40, cardinality=2, block_args=dict(radix=4, avd_first=True)
    ),
    "resnest50d_1s4x24d": _row(
        32, (3, 4, 6, 3), base_width=24, cardinality=4, block_args=dict(radix=1, avd_first=True)
    ),
}

FAMILY = Family(model=ResNet, variants=VARIANTS, weights=weights_table("resnest"))
