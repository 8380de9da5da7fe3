"""Find images: files, folders, patterns, lists, standard input; each with its results' key."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ArgumentError, nearest
from .reading import ImageError

# Of the files in folders; a file that is named is read whatever its name
SUFFIXES = frozenset(
    f".{word}"
    for word in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpeg", "jpg", "pbm"),
        *("pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MAGIC = re.compile(r"[*?\[]")
STDIN = "-"


@dataclass(frozen=True)
class Item:
    """One image to be read.

    Attributes:
        path: the file; None for standard input.
        name: key of its results: the path below the folder that was named.
    """

    path: Path | None
    name: str

    @property
    def shown(self) -> str:
        """The path as any terminal can print it, whatever bytes are in it."""
        return printable("standard input" if self.path is None else str(self.path))


def printable(text: str) -> str:
    """A text without what no encoding has: the bytes of a path that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def find_images(arguments: Sequence[str]) -> list[Item]:
    """The images that arguments stand for, in their order; those of a folder by name.

    Args:
        arguments: files, folders (all images below them), patterns such as ``'photos/**/*.jpg'``,
            ``@FILE`` with a path in each line, and ``-`` for an image from standard input.

    Raises:
        ImageError: a file or folder that is not there, a folder or pattern without images, a URL.
        ArgumentError: two images whose outputs would have one name.
    """
    return _once(item for argument in arguments for item in _expand(argument))


def find_listed(images: object) -> list[Item]:
    """The images that an argument in Python stands for.

    Args:
        images: what :func:`find_images` takes, a list of paths, or a mapping of keys to paths.

    Raises:
        ImageError, ArgumentError: as there, or something else than paths.
    """
    if isinstance(images, (str, os.PathLike)):
        return find_images([os.fspath(images)])
    if isinstance(images, Mapping):
        items = [Item(Path(_path(path)), str(key)) for key, path in images.items()]
    elif isinstance(images, Iterable):
        items = _once(_listed(_path(path) for path in images))
    else:
        raise ArgumentError(
            f"images={images!r:.80}: a folder, a pattern, a list of paths, or a dict of keys and "
            "paths is expected."
        )
    if not items:
        raise ImageError("The list of images is empty")
    return items


def _path(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ArgumentError(f"{value!r:.80} is a {type(value).__name__}: a path is expected.")
    return os.fspath(value)


def _once(items: Iterable[Item]) -> list[Item]:
    """Each image once; two images of one name are an error."""
    by_name: dict[str, Item] = {}
    for item in items:
        other = by_name.setdefault(item.name, item)
        if other is not item and other.path != item.path:
            raise ArgumentError(
                f"The outputs of {other.shown!r} and {item.shown!r} would both be called "
                f"{item.name!r}: extract them into two folders, or name a folder above both, or "
                "their list as @FILE."
            )
    return list(by_name.values())


def _expand(argument: str) -> Iterator[Item]:
    if argument == STDIN:
        yield Item(None, "stdin")
    elif argument.startswith("@") and not os.path.exists(argument):
        yield from _listed(_lines(Path(argument[1:])))
    elif _URL.match(argument):
        raise ImageError(f"{argument!r} is a URL: download the image first, and give its path")
    elif os.path.isdir(argument):
        yield from _in_folder(Path(argument))
    elif os.path.exists(argument):
        yield Item(Path(argument), os.path.basename(argument))
    elif _MAGIC.search(argument):
        yield from _matching(argument)
    else:
        raise ImageError(f"image {argument!r} does not exist{_near(argument)}")


def _listed(paths: Iterable[str]) -> Iterator[Item]:
    """Images of a list, named after their paths below the folder that is above them all."""
    items = [item for path in paths for item in _expand(path)]
    files = [os.path.abspath(item.path) for item in items if item.path is not None]
    if len(files) < len(items):
        raise ArgumentError("A list cannot hold -, an image from standard input.")
    top = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    for item, file in zip(items, files, strict=True):
        yield replace(item, name=Path(os.path.relpath(file, top)).as_posix())


def _near(argument: str) -> str:
    folder, name = os.path.split(argument)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return ""
    hint = nearest(name, names, count=1)
    return f".{hint}" if hint else ""


def _lines(path: Path) -> list[str]:
    """The paths in a file, or from standard input for ``@-``; empty lines and comments are none."""
    try:
        data = sys.stdin.buffer.read() if str(path) == STDIN else path.read_bytes()
    except OSError as error:
        raise ImageError(f"list {str(path)!r} cannot be read: {error.strerror}") from error
    lines = [line.strip() for line in os.fsdecode(data).splitlines()]
    paths = [line for line in lines if line and not line.startswith("#")]
    if not paths:
        raise ImageError(f"list {str(path)!r} has no paths in it")
    return paths


def _in_folder(folder: Path) -> Iterator[Item]:
    paths = sorted(
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    )
    if not paths:
        raise ImageError(
            f"folder {str(folder)!r} has no images in it (files that end in {_list(SUFFIXES)})"
        )
    for path in paths:
        yield Item(path, path.relative_to(folder).as_posix())


def _matching(pattern: str) -> Iterator[Item]:
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise ImageError(f"no file matches {pattern!r}")
    fixed = Path(*_fixed(Path(pattern).parts[:-1]))
    for path in paths:
        yield Item(Path(path), Path(path).relative_to(fixed).as_posix())


def _fixed(parts: Iterable[str]) -> Iterator[str]:
    """The folders of a pattern before the first wildcard."""
    for part in parts:
        if _MAGIC.search(part):
            return
        yield part


def _list(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
