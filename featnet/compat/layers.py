"""Layers with timm's constructors, where featnet's take other arguments."""

from __future__ import annotations

import collections.abc
import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .. import layers
from ..errors import ArgumentError
from ..layers import cells, mobile_conv, positions
from ..layers.factory import ACTS, NORMS

Size = tuple[int, int]
LayerType = str | Callable[..., nn.Module] | None


def to_ntuple(n: int) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that repeats a number n times, and leaves a sequence as it is."""

    def parse(value: object) -> tuple[Any, ...]:
        if isinstance(value, collections.abc.Iterable) and not isinstance(value, str):
            return tuple(value)
        return tuple(itertools.repeat(value, n))

    return parse


to_1tuple, to_2tuple, to_3tuple, to_4tuple = map(to_ntuple, range(1, 5))


def make_divisible(
    v: float, divisor: int = 8, min_value: int | None = None, round_limit: float = 0.9
) -> int:
    """Return the multiple of ``divisor`` nearest to a number of channels."""
    return layers.make_divisible(v, divisor, minimum=min_value, round_limit=round_limit)


class DropPath(layers.DropPath):
    """Skip a residual branch for a share of the samples."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__(drop_prob)
        self.scale_by_keep = scale_by_keep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 1.0 if self.scale_by_keep or not self.training else 1.0 - self.drop_prob
        return super().forward(x) * scale if scale != 1.0 else super().forward(x)


def drop_path(
    x: torch.Tensor, drop_prob: float = 0.0, training: bool = False, scale_by_keep: bool = True
) -> torch.Tensor:
    """Zero a share of the samples, in training."""
    return DropPath(drop_prob, scale_by_keep).train(training)(x)


def calculate_drop_path_rates(
    drop_path_rate: float, depths: int | list[int], stagewise: bool = False
) -> list[Any]:
    """Return a rate for each block, growing from 0."""
    if isinstance(depths, int):
        return layers.drop_path_rates(drop_path_rate, depths)
    return list(layers.drop_path_rates(drop_path_rate, depths, per_stage=stagewise))


class Mlp(nn.Module):
    """Two layers, each position for itself: linear, or with ``use_conv`` 1x1 convolutions."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden, (first, second) = hidden_features or in_features, to_2tuple(bias)
        rates = to_2tuple(drop)
        linear = functools.partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear
        self.fc1: nn.Module = linear(in_features, hidden, bias=first)
        self.act = act_layer()
        self.drop1 = nn.Dropout(rates[0])
        self.norm = norm_layer(hidden) if norm_layer is not None else nn.Identity()
        self.fc2: nn.Module = linear(hidden, out_features or in_features, bias=second)
        self.drop2 = nn.Dropout(rates[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.drop1(self.act(self.fc1(x))))
        return self.drop2(self.fc2(x))


class BatchNormAct2d(nn.BatchNorm2d):
    """A batch norm and the activation behind it, under the norm's names.

    Args:
        num_features, eps, momentum, affine, track_running_stats: of the norm.
        apply_act: False leaves the activation out.
        act_layer, act_kwargs, inplace: of the activation.
        drop_layer: what comes between the two.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        apply_act: bool = True,
        act_layer: LayerType = nn.ReLU,
        act_kwargs: dict[str, Any] | None = None,
        inplace: bool = True,
        drop_layer: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.drop = drop_layer() if drop_layer is not None else nn.Identity()
        act = create_act_layer(act_layer, inplace, **(act_kwargs or {})) if apply_act else None
        self.act = act or nn.Identity()

    @classmethod
    def of(cls, norm: nn.Module, act: nn.Module) -> BatchNormAct2d:
        """Return a batch norm's tensors and settings with an activation behind them.

        Raises:
            ArgumentError: another norm.
        """
        if type(norm) is not nn.BatchNorm2d:
            raise ArgumentError(f"A {type(norm).__name__}: torch.nn.BatchNorm2d is expected.")
        norm_act = cls(norm.num_features, norm.eps, norm.momentum, affine=norm.affine)
        norm_act.load_state_dict(norm.state_dict(), assign=True)
        norm_act.act = act
        return norm_act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


