"""``discover`` beside what featnet's own models declare: ``python -m benchmarks.discovery [--every
N]``.

Each model is looked into with its classifier, without it, and without it inside another module.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

import featnet

from .command import parsed, parser_of, report
from .common import Table

Rows = list[tuple[int, int]]


class Nested(nn.Module):
    """A network in another one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        """(N, C, H, W) -> what the network returns."""
        return self.net(x)


def forms(name: str) -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield the name of each form of a model, the module, and the network in it."""
    for form, options in (("with its classifier", {}), ("headless", {"num_classes": 0})):
        with torch.device("meta"):
            net: Any = featnet.create_model(name, **options).eval()
        yield form, net, net
    yield "headless, nested", Nested(net), net


def compare(model: nn.Module, net: Any) -> tuple[Rows, Rows]:
    """Return (channels, reduction) of the last declared level at each resolution, and of those that
    ``discover`` finds."""
    last = {level.reduction: level.channels for level in net.feature_info}
    info = featnet.discover(model, (net.in_chans, *(net.img_size or (256, 256))))
    return [(c, r) for r, c in last.items()], [(f.channels, f.reduction) for f in info]


def reason(want: Rows, got: Rows) -> str:
    """Say how two lists of levels differ."""
    if len(got) > len(want):
        extra = sorted({r for _, r in got} - {r for _, r in want})
        return f"a level more, within the stem, at {extra}"
    if len(got) < len(want):
        return f"no level at {sorted({r for _, r in want} - {r for _, r in got})}"
    places = [i for i, pair in enumerate(zip(want, got, strict=True)) if pair[0] != pair[1]]
    if places == [len(want) - 1]:
        return "for the last level the layer behind it, which the network counts among its stages"
    return "for a level another module of its resolution"


def sweep(every: int) -> Iterator[Table]:
    """The share of the models that agree, and the others with reasons."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    others: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name in featnet.list_models()[::every]:
        for form, model, net in forms(name):
            want, got = compare(model, net)
            counts[form][0] += want == got
            counts[form][1] += 1
            if want != got:
                others[type(net).__name__, reason(want, got)].add(name)
    rows = [[form, f"{agree} of {n}", f"{agree / n:.1%}"] for form, (agree, n) in counts.items()]
    note = (
        "Models of featnet whose declarations are hidden; they agree where the channels of the "
        "last level at each resolution, and the resolutions, are the declared ones."
    )
    if every > 1:
        note += f" Only each {every}th model."
    header = ("form", "agree", "share")
    yield Table("discover beside the declaration", header, rows, note, "discovery")
    listed = [
        [f"{len(names)}: {', '.join(sorted(names)[:4])}{', ...' * (len(names) > 4)}", family, why]
        for (family, why), names in sorted(others.items(), key=lambda item: -len(item[1]))
    ]
    yield Table("The others", ("models", "class", "found"), listed, page="discovery")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, compare, report."""
    parser = parser_of("benchmarks.discovery", __doc__)
    parser.add_argument("--every", type=int, default=1, help="only each N-th model")
    args = parsed(parser, argv)
    return report(args, sweep(args.every), ())


if __name__ == "__main__":
    sys.exit(main())
