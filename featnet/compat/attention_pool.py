"""Pooling by attention, with timm's constructor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError
from ..layers import TokenPool
from ..layers.patch_embed import to_pair
from ..layers.positions import resample_positions


class AttentionPool2d(nn.Module):
    """The map's mean attends to the map, as in CLIP; (N, C, H, W) -> (N, D).

    Args:
        in_features: channels of the map.
        feat_size: (height, width) that positions are made for; others are interpolated.
        out_features: of the output; 0 leaves out the last layer, None is ``in_features``.
        embed_dim: width of the attention, by default ``in_features``.
        head_dim: channels of a head.
        num_heads: in place of ``head_dim``.
        qkv_bias: biases of the first layer.
        pool_type: ``"token"``, or ``""`` for a map (N, D, H, W).
        drop_rate: dropout of the output.

    Raises:
        ArgumentError: another ``pool_type``, or widths that heads do not divide.
    """

    def __init__(
        self,
        in_features: int,
        feat_size: int | tuple[int, int] = 7,
        out_features: int | None = None,
        embed_dim: int | None = None,
        head_dim: int = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        pool_type: str = "token",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        dim = embed_dim or in_features
        heads = num_heads or dim // head_dim
        if not heads or dim % heads:
            raise ArgumentError(f"{dim} channels cannot be split into {heads} heads.")
        TokenPool(pool_type)  # or an error
        self.pool_type, self.num_heads = pool_type, heads
        self.feat_size = to_pair(feat_size)
        self.qkv = nn.Linear(in_features, 3 * dim, bias=qkv_bias)
        self.drop = nn.Dropout(drop_rate)
        self.out_features = dim if out_features == 0 else out_features or in_features
        last = out_features != 0
        self.proj = nn.Linear(dim, self.out_features) if last else nn.Identity()
        count = self.feat_size[0] * self.feat_size[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(count, in_features))
        for weight in (self.qkv.weight, self.pos_embed):
            nn.init.trunc_normal_(weight, std=in_features**-0.5)
        if qkv_bias:
            nn.init.zeros_(self.qkv.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((x.mean(1, keepdim=True), x), 1)
        x = x + resample_positions(
            self.pos_embed[None], (height, width), old=self.feat_size, prefix=1
        )
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        if self.pool_type:
            return self.proj(self.drop(y[:, 0]))
        y = self.proj(self.drop(y[:, 1:]))
        return y.transpose(1, 2).unflatten(2, (height, width))
