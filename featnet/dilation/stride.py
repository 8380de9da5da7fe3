"""set_output_stride: the à trous rule on any network of convolutions, pools and upsampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, OutputStrideError
from ..extraction.extractors import FeatureNet
from ..tracing import sizes, structure, trace
from ..values import checked
from . import rule
from .functions import PadCall, Watched, refunction
from .interleaved import Padding, make_interleaved
from .interleaved import tensorflow_padding as same_padding
from .law import prove
from .rule import Step
from .windows import Pair, is_window, pair, stride_of


@checked
def set_output_stride(
    model: nn.Module,
    output_stride: int,
    *,
    inplace: bool = False,
    input_size: Sequence[int] | None = None,
    tensorflow_padding: bool = False,
) -> nn.Module:
    """Make no map of a network coarser than ``output_stride``: strides beyond it become dilations.

    The rule is the same for every network; docs/dilation.md says what is exact about it. Pooling
    functions that a forward calls follow it like modules, and so does padding before a convolution.
    Afterwards the original and the dilated network run on random numbers, and a stride that does
    not hold is an error that names the module.

    Args:
        model: any module. Parameters and buffers, their names and their order stay.
        output_stride: one of the reductions that the network has.
        inplace: change the model itself; by default a copy over the same tensors.
        input_size: (H, W) or (C, H, W) at which to look into a model that takes one size only.
        tensorflow_padding: layers that pad by TensorFlow's rule SAME (timm's ``tf_*``) do so anew
            for their dilated kernel, as in timm. By default they pad so that the rule holds, as all
            others do. For weights that were trained with timm's dilated network.

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
    if isinstance(model, Backbone) and tensorflow_padding:
        raise ArgumentError(
            f"tensorflow_padding=True is for networks that featnet did not build; "
            f"{type(model).__name__} is one of its own."
        )
    copied: Any = structure.view(model)
    with sizes.at_size(input_size):
        if isinstance(model, Backbone):
            rule.set_output_stride(copied, output_stride)
            if inplace:
                rule.set_output_stride(model, output_stride)
            return model if inplace else copied
        change = _Change(copied, output_stride, tensorflow_padding)
        if change.needed:
            change.make(copied)
            change.prove(model, copied)
            if inplace:
                change.make(model)
    return model if inplace else copied


