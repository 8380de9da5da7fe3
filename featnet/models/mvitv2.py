"""MViTv2: attention between pooled queries, keys and values, over the whole map at each scale.

Papers: MViTv2 (https://arxiv.org/abs/2112.01526); MViT (https://arxiv.org/abs/2104.11227).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..layers import (
    Blocks,
    DropPath,
    Layer,
    MapAndTokens,
    Mlp,
    PhasedTokens,
    Size,
    TokenHead,
    Tokens,
    as_image,
    as_sequence,
    attend,
    distances,
    drop_path_rates,
    get_norm,
    head_width,
    initialize,
    join_heads,
    rename_keys,
    resample_distances,
    split_heads,
    stage_rule,
    to_pair,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


def normal_start(*tables: torch.Tensor | None) -> None:
    """First values of what is learnt for positions and tokens, as TensorFlow's references have
    them."""
    for table in tables:
        if table is not None:
            nn.init.trunc_normal_(table, std=0.02, a=-0.04, b=0.04)


class PooledAttention(nn.Module):
    """Attention over the map, biased by how far apart rows and columns are.

    A depthwise convolution pools queries, keys and values each; the class token passes by. Queries
    are added to what they get.

    Args:
        size: (height, width) of the map that distances are learnt for.
        stride, kv_stride: of the queries; of the keys and values.
        kernel: side of all three convolutions.
    """

    fused_attn = True

    def __init__(
        self,
        dim: int,
        out: int,
        num_heads: int,
        *,
        size: Size,
        stride: int,
        kv_stride: int,
        kernel: int,
        qkv_bias: bool,
        norm: Layer,
    ) -> None:
        super().__init__()
        width = head_width(out, num_heads)
        self.num_heads, self.coarser = num_heads, kv_stride > stride
        self.qkv = nn.Linear(dim, out * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(out, out)
        for name, step in (("q", stride), ("k", kv_stride), ("v", kv_stride)):
            pool = nn.Conv2d(width, width, kernel, step, kernel // 2, groups=width, bias=False)
            setattr(self, f"pool_{name}", pool)
            setattr(self, f"norm_{name}", norm(width))
        rows, columns = (max(side // min(stride, kv_stride), 1) for side in size)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * rows - 1, width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * columns - 1, width))

    def init_weights(self) -> None:
        """Give the tables of distances their first values."""
        normal_start(self.rel_pos_h, self.rel_pos_w)

    def pool(self, part: torch.Tensor, name: str, like: Tokens) -> tuple[torch.Tensor, Size]:
        """(N, heads, L, C) -> (N, heads, L', C), and its grid."""
        layer, norm = self.get_submodule(f"pool_{name}"), self.get_submodule(f"norm_{name}")
        y = like._replace(x=part.flatten(0, 1)).on_map(layer)
        return norm(torch.unflatten(y.x, 0, part.shape[:2])), y.grid

    def bias(self, q: torch.Tensor, size: Size, keys: Size, prefix: int) -> torch.Tensor:
        """(N, heads, L, C) queries -> (N, heads, L, M), nothing for the class token."""
        grid = torch.unflatten(q[:, :, prefix:].flatten(0, 1), 1, size)
        between = partial(distances, coarser=self.coarser)
        down = torch.einsum("nhwc,hkc->nhwk", grid, between(self.rel_pos_h, size[0], keys[0]))
        across = torch.einsum("nhwc,wkc->nhwk", grid, between(self.rel_pos_w, size[1], keys[1]))
        both = (down[..., :, None] + across[..., None, :]).flatten(3).flatten(1, 2)
        return F.pad(torch.unflatten(both, 0, q.shape[:2]), (prefix, 0, prefix, 0))

    def forward(self, tokens: Tokens) -> Tokens:
        q, k, v = split_heads(self.qkv(tokens.x), 3, self.num_heads)
        q, size = self.pool(q, "q", tokens)
        k, keys = self.pool(k, "k", tokens)
        v, _ = self.pool(v, "v", tokens)
        bias = self.bias(q, size, keys, tokens.prefix)
        x = q + attend(q, k, v, drop=self.attn_drop, fused=self.fused_attn, bias=bias)
        return Tokens(self.proj(join_heads(x)), size, tokens.prefix)


class Block(nn.Module):
    """Attention and MLP, each on a norm and beside the identity.

    Args:
        expand_attn: attention widens the tokens, not the MLP.
        attention: ``f(dim, out)``.
        stride: of the queries; the identity is pooled alike.
    """

    def __init__(
        self,
        dim: int,
        out: int,
        *,
        expand_attn: bool,
        attention: Layer,
        stride: int,
        mlp_ratio: float,
        norm: Layer,
        drop_path: float,
    ) -> None:
        super().__init__()
        inner = out if expand_attn else dim
        self.norm1 = norm(dim)
        self.shortcut_proj_attn = nn.Linear(dim, inner) if dim != inner else None
        self.shortcut_pool_attn = None
        if stride > 1:
            self.shortcut_pool_attn = nn.MaxPool2d(stride + 1, stride, (stride + 1) // 2)
        self.attn = attention(dim, inner, stride=stride)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(inner)
        self.shortcut_proj_mlp = nn.Linear(inner, out) if inner != out else None
        self.mlp = Mlp(inner, int(inner * mlp_ratio), out=out)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, tokens: Tokens) -> Tokens:
        y = tokens._replace(x=self.norm1(tokens.x))
        if self.shortcut_proj_attn is not None:
            tokens = tokens._replace(x=self.shortcut_proj_attn(y.x))
        if self.shortcut_pool_attn is not None:
            tokens = tokens.on_map(self.shortcut_pool_attn)
        y = self.attn(y)
        x = tokens.x + self.drop_path1(y.x)
        normed = self.norm2(x)
        x = x if self.shortcut_proj_mlp is None else self.shortcut_proj_mlp(normed)
        return y._replace(x=x + self.drop_path2(self.mlp(normed)))


class Stage(PhasedTokens):
    """Blocks over positions and class token together, the first of which may pool the queries."""

    def __init__(self, blocks: Sequence[nn.Module], *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.blocks = Blocks(*blocks)

    def run(  # type: ignore[override]
        self, x: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, H, W) and (N, T, C) -> (N, D, H / stride, W / stride) and (N, T, D)."""
        count, size = tokens.shape[1], (x.shape[-2], x.shape[-1])
        y = torch.cat((tokens, as_sequence(x)), 1)
        y, size, _ = self.blocks(Tokens(y, size, count))
        return as_image(y[:, count:], size), y[:, :count]


class MultiScaleVit(Backbone):
    """Overlapping patches, then four stages, the last three of which halve the size.

    Any size goes in: the tables of distances are resampled. With an output stride stages run on the
    interleaved maps by themselves.

    Args:
        depths: blocks of each stage.
        embed_dim, num_heads: of the first stage; each later one has twice as many.
        img_size: (height, width) that the tables are made for.
        mlp_ratio: hidden width of the MLPs.
        qkv_bias: biases of the projections to queries, keys and values.
        expand_attn: a stage is wider by the attention of its first block, not by the MLP of the
            last block before it.
        use_cls_token: a token of the class beside the map.
        kernel_qkv: side of the convolutions that pool within attention.
        stride_kv: of the first stage's keys and values; half of it in each later one.
        patch_kernel, patch_stride, patch_padding: of the input convolution.
        drop_rate: before the classifier.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "patch_embed.proj", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (2, 3, 16, 3),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        img_size: int | Size = 224,
        embed_dim: int = 96,
        num_heads: int = 1,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        expand_attn: bool = True,
        use_cls_token: bool = False,
        kernel_qkv: int = 3,
        stride_kv: int = 4,
        patch_kernel: int | Size = 7,
        patch_stride: int | Size = 4,
        patch_padding: int | Size = 3,
        norm_layer: str | Layer = "layernorm",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        norm, step = get_norm(norm_layer), to_pair(patch_stride)
        self.img_size, self.depths, self.expand_attn = to_pair(img_size), tuple(depths), expand_attn
        dims = [embed_dim * 2**i for i in range(len(depths))]
        conv = nn.Conv2d(in_chans, dims[0], to_pair(patch_kernel), step, to_pair(patch_padding))
        self.patch_embed = nn.Sequential(OrderedDict(proj=conv))
        self.num_prefix_tokens = int(use_cls_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[0])) if use_cls_token else None
        self.stages = nn.Sequential()
        size = (self.img_size[0] // step[0], self.img_size[1] // step[1])
        dim, reduction = dims[0], max(step)
        block = partial(Block, expand_attn=expand_attn, mlp_ratio=mlp_ratio, norm=norm)
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            attention = partial(
                PooledAttention,
                num_heads=num_heads * 2**i,
                kv_stride=max(stride_kv // 2**i, 1),
                kernel=kernel_qkv,
                qkv_bias=qkv_bias,
                norm=norm,
            )
            outs = [dims[i]] * len(rates)
            if not expand_attn:
                outs[-1] = dims[min(i + 1, len(dims) - 1)]
            blocks, stride = [], 2 if i else 1
            reduction *= stride
            for out, rate in zip(outs, rates, strict=True):
                sized = partial(attention, size=size)
                blocks.append(block(dim, out, attention=sized, stride=stride, drop_path=rate))
                dim, size, stride = out, (size[0] // stride, size[1] // stride), 1
            stage = Stage(blocks, stride=2 if i else 1)
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=reduction)
        self.norm = norm(dim)
        self.add_head(
            dim,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=TokenHead(class_token=use_cls_token),
        )
        normal_start(self.cls_token)
        initialize(self, linear=[partial(trunc_normal, cut=2), zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[MapAndTokens]:
        x = self.patch_embed(x)  # (N, C, H/4, W/4)
        n, channels = x.shape[:2]
        token = x.new_zeros(1, 0, channels) if self.cls_token is None else self.cls_token
        level = MapAndTokens(x, token.expand(n, -1, -1))
        del x  # or it is held as long as the first stage runs
        for stage in self.stages:
            level = stage(*level)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), ...
            yield level

    def normalize(self, y: MapAndTokens, index: int) -> MapAndTokens:
        """As the base class says; the last level alone has a norm."""
        if index < len(self.depths) - 1:
            return y
        tokens = y.tokens.movedim(2, -1)  # (N, T, C) or, on a denser map, (N, T, H, W, C)
        image = self.norm(y.map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return MapAndTokens(image, self.norm(tokens).movedim(-1, 2))

    def finish(self, y: MapAndTokens) -> torch.Tensor:
        """(N, T + L, C)."""
        return self.norm(torch.cat((y.before(), as_sequence(y.map)), 1))

    def no_weight_decay(self) -> set[str]:
        names = ("rel_pos_h", "rel_pos_w", "cls_token")
        return {name for name, _ in self.named_parameters() if name.endswith(names)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^cls_token|patch_embed",
            "blocks": [(r"^stages\.(\d+)", None), (r"^norm", (99999,))],
        }

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names, and distances of maps of another size."""
        widens = "shortcut_proj_attn" if self.expand_attn else "shortcut_proj_mlp"
        rules = (
            stage_rule("blocks", self.depths),
            (r"^(stages\.\d+\.blocks\.\d+)\.proj\.", rf"\1.{widens}."),
            (r"^head\.projection\.", "head.fc."),
        )
        own = self.state_dict()
        return {
            key: resample_distances(value, len(own[key]))
            if ".rel_pos_" in key and key in own
            else value
            for key, value in rename_keys(state, rules).items()
        }


CLS: dict[str, Any] = dict(use_cls_token=True, global_pool="token")
LARGE: dict[str, Any] = dict(depths=(2, 6, 36, 4), embed_dim=144, num_heads=2)

VARIANTS: dict[str, dict[str, Any]] = {
    "mvitv2_tiny": dict(depths=(1, 2, 5, 2)),
    "mvitv2_small": dict(depths=(1, 2, 11, 2)),
    "mvitv2_base": dict(depths=(2, 3, 16, 3)),
    "mvitv2_large": dict(**LARGE, expand_attn=False),
    "mvitv2_small_cls": dict(depths=(1, 2, 11, 2), **CLS),
    "mvitv2_base_cls": dict(depths=(2, 3, 16, 3), **CLS),
    "mvitv2_large_cls": dict(**LARGE, **CLS),
    "mvitv2_huge_cls": dict(depths=(4, 8, 60, 8), embed_dim=192, num_heads=3, **CLS),
}

FAMILY = Family(model=MultiScaleVit, variants=VARIANTS, weights=weights_table("mvitv2"))
