"""Settings of the blocks of mobile networks, of each one and of all."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from .attention import SqueezeExcite
from .blocks import DropPath
from .conv import norm_and_act
from .factory import Layer, build_act
from .mlp import LayerScale
from .mobile_conv import Kernel, conv2d


@dataclasses.dataclass(frozen=True)
class Spec:
    """A block, decoded.

    Attributes:
        kind: ``cn`` convolution, ``ds`` depthwise separable (``dsa`` with a last activation),
            ``ir`` inverted residual, ``er`` edge residual (fused), ``uir`` universal, ``mqa``
            attention.
        repeats (r): how many.
        kernel (k): of the depthwise, or only, convolution; several are mixed.
        stride (s): of the first one.
        channels (c): that come out.
        expand (e): factor on the channels inside.
        se (se): share of the channels that squeeze-excite has.
        act (n): an activation unlike the network's.
        start, end (a, p): kernels of the convolutions before and after the depthwise one.
        skip (skip, noskip): force the shortcut, or forbid it.
        group_size (gs): channels a group.
        experts (cc): kernels to mix for each sample.
        in_channels (fc): what ``expand`` counts from, where that is not the input.
        heads, kv_stride, d (h, v, d): of attention; the last is the width of a key. In a separable
            block ``d1`` moves pixels into channels, until the next stride.
    """

    kind: str
    repeats: int = 1
    kernel: Kernel = 3
    stride: int = 1
    channels: int = 0
    expand: float = 1.0
    se: float = 0.0
    act: str | None = None
    start: Kernel | None = None
    end: Kernel | None = None
    skip: bool | None = None
    group_size: int | None = None
    experts: int = 0
    in_channels: int = 0
    heads: int = 0
    kv_stride: int = 1
    d: int = 0

    @property
    def step(self) -> int:
        """Factor by which the map gets coarser."""
        return self.stride * 2 if self.unfolds else self.stride

    @property
    def unfolds(self) -> bool:
        """True if this block moves pixels into channels."""
        return self.d > 0 and self.kind.startswith("ds")


class MobileSqueezeExcite(SqueezeExcite):
    """Squeeze-excite as the mobile networks name and count it.

    Args:
        channels: of the map.
        rd_ratio: share of them inside.
        act_layer: inside; the block's, unless bound before.
        gate_layer: at the end.
        rounding: of the count inside.
    """

    names = ("conv_reduce", "act1", "conv_expand")

    def __init__(
        self,
        channels: int,
        *,
        rd_ratio: float = 0.25,
        act_layer: Layer = nn.ReLU,
        gate_layer: Layer = nn.Sigmoid,
        rounding: Callable[[float], int] = round,
    ) -> None:
        squeezed, act = rounding(channels * rd_ratio), partial(build_act, act_layer)
        super().__init__(channels, rd_channels=squeezed, act=act, gate=gate_layer)


@dataclasses.dataclass(frozen=True)
class MobileSettings:
    """Settings that all blocks of a network have in common.

    Attributes:
        act, norm: layers.
        attention: channel attention, told ``rd_ratio`` and ``act_layer`` as far as it takes them.
        smooth: anti-aliasing ``f(channels, stride)`` that strides in place of a convolution.
        pad_type: see :func:`featnet.layers.conv2d`.
        se_of_input: squeeze-excite is as wide as a share of the block's input, not of its middle.
        layer_scale: first scale of the residual branches of universal and attention blocks.
    """

    act: Layer
    norm: Layer
    attention: Layer
    smooth: Callable[[int, int], nn.Module] | None
    pad_type: str
    se_of_input: bool
    layer_scale: float | None

    def conv(self, in_chs: int, out_chs: int, kernel: Kernel, **options: Any) -> nn.Module:
        """A convolution; where something smooths, that takes its stride."""
        if self.smooth and options.get("stride", 1) > 1:
            options["stride"] = 1
        return conv2d(in_chs, out_chs, kernel, pad_type=self.pad_type, **options)

    def norm_act(self, channels: int) -> tuple[nn.Module, nn.Module]:
        """A norm and the activation after it."""
        return norm_and_act(self.norm, channels, self.act)

    def last_norm(self, channels: int) -> nn.Module:
        """A norm without activation."""
        return norm_and_act(self.norm, channels, None)[0]

    def smoothing(self, channels: int, stride: int) -> nn.Module:
        """The anti-aliasing after a convolution's activation."""
        return self.smooth(channels, stride) if self.smooth and stride > 1 else nn.Identity()

    def squeeze(self, channels: int, spec: Spec) -> nn.Module:
        """The block's channel attention."""
        if not spec.se:
            return nn.Identity()
        ratio = spec.se / spec.expand if self.se_of_input else spec.se
        told: dict[str, Any] = {"rd_ratio": ratio, "act_layer": self.act}
        bound = getattr(self.attention, "keywords", {})  # of a partial
        takes = inspect.signature(self.attention).parameters
        told = {k: v for k, v in told.items() if k in takes and k not in bound}
        return self.attention(channels, **told)


def groups_of(group_size: int, channels: int) -> int:
    """Groups of this size; without a size one."""
    return channels // group_size if group_size else 1


class Block(nn.Module):
    """``hidden``, the wide map inside, then what comes after it, and a shortcut around both.

    Class attributes:
        last: name of the convolution that reads the hidden map.
    """

    last = "conv_pwl"

    def add_shortcut(self, in_chs: int, spec: Spec, drop_path: float) -> None:
        """True if the map keeps its shape, and no setting forbids a shortcut."""
        fits = spec.step == 1 and in_chs == spec.channels
        self.has_skip = fits and spec.skip is not False
        self.drop_path = DropPath(drop_path)

    @property
    def out_channels(self) -> int:
        """Of the block's map."""
        conv: Any = self.get_submodule(self.last)
        return int(conv.out_channels)

    @property
    def hidden_channels(self) -> int:
        """Of the hidden map."""
        conv: Any = self.get_submodule(self.last)
        return int(conv.in_channels)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, E, h, w)."""
        raise NotImplementedError

    def hidden_at(self) -> tuple[str, str]:
        """Name of a module, and whether it puts out the hidden map (``"forward"``) or is given it
        (``"forward_pre"``)."""
        return self.last, "forward_pre"

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        """The layers that make (N, C', h, w) of the hidden map (N, E, h, w), one after the
        other."""
        raise NotImplementedError

    def complete(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The hidden map and the block's input -> the block's output."""
        for module in self.projection:  # here, where nobody else holds the hidden map
            y = module(y)
        return self.drop_path(y) + x if self.has_skip else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.complete(self.hidden(x), x)


def layer_scale(channels: int, settings: MobileSettings) -> nn.Module:
    """The network's scale of a branch, if it has one."""
    value = settings.layer_scale
    return nn.Identity() if value is None else LayerScale(channels, value, channels_last=False)
