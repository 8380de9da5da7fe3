"""The blocks of which mobile networks are made; see :class:`featnet.layers.mobile_spec.Spec`."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .attention import make_divisible
from .factory import get_act
from .mobile_attention import MobileAttention
from .mobile_conv import Kernel, conv2d
from .mobile_spec import Block, MobileSettings, Spec, groups_of, layer_scale


class ConvBnAct(Block):
    """One convolution."""

    last = "conv"

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__()
        groups = groups_of(spec.group_size or 0, in_chs)
        self.conv = settings.conv(
            in_chs, spec.channels, spec.kernel, stride=spec.stride, groups=groups
        )
        self.bn1, self.act1 = settings.norm_act(spec.channels)
        self.aa = settings.smoothing(spec.channels, spec.stride)
        self.add_shortcut(in_chs, spec, drop_path)
        self.has_skip = self.has_skip and spec.skip is True

    @property
    def hidden_channels(self) -> int:
        return self.out_channels

    def hidden_at(self) -> tuple[str, str]:
        if not isinstance(self.aa, nn.Identity):
            return "aa", "forward"
        return "act1", "forward"

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.aa(self.act1(self.bn1(self.conv(x))))

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        return ()


class DepthwiseSeparable(Block):
    """Depthwise, then 1x1 (MobileNetV1); the first one may move pixels into channels."""

    last = "conv_pw"

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__()
        wide, kernel, pad_type = in_chs, spec.kernel, settings.pad_type
        self.conv_s2d: nn.Module | None = None
        if spec.unfolds:
            assert isinstance(kernel, int)
            wide = in_chs * 4
            self.conv_s2d = conv2d(in_chs, wide, 2, stride=2, pad_type="same")
            self.bn_s2d, self.act_s2d = settings.norm_act(wide)
            kernel = (kernel + 1) // 2
            pad_type = "same" if kernel == 2 else pad_type
        self.conv_dw = dataclasses.replace(settings, pad_type=pad_type).conv(
            wide, wide, kernel, stride=spec.stride, groups=groups_of(spec.group_size or 1, wide)
        )
        self.bn1, self.act1 = settings.norm_act(wide)
        self.aa = settings.smoothing(wide, spec.stride)
        self.se = settings.squeeze(wide, spec)
        self.conv_pw = settings.conv(wide, spec.channels, spec.end or 1)
        if spec.kind == "dsa":
            self.bn2, self.act2 = settings.norm_act(spec.channels)
        else:
            self.bn2, self.act2 = settings.last_norm(spec.channels), nn.Identity()
        self.add_shortcut(in_chs, spec, drop_path)
        self.has_skip = self.has_skip and spec.kind != "dsa"

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv_s2d is not None:
            x = self.act_s2d(self.bn_s2d(self.conv_s2d(x)))
        return self.se(self.aa(self.act1(self.bn1(self.conv_dw(x)))))

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        return self.conv_pw, self.bn2, self.act2


class InvertedResidual(Block):
    """1x1 to a wider map, depthwise, 1x1 back (MobileNetV2)."""

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__()
        mid = make_divisible(in_chs * spec.expand)
        conv = partial(settings.conv, experts=spec.experts) if spec.experts else settings.conv
        groups = groups_of(spec.group_size or 1, mid)
        self.conv_pw = conv(in_chs, mid, spec.start or 1)
        self.bn1, self.act1 = settings.norm_act(mid)
        self.conv_dw = conv(mid, mid, spec.kernel, stride=spec.stride, groups=groups)
        self.bn2, self.act2 = settings.norm_act(mid)
        self.aa = settings.smoothing(mid, spec.stride)
        self.se = settings.squeeze(mid, spec)
        self.conv_pwl = conv(mid, spec.channels, spec.end or 1)
        self.bn3 = settings.last_norm(spec.channels)
        self.add_shortcut(in_chs, spec, drop_path)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.conv_dw(x)  # the wide maps are let go of as soon as they are read
        x = self.act2(self.bn2(x))
        return self.se(self.aa(x))

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        return self.conv_pwl, self.bn3


class CondConvResidual(InvertedResidual):
    """An inverted residual whose kernels are mixed by what the whole input holds."""

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__(in_chs, spec, settings=settings, drop_path=drop_path)
        self.routing_fn = nn.Linear(in_chs, spec.experts)

    def init_weights(self) -> None:
        """A uniform distribution for the routing."""
        bound = 1 / math.sqrt(sum(self.routing_fn.weight.shape))
        nn.init.uniform_(self.routing_fn.weight, -bound, bound)

    def routing(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, experts)."""
        return torch.sigmoid(self.routing_fn(F.adaptive_avg_pool2d(x, 1).flatten(1)))

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self._hidden(x, self.routing(x))

    def complete(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self._close(y, x, self.routing(x))

    def _hidden(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        y = self.act1(self.bn1(self.conv_pw(x, routing)))
        return self.se(self.aa(self.act2(self.bn2(self.conv_dw(y, routing)))))

    def _close(self, y: torch.Tensor, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        y = self.bn3(self.conv_pwl(y, routing))
        return self.drop_path(y) + x if self.has_skip else y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routing = self.routing(x)
        return self._close(self._hidden(x, routing), x, routing)


class EdgeResidual(Block):
    """A dense convolution to a wider map, 1x1 back: the fused form (EfficientNet-EdgeTPU, V2)."""

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__()
        mid = make_divisible((spec.in_channels or in_chs) * spec.expand)
        groups = groups_of(spec.group_size or 0, mid)
        self.conv_exp = settings.conv(in_chs, mid, spec.kernel, stride=spec.stride, groups=groups)
        self.bn1, self.act1 = settings.norm_act(mid)
        self.aa = settings.smoothing(mid, spec.stride)
        self.se = settings.squeeze(mid, spec)
        self.conv_pwl = settings.conv(mid, spec.channels, spec.end or 1)
        self.bn2 = settings.last_norm(spec.channels)
        self.add_shortcut(in_chs, spec, drop_path)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.se(self.aa(self.act1(self.bn1(self.conv_exp(x)))))

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        return self.conv_pwl, self.bn2


class UniversalInvertedResidual(Block):
    """An inverted residual with depthwise convolutions before, in and after it, or without any
    (MobileNetV4)."""

    last = "pw_proj.conv"

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__()
        mid, out, size = make_divisible(in_chs * spec.expand), spec.channels, spec.group_size or 1
        stride = spec.stride

        def unit(
            inputs: int, outputs: int, kernel: Kernel | None, stride: int = 1, *, act: bool = False
        ) -> nn.Module:
            if not kernel:
                return nn.Identity()
            groups = 1 if kernel == 1 else groups_of(size, inputs)
            conv = settings.conv(inputs, outputs, kernel, stride=stride, groups=groups)
            parts = OrderedDict(conv=conv)
            if act:
                parts["bn"], parts["act"] = settings.norm_act(outputs)
            else:
                parts["bn"] = settings.last_norm(outputs)
            if settings.smooth and stride > 1:
                parts["aa"] = settings.smoothing(outputs, stride)
            return nn.Sequential(parts)

        self.dw_start = unit(in_chs, in_chs, spec.start, 1 if spec.kernel else stride)
        self.pw_exp = unit(in_chs, mid, 1, act=True)
        self.dw_mid = unit(mid, mid, spec.kernel, stride, act=True)
        self.se = settings.squeeze(mid, spec)
        self.pw_proj = unit(mid, out, 1)
        self.dw_end = unit(out, out, spec.end, 1 if spec.start or spec.kernel else stride)
        self.layer_scale = layer_scale(out, settings)
        self.add_shortcut(in_chs, spec, drop_path)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.se(self.dw_mid(self.pw_exp(self.dw_start(x))))

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        return self.pw_proj, self.dw_end, self.layer_scale


KINDS: dict[str, type[Block]] = {
    "cn": ConvBnAct,
    "ds": DepthwiseSeparable,
    "dsa": DepthwiseSeparable,
    "ir": InvertedResidual,
    "er": EdgeResidual,
    "uir": UniversalInvertedResidual,
    "mqa": MobileAttention,
}


def build_block(in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float) -> Block:
    """The block that a spec describes."""
    kind = CondConvResidual if spec.experts else KINDS[spec.kind]
    if spec.act:
        settings = dataclasses.replace(settings, act=get_act(spec.act))
    return kind(in_chs, spec, settings=settings, drop_path=drop_path)