class _Change:
    """The changes that an output stride makes in a network from elsewhere, found by runs on the
    meta device.

    Attributes:
        needed: whether the network has coarser maps.
        steps: of windows, upsamplings and pooling functions.
        pads: paddings that become part of a window, by its name; None of one that pads by itself.
        functions: what is called in place of functions, by the module that calls them.
        exempt: windows that pad as TensorFlow does, on purpose.
    """

    def __init__(self, model: nn.Module, output_stride: int, tensorflow: bool) -> None:
        self.output_stride = output_stride
        self.size = size = trace.probe_size(model)
        self.seen = once = Watched(model, size)
        double = _again(model, (size[0] * 2, size[1] * 2))
        calls = _on_images(once, double)
        self.fixed = _fixed(once, double)
        places = list(rule.places(once.modules, calls, size))
        self.known = {Fraction(1), *(p.reads for p in places), *(p.writes for p in places)}
        reductions = {int(r) for r in self.known if r.denominator == 1}
        allowed = sorted(reductions - {1}) if len(reductions) > 1 else []
        other, name = _coarser(once, double, size, max(allowed, default=1))
        if other:
            kind = type(once.modules[name]).__name__
            if isinstance(output_stride, int) and output_stride in allowed:
                raise OutputStrideError(
                    f"output_stride={output_stride} cannot be set: {name} ({kind}) puts out maps "
                    f"at reduction {other}, and no module between has a stride that could be "
                    "changed."
                )
            allowed = [other]
        rule.check_stride(output_stride, allowed, model)
        self.needed = output_stride < allowed[-1]
        self.steps: dict[str, Step] = {}
        self.pads: dict[str, Padding | None] = {}
        self.functions: dict[str, dict[int, nn.Module]] = {}
        self.exempt: set[str] = set()
        if self.needed:
            self.steps = rule.plan(once.modules, calls, output_stride, size)
            self._plan_pools()
            self._plan_pads(model, tensorflow)

    def _changes(self, name: str) -> bool:
        step, module = self.steps.get(name), self.seen.modules[name]
        if step is None or isinstance(module, nn.Upsample):
            return False
        kernel = pair(getattr(module, "kernel_size", 0))
        return step.stride != stride_of(module) or (step.density > 1 and kernel != (1, 1))

    def _replace(self, name: str, module: nn.Module) -> None:
        """Call a module in place of a function."""
        owner, _, index = name.rpartition(":")
        self.functions.setdefault(owner, {})[int(index)] = module

    def _plan_pools(self) -> None:
        for name in [name for name in self.steps if ":" in name]:
            step, pool = self.steps.pop(name), self.seen.modules[name]
            if step.density > 1 or step.stride != stride_of(pool):
                self._replace(name, rule.dilate(pool, step))

    def _plan_pads(self, model: nn.Module, tensorflow: bool) -> None:
        once, size = self.seen, self.size
        odd = _again(model, (size[0] + 1, size[1] + 1)) if once.pads else None
        for name, call in once.pads.items():
            window = call.within or call.feeds
            other = odd.pads.get(name, call) if odd is not None else call
            if window is None or not self._changes(window):
                reads = rule.nearest_reduction(self.known, size[0], call.size[0])
                density = reads / min(reads, Fraction(self.output_stride))
                if window is None and density > 1:
                    self._replace(name, call.padding.scaled(int(density)))
                continue
            padding = _rule_of(call, other, once.modules[window])
            if padding is None and call.within is None:
                raise OutputStrideError(
                    f"output_stride={self.output_stride}: what is padded before {window} depends "
                    "on the size of the input "
                    f"({call.padding.amounts} at {size[0]} x {size[1]}, "
                    f"{other.padding.amounts} at one more), by no rule that is known."
                )
            if tensorflow and padding is not None and padding.window is not None:
                self.exempt.add(window)
            elif call.within is None:
                self._replace(name, nn.Identity())
                self.pads[window] = padding
            else:
                self.pads.setdefault(window, None)
        for name in self.steps:  # of which torch pads one position more on one side
            module: Any = once.modules[name]
            if self._changes(name) and getattr(module, "padding", None) == "same":
                reach = zip(pair(module.dilation), pair(module.kernel_size), strict=True)
                if any(d * (k - 1) % 2 for d, k in reach):
                    self.pads.setdefault(name, None)

    def make(self, model: nn.Module) -> None:
        """Change a network, in place."""
        alone = {*self.pads, *self.exempt}
        rule.apply(model, {name: s for name, s in self.steps.items() if name not in alone})
        done: set[int] = set()
        for name in alone:
            module: Any = model.get_submodule(name)
            if id(module) in done:
                continue  # one module under two names
            done.add(id(module))
            step = self.steps[name]
            if name in self.exempt:
                module.stride = step.stride
                module.dilation = tuple(d * step.density for d in pair(module.dilation))
                continue
            make_interleaved(
                module,
                density=step.density,
                stride=step.stride,
                original=stride_of(module),
                before=self.pads[name],
            )
        for owner, functions in self.functions.items():
            self._refuse_deeper(model, owner, functions)
            refunction(model.get_submodule(owner), functions)
        _declare(model, self.output_stride)

    def _refuse_deeper(
        self, model: nn.Module, owner: str, functions: Mapping[int, nn.Module]
    ) -> None:
        """Refuse a forward whose functions cannot be told from those of what it calls."""
        pools = (nn.MaxPool2d, nn.AvgPool2d)
        last = f"{owner}:{max(functions)}"
        order = [*self.seen.order]
        deeper = [
            other
            for other in order[: order.index(last)]
            if other.startswith(f"{owner}." if owner else "")
            and other.rpartition(":")[0] != owner
            and (":" in other or isinstance(self.seen.modules[other], pools))
        ]
        if deeper:
            raise OutputStrideError(
                f"{owner or type(model).__name__} calls a pooling or padding function and, before "
                f"it, {deeper[0]}, which does too: give the function's place a module."
            )

    def prove(self, model: nn.Module, dense: nn.Module) -> None:
        """Hold the changed network to the law."""
        prove(
            model,
            dense,
            self.output_stride,
            self.size,
            known=self.known,
            changed=self.steps,
            exempt=self.exempt,
            fixed=self.fixed
            | {n for n in self.functions if not [*model.get_submodule(n).children()]},
            padding={name for name, padding in self.pads.items() if padding is not None},
        )


