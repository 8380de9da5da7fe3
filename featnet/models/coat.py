"""CoaT: convolutional attention whose cost is linear in the size, at four scales.

Paper: https://arxiv.org/abs/2104.06399.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, check_rate
from ..layers import (
    Blocks,
    DropPath,
    Layer,
    Mlp,
    PatchEmbed,
    PositionConv,
    Size,
    TokenHead,
    Tokens,
    VectorConv,
    as_image,
    as_sequence,
    crop,
    get_norm,
    head_width,
    in_phases,
    init_tokens,
    initialize,
    join_heads,
    pad_to_windows,
    split_heads,
    stride_of,
    trunc_normal,
    zero_bias,
)
from ..registry import Family, weights_table

SCALES = (2, 3, 4)  # those with parallel blocks
WINDOW = {3: 2, 5: 3, 7: 3}  # heads of each kernel size


class RelativePositionConv(nn.Module):
    """Depthwise convolutions of the values, of another kernel for some of the heads.

    Args:
        head_dim: channels of each head.
        window: kernel size and number of heads, of each convolution.
    """

    def __init__(self, head_dim: int, window: Mapping[int, int]) -> None:
        super().__init__()
        self.conv_list = nn.ModuleList()
        for kernel, heads in window.items():
            dim = heads * head_dim
            self.conv_list.append(nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim))
        self.splits = [heads * head_dim for heads in window.values()]

    @property
    def density(self) -> int:
        """Positions of the map for each of the original network's, along each side."""
        layers = (layer for conv in self.conv_list for layer in conv.modules())
        return max(max(layer.dilation) for layer in layers if isinstance(layer, nn.Conv2d))

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        parts = zip(self.conv_list, torch.split(v, self.splits, 1), strict=True)
        return torch.cat([conv(part) for conv, part in parts], 1)


@dataclasses.dataclass(frozen=True)
class ScaleSettings:
    """Settings of a scale's blocks, and the modules that they share.

    Attributes:
        dim, hidden: channels, and width of the hidden layers.
        cpe, crpe: positions and relative positions, modules that the blocks share.
        num_heads, qkv_bias: of attention.
        norm: ``f(channels)``.
        drop, drop_path: rates of the branches' outputs, and of the branches.
    """

    dim: int
    hidden: int
    cpe: PositionConv
    crpe: RelativePositionConv
    num_heads: int
    qkv_bias: bool
    norm: Layer
    drop: float
    drop_path: float


# Blocks ---------------------------------------------------------------------------------------


