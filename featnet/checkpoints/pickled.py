"""PyTorch's own files, read without running anything that they bring along.

A ``.pth`` is a pickle, and a pickle is a program. This one may only put together dictionaries,
lists, numbers, strings, and tensors, which stay in the file; every object of another class is a
placeholder that knows the name of its class and does nothing. Where that class is known to hold
nothing but values (:data:`INERT`) it is passed over. Any other is refused, by its name.
"""

from __future__ import annotations

import _compat_pickle
import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import CheckpointError
from .npz import data_of
from .stored import File, Storage, Stored

# Classes (and functions that make their objects) of which a file may hold some
INERT = frozenset(
    f"{module}.{name}"
    for module, names in {
        "argparse": "Namespace",
        "builtins": "range slice object type",
        "collections": "deque UserDict UserList",
        "copyreg": "_reconstructor",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "numpy": "dtype ndarray bool_ float16 float32 float64 int8 int16 int32 int64 uint8",
        "numpy.core.multiarray": "_reconstruct scalar",
        "numpy._core.multiarray": "_reconstruct scalar",
        "numpy.core.numeric": "_frombuffer",
        "numpy._core.numeric": "_frombuffer",
        "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
        "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
        "torch": "device layout memory_format Generator Tensor",
        "torch._utils": "_rebuild_device_tensor_from_numpy",
        "torch.nn.parameter": "Parameter Buffer UninitializedParameter",
        "torch.serialization": "_get_layout",
        "torch.torch_version": "TorchVersion",
        "types": "SimpleNamespace",
        "uuid": "UUID",
    }.items()
    for name in names.split()
)
INERT_MODULES = ("numpy.dtypes",)

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # how files of before torch 1.6 begin

# How a zip archive that is none of these is known
ARCHIVES = {
    "constants.pkl": "a TorchScript archive: torch.jit.load(file).state_dict() has its tensors",
    "code/": "a TorchScript archive: torch.jit.load(file).state_dict() has its tensors",
    "archive_format": "a program of torch.export: torch.export.load(file).state_dict has its "
    "tensors",
    "serialized_exported_program.json": "a program of torch.export: "
    "torch.export.load(file).state_dict has its tensors",
    "model.weights.h5": "a model of Keras: its weights are in HDF5, which featnet does not read",
    "[Content_Types].xml": "an office document",
}


class Placeholder:
    """An object of the file of which nothing but the class's name is known."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __new__(cls, *args: object, **kwargs: object) -> Placeholder:
        """Any arguments will do."""
        del args, kwargs
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget a state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Forget an item."""

    def append(self, value: object) -> None:
        """Forget an item."""

    def extend(self, values: object) -> None:
        """Forget items."""

    def __call__(self, *args: object, **kwargs: object) -> Placeholder:
        """Be what it would have made."""
        return self


class NotDense(Placeholder):
    """A tensor that is no dense array of numbers: sparse, quantised, or without values."""


