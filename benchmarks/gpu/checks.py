"""The checks: each is a function of a :class:`Setting` that fails by an AssertionError, and else
says what it saw."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import featnet
from featnet.checkpoints.writing import write_safetensors

from ..common import noise
from ..core import flops
from .setting import Setting, gap

LOW = 0.05  # of bfloat16
SAME = 1e-2  # of float32 as CUDA computes it, in TF32 where that is torch's default


@dataclasses.dataclass(frozen=True)
class Check:
    """A check with its name.

    Attributes:
        name: one line.
        run: Setting -> what was seen, in a few words.
        cuda: it is about CUDA itself, and cannot run elsewhere.
    """

    name: str
    run: Callable[[Setting], str]
    cuda: bool = False

    def __str__(self) -> str:
        return self.name


def _near(found: Any, wanted: Any, limit: float) -> str:
    far = gap(found, wanted)
    assert far <= limit, f"differs by {far:.1e} of the largest value, more than {limit:g}"
    return f"differs by {far:.1e}"


@torch.inference_mode()
def dilated(setting: Setting, stride: int, *, compiled: bool) -> str:
    """An output stride, in bfloat16 and channels_last: the numbers of float32, and the format."""
    name, last = setting.names[0], torch.channels_last
    wanted = setting.net(name, output_stride=stride)(setting.images(name))
    net = setting.net(name, dtype=torch.bfloat16, output_stride=stride).to(memory_format=last)
    if compiled:
        net = torch.compile(net, fullgraph=True, backend=setting.backend)
    maps = net(setting.images(name, dtype=torch.bfloat16).to(memory_format=last))
    formats = [y.is_contiguous(memory_format=last) for y in maps]
    assert all(formats), f"levels in channels_last: {formats}"
    return _near(maps, wanted, LOW)


@torch.inference_mode()
def replays(setting: Setting, name: str, **options: Any) -> str:
    """A CUDA graph of a forward gives the maps of the image that is there when it is replayed."""
    net, x = setting.net(name, **options), setting.images(name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # whatever is chosen or kept at the first calls
        for _ in range(3):
            net(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = net(x)
    x.copy_(setting.images(name).flip(3))
    graph.replay()
    return _near(maps, net(x), SAME)


@torch.inference_mode()
def reduces_overhead(setting: Setting, name: str) -> str:
    """torch.compile's own CUDA graphs."""
    net, x = setting.net(name), setting.images(name)
    compiled = torch.compile(net, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        maps = [y.clone() for y in compiled(x)]
    return _near(maps, net(x), SAME)


@torch.inference_mode()
def waits_for_nothing(setting: Setting, name: str, kind: str) -> str:
    """From the second call on no forward makes the host wait for the device."""
    net, x = setting.net(name, feature_cls=kind), setting.images(name)
    net(x)  # tables are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "no synchronisation"


@torch.inference_mode()
def optimised(setting: Setting, dtype: torch.dtype) -> str:
    """``optimize`` folds, and gives the network's numbers; on a GPU nothing is packed."""
    name = setting.names[0]
    net, x = setting.net(name, dtype=dtype), setting.images(name, dtype=dtype)
    made: Any = featnet.optimize(net, example=x)
    report = made.optimize_report
    assert report.folded, "no batch norm was folded"
    assert not (setting.cuda and report.packed), "layers are packed, which is for CPUs"
    seen = _near(made(x), net(x), SAME if dtype == torch.float32 else LOW)
    return f"{seen}, {len(report.folded)} batch norms folded, {report.memory_format}"


def trains(setting: Setting, name: str) -> str:
    """A step of all levels under autocast: a finite gradient for every parameter, on the device."""
    net, x = setting.net(name).train(), setting.images(name)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    with torch.autocast(torch.device(setting.device).type, torch.bfloat16):
        maps = net(x)
    torch.stack([y.float().square().mean() for y in maps]).sum().backward()
    lacking = [key for key, p in net.named_parameters() if p.grad is None]
    assert not lacking, f"no gradient: {lacking[:3]}"
    bad = [key for key, p in net.named_parameters() if not p.grad.isfinite().all()]
    assert not bad, f"gradients that are not finite: {bad[:3]}"
    where = {p.grad.device.type for p in net.parameters()}
    assert where == {torch.device(setting.device).type}, f"gradients on {where}"
    optimizer.step()
    return f"{sum(1 for _ in net.parameters())} gradients"


def loads(setting: Setting, name: str) -> str:
    """A checkpoint straight to the device, as an extractor in bfloat16: the file's values."""
    state = noise(featnet.create_model(name))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.safetensors"
        write_safetensors(state, file)  # safetensors' own needs numpy
        net = featnet.create_model(
            name, features_only=True, checkpoint_path=file, device=setting.device,
            dtype=torch.bfloat16,
        )  # fmt: skip
    own = net.state_dict()
    where = {value.device.type for value in own.values()}
    assert where == {torch.device(setting.device).type}, f"tensors on {where}"
    wrong = [
        key
        for key, value in own.items()
        if value.is_floating_point() and not torch.equal(value.cpu(), state[key].to(value.dtype))
    ]
    assert not wrong, f"other values than the file's: {wrong[:3]}"
    return f"{len(own)} tensors"


@torch.inference_mode()
def taps_early(setting: Setting, name: str) -> str:
    """One early level has the whole network's values, for less work."""
    whole, early = setting.net(name), setting.net(name, out_indices=(1,), feature_cls="hook")
    x = setting.images(name)
    seen = _near(early(x), [whole(x)[1]], SAME)
    share = flops(lambda: early(x)) / flops(lambda: whole(x))
    assert share < 1, f"{share:.2f} of the whole network's operations"
    return f"{seen}, {share:.2f} of the operations"


def listed(setting: Setting) -> list[Check]:
    """The checks of a setting, those that compile last."""
    first = setting.names[0]
    found = [
        Check(f"output stride {stride}, bfloat16, channels_last",
              functools.partial(dilated, stride=stride, compiled=False))
        for stride in (16, 8)
    ]  # fmt: skip
    for name in setting.names:
        found.append(
            Check(f"a CUDA graph replays: {name}", functools.partial(replays, name=name), cuda=True)
        )
        for kind in ("list", "hook"):
            run = functools.partial(waits_for_nothing, name=name, kind=kind)
            found.append(Check(f"no host synchronisation: {name}, {kind} net", run, cuda=True))
        found.append(Check(f"a training step: {name}", functools.partial(trains, name=name)))
        found.append(Check(f"loads to the device: {name}", functools.partial(loads, name=name)))
        found.append(Check(f"an early level: {name}", functools.partial(taps_early, name=name)))
    run = functools.partial(replays, name=first, output_stride=8)
    found.append(Check(f"a CUDA graph replays: {first} at output stride 8", run, cuda=True))
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        found.append(Check(f"optimize: {kind}", functools.partial(optimised, dtype=dtype)))
    found += [
        Check(f"output stride {stride}, bfloat16, channels_last, compiled",
              functools.partial(dilated, stride=stride, compiled=True))
        for stride in (16, 8)
    ]  # fmt: skip
    run = functools.partial(reduces_overhead, name=first)
    return [*found, Check("torch.compile with CUDA graphs", run, cuda=True)]
