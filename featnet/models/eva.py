"""EVA and the networks that grew from it: vision transformers with rotary position embeddings.

Papers: EVA (https://arxiv.org/abs/2211.07636), EVA-02 (https://arxiv.org/abs/2303.11331), EVA-CLIP
(https://arxiv.org/abs/2303.15389); RoPE-ViT (https://arxiv.org/abs/2403.13298); Perception Encoder
(https://arxiv.org/abs/2504.13181); DINOv3 (https://arxiv.org/abs/2508.10104); LingBot-Vision
(https://arxiv.org/abs/2607.05247); Sapiens2 (https://arxiv.org/abs/2604.21681). Those with rotary
embeddings, registers and average pooling (rope_reg_gap) are timm's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError
from ..layers import (
    Attention,
    Augment,
    Blocks,
    CentredRotaryEmbedding,
    DropPath,
    GluMlp,
    LatentPool,
    Layer,
    MixedRotaryEmbedding,
    Mlp,
    PatchDropout,
    PatchEmbed,
    RotaryEmbedding,
    Size,
    SwiGlu,
    TokenHead,
    Tokens,
    add_qv_bias,
    drop_path_rates,
    get_norm,
    head_width,
    init_tokens,
    initialize,
    scale_with_depth,
    split_heads,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, check_arguments, weights_table
from ._eva_keys import convert_eva
from .vit import VisionTransformer


class KeylessAttention(Attention):
    """Attention whose keys have no bias: it would add the same to all that a query sees."""

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None

    def add_projections(self, dim: int, width: int, *, bias: bool) -> None:
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.qkv = nn.Linear(dim, 3 * width, bias=False)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        qkv = add_qv_bias(self.qkv(x), self.q_bias, self.v_bias)
        return split_heads(qkv, 3, self.num_heads)


class SplitAttention(Attention):
    """Attention with a projection each for queries, keys and values.

    Args:
        kv_heads: number of heads of keys and values, each shared by as many heads of queries
            (https://arxiv.org/abs/2305.13245).
        key_bias: the keys have one, where ``qkv_bias``.

    The other arguments are :class:`featnet.layers.Attention`'s.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kv_heads: int | None = None,
        key_bias: bool = True,
        qkv_bias: bool = True,
        qk_norm: Layer | None = None,
        scale_norm: Layer | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        # plain values, which add_projections reads
        self.kv_heads, self.key_bias = kv_heads or num_heads, key_bias
        if num_heads % self.kv_heads:
            raise ArgumentError(f"{self.kv_heads} kv_heads cannot be shared by {num_heads} heads.")
        super().__init__(
            dim,
            num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_norm,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )

    def add_projections(self, dim: int, width: int, *, bias: bool) -> None:
        shared = width // self.num_heads * self.kv_heads
        self.q_proj = nn.Linear(dim, width, bias=bias)
        self.k_proj = nn.Linear(dim, shared, bias=bias and self.key_bias)
        self.v_proj = nn.Linear(dim, shared, bias=bias)

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (q,) = split_heads(self.q_proj(x), 1, self.num_heads)
        (k,), (v,) = (split_heads(f(x), 1, self.kv_heads) for f in (self.k_proj, self.v_proj))
        if self.kv_heads < self.num_heads:
            times = self.num_heads // self.kv_heads
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        return q, k, v


class Block(nn.Module):
    """Attention, then an MLP, each behind a norm and beside a shortcut.

    Args:
        attn, mlp: the two branches.
        norm: ``f(channels)``.
        init_values: first scale of each branch (gamma), learnt from there; None for no
            scale.
    """

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        *,
        attn: nn.Module,
        mlp: nn.Module,
        norm: Layer,
        init_values: tuple[float | None, float | None],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = norm(dim)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path)
        self.gamma_1, self.gamma_2 = (
            None if value is None else nn.Parameter(torch.full((dim,), float(value)))
            for value in init_values
        )

    def forward(self, x: torch.Tensor, **context: Any) -> torch.Tensor:
        """(N, L, C) -> (N, L, C); attention is given the ``context``."""
        y = self.attn(self.norm1(x), **context)
        x = x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)