class LayerNorm(nn.LayerNorm):
    """torch's, with timm's epsilon."""

    def __init__(self, num_channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__(num_channels, eps=eps, elementwise_affine=affine)


class LayerScale(nn.Module):
    """A factor for each channel, which starts small; (..., C)."""

    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.gamma = nn.Parameter(init_values * torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class PatchEmbed(nn.Module):
    """Patches to vectors; (N, C, H, W) -> (N, L, D), or with ``flatten=False`` (N, D, h, w)."""

    def __init__(
        self,
        img_size: int | Size | None = 224,
        patch_size: int | Size = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Callable[[int], nn.Module] | None = None,
        flatten: bool = True,
        bias: bool = True,
        strict_img_size: bool = True,
    ) -> None:
        super().__init__()
        self.patch_size: Any = to_2tuple(patch_size)
        self.img_size = None if img_size is None else to_2tuple(img_size)
        sides = zip(self.img_size or (), self.patch_size, strict=False)
        self.grid_size = tuple(s // p for s, p in sides) or None
        self.num_patches = self.grid_size and self.grid_size[0] * self.grid_size[1]
        self.flatten, self.strict_img_size = flatten, strict_img_size
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size, bias=bias)
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = tuple(x.shape[-2:])
        if self.strict_img_size and self.img_size is not None and size != self.img_size:
            raise ArgumentError(f"The input is {size}, the model was made for {self.img_size}.")
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2) if self.flatten else x)


class SelectAdaptivePool2d(nn.Module):
    """Pool a map by name: ``avg``, ``max``, ``avgmax``, ``catavgmax``, ``""``."""

    def __init__(
        self, output_size: int = 1, pool_type: str = "fast", flatten: bool = False
    ) -> None:
        super().__init__()
        if output_size != 1:
            raise ArgumentError(f"output_size={output_size!r}: only 1, the whole map, is had here.")
        self.pool = layers.GlobalPool(pool_type)
        self.pool_type, self.spread = pool_type, not flatten and bool(pool_type)

    def feat_mult(self) -> int:
        """Return how many channels come out for one that goes in."""
        return self.pool.multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(x)
        return x[..., None, None] if self.spread else x


def get_act_layer(name: LayerType = "relu") -> Callable[..., nn.Module] | None:
    """Return the class of an activation by its name; a class stays itself, and nothing None."""
    return layers.get_layer("act_layer", name, _ACTS) if name else None


def create_act_layer(
    name: LayerType, inplace: bool | None = None, **kwargs: object
) -> nn.Module | None:
    """Make an activation by its name; None for no name."""
    layer = get_act_layer(name)
    if layer is None:
        return None
    if inplace is None:
        return layer(**kwargs)
    try:
        return layer(inplace=inplace, **kwargs)
    except TypeError:
        return layer(**kwargs)


def get_norm_layer(norm_layer: LayerType) -> Callable[..., nn.Module] | None:
    """Return a normalisation ``f(channels)`` by its name; a class stays itself."""
    return layers.get_layer("norm_layer", norm_layer, _NORMS) if norm_layer else None


def create_norm_layer(layer_name: LayerType, num_features: int, **kwargs: object) -> nn.Module:
    """Make a normalisation of so many channels by its name.

    Raises:
        ArgumentError: no such name.
    """
    layer = get_norm_layer(layer_name)
    if layer is None:
        raise ArgumentError(f"layer_name={layer_name!r}: the name of a normalisation is expected.")
    return layer(num_features, **kwargs)


_ACTS = {**ACTS, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid, "prelu": nn.PReLU}
_ACTS |= {"celu": nn.CELU, "selu": nn.SELU}
_NORMS = {**NORMS, "layernorm": LayerNorm}