def _rule_of(call: PadCall, other: PadCall, window: nn.Module) -> Padding | None:
    """Return the padding that two calls of one place have in common; None if there is none."""
    module: Any = window
    facts = (
        pair(getattr(module, "kernel_size", 1)),
        stride_of(module),
        pair(getattr(module, "dilation", 1)),
    )
    padding = call.padding
    if padding.mode == "constant" and all(
        c.padding.amounts == same_padding(c.size, *facts) for c in (call, other)
    ):
        return Padding(padding.amounts, padding.mode, padding.value, window=facts)
    return padding if padding.amounts == other.padding.amounts else None


def _again(model: nn.Module, size: Pair) -> Watched | None:
    """Run a network at another size; None of one that takes a single size."""
    try:
        return Watched(model, size)
    except Exception:
        return None


def _on_images(once: Watched, double: Watched | None) -> list[trace.Call]:
    """Return the calls of windows, upsamplings and other leaves on maps that grow with the input:
    what is behind an adaptive pool, whose sides are fixed, has no reduction."""
    calls = [c for c in once.calls if _is_leaf(once.modules[c.name]) and _maps(c)]
    if double is None:
        return calls
    again = [c for c in double.calls if _is_leaf(double.modules[c.name]) and _maps(c)]
    if [c.name for c in again] != [c.name for c in calls]:
        return calls
    pairs = zip(calls, again, strict=True)
    return [a for a, b in pairs if a.inputs[0] != b.inputs[0] and a.outputs[0] != b.outputs[0]]


def _fixed(once: Watched, double: Watched | None) -> set[str]:
    """Name the modules whose output is of one size, whatever the input's."""
    if double is None:
        return set()
    sizes = {(c.name, shape) for c in double.calls for shape in c.outputs[:1]}
    return {c.name for c in once.calls for shape in c.outputs[:1] if (c.name, shape) in sizes}


def _coarser(
    once: Watched, double: Watched | None, size: Pair, coarsest: int
) -> tuple[int | None, str]:
    """Find maps that are coarser than all windows make them: (reduction, module), or (None, "")."""
    if double is None or [c.name for c in once.calls] != [c.name for c in double.calls]:
        return None, ""
    reductions: dict[int, str] = {}
    for a, b in zip(once.calls, double.calls, strict=True):
        if not a.outputs or a.outputs[0] == b.outputs[0] or len(a.outputs[0]) != len(b.outputs[0]):
            continue
        grown = [
            i for i, (p, q) in enumerate(zip(a.outputs[0], b.outputs[0], strict=True)) if p != q
        ]
        shape = a.outputs[0]
        if a.outputs[0].numel() == 0 or shape[0] != 1:
            continue
        # what is gained by a larger input: unpadded kernels make a map smaller, but not coarser
        gained = b.outputs[0][grown[0]] - shape[grown[0]]
        if len(shape) == 4 and len(grown) == 2 and grown[1] == grown[0] + 1:
            reduction = size[0] / gained
        elif len(shape) == 3 and grown == [1] and shape[1] > 4:
            reduction = math.sqrt(3 * size[0] * size[1] / gained)
        else:
            continue
        if reduction > 1.5 * coarsest:
            reductions.setdefault(2 ** round(math.log2(reduction)), a.name)
    return (max(reductions), reductions[max(reductions)]) if reductions else (None, "")


def _is_leaf(module: nn.Module) -> bool:
    return is_window(module) or not any(True for _ in module.children())


def _maps(call: trace.Call) -> bool:
    return all(len(shapes) > 0 and len(shapes[0]) == 4 for shapes in (call.inputs, call.outputs))


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
