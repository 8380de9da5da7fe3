"""ViT: an image as a sequence of patches, through blocks of attention.

Papers: ViT (https://arxiv.org/abs/2010.11929), how to train it (AugReg,
https://arxiv.org/abs/2106.10270); DeiT with its distillation token
(https://arxiv.org/abs/2012.12877), DeiT III (https://arxiv.org/abs/2204.07118); MAE
(https://arxiv.org/abs/2111.06377), DINO (https://arxiv.org/abs/2104.14294), DINOv2
(https://arxiv.org/abs/2304.07193), registers (https://arxiv.org/abs/2309.16588), TIPS
(https://arxiv.org/abs/2410.16512), RADIO (https://arxiv.org/abs/2312.06709); CLIP
(https://arxiv.org/abs/2103.00020), SigLIP (https://arxiv.org/abs/2303.15343), AIMv2
(https://arxiv.org/abs/2411.14402), BEiT-3 (https://arxiv.org/abs/2208.10442); parallel blocks
(https://arxiv.org/abs/2203.09795, https://arxiv.org/abs/2302.05442), differential attention
(https://arxiv.org/abs/2410.05258), FlexiViT (https://arxiv.org/abs/2212.08013), SoViT
(https://arxiv.org/abs/2305.13035). The sizes between (betwixt, little, wee, ...) are timm's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import InputSizeError
from ..layers import (
    Attention,
    Blocks,
    DistilledHead,
    GluMlp,
    Head,
    LatentPool,
    Layer,
    Mlp,
    PatchDropout,
    PatchEmbed,
    SwiGlu,
    TokenHead,
    Tokens,
    check_multiple,
    drop_path_rates,
    get_act,
    get_norm,
    init_tokens,
    initialize,
    resample_grid,
    resample_positions,
    to_pair,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table
from ._vit_blocks import (
    Block,
    DiffAttention,
    Differential,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    ViTSettings,
)
from ._vit_keys import convert


class VisionTransformer(Backbone):
    """Patches, a class token and registers before them, positions, and equal blocks.

    Every block is a level. A grid other than ``img_size``'s takes the positions resampled; an
    output stride lets the patches overlap.

    Args:
        img_size: that positions are made for.
        patch_size: side of a patch, or (height, width).
        embed_dim, depth, num_heads: width, number of blocks, heads of each.
        mlp_ratio: hidden width of the MLPs, in widths.
        qkv_bias, proj_bias: of the projections into attention, and of all others in a block.
        qk_norm: norm queries and keys.
        scale_norm: norm what the heads and the MLP's hidden layer give.
        init_values: first value of the learnt scale of each branch; None for none.
        class_token: a token before the patches', which is pooled by ``global_pool="token"``.
        reg_tokens: number of registers behind it.
        no_embed_class: positions for the patches only.
        pre_norm: a norm before the blocks, in place of the patches' bias.
        final_norm: a norm after them.
        fc_norm: put it behind the pooling; by default where that is ``avg``, ``max`` or ``avgmax``.
        pool_include_prefix: pool over class token and registers too.
        dynamic_img_size: False refuses all sizes but ``img_size``.
        dynamic_img_pad: pad inputs to whole patches, instead of refusing them.
        dense_norm: its authors' dense features are under the final norm.
        global_pool: ``token``, ``avg``, ``max``, ``avgmax``, ``map`` (by attention) or ``""``.
        drop_rate, pos_drop_rate, proj_drop_rate, attn_drop_rate: dropout before the classifier, of
            the embedded patches, in the blocks' branches, of attention maps.
        patch_drop_rate: share of the patches that training leaves out; there are no maps then.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.
        embed_layer: ``f(patch_size, img_size=..., ...)``, as :class:`featnet.layers.PatchEmbed`.
        embed_norm_layer: norm of the embedded patches.
        block_fn: ``f(dim, settings=..., drop_path=...)``.
        attn_layer, mlp_layer: the blocks' parts, with the arguments of
            :class:`featnet.layers.Attention` and :class:`featnet.layers.Mlp`.

    The other arguments are every Backbone's.
    """

    first_conv: str | tuple[str, ...] = "patch_embed.proj"
    last_fc: str | tuple[str, ...] = "head"
    breaks_law = ("attention",)
    patch_embed: PatchEmbed
    cls_token: torch.Tensor | None
    reg_token: torch.Tensor | None
    pos_embed: torch.Tensor | None
    head: nn.Module

    def __init__(
        self,
        *,
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
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        pool_include_prefix: bool = False,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = False,
        dense_norm: bool = False,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        patch_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        embed_layer: Layer = PatchEmbed,
        embed_norm_layer: str | Layer | None = None,
        norm_layer: str | Layer = "layernorm",
        act_layer: str | Layer = "gelu",
        block_fn: Layer = Block,
        mlp_layer: Layer = Mlp,
        attn_layer: Layer = Attention,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm = get_norm(norm_layer)
        self.strict, self.dense_norm = not dynamic_img_size, dense_norm
        self.has_class_token, self.num_reg_tokens = class_token, reg_tokens
        self.no_embed_class = no_embed_class
        embed: Any = embed_layer(
            patch_size,
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            bias=not pre_norm,
            pad=dynamic_img_pad,
            norm=get_norm(embed_norm_layer) if embed_norm_layer else None,
        )
        self.patch_embed = embed
        self.first_conv = f"patch_embed.{self.patch_embed.first_conv}"
        self.add_tokens(embed_dim)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.patch_drop = PatchDropout(patch_drop_rate, prefix=self.num_prefix_tokens)
        self.norm_pre = norm(embed_dim) if pre_norm else nn.Identity()
        settings = ViTSettings(
            num_heads,
            norm=norm,
            act=get_act(act_layer),
            attn=attn_layer,
            mlp=mlp_layer,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_norm,
            proj_bias=proj_bias,
            init_values=init_values,
            proj_drop=proj_drop_rate,
            attn_drop=attn_drop_rate,
        )
        self.add_blocks(
            partial(block_fn, embed_dim, settings=settings), embed_dim, depth, drop_path_rate
        )
        after = global_pool in ("avg", "avgmax", "max") if fc_norm is None else fc_norm
        self.norm = norm(embed_dim) if final_norm and not after else nn.Identity()
        self.attn_pool: nn.Module | None = None
        if global_pool == "map":
            self.attn_pool = LatentPool(
                embed_dim, num_heads, mlp_ratio=mlp_ratio, norm=norm, act=settings.act
            )
        self.fc_norm = norm(embed_dim) if final_norm and after else nn.Identity()
        self.add_head(
            embed_dim,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=self.make_head(over_prefix=pool_include_prefix),
        )
        initialize(self, linear=[trunc_normal, zero_bias])
        for module in self.modules():
            if isinstance(module, (GluMlp, SwiGlu)):
                module.init_gate()

    def make_head(self, *, over_prefix: bool) -> Head:
        """Pooling of the tokens, and the norm behind it."""
        return TokenHead("fc_norm", class_token=self.has_class_token, over_prefix=over_prefix)

    def add_tokens(self, dim: int) -> None:
        """The tokens before the patches', and positions."""
        self.embed_dim = dim
        self.num_prefix_tokens = int(self.has_class_token) + self.num_reg_tokens
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if self.has_class_token else None
        registers = self.num_reg_tokens
        self.reg_token = nn.Parameter(torch.empty(1, registers, dim)) if registers else None
        init_tokens(self.cls_token, self.reg_token, std=1e-6)
        self.add_positions()

    def add_positions(self) -> None:
        """A position for each patch of ``img_size``, and for the tokens before them."""
        before = 0 if self.no_embed_class else self.num_prefix_tokens
        length = before + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.empty(1, length, self.embed_dim))
        init_tokens(self.pos_embed)

    def add_blocks(self, block: Layer, dim: int, depth: int, drop_path_rate: float) -> None:
        """``depth`` blocks, each a level."""
        self.blocks = Blocks()
        reduction = self.patch_embed.reduction
        for i, rate in enumerate(drop_path_rates(drop_path_rate, depth)):
            module = block(drop_path=rate)
            for part in module.modules():
                if isinstance(part, Differential):
                    part.set_depth(i)
            self.add_stage(f"blocks.{i}", module, channels=dim, reduction=reduction)

    # The forward --------------------------------------------------------------------------

    @property
    def img_size(self) -> tuple[int, int]:  # type: ignore[override]
        """(H, W) that positions are made for."""
        return self.patch_embed.img_size

    @property
    def size_divisibility(self) -> int:  # type: ignore[override]
        """The patches' stride."""
        return self.patch_embed.multiple

    @property
    def output_strides(self) -> list[int]:
        """The divisors of the patches; they overlap then."""
        return self.patch_embed.output_strides

    def positions(self, grid: tuple[int, int]) -> torch.Tensor | None:
        """(1, L, C) for a grid of patches, and the tokens before them where they have positions;
        None for a network without."""
        before = 0 if self.no_embed_class else self.num_prefix_tokens
        old = self.patch_embed.grid_size
        if self.pos_embed is None:
            return None
        return resample_positions(self.pos_embed, grid, old=old, prefix=before)

    def prefix(self) -> list[torch.Tensor]:
        """Tokens (1, n, C) that stand before the patches'."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def check_strict(self, x: torch.Tensor) -> None:
        """Refuse another size than ``img_size`` where that is the only one."""
        if self.strict and tuple(x.shape[2:]) != self.img_size:
            raise InputSizeError(
                f"With dynamic_img_size=False the input has size {self.img_size}, not "
                f"{tuple(x.shape[2:])}."
            )

    def embed(self, x: torch.Tensor) -> Tokens:
        """(N, C, H, W) -> what the blocks are given."""
        self.check_strict(x)
        x = self.patch_embed(x)  # (N, h, w, D)
        grid = (x.shape[1], x.shape[2])
        x, positions = x.flatten(1, 2), self.positions(grid)
        if positions is not None and self.no_embed_class:
            x = x + positions
        before = [token.expand(x.shape[0], -1, -1) for token in self.prefix()]
        x = torch.cat((*before, x), 1) if before else x
        if positions is not None and not self.no_embed_class:
            x = x + positions
        x = self.norm_pre(self.patch_drop(self.pos_drop(x)))
        return Tokens(x, grid, self.num_prefix_tokens)

    def forward_levels(self, x: torch.Tensor) -> Iterator[Tokens]:
        x, grid, prefix = self.embed(x)
        for x in self.through("blocks", x):
            yield Tokens(x, grid, prefix)  # (N, prefix + h * w, D)

    def finish(self, y: Tokens) -> torch.Tensor:
        return self.norm(y.x)

    def normalize(self, y: Tokens, index: int) -> Tokens:
        del index
        return y._replace(x=self.norm(y.x))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^cls_token|reg_token|dist_token|pos_embed|patch_embed|norm_pre",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "reg_token", "dist_token"}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return convert(state, self)

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the positions for a size once and for all; other sizes are taken still.

        Raises:
            InputSizeError: no whole number of patches.
        """
        embed, old = self.patch_embed, self.patch_embed.grid_size
        size = to_pair(img_size)
        check_multiple(*size, (embed.reduction, embed.reduction))
        embed.img_size = size
        if self.pos_embed is None or embed.grid_size == old:
            return
        table = self.pos_embed
        if table.ndim == 4:
            table = resample_grid(table, embed.grid_size)
        else:
            before = 0 if self.no_embed_class else self.num_prefix_tokens
            table = resample_positions(table, embed.grid_size, old=old, prefix=before)
        self.pos_embed = nn.Parameter(table.clone(), requires_grad=self.pos_embed.requires_grad)

    def get_intermediate_layers(
        self,
        x: torch.Tensor,
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool | None = None,
    ) -> list[Any]:
        """Levels as DINO's models give them: (N, L, C), or with ``reshape`` (N, C, h, w)."""
        return self.forward_intermediates(
            x,
            n,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
            return_prefix_tokens=return_prefix_tokens,
        )


