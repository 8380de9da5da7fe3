"""The features of the images in a Ray dataset: columns of tables in, columns out."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import io
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...errors import ArgumentError, check_choice, nearest
from ...values import checked
from ..finding import Item
from ..pooling import POOLS
from ..reading import read_image, to_pil
from ..transform import ImageTransform, create_transform
from .decoding import Decoded, Failure, decode, stack
from .forward import Settings, forward, rows
from .job import BATCH, Job
from .pool import RETRIES, Pool

if TYPE_CHECKING:
    from PIL.Image import Image
    from ray.data import Dataset

ERROR = "error"  # name of the column of reasons
Shape = tuple[int, ...]


@checked
def extract_dataset(
    dataset: Dataset,
    net: nn.Module,
    *,
    column: str = "path",
    pool: str | None = None,
    normalize: bool = True,
    dtype: str = "float32",
    transform: ImageTransform | None = None,
    batch_size: int = BATCH,
    workers: int | tuple[int, int] = 1,
    cpus: float = 1.0,
    gpus: float = 0.0,
    retries: int = RETRIES,
) -> Dataset:
    """Extract the features of a Ray dataset's images, on as many machines as the cluster has.

    Each worker is a process that loads the network once, and then reads, transforms and runs
    batches of rows. Nothing runs before the result is asked for, by ``write_parquet`` for example.
    A worker that dies is started anew, and the block of rows that it had is done again as a whole.

    Args:
        dataset: from ``ray.data.read_parquet``, ``read_images``, ``read_binary_files``, ...
        net: an extractor, or any network that returns maps or one vector an image; in evaluation
            mode. It is copied to the workers, weights included, and stays as it is.
        column: that has the images: paths that each worker can read, the bytes of files, or arrays
            (H, W, C) of uint8. It stays in the result where it has paths.
        pool: ``"avg"``, ``"max"``, ``"gem"`` or ``"cls"`` of :func:`pool_features` for vectors;
            None for maps, whose inputs have to be of one size, or for the vectors that the network
            itself returns.
        normalize: give pooled vectors the length 1.
        dtype: of the results, ``"float32"`` or ``"float16"``.
        transform: by default ``create_transform(net)``, a crop.
        batch_size: rows that run at once.
        workers: number of workers, or (fewest, most) of a pool that grows with its work.
        cpus: CPUs that the cluster keeps for a worker; torch has as many threads.
        gpus: GPUs that the cluster keeps for a worker; above 0 the network runs on CUDA.
        retries: times that a block is done again after its worker died, before that is an error.

    Returns:
        A dataset with the other columns as they were, and ``vector``, a list of fixed size, or a
        tensor for each level under its module's name. ``error`` is null, or says why an image has
        no result; its values are then NaN. Rows may come in another order.

    Raises:
        ArgumentError: no Ray dataset, a network in training mode, or an argument that cannot be.

    Example:
        >>> import featnet
        >>> import ray  # doctest: +SKIP
        >>> net = featnet.create_model("test_resnet", features_only=True, out_indices=(-1,)).eval()
        >>> dataset = ray.data.from_items([{"path": "missing.png"}])  # doctest: +SKIP
        >>> featnet.extract_dataset(dataset, net, pool="avg").take(1)[0]["error"]  # doctest: +SKIP
        "image 'missing.png' does not exist"
        >>> featnet.extract_dataset(["a.png"], net)
        Traceback (most recent call last):
        featnet.errors.ArgumentError: list is no Ray dataset: ray.data.from_items or ...
    """
    _check_dataset(dataset)
    if net.training:
        raise ArgumentError("The network is in training mode: call net.eval() first.")
    if pool is not None:
        check_choice("pool", pool, POOLS)
    check_choice("dtype", dtype, ("float32", "float16"))
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size!r}: a positive int is expected.")
    fewest, most = (workers, workers) if isinstance(workers, int) else workers
    processes = Pool(fewest, most, cpus, gpus, retries)
    transform = create_transform(net) if transform is None else transform
    if any(tensor.device.type != "cpu" for tensor in net.state_dict().values()):
        net = copy.deepcopy(net).cpu()
    job = Job(net, transform, Settings(pool, normalize, dtype), batch_size)
    columns = Columns(column, _outputs(job))
    names = dataset.columns(fetch_if_missing=False)
    if names is not None:
        columns.check(names)
    return processes.map(dataset, RowWorker, job, columns, processes, batch_size=batch_size)


def _check_dataset(dataset: object) -> None:
    module = sys.modules.get("ray.data")  # who has a dataset has imported it
    if module is None or not isinstance(dataset, module.Dataset):
        raise ArgumentError(
            f"{type(dataset).__name__} is no Ray dataset: ray.data.from_items or "
            "ray.data.read_parquet makes one (pip install 'featnet[ray]')."
        )


def _outputs(job: Job) -> dict[str, Shape]:
    """The names and shapes of an image's results, as an input of zeros shows them.

    Raises:
        ArgumentError: maps of inputs that differ in size.
    """
    x = torch.zeros(1, len(job.transform.mean), *job.transform.input_size)
    (values,) = forward(job.net, x, job.settings)
    if job.transform.fit in ("keep", "short") and any(y.ndim > 1 for y in values.values()):
        raise ArgumentError(
            f"fit={job.transform.fit!r} gives inputs of many sizes, and the maps of a dataset are "
            'of one: take fit="crop", "pad" or "squash", or a pool.'
        )
    return {name: tuple(y.shape) for name, y in values.items()}


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that are read and written.

    Attributes:
        images: name of the column that has the images.
        outputs: name of each column of results, and the shape of its values.
    """

    images: str
    outputs: Mapping[str, Shape]

    def check(self, names: Sequence[str]) -> None:
        """Refuse a dataset without the column of images, or with a column that would be replaced.

        Raises:
            ArgumentError: with the names.
        """
        if self.images not in names:
            raise ArgumentError(
                f"column={self.images!r}: the dataset has the columns {', '.join(names)}."
                + nearest(self.images, names)
            )
        for name in (*self.outputs, ERROR):
            if name in names:
                raise ArgumentError(
                    f"The dataset has a column {name!r} already, and the output has one of this "
                    "name: rename it (dataset.rename_columns) or drop it (dataset.drop_columns)."
                )


