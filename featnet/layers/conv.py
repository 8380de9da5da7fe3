"""A convolution with what usually follows it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn

from .evonorm import EvoNorm
from .factory import Layer, build_act
from .response_norm import FilterResponseNorm


def norm_and_act(norm: Layer, channels: int, act: Layer | None) -> tuple[nn.Module, nn.Module]:
    """A normalisation, and the activation after it, an Identity where there is none to be.

    One that activates by itself (EvoNorm, FilterResponseNorm) does so in place of ``act``.
    """
    layer = norm(channels)
    if isinstance(layer, (EvoNorm, FilterResponseNorm)):
        if act is None:
            setattr(layer, "v" if isinstance(layer, EvoNorm) else "tau", None)
        return layer, nn.Identity()
    return layer, build_act(act) if act is not None else nn.Identity()


class ConvNormAct(nn.Module):
    """Convolution without bias, normalisation, activation; padded so that stride 1 keeps the size.

    Args:
        norm: ``f(channels)``.
        act: ``f(inplace=)``, or None for none.
        padding: on each side, where it is not half of the kernel.
        drop: a dropout before the activation, ``f()``.
        smooth: anti-aliasing ``f(channels, stride)`` at the end, which then strides.
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        kernel_size: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        norm: Layer = nn.BatchNorm2d,
        act: Layer | None = nn.ReLU,
        drop: Callable[[], nn.Module] | None = None,
        smooth: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        late = smooth is not None and stride > 1
        sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.conv = nn.Conv2d(
            in_chs,
            out_chs,
            kernel_size,
            1 if late else stride,
            (sides[0] // 2, sides[1] // 2) if padding is None else padding,
            groups=groups,
            bias=False,
        )
        self.bn, self.act = norm_and_act(norm, out_chs, act)
        self.drop = drop() if drop is not None else nn.Identity()
        self.aa = smooth(out_chs, stride) if smooth is not None and late else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.aa(self.act(self.drop(self.bn(self.conv(x)))))


class PositionConv(nn.Module):
    """Add a depthwise convolution of the map, by whose padding positions are known
    (https://arxiv.org/abs/2102.10882); (N, C, H, W).

    Args:
        act: activation ``f()`` of what is added.
    """

    def __init__(self, dim: int, *, act: Layer = nn.Identity) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = act()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.proj(x))


def unit(
    in_chs: int,
    chs: int,
    kernel_size: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: Layer | None = None,
    act: Layer | None = None,
    bias: bool = False,
) -> nn.Sequential:
    """A convolution, with a norm and an activation where they are given; an even kernel that does
    not stride begins a position before the map."""
    pad = kernel_size // 2 if kernel_size % 2 else 0
    conv = nn.Conv2d(in_chs, chs, kernel_size, stride, pad, groups=groups, bias=bias)
    before = kernel_size % 2 == 0 and stride == 1
    layers = OrderedDict[str, nn.Module](conv=conv)
    if before:
        layers["conv"] = nn.Sequential(nn.ZeroPad2d((1, 0, 1, 0)), conv)
    if norm is not None:
        layers["norm"] = norm(chs)
    if act is not None:
        layers["act"] = build_act(act)
    return nn.Sequential(layers)
