"""Read back what was extracted, one image at a time or as a data set."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils.data import Dataset

from ...errors import ArgumentError, nearest
from ...values import checked
from . import shards as files
from .manifest import read

Value = torch.Tensor | dict[str, torch.Tensor]
_OPEN = 8  # shards of vectors that stay in memory


class Features(Mapping[str, Value]):
    """The results in a folder by key; :func:`featnet.read_features` opens them.

    A value is a vector (C,), or a dict of levels' names and maps (C, h, w). It is read when it is
    asked for.

    Attributes:
        folder: the folder.
        manifest: what the results depend on, as the run wrote it.
        errors: keys of the images without a result, and the reasons.

    Raises:
        OutputError: a folder without features.

    Example:
        >>> import pathlib, tempfile, torch, featnet
        >>> from PIL import Image
        >>> net = featnet.create_model("test_resnet", features_only=True, out_indices=(0,)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photos, out = pathlib.Path(folder, "photos"), pathlib.Path(folder, "out")
        ...     photos.mkdir()
        ...     for name in ("coffee",):
        ...         Image.new("RGB", (96, 64), "brown").save(photos / f"{name}.png")
        ...     summary = featnet.extract_images(net, photos, out=out)
        ...     loader = torch.utils.data.DataLoader(featnet.read_features(out).dataset())
        ...     (key,), maps = next(iter(loader))
        >>> key, {name: tuple(x.shape) for name, x in maps.items()}
        ('coffee.png', {'act1': (1, 32, 80, 80)})
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read(folder)
        self._table = self.manifest["table"]
        self.errors: dict[str, str] = {}
        self._places: dict[str, tuple[int, int]] = {}  # shard, and row among its results
        for index in sorted(files.done(folder)):
            row = 0
            for line in files.records(folder, index):
                if "error" in line:
                    self.errors[line["key"]] = line["error"]
                else:
                    self._places[line["key"]] = (index, row)
                    row += 1
        self._vectors = functools.lru_cache(_OPEN)(self._read_vectors)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, key: str) -> Value:
        index, row = self._place(key)
        vectors = self._vectors(index)
        if vectors is not None:
            return torch.from_numpy(vectors[row].copy())
        with safe_open(files.part(self.folder, index, files.MAPS), framework="pt") as file:
            own = [name for name in file.keys() if name.rpartition("/")[0] == key]  # noqa: SIM118
            maps = {name[len(key) + 1 :]: file.get_tensor(name).clone() for name in own}
        return {name: maps[name] for name in self._levels(maps)}

    def __repr__(self) -> str:
        return (
            f"Features({str(self.folder)!r}: {len(self)} images of "
            f"{self.manifest['model']['name']}, {len(self.errors)} failed)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_vectors"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._vectors = functools.lru_cache(_OPEN)(self._read_vectors)

    def _place(self, key: str) -> tuple[int, int]:
        if key in self._places:
            return self._places[key]
        if key in self.errors:
            raise KeyError(f"{key!r} has no result: {self.errors[key]}")
        raise KeyError(f"{key!r} is no key of these features.{nearest(key, self._places)}")

    def _read_vectors(self, index: int) -> Any:
        return files.read_vectors(self.folder, index, self._table)

    def _levels(self, maps: Mapping[str, torch.Tensor]) -> list[str]:
        """Names of levels in the order of the network's, where that is known."""
        known = [level["module"] for level in self.manifest["levels"]]
        return known if {*known} == {*maps} else list(maps)

    def record(self, key: str) -> dict[str, Any]:
        """Say where an image was and how it became an input.

        Args:
            key: of the image.

        Returns:
            ``image`` (the path), ``image_size`` and ``input_size`` (height, width), ``image_place``
            (top and left in the input, height and width that it was resized to).
        """
        index, _ = self._place(key)
        return next(line for line in files.records(self.folder, index) if line["key"] == key)

    def matrix(self) -> torch.Tensor:
        """Read all vectors.

        Returns:
            (N, C), in the order of the keys.

        Raises:
            ArgumentError: the results are maps.
        """
        shards = dict.fromkeys(index for index, _ in self._places.values())
        parts = [self._read_vectors(index) for index in shards]
        if any(part is None for part in parts) or not parts:
            raise ArgumentError(
                f"{str(self.folder)!r} holds maps, or nothing: there are no vectors."
            )
        return torch.cat([torch.from_numpy(part.copy()) for part in parts])

    def dataset(self) -> FeatureDataset:
        """Give the results as a data set for :class:`torch.utils.data.DataLoader`.

        Returns:
            ``dataset[i]`` is the pair of the i-th key and its value.
        """
        return FeatureDataset(self)


class FeatureDataset(Dataset[tuple[str, Value]]):
    """Pairs of a key and its features.

    Args:
        features: of :func:`featnet.read_features`.
    """

    def __init__(self, features: Features) -> None:
        self.features, self._keys = features, list(features)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> tuple[str, Value]:
        key = self._keys[index]
        return key, self.features[key]


@checked
def read_features(folder: str | os.PathLike[str]) -> Features:
    """Open what :func:`extract_images` or ``featnet extract`` wrote to a folder.

    Args:
        folder: the output folder; an unfinished one has the results so far.

    Returns:
        A mapping of keys to vectors (C,), or to dicts of maps (C, h, w), read when asked for. It
        has ``matrix()`` for all vectors, ``errors``, ``manifest``, ``record(key)``, and
        ``dataset()`` for a DataLoader.

    Raises:
        OutputError: no such folder, or not one of features.

    Example:
        >>> import pathlib, tempfile, featnet
        >>> from PIL import Image
        >>> net = featnet.create_model("test_resnet", features_only=True, out_indices=(-1,)).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     photos, out = pathlib.Path(folder, "photos"), pathlib.Path(folder, "out")
        ...     photos.mkdir()
        ...     for name in ("coffee", "rocket"):
        ...         Image.new("RGB", (96, 64), "brown").save(photos / f"{name}.png")
        ...     summary = featnet.extract_images(net, photos, out=out, pool="avg")
        ...     features = featnet.read_features(out)
        ...     vector, every = features["rocket.png"], features.matrix()
        >>> list(features)
        ['coffee.png', 'rocket.png']
        >>> vector.shape, every.shape
        (torch.Size([96]), torch.Size([2, 96]))
    """
    return Features(Path(folder))