def create_conv2d(
    in_channels: int, out_channels: int, kernel_size: int | list[int], **kwargs: Any
) -> nn.Module:
    """Make a convolution without bias.

    Args:
        in_channels, out_channels: numbers of channels.
        kernel_size: one size, or a list of sizes for parts of the channels.
        **kwargs: ``stride``, ``dilation``, ``groups`` or ``depthwise``, ``bias``, and ``padding``:
            ``""`` alike on both sides, ``"same"`` as TensorFlow does, or a number.

    Raises:
        ArgumentError: a mixture of kernels or experts together with what they do not have.
    """
    depthwise, padding = kwargs.pop("depthwise", False), kwargs.pop("padding", "")
    groups = in_channels if depthwise else kwargs.pop("groups", 1)
    if isinstance(kernel_size, list) or kwargs.get("num_experts"):
        kernel = tuple(kernel_size) if isinstance(kernel_size, list) else kernel_size
        experts, stride = kwargs.pop("num_experts", 0), kwargs.pop("stride", 1)
        if kwargs:
            raise ArgumentError(f"{', '.join(kwargs)}: not of a mixture of kernels or experts.")
        return mobile_conv.conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            groups=groups,
            pad_type=padding,
            experts=experts,
        )
    kwargs = {"bias": False, "stride": 1, "dilation": 1, "groups": groups, **kwargs}
    sides = [to_2tuple(kwargs["stride"]), to_2tuple(kwargs["dilation"]), to_2tuple(kernel_size)]
    if padding == "same" and (max(sides[0]) > 1 or any(k % 2 == 0 for k in sides[2])):
        return mobile_conv.Conv2dSame(in_channels, out_channels, kernel_size, **kwargs)
    if isinstance(padding, str):
        alike = padding in ("", "same")
        halves = tuple(((s - 1) + d * (k - 1)) // 2 for s, d, k in zip(*sides, strict=True))
        padding = halves if alike else 0
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, **kwargs)


def create_pool2d(
    pool_type: str, kernel_size: int, stride: int | None = None, **kwargs: Any
) -> nn.Module:
    """Make a pool, ``"avg"`` or ``"max"``; ``padding`` as for :func:`create_conv2d`.

    Raises:
        ArgumentError: another pool, or options beside TensorFlow's padding.
    """
    if pool_type not in ("avg", "max"):
        raise ArgumentError(f"pool_type={pool_type!r}: 'avg' or 'max' is expected.")
    step, padding = stride or kernel_size, kwargs.pop("padding", "")
    if padding == "same" and (step > 1 or kernel_size % 2 == 0):
        if kwargs:
            raise ArgumentError(f"{', '.join(kwargs)}: not with padding='same'.")
        return (cells.SameMaxPool2d if pool_type == "max" else cells.SameAvgPool2d)(
            kernel_size, step
        )
    half = (step + kernel_size - 2) // 2 if padding in ("", "same") else padding
    pool: Callable[..., nn.Module] = nn.AvgPool2d if pool_type == "avg" else nn.MaxPool2d
    return pool(kernel_size, step, half, **kwargs)


def resample_abs_pos_embed(
    posemb: torch.Tensor,
    new_size: Iterable[int],
    old_size: Iterable[int] | None = None,
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> torch.Tensor:
    """Resample (1, prefix + h * w, C), learned for one grid, for another.

    Args:
        posemb: the table.
        new_size, old_size: (height, width) of the grids; by default the old one is a square.
        num_prefix_tokens: rows in front that belong to no position.
        interpolation, antialias: of the interpolation.
        verbose: accepted.
    """
    count = posemb.shape[1] - num_prefix_tokens
    side = int(count**0.5)
    height, width = new_size
    before = tuple(old_size) if old_size is not None else (side, side)

    def resize(maps: torch.Tensor, size: Size) -> torch.Tensor:
        return F.interpolate(maps, size=size, mode=interpolation, antialias=antialias)

    return positions.resample_positions(
        posemb, (height, width), old=(before[0], before[1]), prefix=num_prefix_tokens, resize=resize
    )


def resample_patch_embed(
    patch_embed: torch.Tensor,
    new_size: Iterable[int],
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> torch.Tensor:
    """Resample the weight (D, C, h, w) of a patch embedding for patches of another size."""
    height, width = new_size

    def resize(maps: torch.Tensor, size: Size) -> torch.Tensor:
        return F.interpolate(maps, size=size, mode=interpolation, antialias=antialias)

    return positions.resample_patches(patch_embed, (height, width), resize=resize)


@torch.no_grad()
def trunc_normal_tf_(
    tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> torch.Tensor:
    """Fill with a normal cut at ``a`` and ``b`` before it is scaled, as TensorFlow does."""
    nn.init.trunc_normal_(tensor, 0.0, 1.0, a, b)
    return tensor.mul_(std).add_(mean)


def lecun_normal_(tensor: torch.Tensor) -> torch.Tensor:
    """Fill with a truncated normal of variance 1 / fan-in."""
    fan_in = nn.init._calculate_fan_in_and_fan_out(tensor)[0]
    return trunc_normal_tf_(tensor, std=fan_in**-0.5 / 0.87962566103423978)