class FactorAttention(nn.Module):
    """Attention in factors: the values' mean under each key channel, which queries then combine.

    With an output stride the positions that the original network has ask each other, and those
    between them likewise; the class token, which is with all of them, asks the former.
    """

    def __init__(self, scale: ScaleSettings) -> None:
        super().__init__()
        dim, self.num_heads = scale.dim, scale.num_heads
        self.scale = head_width(dim, self.num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=scale.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(scale.drop)
        self.crpe = scale.crpe

    def combine(self, qkv: torch.Tensor) -> torch.Tensor:
        """(N, L, 3C) -> (N, L, C)."""
        q, k, v = split_heads(qkv, 3, self.num_heads)
        y = q @ (k.softmax(2).transpose(-1, -2) @ v)  # (N, heads, L, C / heads)
        return join_heads(y).mul_(self.scale)

    def attend(self, qkv: torch.Tensor, grid: Size) -> torch.Tensor:
        """(N, 1 + H * W, 3C) -> (N, 1 + H * W, C)."""
        if (density := self.crpe.density) == 1:
            return self.combine(qkv)
        first = qkv[:, :1]

        def mix(x: torch.Tensor) -> torch.Tensor:
            before = first.repeat(len(x) // len(first), 1, 1)
            y = self.combine(torch.cat((before, as_sequence(x)), 1))[:, 1:]
            return as_image(y, (x.shape[2], x.shape[3]))

        x = as_image(qkv[:, 1:], grid)
        own = as_sequence(x[..., ::density, ::density])
        token = self.combine(torch.cat((first, own), 1))[:, :1]
        return torch.cat((token, as_sequence(in_phases(mix, (x,), density))), 1)

    def forward(self, x: torch.Tensor, grid: Size) -> torch.Tensor:
        qkv = self.qkv(x)
        q, _, v = qkv[:, 1:].chunk(3, -1)
        near = as_sequence(self.crpe(as_image(v, grid)))
        y = self.attend(qkv, grid)
        y[:, 1:].add_(q * near)
        return self.proj_drop(self.proj(y))


class SerialBlock(nn.Module):
    """Positions, attention and MLP at one scale."""

    def __init__(self, scale: ScaleSettings) -> None:
        super().__init__()
        self.cpe = scale.cpe
        self.norm1 = scale.norm(scale.dim)
        self.factoratt_crpe = FactorAttention(scale)
        self.drop_path = DropPath(scale.drop_path)
        self.norm2 = scale.norm(scale.dim)
        self.mlp = Mlp(scale.dim, scale.hidden, drop=scale.drop)

    def forward(self, tokens: Tokens) -> Tokens:
        x, grid, prefix = tokens.on_map(self.cpe)
        x = x + self.drop_path(self.factoratt_crpe(self.norm1(x), grid))
        return Tokens(x + self.drop_path(self.mlp(self.norm2(x))), grid, prefix)


class Shrink(nn.Module):
    """Bilinear interpolation to a part of the size: the mean of the four positions in the middle of
    ``stride * stride``; (N, C, H, W)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.density, self.start = stride, 1, stride // 2 - 1

    def dilate(self, density: int, stride: Size) -> nn.Module:
        """The mean of positions that are further apart, with what is left of the stride."""
        self.density, self.stride = self.density * density, stride[0]
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step, start = self.density, self.start * self.density
        x = F.pad(x, (0, start + step, 0, start + step), mode="replicate")[..., start:, start:]
        if step == 1:
            return F.avg_pool2d(x, 2, self.stride)
        weight = x.new_full((x.shape[1], 1, 2, 2), 1 / 4)
        return F.conv2d(x, weight, stride=self.stride, dilation=step, groups=x.shape[1])


class Exchange(nn.Module):
    """Attention at the scales 2, 3 and 4, each of which gets what the others attended to.

    The scales have one MLP, under three names, which is left to :meth:`refine`: behind the last
    exchange it runs for the levels that are asked for.
    """

    def __init__(self, scales: Sequence[ScaleSettings]) -> None:
        super().__init__()
        one = scales[0]
        for i in SCALES:
            self.add_module(f"norm1{i}", one.norm(one.dim))
        for i, scale in zip(SCALES, scales, strict=True):
            self.add_module(f"factoratt_crpe{i}", FactorAttention(scale))
        self.drop_path = DropPath(one.drop_path)
        for i in SCALES:
            self.add_module(f"norm2{i}", one.norm(one.dim))
        mlp = Mlp(one.dim, one.hidden, drop=one.drop)
        for i in SCALES:
            self.add_module(f"mlp{i}", mlp)
        for i, j in itertools.permutations(SCALES, 2):
            factor = 2 ** abs(i - j)
            grow = nn.Upsample(scale_factor=float(factor), mode="bilinear")
            self.add_module(f"resize{i}{j}", grow if i > j else Shrink(factor))

    def resized(self, y: Tokens, i: int, j: int, grid: Size) -> torch.Tensor:
        """Tokens of scale ``i`` on the grid of scale ``j``."""
        resize = self.get_submodule(f"resize{i}{j}")
        return y.on_map(lambda image: crop(resize(image), grid, axis=2)).x

    def refine(self, tokens: Tokens, i: int) -> Tokens:
        """The MLP of scale ``i``."""
        y = self.get_submodule(f"mlp{i}")(self.get_submodule(f"norm2{i}")(tokens.x))
        return tokens._replace(x=tokens.x + self.drop_path(y))

    def forward(self, scales: Sequence[Tokens], cpes: Sequence[PositionConv]) -> list[Tokens]:
        """Positions and attention at each scale, and the sum of what all attended to."""
        scales = [tokens.on_map(cpe) for tokens, cpe in zip(scales, cpes, strict=True)]
        values = {}
        for i, (x, grid, prefix) in zip(SCALES, scales, strict=True):
            x = self.get_submodule(f"norm1{i}")(x)
            values[i] = Tokens(self.get_submodule(f"factoratt_crpe{i}")(x, grid), grid, prefix)
        results = []
        for j, (x, grid, prefix) in zip(SCALES, scales, strict=True):
            others = (self.resized(values[i], i, j, grid) for i in SCALES if i != j)
            results.append(Tokens(x + self.drop_path(sum(others, values[j].x)), grid, prefix))
        return results


class ParallelBlock(Exchange):
    """An exchange, then the MLP at each scale."""

    def forward(self, scales: Sequence[Tokens], cpes: Sequence[PositionConv]) -> list[Tokens]:
        scales = super().forward(scales, cpes)
        return [self.refine(tokens, i) for i, tokens in zip(SCALES, scales, strict=True)]


# The networks ---------------------------------------------------------------------------------


class Patches(VectorConv):
    """Positions side by side to one; an odd map gets a row or column of zeros."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad_to_windows(x.permute(0, 2, 3, 1), stride_of(self.proj))
        return super().forward(x.permute(0, 3, 1, 2))


class Scale(NamedTuple):
    """One scale of the last parallel block, whose MLP runs for the levels that are asked for: its
    place among all, as they are before that MLP, and by place those for which it has run."""

    scales: Sequence[Tokens]
    place: int
    done: dict[int, Tokens]

    def before(self) -> torch.Tensor:
        """(N, 1, C), the class token, once the level was read."""
        return self.done[self.place].before()


class Coat(Backbone):
    """Four scales, one after the other, each with a class token of its own; then perhaps blocks in
    which the last three exchange what they attend to.

    Any size that is a multiple of the patch goes in, whatever ``img_size``: there are no tables.
    The final features are the tokens of the coarsest scale; with parallel blocks each is combined
    with the class tokens, or the means, of the two finer ones.

    Args:
        img_size: (height, width) of the images that it was trained with.
        patch_size: positions of the first map.
        embed_dims, serial_depths, mlp_ratios: channels, blocks and width of the hidden layers, of
            each scale.
        parallel_depth: number of parallel blocks, which need scales of one width.
        num_heads: of each block.
        qkv_bias: biases of the projections to queries, keys and values.
        crpe_window: kernel sizes of the relative positions, and the number of heads of each.
        drop_rate: before the classifier.
        proj_drop_rate, drop_path_rate: of the blocks' outputs, and of the branches of all blocks.
        dynamic_img_pad: pad an input that is no multiple of the patch.

    The other arguments are every Backbone's.

    Raises:
        ArgumentError: parallel blocks of scales that differ, or in the class without them.
    """

    first_conv, last_fc = "patch_embed1.proj", "head"
    num_prefix_tokens = 1
    # A scale receives the upsampled maps of coarser ones
    breaks_law: tuple[str, ...] = ("resampling",)

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int = 4,
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        serial_depths: Sequence[int] = (3, 4, 6, 3),
        parallel_depth: int = 0,
        num_heads: int = 8,
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        qkv_bias: bool = True,
        crpe_window: Mapping[int, int] | None = None,
        norm_layer: str | Layer = "layernorm",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__(in_chans=in_chans)
        check_rate("drop_path_rate", drop_path_rate)
        self.parallel_depth = parallel_depth
        alike = len({*embed_dims[1:]}) == len({*mlp_ratios[1:]}) == 1
        if parallel_depth and not (alike and self.breaks_law):
            raise ArgumentError(
                f"parallel_depth={parallel_depth!r}: {type(self).__name__} with embed_dims="
                f"{embed_dims!r} and mlp_ratios={mlp_ratios!r} has no parallel blocks, which are "
                "for scales 2, 3 and 4 of one width, in the class Coat."
            )
        self.patch_embed1 = PatchEmbed(
            patch_size,
            img_size=img_size,
            in_chans=in_chans,
            embed_dim=embed_dims[0],
            norm=nn.LayerNorm,
            pad=dynamic_img_pad,
        )
        self.size_divisibility = self.patch_embed1.multiple
        make = partial(
            ScaleSettings,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            norm=get_norm(norm_layer),
            drop=proj_drop_rate,
            drop_path=drop_path_rate,
        )
        for i, (before, dim) in enumerate(itertools.pairwise(embed_dims), 2):
            self.add_module(f"patch_embed{i}", Patches(before, dim, 2, stride=2))
        for i, dim in enumerate(embed_dims, 1):
            self.register_parameter(f"cls_token{i}", nn.Parameter(torch.empty(1, 1, dim)))
            init_tokens(self.part("cls_token", i))
            self.add_module(f"cpe{i}", PositionConv(dim))
        scales = []
        for i, (dim, ratio) in enumerate(zip(embed_dims, mlp_ratios, strict=True), 1):
            crpe = RelativePositionConv(head_width(dim, num_heads), crpe_window or WINDOW)
            self.add_module(f"crpe{i}", crpe)
            scales.append(make(dim, int(dim * ratio), cpe=self.part("cpe", i), crpe=crpe))
        self.add_blocks(scales, serial_depths)
        self.add_head(
            embed_dims[-1],
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            head=TokenHead(),
        )
        initialize(self, linear=[trunc_normal, zero_bias])

    def part(self, name: str, scale: int) -> Any:
        """Return the module, or the class token, of a scale from 1."""
        return getattr(self, f"{name}{scale}")

    def add_blocks(self, scales: Sequence[ScaleSettings], depths: Sequence[int]) -> None:
        """Add the blocks, and the norms behind them; declare the levels."""
        patch = self.patch_embed1.reduction
        for i, (scale, depth) in enumerate(zip(scales, depths, strict=True), 1):
            blocks = Blocks(*(SerialBlock(scale) for _ in range(depth)))
            self.add_module(name := f"serial_blocks{i}", blocks)
            if i == 1 or not self.parallel_depth:
                self.add_level(name, channels=scale.dim, reduction=patch * 2 ** (i - 1))
        norm, dim = scales[-1].norm, scales[-1].dim
        if not self.parallel_depth:
            self.norm4 = norm(dim)
            return
        kinds: list[type[Exchange]] = [*[ParallelBlock] * (self.parallel_depth - 1), Exchange]
        self.parallel_blocks = Blocks(*(kind(scales[1:]) for kind in kinds))
        for i in SCALES:
            self.add_module(f"norm{i}", norm(dim))
            self.add_stage(f"scale{i}", nn.Identity(), channels=dim, reduction=patch * 2 ** (i - 1))
        self.aggregate = nn.Conv1d(len(SCALES), 1, 1)

    def serial(self, x: torch.Tensor, scale: int) -> Tokens:
        """Return a scale's tokens, from the map of the scale before."""
        x = self.part("patch_embed", scale)(x)  # (N, H, W, C)
        grid = (x.shape[1], x.shape[2])
        first = self.part("cls_token", scale).expand(x.shape[0], -1, -1)
        x = torch.cat((first, x.flatten(1, 2)), 1)
        tokens: Tokens = self.part("serial_blocks", scale)(Tokens(x, grid, 1))
        return tokens

    def forward_levels(self, x: torch.Tensor) -> Iterator[Tokens | Scale]:
        y = self.serial(x, 1)  # (N, 1 + H/4 * W/4, C)
        yield y
        scales = []
        for i in SCALES:
            y = self.serial(y.as_map(), i)  # (N, 1 + H/8 * W/8, C), and so on
            if self.parallel_depth:
                scales.append(y)
            else:
                yield y
        if not self.parallel_depth:
            return
        scales = self.parallel_blocks.through(scales, cpes=[self.part("cpe", i) for i in SCALES])
        done: dict[int, Tokens] = {}
        for place in range(len(scales)):
            yield Scale(scales, place, done)

    def tokens(self, y: Tokens | Scale) -> Tokens:
        """Return a level's tokens; the last parallel block's MLP runs here."""
        if isinstance(y, Tokens):
            return y
        if y.place not in y.done:
            scale, last = SCALES[y.place], cast(Exchange, self.parallel_blocks[-1])
            y.done[y.place] = self.part("scale", scale)(last.refine(y.scales[y.place], scale))
        return y.done[y.place]

    def as_map(self, y: Tokens | Scale) -> torch.Tensor:
        return self.tokens(y).as_map()

    def normalize(self, y: Tokens | Scale, index: int) -> Tokens | Scale:
        if not index or not (self.parallel_depth or index == len(self.levels) - 1):
            return y
        tokens = self.tokens(y)
        return tokens._replace(x=self.part("norm", index + 1)(tokens.x))

    def finish(self, y: Tokens | Scale) -> torch.Tensor:
        if isinstance(y, Tokens):
            return self.norm4(y.x)
        *finer, x = (self.tokens(self.normalize(y._replace(place=i), i + 1)).x for i in range(3))
        means = (z[:, 1:].mean(1, keepdim=True).expand_as(x[:, 1:]) for z in finer)
        finer = [torch.cat((z[:, :1], mean), 1) for z, mean in zip(finer, means, strict=True)]
        together = torch.stack((*finer, x), 2).flatten(0, 1)  # (N * L, 3, C)
        return self.aggregate(together).view_as(x)

    def no_weight_decay(self) -> set[str]:
        return {f"cls_token{i}" for i in (1, *SCALES)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        groups: dict[str, Any] = {}
        for i in (1, *SCALES):
            groups[f"stem{i}"] = rf"^cls_token{i}|patch_embed{i}|crpe{i}|cpe{i}"
            groups[f"serial_blocks{i}"] = rf"^serial_blocks{i}\.(\d+)"
        last = [(r"^parallel_blocks\.(\d+)", None), (r"^norm|aggregate", (99999,))]
        return {**groups, "parallel_blocks": last}

    def convert_state_dict(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As the base class says; without its authors' norms that nothing reads, and with all names
        of modules that are shared."""
        unread = {"norm1", "norm2", "norm3", "norm4", "aggregate"} - self._modules.keys()
        converted = {k: v for k, v in state.items() if k.partition(".")[0] not in unread}
        names: dict[int, str] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            first = names.setdefault(id(parameter), name)
            if first in converted:
                converted.setdefault(name, converted[first])
        return converted


class CoatLite(Coat):
    """CoaT without parallel blocks."""

    breaks_law = ()


PARALLEL: dict[str, Any] = dict(serial_depths=(2, 2, 2, 2), parallel_depth=6)
TWO: dict[str, Any] = dict(serial_depths=(2, 2, 2, 2), mlp_ratios=(8, 8, 4, 4))
MEDIUM: dict[str, Any] = dict(embed_dims=(128, 256, 320, 512), serial_depths=(3, 6, 10, 8))
NARROW: dict[str, Any] = dict(embed_dims=(64, 128, 256, 320), **TWO)
WIDE: dict[str, Any] = dict(embed_dims=(64, 128, 320, 512), **TWO)

VARIANTS: dict[str, dict[str, Any] | tuple[type[Coat], dict[str, Any]]] = {
    "coat_tiny": dict(embed_dims=(152, 152, 152, 152), **PARALLEL),
    "coat_mini": dict(embed_dims=(152, 216, 216, 216), **PARALLEL),
    "coat_small": dict(embed_dims=(152, 320, 320, 320), **PARALLEL),
    "coat_lite_tiny": (CoatLite, NARROW),
    "coat_lite_mini": (CoatLite, WIDE),
    "coat_lite_small": (CoatLite, WIDE | {"serial_depths": (3, 4, 6, 3)}),
    "coat_lite_medium": (CoatLite, MEDIUM),
    "coat_lite_medium_384": (CoatLite, dict(img_size=384, **MEDIUM)),
}

FAMILY = Family(model=Coat, variants=VARIANTS, weights=weights_table("coat"))
