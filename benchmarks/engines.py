"""``python -m benchmarks.engines``: ``featnet.optimize(engine="auto")`` against the engines run by
hand, torch, and timm's quickest eager form.

By hand means: featnet's extractor, as it is, written as ONNX and given to the engine with its own
defaults, but for the number of threads, float32, and for OpenVINO the one shape.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

import featnet
from featnet.deploy.engines import ENGINES
from featnet.deploy.exporting import onnx_program

from .command import parsed, parser_of, report
from .common import Table, Work, alternate
from .core import _call
from .families import Pair

# The networks of the benchmark's first table that deployment concerns most come first
NAMES = (
    "mobilenetv3_large_100", "efficientnet_b0", "resnet50", "densenet121", "regnety_032",
    "repvgg_a2", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224",
    "rexnet_100", "ese_vovnet19b_dw", "res2net50_26w_4s", "hrnet_w18_small_v2", "resnet50d",
    "seresnext50_32x4d", "vgg16_bn", "tf_efficientnetv2_s", "xception41", "resnest26d",
    "skresnet18", "hiera_tiny_224", "pvt_v2_b1",
)  # fmt: skip
QUICK = ("test_resnet", "mobilenetv3_small_050")
HEADER = (
    "model", "auto takes", "ms", "against the best by hand", "middle half", "onnxruntime, ms",
    "OpenVINO, ms", "torch, ms", "timm's best, ms", "times timm's best",
)  # fmt: skip


def by_hand(pair: Pair, x: torch.Tensor, threads: int) -> dict[str, Work]:
    """Each engine that is installed, in its own words."""
    program = onnx_program(pair.ours(), x)
    work: dict[str, Work] = {}
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(program, options)
        work["onnxruntime"] = lambda: session.run(None, {"image": x.numpy()})
    if importlib.util.find_spec("openvino") is not None:
        import openvino

        core = openvino.Core()
        model = core.read_model(program)
        model.reshape(list(x.shape))
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        work["openvino"] = lambda: request.infer([x.numpy()], share_inputs=True)
    return work


def timms(pair: Pair, x: torch.Tensor) -> Work | None:
    """timm's extractor, in the memory format in which it is quicker."""
    plain, last = pair.theirs(), pair.theirs()
    if plain is None or last is None:
        return None
    form = torch.channels_last
    calls = {
        "contiguous": _call(plain, x),
        "channels_last": _call(last.to(memory_format=form), x.to(memory_format=form)),
    }
    times = alternate(calls, rounds=3)
    return calls[min(times, key=lambda name: times[name].seconds)]


def row(name: str, batch: int, side: int | None, rounds: int) -> list[str]:
    """Measure one network."""
    pair, threads = Pair(name, "cpu", torch.float32), torch.get_num_threads()
    x = torch.randn(batch, 3, side or pair.size, side or pair.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto: Any = featnet.optimize(pair.ours(), example=x, engine="auto")
    report = auto.optimize_report
    plain: nn.Module = featnet.optimize(pair.ours(), example=x)
    work = {"auto": _call(auto, x), "torch": _call(plain, x), **by_hand(pair, x, threads)}
    peer = timms(pair, x)
    if peer is not None:
        work["timm"] = peer
    times = alternate(work, rounds=rounds)
    others = [kind for kind in ("torch", *ENGINES) if kind in times]
    best = min(others, key=lambda kind: times[kind].seconds)
    against = alternate({"best": work[best], "auto": work["auto"]}, rounds=rounds)["auto"]
    torch.compiler.reset()

    def ms(kind: str) -> str:
        return f"{times[kind].seconds * 1e3:,.1f}" if kind in times else "-"

    speed = times["timm"].seconds / times["auto"].seconds if "timm" in times else None
    return [
        name,
        report.engine,
        ms("auto"),  # of the same rounds as the times that follow
        *against.cells[1:],
        ms("onnxruntime"),
        ms("openvino"),
        ms("torch"),
        ms("timm"),
        "-" if speed is None else f"{speed:.2f}",
    ]


def run(
    names: Sequence[str], *, batch: int = 1, side: int | None = None, rounds: int = 9
) -> Iterator[Table]:
    """A table with a row for each network; one that fails must not hide the others."""
    rows: list[list[str]] = []
    for name in names:
        try:
            rows.append(row(name, batch, side, rounds))
        except Exception as error:
            rows.append([name, f"failed: {type(error).__name__}: {error}"[:160]])
        print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    title = f"Engines, float32, batch {batch}" + (f", {side} x {side}" if side else "")
    note = ["All levels; images of the checkpoint's size unless the title says another."]
    table = Table(title, HEADER, rows)
    for what, column in (
        ("the best by hand", "against the best by hand"),
        ("timm's best eager form", "times timm's best"),
    ):
        ratios = table.column(column).values()
        if ratios:
            note.append(
                f"Against {what}: median {statistics.median(ratios):.2f}, least {min(ratios):.2f}, "
                f"most {max(ratios):.2f}, over {len(ratios)}."
            )
    yield Table(title, HEADER, rows, " ".join(note), "engines")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report; rows go to the standard error as they come."""
    parser = parser_of("benchmarks.engines", __doc__)
    parser.add_argument("--quick", action="store_true", help="two small networks, few rounds")
    parser.add_argument("--batch", type=int, default=1, help="images in a call (default: 1)")
    parser.add_argument("--side", type=int, help="of the images (default: the checkpoint's)")
    parser.add_argument("names", nargs="*", help="networks (default: those of the page)")
    args = parsed(parser, argv)
    names = args.names or (QUICK if args.quick else NAMES)
    rounds = 3 if args.quick else 9
    tables = run(names, batch=args.batch, side=args.side, rounds=rounds)
    return report(args, tables, ("timm", *ENGINES))


if __name__ == "__main__":
    sys.exit(main())
