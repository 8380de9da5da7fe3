"""Write what was extracted: a file of maps for each image, or one table of vectors."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ArgumentError, OutputError
from ..images.finding import Item, printable

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..extraction.extractors import FeatureNet
    from ..images.fits import Placement

FEATURES, RENDERING, VECTORS = "features.safetensors", "features.png", "vectors.safetensors"
ERRORS = "errors.jsonl"


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images that are left to do.

    Attributes:
        todo: the images whose outputs are not there yet.
        kept: how many outputs are there already.
        single: whether there is one image only, whose outputs have fixed names.
    """

    todo: list[Item]
    kept: int
    single: bool

    @classmethod
    def prepare(cls, args: argparse.Namespace, items: list[Item]) -> Plan:
        """Make the output folder and look at what is in it.

        Raises:
            ArgumentError: there is no output folder, and nothing is printed either.
            OutputError: it cannot be written to, or what would be written exists.
        """
        single = len(items) == 1
        if args.out is None:
            if not (args.pool and args.json):
                raise ArgumentError("--out DIR is missing; only --pool with --json needs none.")
            return cls(items, 0, single)
        if args.render is None:
            args.render = single and not args.pool
        prepare_folder(args.out)
        if args.pool:
            _refuse_existing([args.out / VECTORS], overwrite=args.overwrite)
            return cls(items, 0, single)
        if single:
            names = [FEATURES, RENDERING] if args.render else [FEATURES]
            _refuse_existing([args.out / name for name in names], overwrite=args.overwrite)
            return cls(items, 0, single)
        done = [item for item in items if not args.overwrite and _map_file(args, item).exists()]
        return cls([item for item in items if item not in set(done)], len(done), single)


