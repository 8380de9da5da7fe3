"""``python -m benchmarks.clients``: libraries over timm and over featnet, a process for each.

Prints the table of docs/libraries/index.md, and why what fails does. A library that is not
installed is left out, and said.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from types import FunctionType
from typing import Any

# The file of uses, the module that must be there, and the distribution whose version is printed
LIBRARIES = {
    "with_smp": ("segmentation_models_pytorch", "segmentation_models_pytorch"),
    "with_transformers": ("transformers", "transformers"),
    "with_anomalib": ("anomalib", "anomalib"),
    "with_mmseg": ("mmseg", "mmsegmentation"),
    "with_mmpretrain": ("mmpretrain", "mmpretrain"),
    "with_open_clip": ("open_clip", "open_clip_torch"),
    "with_fastai": ("fastai", "fastai"),
    "with_effdet": ("effdet", "effdet"),
    "with_lightly": ("lightly", "lightly"),
    "with_supervision": ("supervision", "supervision"),
    "with_kornia": ("kornia", "kornia"),
    "with_torchvision": ("torchvision", "torchvision"),
    "with_lightning": ("lightning", "lightning"),
    "with_peft": ("peft", "peft"),
    "papers": ("timm", "timm"),
}


# Weights are random: nothing is fetched
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def uses(module: Any) -> list[FunctionType]:
    """The public functions that a file defines, in its order."""
    values = vars(module).values()
    own = [v for v in values if isinstance(v, FunctionType) and v.__module__ == module.__name__]
    return [function for function in own if not function.__name__.startswith("_")]


def run(name: str) -> dict[str, str | None]:
    """Run a file's uses in this process; None for one that passes, else why it fails."""
    results: dict[str, str | None] = {}
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        for use in uses(importlib.import_module(f"benchmarks.clients.{name}")):
            try:
                use()
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                words = " ".join(str(error).split())[:200]
                results[use.__name__] = f"{type(error).__name__} ({where}): {words}"
            else:
                results[use.__name__] = None
    return results


def apart(name: str, *, flat: bool, peer: bool) -> dict[str, str | None]:
    """Run a file's uses in a process of its own, over timm or over featnet."""
    front = [] if peer else ["-m", "featnet.compat", *(["--flat"] if flat else [])]
    command = [sys.executable, "-W", "ignore", *front, "-m", "benchmarks.clients", "--run", name]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **OFFLINE}
    )
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"import": (done.stderr.strip().splitlines() or ["no output"])[-1]}


def row(name: str, *, report: list[str]) -> list[str]:
    """A row of the table; what fails is added to the report."""
    flat = name in ("with_torchvision", "with_fastai")
    cells = []
    for peer in (True, False):
        results = apart(name, flat=flat, peer=peer)
        passed = sum(reason is None for reason in results.values())
        cells.append(f"{passed} of {len(results)}")
        library = "timm" if peer else "featnet"
        report += [f"{name} {use}, over {library}: {why}" for use, why in results.items() if why]
    _, distribution = LIBRARIES[name]
    version = f"{distribution} {importlib.metadata.version(distribution)}"
    return ["code of papers" if name == "papers" else version, *cells]


def main() -> int:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("only", nargs="*", help=f"some of {', '.join(LIBRARIES)}")
    parser.add_argument("--run", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run)))
        return 0
    report: list[str] = []
    missing: list[str] = []
    print("| library | uses that run over timm | over featnet |\n| --- | --- | --- |")
    for name, (module, distribution) in LIBRARIES.items():
        if options.only and name not in options.only:
            continue
        if importlib.util.find_spec(module) is None:
            missing.append(distribution)
            continue
        print(f"| {' | '.join(row(name, report=report))} |", flush=True)
    print(f"\n{datetime.date.today()}, timm {importlib.metadata.version('timm')}", end="")
    print(f"; not installed: {', '.join(missing)}" if missing else "")
    print("\n".join(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
