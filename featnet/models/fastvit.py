"""FastViT: convolutions that merge for inference, and attention where maps are small.

Papers: FastViT (https://arxiv.org/abs/2303.14189); the image encoders of MobileCLIP
(https://arxiv.org/abs/2311.17049) and of MobileCLIP2 (https://arxiv.org/abs/2508.20691).
"""

from __future__ import annotations

import bisect
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import check_stages
from ..layers import (
    Attention,
    Blocks,
    Branches,
    ConvNormAct,
    DropPath,
    Layer,
    LayerNorm2d,
    Phased,
    SqueezeExcite,
    add_branches,
    build_act,
    drop_path_rates,
    fold_norm,
    get_act,
    get_layer,
    get_norm,
    identity_kernel,
    initialize,
    merge_branches,
    rename_keys,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table

conv_norm = partial(ConvNormAct, act=None)


# Convolutions that merge: (N, C, H, W) -> (N, C', H/stride, W/stride) ---------------------------


class Merging(Branches):
    """Branches, of which ``reparam_conv`` takes the place.

    Class attributes:
        names: of the children that are branches, or lists of them, in the order of the sum.
    """

    names: tuple[str, ...]

    def branches(self) -> list[nn.Module]:
        parts = [self._modules[name] for name in self.names if name in self._modules]
        lists = [part if isinstance(part, nn.ModuleList) else [part] for part in parts]
        return [branch for branches in lists for branch in branches if branch is not None]

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum, or the output of the convolution that has taken its place."""
        return add_branches(self.branches() or [self.reparam_conv], x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.total(x)

    def reparameterize(self) -> None:
        """Put one convolution in the place of the branches."""
        if self.branches():
            self.reparam_conv = self.merged()
            for name in self.names:
                self._modules.pop(name, None)


class MobileOneBlock(Merging):
    """A kxk convolution, a 1x1 beside it, nothing beside both where the shape stays.

    Args:
        in_chs, out_chs: channels.
        kernel_size, stride, groups: of the convolution.
        act: activation; None for none.
        scale: the 1x1 convolution is there, if the other is larger.
        squeeze: squeeze-excite of the sum.
    """

    names = ("conv_scale", "identity", "conv_kxk")

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Layer | None,
        scale: bool = True,
        squeeze: bool = False,
    ) -> None:
        super().__init__()
        conv = partial(conv_norm, in_chs, out_chs, stride=stride, groups=groups)
        self.se = SqueezeExcite(out_chs, rd_divisor=1) if squeeze else nn.Identity()
        if in_chs == out_chs and stride == 1:
            self.identity = nn.BatchNorm2d(in_chs)
        self.conv_kxk = nn.ModuleList([conv(kernel_size=kernel_size)])
        if scale and kernel_size > 1:
            self.conv_scale = conv(kernel_size=1)
        self.act = build_act(act) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.se(self.total(x)))


class LargeKernel(Merging):
    """A depthwise convolution of stride 2, a 3x3 beside it.

    Args:
        in_chs, out_chs: channels.
        kernel_size: of the larger convolution.
        act: activation; None for none.
        squeeze: squeeze-excite of the sum.
    """

    names = ("large_conv", "small_conv")

    def __init__(
        self, in_chs: int, out_chs: int, *, kernel_size: int, act: Layer | None, squeeze: bool
    ) -> None:
        super().__init__()
        conv = partial(conv_norm, in_chs, out_chs, stride=2, groups=in_chs)
        self.large_conv = conv(kernel_size=kernel_size)
        self.small_conv = conv(kernel_size=3)
        self.se = SqueezeExcite(out_chs, rd_ratio=0.25) if squeeze else nn.Identity()
        self.act = build_act(act) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.se(self.total(x)))


class Positions(Merging):
    """Positions that depend on the map: a depthwise convolution and a shortcut."""

    names = ("pos_enc",)

    def __init__(self, dim: int, *, kernel_size: int = 7) -> None:
        super().__init__()
        self.pos_enc = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def branches(self) -> list[nn.Module]:
        branches = super().branches()
        return [*branches, nn.Identity()] if branches else []


class LayerScale2d(nn.Module):
    """A learnt factor for each channel of (N, C, H, W)."""

    def __init__(self, dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim, 1, 1), float(init_value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class RepMixer(nn.Module):
    """A depthwise convolution less a norm, scaled, beside a shortcut.

    Args:
        dim: channels.
        kernel_size: of the convolution.
        layer_scale: the factors' first value.
    """

    def __init__(self, dim: int, *, kernel_size: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = nn.Sequential(OrderedDict(identity=nn.BatchNorm2d(dim)))
        self.mixer = MobileOneBlock(dim, dim, kernel_size=kernel_size, groups=dim, act=None)
        self.layer_scale = LayerScale2d(dim, layer_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "reparam_conv" in self._modules:
            return self.reparam_conv(x)
        return x + self.layer_scale(self.mixer(x) - self.norm(x))

    def reparameterize(self) -> None:
        """Put one convolution in the place of all; the mixer has done so itself."""
        if "mixer" not in self._modules:
            return
        mixer, gamma = self.mixer.reparam_conv, self.layer_scale.gamma.double()
        assert mixer.bias is not None
        same = identity_kernel(mixer)
        norm, shift = fold_norm(same, self.norm.get_submodule("identity"))
        kernel = same + gamma[..., None] * (mixer.weight.double() - norm)
        bias = gamma.flatten() * (mixer.bias.double() - shift)
        self.reparam_conv = merge_branches(mixer, [(kernel, bias)])
        del self.mixer, self.norm, self.layer_scale


# Blocks: (N, C, H, W) -> (N, C, H, W) -----------------------------------------------------------


class ConvMlp(nn.Module):
    """A depthwise 7x7 convolution and an MLP of each position."""

    def __init__(self, dim: int, hidden: int, *, act: Layer, drop: float) -> None:
        super().__init__()
        self.conv = conv_norm(dim, dim, kernel_size=7, groups=dim)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = build_act(act)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop)

    def init_weights(self) -> None:
        """Small truncated normal weights, no biases."""
        for conv in (self.conv.conv, self.fc1, self.fc2):
            trunc_normal(conv)
            zero_bias(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(self.conv(x))
        return self.drop(self.fc2(self.drop(self.act(x))))


class MapAttention(Phased, Attention):  # type: ignore[misc]
    """Attention between all positions of a map, heads of 32 channels; in phases where an output
    stride has made it denser."""

    channels_last = False

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim // 32, head_dim=32, qkv_bias=False)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        y = Attention.forward(self, x.flatten(2).transpose(1, 2))  # (N, H * W, C)
        return y.transpose(1, 2).reshape_as(x)


class RepMixerBlock(nn.Module):
    """RepMixer, then the MLP beside a shortcut.

    Args:
        dim, hidden: channels, and those inside the MLP.
        act: of the MLP.
        kernel_size: of the RepMixer.
        layer_scale: first value of the branches' factors.
        proj_drop, drop_path: dropout of the MLP's values, of the branch.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: Layer,
        kernel_size: int,
        layer_scale: float,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.token_mixer = RepMixer(dim, kernel_size=kernel_size, layer_scale=layer_scale)
        self.mlp = ConvMlp(dim, hidden, act=act, drop=proj_drop)
        self.layer_scale = LayerScale2d(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))


