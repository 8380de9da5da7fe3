"""Write what was extracted of one photograph: its maps and a drawing of them, or its vector."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, OutputError
from ..images.finding import Item, printable
from ..images.many.manifest import prepare_folder
from ..size import Size

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..extraction.extractors import FeatureNet
    from ..images.fits import Placement

FEATURES, RENDERING, VECTORS = "features.safetensors", "features.png", "vectors.safetensors"


@dataclasses.dataclass
class Result:
    """The output for one image.

    Attributes:
        maps: name of a level to its map (1, C, h, w); empty where vectors are wanted.
        vector: (C,), where vectors are wanted.
        size: (height, width) of the image.
        place: where the image lay in the input.
        preview: what the network saw of the image, for drawings.
    """

    maps: dict[str, torch.Tensor]
    vector: torch.Tensor | None
    size: tuple[int, int]
    place: Placement
    preview: Image | None


def prepare(args: argparse.Namespace) -> None:
    """Make the output folder and look at what is in it.

    Raises:
        ArgumentError: there is no output folder, and nothing is printed either.
        OutputError: it cannot be written to, or what would be written exists.
    """
    if args.render is None:
        args.render = not args.pool
    check_out(args)
    if args.out is None:
        return
    prepare_folder(args.out)
    names = [VECTORS] if args.pool else [FEATURES, RENDERING] if args.render else [FEATURES]
    for path in (args.out / name for name in names):
        if path.is_dir():
            raise OutputError(f"output file {str(path)!r} is a folder")
        if path.exists() and not args.overwrite:
            raise OutputError(f"output file {str(path)!r} exists; --overwrite replaces it")


def check_out(args: argparse.Namespace) -> None:
    """Refuse a run whose results would go nowhere.

    Raises:
        ArgumentError: there is no output folder, and nothing is printed either.
    """
    if args.out is None and not (args.pool and args.json):
        raise ArgumentError("--out DIR is missing; only --pool with --json needs none.")


def writer_of(args: argparse.Namespace, source: str, net: FeatureNet) -> Writer:
    """The writer for what the arguments ask for."""
    return (VectorWriter if args.pool else MapWriter)(args, source, net)


class Writer:
    """The part that writers have in common: the arguments, and the lines that say what was done.

    Args:
        args: the command line.
        source: the origin of the weights.
        net: the network.
    """

    def __init__(self, args: argparse.Namespace, source: str, net: FeatureNet) -> None:
        self.args, self.source, self.net = args, source, net
        self.weights = f"weights: {source}"

    def write(self, item: Item, result: Result) -> None:
        """Write or print the result."""
        raise NotImplementedError

    def say(self, text: str) -> None:
        """Print a line for people; with --json there are none."""
        if not self.args.json:
            print(printable(text))

    def heading(self, result: Result) -> str:
        """The first line: the network, the image and what became of it."""
        return f"{self.args.model}, image {_size(result.size)}, {describe(result)}"

    def record(self, item: Item, result: Result) -> dict[str, Any]:
        """The fields that --json prints for every result."""
        return record(self.args, self.source, item, result.size, result.place)

    def metadata(self, result: Result, item: Item) -> dict[str, str]:
        """The header of a file, lists as JSON."""
        from ..images.transform import create_transform

        info, transform = self.net.feature_info, create_transform(self.net)
        lines = {
            "model": self.args.model,
            "out_indices": json.dumps(list(info.out_indices)),
            "modules": json.dumps(info.module_name()),
            "reductions": json.dumps(info.reduction()),
            "output_stride": str(self.args.output_stride or 32),
            "mean": json.dumps(list(transform.mean)),
            "std": json.dumps(list(transform.std)),
            "interpolation": transform.interpolation,
            "input_size": json.dumps([3, *result.place.size]),
            "weights": printable(self.source),
        }
        if self.args.pool:
            lines |= {"images": json.dumps([item.shown]), "pool": self.args.pool}
            lines["normalized"] = json.dumps(not self.args.no_normalize)
            return lines
        lines |= {"image": item.shown, "image_size": json.dumps(list(result.size))}
        lines["image_place"] = json.dumps([*result.place.offset, *result.place.resized])
        return lines


class MapWriter(Writer):
    """Write the maps of a photograph, and a drawing of them."""

    def write(self, item: Item, result: Result) -> None:
        """Write the maps, and their drawing where it is wanted."""
        from ..checkpoints.writing import staged, write_safetensors

        self.say(self.heading(result))
        self.say(_table(self.net.feature_info, result.maps))
        self.say(self.weights)
        drawing = self._draw(item, result) if self.args.render else None
        files = [self.args.out / FEATURES]
        write_safetensors(result.maps, files[0], metadata=self.metadata(result, item))
        if drawing is not None:
            files.append(self.args.out / RENDERING)
            with staged(files[1]) as draft:
                drawing.save(draft, format="PNG")
        if self.args.json:
            maps = {name: list(x.shape) for name, x in result.maps.items()}
            line = {**self.record(item, result), "maps": maps, "files": [str(f) for f in files]}
            print(json.dumps(line), flush=True)
        self.say(f"wrote {' and '.join(map(str, files))}")

    def _words(self) -> str:
        """The drawing's words for the weights: random ones show nothing that was learnt."""
        return self.weights.replace("weights: random", "random weights")

    def _draw(self, item: Item, result: Result) -> Image:
        from ..images.components import FeatureBasis
        from ..images.render import Panel, draw, sheet, wrapped

        assert result.preview is not None
        size, info = result.preview.size, self.net.feature_info
        name = item.name.rpartition("/")[2]
        row = [Panel(result.preview, printable(f"{name}  {_size(result.size)}"))]
        basis = FeatureBasis.fit([result.maps])
        for level, reduction, (module, x) in zip(
            basis.levels, info.reduction(), result.maps.items(), strict=True
        ):
            shape = " x ".join(map(str, x.shape[1:]))
            row.append(Panel(draw(x[0], size, level), f"{module}  {shape}  /{reduction}"))
        return sheet(wrapped(row), footer=printable(f"{self.args.model}, {self._words()}"))


