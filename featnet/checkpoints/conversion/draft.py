"""A state dict on its way from a file to a model, and what has happened to it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import CheckpointError
from .. import stored
from ..stored import Leaf

Rule = tuple[str, str]


class Draft:
    """The tensors of a file under the names that they have so far.

    Attributes:
        tensors: name to tensor, which lies in the file until :meth:`fetch`; nothing is written into
            a tensor.
        converted: name to what was done to its values.
        dropped: a key of the file to why its tensor is not taken.
        left_out: names of the model whose tensors were in the file and were dropped.
        steps: what was done to the file as a whole.
        names: what the file calls its tensors.
        mapped: the tensors are not read but mapped.
        layout: the name of another library's layout, which its names were.
    """

    def __init__(self, tensors: Mapping[str, Leaf], steps: Sequence[str] = ()) -> None:
        self.tensors: dict[str, Any] = dict(tensors)
        self.mapped = False
        self.layout = ""
        self.names = tuple(tensors)
        self.steps = list(steps)
        self.converted: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.left_out: set[str] = set()
        self._origins: dict[str, tuple[str, ...]] = {key: (key,) for key in tensors}

    def fetch(self, *, mmap: bool = False) -> None:
        """Read the tensors from the file, or map it."""
        self.tensors = dict(stored.fetch(self.tensors, mmap=mmap))
        self.mapped = mmap

    def rename(self, new_name: Callable[[str], str | None], *, why: str = "") -> None:
        """Give every tensor a new name; None drops it.

        Raises:
            CheckpointError: two tensors would have one name.
        """
        tensors, origins, converted = self.tensors, self._origins, self.converted
        self.tensors, self._origins, self.converted = {}, {}, {}
        for key, value in tensors.items():
            new = new_name(key)
            if new is None:
                self.dropped.update(dict.fromkeys(origins[key], why))
                continue
            if new in self.tensors:
                raise CheckpointError(
                    f"{(*origins[key], key)[0]!r} and {(*self._origins[new], new)[0]!r} would both "
                    f"be {new!r}."
                )
            self.tensors[new], self._origins[new] = value, origins[key]
            if key in converted:
                self.converted[new] = converted[key]

    def strip(self, prefix: str) -> None:
        """Take what is under a prefix, without it."""
        if not prefix:
            return
        why = f"outside of {prefix!r}"
        self.rename(lambda k: k[len(prefix) :] if k.startswith(prefix) else None, why=why)
        self.steps.append(f"prefix {prefix!r} removed")

    def substitute(self, rules: Sequence[Rule], *, why: str = "") -> None:
        """Rename by the first rule (pattern of the whole name, replacement) that matches; the
        replacement ``""`` drops. A name that no rule matches stays."""
        compiled = [(re.compile(pattern), new) for pattern, new in rules]

        def new_name(key: str) -> str | None:
            for pattern, new in compiled:
                match = pattern.fullmatch(key)
                if match is not None:
                    return match.expand(new) if new else None
            return key

        self.rename(new_name, why=why)

    def put(self, key: str, value: torch.Tensor, how: str) -> None:
        """Replace a tensor by another, or add one that is no tensor of the file."""
        self.tensors[key] = value
        self._origins.setdefault(key, ())
        self.converted[key] = f"{self.converted[key]}; {how}" if key in self.converted else how

    def move(self, old: str, new: str) -> None:
        """Rename one tensor."""
        self.rename(lambda key: new if key == old else key)

    def join(self, key: str, parts: Sequence[str], value: torch.Tensor, how: str) -> None:
        """Make one tensor of several."""
        origins = tuple(origin for part in parts for origin in self._origins.pop(part))
        before = [self.converted.pop(part) for part in parts if part in self.converted]
        for part in parts:
            del self.tensors[part]
        self.tensors[key], self._origins[key] = value, origins
        self.converted[key] = "; ".join(dict.fromkeys([*before, how]))

    def split(self, key: str, parts: Mapping[str, torch.Tensor], how: str) -> None:
        """Make several tensors of one."""
        origin = self._origins.pop(key)
        del self.tensors[key]
        self.converted.pop(key, None)
        for part, tensor in parts.items():
            self.tensors[part], self._origins[part], self.converted[part] = tensor, origin, how

    def concatenate(self, key: str, parts: Sequence[str]) -> None:
        """Make one tensor of several, where all of them are there: :meth:`join` along the first
        axis."""
        if all(part in self.tensors for part in parts):
            value = torch.cat([self.tensors[part] for part in parts])
            self.join(key, parts, value, f"{len(parts)} tensors as one")

    def drop(self, key: str, why: str) -> None:
        """Leave a tensor out."""
        del self.tensors[key]
        self.converted.pop(key, None)
        self.left_out.add(key)
        self.dropped.update(dict.fromkeys(self._origins.pop(key), why))

    def origin(self, key: str) -> str:
        """The name in the file (of the first part) of what is called ``key`` now."""
        return self._origins[key][0]


@contextlib.contextmanager
def one_error(model: nn.Module) -> Iterator[None]:
    """Whatever goes wrong with tensors of names and shapes that nobody foresaw is one error.

    Raises:
        CheckpointError: in place of what indexing, reshaping, counting raise.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint has names or shapes that no {type(model).__name__} has: "
            f"{type(error).__name__}: {error}. Nothing was loaded."
        ) from error


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout in which another library stores a network.

    Attributes:
        name: for reports: ``"torchvision's VGG"``.
        family: name of the class of networks it is for; subclasses are meant as well.
        marks: keys that are in every such file, behind one prefix.
        convert: renames a draft's tensors to those of a model.
        root: what a file that holds only the features leaves out at the start of its keys.
        eps: the epsilon of the file's batch norms, where it may differ from the model's.
        format: of the only kind of file that has it, ``""`` for tensors from anywhere.
        refused: why its files are not loaded, where no renaming gives the same numbers.
    """

    name: str
    family: str
    marks: tuple[str, ...]
    convert: Callable[[Draft, nn.Module], None]
    root: str = ""
    eps: Callable[[Draft], float] | None = None
    format: str = ""
    refused: str = ""


def natural(key: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts ``a.10`` behind ``a.9``."""
    parts = re.split(r"(\d+)", key)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