class AttentionBlock(nn.Module):
    """Attention on a norm, then the MLP, each beside a shortcut; arguments as ``RepMixerBlock``."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        act: Layer,
        norm: Layer,
        layer_scale: float,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm = norm(dim)
        self.token_mixer = MapAttention(dim)
        self.layer_scale_1 = LayerScale2d(dim, layer_scale)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = ConvMlp(dim, hidden, act=act, drop=proj_drop)
        self.layer_scale_2 = LayerScale2d(dim, layer_scale)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path1(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path2(self.layer_scale_2(self.mlp(x)))


class Stage(nn.Module):
    """Half the size, but for the first stage, perhaps positions, then blocks."""

    def __init__(self, downsample: nn.Module, pos_emb: nn.Module, blocks: Blocks) -> None:
        super().__init__()
        self.downsample = downsample
        self.pos_emb = pos_emb
        self.blocks = blocks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.pos_emb(self.downsample(x)))


# The network ------------------------------------------------------------------------------------

NORMS: dict[str, Layer] = {"layernorm2d": partial(LayerNorm2d, eps=1e-5)}
MIXERS: dict[str, Layer] = {"repmixer": RepMixerBlock, "attention": AttentionBlock}


class FastVit(Backbone):
    """A stem at a quarter of the size, then stages, each but the first of which halves it.

    With an output stride attention runs on the interleaved maps by themselves.

    Args:
        layers, embed_dims: blocks and channels of each stage.
        token_mixers: of each stage, ``"repmixer"`` or ``"attention"``, before which positions are
            added.
        mlp_ratios: channels inside each stage's MLPs by those outside.
        se_downsamples: squeeze-excite where each stage halves the size.
        repmixer_kernel_size, down_patch_size: kernels of the mixers, and of what halves the size.
        lkc_use_act: an activation behind the large kernels.
        stem_use_scale_branch: 1x1 convolutions beside the stem's.
        cls_ratio: channels of the final features by those of the last level.
        layer_scale_init_value: first factors of each branch's channels.
        norm_layer: before attention.
        drop_rate, proj_drop_rate: before the classifier, and of the MLPs' values.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv: str | tuple[str, ...] = ("stem.0.conv_kxk.0.conv", "stem.0.conv_scale.conv")
    last_fc = "head.fc"

    def __init__(
        self,
        layers: Sequence[int] = (2, 2, 6, 2),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        token_mixers: Sequence[str] = ("repmixer",) * 4,
        mlp_ratios: Sequence[float] = (4,) * 4,
        se_downsamples: Sequence[bool] = (False,) * 4,
        repmixer_kernel_size: int = 3,
        down_patch_size: int = 7,
        lkc_use_act: bool = False,
        stem_use_scale_branch: bool = True,
        cls_ratio: float = 2.0,
        layer_scale_init_value: float = 1e-5,
        norm_layer: str | Layer = "batchnorm",
        act_layer: str | Layer = "gelu",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_stages(
            layers=layers,
            embed_dims=embed_dims,
            token_mixers=token_mixers,
            mlp_ratios=mlp_ratios,
            se_downsamples=se_downsamples,
        )
        act, in_chs = get_act(act_layer), embed_dims[0]
        norm = NORMS.get(norm_layer) if isinstance(norm_layer, str) else None
        own: dict[str, dict[str, Any]] = {
            "repmixer": dict(kernel_size=repmixer_kernel_size),
            "attention": dict(norm=norm or get_norm(norm_layer)),
        }
        shared: dict[str, Any] = dict(
            act=act, layer_scale=layer_scale_init_value, proj_drop=proj_drop_rate
        )
        one = partial(MobileOneBlock, act=act, scale=stem_use_scale_branch)
        self.stem = nn.Sequential(
            one(in_chans, in_chs, kernel_size=3, stride=2),
            one(in_chs, in_chs, kernel_size=3, stride=2, groups=in_chs),
            one(in_chs, in_chs),
        )
        if not stem_use_scale_branch:
            self.first_conv = self.first_conv[0]
        self.stages = nn.Sequential()
        rates = drop_path_rates(drop_path_rate, layers)
        rows = zip(embed_dims, rates, token_mixers, mlp_ratios, se_downsamples, strict=True)
        for i, (dim, drops, mixer, ratio, squeeze) in enumerate(rows):
            block = partial(get_layer("token_mixers", mixer, MIXERS), dim, int(dim * ratio))
            options = {**shared, **own[mixer]}
            down: nn.Module = nn.Identity()
            if i:
                large_act = act if lkc_use_act else None
                large = LargeKernel(
                    in_chs, dim, kernel_size=down_patch_size, act=large_act, squeeze=squeeze
                )
                down = nn.Sequential(OrderedDict(proj=nn.Sequential(large, one(dim, dim))))
            stage = Stage(
                down,
                Positions(dim) if mixer == "attention" else nn.Identity(),
                Blocks(*(block(drop_path=rate, **options) for rate in drops)),
            )
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=4 * 2**i)
            in_chs = dim
        final = int(in_chs * cls_ratio)
        self.final_conv = MobileOneBlock(
            in_chs, final, kernel_size=3, groups=in_chs, act=act, squeeze=True
        )
        self.add_head(final, num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        initialize(self, linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        """Return the final features, (N, 2C, H', W') of the last level's C channels."""
        return self.final_conv(y)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [
            (r"^stages\.(\d+)\.(?:downsample|pos_emb)", (0,)),
            (r"^stages\.(\d+)\.\w+\.(\d+)", None),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; FastViT's authors' names, those of MobileCLIP (both towers), and
        of its training."""
        state = dict(state)
        for prefix in ("module.visual.trunk.", "visual.trunk.", "image_encoder.model."):
            inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
            state = inside or state
        if any(key.startswith("stem.") for key in state):
            return state
        if "head.proj" in state:  # of CLIP, which has no bias
            state["head.weight"] = state.pop("head.proj").T
            state["head.bias"] = state["head.weight"].new_zeros(len(state["head.weight"]))
        matches = [re.match(r"network\.(\d+)\.proj\.", key) for key in state]
        ends = sorted({int(match[1]) for match in matches if match})

        def stage(match: re.Match[str]) -> str:
            return f"stages.{bisect.bisect_right(ends, int(match[1]))}."

        return rename_keys(
            state,
            (
                (r"^network\.(\d+)\.(?=proj\.)", lambda m: f"{stage(m)}downsample."),
                (r"^network\.(\d+)\.pe\.", lambda m: f"{stage(m)}pos_emb.pos_enc."),
                (r"^network\.(\d+)\.(?=reparam)", lambda m: f"{stage(m)}pos_emb."),
                (r"^network\.(\d+)\.", lambda m: f"{stage(m)}blocks."),
                (r"^patch_embed\.", "stem."),
                (r"\brbr_conv\b", "conv_kxk"),
                (r"\brbr_scale\b", "conv_scale"),
                (r"\brbr_skip\b", "identity"),
                (r"\blkb_origin\b", "large_conv"),
                (r"\blkb_reparam\b", "reparam_conv"),
                (r"\bconv_exp\b", "final_conv"),
                (r"\bconvffn\b", "mlp"),
                (r"\bse\.reduce\b", "se.fc1"),
                (r"\bse\.expand\b", "se.fc2"),
                (r"(layer_scale(?:_\d)?)$", r"\1.gamma"),
                (r"^head\.(?!fc\.)", "head.fc."),
            ),
        )


A, R = "attention", "repmixer"
LATE: dict[str, Any] = dict(token_mixers=(R, R, R, A))
MCI: dict[str, Any] = dict(
    **LATE, mlp_ratios=(3,) * 4, se_downsamples=(False, False, True, True), lkc_use_act=True
)
# MobileCLIP2's two large ones: a fifth stage
FIVE: dict[str, Any] = dict(
    token_mixers=(R, R, R, A, A),
    mlp_ratios=(4,) * 5,
    se_downsamples=(False,) * 5,
    lkc_use_act=True,
    norm_layer="layernorm2d",
    stem_use_scale_branch=False,
)
S12, S24, S36 = (2, 2, 6, 2), (4, 4, 12, 4), (6, 6, 18, 6)

VARIANTS: dict[str, dict[str, Any]] = {
    "fastvit_t8": dict(layers=(2, 2, 4, 2), embed_dims=(48, 96, 192, 384), mlp_ratios=(3,) * 4),
    "fastvit_t12": dict(layers=S12, mlp_ratios=(3,) * 4),
    "fastvit_s12": dict(layers=S12),
    "fastvit_sa12": dict(layers=S12, **LATE),
    "fastvit_sa24": dict(layers=S24, **LATE),
    "fastvit_sa36": dict(layers=S36, **LATE),
    "fastvit_ma36": dict(layers=S36, embed_dims=(76, 152, 304, 608), **LATE),
    "fastvit_mci0": dict(layers=(2, 6, 10, 2), **MCI),
    "fastvit_mci1": dict(layers=(4, 12, 20, 4), **MCI),
    "fastvit_mci2": dict(layers=(4, 12, 24, 4), embed_dims=(80, 160, 320, 640), **MCI),
    "fastvit_mci3": dict(layers=(2, 12, 24, 4, 2), embed_dims=(96, 192, 384, 768, 1536), **FIVE),
    "fastvit_mci4": dict(layers=(2, 12, 24, 4, 4), embed_dims=(128, 256, 512, 1024, 2048), **FIVE),
}

FAMILY = Family(model=FastVit, variants=VARIANTS, weights=weights_table("fastvit"))
