"""EfficientNet, built with timm's arguments."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ...dilation.stride import set_output_stride
from ...errors import ArgumentError
from ...layers.mobile_spec import MobileSqueezeExcite
from ...models import efficientnet
from ..layers import BatchNormAct2d, make_divisible
from .stand_in import Layer, StandIn, smoothing


def round_channels(
    channels: float,
    multiplier: float = 1.0,
    divisor: int = 8,
    channel_min: int | None = None,
    round_limit: float = 0.9,
) -> int:
    """Return a number of channels times ``multiplier``, as a multiple of ``divisor``."""
    if not multiplier:
        return int(channels)
    return make_divisible(channels * multiplier, divisor, channel_min, round_limit)


@dataclasses.dataclass(frozen=True)
class ArchDef:
    """The text of an architecture, and how its depth is scaled; for ``block_args``."""

    stages: tuple[tuple[str, ...], ...]
    depth: float | tuple[float, ...]
    depth_round: Callable[[float], int]
    fixed_ends: bool
    group_size: int | None


@dataclasses.dataclass(frozen=True)
class _Arch(efficientnet.Arch):
    """An architecture whose channels are rounded by a function."""

    rounding: Callable[[int], int] = round_channels

    def channels(self, count: int) -> int:
        return self.rounding(count)


def decode_arch_def(
    arch_def: Sequence[Sequence[str]],
    depth_multiplier: float | tuple[float, ...] = 1.0,
    depth_trunc: str = "ceil",
    experts_multiplier: int = 1,
    fix_first_last: bool = False,
    group_size: int | None = None,
) -> ArchDef:
    """Return what :class:`EfficientNet` takes as ``block_args``.

    Args:
        arch_def: for each stage the texts of its blocks, ``"ir_r2_k3_s2_e6_c24_se0.25"``.
        depth_multiplier: factor on the blocks of each stage.
        depth_trunc: ``"ceil"`` or ``"round"``.
        experts_multiplier: must be 1.
        fix_first_last: leave the depth of the first and the last stage.
        group_size: channels of a group.

    Raises:
        ArgumentError: another ``depth_trunc``, or more experts.
    """
    if depth_trunc not in ("ceil", "round") or experts_multiplier != 1:
        raise ArgumentError(
            f"depth_trunc={depth_trunc!r}, experts_multiplier={experts_multiplier!r}: 'ceil' or "
            "'round', and 1, are expected."
        )
    rounding: Callable[[float], int] = math.ceil if depth_trunc == "ceil" else round
    stages = tuple(tuple(stage) for stage in arch_def)
    return ArchDef(stages, depth_multiplier, rounding, fix_first_last, group_size)


class EfficientNet(efficientnet.EfficientNet, metaclass=StandIn):
    """:class:`featnet.models.efficientnet.EfficientNet`, built with timm's arguments.

    As in timm ``bn1`` acts too, so that a forward of one's own may call ``conv_stem``, ``bn1`` and
    the blocks.

    Args:
        block_args: what :func:`decode_arch_def` returns.
        num_classes, in_chans, global_pool: of every network.
        num_features: width of the last convolution.
        stem_size, stem_kernel_size, fix_stem: of the first convolution; ``fix_stem`` leaves its
            width as it is.
        output_stride: 32, 16, 8, 4 or 2.
        pad_type: ``""`` or ``"same"``.
        act_layer, norm_layer, aa_layer, se_layer: names or classes; the norm is a batch norm.
        round_chs_fn: of numbers of channels.
        drop_rate, drop_path_rate: as in featnet.

    Raises:
        ArgumentError: a value that featnet refuses.
    """

    stands_in = True

    def __init__(
        self,
        block_args: ArchDef,
        num_classes: int = 1000,
        num_features: int = 1280,
        in_chans: int = 3,
        stem_size: int = 32,
        stem_kernel_size: int = 3,
        fix_stem: bool = False,
        output_stride: int = 32,
        pad_type: str = "",
        act_layer: Layer | None = None,
        norm_layer: Layer | None = None,
        aa_layer: Any = None,
        se_layer: Layer | None = None,
        round_chs_fn: Callable[..., int] = round_channels,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if not isinstance(block_args, ArchDef):
            raise ArgumentError(
                f"block_args={block_args!r}: what decode_arch_def returns is expected."
            )
        arch = _Arch(
            "\n".join(" ".join(stage) for stage in block_args.stages),
            depth=block_args.depth,
            stem=stem_size if fix_stem else round_chs_fn(stem_size),
            stem_kernel=stem_kernel_size,
            head=num_features,
            depth_round=block_args.depth_round,
            fixed_ends=block_args.fixed_ends,
            group_size=block_args.group_size,
            rounding=round_chs_fn,
        )
        super().__init__(
            arch,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            pad_type=pad_type,
            act_layer=act_layer or "relu",
            norm_layer=norm_layer or "batchnorm",
            aa_layer=smoothing(aa_layer),
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            se_layer=se_layer or MobileSqueezeExcite,
        )
        if output_stride != 32:
            set_output_stride(self, output_stride, inplace=True)

    def add_stem(self, arch: efficientnet.Arch, settings: Any) -> None:
        super().add_stem(arch, settings)
        self.bn1, self.act1 = BatchNormAct2d.of(self.bn1, self.act1), nn.Identity()
