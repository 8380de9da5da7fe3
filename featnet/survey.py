"""Measure networks for the table of capabilities, on the meta device."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from . import registry
from .capabilities import TABLE, Capabilities, read_table, render_table
from .errors import InputSizeError
from .factory import create_model


class CountMacs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context: count the multiply-adds of what runs.

    Attributes:
        macs: those so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in flop_registry and func._overloadpacket not in flop_registry:
            decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        output = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.macs += count(*args, **kwargs, out_val=output) // 2
        return output


def sizes(model: Any, size: Sequence[int]) -> dict[str, Any]:
    """Try inputs of other sizes.

    Args:
        model: a classifier on the meta device.
        size: (height, width) of its usual input.

    Returns:
        The fields of its record about sizes.
    """

    def runs(height: int, width: int) -> bool:
        try:
            with torch.no_grad():
                model(torch.empty(1, model.in_chans, height, width, device="meta"))
        except InputSizeError:
            return False
        return True

    step = model.size_divisibility
    height, width = (side // step * step for side in size)
    if step == 1 and not runs(height - 29, width - 27):
        step = 32  # anti-aliasing and average pooling round odd sides differently
    largest = not runs(height + 2 * step, width + 4 * step)
    return {"size_multiple": step if step > 1 else 0, "largest": largest}


def measure(name: str) -> Capabilities:
    """Measure one variant.

    Args:
        name: of a variant of the tables.

    Returns:
        Its record.
    """
    with torch.device("meta"):
        model: Any = create_model(name).eval()
    weights = registry.get_weights(name)
    size = weights.input_size[1:] if weights is not None else model.img_size or (224, 224)
    with torch.no_grad(), CountMacs() as counter:
        model(torch.empty(1, model.in_chans, *size, device="meta"))
    info = model.feature_info
    return Capabilities(
        params=sum(p.numel() for p in model.parameters()),
        macs=counter.macs,
        input_size=(size[0], size[1]),
        modules=tuple(info.module_name()),
        channels=tuple(info.channels()),
        reductions=tuple(info.reduction()),
        output_strides=tuple(model.output_strides),
        prefix_tokens=model.num_prefix_tokens,
        **sizes(model, size),
    )


def update(names: Iterable[str] = ()) -> Mapping[str, Capabilities]:
    """Measure the variants that the table lacks, and those that are named; forget what is gone.

    Args:
        names: variants or families to measure again.

    Returns:
        The table, in the order of the index.
    """
    again, table = set(names), dict(read_table())
    result = {}
    for variant, (family, _) in registry._index().items():
        if variant not in table or {variant, family} & again:
            print(variant, file=sys.stderr, flush=True)
            table[variant] = measure(variant)
        result[variant] = table[variant]
    return result


def main(arguments: Sequence[str]) -> None:
    """Bring the table up to date; see :func:`update`."""
    TABLE.write_text(render_table(update(arguments)), encoding="utf-8")
