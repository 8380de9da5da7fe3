"""MetaFormer: transformer blocks whose mixing of positions is a pool, a convolution or attention.

Papers: PoolFormer (https://arxiv.org/abs/2111.11418); PoolFormer V2, ConvFormer and CAFormer
(https://arxiv.org/abs/2210.13452).
"""

from __future__ import annotations

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
    DropPath,
    Head,
    Layer,
    LayerNorm2d,
    Mlp,
    Phased,
    drop_path_rates,
    get_layer,
    initialize,
    pointwise,
    rename_keys,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table


class Scale(nn.Module):
    """A learnt factor for each channel, from ``value`` on."""

    def __init__(self, dim: int, value: float, *, channels_last: bool) -> None:
        super().__init__()
        self.shape = (dim,) if channels_last else (dim, 1, 1)
        self.scale = nn.Parameter(torch.full((dim,), float(value)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.view(self.shape)


class SquaredReLU(nn.Module):
    """The square of a ReLU (https://arxiv.org/abs/2109.08668)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.square(torch.relu(x))


class StarReLU(nn.Module):
    """A squared ReLU with a learnt scale and a learnt bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.relu(x) ** 2 + self.bias


class GroupNorm1(nn.GroupNorm):
    """A norm over channels and positions together."""

    def __init__(self, channels: int, *, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(1, channels, eps=eps)
        if not bias:
            self.bias = None  # type: ignore[assignment]


class Pooling(nn.Module):
    """The mean of a position's neighbours, less itself."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        del dim, proj_drop
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x) - x


class SepConv(nn.Module):
    """A depthwise 7x7 convolution of twice the channels: MobileNetV2's block."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        del proj_drop
        self.pwconv1 = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False)
        self.act2 = nn.Identity()
        self.pwconv2 = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pwconv2(self.act2(self.dwconv(self.act1(self.pwconv1(x)))))


class MapAttention(Attention):
    """Attention of heads of 32 channels between all positions; (N, H, W, C)."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__(
            dim,
            max(dim // 32, 1),
            head_dim=32,
            qkv_bias=False,
            proj_bias=False,
            proj_drop=proj_drop,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x.flatten(1, 2)).view_as(x)


MIXERS: dict[str, Layer] = {"pool": Pooling, "conv": SepConv, "attention": MapAttention}
NORMS: dict[str, Layer] = {
    "groupnorm1": GroupNorm1,
    "groupnorm1_nobias": partial(GroupNorm1, eps=1e-6, bias=False),
    "layernorm2d_nobias": partial(LayerNorm2d, bias=False),
    "layernorm_nobias": partial(nn.LayerNorm, eps=1e-6, bias=False),
    "identity": nn.Identity,
}
ACTS: dict[str, Layer] = {"starrelu": StarReLU, "gelu": nn.GELU, "relu": nn.ReLU}


class Block(nn.Module):
    """A mixer of positions, then an MLP, each on a norm and beside a scaled shortcut.

    Args:
        layer_scale, res_scale: first factors of each branch's channels, and of the shortcuts';
            None for none.
    """

    channels_last = False

    def __init__(
        self,
        dim: int,
        *,
        mixer: Layer,
        act: Layer,
        norm: Layer,
        mlp_bias: bool,
        layer_scale: float | None,
        res_scale: float | None,
        proj_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()

        def scale(value: float | None) -> nn.Module:
            if value is None:
                return nn.Identity()
            return Scale(dim, value, channels_last=self.channels_last)

        linear = nn.Linear if self.channels_last else pointwise
        self.norm1 = norm(dim)
        self.token_mixer = mixer(dim, proj_drop=proj_drop)
        self.drop_path1 = DropPath(drop_path)
        self.layer_scale1, self.res_scale1 = scale(layer_scale), scale(res_scale)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, 4 * dim, act=act, bias=mlp_bias, drop=proj_drop, linear=linear)
        self.drop_path2 = DropPath(drop_path)
        self.layer_scale2, self.res_scale2 = scale(layer_scale), scale(res_scale)

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Both branches; the layout stays."""
        y = self.layer_scale1(self.drop_path1(self.token_mixer(self.norm1(x))))
        x = self.res_scale1(x) + y
        y = self.layer_scale2(self.drop_path2(self.mlp(self.norm2(x))))
        return self.res_scale2(x) + y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


class AttentionBlock(Phased, Block):
    """The same with attention; (N, H, W, C)."""

    channels_last = True
    run = Block.run


class Downsampling(nn.Module):
    """A norm and a convolution of stride 2."""

    def __init__(self, in_chs: int, dim: int, norm: Layer) -> None:
        super().__init__()
        self.norm = norm(in_chs)
        self.conv = nn.Conv2d(in_chs, dim, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(self.norm(x))


class Stem(nn.Module):
    """A convolution to a quarter of the size, and a norm."""

    def __init__(self, in_chs: int, dim: int, norm: Layer) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, dim, 7, 4, 2)
        self.norm = norm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Stage(nn.Module):
    """Half the size, but for the first stage, then blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = Blocks(*blocks)
        self.channels_last = any(block.channels_last for block in blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)  # (N, C, H/2, W/2)
        if not self.channels_last:
            return self.blocks(x)
        return self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MlpClassifier(nn.Sequential):
    """A hidden layer four times as wide, squared ReLU, a norm, the logits; (..., C)."""

    def __init__(self, dim: int, num_classes: int, **place: Any) -> None:
        hidden = 4 * dim
        super().__init__(
            OrderedDict(
                fc1=nn.Linear(dim, hidden, **place),
                act=SquaredReLU(),
                norm=nn.LayerNorm(hidden, eps=1e-6, **place),
                fc2=nn.Linear(hidden, num_classes, **place),
            )
        )


class MlpHead(Head):
    """A head whose classifier is the whole :class:`MlpClassifier`: without classes it is not
    there."""

    def __init__(self) -> None:
        super().__init__("head.norm", classifier=MlpClassifier)

    def replace(self, model: Any, linear: dict[str, nn.Module]) -> None:
        (layer,) = linear.values()
        bare = isinstance(layer, nn.Identity)
        model.head.fc = nn.Sequential(OrderedDict(fc2=layer)) if bare else layer

    def __call__(self, model: Any, x: torch.Tensor, *, pre_logits: bool = False) -> Any:
        x = super().__call__(model, x, pre_logits=True)
        return x if pre_logits else model.head.fc(x)


class MetaFormer(Backbone):
    """A stem at a quarter of the size, then four stages, the last three of which halve it.

    With an output stride blocks with attention run on the interleaved maps by themselves.

    Args:
        depths, dims: blocks and channels of each stage.
        token_mixers: ``"pool"``, ``"conv"`` or ``"attention"``; one for all stages or one for each.
        mlp_act: ``"starrelu"``, ``"gelu"`` or ``"relu"``.
        mlp_bias: biases of the MLPs.
        layer_scale_init_values: first factors of each branch's channels, one for all stages or one
            for each; None for none.
        res_scale_init_values: of the shortcuts, alike.
        downsample_norm: of the stem and before strided convolutions; a name of ``norm_layers``.
        norm_layers: ``"groupnorm1"``, ``"groupnorm1_nobias"``, ``"layernorm2d_nobias"`` or, with
            attention, ``"layernorm_nobias"``; one for all stages or one for each.
        use_mlp_head: a hidden layer before the classifier.
        drop_rate, proj_drop_rate: before the classifier, and of the MLPs' and attentions' outputs.
        drop_path_rate: of the last block; the rate grows linearly from 0 at the first.

    The other arguments are every Backbone's.
    """

    first_conv, last_fc = "stem.conv", "head.fc.fc2"

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 6, 2),
        dims: Sequence[int] = (64, 128, 320, 512),
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        token_mixers: str | Sequence[str] = "pool",
        mlp_act: str = "starrelu",
        mlp_bias: bool = False,
        layer_scale_init_values: float | Sequence[float | None] | None = None,
        res_scale_init_values: float | Sequence[float | None] | None = (None, None, 1.0, 1.0),
        downsample_norm: str = "layernorm2d_nobias",
        norm_layers: str | Sequence[str] = "layernorm2d_nobias",
        use_mlp_head: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans)
        stages: dict[str, Any] = dict(
            token_mixers=token_mixers,
            norm_layers=norm_layers,
            layer_scale_init_values=layer_scale_init_values,
            res_scale_init_values=res_scale_init_values,
        )
        for key, value in stages.items():
            one = value is None or isinstance(value, (str, int, float))
            stages[key] = (value,) * len(dims) if one else value
        check_stages(depths=depths, dims=dims, **stages)
        act = get_layer("mlp_act", mlp_act, ACTS)
        down_norm = get_layer("downsample_norm", downsample_norm, NORMS)
        self.stem = Stem(in_chans, dims[0], down_norm)
        self.stages = nn.Sequential()
        in_chs, reduction, rates = dims[0], 4, drop_path_rates(drop_path_rate, depths)
        rows = zip(dims, rates, *stages.values(), strict=True)
        for i, (dim, drops, mixer, norm, layer_scale, res_scale) in enumerate(rows):
            block = partial(
                AttentionBlock if mixer == "attention" else Block,
                dim,
                mixer=get_layer("token_mixers", mixer, MIXERS),
                act=act,
                norm=get_layer("norm_layers", norm, NORMS),
                mlp_bias=mlp_bias,
                layer_scale=layer_scale,
                res_scale=res_scale,
                proj_drop=proj_drop_rate,
            )
            down: nn.Module = Downsampling(in_chs, dim, down_norm) if i else nn.Identity()
            stage = Stage(down, [block(drop_path=rate) for rate in drops])
            reduction *= 2 if i else 1
            self.add_stage(f"stages.{i}", stage, channels=dim, reduction=reduction)
            in_chs = dim
        self.head = nn.Sequential(OrderedDict(norm=LayerNorm2d(in_chs), fc=nn.Sequential()))
        if not use_mlp_head:
            self.last_fc = "head.fc"
        self.add_head(
            in_chs,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=MlpHead() if use_mlp_head else Head("head.norm"),
        )
        initialize(self, conv=[trunc_normal, zero_bias], linear=[trunc_normal, zero_bias])

    def forward_levels(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        x = self.stem(x)  # (N, C, H/4, W/4)
        for stage in self.stages:
            x = stage(x)  # (N, C, H/4, W/4), (N, 2C, H/8, W/8), and so on
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        within = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else within}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; its authors' names, and those of the first PoolFormer."""
        if "stem.conv.weight" in state:
            return dict(state)
        return rename_keys(
            state,
            (
                # the first PoolFormer has stages at even places, what is between them at odd ones
                (r"^network\.([135])\.", lambda m: f"stages.{int(m[1]) // 2 + 1}.downsample."),
                (r"^network\.(\d)\.(\d+)\.", lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}."),
                (r"layer_scale_(\d)$", r"layer_scale\1.scale"),
                (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
                (r"^(?:downsample_layers\.0|patch_embed)\.", "stem."),
                (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
                (r"^(stem|stages\.\d+\.downsample)\.proj\.", r"\1.conv."),
                (r"\.(?:pre|post)_norm\.", ".norm."),
                (r"^head\.", "head.fc."),
                (r"^norm\.", "head.norm."),
            ),
            like=self,
        )


S12, S24, S36 = (2, 2, 6, 2), (4, 4, 12, 4), (6, 6, 18, 6)
M48, N18, N36 = (8, 8, 24, 8), (3, 3, 9, 3), (3, 12, 18, 3)
WIDE = (96, 192, 384, 768)
V1: dict[str, Any] = dict(
    downsample_norm="identity",
    mlp_act="gelu",
    mlp_bias=True,
    norm_layers="groupnorm1",
    res_scale_init_values=None,
    use_mlp_head=False,
)
V2: dict[str, Any] = dict(norm_layers="groupnorm1_nobias", use_mlp_head=False)
CONV: dict[str, Any] = dict(token_mixers="conv")
ATTENTION: dict[str, Any] = dict(
    token_mixers=("conv", "conv", "attention", "attention"),
    norm_layers=("layernorm2d_nobias",) * 2 + ("layernorm_nobias",) * 2,
)

VARIANTS: dict[str, dict[str, Any]] = {
    "poolformer_s12": dict(depths=S12, layer_scale_init_values=1e-5, **V1),
    "poolformer_s24": dict(depths=S24, layer_scale_init_values=1e-5, **V1),
    "poolformer_s36": dict(depths=S36, layer_scale_init_values=1e-6, **V1),
    "poolformer_m36": dict(depths=S36, dims=WIDE, layer_scale_init_values=1e-6, **V1),
    "poolformer_m48": dict(depths=M48, dims=WIDE, layer_scale_init_values=1e-6, **V1),
    "poolformerv2_s12": dict(depths=S12, **V2),
    "poolformerv2_s24": dict(depths=S24, **V2),
    "poolformerv2_s36": dict(depths=S36, **V2),
    "poolformerv2_m36": dict(depths=S36, dims=WIDE, **V2),
    "poolformerv2_m48": dict(depths=M48, dims=WIDE, **V2),
    "convformer_s18": dict(depths=N18, **CONV),
    "convformer_s36": dict(depths=N36, **CONV),
    "convformer_m36": dict(depths=N36, dims=(96, 192, 384, 576), **CONV),
    "convformer_b36": dict(depths=N36, dims=(128, 256, 512, 768), **CONV),
    "caformer_s18": dict(depths=N18, **ATTENTION),
    "caformer_s36": dict(depths=N36, **ATTENTION),
    "caformer_m36": dict(depths=N36, dims=(96, 192, 384, 576), **ATTENTION),
    "caformer_b36": dict(depths=N36, dims=(128, 256, 512, 768), **ATTENTION),
}

FAMILY = Family(model=MetaFormer, variants=VARIANTS, weights=weights_table("metaformer"))