class DistilledVisionTransformer(VisionTransformer):
    """With a second token, and a head of its own, that learns from a teacher.

    In training it gives both heads' logits while ``distilled_training`` is set, else their mean.
    """

    last_fc = ("head", "head_dist")
    distilled_training = False

    def add_tokens(self, dim: int) -> None:
        super().add_tokens(dim)
        self.num_prefix_tokens += 1
        self.add_positions()
        self.dist_token = nn.Parameter(torch.empty(1, 1, dim))
        init_tokens(self.dist_token)

    def prefix(self) -> list[torch.Tensor]:
        return [*super().prefix(), self.dist_token]

    def make_head(self, *, over_prefix: bool) -> Head:
        del over_prefix
        return DistilledHead()

    def set_distilled_training(self, enable: bool = True) -> None:
        """Let training give ``(logits, logits of the distillation head)``."""
        self.distilled_training = enable


LAYER_NORM_5: Layer = partial(nn.LayerNorm, eps=1e-5)
RMS_NORM_5: Layer = partial(nn.RMSNorm, eps=1e-5)
SWIGLU_PACKED: Layer = partial(GluMlp, act=nn.SiLU, gate_last=False)

TINY: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
MEDIUM: dict[str, Any] = {"embed_dim": 512, "num_heads": 8}
LARGE: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
GIANT: dict[str, Any] = {"embed_dim": 1408, "depth": 40, "num_heads": 16}
WEE: dict[str, Any] = {"embed_dim": 256, "depth": 14, "num_heads": 4, "mlp_ratio": 5}
PWEE: dict[str, Any] = {"embed_dim": 256, "depth": 16, "num_heads": 4, "mlp_ratio": 5}
LITTLE: dict[str, Any] = {"embed_dim": 320, "depth": 14, "num_heads": 5, "mlp_ratio": 5.6}
BETWIXT: dict[str, Any] = {"embed_dim": 640, "num_heads": 10}
PLUS: dict[str, Any] = {"embed_dim": 896, "num_heads": 14}
SO150M: dict[str, Any] = {"embed_dim": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2.572}
SO150M2: dict[str, Any] = {
    "embed_dim": 832,
    "depth": 21,
    "num_heads": 13,
    "mlp_ratio": 2.6153846153846154,
}
SO400M: dict[str, Any] = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
AIM: dict[str, Any] = {
    "class_token": False,
    "fc_norm": False,
    "global_pool": "avg",
    "qkv_bias": False,
    "proj_bias": False,
    "act_layer": "silu",
    "norm_layer": RMS_NORM_5,
    "embed_norm_layer": RMS_NORM_5,
    "mlp_layer": SwiGlu,
    "patch_size": 14,
}
BEIT3: dict[str, Any] = {"scale_norm": True, "global_pool": "avg", "norm_layer": LAYER_NORM_5}
XP: dict[str, Any] = {
    "pre_norm": True,
    "no_embed_class": True,
    "norm_layer": "rmsnorm",
    "block_fn": ParallelScalingBlock,
    "qkv_bias": False,
    "qk_norm": True,
}
REG_GAP: dict[str, Any] = {
    "class_token": False,
    "no_embed_class": True,
    "global_pool": "avg",
    "init_values": 1e-05,
}
CLIP: dict[str, Any] = {"pre_norm": True, "norm_layer": LAYER_NORM_5}
MAP: dict[str, Any] = {"class_token": False, "global_pool": "map"}
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
GIANT2: dict[str, Any] = {
    "embed_dim": 1536,
    "depth": 40,
    "num_heads": 24,
    "mlp_ratio": 5.33334,
    "mlp_layer": SWIGLU_PACKED,
    "act_layer": "silu",
}
DINO2: dict[str, Any] = {"patch_size": 14, "init_values": 1e-05, "dense_norm": True}
TIPS2: dict[str, Any] = {
    "patch_size": 14,
    "init_values": 1.0,
    "reg_tokens": 1,
    "no_embed_class": True,
    "dense_norm": True,
}
RADIO: dict[str, Any] = {"img_size": 512, "no_embed_class": True, "final_norm": False}
DEIT3: dict[str, Any] = {"no_embed_class": True, "init_values": 1e-06}