class RowWorker:
    """A worker that adds the features of a table's images to it.

    Args:
        job: the work; this process's copy.
        columns: what is read and written.
        pool: that the worker is of.
    """

    def __init__(self, job: Job, columns: Columns, pool: Pool) -> None:
        self.job, self.columns = pool.settle(job), columns
        self._threads = ThreadPoolExecutor(self.job.workers or 1)

    def __call__(self, table: Any) -> Any:
        """Extract the features of the images in a table of pyarrow.

        Returns:
            The table without images, with features and errors.

        Raises:
            ArgumentError: a column that is missing, or would be replaced.
        """
        arrow = importlib.import_module("pyarrow")
        self.columns.check(table.column_names)
        column = table.column(self.columns.images)
        values, errors = self.extract(_images(column))
        if not (arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)):
            table = table.drop_columns([self.columns.images])
        for name, value in values.items():
            table = table.append_column(name, _array(value))
        return table.append_column(ERROR, arrow.array(errors, arrow.string()))

    def extract(self, images: Sequence[object]) -> tuple[dict[str, torch.Tensor], list[str | None]]:
        """Extract the features of images, and the reasons where there are none."""
        items = [
            Item(Path(image) if isinstance(image, str) else None, str(row))
            for row, image in enumerate(images)
        ]
        transform, settings = self.job.transform, self.job.settings

        def read(item: Item, image: object) -> Decoded:
            return decode(item, transform, read=functools.partial(_open, image))

        units = [stack(items, list(self._threads.map(read, items, images)))]
        results = rows(self.job.net, units, settings, batch_size=self.job.batch_size)
        dtype = getattr(torch, settings.dtype)
        outputs = {
            name: torch.full((len(images), *shape), math.nan, dtype=dtype)
            for name, shape in self.columns.outputs.items()
        }
        for row, result in enumerate(results):
            if not isinstance(result, Failure):
                for name, value in result.values.items():
                    outputs[name][row] = value
        return outputs, [x.reason if isinstance(x, Failure) else None for x in results]


def _images(column: Any) -> list[object]:
    """The values of a column of images: paths, bytes, arrays, or the records of Hugging Face."""
    arrow = importlib.import_module("pyarrow")
    if isinstance(column.type, arrow.ExtensionType):  # Ray's tensors
        return [array for chunk in column.chunks for array in chunk.to_numpy(zero_copy_only=False)]
    values: list[object] = column.to_pylist()
    return [_of_record(value) if isinstance(value, dict) else value for value in values]


def _of_record(record: Mapping[str, object]) -> object:
    return record.get("bytes") or record.get("path")


def _open(image: object, item: Item) -> Image:
    """The image of a row.

    Raises:
        ImageError: bytes that are no image.
        ArgumentError: no image at all.
    """
    if isinstance(image, bytes):
        return read_image(io.BytesIO(image), name=f"of {len(image)} bytes")
    return to_pil(image if item.path is None else item.path)


def _array(value: torch.Tensor) -> Any:
    """A column of vectors (N, C), or of maps (N, C, H, W)."""
    arrow = importlib.import_module("pyarrow")
    shape = tuple(value.shape[1:])
    flat = arrow.array(value.reshape(-1).numpy())
    cells = arrow.FixedSizeListArray.from_arrays(flat, math.prod(shape))
    if len(shape) == 1:
        return cells
    kind = arrow.fixed_shape_tensor(flat.type, shape)
    return arrow.ExtensionArray.from_storage(kind, cells)
