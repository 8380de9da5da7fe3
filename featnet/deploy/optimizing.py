"""``optimize``: copy a network into a form that gives the same numbers sooner."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn

from ..errors import ArgumentError, check_choice, nearest
from ..extraction.extractors import FeatureNet, probe_size
from ..tracing import trace
from ..values import checked
from .engines import ENGINES
from .forms import Forms, add_compiled, add_engines, add_torch, prepared
from .racing import race
from .verifying import verified

Model = TypeVar("Model", bound=nn.Module)


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
        engine: ``"torch"``, ``"inductor"``, ``"onnxruntime"`` or ``"openvino"``.
        threads: that it uses for a batch.
        megabytes: by which the process grew when each form was made and run once, where the system
            says so; memory that was free before counts as nothing.
        versions: of torch and of the engines that were tried.
        left_out: engines that were not tried, or that did not pass, each with the reason.

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
    engine: str = "torch"
    threads: int = 1
    megabytes: dict[str, float] = dataclasses.field(default_factory=dict)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.engine}, {self.threads} thread{'s' * (self.threads > 1)}: "
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
        for form, ms in self.milliseconds.items():
            version = f" {self.versions[form]}" if form in self.versions else ""
            memory = f", {self.megabytes[form]:.0f} MB" if form in self.megabytes else ""
            lines.append(f"{form}{version}: {ms:.2f} ms{memory}")
        lines += [f"{engine} was left out: {reason}" for engine, reason in self.left_out.items()]
        lines += [f"batch norm {name} stays: {reason}" for name, reason in self.left.items()]
        return "\n".join(lines)


@overload
def optimize(
    net: Model,
    *,
    example: torch.Tensor | None = None,
    engine: Literal["torch", "inductor"] = "torch",
    compile: bool | str = False,
) -> Model: ...
@overload
def optimize(
    net: nn.Module, *, example: torch.Tensor | None = None, engine: str, compile: bool | str = False
) -> nn.Module: ...
@checked
def optimize(
    net: nn.Module,
    *,
    example: torch.Tensor | None = None,
    engine: str = "torch",
    compile: bool | str = False,
) -> nn.Module:
    """Copy a network into the form that is quickest for inference on its device.

    Re-parameterisable blocks become one layer. A batch norm becomes part of the convolution or
    linear layer before it, if nothing else reads that layer's output. On the CPU, in float32 or
    bfloat16, the weights of convolutions and linear layers are laid out for oneDNN, together with
    their activations; elsewhere kernels lie in channels_last. Levels, taps and names of modules
    stay. Other engines run the network as an ONNX program.

    Args:
        net: a Backbone, an extractor, or any module that takes (N, C, H, W), in eval mode.
        example: a batch (N, C, H, W) of the size and on the device of later ones: the forms are
            timed on it, and the quickest one is taken. Without it one image of noise, of a size
            that the network takes, only checks the numbers.
        engine: ``"torch"``; ``"inductor"``, compiled as one graph; ``"onnxruntime"`` or
            ``"openvino"``, which run float32 on the CPU and are extras of featnet; or ``"auto"``,
            the quickest of those that are installed and can run the network.
        compile: try the result of ``"torch"`` compiled as one graph as well: True for inductor (on
            the CPU with frozen weights, and with a wrapper in C++ if that works), or the name of a
            backend. Without an example it is the form that is taken.

    Returns:
        A copy without gradients, which has an ``optimize_report``; in another engine than torch's a
        :class:`featnet.EngineNet`, which returns what the network returns and has its
        ``feature_info``, but no modules.

    Raises:
        ArgumentError: training mode, an example that is no (N, C, H, W) tensor, an unknown engine
            or backend, or no example for ``"auto"``.
        FeatnetError: the network does not compile (with the reason); the engine is not installed,
            or cannot run the network (with the reason); or the numbers differ by more
            than 1e-4 of the largest (below float32 by more than eight roundings), and by more than
            rounding explains: against float64, their root mean square error is more than twice the
            original's.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2)).eval()
        >>> fast = featnet.optimize(net)
        >>> [y.shape for y in fast(torch.randn(1, 3, 64, 64))]
        [torch.Size([1, 64, 16, 16]), torch.Size([1, 128, 8, 8])]
    """
    _check(net, example, engine, compile)
    x = _batch(net) if example is None else example
    with torch.inference_mode():
        output = net(x)
        wanted = [y.clone() for y in trace.tensors(output)]
    source, forms = prepared(net, x), Forms()
    if engine in ("auto", "torch"):
        add_torch(forms, source, x)
    how = ""
    if engine in ("auto", "inductor") or compile:
        how = add_compiled(forms, source, x, compile or True, optional=engine == "auto")
    if engine in ("auto", *ENGINES):
        add_engines(forms, net, source.model, x, output, engine)
    milliseconds = race(forms.nets, x) if example is not None else {}
    best = min(milliseconds, key=milliseconds.__getitem__) if milliseconds else [*forms.nets][-1]
    result: Any = forms.nets[best]
    difference, rounding = verified(net, result, x, wanted)
    in_engine = best in ENGINES
    versions = {name: ENGINES[name].version() for name in forms.nets if name in ENGINES}
    versions["torch"] = str(torch.__version__)
    result.optimize_report = OptimizeReport(
        source.blocks,
        source.folded,
        source.left,
        forms.packed if best == "packed" else (),
        "contiguous" if in_engine or best == "contiguous" else "channels_last",
        how if best == "compiled" else "",
        milliseconds,
        difference,
        rounding,
        best
        if in_engine
        else "inductor"
        if best == "compiled" and compile in (False, True, "inductor")
        else "torch",
        torch.get_num_threads(),
        forms.megabytes,
        {
            "torch": torch.__version__,
            **{n: ENGINES[n].version() for n in ENGINES if n in forms.nets},
        },
        forms.left_out,
    )
    return result


def _check(net: object, example: object, engine: str, backend: bool | str) -> None:
    if not isinstance(net, nn.Module):
        raise ArgumentError(f"The network is a {type(net).__name__}, not a torch.nn.Module.")
    check_choice("engine", engine, ("auto", "torch", "inductor", *ENGINES))
    if backend and engine != "torch":
        raise ArgumentError(
            f"engine={engine!r}, compile={backend!r}: compile= belongs to engine='torch'; "
            "'inductor' compiles, and 'auto' tries that too."
        )
    if engine == "auto" and example is None:
        raise ArgumentError("engine='auto' times the engines on an example: give example=.")
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
    """Return one image of noise that the network takes."""
    body = net.body if isinstance(net, FeatureNet) else net
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, trace.channels_of(body), *probe_size(net), generator=generator)
    return x.to(like)
