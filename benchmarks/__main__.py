"""``python -m benchmarks``: print the figures; with ``--out`` write them to a page."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

HEAD = """# Benchmarks

featnet against timm, written by `python -m benchmarks --out docs/benchmarks.md`. Both are called
in turn in one process (of imports and of loading each measurement has its own), the order reversed
from round to round; "times timm's speed" is the median
of the rounds' ratios (above 1: featnet is faster), and the middle half is where the ratios' 25 to
75 % lie. A ratio whose middle half contains 1 shows no difference.
"""


PARTS = ("core", "loading", "families")


def main() -> int:
    """Parse the command line, measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"]
    )
    parser.add_argument(
        "--only", choices=PARTS, help="one part of the figures, and leave the others away"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here too")
    args = parser.parse_args()
    if importlib.util.find_spec("timm") is None:
        print(
            "The benchmarks compare with timm, which is not installed: pip install timm",
            file=sys.stderr,
        )
        return 1
    import torch

    from . import core, families, loading
    from .common import machine

    torch.set_num_threads(args.threads)
    sections = [HEAD, machine(args.device) + "\n"]
    print(sections[1])
    parts = (args.only,) if args.only else PARTS
    for part in (core, loading):
        if part.__name__.rpartition(".")[2] in parts:
            for table in part.run(args.device, quick=args.quick):
                sections.append(str(table))
                print(table, flush=True)
    tables = []
    if "families" in parts:
        for table in families.run(args.device, quick=args.quick, dtypes=args.dtype):
            tables.append(table)
            print(table, flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    if tables and args.out:
        image = args.out.with_suffix(".svg")
        image.write_text(families.chart(tables), encoding="utf-8")
        sections += [f"![ratios]({image.name})\n", *map(str, tables)]
    if args.out:
        args.out.write_text("\n".join(sections), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
