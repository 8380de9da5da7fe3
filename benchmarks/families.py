"""Several families in every mode: five levels, one early level, output stride 8, a training step,
optimised; and what the limits are: onnxruntime, and the machine's matrix product."""

from __future__ import annotations

import importlib.util
import io
import math
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import featnet

from .common import TIMES, Table, Work, alternate, load_noise, noise, seconds_of
from .core import _call, _step, difference, flops

# One of each kind of network, small enough for two cores
NAMES = (
    "resnet50", "resnet50d", "seresnext50_32x4d", "vgg16_bn", "densenet121", "efficientnet_b0",
    "tf_efficientnetv2_s", "mobilenetv3_large_100", "regnety_032", "ese_vovnet19b_dw",
    "xception41", "resnest26d", "skresnet18", "res2net50_26w_4s", "repvgg_a2", "convnext_tiny",
    "rexnet_100", "hrnet_w18_small_v2", "vit_small_patch16_224", "swin_tiny_patch4_window7_224",
    "hiera_tiny_224", "pvt_v2_b1",
)  # fmt: skip


def names() -> list[str]:
    """Those of ``NAMES`` that are registered."""
    return [name for name in NAMES if featnet.is_model(name)]


class Pair:
    """timm's network and featnet's with the same noise, and what is made of them."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        import timm

        self.name, self.device, self.dtype = name, device, dtype
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.state = noise(timm.create_model(name))
        self.size = featnet.get_weights(name)["input_size"][-1] if featnet.get_weights(name) else 224
        self.x = torch.randn(1, 3, self.size, self.size, device=device, dtype=dtype)

    def ours(self, **options: Any) -> nn.Module:
        return self._ready(featnet.create_model(self.name, features_only=True, **options))

    def theirs(self, **options: Any) -> nn.Module | None:
        """None where timm refuses."""
        import timm

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._ready(timm.create_model(self.name, features_only=True, **options))
        except Exception:
            return None

    def _ready(self, net: nn.Module) -> nn.Module:
        if hasattr(net, "body") or all(key in self.state for key in net.state_dict()):
            load_noise(net, self.state)
        else:  # a getter that renames: model.
            own = net.state_dict()
            net.load_state_dict({k: self.state[k.removeprefix("model.")] for k in own})
        return net.eval().to(self.device, self.dtype)


def features(pair: Pair, rounds: int) -> list[str]:
    """All levels, eager."""
    peer, ours = pair.theirs(), pair.ours()
    if peer is None:
        return ["-"] * 4
    gap = difference(ours, peer, pair.x)
    contenders = {"timm": _call(peer, pair.x), "featnet": _call(ours, pair.x)}
    times = alternate(contenders, rounds=rounds, device=pair.device)
    return [*times["featnet"].cells, f"{gap:.0e}"]


def early(pair: Pair, rounds: int) -> list[str]:
    """The second level alone."""
    peer, ours, full = pair.theirs(out_indices=(1,)), pair.ours(out_indices=(1,)), pair.ours()
    share = flops(lambda: ours(pair.x)) / flops(lambda: full(pair.x))
    work = {"timm": _call(peer or full, pair.x), "featnet": _call(ours, pair.x)}
    times = alternate(work, rounds=rounds, device=pair.device)
    theirs = f"{flops(lambda: peer(pair.x)) / flops(lambda: full(pair.x)):.2f}" if peer else "-"
    ratio = times["featnet"].cells if peer else ["-"] * 3
    return [f"{share:.2f}", theirs, *ratio]


def dense(pair: Pair, rounds: int) -> list[str]:
    """All levels at output stride 8."""
    try:
        ours = pair.ours(output_stride=8)
    except featnet.errors.OutputStrideError:
        return ["refused"] + ["-"] * 3
    peer = pair.theirs(output_stride=8)
    if peer is None or [y.shape for y in peer(pair.x)] != [y.shape for y in ours(pair.x)]:
        times = alternate({"featnet": _call(ours, pair.x)}, rounds=rounds, device=pair.device)
        return [f"{times['featnet'].seconds * 1e3:,.1f}", "-", "-", "timm has none"]
    work = {"timm": _call(peer, pair.x), "featnet": _call(ours, pair.x)}
    times = alternate(work, rounds=rounds, device=pair.device)
    return [*times["featnet"].cells, f"{difference(ours, peer, pair.x):.0e}"]


def training(pair: Pair, rounds: int) -> list[str]:
    """Forward and backward over all levels, in training mode, batch 2."""
    peer, ours = pair.theirs(), pair.ours()
    if peer is None:
        return ["-"] * 3
    x = torch.cat([pair.x, pair.x.flip(3)])
    work = {"timm": _step(peer.train(), x), "featnet": _step(ours.train(), x)}
    return alternate(work, rounds=rounds, device=pair.device, warmup=1)["featnet"].cells


def _onnx(net: nn.Module, x: torch.Tensor, threads: int) -> Work | None:
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        try:
            featnet.export(net, path, example=torch.cat([x, x]), dynamic=("batch",))
        except featnet.errors.FeatnetError:
            return None
        session = onnxruntime.InferenceSession(str(path), options)
    feed = {"image": x.numpy()}
    return lambda: session.run(None, feed)


def optimised(pair: Pair, rounds: int) -> list[str]:
    """``featnet.optimize`` against timm's net in channels_last, and against onnxruntime."""
    peer, ours = pair.theirs(), pair.ours()
    made = featnet.optimize(ours, example=pair.x)
    last = torch.channels_last
    x = pair.x.to(memory_format=last)
    work = {"timm": _call((peer or ours).to(memory_format=last), x), "featnet": _call(made, pair.x)}
    limit = _onnx(pair.ours(), pair.x, torch.get_num_threads()) if pair.device == "cpu" else None
    if limit is not None:
        work["onnxruntime"] = limit
    times = alternate(work, rounds=rounds, device=pair.device)
    against = "-"
    if limit is not None:
        against = f"{times['onnxruntime'].seconds / times['featnet'].seconds:.2f}"
    rate = flops(lambda: ours(pair.x)) / times["featnet"].seconds
    return [*times["featnet"].cells, against, f"{rate / peak(pair.device, pair.dtype):.2f}"]


