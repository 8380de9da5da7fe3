"""``python -m featnet.compat SCRIPT [ARGUMENTS]``: run a script with featnet in timm's place."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from .switch import use_as_timm


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script, or with ``-m`` a module, over featnet.

    Args:
        argv: the words behind the command; by default those of the process.

    Returns:
        0; what the script raises, or exits with, is left as it is.
    """
    parser = argparse.ArgumentParser(
        prog="python -m featnet.compat",
        description="Run a Python script with featnet in the place of timm.",
    )
    parser.add_argument(
        "--flat",
        action="store_true",
        help="features nets have timm's flat children (stages_0), see use_as_timm(flat=True)",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT names a module")
    parser.add_argument("script", metavar="SCRIPT", help="a file, with -m a module")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    options = parser.parse_args(argv)
    script: str = options.script
    if not options.module and not Path(script).exists():
        parser.error(f"{script!r} does not exist; -m {script} runs a module.")
    with use_as_timm(flat=options.flat):
        sys.argv = [script, *options.arguments]
        if options.module:
            sys.path.insert(0, "")
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(script).resolve().parent))
            runpy.run_path(script, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
