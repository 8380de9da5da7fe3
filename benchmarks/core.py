"""``python -m benchmarks.core``: cold start, building, features, hooks, output stride, training, of
resnet50 for the most part."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import featnet

from .command import add_device, parsed, parser_of, report
from .common import TIMES, Table, Timing, Work, alternate, load_noise, noise, summarise

ROOT = Path(__file__).parents[1]

IMPORT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
{statement}
seconds = time.perf_counter() - start
new = set(sys.modules) - before
print(json.dumps([seconds, sorted(new)]))
"""
HEAVY = ("torchvision", "huggingface_hub", "PIL")


def _import(statement: str) -> tuple[float, list[str]]:
    """Seconds that a statement takes in a new interpreter that has torch, and what it imports."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, modules


def _loaded(modules: list[str]) -> str:
    """Which families and heavy packages are among modules."""
    families = [m for m in modules if m.startswith(("featnet.models.", "timm.models."))]
    heavy = [name for name in HEAVY if name in modules]
    return ", ".join([f"{len(families)} model files"] * bool(families) + heavy) or "none"


def import_time(rounds: int) -> Table:
    """What ``import featnet`` adds to ``import torch``."""
    statements = {
        "import timm": "import timm",
        "import featnet": "import featnet",
        "from featnet import create_model": "from featnet import create_model",
        "featnet.list_models()": "import featnet; featnet.list_models()",
    }
    taken, modules = [], {}
    for _ in range(max(2, rounds)):
        seconds = {}
        for name, statement in statements.items():
            seconds[name], modules[name] = _import(statement)
        taken.append(seconds)
    times = summarise(taken, "import timm")
    rows = [[f"`{name}`", f"{t.seconds:.4f}", _loaded(modules[name])] for name, t in times.items()]
    return Table(
        "Import",
        ("after `import torch`, in a new interpreter", "added s (median)", "loaded"),
        rows,
        "Loaded: model files, and which of " + ", ".join(HEAVY) + ".",
        "start",
    )


def _rows(label: str, times: dict[str, Timing]) -> Iterator[list[str]]:
    for name, timing in times.items():
        yield [label, name, *timing.cells]


REMEMBERED = (
    "Two calls of each come first and do not count: in the first one featnet finds out, by a run "
    "on the meta device, what an extractor can do without, and it remembers that."
)


def building(rounds: int) -> Table:
    """create_model with random weights."""
    import timm

    rows: list[list[str]] = []
    for label, options in (
        ("resnet50", {}),
        ("resnet50, features_only", {"features_only": True}),
        ("resnet50, features_only, output_stride=8", {"features_only": True, "output_stride": 8}),
    ):
        contenders = {
            "timm": lambda o=options: timm.create_model("resnet50", **o),
            "featnet": lambda o=options: featnet.create_model("resnet50", **o),
        }
        rows += _rows(label, alternate(contenders, rounds=rounds))
    note = f"Random weights. {REMEMBERED}"
    return Table("create_model", ("model", "library", *TIMES), rows, note, "start")


FAMILIES = (
    "resnet50", "efficientnet_b0", "mobilenetv3_large_100", "densenet121", "regnety_032",
    "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224", "hrnet_w18_small_v2",
    "vgg16_bn",
)  # fmt: skip


def building_families(rounds: int, names: Sequence[str]) -> Table:
    """create_model of extractors with random weights, and feature_info, of several families."""
    import timm

    rows: list[list[str]] = []
    for name in names:
        for label, options in (
            ("all levels", {}),
            ("the second level", {"out_indices": (1,)}),
            ("output_stride=8", {"output_stride": 8}),
        ):
            try:
                timm.create_model(name, features_only=True, **options)
            except (NotImplementedError, TypeError, AssertionError):  # timm dilates no such one
                continue
            contenders = {
                "timm": lambda n=name, o=options: timm.create_model(n, features_only=True, **o),
                "featnet": lambda n=name, o=options: featnet.create_model(
                    n, features_only=True, **o
                ),
            }
            times = alternate(contenders, rounds=rounds, enough=2)
            rows.append([name, label, times["timm"].cells[0], *times["featnet"].cells])
        told = alternate(
            {"featnet": lambda n=name: featnet.feature_info(n)}, rounds=rounds, enough=0
        )
        rows.append([name, "feature_info(name)", "-", told["featnet"].cells[0], "-", "-"])
    header = ("model", "what is made", "timm's ms", *TIMES)
    note = f"Random weights; timm tells no feature_info without the network. {REMEMBERED}"
    return Table("Extractors of several families", header, rows, note, "start")


def _pair(
    name: str, device: str, peer: dict[str, Any], *ours: dict[str, Any]
) -> tuple[nn.Module, list[nn.Module]]:
    """timm's extractor and featnet's, with the same weights, in eval mode."""
    import timm

    state = noise(timm.create_model(name))
    theirs = timm.create_model(name, features_only=True, **peer)
    nets = [featnet.create_model(name, features_only=True, **options) for options in ours]
    ready = [load_noise(net, state).eval().to(device) for net in (theirs, *nets)]
    return ready[0], ready[1:]


def _maps(found: Any) -> list[torch.Tensor]:
    return list(found.values()) if isinstance(found, dict) else list(found)


def difference(net: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    """Largest difference of any map, relative to that map's largest value. The peer gives some of
    its maps as (N, H, W, C).

    Raises:
        ArithmeticError: a map that is not finite, or all zero, so that the comparison says nothing.
    """
    with torch.inference_mode():
        pairs = [
            (a, b if a.shape == b.shape else b.permute(0, 3, 1, 2))
            for a, b in zip(_maps(net(x)), _maps(other(x)), strict=True)
        ]
        gaps = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    if not all(map(math.isfinite, gaps)):
        raise ArithmeticError(f"The maps are not finite, or zero: differences {gaps}.")
    return max(gaps)


def _call(net: nn.Module, x: torch.Tensor) -> Work:
    def work() -> None:
        with torch.inference_mode():
            net(x)

    return work


def features(rounds: int, device: str, name: str) -> Table:
    """Five levels, every extractor against timm's list net."""
    kinds = ("list", "dict", "hook")
    peer, ours = _pair(name, device, {}, *({"feature_cls": kind} for kind in kinds))
    rows: list[list[str]] = []
    worst = 0.0
    for batch in (1, 4):
        x = torch.randn(batch, 3, 224, 224, device=device)
        worst = max(worst, *(difference(net, peer, x) for net in ours))
        contenders = {"timm list": _call(peer, x)}
        contenders |= {f"featnet {k}": _call(net, x) for k, net in zip(kinds, ours, strict=True)}
        times = alternate(contenders, rounds=rounds, device=device)
        rows += _rows(f"batch {batch}", times)
    note = (
        "Eager float32, eval, inference_mode, 224 x 224, same weights. Largest difference from "
        f"timm's maps: {worst:g}."
    )
    header = ("input", "extractor", *TIMES)
    return Table(f"{name} features, five levels", header, rows, note, "forward")


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of one call, as torch's counter sees them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return int(counter.get_total_flops())