class Reader(pickle._Unpickler):
    """Reads one pickle; tensors become :class:`Stored`.

    Attributes:
        foreign: names of the classes and functions that the file must not have.
    """

    def __init__(self, file: IO[bytes], storage: Callable[..., Storage], big_endian: bool) -> None:
        super().__init__(file, encoding="utf-8")
        self.storage, self.big_endian = storage, big_endian
        self.foreign: dict[str, None] = {}
        self.dtypes: dict[int, torch.dtype] = {}
        self.known: dict[str, Any] = {
            "builtins.set": set,
            "builtins.frozenset": frozenset,
            "builtins.list": list,
            "builtins.dict": dict,
            "builtins.tuple": tuple,
            "builtins.bytes": Placeholder,
            "builtins.bytearray": Placeholder,
            **dict.fromkeys(
                map("builtins.{}".format, ("int", "float", "bool", "str")), Placeholder
            ),
            "builtins.complex": Placeholder,
            "_codecs.encode": Placeholder,
            "collections.OrderedDict": collections.OrderedDict,
            "collections.defaultdict": lambda *args: {},
            "collections.Counter": lambda *args: {},
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_tensor_v3": self.typed_tensor,
            "torch._utils._rebuild_parameter": lambda data, *rest: data,
            "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
            "torch._tensor._rebuild_from_type_v2": lambda make, kind, args, state: make(*args),
            **dict.fromkeys(
                map(
                    "torch._utils._rebuild_{}".format,
                    ("sparse_tensor", "qtensor", "meta_tensor_no_storage", "nested_tensor"),
                ),
                NotDense,
            ),
        }
        for name, dtype in STORAGES.items():
            self.known[f"torch.{name}"] = self.known[f"torch.storage.{name}"] = dtype
        safe: list[Any] = getattr(torch.serialization, "get_safe_globals", list)()
        pairs = (item if isinstance(item, tuple) else (item, _name_of(item)) for item in safe)
        self.allowed = {str(name) for _, name in pairs}

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for a class or function of the file; never itself."""
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        full = f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"  # Python 2's words
        if full in self.known:
            return self.known[full]
        dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(dtype, torch.dtype):
            return dtype
        if full.startswith(("torch.Q", "torch.storage.Q")):
            return torch.uint8  # of quantised tensors, which are refused
        if not (full in INERT or module in INERT_MODULES or full in self.allowed):
            self.foreign[full] = None
        return type("Placeholder", (Placeholder,), {})

    def persistent_load(self, pid: object) -> Any:
        """The storage of a tensor."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) > 1:
                return pid[1]  # a class and its source, of old files
            raise ValueError(f"an object that is no storage is kept outside: {str(pid)[:60]!r}")
        _, dtype, key, _, count, *rest = pid
        if not isinstance(dtype, torch.dtype) or not _is_size(count):
            raise ValueError(f"a storage of {count!r} elements")
        view = rest[0] if rest else None
        storage = self.storage(str(key), count * dtype.itemsize)
        if view is not None:
            raise ValueError("a storage that is a view of another")
        self.dtypes[id(storage)] = dtype
        return storage

    def tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any, dtype: Any = None
    ) -> Any:
        """A tensor as the file describes it.

        Raises:
            ValueError: it claims more than its storage.
        """
        del rest
        if not isinstance(storage, Storage):
            return NotDense()
        dtype = dtype or self.dtypes[id(storage)]
        size, stride = tuple(size), tuple(stride)
        numbers = all(map(_is_size, (offset, *size, *stride)))
        if not numbers or len(size) != len(stride) or len(size) > 64:
            raise ValueError(f"a tensor of the shape {size!r} with the strides {stride!r}")
        contiguous = stride == _strides(size) or math.prod(size) <= 1
        leaf = Stored(
            storage,
            dtype,
            torch.Size(size),
            offset * dtype.itemsize,
            None if contiguous else stride,
            self.big_endian,
        )
        if leaf.start + leaf.extent * dtype.itemsize > storage.size or (
            leaf.numel() * dtype.itemsize > storage.size
        ):
            return NotDense()
        return leaf

    def typed_tensor(
        self,
        storage: object,
        offset: object,
        size: object,
        stride: object,
        grad: object,
        hooks: object,
        dtype: object,
    ) -> Any:
        """As :meth:`tensor`, of a storage without a type."""
        del grad, hooks
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"a tensor of the dtype {dtype!r}")
        return self.tensor(storage, offset, size, stride, dtype=dtype)


def _name_of(item: object) -> str:
    return f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', '')}"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _strides(size: Sequence[int]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    steps = [1]
    for n in reversed(size[1:]):
        steps.append(steps[-1] * n)
    return tuple(reversed(steps)) if size else ()


def read(path: Path) -> Any:
    """Read the object that was saved, with a :class:`Stored` for each tensor.

    Raises:
        CheckpointError: it is no such file, or holds what is more than values.
        OSError: it cannot be read.
    """
    file = File.of(path)
    foreign: dict[str, None] = {}
    try:
        with path.open("rb") as stream:
            if stream.read(2) == b"PK":
                content = _read_zip(file, stream, foreign)
            else:
                stream.seek(0)
                content = _read_old(file, stream, foreign)
    except (CheckpointError, OSError):
        raise
    except Exception as error:
        if foreign:
            raise _refusal(path, foreign) from error
        why = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated or not a checkpoint "
            f"({type(error).__name__}: {_printable(why)})."
        ) from error
    if foreign:
        raise _refusal(path, foreign)
    return content


