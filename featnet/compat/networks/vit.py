"""The vision transformer, built with timm's arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...errors import ArgumentError
from ...layers import Tokens
from ...layers.patch_embed import PatchEmbed
from ...models import vit
from ...models._vit_blocks import ViTSettings
from .stand_in import StandIn


class _TokenEmbed(PatchEmbed):
    """Patches to tokens: (N, C, H, W) -> (N, L, D)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).flatten(1, 2)


def _timms_block(
    block: Callable[..., nn.Module], dim: int, *, settings: ViTSettings, drop_path: float
) -> nn.Module:
    """Build a block of one's own with timm's arguments."""
    return block(
        dim,
        num_heads=settings.num_heads,
        mlp_ratio=settings.mlp_ratio,
        qkv_bias=settings.qkv_bias,
        qk_norm=settings.qk_norm,
        proj_drop=settings.proj_drop,
        attn_drop=settings.attn_drop,
        init_values=settings.init_values,
        drop_path=drop_path,
        act_layer=settings.act,
        norm_layer=settings.norm,
    )


class VisionTransformer(vit.VisionTransformer, metaclass=StandIn):
    """:class:`featnet.models.vit.VisionTransformer`, built with timm's arguments.

    Without ``dynamic_img_size`` its ``patch_embed`` gives tokens (N, L, D), as timm's does, and
    other sizes than ``img_size`` are refused.

    Args:
        img_size, patch_size, in_chans, num_classes, global_pool, embed_dim, depth, num_heads: these
            may be positional, as in timm.
        dynamic_img_size: take any size of whole patches; ``patch_embed`` then gives (N, h, w, D).
        weight_init: accepted as ``""``.
        block_fn: featnet's, or a class with the arguments of timm's ``Block``.
        **kwargs: as in featnet.

    Raises:
        ArgumentError: another ``weight_init``.
    """

    stands_in = True

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        *,
        dynamic_img_size: bool = False,
        weight_init: str = "",
        **kwargs: Any,
    ) -> None:
        if weight_init:
            raise ArgumentError(f"weight_init={weight_init!r}: only '', the default, is here.")
        named = {name: value for name, value in kwargs.items() if value is not None}
        named.setdefault("embed_layer", PatchEmbed if dynamic_img_size else _TokenEmbed)
        block = named.get("block_fn")
        if block is not None and "settings" not in inspect.signature(block).parameters:
            named["block_fn"] = functools.partial(_timms_block, block)
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            dynamic_img_size=dynamic_img_size,
            **named,
        )
        self.dynamic_img_size, self.grad_checkpointing = dynamic_img_size, False

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        """Put the tokens before those of the patches, and add the positions."""
        grid = self.patch_embed.grid_size if x.ndim == 3 else (x.shape[1], x.shape[2])
        x = x if x.ndim == 3 else x.flatten(1, 2)
        positions = self.positions(grid)
        before = [token.expand(x.shape[0], -1, -1) for token in self.prefix()]
        if positions is not None and self.no_embed_class:
            x = x + positions
        x = torch.cat((*before, x), 1) if before else x
        if positions is not None and not self.no_embed_class:
            x = x + positions
        return self.pos_drop(x)

    def embed(self, x: torch.Tensor) -> Tokens:
        self.check_strict(x)
        y = self.patch_embed(x)
        grid = self.patch_embed.grid_size if y.ndim == 3 else (y.shape[1], y.shape[2])
        y = self.norm_pre(self.patch_drop(self._pos_embed(y)))
        return Tokens(y, grid, self.num_prefix_tokens)