def hook_level(rounds: int, device: str, name: str) -> Table:
    """The hook net at level 1 alone: what is computed, kept and waited for."""
    peer, (ours, full) = _pair(
        name,
        device,
        {"feature_cls": "hook", "out_indices": (1,)},
        {"feature_cls": "hook", "out_indices": (1,)},
        {"feature_cls": "hook"},
    )
    x = torch.randn(1, 3, 224, 224, device=device)
    layers = nn.Sequential(
        *(getattr(full, n) for n in ("conv1", "bn1", "act1", "maxpool", "layer1"))
    )
    nets = {
        "timm hook, (1,)": peer,
        "featnet hook, all five": full,
        "featnet hook, (1,)": ours,
        "the layers up to level 1, called by hand": layers,
    }
    times = alternate({n: _call(net, x) for n, net in nets.items()}, rounds=rounds, device=device)
    rows = []
    for kind, net in nets.items():
        count = flops(lambda net=net: net(x))
        parameters = sum(p.numel() for p in net.parameters())
        rows.append([kind, f"{count / 1e9:.3f}", f"{parameters / 1e6:.3f}", *times[kind].cells])
    return Table(
        f"{name} hook net, `out_indices=(1,)`",
        ("net", "GFLOP", "million parameters", *TIMES),
        rows,
        "Batch 1, 224 x 224. FLOPs by torch.utils.flop_counter (a multiply-add counts two).",
        "early",
    )