def _refusal(path: Path, foreign: Iterable[str]) -> CheckpointError:
    names = [_printable(name.removeprefix("builtins.")) for name in foreign]
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    one = names[0].rpartition(".")[2]
    return CheckpointError(
        f"Checkpoint {str(path)!r} cannot be read: it holds more than tensors and values: "
        f"{', '.join(names[:5])}{more}. featnet runs no code that a file brings along. Where it "
        "was written, save the weights alone: torch.save(model.state_dict(), file). Or say that "
        "objects of these classes may be passed over: "
        f"torch.serialization.add_safe_globals([{one}])."
    )


def _printable(text: str) -> str:
    """Text of a file without what a terminal would obey, and not too long."""
    short = text if len(text) <= 120 else text[:120] + "..."
    return short if short.isprintable() else ascii(short)[1:-1]


def _load(
    file: IO[bytes],
    storage: Callable[..., Storage],
    foreign: dict[str, None],
    *,
    big_endian: bool = False,
) -> Any:
    reader = Reader(file, storage, big_endian)
    try:
        return reader.load()
    finally:
        foreign.update(reader.foreign)


def _read_zip(file: File, stream: IO[bytes], foreign: dict[str, None]) -> Any:
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name[:-8] for name in entries if name.endswith("data.pkl")), None)
        inside = [name.partition("/")[2] if root is not None else name for name in entries]
        for mark, what in ARCHIVES.items():
            if any(name == mark or name.startswith(mark) or mark in name for name in inside):
                raise CheckpointError(
                    f"Checkpoint {str(file.path)!r} is no file of tensors but {what}."
                )
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise CheckpointError(
                f"Checkpoint {str(file.path)!r} cannot be read: it is compressed."
            )
        if root is None:
            some = ", ".join(map(_printable, list(entries)[:3])) or "nothing"
            raise CheckpointError(
                f"Checkpoint {str(file.path)!r} is a zip archive of {some}, no checkpoint: give a "
                "file of it."
            )
        order = f"{root}byteorder"
        big_endian = order in entries and archive.read(order) == b"big"
        storages: dict[str, Storage] = {}

        def storage(key: str, size: int) -> Storage:
            if key not in storages:
                entry = entries[f"{root}data/{key}"]
                offset = data_of(entry, stream)
                if entry.file_size < size or offset + size > file.size:
                    raise ValueError(f"the storage {key!r} has {entry.file_size} bytes, not {size}")
                storages[key] = Storage(file, size, [(offset, size)])
            if storages[key].size < size:
                raise ValueError(f"the storage {key!r} has {storages[key].size} bytes, not {size}")
            return storages[key]

        content = io.BytesIO(archive.read(f"{root}data.pkl"))
        return _load(content, storage, foreign, big_endian=big_endian)


def _read_old(file: File, stream: IO[bytes], foreign: dict[str, None]) -> Any:
    """The format of before torch 1.6: pickles, then the storages one behind the other."""
    storages: dict[str, Storage] = {}

    def storage(key: str, size: int) -> Storage:
        first = storages.setdefault(key, Storage(file, size))
        if first.size != size:
            raise ValueError(f"the storage {key!r} has two sizes")
        return first

    head = [_load(stream, storage, foreign) for _ in range(3)]
    if head[:2] != [MAGIC, PROTOCOL] or not isinstance(head[2], dict):
        raise ValueError("it does not begin as such a file does")
    big_endian = head[2].get("little_endian") is False
    reader = Reader(stream, storage, big_endian)
    try:
        content = reader.load()
    finally:
        foreign.update(reader.foreign)
    keys = _load(stream, storage, foreign)
    for key in map(str, keys):
        count = int.from_bytes(stream.read(8), "big" if big_endian else "little")
        kept = storages[key]
        size = count * reader.dtypes[id(kept)].itemsize
        if size != kept.size or stream.tell() + size > file.size:
            raise ValueError(f"the storage {key!r} has {size} bytes, not {kept.size}")
        kept.spans = [(stream.tell(), size)]
        stream.seek(size, io.SEEK_CUR)
    return content
