"""What the commands of this folder share: options, and where their tables go."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from . import overview, pages
from .common import Table, machine, version_of


def parser_of(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m MODULE`` with the options of all commands."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="put each table into its page there, in the place of the one of its title; "
        "docs/benchmarks for those of the documentation",
    )
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """The options of what can be measured elsewhere, or sooner."""
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a call; ``command`` is how it was called, but for where it writes."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    quick = getattr(args, "quick", False)
    if quick and args.out is not None and args.out.resolve() == pages.FOLDER:
        parser.error("--quick shows that all works; its figures are none for docs/benchmarks.")
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--out":
            del words[index : index + 2]
        elif word.startswith("--out="):
            del words[index]
    args.command = shlex.join([*parser.prog.split(), *words])
    return args


def report(
    args: argparse.Namespace, tables: Iterable[Table], packages: Sequence[str] = ("timm",)
) -> int:
    """Print tables as they come, and put them into pages, of which the overview is made anew.

    Args:
        args: of :func:`parsed`.
        tables: that are measured while they are asked for.
        packages: distributions whose versions are named; without timm among them that is asked
            for, nothing is measured.
    """
    if "timm" in packages and version_of("timm") is None:
        print("timm is compared with, and not installed: pip install timm", file=sys.stderr)
        return 1
    torch.set_num_threads(args.threads)
    where = f"{machine(getattr(args, 'device', 'cpu'), packages)}; `{args.command}`."
    for table in tables:
        title = table.title + (f", {args.threads} threads" if args.threads > 1 else "")
        table = dataclasses.replace(table, title=title, measured=where)
        print(table, flush=True)
        if args.out is not None and table.page:
            pages.put(args.out, table)
            overview.write(args.out)
    return 0
