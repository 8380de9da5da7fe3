"""``optimize``: copy a network into a form that gives the same numbers sooner."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ArgumentError, FeatnetError, nearest
from ..extraction.extractors import FeatureNet, probe_size
from ..tracing import trace
from ..values import checked
from .folding import fold
from .packing import can_pack, channels_last, pack, pointwise
from .reparam import reparameterizable, reparameterize

Model = TypeVar("Model", bound=nn.Module)

TOLERANCE = 1e-4  # of float32, relative to the largest value
# How inductor is tried on the CPU, in turn: weights that are constants, a wrapper without Python
INDUCTOR: dict[str, Any] = {
    "inductor, frozen, in C++": {"freezing": True, "cpp_wrapper": True},
    "inductor, frozen": {"freezing": True},
    "inductor": None,
}


@dataclasses.dataclass(frozen=True)
class OptimizeReport:
    """The changes that :func:`optimize` made, the time they save, and the difference they make.

    Attributes:
        reparameterized: names of the blocks that became one layer.
        folded: names of the batch norms that became part of the layer before them.
        left: names of the batch norms that did not, each with the reason.
        packed: names of the convolutions and linear layers whose weights are laid out for oneDNN,
            together with their activations.
        memory_format: ``"channels_last"`` or ``"contiguous"``.
        compiled: name of the backend, or empty if the network is not compiled; for inductor on the
            CPU also if weights are frozen, and if its wrapper is in C++, which torch cannot write
            for every network.
        milliseconds: median time of each form that was tried on the example.
        difference: largest difference of the outputs, relative to the largest value.
        rounding: None, or where the difference is above the tolerance, and accepted since the
            network amplifies rounding: the errors of the result and of the original against
            float64, as root mean squares.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1,)).eval()
        >>> report = featnet.optimize(net).optimize_report
        >>> report.folded[:2], report.left, report.difference < 1e-4
        (('bn1', 'layer1.0.bn1'), {}, True)
    """

    reparameterized: tuple[str, ...]
    folded: tuple[str, ...]
    left: dict[str, str]
    packed: tuple[str, ...]
    memory_format: str
    compiled: str
    milliseconds: dict[str, float]
    difference: float
    rounding: tuple[float, float] | None = None

    def __str__(self) -> str:
        lines = [
            f"{len(self.reparameterized)} blocks re-parameterised, {len(self.folded)} batch norms "
            f"folded, {len(self.packed)} layers packed; {self.memory_format}"
            f"{self.compiled and f', compiled by {self.compiled}'}; outputs differ by "
            f"{self.difference:.1e}"
        ]
        if self.rounding is not None:
            lines.append(
                f"the network amplifies rounding: against float64 this is off by "
                f"{self.rounding[0]:.1e}, the original by {self.rounding[1]:.1e}"
            )
        lines += [f"{form}: {ms:.2f} ms" for form, ms in self.milliseconds.items()]
        lines += [f"batch norm {name} stays: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


@checked
def optimize(
    net: Model, *, example: torch.Tensor | None = None, compile: bool | str = False
) -> Model:
    """Copy a network into the form that is quickest for inference on its device.

    Re-parameterisable blocks become one layer. A batch norm becomes part of the convolution or
    linear layer before it, if nothing else reads that layer's output. On the CPU, in float32 or
    bfloat16, the weights of convolutions and linear layers are laid out for oneDNN, together with
    their activations; elsewhere kernels lie in channels_last. Levels, taps and names of modules
    stay.

    Args:
        net: a Backbone, an extractor, or any module that takes (N, C, H, W), in eval mode.
        example: a batch (N, C, H, W) of the size and on the device of later ones: the forms are
            timed on it, and the quickest one is taken. Without it one image of noise, of a size
            that the network takes, only checks the numbers.
        compile: try the result compiled as one graph as well: True for inductor (on the CPU with
            frozen weights, and with a wrapper in C++ if that works), or the name of a backend.
            Without an example it is the form that is taken.

    Returns:
        A copy without gradients, which has an ``optimize_report``.

    Raises:
        ArgumentError: training mode, an example that is no (N, C, H, W) tensor, or an unknown
            backend.
        FeatnetError: the network does not compile (with the reason); or the numbers differ by more
            than 1e-4 of the largest (below float32 by more than eight roundings), and by more than
            rounding explains: against float64, their root mean square error is more than twice the
            original's.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2)).eval()
        >>> fast = featnet.optimize(net)
        >>> [y.shape for y in fast(torch.randn(1, 3, 64, 64))]
        [torch.Size([1, 64, 16, 16]), torch.Size([1, 128, 8, 8])]
    """
    _check(net, example, compile)
    x = _batch(net) if example is None else example
    with torch.inference_mode():
        wanted = _outputs(net, x)
    blocks = reparameterizable(net)
    model: Any = reparameterize(net) if blocks else copy.deepcopy(net)
    model.requires_grad_(False)
    feeds, sizes = _chains(model, x)
    folded, left = fold(model, feeds)
    if not sizes:
        left = dict.fromkeys(
            left, "the network looks at values: it does not run on the meta device"
        )
    forms = {"contiguous": model}
    forms["channels_last"] = channels_last(copy.deepcopy(model))
    packed: tuple[str, ...] = ()
    how = ""
    if can_pack(x):
        forms["packed"] = copy.deepcopy(forms["channels_last"])
        packed = pack(forms["packed"], feeds, sizes, batch=len(x))
        if not packed:
            del forms["packed"]
    if compile:
        forms["compiled"], how = _compiled(forms["channels_last"], sizes, x, compile)
    milliseconds = _race(forms, x) if example is not None else {}
    best = min(milliseconds, key=milliseconds.__getitem__) if milliseconds else list(forms)[-1]
    model = forms[best]
    with torch.inference_mode():
        outputs = _outputs(model, x)
    gaps = _gaps(outputs, wanted)
    rounding = _check_numbers(net, model, x, gaps)
    model.optimize_report = OptimizeReport(
        blocks,
        folded,
        left,
        packed if best == "packed" else (),
        "contiguous" if best == "contiguous" else "channels_last",
        how if best == "compiled" else "",
        milliseconds,
        max(gaps, default=0.0),
        rounding,
    )
    return model


def _check(net: object, example: object, backend: bool | str) -> None:
    if not isinstance(net, nn.Module):
        raise ArgumentError(f"The network is a {type(net).__name__}, not a torch.nn.Module.")
    training = [name or "the network itself" for name, m in net.named_modules() if m.training]
    if training:
        raise ArgumentError(
            f"optimize is for inference, and {training[0]} is in training mode, where batch norms "
            "are no constants: call eval() first."
        )
    if isinstance(backend, str) and backend not in torch.compiler.list_backends(None):
        known = torch.compiler.list_backends(None)
        raise ArgumentError(
            f"compile={backend!r}: True, False or one of {', '.join(known)} is expected."
            + nearest(backend, known)
        )
    if example is not None and (not isinstance(example, torch.Tensor) or example.ndim != 4):
        what = tuple(example.shape) if isinstance(example, torch.Tensor) else type(example).__name__
        raise ArgumentError(f"example={what}: a tensor (N, C, H, W) is expected.")


def _compiled(
    model: nn.Module, sizes: dict[str, torch.Size], x: torch.Tensor, backend: bool | str
) -> tuple[nn.Module, str]:
    """Return a copy that torch has compiled for this input, and a word on how it did."""
    name = "inductor" if backend is True else str(backend)
    tries = INDUCTOR if name == "inductor" and x.device.type == "cpu" else {name: None}
    # Of all networks of a class together torch refuses the ninth graph. A network needs one for
    # each kind of size (the first, others, a batch of one) and of grad mode.
    more: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 32}
    if not more.keys() <= inspect.signature(torch.compile).parameters.keys():  # before torch 2.13
        more = {}
    failure: Exception | None = None
    for how, options in tries.items():
        compiled = copy.deepcopy(model)
        if can_pack(x):
            pointwise(compiled, sizes)
        compiled.compile(fullgraph=True, backend=name, options=options, **more)
        try:
            with torch.inference_mode():
                compiled(x), compiled(x)  # some errors show in the second call only
            return compiled, how
        except Exception as error:
            failure = error
    raise FeatnetError(
        f"{type(model).__name__} does not compile: {failure}. Without compile= it works."
    ) from failure


def _batch(net: nn.Module) -> torch.Tensor:
    """Return one image of noise that the network takes."""
    body = net.body if isinstance(net, FeatureNet) else net
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, trace.channels_of(body), *probe_size(net), generator=generator)
    return x.to(like)


def _outputs(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [y.clone() for y in trace.tensors(net(x))]


def _gaps(outputs: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    """Return the largest difference in each output, relative to its largest value."""
    pairs = list(zip(outputs, wanted, strict=True))
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]


@torch.inference_mode()
def _check_numbers(
    net: nn.Module, result: nn.Module, x: torch.Tensor, gaps: list[float]
) -> tuple[float, float] | None:
    """Refuse numbers that are wrong. Those that differ only as the network's own rounding does,
    which its values in float64 show, pass; see :attr:`OptimizeReport.rounding`."""
    limit = max(TOLERANCE, torch.finfo(x.dtype).eps * 8)
    far = [i for i, gap in enumerate(gaps) if not gap <= limit]
    if not far:
        return None
    try:
        exact = copy.deepcopy(net).double()
        errors = torch.zeros(2, len(far))
        # What one input makes of rounding is left to chance: others, turned over, may tell more
        for count, axes in enumerate(((), (3,), (2,), (2, 3)), 1):
            turned = x.flip(axes) if axes else x
            wanted = _outputs(exact, turned.double())
            for row, model in zip(errors, (result, net), strict=True):
                outputs = _outputs(model, turned)
                row += torch.tensor([_error(outputs[i], wanted[i]) for i in far])
            ours, own = (errors / count).sqrt()
            if bool((ours <= 2 * own).all()):
                worst = int(ours.argmax())
                return float(ours[worst]), float(own[worst])
        worst = int((ours / own.clamp(min=1e-12)).argmax())
        why = (
            f"Its error against float64 is {float(ours[worst]):.1e}, the original's "
            f"{float(own[worst]):.1e}: not only rounding."
        )
    except Exception as error:  # it casts its values, or the device has no float64
        why = f"Whether that is rounding is not known, as in float64 it does not run: {error}"
    raise FeatnetError(
        f"The optimised {type(net).__name__} differs from the original by {max(gaps):.1e} of the "
        f"largest value, more than {limit:.0e}. {why}"
    )


def _error(output: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the mean square of the differences, relative to that of the values."""
    square = (output.double() - exact).square().mean() / exact.square().mean().clamp(min=1e-24)
    return float(square)


