"""The blocks of a ViT, with timm's constructors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .layers import DropPath, LayerScale, Mlp

Norm = Callable[[int], nn.Module]


class Attention(nn.Module):
    """Self-attention of tokens; (N, L, C) -> (N, L, C).

    Args:
        dim: channels.
        num_heads: heads, each of ``dim / num_heads`` channels.
        qkv_bias, proj_bias: biases of the layers.
        qk_norm: norm queries and keys, by ``norm_layer``.
        attn_drop, proj_drop: dropout rates.
        norm_layer: norm ``f(channels)``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Norm = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale, self.fused_attn = self.head_dim**-0.5, True
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        norm: Any = norm_layer if qk_norm else nn.Identity
        self.q_norm, self.k_norm = norm(self.head_dim), norm(self.head_dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (N, heads, L, C / heads)
        rate = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(
            self.q_norm(q), self.k_norm(k), v, attn_mask=attn_mask, dropout_p=rate
        )
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """A block of a ViT: attention, then an MLP, each behind a norm and beside a shortcut.

    Args:
        dim: channels.
        num_heads: heads of the attention.
        mlp_ratio: of the channels, the width of the MLP.
        qkv_bias, qk_norm, proj_bias: of the attention.
        proj_drop, attn_drop, drop_path: dropout rates.
        init_values: start of the scales of the branches; None for none.
        act_layer: activation of the MLP.
        norm_layer: norm ``f(channels)``.
        mlp_layer: the MLP's class.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Norm = functools.partial(nn.LayerNorm, eps=1e-5),
        mlp_layer: Callable[..., nn.Module] = Mlp,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return nn.Identity() if init_values is None else LayerScale(dim, init_values)

        def drop() -> nn.Module:
            return DropPath(drop_path) if drop_path else nn.Identity()

        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim, num_heads, qkv_bias, qk_norm, proj_bias, attn_drop, proj_drop, norm_layer
        )
        self.ls1, self.drop_path1 = scale(), drop()
        self.norm2 = norm_layer(dim)
        self.mlp = mlp_layer(
            in_features=dim,
            hidden_features=int(dim * mlp_ratio),
            act_layer=act_layer,
            bias=proj_bias,
            drop=proj_drop,
        )
        self.ls2, self.drop_path2 = scale(), drop()

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), attn_mask)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