class PostNormBlock(nn.Module):
    """The norms at the end of the branches, which have no scales then."""

    def __init__(
        self,
        dim: int,
        *,
        attn: nn.Module,
        mlp: nn.Module,
        norm: Layer,
        init_values: tuple[float | None, float | None],
        drop_path: float,
    ) -> None:
        super().__init__()
        if init_values != (None, None):
            raise ArgumentError(f"init_values={init_values}: this block has no scales.")
        self.attn = attn
        self.norm1 = norm(dim)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = mlp
        self.norm2 = norm(dim)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor, **context: Any) -> torch.Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, **context)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


def packed_swiglu(dim: int, hidden: int, *, drop: float) -> nn.Module:
    """A gated MLP with one projection for gate and values."""
    return GluMlp(dim, 2 * hidden, act=nn.SiLU, gate_last=False, drop=drop)


@dataclasses.dataclass(frozen=True)
class Rope:
    """A network's rotary embedding.

    Attributes:
        kind: ``index`` counts patches, ``centred`` goes from -1 to 1 over any map (DINOv3's),
            ``mixed`` learns how far each channel turns.

    The others are those of :class:`featnet.layers.RotaryEmbedding`.
    """

    kind: str = "index"
    temperature: float = 10000.0
    rotate_half: bool = False
    indexing: str = "ij"
    offset: float = 0.0
    reference: Size | None = None
    augment: Augment = Augment()

    def build(self, head_dim: int, *, heads: int, depth: int) -> RotaryEmbedding:
        """The embedding, for ``depth`` blocks.

        Raises:
            ArgumentError: an unknown ``kind``, or what it does not have.
        """
        common: dict[str, Any] = {
            "temperature": self.temperature,
            "indexing": self.indexing,
            "augment": self.augment,
        }
        if self.kind == "mixed":
            if (self.rotate_half, self.offset, self.reference) != (False, 0.0, None):
                raise ArgumentError(f"{self}: mixed has no rotate_half, offset or reference.")
            return MixedRotaryEmbedding(head_dim, heads=heads, depth=depth, **common)
        common.update(rotate_half=self.rotate_half, offset=self.offset)
        if self.kind == "centred" and self.reference is None:
            return CentredRotaryEmbedding(head_dim, **common)
        if self.kind != "index":
            raise ArgumentError(f"{self}: kind is index, centred (without reference) or mixed.")
        return RotaryEmbedding(head_dim, reference=self.reference, **common)


