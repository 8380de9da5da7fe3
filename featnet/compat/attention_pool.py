"""Pooling by attention, with timm's constructors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import ArgumentError, check_choice
from ..layers import TokenPool
from ..layers.patch_embed import to_pair
from ..layers.positions import resample_positions
from ..layers.rotary import CentredRotaryEmbedding, RotaryEmbedding
from ..size import Size


class _AttentionPool(nn.Module):
    """A token attends to all positions of a map; a subclass says where these are."""

    cls_token: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int | None,
        width: tuple[int | None, int, int | None],  # embed_dim, head_dim, num_heads
        qkv: tuple[bool, bool],  # biases, three layers
        pool_type: str,
        class_token: bool,
        drop_rate: float,
    ) -> None:
        super().__init__()
        dim = width[0] or in_features
        heads = width[2] or dim // width[1]
        if not heads or dim % heads:
            raise ArgumentError(f"{dim} channels cannot be split into {heads} heads.")
        TokenPool(pool_type)  # or an error
        self.pool_type, self.in_features, self.embed_dim = pool_type, in_features, dim
        self.num_heads, self.head_dim = heads, dim // heads
        if class_token and dim != in_features:
            raise ArgumentError(
                f"class_token=True with embed_dim={dim}: the token is one of the map's, so it must "
                f"be in_features={in_features}."
            )
        token = nn.Parameter(torch.zeros(1, in_features)) if class_token else None
        self.register_parameter("cls_token", token)
        bias, separate = qkv
        if separate:
            self.q, self.k, self.v = (nn.Linear(in_features, dim, bias=bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(in_features, 3 * dim, bias=bias)
        self.separate = separate
        self.drop = nn.Dropout(drop_rate)
        self.out_features = dim if out_features == 0 else out_features or in_features
        self.proj = nn.Identity() if out_features == 0 else nn.Linear(dim, self.out_features)

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Truncated normals by fan-in; ``zero_init_last`` is accepted and changes nothing."""
        for layer in (self.q, self.k, self.v) if self.separate else (self.qkv,):
            nn.init.trunc_normal_(layer.weight, std=self.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool a map; ``pre_logits`` leaves out the last layer."""
        size = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        own = x.mean(1, keepdim=True)
        first = own if self.cls_token is None else self.cls_token.expand_as(own)
        x = self.placed(torch.cat((first, x), 1), size)
        layers = (self.q, self.k, self.v) if self.separate else (self.qkv,)
        parts = [part for layer in layers for part in layer(x).chunk(4 - len(layers), -1)]
        q, k, v = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in parts)
        q, k = self.turned(q, k, size)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        y = y[:, 0] if self.pool_type else y[:, 1:]
        y = self.drop(y)
        y = y if pre_logits else self.proj(y)
        return y if self.pool_type else y.transpose(1, 2).unflatten(2, size)

    def placed(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        """Tokens (N, 1 + h * w, C), with positions added where that is the way."""
        return x

    def turned(
        self, q: torch.Tensor, k: torch.Tensor, size: Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys (N, heads, 1 + h * w, D), turned where that is the way."""
        return q, k


class AttentionPool2d(_AttentionPool):
    """The map's mean attends to the map, as in CLIP; (N, C, H, W) -> (N, D).

    Args:
        in_features: channels of the map.
        feat_size: (height, width) that positions are made for; others are interpolated.
        out_features: of the output; 0 leaves out the last layer, None is ``in_features``.
        embed_dim: width of the attention, by default ``in_features``.
        head_dim: channels of a head.
        num_heads: in place of ``head_dim``.
        qkv_bias: biases of the first layer.
        qkv_separate: a layer each for queries, keys and values.
        pool_type: ``"token"``, or ``""`` for a map (N, D, H, W).
        class_token: a learned token attends, in the place of the mean.
        drop_rate: dropout of the output.

    Raises:
        ArgumentError: another ``pool_type``, or widths that heads do not divide.
    """

    def __init__(
        self,
        in_features: int,
        feat_size: int | Size = 7,
        out_features: int | None = None,
        embed_dim: int | None = None,
        head_dim: int = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        qkv_separate: bool = False,
        pool_type: str = "token",
        class_token: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        width, qkv = (embed_dim, head_dim, num_heads), (qkv_bias, qkv_separate)
        super().__init__(in_features, out_features, width, qkv, pool_type, class_token, drop_rate)
        self.feat_size = to_pair(feat_size)
        count = self.feat_size[0] * self.feat_size[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(count, in_features))
        self.init_weights()

    def init_weights(self, zero_init_last: bool = False) -> None:
        """Truncated normals by fan-in; ``zero_init_last`` is accepted and changes nothing."""
        super().init_weights()
        nn.init.trunc_normal_(self.pos_embed, std=self.in_features**-0.5)

    def placed(self, x: torch.Tensor, size: Size) -> torch.Tensor:
        return x + resample_positions(self.pos_embed[None], size, old=self.feat_size, prefix=1)


class RotAttentionPool2d(_AttentionPool):
    """The map's mean attends to the map, with rotary positions; (N, C, H, W) -> (N, D).

    Nothing of the positions is stored in a checkpoint. The first weights are torch's, as in timm,
    which calls ``init_weights`` only where a network of its own holds the pool.

    Args:
        in_features: channels of the map.
        out_features: of the output; 0 leaves out the last layer, None is ``in_features``.
        ref_feat_size: (height, width) of the map to whose coordinates others are stretched.
        embed_dim: width of the attention, by default ``in_features``.
        head_dim: channels of a head, a multiple of 4.
        num_heads: in place of ``head_dim``.
        qkv_bias: biases of the first layer.
        qkv_separate: a layer each for queries, keys and values.
        pool_type: ``"token"``, or ``""`` for a map (N, D, H, W).
        class_token: a learned token attends, in the place of the mean.
        drop_rate: dropout of the output.
        rope_type: ``"cat"`` or ``"base"``, which give the same numbers, or ``"dinov3"``, whose
            coordinates go from -1 to 1 in every map.

    Raises:
        ArgumentError: another ``pool_type`` or ``rope_type``, or widths that heads do not divide.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        ref_feat_size: int | Size = 7,
        embed_dim: int | None = None,
        head_dim: int = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        qkv_separate: bool = False,
        pool_type: str = "token",
        class_token: bool = False,
        drop_rate: float = 0.0,
        rope_type: str = "cat",
    ) -> None:
        check_choice("rope_type", rope_type, ("cat", "base", "dinov3"))
        width, qkv = (embed_dim, head_dim, num_heads), (qkv_bias, qkv_separate)
        super().__init__(in_features, out_features, width, qkv, pool_type, class_token, drop_rate)
        self.rope_type = rope_type
        reference = to_pair(ref_feat_size)
        self.pos_embed = (
            CentredRotaryEmbedding(self.head_dim, temperature=100.0)
            if rope_type == "dinov3"
            else RotaryEmbedding(self.head_dim, temperature=10000.0, reference=reference)
        )

    def turned(
        self, q: torch.Tensor, k: torch.Tensor, size: Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        (rotation,) = self.pos_embed(size, prefix=1, depth=1, device=q.device)
        return rotation.turn(q), rotation.turn(k)
