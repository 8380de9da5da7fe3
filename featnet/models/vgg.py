"""VGG: 3x3 convolutions and 2x2 pooling (https://arxiv.org/abs/1409.1556)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    Head,
    Layer,
    get_act,
    get_norm,
    he_fan_out,
    initialize,
    normal,
    zero_bias,
)
from ..registry import Family, weights_table

MAP = 7  # side of the last map for an input of 224
HIDDEN = 4096  # width of the classifier


@torch.fx.wrap  # one operation to torch.fx, which cannot go through what looks at sizes
def at_least_map(x: torch.Tensor) -> torch.Tensor:
    """Return a map that is at least as large as the kernel of the classifier's first layer."""
    height, width = x.shape[-2:]
    if height < MAP or width < MAP:
        return F.adaptive_avg_pool2d(x, (max(MAP, height), max(MAP, width)))
    return x


class ConvMlp(nn.Module):
    """The two hidden layers of the classifier, as convolutions: larger maps give larger maps.

    Args:
        in_chs, out_chs: widths.
        hidden_chs: width between the two layers.
        act: activation behind each.
        drop_rate: dropout between them.
    """

    def __init__(
        self, in_chs: int, out_chs: int, *, hidden_chs: int, act: Layer, drop_rate: float
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(in_chs, hidden_chs, MAP)
        self.act1 = act(inplace=True)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Conv2d(hidden_chs, out_chs, 1)
        self.act2 = act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = at_least_map(x)
        return self.act2(self.fc2(self.drop(self.act1(self.fc1(x)))))


class VGG(Backbone):
    """Five sections of convolutions, each before a pooling; the last level is the last pooling.

    Args:
        depths: convolutions in each section.
        widths: of each section.
        mlp_ratio: hidden width of the classifier, in 4096.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "features.0", "head.fc"

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        mlp_ratio: float = 1.0,
        act_layer: str | Layer = "relu",
        norm_layer: str | Layer | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        act, norm = get_act(act_layer), get_norm(norm_layer) if norm_layer else None
        self.features = Blocks()
        in_chs, reduction = in_chans, 1
        for depth, width in zip(depths, widths, strict=True):
            layers: list[nn.Module] = [nn.MaxPool2d(2, 2)] if reduction > 1 else []
            for _ in range(depth):
                layers.append(nn.Conv2d(in_chs, width, 3, padding=1))
                layers += [norm(width)] if norm else []
                layers.append(act(inplace=True))
                in_chs = width
            *inner, last = layers
            self.features.extend(inner)
            name = f"features.{len(self.features)}"
            self.add_stage(name, last, channels=width, reduction=reduction)
            reduction *= 2
        name = f"features.{len(self.features)}"
        self.add_stage(name, nn.MaxPool2d(2, 2), channels=in_chs, reduction=reduction)
        self.pre_logits = ConvMlp(
            in_chs, HIDDEN, hidden_chs=int(HIDDEN * mlp_ratio), act=act, drop_rate=drop_rate
        )
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=Head(before=("pre_logits",), channels=HIDDEN),
        )
        initialize(self, conv=[he_fan_out, zero_bias], linear=[normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        # conv ... act | pool conv ... act | ... | pool: (N, 64, H, W) to (N, 512, H/32, W/32)
        yield from self.through("features", x)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        del coarse
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}


DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: dict(depths=row) for name, row in DEPTHS.items()},
    **{f"{name}_bn": dict(depths=row, norm_layer="batchnorm") for name, row in DEPTHS.items()},
}

FAMILY = Family(model=VGG, variants=VARIANTS, weights=weights_table("vgg"))
