"""FocalNet: focal modulation, contexts of growing reach in place of attention.

Paper: https://arxiv.org/abs/2203.11926.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    DropPath,
    Layer,
    LayerNorm2d,
    LayerScale,
    Mlp,
    NormMlp,
    Phased,
    Stage,
    drop_path_rates,
    get_norm,
    initialize,
    pointwise,
    rename_keys,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


class FocalModulation(nn.Module):
    """Each position's query, times its neighbourhoods at several reaches and the whole map's mean.

    Args:
        focal_window: kernel of the first neighbourhood; each following one is wider by 2.
        focal_level: number of neighbourhoods.
        post_norm: a norm before the last projection.
        normalize: divide the context by the number of its parts.
    """

    def __init__(
        self,
        dim: int,
        *,
        focal_window: int,
        focal_level: int,
        post_norm: bool,
        normalize: bool,
        proj_drop: float,
        norm: Layer,
    ) -> None:
        super().__init__()
        self.widths = [dim, dim, focal_level + 1]
        self.normalize = normalize
        self.f = nn.Conv2d(dim, sum(self.widths), 1)
        self.h = nn.Conv2d(dim, dim, 1)
        self.act = nn.GELU()
        self.proj = nn.Conv2d(dim, dim, 1)
        self.proj_drop = nn.Dropout(proj_drop)
        self.focal_layers = nn.ModuleList()
        for side in range(focal_window, focal_window + 2 * focal_level, 2):
            conv = nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim, bias=False)
            self.focal_layers.append(nn.Sequential(conv, nn.GELU()))
        self.norm = norm(dim) if post_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.f(x)  # here, where nobody else holds the input
        query, context, gates = torch.split(x, self.widths, 1)
        total: torch.Tensor | float = 0.0
        for i, layer in enumerate(self.focal_layers):
            context = layer(context)
            total = total + context * gates[:, i : i + 1]
        context = self.act(context.mean((2, 3), keepdim=True))
        total = total + context * gates[:, -1:]
        if self.normalize:
            total = total / self.widths[2]
        return self.proj_drop(self.proj(self.norm(query * self.h(total))))


class Block(Phased):
    """Modulation and MLP, each with a norm before or behind it, and beside the identity."""

    channels_last = False

    def __init__(
        self,
        dim: int,
        *,
        modulation: Layer,
        mlp_ratio: float,
        post_norm: bool,
        scale: float | None,
        norm: Layer,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()

        def norms() -> tuple[nn.Module, nn.Module]:
            layers = norm(dim), nn.Identity()
            return layers[::-1] if post_norm else layers

        def scaled() -> nn.Module:
            return nn.Identity() if scale is None else LayerScale(dim, scale, channels_last=False)

        self.norm1, after = norms()
        self.modulation = modulation(dim)
        self.norm1_post, self.ls1, self.drop_path1 = after, scaled(), DropPath(drop_path)
        self.norm2, after = norms()
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, linear=pointwise)
        self.norm2_post, self.ls2, self.drop_path2 = after, scaled(), DropPath(drop_path)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.ls1(self.norm1_post(self.modulation(self.norm1(x)))))
        return x + self.drop_path2(self.ls2(self.norm2_post(self.mlp(self.norm2(x)))))


class Downsample(nn.Module):
    """Patches of ``stride`` pixels, overlapping or not, and a norm."""

    def __init__(self, in_chs: int, dim: int, *, stride: int, overlap: bool, norm: Layer) -> None:
        super().__init__()
        kernel, pad = (2 * stride - 1, stride // 2) if overlap else (stride, 0)
        self.proj = nn.Conv2d(in_chs, dim, kernel, stride, pad)
        self.norm = norm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.proj(x))


class FocalNet(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    With an output stride each block runs on the interleaved maps by themselves, so that the mean
    of the map is of as many positions as in the original network.

    Args:
        depths: blocks of each stage.
        embed_dim: channels of the first stage; each following one has twice as many.
        focal_levels, focal_windows: of each stage, see :class:`FocalModulation`.
        mlp_ratio: hidden width of the MLPs.
        use_overlap_down: strided convolutions overlap.
        use_post_norm: norms behind the branches, not before them.
        use_post_norm_in_modulation: a norm within the modulation.
        normalize_modulator: divide the context by the number of its parts.
        layerscale_value: first scale of each branch, learnt from there; None for no scale.
        head_hidden_size: width of a layer before the classifier.
        head_init_scale: factor on the classifier's first weights.
        drop_rate, proj_drop_rate: before the classifier, and of the branches' outputs.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.proj", "head.fc"

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 6, 2),
        embed_dim: int = 96,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        mlp_ratio: float = 4.0,
        focal_levels: Sequence[int] = (2, 2, 2, 2),
        focal_windows: Sequence[int] = (3, 3, 3, 3),
        use_overlap_down: bool = False,
        use_post_norm: bool = False,
        use_post_norm_in_modulation: bool = False,
        normalize_modulator: bool = False,
        layerscale_value: float | None = None,
        head_hidden_size: int | None = None,
        head_init_scale: float = 1.0,
        norm_layer: str | Layer = partial(LayerNorm2d, eps=1e-5),
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(depths=depths, focal_levels=focal_levels, focal_windows=focal_windows)
        norm = get_norm(norm_layer)
        down = partial(Downsample, overlap=use_overlap_down, norm=norm)
        self.stem = down(in_chans, embed_dim, stride=4)
        self.layers = nn.Sequential()
        dim, rates = embed_dim, drop_path_rates(drop_path_rate, depths)
        for i, (reach, level) in enumerate(zip(focal_windows, focal_levels, strict=True)):
            modulation = partial(
                FocalModulation,
                focal_window=reach,
                focal_level=level,
                post_norm=use_post_norm_in_modulation,
                normalize=normalize_modulator,
                proj_drop=proj_drop_rate,
                norm=norm,
            )
            block = partial(
                Block,
                embed_dim * 2**i,
                modulation=modulation,
                mlp_ratio=mlp_ratio,
                post_norm=use_post_norm,
                scale=layerscale_value,
                norm=norm,
                proj_drop=proj_drop_rate,
            )
            before = down(dim, 2 * dim, stride=2) if i else nn.Identity()
            dim = embed_dim * 2**i
            stage = Stage([block(drop_path=rate) for rate in rates[i]], downsample=before)
            self.add_stage(f"layers.{i}", stage, channels=dim, reduction=4 * 2**i)
        self.norm = nn.Identity() if head_hidden_size else norm(dim)
        head_norm = norm if head_hidden_size else None
        self.add_head(
            dim,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=NormMlp(norm=head_norm, hidden=head_hidden_size),
        )
        start = [trunc_normal, zero_bias]
        initialize(self, conv=start, linear=start)
        last = partial(trunc_normal, std=0.02 * head_init_scale)
        initialize(self.get_submodule("head"), linear=[last])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for layer in self.layers:
            x = layer(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norm(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [(r"^layers\.(\d+)\.downsample", (0,)), (r"^layers\.(\d+)\.\w+\.(\d+)", None)]
        blocks = [(r"^layers\.(\d+)", None)] if coarse else within
        return {"stem": r"^stem", "blocks": [*blocks, (r"^norm", (99999,))]}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names."""
        if "patch_embed.proj.weight" not in state:
            return dict(state)
        post = "layers.0.blocks.0.norm1_post.weight" in self.state_dict()
        return rename_keys(
            state,
            (
                (r"gamma_(\d)", r"ls\1.gamma"),
                (r"^patch_embed\.", "stem."),
                (r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample"),
                (r"modulation\.ln\.", "modulation.norm."),
                *([(r"(blocks\.\d+\.norm\d)\.", r"\1_post.")] if post else []),
                (r"^head\.", "head.fc."),
            ),
            like=self,
        )


LARGE: dict[str, Any] = dict(
    depths=(2, 2, 18, 2), use_post_norm=True, use_overlap_down=True, layerscale_value=1e-4
)
FL3: dict[str, Any] = dict(focal_levels=(3, 3, 3, 3))
FL4: dict[str, Any] = dict(focal_levels=(4, 4, 4, 4))
FIVE: dict[str, Any] = dict(focal_windows=(5, 5, 5, 5))
HUGE: dict[str, Any] = dict(embed_dim=352, use_post_norm_in_modulation=True, **LARGE)

VARIANTS: dict[str, dict[str, Any]] = {
    "focalnet_tiny_srf": dict(),
    "focalnet_small_srf": dict(depths=(2, 2, 18, 2)),
    "focalnet_base_srf": dict(depths=(2, 2, 18, 2), embed_dim=128),
    "focalnet_tiny_lrf": dict(**FL3),
    "focalnet_small_lrf": dict(depths=(2, 2, 18, 2), **FL3),
    "focalnet_base_lrf": dict(depths=(2, 2, 18, 2), embed_dim=128, **FL3),
    "focalnet_large_fl3": dict(embed_dim=192, **LARGE, **FL3, **FIVE),
    "focalnet_large_fl4": dict(embed_dim=192, **LARGE, **FL4),
    "focalnet_xlarge_fl3": dict(embed_dim=256, **LARGE, **FL3, **FIVE),
    "focalnet_xlarge_fl4": dict(embed_dim=256, **LARGE, **FL4),
    "focalnet_huge_fl3": dict(**HUGE, **FL3),
    "focalnet_huge_fl4": dict(**HUGE, **FL4),
}

FAMILY = Family(model=FocalNet, variants=VARIANTS, weights=weights_table("focalnet"))
