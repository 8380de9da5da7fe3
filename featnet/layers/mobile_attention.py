"""Attention as a block of a mobile network (https://arxiv.org/abs/2404.10518)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .factory import Layer
from .mobile_conv import conv2d
from .mobile_spec import Block, MobileSettings, Spec, layer_scale
from .phases import Phased
from .static import in_memory_format_of


class MultiQueryAttention2d(Phased):
    """Every position asks all positions, of which several heads share keys and values
    (https://arxiv.org/abs/1911.02150).

    A convolution may thin out keys and values; that is no stride of the network's maps.
    """

    channels_last = False

    def __init__(self, in_chs: int, spec: Spec, *, norm: Layer, pad_type: str) -> None:
        super().__init__()
        self.heads = spec.heads
        self.query = nn.Sequential(OrderedDict(proj=_conv1x1(in_chs, spec.heads * spec.d)))
        self.key = self._keys(in_chs, spec, norm, pad_type)
        self.value = self._keys(in_chs, spec, norm, pad_type)
        self.output = nn.Sequential(OrderedDict(proj=_conv1x1(spec.heads * spec.d, spec.channels)))

    @staticmethod
    def _keys(in_chs: int, spec: Spec, norm: Layer, pad_type: str) -> nn.Module:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if spec.kv_stride > 1:
            options: dict[str, Any] = dict(stride=spec.kv_stride, groups=in_chs, pad_type=pad_type)
            parts["down_conv"] = conv2d(in_chs, in_chs, spec.kernel, **options)
            parts["norm"] = norm(in_chs)
        parts["proj"] = _conv1x1(in_chs, spec.d)
        return nn.Sequential(parts)

    def init_weights(self) -> None:
        """Glorot's uniform distribution."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[2], x.shape[3])
        q = self.query(x).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (N, K, hw, d)
        k = self.key(x).flatten(2).transpose(1, 2)[:, None]  # (N, 1, M, d)
        v = self.value(x).flatten(2).transpose(1, 2)[:, None]
        y = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        y = y.transpose(1, 2).flatten(2).transpose(1, 2)  # (N, K * d, h * w)
        y = torch.unflatten(y, 2, size)
        return self.output(in_memory_format_of(y, x))


def _conv1x1(in_chs: int, out_chs: int) -> nn.Module:
    return nn.Conv2d(in_chs, out_chs, 1, bias=False)


class MobileAttention(Block):
    """Attention as a block (MobileNetV4)."""

    last = "attn.output.proj"

    def __init__(
        self, in_chs: int, spec: Spec, *, settings: MobileSettings, drop_path: float
    ) -> None:
        super().__init__()
        self.norm = settings.last_norm(in_chs)
        self.attn = MultiQueryAttention2d(
            in_chs, spec, norm=settings.norm, pad_type=settings.pad_type
        )
        self.layer_scale = layer_scale(spec.channels, settings)
        self.add_shortcut(in_chs, spec, drop_path)

    @property
    def hidden_channels(self) -> int:
        return self.out_channels

    def hidden_at(self) -> tuple[str, str]:
        return "attn", "forward"

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(self.norm(x))

    @property
    def projection(self) -> tuple[nn.Module, ...]:
        return (self.layer_scale,)