class VectorWriter(Writer):
    """Write or print the vector of a photograph."""

    def write(self, item: Item, result: Result) -> None:
        """Print the vector with --json, and write it where there is a folder for it."""
        from ..checkpoints.writing import write_safetensors

        assert result.vector is not None
        self.say(self.heading(result))
        modules = ", ".join(self.net.feature_info.module_name())
        self.say(f"{self.args.pool} of {modules}: {len(result.vector)} values an image")
        self.say(self.weights)
        if self.args.json:
            line = {**self.record(item, result), "vector": rounded(result.vector)}
            print(json.dumps(line), flush=True)
        if self.args.out is not None:
            path = self.args.out / VECTORS
            tensors = {"vectors": result.vector[None]}
            write_safetensors(tensors, path, metadata=self.metadata(result, item))
            self.say(f"wrote 1 vector to {path}")


def record(
    args: argparse.Namespace, source: str, item: Item, size: Size, place: Placement
) -> dict[str, Any]:
    """The fields that --json prints for a result."""
    return {
        "image": item.shown,
        "image_size": list(size),
        "input_size": list(place.size),
        "model": args.model,
        "weights": source,
    }


def rounded(vector: torch.Tensor) -> list[float]:
    """The values of a vector, as they are printed."""
    return [round(value, 7) for value in vector.tolist()]


def describe(result: Result) -> str:
    """Words for how an image became an input, if it is not simply that."""
    place, size = result.place, result.size
    words = [f"input {_size(place.size)}"]
    (tall, wide), (height, width) = place.resized, place.size
    if abs(wide * size[0] - tall * size[1]) > max(*size, *place.resized):
        words.append(f"squashed from an aspect of {size[1] / size[0]:.2f} to {wide / tall:.2f}")
    elif place.resized != size:
        words.append(f"scaled to {_size(place.resized)}")
    if tall > height or wide > width:
        words.append("cropped to the middle")
    if tall < height or wide < width:
        words.append("padded around it")
    return ", ".join(words)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _table(info: Any, maps: dict[str, torch.Tensor]) -> str:
    from ..features import table

    rows = [
        [
            str(level),
            module,
            str(x.shape[1]),
            str(reduction),
            f"{x.shape[2]} x {x.shape[3]}",
            f"{x.numel() * 4:,}",
        ]
        for level, reduction, (module, x) in zip(
            info.out_indices, info.reduction(), maps.items(), strict=True
        )
    ]
    return table(["level", "module", "channels", "reduction", "map size", "bytes"], rows)
