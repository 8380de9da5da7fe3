"""The figures: tables of which each row is measured by itself, so that a budget of time can end
anywhere."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import featnet
from featnet.checkpoints.writing import write_safetensors

from ..common import Timing, Work, alternate
from ..core import _call, _maps, flops
from ..families import Pair
from .setting import Setting, gap

# Eight families; what compiles soonest first
FAMILIES = (
    "resnet50", "vit_small_patch16_224", "mobilenetv3_large_100", "repvgg_a2", "regnety_032",
    "convnext_tiny", "efficientnet_b0", "swin_tiny_patch4_window7_224",
)  # fmt: skip
DENSE = ("resnet50", "efficientnet_b0", "regnety_032", "convnext_tiny")
QUICK = ("test_resnet",)
TIMES = ("timm, ms", "featnet, ms", "times timm's speed", "middle half")
LAST = torch.channels_last

Rows = list[list[str]]


def timed(setting: Setting, contenders: Mapping[str, Work | None]) -> dict[str, Timing]:
    """Time calls in turn; on a GPU ten calls in a row are one, so that launches overlap."""
    times = 10 if setting.cuda else 1

    def again(work: Work) -> Work:
        return lambda: [work() for _ in range(times)]

    works = {name: again(work) for name, work in contenders.items() if work is not None}
    taken = alternate(
        works,
        rounds=2 if setting.quick else 7,
        device=setting.device,
        warmup=1 if setting.quick else 3,
        enough=0.0 if setting.quick else 1.0,
    )
    return {
        name: dataclasses.replace(timing, seconds=timing.seconds / times)
        for name, timing in taken.items()
    }


def beside(setting: Setting, theirs: Work | None, ours: Work) -> list[str]:
    """The cells of :data:`TIMES`."""
    found = timed(setting, {"timm": theirs, "featnet": ours})
    own = found["featnet"]
    if theirs is None:
        return ["-", own.cells[0], "-", "-"]
    return [found["timm"].cells[0], *own.cells]


def _net(net: nn.Module | None, dtype: torch.dtype, form: torch.memory_format) -> nn.Module | None:
    return None if net is None else net.to(dtype).to(memory_format=form)


def _last(setting: Setting, net: nn.Module | None) -> nn.Module | None:
    return _net(net, setting.half, LAST)


def _images(setting: Setting, name: str, batch: int) -> torch.Tensor:
    return setting.images(name, batch=batch, dtype=setting.half).to(memory_format=LAST)


def _optional(net: nn.Module | None, x: torch.Tensor) -> Work | None:
    return None if net is None else _call(net, x)


def _difference(ours: nn.Module, theirs: nn.Module | None, x: torch.Tensor) -> str:
    if theirs is None:
        return "-"
    with torch.inference_mode():
        found, wanted = _maps(ours(x)), _maps(theirs(x))
    wanted = [
        b if a.shape == b.shape else b.permute(0, 3, 1, 2)
        for a, b in zip(found, wanted, strict=True)
    ]
    return f"{gap(found, wanted):.0e}"


def eager(setting: Setting, name: str) -> Rows:
    """All levels, eager."""
    pair, rows = Pair(name, setting.device, torch.float32), []
    ours, theirs = pair.ours(), pair.theirs()
    for dtype, form, batch in (
        (torch.float32, torch.contiguous_format, 32),
        (setting.half, LAST, 32),
        (setting.half, LAST, 1),
    ):
        x = setting.images(name, batch=batch, dtype=dtype).to(memory_format=form)
        own, peer = ours.to(dtype).to(memory_format=form), _net(theirs, dtype, form)
        times = beside(setting, _optional(peer, x), _call(own, x))
        kind = str(dtype).removeprefix("torch.") + ", channels_last" * (form == LAST)
        rows.append([name, f"{kind}, batch {len(x)}", *times, _difference(own, peer, x)])
    return rows


def dense(setting: Setting, name: str) -> Rows:
    """All levels at output stride 8, in bfloat16 and channels_last."""
    pair, x = Pair(name, setting.device, torch.float32), _images(setting, name, 8)
    ours = pair.ours(output_stride=8).to(setting.half).to(memory_format=LAST)
    theirs = _last(setting, pair.theirs(output_stride=8))
    if theirs is not None and [y.shape for y in theirs(x)] != [y.shape for y in ours(x)]:
        theirs = None
    times = beside(setting, _optional(theirs, x), _call(ours, x))
    return [[name, f"batch {len(x)}", *times, _difference(ours, theirs, x)]]


def _step(net: nn.Module | None, x: torch.Tensor) -> Work | None:
    if net is None:
        return None
    network = net.train()

    def work() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16):
            maps = _maps(network(x))
        torch.stack([y.float().square().mean() for y in maps]).sum().backward()

    return work


def training(setting: Setting, name: str) -> Rows:
    """Forward and backward over all levels under autocast to bfloat16, in channels_last."""
    pair, x = Pair(name, setting.device, torch.float32), setting.images(name, batch=16)
    x = x.to(memory_format=LAST)
    ours, theirs = pair.ours().to(memory_format=LAST), _net(pair.theirs(), torch.float32, LAST)
    work = _step(ours, x)
    assert work is not None
    return [[name, f"batch {len(x)}", *beside(setting, _step(theirs, x), work)]]


def early(setting: Setting, name: str) -> Rows:
    """The second level alone, in bfloat16 and channels_last, and its share of the operations."""
    pair, x = Pair(name, setting.device, torch.float32), _images(setting, name, 32)
    ours = pair.ours(out_indices=(1,)).to(setting.half).to(memory_format=LAST)
    whole = pair.ours().to(setting.half).to(memory_format=LAST)
    theirs = _last(setting, pair.theirs(out_indices=(1,)))
    share = flops(lambda: ours(x)) / flops(lambda: whole(x))
    times = beside(setting, _optional(theirs, x), _call(ours, x))
    return [[name, f"batch {len(x)}", *times, f"{share:.2f}"]]


def loading(setting: Setting, name: str) -> Rows:
    """A local checkpoint in the page cache, to a network on the device."""
    pair = Pair(name, setting.device, torch.float32)
    wait = torch.cuda.synchronize if setting.cuda else (lambda: None)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{name}.safetensors"
        write_safetensors(pair.state, file)

        def ours() -> None:
            featnet.create_model(name, checkpoint_path=file, device=setting.device)
            wait()

        def theirs() -> None:
            import timm

            timm.create_model(name, checkpoint_path=str(file)).to(setting.device)
            wait()

        found = alternate(
            {"timm": theirs, "featnet": ours} if pair.has_peer else {"featnet": ours},
            rounds=2 if setting.quick else 3, device=setting.device, warmup=1, enough=0.0,
        )  # fmt: skip
    own = found["featnet"].cells
    size = f"{sum(v.nbytes for v in pair.state.values()) / 2**20:,.0f} MiB"
    peer = found["timm"].cells[0] if pair.has_peer else "-"
    return [[name, size, peer, own[0], *(own[1:] if pair.has_peer else ["-", "-"])]]


def graphs(setting: Setting, name: str) -> Rows:
    """featnet's forward of one image replayed as a CUDA graph, against the same, eager."""
    net = Pair(name, setting.device, torch.float32).ours().to(setting.half).to(memory_format=LAST)
    x = _images(setting, name, 1)
    call, stream = _call(net, x), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        net(x)
    found = timed(setting, {"eager": call, "graph": graph.replay})
    return [[name, "batch 1", found["eager"].cells[0], *found["graph"].cells]]