class Eva(VisionTransformer):
    """A vision transformer with learnt positions, rotary embeddings, or both.

    Args:
        num_reg_tokens: number of registers behind the class token.
        num_kv_heads: heads of keys and values, of all blocks or of each one; where they are fewer
            ``attn_layer`` must take ``kv_heads``.
        init_values: first values of the branches' scales; None for no scales.
        attn_only_layer_scale: the MLPs' branches have none.
        abs_pos_embed: add learnt positions.
        rope: rotary embedding of queries and keys; None for none.
        final_norm, fc_norm: a norm at the end, and whether it is behind the pooling, by default
            with ``avg``.
        attn_pool_num_heads, attn_pool_mlp_ratio: of the pooling by attention, ``map``; by default
            the blocks'.
        head_init_scale: factor on the classifier's first weights.
        attn_layer: ``f(dim, heads, qkv_bias=..., attn_drop=..., proj_drop=...)``.
        mlp_layer: ``f(dim, hidden, drop=...)``.
        block_fn: :class:`Block`, or of its arguments.

    The other arguments are :class:`featnet.models.vit.VisionTransformer`'s.
    """

    def __init__(
        self,
        *,
        img_size: int | Size = 224,
        patch_size: int | Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_kv_heads: int | Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        attn_only_layer_scale: bool = False,
        class_token: bool = True,
        num_reg_tokens: int = 0,
        no_embed_class: bool = False,
        abs_pos_embed: bool = True,
        rope: Rope | None = None,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        attn_pool_num_heads: int | None = None,
        attn_pool_mlp_ratio: float | None = None,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        dense_norm: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 0.001,
        norm_layer: str | Layer = "layernorm",
        attn_layer: Layer = KeylessAttention,
        mlp_layer: Layer = Mlp,
        block_fn: Layer = Block,
    ) -> None:
        Backbone.__init__(self, in_chans=in_chans)  # the parts of a ViT, put together otherwise
        norm = get_norm(norm_layer)
        self.strict, self.dense_norm = not dynamic_img_size, dense_norm
        self.has_class_token, self.num_reg_tokens = class_token, num_reg_tokens
        self.no_embed_class, self.abs_pos_embed = no_embed_class, abs_pos_embed
        self.patch_embed = PatchEmbed(
            patch_size,
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            bias=not pre_norm,
            pad=dynamic_img_pad,
        )
        self.add_tokens(embed_dim)
        self.pos_drop, self.patch_drop = nn.Dropout(pos_drop_rate), PatchDropout()
        width = head_width(embed_dim, num_heads)
        self.rope = rope.build(width, heads=num_heads, depth=depth) if rope else None
        self.norm_pre = norm(embed_dim) if pre_norm else nn.Identity()
        attn = partial(
            attn_layer,
            embed_dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop_rate,
            proj_drop=proj_drop_rate,
        )
        mlp = partial(mlp_layer, embed_dim, int(embed_dim * mlp_ratio), drop=proj_drop_rate)
        scales = (init_values, None if attn_only_layer_scale else init_values)
        block = partial(block_fn, embed_dim, norm=norm, init_values=scales)
        self.blocks = Blocks()
        for i, (rate, heads) in enumerate(
            zip(drop_path_rates(drop_path_rate, depth), for_each(num_kv_heads, depth), strict=True)
        ):
            fewer = {} if heads in (None, num_heads) else {"kv_heads": heads}
            check_arguments(attn_layer, fewer, what="num_kv_heads")
            one = attn(**fewer)
            self.add_stage(
                f"blocks.{i}",
                block(attn=one, mlp=mlp(), drop_path=rate),
                channels=embed_dim,
                reduction=self.patch_embed.reduction,
            )
        after = global_pool == "avg" if fc_norm is None else fc_norm
        self.norm = norm(embed_dim) if final_norm and not after else nn.Identity()
        self.attn_pool = None
        if global_pool == "map":
            ratio, heads = attn_pool_mlp_ratio or mlp_ratio, attn_pool_num_heads or num_heads
            self.attn_pool = LatentPool(embed_dim, heads, norm=norm, act=nn.GELU, mlp_ratio=ratio)
        self.fc_norm = norm(embed_dim) if final_norm and after else nn.Identity()
        head = TokenHead("fc_norm", class_token=class_token, map_over_prefix=True)
        self.add_head(
            embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=head,
        )
        self._init(head_init_scale)

    def _init(self, head_init_scale: float) -> None:
        """Truncated normals; what a block puts out is scaled down with its depth."""
        init_tokens(self.cls_token, self.reg_token, self.pos_embed)
        initialize(self, linear=[trunc_normal, zero_bias])
        scale_with_depth(self.blocks, "attn.proj.weight", "mlp.fc2.weight")
        if self.num_classes:
            trunc_normal(self.head, std=0.02 * head_init_scale)

    def add_positions(self) -> None:
        self.pos_embed: nn.Parameter | None = None
        if self.abs_pos_embed:
            super().add_positions()

    def context(self, grid: Size, device: torch.device) -> Sequence[dict[str, Any]]:
        """Arguments of each block's attention (where it is there), for a grid of patches."""
        depth = len(list(self.blocks.children()))
        if self.rope is None:
            return [{}] * depth
        turns = self.rope(
            grid,
            prefix=self.num_prefix_tokens,
            depth=depth,
            device=device,
            density=self.patch_embed.dense,
        )
        return [{"turn": turn} for turn in turns]

    def forward_levels(self, x: torch.Tensor) -> Iterator[Tokens]:
        x, grid, prefix = self.embed(x)
        contexts = self.context(grid, x.device)
        for block, context in zip(self.blocks.children(), contexts, strict=True):
            x = self.blocks.run((partial(block, **context),), x)
            yield Tokens(x, grid, prefix)  # (N, prefix + h * w, D)

    def no_weight_decay(self) -> set[str]:
        learnt = {"rope.freqs"} if isinstance(self.rope, MixedRotaryEmbedding) else set()
        return {"pos_embed", "cls_token", "reg_token", *learnt}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return convert_eva(state, self)


