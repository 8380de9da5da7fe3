"""ConvMixer: patches, then depthwise and pointwise convolutions at one size.

Paper: Patches Are All You Need? (https://arxiv.org/abs/2201.09792).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError
from ..layers import Blocks, Layer, get_act
from ..registry import Family, weights_table


class Residual(nn.Module):
    """Adds what it is given to what ``fn`` makes of it."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x) + x


def conv_act_norm(conv: nn.Conv2d, act: Layer) -> list[nn.Module]:
    """A convolution; here the norm follows the activation."""
    return [conv, act(), nn.BatchNorm2d(conv.out_channels)]


class ConvMixer(Backbone):
    """Patches, then blocks of one width at one size; each block is a level.

    Args:
        dim, depth: channels and number of the blocks.
        kernel_size: of the depthwise convolutions; odd.
        patch_size: side of a patch, in pixels.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.0", "head"

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        kernel_size: int = 9,
        patch_size: int = 7,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        act_layer: str | Layer = "gelu",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        if kernel_size % 2 == 0:
            raise ArgumentError(f"kernel_size={kernel_size!r}: an odd number is expected.")
        act = get_act(act_layer)
        patches = nn.Conv2d(in_chans, dim, patch_size, patch_size)
        self.stem = nn.Sequential(*conv_act_norm(patches, act))
        self.blocks = Blocks()
        for i in range(depth):
            space = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
            mixer = Residual(nn.Sequential(*conv_act_norm(space, act)))
            block = nn.Sequential(mixer, *conv_act_norm(nn.Conv2d(dim, dim, 1), act))
            self.add_stage(f"blocks.{i}", block, channels=dim, reduction=patch_size)
        self.add_head(dim, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        return self.through("blocks", self.stem(x))  # (N, C, H/P, W/P) each

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": r"^blocks\.(\d+)"}


VARIANTS: dict[str, dict[str, Any]] = {
    "convmixer_1536_20": dict(dim=1536, depth=20),
    "convmixer_768_32": dict(dim=768, depth=32, kernel_size=7, act_layer="relu"),
    "convmixer_1024_20_ks9_p14": dict(dim=1024, depth=20, patch_size=14),
}

FAMILY = Family(model=ConvMixer, variants=VARIANTS, weights=weights_table("convmixer"))
