"""``set_output_stride`` on networks from elsewhere: ``python -m benchmarks.strides [--out FILE]``.

One network of each module of timm's, every classification network of torchvision's families, and
transformers' convolutional ones, each built by its own library with random weights. A stride is
held where featnet's own check passed: the changed network, on random input in float64, gives the
original's maps at every n-th position. The peer is asked for the same by its own argument.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import featnet
from featnet.errors import FeatnetError

from .common import Table

STRIDE = 8
TRANSFORMERS = {
    "ResNet": ("ResNetConfig", "ResNetModel", {}),
    "ConvNeXt": ("ConvNextConfig", "ConvNextModel", {}),
    "ConvNeXtV2": ("ConvNextV2Config", "ConvNextV2Model", {}),
    "RegNet": ("RegNetConfig", "RegNetModel", {}),
    "MobileNetV1": ("MobileNetV1Config", "MobileNetV1Model", {}),
    "MobileNetV2": ("MobileNetV2Config", "MobileNetV2Model", {}),
    "EfficientNet": ("EfficientNetConfig", "EfficientNetModel", {"image_size": 224}),
    "BiT": ("BitConfig", "BitModel", {}),
}

Case = tuple[str, str, Callable[[], nn.Module], Callable[[], object]]


def timms() -> Iterator[Case]:
    """A small network of each of timm's modules, and timm's own ``output_stride``."""
    import timm

    for module in sorted({timm.models._registry._model_to_module[n] for n in timm.list_models()}):
        names = timm.list_models(module=module)
        name = min((n for n in names if not n.startswith("test_")), key=_width, default=names[0])

        def build(name: str = name) -> nn.Module:
            return timm.create_model(name)

        def own(name: str = name) -> object:
            return timm.create_model(name, features_only=True, output_stride=STRIDE)

        yield f"timm {module}", name, build, own


def _width(name: str) -> tuple[int, str]:
    """Order names by what they say of their size."""
    small = ("atto", "femto", "pico", "nano", "xxs", "tiny", "xs", "_t", "small", "_s", "18", "b0")
    return next((i for i, word in enumerate(small) if word in name), len(small)), name


def torchvisions() -> Iterator[Case]:
    """The smallest classification network of each of torchvision's files."""
    import torchvision

    seen: set[str] = set()
    for name in torchvision.models.list_models(module=torchvision.models):
        builder = torchvision.models.get_model_builder(name)
        if builder.__module__ not in seen:
            seen.add(builder.__module__)

            def own() -> object:
                raise NotImplementedError

            yield f"torchvision {builder.__module__.rpartition('.')[2]}", name, builder, own


def transformers() -> Iterator[Case]:
    """Each convolutional backbone, by its default configuration."""
    import transformers as library

    for kind, (config, model, options) in TRANSFORMERS.items():

        def build(config: str = config, model: str = model, options: Any = options) -> nn.Module:
            made: nn.Module = getattr(library, model)(getattr(library, config)(**options))
            return made

        def own() -> object:
            raise NotImplementedError

        yield f"transformers {kind}", model, build, own


def answer(build: Callable[[], nn.Module]) -> str:
    """Return ``held``, or the reason why not."""
    torch.manual_seed(0)
    try:
        featnet.set_output_stride(build().eval(), STRIDE)
    except FeatnetError as error:
        first = str(error).split("\n")[0].split(". ")[0]
        return first.removeprefix(f"output_stride={STRIDE}").lstrip(": ").rstrip(".: ")
    return "held"


def peers(own: Callable[[], object]) -> str:
    """Return what the peer does with the same wish."""
    try:
        own()
    except NotImplementedError:
        return "-"
    except Exception:
        return "refuses"
    return "takes it"


def table() -> Table:
    """A row for each network."""
    rows = []
    for cases in (timms, torchvisions, transformers):
        for origin, name, build, own in cases():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = [origin, f"`{name}`", answer(build), peers(own)]
            print(*row, sep=" | ", file=sys.stderr, flush=True)
            rows.append(row)
    held = {lib: [r[2] == "held" for r in rows if r[0].startswith(lib)] for lib in _LIBRARIES}
    shares = ", ".join(f"{sum(h)} of {len(h)} in {lib}" for lib, h in held.items())
    taken = sum(row[3] == "takes it" for row in rows)
    note = (
        "Written by `python -m benchmarks.strides`: each network is built by its own library, with "
        "random weights; held means that the changed one, in float64, gave the original's maps at "
        f"every n-th position. `set_output_stride(model, {STRIDE})` holds for {shares}. timm's own "
        f"`output_stride={STRIDE}` is taken by {taken} of its networks, and is not checked."
    )
    return Table("Output strides of networks from elsewhere", _HEADER, rows, note)


_LIBRARIES = ("timm", "torchvision", "transformers")
_HEADER = ("module", "network", "featnet", "the peer")


def main() -> int:
    """Print the table; with ``--out`` write it to a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strides", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    text = str(table()).replace("## ", "# ", 1)
    print(text)
    if args.out:
        args.out.write_text(f"{text.strip()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
