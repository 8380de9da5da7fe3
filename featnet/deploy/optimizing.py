"""``optimize``: a network made ready for inference, a copy that gives the same numbers sooner."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import statistics
import time
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import ArgumentError, FeatnetError, nearest
from ..extraction.extractors import FeatureNet
from ..tracing import trace
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
    """What :func:`optimize` did.

    Attributes:
        reparameterized: blocks that became one layer.
        folded: batch norms that became part of the layer before them.
        left: batch norms that did not, each with the reason.
        packed: convolutions and linear layers whose weights are laid out for oneDNN, with their
            activations.
        memory_format: ``"channels_last"`` or ``"contiguous"``.
        compiled: the backend, if it runs compiled; of inductor on the CPU also whether weights are
            frozen, and the wrapper is C++, which torch cannot write for every network.
        milliseconds: median time of every form that was tried on the example.
        difference: of the outputs, largest, relative to the largest value.
        rounding: where that is above the tolerance, and accepted since the network amplifies
            rounding: the errors against float64 of this, and of the original, in the root mean
            square.
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


def optimize(
    net: Model, *, example: torch.Tensor | None = None, compile: bool | str = False
) -> Model:
    """A copy of a network for inference, of featnet or any other origin.

    Re-parameterisable blocks become one layer, batch norms part of the convolution or linear layer
    before them where nothing else reads it; on the CPU in float32 or bfloat16 the weights of
    convolutions and linear layers are laid out for oneDNN, with their activations; elsewhere
    kernels lie in channels_last. Levels and taps stay, as do the names of modules. The result has
    an ``optimize_report``, and no gradients.

    Args:
        net: in eval mode: a Backbone, an extractor, or any module that takes (N, C, H, W).
        example: a batch of the size and on the device of later ones. The forms are then timed on
            it and the quickest one is taken. Without it a batch of one of a size that the network
            takes only checks the numbers.
        compile: try the result compiled as one graph too, by inductor (True; on the CPU with
            frozen weights, and a wrapper in C++ if that works) or by the backend of this name.
            Without an example to time it on, it is the form that is taken.

    Raises:
        ArgumentError: in training mode; an example that is no (N, C, H, W) tensor; an unknown
            backend.
        FeatnetError: it does not compile, with the reason; or the numbers differ by more than 1e-4
            of the largest (below float32 by more than eight roundings), and are further from those
            in float64 than rounding explains: in the root mean square more than twice as far as
            the original's.
    """
    _check(net, example, compile)
    given = example is not None
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
    milliseconds = _race(forms, x) if given else {}
    best = min(milliseconds, key=milliseconds.__getitem__) if milliseconds else list(forms)[-1]
    model = forms[best]
    with torch.inference_mode():
        found = _outputs(model, x)
    gaps = _gaps(found, wanted)
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


def _check(net: Any, example: Any, backend: bool | str) -> None:
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
    """A copy that torch compiles and has compiled for this input, and how."""
    name = "inductor" if backend is True else str(backend)
    tries = INDUCTOR if name == "inductor" and x.device.type == "cpu" else {name: None}
    # Of all networks of a class together torch refuses the ninth graph. A network needs one for each
    # kind of size (the first, others, a batch of one) and of grad mode.
    more: dict[str, Any] = {"isolate_recompiles": True, "recompile_limit": 32}
    if not more.keys() <= inspect.signature(torch.compile).parameters.keys():  # before torch 2.13
        more = {}
    failure: Exception | None = None
    for how, options in tries.items():
        made = copy.deepcopy(model)
        if can_pack(x):
            pointwise(made, sizes)
        made.compile(fullgraph=True, backend=name, options=options, **more)
        try:
            with torch.inference_mode():
                made(x), made(x)  # what only the second call shows
            return made, how
        except Exception as error:
            failure = error
    raise FeatnetError(
        f"{type(model).__name__} does not compile: {failure}. Without compile= it works."
    ) from failure


def _batch(net: nn.Module) -> torch.Tensor:
    """One image of noise that the network takes."""
    body = net.body if isinstance(net, FeatureNet) else net
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, trace.channels_of(body), *trace.probe_size(body), generator=generator)
    return x.to(like)


def _outputs(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [y.clone() for y in trace.tensors(net(x))]


def _gaps(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> list[float]:
    """Largest difference in each output, relative to its largest value."""
    pairs = list(zip(found, wanted, strict=True))
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]


@torch.inference_mode()
def _check_numbers(
    net: nn.Module, made: nn.Module, x: torch.Tensor, gaps: list[float]
) -> tuple[float, float] | None:
    """Refuse numbers that are wrong. Those that differ only as the network's own rounding does, which
    its values in float64 show, pass; see :attr:`OptimizeReport.rounding`."""
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
            for row, model in zip(errors, (made, net), strict=True):
                found = _outputs(model, turned)
                row += torch.tensor([_error(found[i], wanted[i]) for i in far])
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


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean square of the differences, relative to that of the values."""
    square = (found.double() - exact).square().mean() / exact.square().mean().clamp(min=1e-24)
    return float(square)


def _chains(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """Which module alone feeds which, without those whose output is a level or tapped; and the
    sizes of what they are given, for one image."""
    size = (x.shape[-2], x.shape[-1])
    if isinstance(model, FeatureNet):
        seen, read = model.observe(size)
    else:
        seen = trace.run(model, size, through=True)
        read = frozenset(level.module for level in getattr(model, "_levels", ()))
    if seen.real:
        return {}, {}
    feeds = {maker: reader for maker, reader in seen.feeds.items() if maker not in read}
    sizes = {call.name: call.inputs[0] for call in seen.calls if call.inputs}
    return feeds, sizes


def _race(forms: dict[str, Any], x: torch.Tensor) -> dict[str, float]:
    """Median milliseconds of each form, called in turn."""
    wait: Any = torch.cuda.synchronize if x.is_cuda else (lambda: None)
    taken: dict[str, list[float]] = {form: [] for form in forms}
    with torch.inference_mode():
        for turn in range(5):
            for form, net in forms.items():
                for again in range(3):
                    wait()
                    start = time.perf_counter()
                    net(x)
                    wait()
                    if (
                        turn and again
                    ):  # the first ones warm up; the others' weights filled the cache
                        taken[form].append(time.perf_counter() - start)
    return {form: statistics.median(times) * 1e3 for form, times in taken.items()}