def for_each(value: int | Sequence[int] | None, depth: int) -> Sequence[int | None]:
    """One value for each block.

    Raises:
        ArgumentError: another number of them.
    """
    values = [value] * depth if value is None or isinstance(value, int) else list(value)
    if len(values) != depth:
        raise ArgumentError(f"num_kv_heads has {len(values)} entries for {depth} blocks.")
    return values


LAYER_NORM_5: Layer = partial(nn.LayerNorm, eps=1e-5)
LAYER_NORM_6: Layer = partial(nn.LayerNorm, eps=1e-6)
RMS_NORM_6: Layer = partial(nn.RMSNorm, eps=1e-6)
SPLIT: Layer = partial(SplitAttention, key_bias=False)
SPLIT_NORMED: Layer = partial(SPLIT, scale_norm=LAYER_NORM_6)
SWIGLU_8: Layer = partial(SwiGlu, align_to=8)

TINY: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE: dict[str, Any] = {"embed_dim": 1280, "depth": 32}
GIANT: dict[str, Any] = {"embed_dim": 1536, "depth": 40, "num_heads": 24}
EVA_GIANT: dict[str, Any] = {
    "patch_size": 14,
    "embed_dim": 1408,
    "depth": 40,
    "num_heads": 16,
    "mlp_ratio": 6144 / 1408,
}
EVA02_SMALL: dict[str, Any] = {
    "patch_size": 14,
    "mlp_ratio": 8 / 3,
    "mlp_layer": packed_swiglu,
    "rope": Rope(reference=(16, 16)),
}
EVA02: dict[str, Any] = {
    "mlp_ratio": 8 / 3,
    "attn_layer": SPLIT,
    "mlp_layer": partial(SwiGlu, norm=LAYER_NORM_6),
    "rope": Rope(reference=(16, 16)),
}
EVA02_CLIP: dict[str, Any] = {**EVA02, "attn_layer": SPLIT_NORMED, "global_pool": "token"}
ROPE_GAP: dict[str, Any] = {
    "img_size": 256,
    "init_values": 1e-05,
    "class_token": False,
    "abs_pos_embed": False,
    "rope": Rope(reference=(16, 16)),
}
ROPE_VIT: dict[str, Any] = {
    "attn_layer": Attention,
    "init_values": 1e-05,
    "global_pool": "token",
    "abs_pos_embed": False,
    "rope": Rope(temperature=100, indexing="xy"),
}
ROPE_APE: dict[str, Any] = {**ROPE_VIT, "abs_pos_embed": True, "no_embed_class": True}
MIXED: dict[str, Any] = {**ROPE_VIT, "rope": Rope("mixed", temperature=10, indexing="xy")}
MIXED_APE: dict[str, Any] = {**MIXED, "abs_pos_embed": True, "no_embed_class": True}
DINOV3: dict[str, Any] = {
    "init_values": 1e-05,
    "abs_pos_embed": False,
    "num_reg_tokens": 4,
    "fc_norm": False,
    "rope": Rope("centred", temperature=100, rotate_half=True),
    "norm_layer": LAYER_NORM_5,
    "dense_norm": True,
}
LINGBOT: dict[str, Any] = {**DINOV3, "global_pool": "token"}
SAPIENS2: dict[str, Any] = {
    "img_size": (1024, 768),
    "init_values": 1.0,
    "attn_only_layer_scale": True,
    "abs_pos_embed": False,
    "num_reg_tokens": 8,
    "global_pool": "token",
    "rope": Rope("centred", temperature=100, rotate_half=True, augment=Augment(rescale=2.0)),
    "attn_layer": partial(SplitAttention, qk_norm=RMS_NORM_6),
    "mlp_layer": packed_swiglu,
    "norm_layer": RMS_NORM_6,
    "dense_norm": True,
}
PE: dict[str, Any] = {"attn_layer": Attention, "pre_norm": True, "norm_layer": LAYER_NORM_5}
PE_GIGANTIC: dict[str, Any] = {
    **PE,
    "patch_size": 14,
    "embed_dim": 1536,
    "depth": 50,
    "num_heads": 16,
    "mlp_ratio": 8960 / 1536,
    "class_token": False,
    "rope": Rope(indexing="xy", reference=(32, 32)),
}
PE_CORE: dict[str, Any] = {
    **PE,
    "global_pool": "map",
    "attn_pool_num_heads": 8,
    "attn_pool_mlp_ratio": 4.0,
    "rope": Rope(indexing="xy", offset=1.0, reference=(24, 24)),
}
PE_SPATIAL: dict[str, Any] = {
    **PE,
    "final_norm": False,
    "rope": Rope(indexing="xy", offset=1.0, reference=(32, 32)),
}
PE_LANG: dict[str, Any] = {**PE_SPATIAL, "init_values": 0.1}


