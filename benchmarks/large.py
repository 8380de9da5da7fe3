"""``python -m benchmarks.large``: memory and time of large images, each measured in a new process.

    python -m benchmarks.large tiled     a 12000 x 9000 photograph by featnet.extract_tiled
    python -m benchmarks.large sizes     one forward at 512 to 4000 x 3000 beside timm

Peaks are of resident memory, with whatever is in it: the interpreter, torch, the image, the maps.
Beside timm they are what a forward adds to it, and times are the median of calls in turn.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from .common import machine, summarise

MIB = 2**20
SIZES = ((512, 512), (1024, 1024), (2048, 2048), (3000, 4000))
NAMES = ("resnet50", "convnext_tiny", "efficientnet_b0", "swin_tiny_patch4_window7_224")


def resident() -> int:
    """Most bytes that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tiled(name: str, levels: tuple[int, ...], size: tuple[int, int], tile: int) -> None:
    """Print one row: the maps of an image of random bytes."""
    import featnet

    net = featnet.create_model(name, features_only=True, out_indices=levels).eval()
    image = torch.randint(0, 255, (1, 3, *size), dtype=torch.uint8)
    before, start = resident(), time.perf_counter()
    maps = featnet.extract_tiled(net, image, tile=tile, prepare=lambda part: part.float() / 255)
    seconds = time.perf_counter() - start
    total = sum(y.nbytes for y in maps) // MIB
    print(
        f"| {name} | {', '.join(map(str, levels))} | {tile} | {image.nbytes // MIB} | {total} "
        f"| {before // MIB} | {resident() // MIB} | {seconds:,.0f} |"
    )


def contender(library: str, name: str, levels: tuple[int, ...]) -> torch.nn.Module:
    """An extractor of a library, with its own random weights."""
    options = {} if "swin" not in name or library == "featnet" else {"strict_img_size": False}
    if library == "featnet":
        import featnet

        return featnet.create_model(name, features_only=True, out_indices=levels).eval()
    import timm

    net: torch.nn.Module = timm.create_model(
        name, features_only=True, out_indices=levels, **options
    )
    return net.eval()


def added(library: str, name: str, levels: tuple[int, ...], size: tuple[int, int]) -> int:
    """Bytes that a forward adds to the peak, of this process."""
    net = contender(library, name, levels)
    x = torch.zeros(1, 3, *size)
    with torch.inference_mode():
        net(torch.zeros(1, 3, 224, 224))
        before = resident()
        net(x)
    return resident() - before


def sizes(rounds: int, names: list[str]) -> None:
    """Print the rows of all networks and sizes."""
    print(
        "| network | levels | height x width | MiB | timm's | ratio | s | timm's | times as fast |"
    )
    for name in names:
        count = 5 if name in ("resnet50", "efficientnet_b0") else 4
        for size in SIZES:
            for levels in ((count - 1,), tuple(range(count))):
                memory = {}
                for library in ("timm", "featnet"):
                    call = json.dumps([library, name, levels, size])
                    done = subprocess.run(
                        [sys.executable, "-m", "benchmarks.large", "added", call],
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    memory[library] = int(done.stdout.split()[-1]) / MIB
                nets = {lib: contender(lib, name, levels) for lib in ("timm", "featnet")}
                x, taken = torch.zeros(1, 3, *size), []
                with torch.inference_mode():
                    for index in range(rounds):
                        seconds = {}
                        for library in list(nets)[:: 1 if index % 2 else -1]:
                            start = time.perf_counter()
                            nets[library](x)
                            seconds[library] = time.perf_counter() - start
                        taken.append({library: seconds[library] for library in nets})
                timing = summarise(taken, "timm")
                ours, theirs = memory["featnet"], memory["timm"]
                print(
                    f"| {name} | {'last' if len(levels) == 1 else 'all'} | {size[0]} x {size[1]} "
                    f"| {ours:,.0f} | {theirs:,.0f} | {ours / max(theirs, 1):.2f} "
                    f"| {timing['featnet'].seconds:.2f} | {timing['timm'].seconds:.2f} "
                    f"| {timing['featnet'].ratio:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("what", choices=("tiled", "sizes", "added"))
    parser.add_argument("call", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="+", default=None)
    parser.add_argument("--levels", nargs="+", type=int, default=(3, 4))
    parser.add_argument("--size", nargs=2, type=int, default=(9000, 12000), metavar=("H", "W"))
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "added":
        library, name, levels, size = json.loads(args.call)
        print(added(library, name, tuple(levels), tuple(size)))
        return
    if args.what == "tiled":
        name = (args.names or ["mobilenetv2_100"])[0]
        tiled(name, tuple(args.levels), tuple(args.size), args.tile)
    else:
        sizes(args.rounds, args.names or list(NAMES))
    print(machine("cpu"))


if __name__ == "__main__":
    main()
