"""``python -m benchmarks``: the core, loading and the families, one after the other."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence

from . import core, families, loading
from .command import add_device, parsed, parser_of, report

PARTS = ("core", "loading", "families")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report."""
    parser = parser_of("benchmarks", __doc__)
    add_device(parser)
    families.add_choices(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some parts")
    args = parsed(parser, argv)
    parts = {
        "core": core.run(args.device, quick=args.quick),
        "loading": loading.run(args.device, quick=args.quick),
        "families": families.run(args.device, quick=args.quick, dtypes=args.dtype),
    }
    tables = itertools.chain.from_iterable(parts[part] for part in args.only)
    return report(args, tables, ("timm", "torchvision", "onnxruntime"))


if __name__ == "__main__":
    sys.exit(main())