def optimised(setting: Setting, name: str) -> Rows:
    """``featnet.optimize`` against timm's extractor in channels_last, bfloat16."""
    pair, x = Pair(name, setting.device, torch.float32), _images(setting, name, 32)
    made = featnet.optimize(pair.ours().to(setting.half), example=x)
    theirs = _last(setting, pair.theirs())
    report: Any = made.optimize_report
    times = beside(setting, _optional(theirs, x), _call(made, x))
    return [[name, f"batch {len(x)}, {report.memory_format}", *times]]


def compiled(setting: Setting, name: str) -> Rows:
    """torch.compile of both, one graph of featnet's, in bfloat16 and channels_last."""
    pair, x = Pair(name, setting.device, torch.float32), _images(setting, name, 32)
    ours = pair.ours().to(setting.half).to(memory_format=LAST)
    theirs = _last(setting, pair.theirs())
    fast: Any = torch.compile(ours, fullgraph=True, backend=setting.backend)
    peer: Any = None if theirs is None else torch.compile(theirs, backend=setting.backend)
    times = beside(setting, _optional(peer, x), _call(fast, x))
    torch.compiler.reset()
    return [[name, f"batch {len(x)}", *times]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A table.

    Attributes:
        title: its heading.
        measure: Setting, name of a network -> rows. Its docstring is the note.
        header: above the rows.
        names: of the networks.
        guess: seconds that the first row may take on a GPU; a later one is expected to take no
            longer than the longest before it.
        cuda: it is about CUDA itself.
    """

    title: str
    measure: Callable[[Setting, str], Rows]
    header: tuple[str, ...]
    names: tuple[str, ...] = FAMILIES
    guess: float = 15.0
    cuda: bool = False

    def chosen(self, setting: Setting) -> tuple[str, ...]:
        """The networks of a setting."""
        return QUICK if setting.quick else self.names


_ROW = ("model", "what", *TIMES)
PARTS = (
    Part("All levels, eager", eager, (*_ROW, "difference")),
    Part("Output stride 8", dense, (*_ROW, "difference"), DENSE),
    Part("Training step", training, _ROW, DENSE),
    Part("The second level alone", early, (*_ROW, "share of the FLOPs"), DENSE),
    Part("Loading to the device", loading, _ROW, ("resnet50", "convnext_tiny")),
    Part(
        "CUDA graphs",
        graphs,
        ("model", "what", "eager, ms", "graph, ms", "times eager's speed", "middle half"),
        cuda=True,
    ),
    Part("Optimised", optimised, _ROW),
    Part("Compiled", compiled, _ROW, guess=60.0),
)
