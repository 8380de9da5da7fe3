"""``python -m benchmarks.families``: many networks in every mode: all levels, one early level,
output stride 8, a training step, optimised; and what the limits are: onnxruntime, and the machine's
matrix product."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import featnet

from .command import add_device, parsed, parser_of, report
from .common import TIMES, Table, Work, alternate, load_noise, noise, seconds_of
from .core import _call, _step, difference, flops
from .memory import held
from .memory import peak as peak_bytes

# One of each kind of network, small enough for two cores
NAMES = (
    "resnet50",
    "resnet50d",
    "seresnext50_32x4d",
    "vgg16_bn",
    "densenet121",
    "efficientnet_b0",
    "tf_efficientnetv2_s",
    "mobilenetv3_large_100",
    "regnety_032",
    "ese_vovnet19b_dw",
    "hgnetv2_b0",
    "xception41",
    "resnest26d",
    "skresnet18",
    "res2net50_26w_4s",
    "repvgg_a2",
    "convnext_tiny",
    "rexnet_100",
    "repghostnet_100",
    "lcnetv2_base",
    "starnet_s1",
    "fasternet_t0",
    "rdnet_tiny",
    "dla34",
    "darknet53",
    "cspnext_s",
    "dpn68",
    "resnetv2_50",
    "nfnet_l0",
    "nasnetalarge",
    "pnasnet5large",
    "inception_v3",
    "inception_v4",
    "inception_resnet_v2",
    "selecsls42",
    "tresnet_m",
    "convmixer_768_32",
    "inception_next_atto",
    "mambaout_femto",
    "caformer_s18",
    "edgenext_small",
    "hrnet_w18_small_v2",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "hiera_tiny_224",
    "pvt_v2_b1",
    "focalnet_tiny_srf",
    "twins_svt_small",
    "davit_tiny",
    "pit_s_224",
    "mvitv2_tiny",
    "sam2_hiera_tiny",
    "gcvit_xxtiny",
    "nest_tiny_jx",
    "coat_lite_tiny",
    "maxvit_tiny_tf_224",
    "coatnet_nano_rw_224",
    "fastvit_sa12",
    "mobilevit_s",
    "mobilevitv2_100",
    "efficientvit_b1",
    "lowformer_b0",
    "cpubone_b0_bfrobust",
    "mobilenetv5_base",
    "nextvit_small",
)


# What takes long to prepare (a compiler, an exporter) is measured on these alone
FEW = (
    "resnet50",
    "efficientnet_b0",
    "regnety_032",
    "repvgg_a2",
    "convnext_tiny",
    "vit_small_patch16_224",
)
DEPLOYED = (*FEW, "mobilenetv3_large_100", "densenet121")
HEADS = ("vit_base_patch16_224", "swin_tiny_patch4_window7_224", "hiera_tiny_224")
QUICK = ("test_resnet", "test_vit")


class Pair:
    """timm's network and featnet's with the same noise, and what is made of them.

    Attributes:
        state: the noise, under the names that both have.
        size: the height and width of :attr:`x`, one image.
    """

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.state = noise(featnet.create_model(name))
        weights = featnet.get_weights(name)
        self.size = weights["input_size"][-1] if weights else 224
        self.levels = featnet.feature_info(name)
        self.x = torch.randn(1, 3, self.size, self.size, device=device, dtype=dtype)

    @property
    def has_peer(self) -> bool:
        """timm is installed."""
        return importlib.util.find_spec("timm") is not None

    def ours(self, **options: Any) -> nn.Module:
        return self._ready(featnet.create_model(self.name, features_only=True, **options))

    def theirs(self, **options: Any) -> nn.Module | None:
        """None where timm refuses, or is not installed."""
        if not self.has_peer:
            return None
        import timm

        if "out_indices" not in options:  # of a transformer it gives only the last ones
            options["out_indices"] = tuple(range(len(self.levels)))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._ready(timm.create_model(self.name, features_only=True, **options))
        except Exception:
            return None

    def whole(self) -> nn.Module:
        """featnet's classifier."""
        return self._ready(featnet.create_model(self.name))

    def late(self) -> nn.Module | None:
        """timm's extractor of its last level."""
        return self.theirs(out_indices=(len(self.levels) - 1,))

    def _ready(self, net: nn.Module) -> nn.Module:
        load_noise(net, self.state)
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


