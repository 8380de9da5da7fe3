"""Pooling a map by attention, as CLIP's ResNets do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import check_choice
from .dot_attention import attend, head_width, join_heads, split_heads
from .factory import Layer
from .init import trunc_normal_
from .mlp import Mlp
from .pool import GlobalPool
from .static import same_size

TOKENS = ("", "token")


class TokenPool(GlobalPool):
    """The result of an attention pool: the mean's token (``token``), or a map (``""``)."""

    def __init__(self, pool_type: str = "token") -> None:
        nn.Module.__init__(self)
        check_choice("global_pool", pool_type, TOKENS)
        self.pool_type, self.multiplier = pool_type, 1


class AttentionPool2d(nn.Module):
    """The map's mean attends to the map (https://arxiv.org/abs/2103.00020).

    Positions are learned for maps of ``size`` and interpolated for others.
    """

    pools = TokenPool

    def __init__(self, channels: int, *, size: tuple[int, int], dim_head: int = 64) -> None:
        super().__init__()
        self.size, self.num_heads = size, channels // dim_head
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.pos_embed = nn.Parameter(torch.zeros(size[0] * size[1] + 1, channels))
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normals by fan-in."""
        std = self.q.in_features**-0.5
        for layer in (self.q, self.k, self.v):
            trunc_normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        trunc_normal_(self.pos_embed, std=std)

    def positions(self, size: tuple[int, int]) -> torch.Tensor:
        """(1, 1 + h * w, C) for a map of any size."""
        table = self.pos_embed[None]
        if same_size(size, self.size):
            return table
        grid = torch.unflatten(table[:, 1:].float(), 1, self.size).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=size, mode="bicubic", antialias=True)
        return torch.cat((table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)), 1)

    def forward(self, x: torch.Tensor, pool: GlobalPool) -> torch.Tensor:
        """(N, C, h, w) -> (N, C), or (N, C, h, w) if ``pool`` is none."""
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((x.mean(1, keepdim=True), x), 1) + self.positions((h, w))
        token = bool(pool.pool_type)
        asked = x[:, :1] if token else x[:, 1:]  # nobody else's answer is wanted
        q, k, v = (
            layer(t).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer, t in ((self.q, asked), (self.k, x), (self.v, x))
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return y[:, 0] if token else y.transpose(1, 2).reshape(n, c, h, w)


class LatentPool(nn.Module):
    """A learnt token asks all others, then an MLP (https://arxiv.org/abs/1810.00825);
    (N, L, C) -> (N, C)."""

    fused_attn = True

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, norm: Layer, act: Layer
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        self.num_heads = num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act=act)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A truncated normal for the latent."""
        std = self.latent.shape[-1] ** -0.5
        trunc_normal_(self.latent, std=std, cut=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (q,) = split_heads(self.q(self.latent.expand(x.shape[0], -1, -1)), 1, self.num_heads)
        k, v = split_heads(self.kv(x), 2, self.num_heads)
        x = self.proj(join_heads(attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn)))
        return (x + self.mlp(self.norm(x)))[:, 0]
