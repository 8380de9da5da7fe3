"""The à trous law, run: a network and its dilated form on random numbers, in float64.

Sizes alone prove nothing: padding that a module does not tell of, a window that numbers its
positions, a slice between two modules keep the sizes and change the numbers. What the law is not
about is silenced: whatever sees the whole map (means, norms over it) and resampling are constants
in both networks.
Borders are left out at each module, and set right behind it, so that what is wrong there goes no
further.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import OutputStrideError
from ..tracing import probing, structure, trace
from .rule import nearest_reduction
from .windows import Pair, pair

TOLERANCE = 1e-9  # of float64, relative to the largest value


class Local(TorchFunctionMode):
    """A context in which no position of a map depends on all others.

    Means and maxima over a map are zero, deviations and norms over it are one, and a resampled map
    is zero. Gates and norms still do all else that they do.
    """

    zero = frozenset(
        {
            *(torch.Tensor.mean, torch.mean, torch.Tensor.amax, torch.amax, torch.Tensor.sum),
            *(torch.sum, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate),
        }
    )
    one = frozenset(
        {
            *(torch.Tensor.var, torch.var, torch.Tensor.std, torch.std, torch.var_mean),
            *(torch.Tensor.norm, torch.norm, torch.linalg.vector_norm),
        }
    )

    def __torch_function__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.instance_norm:
            return args[0]
        if func is F.group_norm:
            x, _, weight, bias = (*args, kwargs.get("weight"), kwargs.get("bias"))[:4]
            across = (1, -1) + (1,) * (x.ndim - 2)
            return x if weight is None else x * weight.view(across) + bias.view(across)
        result = func(*args, **kwargs)
        if (func in self.zero or func in self.one) and isinstance(result, torch.Tensor):
            x = args[0] if args else kwargs["input"]
            dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
            axes = {d % x.ndim for d in dims} if isinstance(dims, (tuple, list)) else set()
            spatial = axes >= {2, 3} or axes == {1, 2}  # of (N, C, H, W), of (N, H, W, C)
            if spatial or getattr(func, "__module__", "") == F.__name__:
                return torch.full_like(result, float(func in self.one))
        return result


class Values:
    """Small random numbers in float64 for the tensors of a network; the same for the same
    tensor."""

    def __init__(self, model: nn.Module) -> None:
        self._names: dict[int, str] = {}
        for module in model.modules():
            for owned in (module._parameters, module._buffers):
                self._names |= {id(t): name for name, t in owned.items() if t is not None}
        self.parameters = {id(p) for p in model.parameters()}
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self.kept:
            value = self._value(tensor)
            if isinstance(tensor, nn.Parameter):
                value = nn.Parameter(value, requires_grad=False)
            self.kept[id(tensor)] = tensor, value
        return self.kept[id(tensor)][1]

    def noise(self, shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        """Return noise of this shape."""
        return torch.randn(tuple(shape), dtype=torch.float64, generator=self.generator)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return (
                torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()
            )
        name = self._names.get(id(tensor), "")
        if name == "running_var":
            return 1 + 0.5 * self.noise(tensor.shape).abs()
        if name in ("running_mean", "bias"):
            return 0.1 * self.noise(tensor.shape)
        if id(tensor) not in self.parameters and not tensor.is_meta:
            return tensor.detach().double().cpu()  # a table or a filter
        if tensor.ndim < 2:
            return 1 + 0.2 * self.noise(tensor.shape)
        return self.noise(tensor.shape) * (1.4 / math.sqrt(max(1, tensor[0].numel())))


class Proof:
    """A run of the original, against which a run of the dilated network is held.

    Args:
        model: the original network.
        dense: its dilated form, over the same tensors.
        output_stride: of that.
        known: the reductions of the original's maps.
        changed: names of the windows and upsamplings, which are held to it on what they read, too.
        exempt: those of them that pad as a peer does, on purpose.
        fixed: modules that are not looked at: their maps are of one size, whatever the input's, or
            they pad what a window now pads itself.
        padding: windows that pad what they read, which the original's were given padded.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        output_stride: int,
        *,
        known: set[Fraction],
        changed: set[str],
        exempt: set[str],
        fixed: set[str],
        padding: set[str],
    ) -> None:
        self.fixed, self.read = fixed, changed - padding - exempt
        self.model, self.dense, self.output_stride = model, dense, output_stride
        self.known, self.changed, self.exempt = known, changed, exempt
        self.reads: dict[tuple[str, int], torch.Tensor] = {}
        self.puts: dict[tuple[str, int], torch.Tensor] = {}
        self.last = "the input"
        self.originals = dict(model.named_modules())

    def run(self, size: Pair) -> None:
        """Run both.

        Raises:
            OutputStrideError: the law does not hold; it names the module where it breaks first.
        """
        values = Values(self.model)
        coarsest = max(self.known)
        near = (int(5 * coarsest), int(4 * coarsest))
        for candidate in dict.fromkeys((near, (224, 224), size)):
            x = values.noise((1, trace.channels_of(self.model), *candidate))
            self.reads.clear()
            self.puts.clear()
            with (
                contextlib.suppress(Exception),
                self._hooked(self.model, values, self._keep) as net,
            ):
                net(x)
                break
        else:
            raise OutputStrideError(
                f"{type(self.model).__name__} does not run on random numbers in float64 "
                f"({candidate[0]} x {candidate[1]}), so that nothing can be said of its numbers."
            )
        self.height = candidate[0]
        try:
            with self._hooked(self.dense, values, self._hold) as net:
                net(x)
        except OutputStrideError:
            raise
        except Exception as error:
            raise OutputStrideError(
                f"output_stride={self.output_stride}: {type(self.model).__name__} does not run "
                f"with it after {self.last}, so that something in a forward depends on the "
                f"original sizes: {error}"
            ) from error

    @contextlib.contextmanager
    def _hooked(self, model: nn.Module, values: Values, see: Any) -> Iterator[nn.Module]:
        copied = structure.clone(model, values)
        structure.in_mode(copied, False)
        counts: Counter[str] = Counter()
        for name, module in copied.named_modules():
            if name and name not in self.fixed and not self._is_part(name):
                before, after = partial(see, counts, name, True), partial(see, counts, name, False)
                module.register_forward_pre_hook(before)
                module.register_forward_hook(after)
        with torch.no_grad(), structure.eagerly(copied), Local(), probing.caches_kept(model):
            yield copied

    def _is_part(self, name: str) -> bool:
        """Say whether a module lies within a window, whose parts run as they are."""
        return any(name.startswith(f"{window}.") for window in self.changed)

    # What is seen -----------------------------------------------------------------------------

    def _keep(
        self, counts: Counter[str], name: str, entering: bool, module: nn.Module, args: Any, *y: Any
    ) -> None:
        counts[f"{name}:{entering}"] += 1
        key = (name, counts[f"{name}:{entering}"])
        value = (args[0] if args else None) if entering else y[0]
        if isinstance(value, torch.Tensor) and value.ndim == 4:
            (self.reads if entering else self.puts)[key] = value.clone()

    def _hold(
        self, counts: Counter[str], name: str, entering: bool, module: nn.Module, args: Any, *y: Any
    ) -> Any:
        counts[f"{name}:{entering}"] += 1
        key = (name, counts[f"{name}:{entering}"])
        value = (args[0] if args else None) if entering else y[0]
        wanted = (self.reads if entering else self.puts).get(key)
        window = name in self.changed
        if (
            wanted is None
            or not isinstance(value, torch.Tensor)
            or (entering and name not in self.read)
        ):
            return None
        if isinstance(module, nn.Upsample):
            return None  # resampling
        last = getattr(module, "channels_last", False)
        a, b = (t.permute(0, 3, 1, 2) if last else t for t in (value, wanted))
        if a.ndim != 4 or a.shape[:2] != b.shape[:2] or min(b.shape[2:]) < 2:
            return None
        reduction = nearest_reduction(self.known, self.height, b.shape[-2])
        dense = min(reduction, Fraction(self.output_stride))
        ratio = reduction / dense
        if ratio.denominator != 1:
            return None
        exempt = name in self.exempt
        self._compare(name, module, a, b, int(ratio), entering=entering, silent=exempt)
        if not entering:
            self.last = name
        if not window:
            return None
        # What is wrong at a border goes no further
        a = a.clone()
        part = a[..., :: int(ratio), :: int(ratio)]
        rows, columns = (min(p, q) for p, q in zip(part.shape[2:], b.shape[2:], strict=True))
        part[..., :rows, :columns] = b[..., :rows, :columns]
        a = a.permute(0, 2, 3, 1) if last else a
        return (a, *args[1:]) if entering else a

    def _compare(
        self,
        name: str,
        module: nn.Module,
        a: torch.Tensor,
        b: torch.Tensor,
        ratio: int,
        *,
        entering: bool,
        silent: bool,
    ) -> None:
        every = a[..., ::ratio, ::ratio]
        where = f"output_stride={self.output_stride} does not hold at {name}"
        expected = [n * ratio for n in b.shape[2:]]
        off = max(abs(n - e) for n, e in zip(a.shape[2:], expected, strict=True))
        if off >= 2 * ratio + 2:
            raise OutputStrideError(
                f"{where}: its map is {a.shape[-2]} high for an input of {self.height}, "
                f"{expected[0]} were expected. Something between the modules before it changes the "
                "size."
            )
        rows, columns = (min(p, q) for p, q in zip(every.shape[2:], b.shape[2:], strict=True))
        margins = [
            min(m, (n - 1) // 2)
            for m, n in zip(self._margin(name, entering), (rows, columns), strict=True)
        ]
        inner = (..., slice(margins[0], rows - margins[0]), slice(margins[1], columns - margins[1]))
        scale = float(b.abs().max()) or 1.0
        error = float((every[inner] - b[inner]).abs().max()) / scale
        if error > TOLERANCE and not silent:
            kind = type(module).__name__
            what = (
                f"what is computed between {self.last} and {name} ({kind})"
                if entering
                else f"{kind}, by padding or a forward of its own,"
            )
            raise OutputStrideError(
                f"{where}: {what} gives other numbers {_every(ratio)} than the "
                f"original network's, by {error:.1g} of the largest. It sees more than the "
                "neighbourhood that a stride acts on, or places it differently; such a network "
                "cannot be dilated."
            )

    def _margin(self, name: str, entering: bool) -> tuple[int, int]:
        """Count the positions at each border that a module's padding may have changed."""
        window: Any = self.originals[name]
        kernel = getattr(window, "kernel_size", None)
        if entering or not isinstance(kernel, (int, tuple)):
            return 2, 2
        kernels, strides = pair(kernel), pair(getattr(window, "stride", 1) or kernel)
        spread = pair(getattr(window, "dilation", 1))
        rows, columns = (
            max(1, -(-(k - 1) * d // s)) for k, d, s in zip(kernels, spread, strides, strict=True)
        )
        return rows, columns


def prove(
    model: nn.Module,
    dense: nn.Module,
    output_stride: int,
    size: Pair,
    *,
    known: set[Fraction],
    changed: Mapping[str, object],
    exempt: set[str],
    fixed: set[str],
    padding: set[str],
) -> None:
    """Hold a dilated network to the law.

    Raises:
        OutputStrideError: it breaks; with the module.
    """
    proof = Proof(
        model,
        dense,
        output_stride,
        known=known,
        changed=set(changed),
        exempt=exempt,
        fixed=fixed,
        padding=padding,
    )
    proof.run(size)


def _every(ratio: int) -> str:
    ordinals = {1: "every position", 2: "every second position"}
    return f"at {ordinals.get(ratio, f'every {ratio}-th position')}"