def four(pair: Pair, rounds: int) -> list[str]:
    """Four levels, as heads over transformers take them, and the most MB alive at once
    meanwhile."""
    total = len(pair.levels)
    chosen = tuple(total * (i + 1) // 4 - 1 for i in range(4))
    nets = {"timm": pair.theirs(out_indices=chosen), "featnet": pair.ours(out_indices=chosen)}
    if nets["timm"] is None:
        return ["-"] * 5
    work = {kind: _call(net, pair.x) for kind, net in nets.items() if net is not None}
    times = alternate(work, rounds=rounds, device=pair.device)
    with torch.inference_mode():
        most = {kind: peak_bytes(call) for kind, call in work.items()}
    return [
        *times["featnet"].cells,
        f"{most['featnet'] / 1e6:.2f}",
        f"{most['featnet'] / most['timm']:.2f}",
    ]


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
    if any(
        importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")
    ):
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


def compiled(pair: Pair, rounds: int) -> list[str]:
    """All levels by torch.compile, one graph each, for one size."""
    peer, ours = pair.theirs(), pair.ours()
    if peer is None:
        return ["-"] * 3
    work = {
        "timm": _call(torch.compile(peer), pair.x),
        "featnet": _call(torch.compile(ours, fullgraph=True), pair.x),
    }
    times = alternate(work, rounds=rounds, device=pair.device)
    torch.compiler.reset()
    return times["featnet"].cells


def graph(pair: Pair, rounds: int) -> list[str]:
    """torchvision's graph extractor on featnet's network, against featnet's list net: the same
    layers, so that only the manner of reading them differs."""
    from torchvision.models.feature_extraction import create_feature_extractor

    ours = pair.ours()
    model = pair.whole()
    modules = dict(model.named_modules())
    names = [name for name in ours.feature_info.module_name() if name in modules]
    found = create_feature_extractor(model, names)
    work = {"torchvision": _call(found, pair.x), "featnet": _call(ours, pair.x)}
    return alternate(work, rounds=rounds, device=pair.device)["featnet"].cells


def memory(pair: Pair, rounds: int) -> list[str]:
    """MB that are alive at once: of inference with the last level alone, and of a training step at
    the end of its forward. Counted, not measured: the same on every device."""
    cells = []
    late = {"featnet": pair.ours(out_indices=(-1,)), "timm": pair.late()}
    every = {"featnet": pair.ours(), "timm": pair.theirs()}
    for nets, count in ((late, peak_bytes), (every, held)):
        sizes = {}
        for kind, net in nets.items():
            if net is None:
                continue
            if count is held:
                sizes[kind] = held(lambda net=net: net.train()(torch.cat([pair.x, pair.x])))
            else:
                with torch.inference_mode():
                    net(pair.x)
                    sizes[kind] = peak_bytes(lambda net=net: net(pair.x))
        cells.append(f"{sizes['featnet'] / 1e6:.2f}")
        cells.append(f"{sizes['featnet'] / sizes['timm']:.2f}" if "timm" in sizes else "-")
    return cells


def optimised(pair: Pair, rounds: int) -> list[str]:
    """``featnet.optimize`` against timm's net in channels_last."""
    peer, ours = pair.theirs(), pair.ours()
    made = featnet.optimize(ours, example=pair.x)
    last = torch.channels_last
    x = pair.x.to(memory_format=last)
    work = {"timm": _call((peer or ours).to(memory_format=last), x), "featnet": _call(made, pair.x)}
    times = alternate(work, rounds=rounds, device=pair.device)
    rate = flops(lambda: ours(pair.x)) / times["featnet"].seconds
    return [*times["featnet"].cells, f"{rate / peak(pair.device, pair.dtype):.2f}"]


def deployed(pair: Pair, rounds: int) -> list[str]:
    """``featnet.optimize`` against onnxruntime: as it comes, and where it may compile too."""
    limit = _onnx(pair.ours(), pair.x, torch.get_num_threads())
    if limit is None:
        return ["-"] * 4
    compiled = featnet.optimize(pair.ours(), example=pair.x, compile=True)
    work = {
        "onnxruntime": limit,
        "optimised": _call(featnet.optimize(pair.ours(), example=pair.x), pair.x),
        "compiled": _call(compiled, pair.x),
    }
    times = alternate(work, rounds=rounds, device=pair.device)
    form = compiled.optimize_report.compiled or "not compiled, as that is quicker"
    torch.compiler.reset()
    ratios = (
        times["onnxruntime"].seconds / times[kind].seconds for kind in ("optimised", "compiled")
    )
    return [
        f"{times['onnxruntime'].seconds * 1e3:,.1f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        form,
    ]


def peak(device: str, dtype: torch.dtype, side: int = 2048) -> float:
    """Floating-point operations per second of the machine's matrix product, the best of five."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / min(seconds_of(lambda: a @ a, device) for _ in range(5))


FIGURES = ("MB, late level", "times timm's", "MB, training", "times timm's, training")
AGAINST = ("onnxruntime, ms", "times its speed", "with compile=True", "the form that was taken")
# Title: (function, names, header)
MODES: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "All levels, eager": (features, NAMES, (*TIMES, "largest relative difference")),
    "Four levels of transformers": (four, HEADS, (*TIMES, "MB, peak", "times timm's MB")),
    "The second level alone": (early, NAMES, ("share of the FLOPs", "timm's share", *TIMES)),
    "Output stride 8": (dense, NAMES, (*TIMES, "largest relative difference")),
    "Training step": (training, NAMES, TIMES),
    "Compiled": (compiled, FEW, TIMES),
    "Optimised": (optimised, NAMES, (*TIMES, "share of the matrix product's rate")),
    "Optimised, against onnxruntime": (deployed, DEPLOYED, AGAINST),
    "Against torchvision's graph extractor": (
        graph,
        FEW,
        tuple(title.replace("timm", "torchvision") for title in TIMES),
    ),
    "Memory": (memory, NAMES, FIGURES),
}
# What says the same, or nothing, of another type
ONCE = (graph, memory, deployed)
DTYPES = ("float32", "bfloat16")
PAGES = {
    features: "forward", four: "forward", graph: "forward", early: "early", dense: "dilated",
    training: "training", compiled: "compiled", optimised: "compiled", deployed: "engines",
    memory: "memory",
}  # fmt: skip


def add_choices(parser: argparse.ArgumentParser) -> None:
    """The options that ``python -m benchmarks`` has too."""
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, help="default: both; with --quick float32"
    )


def run(
    device: str,
    *,
    quick: bool,
    dtypes: Sequence[str] | None = None,
    only: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Iterator[Table]:
    """One table a mode and data type, one row a network, and the medians.

    Args:
        device: to measure on.
        quick: two tiny networks and two rounds, in float32, and nothing that compiles for long.
        dtypes: of :data:`DTYPES`.
        only: names of the modes' functions; all by default.
        names: networks, in place of each mode's own.
    """
    rounds = 2 if quick else 5
    for kind in dtypes or (DTYPES[:1] if quick else DTYPES):
        for title, (mode, own, header) in MODES.items():
            if (kind != "float32" and mode in ONCE) or (device != "cpu" and mode is deployed):
                continue
            if quick and mode is deployed:
                continue
            if not only or mode.__name__ in only:
                chosen = names or (QUICK[: 1 if own is FEW else 2] if quick else own)
                yield _table(title, mode, chosen, header, rounds, device, kind)


def _table(
    title: str,
    mode: Any,
    names: Sequence[str],
    header: Sequence[str],
    rounds: int,
    device: str,
    kind: str,
) -> Table:
    rows = []
    for name in names:
        try:
            rows.append([name, *mode(Pair(name, device, getattr(torch, kind)), rounds)])
        except Exception as error:  # one family that fails must not hide the others
            rows.append([name, f"failed: {type(error).__name__}: {error}"[:120]])
    at = next((i + 1 for i, cell in enumerate(header) if cell.startswith("times ")), None)
    found = [float(row[at]) for row in rows if at and len(row) > at and row[at] != "-"]
    note = " ".join(str(mode.__doc__).split())
    if found:
        note += (
            f" Median over {len(found)} families {statistics.median(found):.2f}, least "
            f"{min(found):.2f}, most {max(found):.2f}."
        )
    return Table(f"{title}, {kind}, {device}", ("model", *header), rows, note, PAGES[mode])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report each table when it is complete."""
    parser = parser_of("benchmarks.families", __doc__)
    add_device(parser)
    add_choices(parser)
    only = {mode.__name__: title for title, (mode, _, _) in MODES.items()}
    parser.add_argument(
        "--only", nargs="+", choices=only, default=list(only), metavar="TABLE",
        help=f"some tables, of {', '.join(only)}",
    )  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME", help="these networks in all tables")
    args = parsed(parser, argv)
    tables = run(args.device, quick=args.quick, dtypes=args.dtype, only=args.only, names=args.names)
    return report(args, tables, ("timm", "torchvision", "onnxruntime"))


if __name__ == "__main__":
    sys.exit(main())
