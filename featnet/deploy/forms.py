"""The forms that a network may take for inference: torch's, compiled, and those of engines."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, FeatnetError
from ..extraction.extractors import FeatureNet
from ..tracing import trace
from .enginenet import EngineNet, Interface
from .engines import ENGINES, Program
from .exporting import AXES, onnx_program, other_size
from .folding import fold
from .packing import can_pack, channels_last, pack, pointwise
from .racing import Growth
from .reparam import reparameterizable, reparameterize
from .verifying import verified

# How inductor is tried on the CPU, in turn: weights that are constants, a wrapper without Python
INDUCTOR: dict[str, Any] = {
    "inductor, frozen, in C++": {"freezing": True, "cpp_wrapper": True},
    "inductor, frozen": {"freezing": True},
    "inductor": None,
}


class Forms:
    """The forms of one network, by name, that take part in the race.

    Attributes:
        nets: the forms.
        megabytes: by which the process grew, for each.
        left_out: engines that are not among them, each with the reason.
        packed: names of the layers that the packed form has packed.
    """

    def __init__(self) -> None:
        self.nets: dict[str, nn.Module] = {}
        self.megabytes: dict[str, float] = {}
        self.left_out: dict[str, str] = {}
        self.packed: tuple[str, ...] = ()

    def add(self, name: str, make: Callable[[], nn.Module], x: torch.Tensor) -> None:
        """Make a form, run it once, and note how much memory that takes."""
        with Growth() as growth, torch.inference_mode():
            net = make()
            net(x)
        self.nets[name] = net
        if growth.megabytes is not None:
            self.megabytes[name] = growth.megabytes


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A copy that has its form for inference in plain layers, and what is known about it."""

    model: nn.Module
    blocks: tuple[str, ...]
    folded: tuple[str, ...]
    left: dict[str, str]
    feeds: dict[str, str]
    sizes: dict[str, torch.Size]


def prepared(net: nn.Module, x: torch.Tensor) -> Prepared:
    """Copy a network, re-parameterised, without gradients, its batch norms folded."""
    blocks = reparameterizable(net)
    model: nn.Module = reparameterize(net) if blocks else copy.deepcopy(net)
    model.requires_grad_(False)
    feeds, sizes = _chains(model, x)
    folded, left = fold(model, feeds)
    if not sizes:
        left = dict.fromkeys(
            left, "the network looks at values: it does not run on the meta device"
        )
    return Prepared(model, blocks, folded, left, feeds, sizes)


def add_torch(forms: Forms, source: Prepared, x: torch.Tensor) -> None:
    """Add the forms that torch runs layer by layer."""

    def packed() -> nn.Module:
        model = channels_last(copy.deepcopy(source.model))
        forms.packed = pack(model, source.feeds, source.sizes, batch=len(x))
        return model

    forms.add("contiguous", lambda: copy.deepcopy(source.model), x)
    forms.add("channels_last", lambda: channels_last(copy.deepcopy(source.model)), x)
    if can_pack(x):
        forms.add("packed", packed, x)
        if not forms.packed:
            del forms.nets["packed"]


def add_compiled(
    forms: Forms, source: Prepared, x: torch.Tensor, backend: bool | str, *, optional: bool
) -> str:
    """Add the compiled form, and return a word on how it is compiled."""
    how = ""

    def make() -> nn.Module:
        nonlocal how
        model, how = _compiled(channels_last(copy.deepcopy(source.model)), source.sizes, x, backend)
        return model

    try:
        forms.add("compiled", make, x)
    except FeatnetError as error:
        if not optional:
            raise
        forms.left_out["inductor"] = _reason(error)
    return how


def add_engines(
    forms: Forms, net: nn.Module, model: nn.Module, x: torch.Tensor, output: object, engine: str
) -> None:
    """Add the network in the engine that is asked for, or in all; of these note why one cannot."""
    content = functools.cache(lambda: onnx_program(model, x))  # written once, for all
    interface = functools.cache(lambda: Interface.of(net, x, output))

    def make(name: str) -> nn.Module:
        program = Program(name, content(), x.shape, torch.get_num_threads())
        return EngineNet(program, interface())

    for name in ENGINES if engine == "auto" else (engine,):
        try:
            _check_engine(name, x)
            content(), interface()
            forms.add(name, functools.partial(make, name), x)
            _compare(net, forms.nets[name], x)
        except FeatnetError as error:
            forms.nets.pop(name, None)
            if engine != "auto":
                raise
            forms.left_out[name] = _reason(error)


def _reason(error: Exception) -> str:
    """Return an error's message as one line; compilers write pages."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _check_engine(name: str, x: torch.Tensor) -> None:
    missing = ENGINES[name].missing()
    if missing:
        raise FeatnetError(f"engine={name!r}: {missing}.")
    if x.dtype != torch.float32 or x.device.type != "cpu":
        raise ArgumentError(
            f"engine={name!r}: it runs float32 on the CPU, and the example is {x.dtype} on "
            f"{x.device}. 'torch' and 'inductor' run it."
        )


def _compare(net: nn.Module, result: nn.Module, x: torch.Tensor) -> None:
    """Refuse an engine's numbers at the size of the example, and at another one."""
    with torch.inference_mode():
        pairs = [(x, net(x)), other_size(net, x, tuple(AXES))]
    for batch, output in pairs:
        verified(net, result, batch, list(trace.tensors(output)))


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
