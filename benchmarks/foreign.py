"""Figures for networks from elsewhere: ``python -m benchmarks.foreign``; needs torchvision.

``--sweep`` compares node names with torchvision's over all of its classification models;
:mod:`benchmarks.discovery` compares ``discover`` with what featnet's own models declare.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import featnet

from .common import Table, Work, alternate, machine
from .core import flops

HEADER = (
    "net",
    "GFLOP",
    "million parameters",
    "median ms",
    "times the first's speed",
    "middle half",
)


def _resnet50(device: str) -> nn.Module:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    return resnet50().eval().to(device)


def _call(net: Any, x: torch.Tensor) -> Work:
    def work() -> None:
        with torch.inference_mode():
            net(x)

    return work


def early_tap(rounds: int, device: str) -> Table:
    """One early module of torchvision's resnet50."""
    model = _resnet50(device)
    x = torch.randn(1, 3, 224, 224, device=device)
    parts = [getattr(model, name) for name in ("conv1", "bn1", "relu", "maxpool", "layer1")]
    nets = {
        "the whole network": model,
        "extract(model, ['layer1'])": featnet.extract(model, ["layer1"]),
        "create_feature_extractor(model, ['layer1'])": featnet.create_feature_extractor(
            model, ["layer1"]
        ),
        "its modules up to layer1, by hand": nn.Sequential(*parts),
    }
    times = alternate({n: _call(net, x) for n, net in nets.items()}, rounds=rounds, device=device)
    rows = []
    for name, net in nets.items():
        count = flops(lambda net=net: net(x)) / 1e9
        size = sum(p.numel() for p in net.parameters()) / 1e6
        rows.append([name, f"{count:.3f}", f"{size:.3f}", *times[name].cells])
    return Table(
        "torchvision's resnet50, `layer1` alone", HEADER, rows, "Batch 1, 224 x 224, eager."
    )


def hook_cost(rounds: int, device: str) -> Table:
    """Four hooks on a whole forward."""
    model = _resnet50(device)
    x = torch.randn(1, 3, 224, 224, device=device)
    tapped = featnet.extract(model, ["layer?"], logits=True)
    nets = {"the network": model, "extract(..., ['layer?'], logits=True)": tapped}
    times = alternate({n: _call(net, x) for n, net in nets.items()}, rounds=rounds, device=device)
    rows = [[name, *timing.cells] for name, timing in times.items()]
    # The same hooks where nothing is computed: what they take does not drown in what varies
    idle = nn.Sequential(*(nn.Identity() for _ in range(16)))
    bare, few = _call(idle, x), _call(featnet.extract(idle, ["?"], logits=True), x)
    alone = alternate(
        {
            "bare": lambda: [bare() for _ in range(100)],
            "hooks": lambda: [few() for _ in range(100)],
        },
        rounds=rounds,
        device=device,
    )
    cost = (alone["hooks"].seconds - alone["bare"].seconds) / 100
    share = cost / times["the network"].seconds
    note = (
        f"Ten such hooks alone, on modules that do nothing: {cost * 1e6:.0f} us, "
        f"{share:.2%} of the forward."
    )
    return Table("Four hooks on a whole forward", ("net", *HEADER[3:]), rows, note)


def graph(rounds: int, device: str) -> Table:
    """The graph extractor beside torchvision's: building it, and its forward."""
    from torchvision.models.feature_extraction import create_feature_extractor

    model = _resnet50(device)
    x = torch.randn(1, 3, 224, 224, device=device)
    nodes = [f"layer{i}" for i in range(1, 5)]
    theirs, ours = (
        create_feature_extractor(model, nodes),
        featnet.create_feature_extractor(model, nodes),
    )
    with torch.inference_mode():
        equal = all(
            torch.equal(a, b) for a, b in zip(theirs(x).values(), ours(x).values(), strict=True)
        )
    rows: list[list[str]] = []
    for what, contenders in (
        ("forward", {"torchvision": _call(theirs, x), "featnet": _call(ours, x)}),
        (
            "build",
            {
                "torchvision": lambda: create_feature_extractor(model, nodes),
                "featnet": lambda: featnet.create_feature_extractor(model, nodes),
            },
        ),
    ):
        times = alternate(contenders, rounds=rounds, device=device)
        rows += [[what, name, *timing.cells] for name, timing in times.items()]
    note = f"resnet50, layer1 to layer4, 224 x 224; outputs {'equal' if equal else 'DIFFERENT'}."
    return Table("Graph extractors", ("what", "library", *HEADER[3:]), rows, note)


def threads() -> Table:
    """8 threads x 30 calls on one hook extractor."""
    from torchvision.models import resnet18

    net = featnet.extract(resnet18().eval(), ["layer1", "layer2"])
    xs = [torch.randn(1, 3, 32 + 8 * i, 32) for i in range(8)]
    with torch.inference_mode():
        want = [net(x) for x in xs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            with torch.inference_mode():
                found = net(xs[index])
            if not all(torch.equal(found[name], want[index][name]) for name in found):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return Table("Threads", ("calls", "wrong"), [["240", str(len(wrong))]])


def sweep() -> Iterator[Table]:
    """All of torchvision's classification models."""
    from torchvision import models
    from torchvision.models.feature_extraction import get_graph_node_names

    from featnet.checkpoints.instant import SkipInit

    different, total = [], 0
    start = time.perf_counter()
    for name in models.list_models(module=models):
        with SkipInit():
            model = models.get_model(name, weights=None).to("meta")
        modules = dict(model.named_modules())
        ours = featnet.get_graph_node_names(model, suppress_diff_warning=True)
        theirs = get_graph_node_names(model, suppress_diff_warning=True)
        total += 1
        pairs = [
            (a, b)
            for mine, other in zip(ours, theirs, strict=True)
            for a, b in zip(mine, other, strict=True)
            if a != b
        ]
        if pairs:
            relabelled = all(a in modules for a, _ in pairs)
            different.append(
                [name, str(len(pairs)), "modules named ..._N" if relabelled else "OTHERS"]
            )
    note = f"{total} models, {time.perf_counter() - start:.0f} s. Names differ in those listed."
    yield Table("Node names beside torchvision's", ("model", "names", "which"), different, note)


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(machine(args.device, ("torchvision",)) + ".\n")
    if args.sweep:
        for table in sweep():
            print(table, flush=True)
        return 0
    for measure in (early_tap, hook_cost, graph):
        print(measure(args.rounds, args.device), flush=True)
    print(threads())
    return 0


if __name__ == "__main__":
    sys.exit(main())
