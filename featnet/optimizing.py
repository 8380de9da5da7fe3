"""``optimize``: a network made ready for inference, a copy that gives the same numbers sooner."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from typing import Any, TypeVar

import torch
from torch import nn

from . import trace
from .errors import ArgumentError, FeatnetError, nearest
from .extractors import FeatureNet
from .folding import fold
from .packing import can_pack, channels_last, pack
from .reparam import reparameterizable, reparameterize

Model = TypeVar("Model", bound=nn.Module)

TOLERANCE = 1e-4  # of float32, relative to the largest value


@dataclasses.dataclass(frozen=True)
class OptimizeReport:
    """What :func:`optimize` did.

    Attributes:
        reparameterized: blocks that became one layer.
        folded: batch norms that became part of the layer before them.
        left: batch norms that did not, each with the reason.
        packed: convolutions whose kernels are laid out for oneDNN, with their activations.
        memory_format: ``"channels_last"`` or ``"contiguous"``.
        compiled: whether ``torch.compile`` was called.
        milliseconds: median time of every form that was tried on the example.
        difference: of the outputs, largest, relative to the largest value.
    """

    reparameterized: tuple[str, ...]
    folded: tuple[str, ...]
    left: dict[str, str]
    packed: tuple[str, ...]
    memory_format: str
    compiled: bool
    milliseconds: dict[str, float]
    difference: float

    def __str__(self) -> str:
        lines = [
            f"{len(self.reparameterized)} blocks re-parameterised, {len(self.folded)} batch norms "
            f"folded, {len(self.packed)} convolutions packed; {self.memory_format}"
            f"{', compiled' if self.compiled else ''}; outputs differ by {self.difference:.1e}"
        ]
        lines += [f"{form}: {ms:.2f} ms" for form, ms in self.milliseconds.items()]
        lines += [f"batch norm {name} stays: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


def optimize(net: Model, *, example: torch.Tensor | None = None, compile: bool | str = False) -> Model:
    """A copy of a network for inference, of featnet or any other origin.

    Re-parameterisable blocks become one layer, batch norms part of the convolution or linear layer
    before them where nothing else reads it; on the CPU in float32 the kernels of convolutions are
    laid out for oneDNN once and for all, with their activations; elsewhere they lie in
    channels_last. Levels and taps stay, as do the names of modules. The result has an
    ``optimize_report``, and no gradients.

    Args:
        net: in eval mode: a Backbone, an extractor, or any module that takes (N, C, H, W).
        example: a batch of the size and on the device of later ones. The forms are then timed on
            it and the quickest one is taken. Without it a batch of one of a size that the network
            takes only checks the numbers.
        compile: compile the result as one graph, instead of packing: True, or a backend's name.

    Raises:
        ArgumentError: in training mode; an example that is no (N, C, H, W) tensor; an unknown
            backend.
        FeatnetError: it does not compile, with the reason; or the numbers differ by more than 1e-4
            of the largest.
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
        left = dict.fromkeys(left, "the network looks at values: it does not run on the meta device")
    forms = {"contiguous": model}
    forms["channels_last"] = channels_last(copy.deepcopy(model))
    packed: tuple[str, ...] = ()
    if not compile and can_pack(x):
        forms["packed"] = copy.deepcopy(forms["channels_last"])
        packed = pack(forms["packed"], feeds, sizes, batch=len(x))
        if not packed:
            del forms["packed"]
    milliseconds = _race(forms, x) if given and not compile else {}
    best = min(milliseconds, key=milliseconds.__getitem__) if milliseconds else list(forms)[-1]
    model = forms[best]
    try:
        if compile:
            model.compile(fullgraph=True, backend="inductor" if compile is True else compile)
        with torch.inference_mode():
            difference = _difference(_outputs(model, x), wanted)
    except Exception as error:
        if not compile:
            raise
        raise FeatnetError(
            f"{type(net).__name__} does not compile: {error}. Without compile= it works."
        ) from error
    if not difference <= max(TOLERANCE, torch.finfo(x.dtype).eps * 64):
        raise FeatnetError(
            f"The optimised {type(net).__name__} differs from the original by {difference:.1e} of "
            f"the largest value, more than {TOLERANCE:.0e}. If the network's own outputs are as far from "
            "those in float64, its weights amplify rounding; otherwise this is a defect of featnet."
        )
    model.optimize_report = OptimizeReport(
        blocks, folded, left, packed if best == "packed" else (),
        "contiguous" if best == "contiguous" else "channels_last", bool(compile), milliseconds,
        difference,
    )  # fmt: skip
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


def _batch(net: nn.Module) -> torch.Tensor:
    """One picture of noise that the network takes."""
    body = net.body if isinstance(net, FeatureNet) else net
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, trace.channels_of(body), *trace.probe_size(body), generator=generator)
    return x.to(like)


def _outputs(net: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [y.clone() for y in trace.tensors(net(x))]


def _difference(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    pairs = list(zip(found, wanted, strict=True))
    gaps = [float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs]
    return max(gaps, default=0.0)


def _chains(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, str], dict[str, torch.Size]]:
    """Which module alone feeds which, without those whose output is a level or tapped; and the
    sizes of what they are given, for one picture."""
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
        for turn in range(7):
            for form, net in forms.items():
                wait()
                start = time.perf_counter()
                net(x)
                wait()
                if turn > 1:  # the first ones warm up
                    taken[form].append(time.perf_counter() - start)
    return {form: statistics.median(times) * 1e3 for form, times in taken.items()}
