"""``optimize``: a network made ready for inference, a copy that gives the same numbers sooner."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from . import trace
from .errors import ArgumentError, FeatnetError, nearest
from .extractors import FeatureNet
from .layers import IdentityAct, NormAct, with_act
from .packed import POST_OPS, PackedConv2d
from .reparam import reparameterizable, reparameterize

Model = TypeVar("Model", bound=nn.Module)

LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
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
    folded, left = _fold(model, feeds)
    if not sizes:
        left = dict.fromkeys(left, "the network looks at values: it does not run on the meta device")
    forms = {"contiguous": model}
    forms["channels_last"] = _channels_last(copy.deepcopy(model))
    packed: tuple[str, ...] = ()
    if not compile and _can_pack(x):
        forms["packed"] = copy.deepcopy(forms["channels_last"])
        packed = _pack(forms["packed"], feeds, sizes)
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
    sizes of what they are given."""
    size = (x.shape[-2], x.shape[-1])
    if isinstance(model, FeatureNet):
        seen, read = model.observe(size)
    else:
        seen = trace.run(model, size, through=True)
        read = frozenset(level.module for level in getattr(model, "_levels", ()))
    if seen.real:
        return {}, {}
    feeds = {maker: reader for maker, reader in seen.feeds.items() if maker not in read}
    sizes = {c.name: torch.Size((len(x), *c.inputs[0][1:])) for c in seen.calls if c.inputs}
    return feeds, sizes


# Batch norms ------------------------------------------------------------------------------


def _fold(model: nn.Module, feeds: dict[str, str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Fold, in place, every batch norm that can be; its name stays with what is left of it."""
    modules = dict(model.named_modules())
    before = {reader: maker for maker, reader in feeds.items()}
    folded: list[str] = []
    left: dict[str, str] = {}
    for name, norm in modules.items():
        if not isinstance(norm, NORM):
            continue
        layer: Any = modules.get(before.get(name, ""))
        if not isinstance(layer, LINEAR):
            left[name] = "no convolution or linear layer feeds it alone"
            continue
        if not isinstance(norm, NormAct) and type(norm).forward is not _plain(norm).forward:
            left[name] = f"{type(norm).__name__} does more than its base class"
            continue
        if norm.running_var is None or "weight" not in layer._parameters:
            left[name] = "statistics of the batch, or a weight that is computed"
            continue
        if getattr(layer, "transposed", False) and getattr(layer, "groups", 1) > 1:
            left[name] = "a transposed convolution in groups feeds it"
            continue
        made = _folded(layer, norm)
        if not _same(layer, norm, made):
            left[name] = f"{type(layer).__name__} is not linear in its weight"
            continue
        _replace(model, before[name], made)
        rest = nn.Identity()
        # A family may ask whether this holds the activation, so it goes on doing so
        _replace(model, name, with_act(rest, norm.act) if isinstance(norm, NormAct) else rest)
        folded.append(name)
    return tuple(folded), left


def _plain(norm: nn.Module) -> Any:
    """The class of torch's that a norm is."""
    return next(cls for cls in type(norm).__mro__ if cls.__module__.startswith("torch."))


def _folded(layer: Any, norm: Any) -> nn.Module:
    """A layer with the same tensors but for weight and bias, which have taken in the norm."""
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    gamma = torch.ones_like(var) if norm.weight is None else norm.weight
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias
    if isinstance(layer, nn.Linear):
        weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, mean, var, eps, gamma, beta)
    else:
        weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, mean, var, eps, gamma, beta, layer.transposed
        )
    made = copy.copy(layer)
    made._parameters = dict(layer._parameters)
    for key, value in (("weight", weight), ("bias", bias)):
        made._parameters[key] = nn.Parameter(value.detach(), requires_grad=False)
    return made


@torch.inference_mode()
def _same(layer: Any, norm: Any, made: nn.Module) -> bool:
    """Whether the folded layer does what the two did, on a little noise: a subclass may do with
    its weight what it likes."""
    reach = [1]
    if not isinstance(layer, nn.Linear):
        pairs = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        reach = [d * (k - 1) + 1 + s for k, d, s in pairs]
    channels = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    shape = (2, channels) if isinstance(layer, nn.Linear) else (1, channels, *reach)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)
    wanted = _plain(norm).forward(norm, layer(x))  # without what a NormAct does after it
    scale = float(wanted.abs().max())
    found = made(x)
    return bool((found - wanted).abs().max() <= 1e-3 * scale) or not scale


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.eval())


# Kernels ----------------------------------------------------------------------------------


def _channels_last(model: nn.Module) -> nn.Module:
    """In place: kernels (O, I, kh, kw) lie as (O, kh, kw, I); ``Module.to`` refuses where there
    are kernels of other ranks too."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def _can_pack(x: torch.Tensor) -> bool:
    mkldnn: Any = torch.backends.mkldnn
    return x.device.type == "cpu" and x.dtype == torch.float32 and bool(mkldnn.is_available())


def _reader(name: str, modules: dict[str, nn.Module], feeds: dict[str, str]) -> str:
    """Who reads a module's output behind modules that do nothing."""
    reader = feeds.get(name, "")
    while reader and type(modules.get(reader)) is nn.Identity:
        reader = feeds.get(reader, "")
    return reader


def _pack(
    model: nn.Module, feeds: dict[str, str], sizes: dict[str, torch.Size]
) -> tuple[str, ...]:
    """Pack, in place, every plain convolution that ran, together with the activation behind it."""
    modules = dict(model.named_modules())
    packed: list[str] = []
    for name, conv in modules.items():
        if type(conv) is not nn.Conv2d or name not in sizes or isinstance(conv.padding, str):
            continue
        if conv.padding_mode != "zeros" or conv.weight.dtype != torch.float32:
            continue
        reader = _reader(name, modules, feeds)
        if isinstance(modules.get(reader), IdentityAct):
            reader += ".act"
        act = modules.get(reader)
        fused = act if type(act) in POST_OPS else None
        _replace(model, name, PackedConv2d(conv, fused, size=sizes[name]))
        if fused is not None:
            _replace(model, reader, nn.Identity())
        packed.append(name)
    return tuple(packed)


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
