"""The blocks that vision transformers are made of.

Papers: ViT (https://arxiv.org/abs/2010.11929), norms at the branches' ends
(https://arxiv.org/abs/2111.09883), parallel blocks (https://arxiv.org/abs/2203.09795,
https://arxiv.org/abs/2302.05442), differential attention (https://arxiv.org/abs/2410.05258).
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import nn

from ..layers import (
    Attention,
    DropPath,
    Layer,
    LayerScale,
    Mlp,
    PreNormBlock,
    attend,
    head_width,
    join_heads,
    split_heads,
)


class Differential(nn.Module):
    """The difference of two attention maps, of which the second has a learnt weight."""

    attn_drop: nn.Dropout
    lambda_q1: torch.Tensor
    lambda_k1: torch.Tensor
    lambda_q2: torch.Tensor
    lambda_k2: torch.Tensor
    fused_attn = True
    lambda_init = 0.2

    def add_lambdas(self, dim: int) -> None:
        """The parameters of the weight, for heads of ``dim`` channels."""
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            self.register_parameter(name, nn.Parameter(torch.empty(dim)))
            nn.init.normal_(self.get_parameter(name), std=0.1)

    def set_depth(self, index: int) -> None:
        """The weight starts lower in earlier blocks."""
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * index)

    def weight_of_second(self) -> torch.Tensor:
        first = (self.lambda_q1 * self.lambda_k1).sum().float().exp()
        second = (self.lambda_q2 * self.lambda_k2).sum().float().exp()
        return first - second + self.lambda_init

    def differ(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sub_norm: nn.Module
    ) -> torch.Tensor:
        """(N, 2 * heads, L, C), the same, and (N, heads, L, 2 * C) -> (N, L, heads * 2 * C)."""
        n, heads, length, _ = v.shape
        q, k = (t.reshape(n, heads, 2, length, -1) for t in (q, k))
        weight = self.weight_of_second().type_as(q)
        if self.fused_attn:
            one = partial(attend, drop=self.attn_drop, fused=True)
            x = one(q[:, :, 0], k[:, :, 0], v) - weight * one(q[:, :, 1], k[:, :, 1], v)
        else:
            products = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            maps = self.attn_drop(products.softmax(-1))  # (N, heads, 2, L, L)
            x = (maps[:, :, 0] - weight * maps[:, :, 1]) @ v
        return join_heads(sub_norm(x) * (1 - self.lambda_init))


class DiffAttention(Differential):
    """Differential attention, with the arguments of :class:`featnet.layers.Attention`."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: Layer | None = None,
        scale_norm: Layer | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        width = head_width(dim, 2 * num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = qk_norm(width) if qk_norm else nn.Identity()
        self.k_norm = qk_norm(width) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = scale_norm(dim) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.add_lambdas(width)
        self.sub_norm = nn.RMSNorm(2 * width, eps=1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        (q,), (k,) = split_heads(q, 1, 2 * self.num_heads), split_heads(k, 1, 2 * self.num_heads)
        (v,) = split_heads(v, 1, self.num_heads)
        x = self.differ(self.q_norm(q), self.k_norm(k), v, self.sub_norm)
        return self.proj_drop(self.proj(self.norm(x)))


@dataclasses.dataclass(frozen=True)
class ViTSettings:
    """Settings that all blocks of a network have in common.

    Attributes:
        norm, act: of the blocks.
        attn: ``f(dim, heads, ...)``, :class:`featnet.layers.Attention` or of its arguments.
        mlp: ``f(dim, hidden, ...)``, :class:`featnet.layers.Mlp` or of its arguments.
        init_values: first scale of each branch, learnt from there; None for no scale.

    The others are :class:`featnet.models.vit.VisionTransformer`'s arguments.
    """

    num_heads: int
    norm: Layer
    act: Layer
    attn: Layer = Attention
    mlp: Layer = Mlp
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    scale_norm: bool = False
    proj_bias: bool = True
    init_values: float | None = None
    proj_drop: float = 0.0
    attn_drop: float = 0.0

    def attention(self, dim: int) -> nn.Module:
        return self.attn(
            dim,
            self.num_heads,
            qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias,
            qk_norm=self.norm if self.qk_norm else None,
            scale_norm=self.norm if self.scale_norm else None,
            attn_drop=self.attn_drop,
            proj_drop=self.proj_drop,
        )

    def feed_forward(self, dim: int) -> nn.Module:
        return self.mlp(
            dim,
            int(dim * self.mlp_ratio),
            act=self.act,
            bias=self.proj_bias,
            norm=self.norm if self.scale_norm else None,
            drop=self.proj_drop,
        )

    def scale(self, dim: int) -> nn.Module:
        return LayerScale(dim, self.init_values) if self.init_values else nn.Identity()


class Block(PreNormBlock):
    """Attention, then an MLP, each behind a norm and beside a shortcut; (N, L, C)."""

    def __init__(self, dim: int, *, settings: ViTSettings, drop_path: float) -> None:
        super().__init__(
            dim,
            attention=settings.attention,
            mlp=settings.feed_forward,
            norm=settings.norm,
            scale=settings.scale,
            drop_path=drop_path,
        )


class ResPostBlock(nn.Module):
    """The norms at the end of the branches; their weights start at the layer scale."""

    def __init__(self, dim: int, *, settings: ViTSettings, drop_path: float) -> None:
        super().__init__()
        self.init_values = settings.init_values
        self.attn = settings.attention(dim)
        self.norm1 = settings.norm(dim)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = settings.feed_forward(dim)
        self.norm2 = settings.norm(dim)
        self.drop_path2 = DropPath(drop_path)
        if self.init_values is not None:
            for norm in (self.norm1, self.norm2):
                weight: Any = norm.weight
                nn.init.constant_(weight, self.init_values)

    def forward(self, x: torch.Tensor, **context: Any) -> torch.Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, **context)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class ParallelThingsBlock(nn.Module):
    """Two attentions side by side, then two MLPs."""

    def __init__(self, dim: int, *, settings: ViTSettings, drop_path: float) -> None:
        super().__init__()

        def branch(name: str, module: nn.Module) -> nn.Module:
            layers = [("norm", settings.norm(dim)), (name, module), ("ls", settings.scale(dim))]
            return nn.Sequential(OrderedDict([*layers, ("drop_path", DropPath(drop_path))]))

        self.attns, self.ffns = nn.ModuleList(), nn.ModuleList()
        for _ in range(2):
            self.attns.append(branch("attn", settings.attention(dim)))
            self.ffns.append(branch("mlp", settings.feed_forward(dim)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + torch.stack([branch(x) for branch in self.attns]).sum(0)
        return x + torch.stack([branch(x) for branch in self.ffns]).sum(0)


class ParallelScalingBlock(nn.Module):
    """Attention and MLP side by side, with one projection into both."""

    fused_attn = True

    def __init__(self, dim: int, *, settings: ViTSettings, drop_path: float) -> None:
        super().__init__()
        hidden = int(settings.mlp_ratio * dim)
        self.num_heads, self.parts = settings.num_heads, [hidden, dim, dim, dim]
        width = self.head_channels(dim)
        self.in_norm = settings.norm(dim)
        self.in_proj = nn.Linear(dim, sum(self.parts), bias=settings.qkv_bias)
        # attention without a bias in, the MLP always has one
        self.mlp_bias = None if settings.qkv_bias else nn.Parameter(torch.zeros(hidden))
        self.q_norm = settings.norm(width) if settings.qk_norm else nn.Identity()
        self.k_norm = settings.norm(width) if settings.qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(settings.attn_drop)
        self.add_attention(width)
        self.mlp_drop = nn.Dropout(settings.proj_drop)
        self.mlp_act = settings.act()
        self.add_output(dim, hidden, bias=settings.proj_bias)
        scaled = settings.init_values is not None
        self.ls = LayerScale(dim, settings.init_values or 0.0) if scaled else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def head_channels(self, dim: int) -> int:
        return head_width(dim, self.num_heads)

    def add_attention(self, width: int) -> None:
        """The rest of attention, beside the projection."""

    def add_output(self, dim: int, hidden: int, *, bias: bool) -> None:
        self.attn_out_proj = nn.Linear(dim, dim, bias=bias)
        self.mlp_out_proj = nn.Linear(hidden, dim, bias=bias)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Three times (N, L, C) -> (N, L, C)."""
        q, k, v = (split_heads(t, 1, self.num_heads)[0] for t in (q, k, v))
        q, k = self.q_norm(q), self.k_norm(k)
        return join_heads(attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn))

    def project(self, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.attn_out_proj(attended) + self.mlp_out_proj(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden, q, k, v = torch.split(self.in_proj(self.in_norm(x)), self.parts, -1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias
        attended = self.mix(q, k, v)
        y = self.project(attended, self.mlp_drop(self.mlp_act(hidden)))
        return x + self.drop_path(self.ls(y))


class DiffParallelScalingBlock(ParallelScalingBlock, Differential):
    """The same with differential attention, and one projection out of both."""

    def head_channels(self, dim: int) -> int:
        return head_width(dim, 2 * self.num_heads)

    def add_attention(self, width: int) -> None:
        self.sub_norm = nn.RMSNorm(2 * width, eps=1e-5)
        self.add_lambdas(width)

    def add_output(self, dim: int, hidden: int, *, bias: bool) -> None:
        self.out_proj = nn.Linear(dim + hidden, dim, bias=bias)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        (q,), (k,) = split_heads(q, 1, 2 * self.num_heads), split_heads(k, 1, 2 * self.num_heads)
        (v,) = split_heads(v, 1, self.num_heads)
        return self.differ(self.q_norm(q), self.k_norm(k), v, self.sub_norm)

    def project(self, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return self.out_proj(torch.cat((attended, hidden), -1))
