"""Res2Net and Res2NeXt: a bottleneck whose 3x3 convolutions feed each other, for many scales.

Paper: https://arxiv.org/abs/1904.01169.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from ..registry import Family, weights_table
from .resnet import Residual, ResNet, ResNetSettings, Stem


class ScaleBottleneck(Residual):
    """1x1 to ``scale`` parts; each part but the last passes a 3x3 convolution, after the result of
    the part before it was added; 1x1 over all of them.

    A block that changes the map (size or width) does not chain its parts, and pools the last one.

    Args:
        scale: number of parts, each as wide as a Bottleneck's 3x3 convolution.
    """

    expansion, last_norm, last_act = 4, "bn3", "relu"

    def __init__(
        self,
        in_chs: int,
        planes: int,
        *,
        stride: int = 1,
        shortcut: nn.Module | None = None,
        settings: ResNetSettings = ResNetSettings(),
        drop_path: float = 0.0,
        scale: int = 4,
    ) -> None:
        super().__init__()
        settings.refuse(self, "reduce_first", "smooth")
        if scale < 2:
            raise ArgumentError(f"scale={scale!r}: an int from 2 is expected.")
        groups = settings.cardinality
        self.width = width = planes * settings.base_width // 64 * groups
        out_chs = planes * self.expansion
        self.chained = stride == 1 and shortcut is None
        self.conv1 = nn.Conv2d(in_chs, width * scale, 1, bias=False)
        self.bn1 = settings.norm(width * scale)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
            for _ in range(scale - 1)
        )
        self.bns = nn.ModuleList(settings.norm(width) for _ in range(scale - 1))
        self.pool = None if self.chained else nn.AvgPool2d(3, stride, 1)
        self.drop_block = settings.drop_block()
        self.conv3 = nn.Conv2d(width * scale, out_chs, 1, bias=False)
        self.bn3 = settings.norm(out_chs)
        self.relu = settings.act(inplace=True)
        self.add_end(out_chs, shortcut, settings, drop_path)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.relu(self.bn1(self.conv1(x))).split(self.width, 1)
        done: list[torch.Tensor] = []
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            part = done[-1] + parts[i] if done and self.chained else parts[i]
            done.append(self.relu(bn(conv(part))))
        last = parts[len(self.convs)]
        done.append(last if self.pool is None else self.pool(last))
        return self.bn3(self.conv3(self.drop_block(torch.cat(done, 1))))


def _parts(base_width: int, scale: int, **more: Any) -> dict[str, Any]:
    return dict(block=ScaleBottleneck, base_width=base_width, block_args={"scale": scale}, **more)


D: dict[str, Any] = {"stem": Stem((32, 32, 64)), "avg_down": True}

VARIANTS: dict[str, dict[str, Any]] = {
    "res2net50_26w_4s": _parts(26, 4, depths=(3, 4, 6, 3)),
    "res2net101_26w_4s": _parts(26, 4, depths=(3, 4, 23, 3)),
    "res2net50_26w_6s": _parts(26, 6, depths=(3, 4, 6, 3)),
    "res2net50_26w_8s": _parts(26, 8, depths=(3, 4, 6, 3)),
    "res2net50_48w_2s": _parts(48, 2, depths=(3, 4, 6, 3)),
    "res2net50_14w_8s": _parts(14, 8, depths=(3, 4, 6, 3)),
    "res2next50": _parts(4, 4, depths=(3, 4, 6, 3), cardinality=8),
    "res2net50d": _parts(26, 4, depths=(3, 4, 6, 3), **D),
    "res2net101d": _parts(26, 4, depths=(3, 4, 23, 3), **D),
}

FAMILY = Family(model=ResNet, variants=VARIANTS, weights=weights_table("res2net"))