def prepare_folder(folder: Path) -> None:
    """Make the output folder, and write to it once to see that it can be done.

    Raises:
        OutputError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"output folder {str(folder)!r} cannot be written to: {error.strerror}"
        ) from error


def write_errors(folder: Path, failed: Sequence[tuple[Item, Exception]]) -> None:
    """Write a line of JSON for each image that a run skipped; without any there is no such file."""
    from ..checkpoints.writing import staged

    path = folder / ERRORS
    if not failed:
        path.unlink(missing_ok=True)
        return
    lines = (json.dumps({"image": item.shown, "error": str(error)}) for item, error in failed)
    with staged(path) as draft:
        draft.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _refuse_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    for path in paths:
        if path.is_dir():
            raise OutputError(f"output file {str(path)!r} is a folder")
        if path.exists() and not overwrite:
            raise OutputError(f"output file {str(path)!r} exists; --overwrite replaces it")


def _map_file(args: argparse.Namespace, item: Item) -> Path:
    """The file of the maps of one of several images, under its own name."""
    path: Path = args.out / f"{item.name}.safetensors"
    return path


class Writer(Protocol):
    """The place that results are given to, one after the other."""

    def add(self, item: Item, result: Result) -> None:
        """Write or keep one result."""

    def close(self) -> None:
        """Write what was kept, and say what was done."""


def writer_of(
    args: argparse.Namespace, plan: Plan, model: str, source: str, net: FeatureNet
) -> Writer:
    """The writer for what the arguments ask for."""
    kind = VectorWriter if args.pool else MapWriter
    return kind(args, plan, model, source, net)


class _Base:
    """The part that writers have in common: the arguments, and the lines that say what was done."""

    def __init__(
        self, args: argparse.Namespace, plan: Plan, model: str, source: str, net: FeatureNet
    ) -> None:
        self.args, self.plan, self.model, self.source, self.net = args, plan, model, source, net
        self.count = 0
        random = source.startswith("random")
        self.weights = f"weights: {source}"
        if random and not args.json:
            print(
                f"The weights are random (seed {args.seed}); "
                "--pretrained, --checkpoint FILE or --demo gives trained ones."
            )

    def say(self, text: str) -> None:
        """Print a line for people; with --json there are none."""
        if not self.args.json:
            print(printable(text))

    def heading(self, result: Result) -> str:
        """The first line: the network, the image and what became of it."""
        several = "" if self.plan.single else f"{len(self.plan.todo)} images, the first: "
        return f"{self.model}, {several}image {_size(result.size)}, {describe(result)}"

    def record(self, item: Item, result: Result) -> dict[str, Any]:
        """The fields that --json prints for every result."""
        return {
            "image": item.shown,
            "image_size": list(result.size),
            "input_size": list(result.place.size),
            "model": self.model,
            "weights": self.source,
        }

    def metadata(self, result: Result, item: Item | None) -> dict[str, str]:
        """The header of a file, lists as JSON."""
        from ..images.transform import create_transform

        info, transform = self.net.feature_info, create_transform(self.net)
        lines = {
            "model": self.model,
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
        if item is not None:
            lines |= {"image": item.shown, "image_size": json.dumps(list(result.size))}
            lines["image_place"] = json.dumps([*result.place.offset, *result.place.resized])
        return lines


class MapWriter(_Base):
    """Write the maps of each image to a file of its own."""

    def add(self, item: Item, result: Result) -> None:
        """Write one image's maps, and their drawing where it is wanted."""
        from ..checkpoints.writing import staged, write_safetensors

        single = self.plan.single
        path = self.args.out / FEATURES if single else _map_file(self.args, item)
        if self.count == 0:
            self.say(self.heading(result))
            self.say(_table(self.net.feature_info, result.maps))
            self.say(self.weights)
        drawing = self._draw(item, result) if self.args.render else None
        write_safetensors(result.maps, path, metadata=self.metadata(result, item))
        files = [path]
        if drawing is not None:
            files.append(path.with_name(RENDERING if single else f"{path.stem}.features.png"))
            with staged(files[1]) as draft:
                drawing.save(draft, format="PNG")
        self.count += 1
        if self.args.json:
            maps = {name: list(x.shape) for name, x in result.maps.items()}
            record = {**self.record(item, result), "maps": maps, "files": [str(f) for f in files]}
            print(json.dumps(record), flush=True)
        elif single:
            self.say(f"wrote {' and '.join(map(str, files))}")

    def close(self) -> None:
        """Say how many files were written."""
        if not self.plan.single:
            kept = f"; {self.plan.kept} were there already" if self.plan.kept else ""
            self.say(f"wrote the maps of {self.count} images to {self.args.out}{kept}")

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
        return sheet(wrapped(row), footer=printable(f"{self.model}, {self._words()}"))


class VectorWriter(_Base):
    """Keep one vector for each image, and write them as one table."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.names: list[str] = []
        self.vectors: list[torch.Tensor] = []
        self.last: Result | None = None

    def add(self, item: Item, result: Result) -> None:
        """Keep or print one image's vector."""
        assert result.vector is not None
        if self.count == 0:
            info = self.net.feature_info
            self.say(self.heading(result))
            self.say(
                f"{self.args.pool} of {', '.join(info.module_name())}: "
                f"{len(result.vector)} values an image"
            )
            self.say(self.weights)
        self.count += 1
        self.names.append(item.shown)
        self.last = result
        if self.args.out is not None:
            self.vectors.append(result.vector)
        if self.args.json:
            vector = [round(value, 7) for value in result.vector.tolist()]
            print(json.dumps({**self.record(item, result), "vector": vector}), flush=True)

    def close(self) -> None:
        """Write the table, where there is a folder for it."""
        import torch

        from ..checkpoints.writing import write_safetensors

        if self.args.out is None or self.last is None:
            return
        lines = {"images": json.dumps(self.names), "pool": self.args.pool}
        lines["normalized"] = json.dumps(not self.args.no_normalize)
        path = self.args.out / VECTORS
        metadata = {**self.metadata(self.last, None), **lines}
        write_safetensors({"vectors": torch.stack(self.vectors)}, path, metadata=metadata)
        self.say(f"wrote {self.count} {'vector' if self.count == 1 else 'vectors'} to {path}")


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