def shared_in_the_middle(heads: int, depth: int, *, first: int = 8, last: int = 8) -> list[int]:
    """Heads of keys and values: half as many in all but the first and last blocks."""
    return [heads] * first + [heads // 2] * (depth - first - last) + [heads] * last


VARIANTS: dict[str, Any] = {
    "eva02_base_patch14_224": dict(**EVA02, patch_size=14),
    "eva02_base_patch14_448": dict(**EVA02, img_size=448, patch_size=14),
    "eva02_base_patch16_clip_224": dict(**EVA02_CLIP),
    "eva02_enormous_patch14_clip_224": dict(
        patch_size=14,
        embed_dim=1792,
        depth=64,
        num_heads=16,
        mlp_ratio=15360 / 1792,
        global_pool="token",
        block_fn=PostNormBlock,
    ),
    "eva02_large_patch14_224": dict(**LARGE, **EVA02, patch_size=14),
    "eva02_large_patch14_448": dict(**LARGE, **EVA02, img_size=448, patch_size=14),
    "eva02_large_patch14_clip_224": dict(**LARGE, **EVA02_CLIP, patch_size=14),
    "eva02_large_patch14_clip_336": dict(**LARGE, **EVA02_CLIP, img_size=336, patch_size=14),
    "eva02_small_patch14_224": dict(**SMALL, **EVA02_SMALL),
    "eva02_small_patch14_336": dict(**SMALL, **EVA02_SMALL, img_size=336),
    "eva02_tiny_patch14_224": dict(**TINY, **EVA02_SMALL),
    "eva02_tiny_patch14_336": dict(**TINY, **EVA02_SMALL, img_size=336),
    "eva_giant_patch14_224": dict(**EVA_GIANT),
    "eva_giant_patch14_336": dict(**EVA_GIANT),
    "eva_giant_patch14_560": dict(**EVA_GIANT),
    "eva_giant_patch14_clip_224": dict(**EVA_GIANT, global_pool="token"),
    "vit_5b_patch16_sapiens2": dict(
        **SAPIENS2,
        embed_dim=2432,
        depth=56,
        num_heads=32,
        num_kv_heads=shared_in_the_middle(32, 56),
    ),
    "vit_7b_patch16_dinov3": dict(
        **DINOV3,
        embed_dim=4096,
        depth=40,
        num_heads=32,
        mlp_ratio=2,
        qkv_bias=False,
        mlp_layer=partial(SwiGlu, align_to=64),
    ),
    "vit_base_patch16_dinov3": dict(**DINOV3, qkv_bias=False),
    "vit_base_patch16_dinov3_qkvb": dict(**DINOV3),
    "vit_base_patch16_lingbot": dict(**LINGBOT),
    "vit_base_patch16_rope_224": dict(**ROPE_VIT),
    "vit_base_patch16_rope_ape_224": dict(**ROPE_APE),
    "vit_base_patch16_rope_mixed_224": dict(**MIXED),
    "vit_base_patch16_rope_mixed_ape_224": dict(**MIXED_APE),
    "vit_base_patch16_rope_reg1_gap_256": dict(**ROPE_GAP, num_reg_tokens=1),
    "vit_base_patch16_sapiens2": dict(**SAPIENS2),
    "vit_betwixt_patch16_rope_reg4_gap_256": dict(
        **ROPE_GAP, embed_dim=640, num_heads=10, num_reg_tokens=4
    ),
    "vit_giant_patch16_lingbot": dict(
        **GIANT, **LINGBOT, mlp_ratio=8 / 3, qkv_bias=False, mlp_layer=SWIGLU_8
    ),
    "vit_giant_patch16_sapiens2": dict(
        **GIANT, **SAPIENS2, num_kv_heads=shared_in_the_middle(24, 40)
    ),
    "vit_huge_patch16_sapiens2": dict(
        **HUGE, **SAPIENS2, num_heads=16, num_kv_heads=shared_in_the_middle(16, 32)
    ),
    "vit_huge_plus_patch16_dinov3": dict(
        **HUGE, **DINOV3, num_heads=20, qkv_bias=False, mlp_layer=SWIGLU_8
    ),
    "vit_huge_plus_patch16_dinov3_qkvb": dict(**HUGE, **DINOV3, num_heads=20, mlp_layer=SWIGLU_8),
    "vit_large_patch16_dinov3": dict(**LARGE, **DINOV3, qkv_bias=False),
    "vit_large_patch16_dinov3_qkvb": dict(**LARGE, **DINOV3),
    "vit_large_patch16_lingbot": dict(**LARGE, **LINGBOT),
    "vit_large_patch16_rope_224": dict(**LARGE, **ROPE_VIT),
    "vit_large_patch16_rope_ape_224": dict(**LARGE, **ROPE_APE),
    "vit_large_patch16_rope_mixed_224": dict(**LARGE, **MIXED),
    "vit_large_patch16_rope_mixed_ape_224": dict(**LARGE, **MIXED_APE),
    "vit_large_patch16_sapiens2": dict(
        **LARGE, **SAPIENS2, num_kv_heads=shared_in_the_middle(16, 24)
    ),
    "vit_medium_patch16_rope_reg1_gap_256": dict(
        **ROPE_GAP, embed_dim=512, num_heads=8, num_reg_tokens=1
    ),
    "vit_mediumd_patch16_rope_reg1_gap_256": dict(
        **ROPE_GAP, embed_dim=512, depth=20, num_heads=8, num_reg_tokens=1, qkv_bias=False
    ),
    "vit_pe_core_base_patch16_224": dict(
        **{**PE_CORE, "rope": Rope(indexing="xy", offset=1.0, reference=(14, 14))}
    ),
    "vit_pe_core_gigantic_patch14_448": dict(
        **PE_GIGANTIC, global_pool="map", attn_pool_num_heads=8, attn_pool_mlp_ratio=4.0
    ),
    "vit_pe_core_large_patch14_336": dict(**LARGE, **PE_CORE, patch_size=14),
    "vit_pe_core_small_patch16_384": dict(**SMALL, **PE_CORE),
    "vit_pe_core_tiny_patch16_384": dict(**TINY, **PE_CORE),
    "vit_pe_lang_gigantic_patch14_448": dict(
        **{**PE_GIGANTIC, "depth": 47}, init_values=0.1, final_norm=False
    ),
    "vit_pe_lang_large_patch14_448": dict(
        **PE_LANG, patch_size=14, embed_dim=1024, depth=23, num_heads=16
    ),
    "vit_pe_spatial_base_patch16_512": dict(**PE_SPATIAL),
    "vit_pe_spatial_gigantic_patch14_448": dict(**PE_GIGANTIC, init_values=0.1, final_norm=False),
    "vit_pe_spatial_large_patch14_448": dict(**LARGE, **PE_SPATIAL, patch_size=14),
    "vit_pe_spatial_small_patch16_512": dict(**SMALL, **PE_SPATIAL),
    "vit_pe_spatial_tiny_patch16_512": dict(**TINY, **PE_SPATIAL),
    "vit_small_patch16_dinov3": dict(**SMALL, **DINOV3, qkv_bias=False),
    "vit_small_patch16_dinov3_qkvb": dict(**SMALL, **DINOV3),
    "vit_small_patch16_lingbot": dict(**SMALL, **LINGBOT),
    "vit_small_patch16_rope_224": dict(**SMALL, **ROPE_VIT),
    "vit_small_patch16_rope_ape_224": dict(**SMALL, **ROPE_APE),
    "vit_small_patch16_rope_mixed_224": dict(**SMALL, **MIXED),
    "vit_small_patch16_rope_mixed_ape_224": dict(**SMALL, **MIXED_APE),
    "vit_small_plus_patch16_dinov3": dict(**SMALL, **DINOV3, qkv_bias=False, mlp_layer=SWIGLU_8),
    "vit_small_plus_patch16_dinov3_qkvb": dict(**SMALL, **DINOV3, mlp_layer=SWIGLU_8),
    "vit_tiny_patch16_dinov3_qkvb": dict(**TINY, **DINOV3),
}

FAMILY = Family(model=Eva, variants=VARIANTS, weights=weights_table("eva"))
