"""set_output_stride: the à trous rule on any network of convolutions, pools and upsampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, OutputStrideError
from ..extraction import layout
from ..extraction.extractors import FeatureNet
from ..tracing import sizes, structure, trace
from . import rule as dilation
from .pools import Watched, repool
from .rule import Step


def set_output_stride(
    model: nn.Module,
    output_stride: int,
    *,
    inplace: bool = False,
    input_size: Sequence[int] | None = None,
) -> nn.Module:
    """Make no map of a network coarser than ``output_stride``: strides beyond it become dilations.

    The rule is the same for every network; docs/dilation.md says what is exact about it. Pooling
    functions that a forward calls follow it like modules. Afterwards the network runs again on the
    meta device, and a stride that does not hold is an error that names the place.

    Args:
        model: any module. Parameters and buffers, their names and their order stay.
        output_stride: one of the reductions that the network has.
        inplace: change the model itself; by default a copy over the same tensors.
        input_size: (H, W) or (C, H, W) at which to look into a model that takes one size only.

    Returns:
        The copy, or the model.

    Raises:
        ArgumentError: no module, or an extractor.
        OutputStrideError: the network cannot have this stride; it is then as it was.

    Example:
        >>> convs = [torch.nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(3)]
        >>> model = torch.nn.Sequential(*convs)
        >>> dense = featnet.set_output_stride(model, 2)
        >>> x = torch.randn(1, 3, 32, 32)
        >>> dense(x).shape, torch.allclose(dense(x)[..., ::4, ::4], model(x), atol=1e-6)
        (torch.Size([1, 3, 16, 16]), True)
    """
    structure.check_module(model)
    if isinstance(model, FeatureNet):
        raise ArgumentError(
            f"The model is a {type(model).__name__}: set the output stride of the network before "
            "extracting, or pass output_stride= to create_model."
        )
    change = dilation.set_output_stride if isinstance(model, Backbone) else _set
    copied: Any = structure.view(model)
    with sizes.at_size(input_size):
        change(copied, output_stride)
        if not inplace:
            return copied
        change(model, output_stride)
    return model


def _set(model: nn.Module, output_stride: int) -> None:
    """The rule on a network from elsewhere, in place."""
    size = trace.probe_size(model)
    before = Watched(model, size)
    calls = _on_images(model, before, size)
    found = {
        layout.nominal(size, call.outputs[0][-2:]) for call in calls if call.outputs[0][-1] > 1
    }
    allowed = sorted(found - {1}) if len(found) > 1 else sorted(found)
    dilation.check_stride(output_stride, allowed, model)
    if output_stride >= allowed[-1]:
        return
    steps = dilation.plan(before.modules, calls, output_stride, size)
    dilation.apply(model, {name: step for name, step in steps.items() if ":" not in name})
    _repool(model, before, {name: step for name, step in steps.items() if ":" in name})
    _declare(model, output_stride)
    try:
        after = {call.name: call for call in Watched(model, size).calls}
    except Exception as error:
        raise OutputStrideError(
            f"output_stride={output_stride}: {type(model).__name__} does not run with it, so that "
            f"something in a forward depends on the original sizes: {error}"
        ) from error
    for call in calls:
        if ":" in call.name:
            continue
        old, new = call.outputs[0][-2], after[call.name].outputs[0][-2]
        reduction = layout.nominal(size, call.outputs[0][-2:])
        ratio = reduction / min(reduction, output_stride)
        # Kernels that pad otherwise lose or win a position at the border
        if old > 1 and abs(new / ratio - old) > 2:
            raise OutputStrideError(
                f"output_stride={output_stride} does not hold at {call.name}: its map is {new} high "
                f"for an input of {size[0]}, {old * ratio:g} were expected. Something between the "
                "modules before it changes the size."
            )


def _on_images(model: nn.Module, seen: Watched, size: tuple[int, int]) -> list[trace.Call]:
    """Calls of windows and upsamplings on maps that grow with the input: what is behind an adaptive
    pool, whose sides are fixed, has no reduction."""
    calls = [c for c in seen.calls if _slides(seen.modules[c.name]) and _maps(c)]
    try:
        double = Watched(model, (size[0] * 2, size[1] * 2))
    except Exception:  # a network of one input size
        return calls
    again = [c for c in double.calls if _slides(double.modules[c.name]) and _maps(c)]
    if [c.name for c in again] != [c.name for c in calls]:
        return calls
    pairs = zip(calls, again, strict=True)
    return [a for a, b in pairs if a.inputs[0] != b.inputs[0] and a.outputs[0] != b.outputs[0]]


def _slides(module: nn.Module) -> bool:
    return dilation.is_window(module) or isinstance(module, nn.Upsample)


def _maps(call: trace.Call) -> bool:
    return all(len(shapes) > 0 and len(shapes[0]) == 4 for shapes in (call.inputs, call.outputs))


def _repool(model: nn.Module, seen: Watched, steps: Mapping[str, Step]) -> None:
    """Replace the pooling functions of these names."""
    owners: dict[str, dict[int, nn.Module]] = {}
    for name, step in steps.items():
        pool: Any = seen.modules[name]
        if step.density > 1 or step.stride != dilation.stride_of(pool):
            owner, _, index = name.rpartition(":")
            owners.setdefault(owner, {})[int(index)] = dilation.dilate(pool, step)
    for owner, pools in owners.items():
        module = model.get_submodule(owner)
        deeper = [
            other
            for other, inner in seen.modules.items()
            if (other.startswith(f"{owner}.") or (not owner and other not in ("", *steps)))
            and (":" in other or isinstance(inner, (nn.MaxPool2d, nn.AvgPool2d)))
            and other.rpartition(":")[0] != owner
        ]
        if deeper:
            raise OutputStrideError(
                f"{owner or type(model).__name__} calls a pooling function and holds {deeper[0]}, "
                "which pools too: give the function's place a module, nn.MaxPool2d or nn.AvgPool2d."
            )
        repool(module, pools)


def _declare(model: Any, output_stride: int) -> None:
    """Correct a declaration of levels, if there is one; the caller's list stays as it is."""
    rows = getattr(model, "feature_info", None)
    if isinstance(rows, (list, tuple)) and all(isinstance(row, dict) for row in rows):
        model.feature_info = [
            {**row, "reduction": min(row["reduction"], output_stride)}
            if "reduction" in row
            else row
            for row in rows
        ]
