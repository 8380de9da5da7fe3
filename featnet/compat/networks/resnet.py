"""ResNet, built with timm's arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ...dilation.stride import set_output_stride
from ...errors import ArgumentError
from ...models import resnet, sknet
from ..modules import NotHereError
from .stand_in import Layer, StandIn, smoothing


class ResNet(resnet.ResNet, metaclass=StandIn):
    """:class:`featnet.models.resnet.ResNet`, built with timm's arguments.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``, or those of ``timm.models.sknet``.
        layers: blocks in each stage.
        num_classes, in_chans, global_pool: of every network.
        output_stride: 32, 16, 8, 4 or 2.
        cardinality, base_width: groups of the 3x3 convolutions, and channels of each.
        stem_width, stem_type: ``""`` for one convolution; ``"deep"`` or ``"deep_tiered"``.
        replace_stem_pool: a strided convolution in place of the first pooling.
        block_reduce_first: divisor of the first convolutions' width.
        down_kernel_size, avg_down: of the projection shortcuts.
        channels: widths of the stages, before the blocks' expansion.
        act_layer, norm_layer, aa_layer: names or classes.
        drop_rate, drop_path_rate, drop_block_rate, zero_init_last: as in featnet.
        block_args: ``attn_layer``; of SK blocks ``sk_kwargs``.

    Raises:
        NotHereError: blocks of one's own, which timm calls with other arguments.
        ArgumentError: a value that featnet refuses.
    """

    stands_in = True

    def __init__(
        self,
        block: Any,
        layers: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = "avg",
        cardinality: int = 1,
        base_width: int = 64,
        stem_width: int = 64,
        stem_type: str = "",
        replace_stem_pool: bool = False,
        block_reduce_first: int = 1,
        down_kernel_size: int = 1,
        avg_down: bool = False,
        channels: Sequence[int] = (64, 128, 256, 512),
        act_layer: Layer = nn.ReLU,
        norm_layer: Layer = nn.BatchNorm2d,
        aa_layer: Any = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_block_rate: float = 0.0,
        zero_init_last: bool = True,
        block_args: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(block_args or {})
        known = inspect.signature(block).parameters.values()
        passes = any(p.name == "settings" or p.kind is p.VAR_KEYWORD for p in known)
        if not (issubclass(block, resnet.Residual) and passes):
            raise NotHereError(
                f"block={block!r}: blocks are called with other arguments here than in timm. "
                "Derive from featnet.models.resnet.Residual, or run this code with timm."
            )
        select = options.pop("sk_kwargs", None)
        attention = options.pop("attn_layer", None)
        if options:
            raise NotHereError(f"block_args={options!r}: attn_layer and sk_kwargs are known here.")
        super().__init__(
            block,
            tuple(layers),
            planes=tuple(channels)[: len(layers)],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            stem=_stem(stem_width, stem_type, replace_stem_pool),
            cardinality=cardinality,
            base_width=base_width,
            reduce_first=block_reduce_first,
            down_kernel_size=down_kernel_size,
            avg_down=avg_down,
            act_layer=act_layer,
            norm_layer=norm_layer,
            attn_layer=attention,
            aa_layer=smoothing(aa_layer),
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            drop_block_rate=drop_block_rate,
            zero_init_last=zero_init_last,
            block_args=_selective(select) if select else None,
        )
        if output_stride != 32:
            set_output_stride(self, output_stride, inplace=True)


def _stem(width: int, kind: str, pools_by_convolution: bool) -> resnet.Stem:
    widths = {
        "": (64,),
        "deep": (width, width, 2 * width),
        "deep_tiered": (3 * (width // 4), width, 2 * width),
    }
    if kind not in widths:
        raise ArgumentError(f"stem_type={kind!r}: one of {', '.join(map(repr, widths))}.")
    return resnet.Stem(widths[kind], conv_pool=pools_by_convolution)


def _selective(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"select": functools.partial(sknet.SelectiveKernel, **options)}