def peak(device: str, dtype: torch.dtype, side: int = 2048) -> float:
    """Floating-point operations per second of the machine's matrix product, the best of five."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / min(seconds_of(lambda: a @ a, device) for _ in range(5))


MODES = {
    "All levels, eager": (features, (*TIMES, "largest relative difference")),
    "The second level alone": (early, ("share of the FLOPs", "timm's share", *TIMES)),
    "Output stride 8": (dense, (*TIMES, "largest relative difference")),
    "Training step": (training, TIMES),
    "Optimised": (
        optimised,
        (*TIMES, "times onnxruntime's speed", "share of the matrix product's rate"),
    ),
}


def run(device: str, *, quick: bool, dtype: torch.dtype = torch.float32) -> Iterator[Table]:
    """One table a mode, one row a family, and the medians."""
    rounds = 2 if quick else 7
    kind = str(dtype).removeprefix("torch.")
    for title, (mode, header) in MODES.items():
        rows = []
        for name in names():
            try:
                rows.append([name, *mode(Pair(name, device, dtype), rounds)])
            except Exception as error:  # one family that fails must not hide the others
                rows.append([name, f"failed: {type(error).__name__}: {error}"[:120]])
        at = header.index("times timm's speed") + 1 if "times timm's speed" in header else None
        found = [float(row[at]) for row in rows if at and len(row) > at and row[at] != "-"]
        note = str(mode.__doc__).replace("\n", " ")
        if found:
            note += (
                f" Median over {len(found)} families {statistics.median(found):.2f}, least "
                f"{min(found):.2f}."
            )
        yield Table(f"{title}, {kind}, {device}", ("model", *header), rows, note)


def chart(tables: list[Table]) -> str:
    """The ratios as an SVG picture: one line of dots a mode, timm's speed in the middle."""
    width, height, left = 760, 40 * (len(tables) + 1) + 20, 210
    low, high = 0.5, 4.0

    def at(ratio: float) -> float:
        share = math.log(min(max(ratio, low), high) / low) / math.log(high / low)
        return left + share * (width - left - 20)

    text = io.StringIO()
    text.write(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
    )
    for tick in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        x = at(tick)
        text.write(
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="20" y2="{height - 30}" '
            f'stroke="{"#444" if tick == 1 else "#ddd"}"/>\n'
            f'<text x="{x:.0f}" y="{height - 12}" text-anchor="middle">{tick:g}</text>\n'
        )
    for row, table in enumerate(tables):
        y = 40 + 40 * row
        text.write(f'<text x="8" y="{y + 4}">{table.title}</text>\n')
        column = list(table.header).index("times timm's speed")
        for cells in table.rows:
            if len(cells) > column and cells[column] != "-":
                x = at(float(cells[column]))
                text.write(
                    f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="#2a6fb0" fill-opacity="0.6">'
                    f"<title>{cells[0]}: {cells[column]}</title></circle>\n"
                )
    text.write(f'<text x="{left}" y="14">times timm\'s speed, one dot a family</text>\n</svg>\n')
    return text.getvalue()