def output_stride(rounds: int, device: str, names: Sequence[str]) -> Table:
    """Features at output stride 8."""
    rows: list[list[str]] = []
    x = torch.randn(1, 3, 224, 224, device=device)
    for name in names:
        peer, (ours,) = _pair(name, device, {"output_stride": 8}, {"output_stride": 8})
        gap = f"{difference(ours, peer, x):.1g}"
        contenders = {"timm": _call(peer, x), "featnet": _call(ours, x)}
        times = alternate(contenders, rounds=rounds, device=device)
        rows += [[*row, gap] for row in _rows(name, times)]
    note = (
        "Batch 1, 224 x 224. Where maps differ by more than rounding, featnet follows the à trous "
        "law and timm does not (its d variants leave an average pool undilated): docs/dilation.md. "
        "Rounding differs in the last level, where timm also dilates a 1 x 1 convolution, which "
        "changes no value but the kernel that computes it."
    )
    header = ("model", "library", *TIMES, "largest relative difference")
    return Table("Features at output_stride=8", header, rows, note, "dilated")


def _step(net: nn.Module, x: torch.Tensor) -> Work:
    def work() -> None:
        net.zero_grad(set_to_none=True)
        sum(y.square().mean() for y in _maps(net(x))).backward()  # type: ignore[union-attr]

    return work


def training(rounds: int, device: str, name: str) -> Table:
    """Forward and backward over five levels, in training mode."""
    peer, (ours,) = _pair(name, device, {}, {})
    x = torch.randn(2, 3, 224, 224, device=device)
    contenders = {"timm": _step(peer.train(), x), "featnet": _step(ours.train(), x)}
    times = alternate(contenders, rounds=rounds, device=device, warmup=1)
    rows = [[name, *timing.cells] for name, timing in times.items()]
    note = "Batch 2, 224 x 224, float32, batch norm in training mode, list net."
    return Table(f"{name} training step", ("library", *TIMES), rows, note, "training")


PARTS = ("import", "create", "create_families", "features", "early", "dilated", "training")


def run(device: str, *, quick: bool, only: Sequence[str] = PARTS) -> Iterator[Table]:
    """Every table in turn; ``quick`` measures a few rounds, to see that all works."""
    many, few = (2, 2) if quick else (15, 5)
    names = ("resnet18",) if quick else ("resnet18", "resnet50", "resnet50d")
    name = "resnet18" if quick else "resnet50"
    parts: dict[str, Callable[[], Table]] = {
        "import": lambda: import_time(few),
        "create": lambda: building(few),
        "create_families": lambda: building_families(few, FAMILIES[: 1 if quick else None]),
        "features": lambda: features(many, device, name),
        "early": lambda: hook_level(many * 2, device, name),
        "dilated": lambda: output_stride(many, device, names),
        "training": lambda: training(many, device, name),
    }
    for part in only:
        yield parts[part]()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report."""
    parser = parser_of("benchmarks.core", __doc__)
    add_device(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some tables")
    args = parsed(parser, argv)
    return report(args, run(args.device, quick=args.quick, only=args.only))


if __name__ == "__main__":
    sys.exit(main())