def _chains(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """Return pairs of modules of which the first feeds the second and nothing else, except those
    whose output is a level or tapped; and the size of each module's input, for one image."""
    size = (x.shape[-2], x.shape[-1])
    if isinstance(model, FeatureNet):
        run, read = model.observe(size)
    else:
        run = trace.run(model, size, through=True)
        read = frozenset(level.module for level in getattr(model, "_levels", ()))
    if run.real:
        return {}, {}
    feeds = {maker: reader for maker, reader in run.feeds.items() if maker not in read}
    sizes = {call.name: call.inputs[0] for call in run.calls if call.inputs}
    return feeds, sizes


def _race(forms: dict[str, nn.Module], x: torch.Tensor) -> dict[str, float]:
    """Call the forms in turn; return the median milliseconds of each."""
    wait: Callable[[], None] = torch.cuda.synchronize if x.is_cuda else (lambda: None)
    taken: dict[str, list[float]] = {form: [] for form in forms}
    with torch.inference_mode():
        for turn in range(5):
            for form, net in forms.items():
                for again in range(3):
                    wait()
                    start = time.perf_counter()
                    net(x)
                    wait()
                    # The first ones warm up, and the other form's weights fill the cache
                    if turn and again:
                        taken[form].append(time.perf_counter() - start)
    return {form: statistics.median(times) * 1e3 for form, times in taken.items()}