VARIANTS: dict[str, Any] = {
    "aimv2_1b_patch14_224": dict(**AIM, embed_dim=2048, depth=24, num_heads=16, mlp_ratio=2.75),
    "aimv2_1b_patch14_336": dict(**AIM, embed_dim=2048, depth=24, num_heads=16, mlp_ratio=2.75),
    "aimv2_1b_patch14_448": dict(**AIM, embed_dim=2048, depth=24, num_heads=16, mlp_ratio=2.75),
    "aimv2_3b_patch14_224": dict(**AIM, embed_dim=3072, depth=24, num_heads=24, mlp_ratio=2.6667),
    "aimv2_3b_patch14_336": dict(**AIM, embed_dim=3072, depth=24, num_heads=24, mlp_ratio=2.6667),
    "aimv2_3b_patch14_448": dict(**AIM, embed_dim=3072, depth=24, num_heads=24, mlp_ratio=2.6667),
    "aimv2_huge_patch14_224": dict(**AIM, embed_dim=1536, depth=24, mlp_ratio=2.6667),
    "aimv2_huge_patch14_336": dict(**AIM, embed_dim=1536, depth=24, mlp_ratio=2.6667),
    "aimv2_huge_patch14_448": dict(**AIM, embed_dim=1536, depth=24, mlp_ratio=2.6667),
    "aimv2_large_patch14_224": dict(**AIM, embed_dim=1024, depth=24, num_heads=8, mlp_ratio=2.75),
    "aimv2_large_patch14_336": dict(**AIM, embed_dim=1024, depth=24, num_heads=8, mlp_ratio=2.75),
    "aimv2_large_patch14_448": dict(**AIM, embed_dim=1024, depth=24, num_heads=8, mlp_ratio=2.75),
    "beit3_base_patch16_224": dict(**BEIT3),
    "beit3_giant_patch14_224": dict(**GIANT, **BEIT3, patch_size=14, mlp_ratio=4.3637),
    "beit3_giant_patch14_336": dict(
        **GIANT, **BEIT3, img_size=336, patch_size=14, mlp_ratio=4.3637
    ),
    "beit3_large_patch16_224": dict(**LARGE, **BEIT3),
    "eva_large_patch14_196": dict(**LARGE, patch_size=14, global_pool="avg"),
    "eva_large_patch14_336": dict(**LARGE, patch_size=14, global_pool="avg"),
    "flexivit_base": dict(no_embed_class=True),
    "flexivit_large": dict(**LARGE, no_embed_class=True),
    "flexivit_small": dict(**SMALL, no_embed_class=True),
    "test_vit": dict(embed_dim=64, depth=6, num_heads=2, mlp_ratio=3),
    "test_vit2": dict(
        embed_dim=64,
        depth=8,
        num_heads=2,
        mlp_ratio=3,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        init_values=1e-05,
    ),
    "test_vit3": dict(
        **MAP,
        embed_dim=96,
        depth=9,
        num_heads=3,
        mlp_ratio=2,
        reg_tokens=1,
        pool_include_prefix=True,
        init_values=1e-05,
    ),
    "test_vit4": dict(
        embed_dim=96,
        depth=9,
        num_heads=3,
        mlp_ratio=3,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        init_values=1e-05,
        norm_layer="rmsnorm",
    ),
    "vit_base_patch8_224": dict(patch_size=8),
    "vit_base_patch14_dinov2": dict(**DINO2),
    "vit_base_patch14_reg1_tipsv2": dict(**TIPS2),
    "vit_base_patch14_reg4_dinov2": dict(**DINO2, reg_tokens=4, no_embed_class=True),
    "vit_base_patch16_18x2_224": dict(depth=18, init_values=1e-05, block_fn=ParallelThingsBlock),
    "vit_base_patch16_224": dict(),
    "vit_base_patch16_224_miil": dict(qkv_bias=False),
    "vit_base_patch16_384": dict(),
    "vit_base_patch16_clip_224": dict(**CLIP),
    "vit_base_patch16_clip_384": dict(**CLIP),
    "vit_base_patch16_clip_quickgelu_224": dict(**CLIP, act_layer="quick_gelu"),
    "vit_base_patch16_gap_224": dict(**GAP, num_heads=16),
    "vit_base_patch16_plus_240": dict(**PLUS, init_values=1e-05),
    "vit_base_patch16_plus_clip_240": dict(**PLUS, **CLIP),
    "vit_base_patch16_radio_v3": dict(**RADIO, init_values=1e-05, reg_tokens=7),
    "vit_base_patch16_reg4_gap_256": dict(
        class_token=False, no_embed_class=True, global_pool="avg", reg_tokens=4
    ),
    "vit_base_patch16_rpn_224": dict(
        qkv_bias=False,
        init_values=1e-05,
        class_token=False,
        block_fn=ResPostBlock,
        global_pool="avg",
    ),
    "vit_base_patch16_siglip_224": dict(**MAP),
    "vit_base_patch16_siglip_256": dict(**MAP),
    "vit_base_patch16_siglip_384": dict(**MAP),
    "vit_base_patch16_siglip_512": dict(**MAP),
    "vit_base_patch16_siglip_gap_224": dict(**GAP),
    "vit_base_patch16_siglip_gap_256": dict(**GAP),
    "vit_base_patch16_siglip_gap_384": dict(**GAP),
    "vit_base_patch16_siglip_gap_512": dict(**GAP),
    "vit_base_patch16_xp_224": dict(**XP),
    "vit_base_patch32_224": dict(patch_size=32),
    "vit_base_patch32_384": dict(patch_size=32),
    "vit_base_patch32_clip_224": dict(**CLIP, patch_size=32),
    "vit_base_patch32_clip_256": dict(**CLIP, patch_size=32),
    "vit_base_patch32_clip_384": dict(**CLIP, patch_size=32),
    "vit_base_patch32_clip_448": dict(**CLIP, patch_size=32),
    "vit_base_patch32_clip_quickgelu_224": dict(**CLIP, patch_size=32, act_layer="quick_gelu"),
    "vit_base_patch32_plus_256": dict(**PLUS, patch_size=32, init_values=1e-05),
    "vit_base_patch32_siglip_256": dict(**MAP, patch_size=32, act_layer="gelu_tanh"),
    "vit_base_patch32_siglip_gap_256": dict(**GAP, patch_size=32, act_layer="gelu_tanh"),
    "vit_betwixt_patch16_gap_256": dict(**BETWIXT, **GAP, qkv_bias=False, init_values=1e-06),
    "vit_betwixt_patch16_reg1_gap_256": dict(**BETWIXT, **REG_GAP, reg_tokens=1),
    "vit_betwixt_patch16_reg4_gap_256": dict(**BETWIXT, **REG_GAP, reg_tokens=4),
    "vit_betwixt_patch16_reg4_gap_384": dict(**BETWIXT, **REG_GAP, reg_tokens=4),
    "vit_betwixt_patch32_clip_224": dict(**BETWIXT, **CLIP, patch_size=32),
    "vit_dlittle_patch16_reg1_gap_256": dict(
        **LITTLE, **REG_GAP, reg_tokens=1, attn_layer=DiffAttention
    ),
    "vit_dpwee_patch16_reg1_gap_256": dict(
        **PWEE, **REG_GAP, reg_tokens=1, block_fn=DiffParallelScalingBlock
    ),
    "vit_dwee_patch16_reg1_gap_256": dict(**WEE, **REG_GAP, reg_tokens=1, attn_layer=DiffAttention),
    "vit_giant_patch14_224": dict(**GIANT, patch_size=14, mlp_ratio=4.363636363636363),
    "vit_giant_patch14_clip_224": dict(**GIANT, **CLIP, patch_size=14, mlp_ratio=4.363636363636363),
    "vit_giant_patch14_dinov2": dict(**GIANT2, **DINO2),
    "vit_giant_patch14_reg1_tipsv2": dict(**GIANT2, **TIPS2),
    "vit_giant_patch14_reg4_dinov2": dict(**GIANT2, **DINO2, reg_tokens=4, no_embed_class=True),
    "vit_giant_patch16_gap_224": dict(**GIANT, **GAP, mlp_ratio=4.363636363636363),
    "vit_giant_patch16_radio_v3": dict(
        **RADIO, embed_dim=1536, depth=40, num_heads=24, reg_tokens=7
    ),
    "vit_giantopt_patch16_siglip_256": dict(
        **MAP, embed_dim=1536, depth=40, num_heads=16, act_layer="gelu_tanh"
    ),
    "vit_giantopt_patch16_siglip_384": dict(
        **MAP, embed_dim=1536, depth=40, num_heads=16, act_layer="gelu_tanh"
    ),
    "vit_giantopt_patch16_siglip_gap_256": dict(
        **GAP, embed_dim=1536, depth=40, num_heads=16, act_layer="gelu_tanh"
    ),
    "vit_giantopt_patch16_siglip_gap_384": dict(
        **GAP, embed_dim=1536, depth=40, num_heads=16, act_layer="gelu_tanh"
    ),
    "vit_gigantic_patch14_224": dict(
        patch_size=14, embed_dim=1664, mlp_ratio=4.923076923076923, depth=48, num_heads=16
    ),
    "vit_gigantic_patch14_clip_224": dict(
        **CLIP, patch_size=14, embed_dim=1664, mlp_ratio=4.923076923076923, depth=48, num_heads=16
    ),
    "vit_gigantic_patch14_clip_378": dict(
        **CLIP, patch_size=14, embed_dim=1664, mlp_ratio=4.923076923076923, depth=48, num_heads=16
    ),
    "vit_gigantic_patch14_clip_quickgelu_224": dict(
        **CLIP,
        patch_size=14,
        embed_dim=1664,
        mlp_ratio=4.923076923076923,
        depth=48,
        num_heads=16,
        act_layer="quick_gelu",
    ),
    "vit_huge_patch14_224": dict(**HUGE, patch_size=14),
    "vit_huge_patch14_clip_224": dict(**HUGE, **CLIP, patch_size=14),
    "vit_huge_patch14_clip_336": dict(**HUGE, **CLIP, patch_size=14),
    "vit_huge_patch14_clip_378": dict(**HUGE, **CLIP, patch_size=14),
    "vit_huge_patch14_clip_quickgelu_224": dict(
        **HUGE, **CLIP, patch_size=14, act_layer="quick_gelu"
    ),
    "vit_huge_patch14_clip_quickgelu_378": dict(
        **HUGE, **CLIP, patch_size=14, act_layer="quick_gelu"
    ),
    "vit_huge_patch14_gap_224": dict(**HUGE, **GAP, patch_size=14),
    "vit_huge_patch14_xp_224": dict(**HUGE, **XP, patch_size=14),
    "vit_huge_patch16_gap_448": dict(**HUGE, **GAP),
    "vit_huge_patch16_radio_v3": dict(**HUGE, **RADIO, reg_tokens=7),
    "vit_huge_patch16_radio_v4": dict(**HUGE, **RADIO, reg_tokens=9),
    "vit_intern300m_patch14_448": dict(**LARGE, patch_size=14, init_values=0.1, final_norm=False),
    "vit_large_patch14_224": dict(**LARGE, patch_size=14),
    "vit_large_patch14_clip_224": dict(**LARGE, **CLIP, patch_size=14),
    "vit_large_patch14_clip_336": dict(**LARGE, **CLIP, patch_size=14),
    "vit_large_patch14_clip_quickgelu_224": dict(
        **LARGE, **CLIP, patch_size=14, act_layer="quick_gelu"
    ),
    "vit_large_patch14_clip_quickgelu_336": dict(
        **LARGE, **CLIP, patch_size=14, act_layer="quick_gelu"
    ),
    "vit_large_patch14_dinov2": dict(**LARGE, **DINO2),
    "vit_large_patch14_reg1_tipsv2": dict(**LARGE, **TIPS2),
    "vit_large_patch14_reg4_dinov2": dict(**LARGE, **DINO2, reg_tokens=4, no_embed_class=True),
    "vit_large_patch14_xp_224": dict(**LARGE, **XP, patch_size=14),
    "vit_large_patch16_224": dict(**LARGE),
    "vit_large_patch16_384": dict(**LARGE),
    "vit_large_patch16_radio_v3": dict(**LARGE, **RADIO, init_values=1e-05, reg_tokens=7),
    "vit_large_patch16_siglip_256": dict(**LARGE, **MAP),
    "vit_large_patch16_siglip_384": dict(**LARGE, **MAP),
    "vit_large_patch16_siglip_512": dict(**LARGE, **MAP, act_layer="gelu_tanh"),
    "vit_large_patch16_siglip_gap_256": dict(**LARGE, **GAP),
    "vit_large_patch16_siglip_gap_384": dict(**LARGE, **GAP),
    "vit_large_patch16_siglip_gap_512": dict(**LARGE, **GAP, act_layer="gelu_tanh"),
    "vit_large_patch32_224": dict(**LARGE, patch_size=32),
    "vit_large_patch32_384": dict(**LARGE, patch_size=32),
    "vit_little_patch16_reg1_gap_256": dict(**LITTLE, **REG_GAP, reg_tokens=1),
    "vit_little_patch16_reg4_gap_256": dict(**LITTLE, **REG_GAP, reg_tokens=4),
    "vit_medium_patch16_clip_224": dict(**MEDIUM, **CLIP),
    "vit_medium_patch16_gap_240": dict(**MEDIUM, **GAP, qkv_bias=False, init_values=1e-06),
    "vit_medium_patch16_gap_256": dict(**MEDIUM, **GAP, qkv_bias=False, init_values=1e-06),
    "vit_medium_patch16_gap_384": dict(**MEDIUM, **GAP, qkv_bias=False, init_values=1e-06),
    "vit_medium_patch16_reg1_gap_256": dict(**MEDIUM, **REG_GAP, reg_tokens=1),
    "vit_medium_patch16_reg4_gap_256": dict(**MEDIUM, **REG_GAP, reg_tokens=4),
    "vit_medium_patch32_clip_224": dict(**MEDIUM, **CLIP, patch_size=32),
    "vit_mediumd_patch16_reg4_gap_256": dict(**MEDIUM, **REG_GAP, depth=20, reg_tokens=4),
    "vit_mediumd_patch16_reg4_gap_384": dict(**MEDIUM, **REG_GAP, depth=20, reg_tokens=4),
    "vit_pwee_patch16_reg1_gap_256": dict(
        **PWEE, **REG_GAP, reg_tokens=1, block_fn=ParallelScalingBlock
    ),
    "vit_small_patch8_224": dict(**SMALL, patch_size=8),
    "vit_small_patch14_dinov2": dict(**SMALL, **DINO2),
    "vit_small_patch14_reg4_dinov2": dict(**SMALL, **DINO2, reg_tokens=4, no_embed_class=True),
    "vit_small_patch16_18x2_224": dict(
        **SMALL, depth=18, init_values=1e-05, block_fn=ParallelThingsBlock
    ),
    "vit_small_patch16_36x1_224": dict(**SMALL, depth=36, init_values=1e-05),
    "vit_small_patch16_224": dict(**SMALL),
    "vit_small_patch16_384": dict(**SMALL),
    "vit_small_patch32_224": dict(**SMALL, patch_size=32),
    "vit_small_patch32_384": dict(**SMALL, patch_size=32),
    "vit_so150m2_patch16_reg1_gap_256": dict(
        **SO150M2,
        init_values=1e-05,
        qkv_bias=False,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
    ),
    "vit_so150m2_patch16_reg1_gap_384": dict(
        **SO150M2,
        init_values=1e-05,
        qkv_bias=False,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
    ),
    "vit_so150m2_patch16_reg1_gap_448": dict(
        **SO150M2,
        init_values=1e-05,
        qkv_bias=False,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
    ),
    "vit_so150m_patch16_reg4_gap_256": dict(**SO150M, **GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_gap_384": dict(**SO150M, **GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_map_256": dict(**SO150M, **MAP, reg_tokens=4),
    "vit_so400m_patch14_reg1_tipsv2": dict(
        **TIPS2, embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.736111111111111
    ),
    "vit_so400m_patch14_siglip_224": dict(**SO400M, **MAP, patch_size=14),
    "vit_so400m_patch14_siglip_378": dict(**SO400M, **MAP, patch_size=14),
    "vit_so400m_patch14_siglip_384": dict(**SO400M, **MAP, patch_size=14),
    "vit_so400m_patch14_siglip_gap_224": dict(**SO400M, **GAP, patch_size=14),
    "vit_so400m_patch14_siglip_gap_378": dict(**SO400M, **GAP, patch_size=14),
    "vit_so400m_patch14_siglip_gap_384": dict(**SO400M, **GAP, patch_size=14),
    "vit_so400m_patch14_siglip_gap_448": dict(**SO400M, **GAP, patch_size=14),
    "vit_so400m_patch14_siglip_gap_896": dict(**SO400M, **GAP, patch_size=14),
    "vit_so400m_patch16_radio_v4": dict(
        **RADIO, embed_dim=1152, depth=27, num_heads=16, mlp_ratio=3.736111111111111, reg_tokens=9
    ),
    "vit_so400m_patch16_siglip_256": dict(**SO400M, **MAP, act_layer="gelu_tanh"),
    "vit_so400m_patch16_siglip_384": dict(**SO400M, **MAP, act_layer="gelu_tanh"),
    "vit_so400m_patch16_siglip_512": dict(**SO400M, **MAP, act_layer="gelu_tanh"),
    "vit_so400m_patch16_siglip_gap_256": dict(**SO400M, **GAP, act_layer="gelu_tanh"),
    "vit_so400m_patch16_siglip_gap_384": dict(**SO400M, **GAP, act_layer="gelu_tanh"),
    "vit_so400m_patch16_siglip_gap_512": dict(**SO400M, **GAP, act_layer="gelu_tanh"),
    "vit_tiny_patch16_224": dict(**TINY),
    "vit_tiny_patch16_384": dict(**TINY),
    "vit_wee_patch16_reg1_gap_256": dict(**WEE, **REG_GAP, reg_tokens=1),
    "vit_xsmall_patch16_clip_224": dict(**CLIP, embed_dim=256, depth=10, num_heads=4),
    "deit3_base_patch16_224": dict(**DEIT3),
    "deit3_base_patch16_384": dict(**DEIT3),
    "deit3_huge_patch14_224": dict(**HUGE, **DEIT3, patch_size=14),
    "deit3_large_patch16_224": dict(**LARGE, **DEIT3),
    "deit3_large_patch16_384": dict(**LARGE, **DEIT3),
    "deit3_medium_patch16_224": dict(**MEDIUM, **DEIT3),
    "deit3_small_patch16_224": dict(**SMALL, **DEIT3),
    "deit3_small_patch16_384": dict(**SMALL, **DEIT3),
    "deit_base_distilled_patch16_224": (DistilledVisionTransformer, dict()),
    "deit_base_distilled_patch16_384": (DistilledVisionTransformer, dict()),
    "deit_base_patch16_224": dict(),
    "deit_base_patch16_384": dict(),
    "deit_small_distilled_patch16_224": (DistilledVisionTransformer, dict(**SMALL)),
    "deit_small_patch16_224": dict(**SMALL),
    "deit_tiny_distilled_patch16_224": (DistilledVisionTransformer, dict(**TINY)),
    "deit_tiny_patch16_224": dict(**TINY),
}

FAMILY = Family(model=VisionTransformer, variants=VARIANTS, weights=weights_table("vit"))
