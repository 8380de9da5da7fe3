"""``python -m benchmarks.large``: memory and time of large images.

    python -m benchmarks.large tiled     a 12000 x 9000 photograph by featnet.extract_tiled
    python -m benchmarks.large sizes     one forward at 512 to 4000 x 3000 beside timm

The peak of ``tiled`` is of resident memory, with whatever is in it: the interpreter, torch, the
image, the maps. Beside timm it is of the tensors that a forward has alive at once.
"""

from __future__ import annotations

import argparse
import functools
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import torch

import featnet

from .command import parsed, parser_of, report
from .common import Table, summarise
from .memory import peak

MIB = 2**20
LIBRARIES = ("timm", "featnet")
SIZES = ((512, 512), (1024, 1024), (2048, 2048), (3000, 4000))
NAMES = ("resnet50", "convnext_tiny", "efficientnet_b0", "swin_tiny_patch4_window7_224")


def resident() -> int:
    """Most bytes that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tiled(name: str, levels: Sequence[int], size: Sequence[int], tile: int) -> Iterator[Table]:
    """The maps of an image of random bytes, in this process."""
    net = featnet.create_model(name, features_only=True, out_indices=levels).eval()
    image = torch.randint(0, 255, (1, 3, *size), dtype=torch.uint8)
    before, start = resident(), time.perf_counter()
    maps = featnet.extract_tiled(net, image, tile=tile, prepare=lambda part: part.float() / 255)
    seconds = time.perf_counter() - start
    bytes_ = (image.nbytes, sum(y.nbytes for y in maps), before, resident())
    row = [name, ", ".join(map(str, levels)), str(tile), *(str(n // MIB) for n in bytes_)]
    header = ("network", "levels", "tile", "image", "maps", "before", "peak", "s")
    note = (
        "`featnet.extract_tiled` in a new process: bytes in memory, levels in memory. MiB; the "
        "peak is the resident memory of the whole process, torch and the image included. One run: "
        "the peak is what counts, the time is an upper bound."
    )
    title = f"{size[1]} x {size[0]}"
    yield Table(title, header, [[*row, f"{seconds:,.0f}"]], note, "large")


def contender(library: str, name: str, levels: tuple[int, ...]) -> torch.nn.Module:
    """An extractor of a library, with its own random weights."""
    options = {} if "swin" not in name or library == "featnet" else {"strict_img_size": False}
    if library == "featnet":
        return featnet.create_model(name, features_only=True, out_indices=levels).eval()
    import timm

    net: torch.nn.Module = timm.create_model(
        name, features_only=True, out_indices=levels, **options
    )
    return net.eval()


def compared(name: str, levels: tuple[int, ...], size: tuple[int, int], rounds: int) -> list[str]:
    """A row: memory and time of a forward of both libraries."""
    memory: dict[str, float] = {}
    nets = {library: contender(library, name, levels) for library in LIBRARIES}
    x, taken = torch.zeros(1, 3, *size), []
    with torch.inference_mode():
        for net in nets.values():  # the first forward of a network is slower than others
            net(x[..., :224, :224])
        for index in range(rounds):
            seconds = {}
            for library in LIBRARIES[:: 1 if index % 2 else -1]:
                start = time.perf_counter()
                memory[library] = peak(functools.partial(nets[library], x)) / MIB
                seconds[library] = time.perf_counter() - start
            taken.append({library: seconds[library] for library in LIBRARIES})
    timing = summarise(taken, "timm")
    ours, theirs = memory["featnet"], memory["timm"]
    return [
        name,
        "last" if len(levels) == 1 else "all",
        f"{size[0]} x {size[1]}",
        f"{ours:,.0f}",
        f"{theirs:,.0f}",
        f"{ours / theirs:.2f}",
        f"{timing['featnet'].seconds:.2f}",
        f"{timing['timm'].seconds:.2f}",
        *timing["featnet"].cells[1:],
    ]


def sizes(
    rounds: int, names: Sequence[str], shapes: Sequence[tuple[int, int]] = SIZES
) -> Iterator[Table]:
    """All networks at all sizes, the last level and all of them; rows go to the standard error as
    they come."""
    rows = []
    for name in names:
        count = len(featnet.feature_info(name))
        for size in shapes:
            for levels in ((count - 1,), tuple(range(count))):
                rows.append(compared(name, levels, size, rounds))
                print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    header = (
        "network", "levels", "height x width", "MiB", "timm's MiB", "times timm's MiB", "s",
        "timm's s", "times timm's speed", "middle half",
    )  # fmt: skip
    note = (
        "MiB are the tensors that a forward has alive at once, beside the weights and the image; "
        f"seconds the medians of {rounds} calls in turn."
    )
    yield Table("One forward beside timm", header, rows, note, "large")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report."""
    parser = parser_of("benchmarks.large", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("tiled", "sizes"))
    parser.add_argument("--names", nargs="+", default=None)
    parser.add_argument("--levels", nargs="+", type=int, default=(3, 4))
    parser.add_argument("--size", nargs=2, type=int, default=(9000, 12000), metavar=("H", "W"))
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3, help="at least 2 (default: 3)")
    args = parsed(parser, argv)
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: at least 2 are needed for a spread")
    if args.what == "tiled":
        name = (args.names or ["mobilenetv2_100"])[0]
        return report(args, tiled(name, args.levels, args.size, args.tile), ())
    return report(args, sizes(args.rounds, args.names or NAMES))


if __name__ == "__main__":
    sys.exit(main())
