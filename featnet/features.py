"""Feature levels: named maps of known channels and reduction, and selections of them."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, SupportsIndex, overload

from .errors import ArgumentError, OutIndexError, nearest
from .values import check_size

# Both vocabularies of declared levels: timm's (num_chs, module) and MindCV's (chs, name).
_ALIASES = {"num_chs": "channels", "chs": "channels", "name": "module"}
HOOK_TYPES = ("forward", "forward_pre")

Measure = Callable[[tuple[int, int]], list[tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class Feature(Mapping[str, Any]):
    """One level of a network; also readable as a mapping in timm's and MindCV's vocabulary.

    Attributes:
        channels: number of channels of the map.
        reduction: input pixels per position of the map, along each side.
        module: dotted name of the module whose output is the map.
        index: position among all levels of the network, finest first.
        hook_type: ``"forward"``, or ``"forward_pre"`` if the map is the module's input.
        layout: of the module's output, where it is known: ``"NCHW"``, ``"NHWC"``, tokens
            (``"NLC"``, ``"NCL"``) or vectors (``"NC"``).
        prefix: number of tokens before those of the image (class token, registers).
        item: position of the map among the tensors of an output that holds several.
        order: of tokens that are kept in an order of their own, the index of each position's token,
            row by row, at the input size at which the network was looked into.

    Example:
        >>> level = featnet.feature_info("resnet18")[-1]
        >>> level.module, level.channels, level.reduction
        ('layer4', 512, 32)
        >>> level["num_chs"], level["chs"]
        (512, 512)
    """

    channels: int
    reduction: int
    module: str
    index: int = 0
    hook_type: str = "forward"
    layout: str = "NCHW"
    prefix: int = 0
    item: int = 0
    order: tuple[int, ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def of(cls, row: Feature | Mapping[str, Any], index: int) -> Feature:
        """Make a level from a row of a declaration.

        Args:
            row: a Feature, or ``dict(num_chs=, reduction=, module=)``, in which ``chs`` and
                ``name`` may stand for ``num_chs`` and ``module``; ``hook_type`` is optional.
            index: position of the level among all levels of its network.

        Returns:
            The level, with this ``index``.

        Raises:
            ArgumentError: a field is missing, or has a value that is not allowed.

        Example:
            >>> featnet.Feature.of(dict(chs=64, reduction=4, name="layer1"), 1).module
            'layer1'
        """
        if isinstance(row, cls):
            return dataclasses.replace(row, index=index)
        if not isinstance(row, Mapping):
            raise ArgumentError(f"Level {index} of feature_info is {row!r}, not a dict.")
        fields = {_ALIASES.get(key, key): value for key, value in row.items()}
        for name in ("channels", "reduction", "module"):
            if name not in fields:
                raise ArgumentError(
                    f"Level {index} of feature_info is {dict(row)!r}, without "
                    f"{name!r}; it needs num_chs (or chs), reduction and module (or name)."
                )
        for name in ("channels", "reduction"):
            if not isinstance(fields[name], int) or fields[name] < 1:
                raise ArgumentError(
                    f"Level {index} of feature_info has {name} {fields[name]!r}; "
                    "it must be a positive int."
                )
        hook_type = fields.get("hook_type") or "forward"
        if hook_type not in HOOK_TYPES:
            raise ArgumentError(
                f"Level {index} of feature_info has hook_type {hook_type!r}; "
                f"it is one of {', '.join(HOOK_TYPES)}.{nearest(hook_type, HOOK_TYPES)}"
            )
        return cls(fields["channels"], fields["reduction"], str(fields["module"]), index, hook_type)

    def __getitem__(self, key: str) -> Any:
        name = _ALIASES.get(key, key)
        if name not in self.__dataclass_fields__:
            raise KeyError(f"{key!r}; a level has {', '.join(self)}.{nearest(key, self)}")
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(("num_chs", "reduction", "module", "index"))

    def __len__(self) -> int:
        return 4

    __hash__ = object.__hash__


class FeatureInfo(Sequence[Feature]):
    """The levels that come out, in the order in which they come out.

    Positions (``info[i]``, ``channels(i)``, ``len``) count what comes out; ``info.info`` has every
    level of the network, and each level's ``index`` is its place there.

    Args:
        levels: every level of the network, finest first: Features, or dicts in timm's or MindCV's
            vocabulary.
        out_indices: levels that come out: None is every level, an int the last n, a sequence holds
            indices in any order, of which negative ones count from the end.
        measure: a function ``(H, W) -> [(h, w), ...]`` that gives the size of every level for an
            input size; :meth:`sizes` calls it.
        input_size: (H, W) at which the network was looked into, if that was chosen.

    Raises:
        OutIndexError: a level that does not exist, or one that is asked for twice.

    Example:
        >>> info = featnet.feature_info("resnet50", out_indices=(4, 1))
        >>> info.channels(), info.reduction(), info.module_name()
        ([2048, 256], [32, 4], ['layer4', 'layer1'])
        >>> info.sizes((500, 333))
        [(16, 11), (125, 84)]
        >>> info[0].index, len(info), len(info.info)
        (4, 2, 5)
    """

    def __init__(
        self,
        levels: Iterable[Feature | Mapping[str, Any]],
        out_indices: int | Sequence[int] | None = None,
        *,
        measure: Measure | None = None,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        self.input_size = input_size
        if isinstance(levels, (str, bytes)) or not isinstance(levels, Iterable):
            raise ArgumentError(f"levels={levels!r}: the levels of a network are expected.")
        self.info: tuple[Feature, ...] = tuple(Feature.of(row, i) for i, row in enumerate(levels))
        self._selected = resolve(out_indices, self.info)
        self.out_indices: tuple[int, ...] = (
            tuple(int(i) for i in out_indices)  # as given: consumers read their negatives back
            if isinstance(out_indices, Sequence)
            else self._selected
        )
        self._measure = measure

    @classmethod
    def from_other(
        cls, other: FeatureInfo, out_indices: int | Sequence[int] | None = None
    ) -> FeatureInfo:
        """Select again from the levels of another FeatureInfo.

        Args:
            other: the FeatureInfo whose levels are taken.
            out_indices: levels that come out, as in the constructor.

        Returns:
            A new FeatureInfo of the same network.

        Example:
            >>> info = featnet.feature_info("resnet18")
            >>> featnet.FeatureInfo.from_other(info, (1, 2)).channels()
            [64, 128]
        """
        return cls(other.info, out_indices, measure=other._measure, input_size=other.input_size)

    @classmethod
    def of(cls, model: object) -> FeatureInfo:
        """Read a model's declaration of its levels.

        Args:
            model: any object whose ``feature_info`` is a FeatureInfo (of featnet or timm) or a list
                of dicts.

        Returns:
            Every level that the model declares.

        Raises:
            ArgumentError: the model declares nothing.

        Example:
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2))
            >>> net.feature_info = [dict(num_chs=8, reduction=2, module="0")]
            >>> featnet.FeatureInfo.of(net).channels()
            [8]
        """
        info = getattr(model, "feature_info", None)
        if isinstance(info, FeatureInfo):
            return cls.from_other(info)
        rows = getattr(info, "info", info)  # timm's FeatureInfo keeps its rows in .info
        if not isinstance(rows, (list, tuple)) or not rows:
            raise ArgumentError(
                f"{type(model).__name__} has no feature_info. Declare one, a list of "
                "dict(num_chs=, reduction=, module=), give feature_info=featnet.discover(model), "
                "or tap its modules by name."
            )
        return cls(rows)

    @overload
    def __getitem__(self, position: SupportsIndex) -> Feature: ...
    @overload
    def __getitem__(self, position: slice) -> list[Feature]: ...
    def __getitem__(self, position: SupportsIndex | slice) -> Feature | list[Feature]:
        if isinstance(position, slice):
            return [self.info[i] for i in self._selected[position]]
        return self.info[self._selected[position]]

    def __len__(self) -> int:
        return len(self._selected)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return one field of the levels that come out.

        Args:
            key: name of the field: ``channels`` (``num_chs``, ``chs``), ``reduction``, ``module``
                (``name``), ``index``, ``hook_type``, ``layout`` or ``prefix``.
            idx: one position among what comes out, several, or None for all.

        Returns:
            The value at a single position, otherwise a list of values.

        Raises:
            ArgumentError: ``idx`` is no position.
            OutIndexError: a position at which nothing comes out.

        Example:
            >>> info = featnet.feature_info("resnet18")
            >>> info.get("num_chs"), info.get("module", 0)
            ([64, 64, 128, 256, 512], 'act1')
        """
        if idx is None:
            return [level[key] for level in self]
        if isinstance(idx, str) or not isinstance(idx, (int, Sequence)):
            raise ArgumentError(f"idx={idx!r}: a position, several, or None for all, is expected.")
        positions = [idx] if isinstance(idx, int) else idx
        if not all(-len(self) <= i < len(self) for i in positions):
            raise OutIndexError(
                f"idx={idx!r}: {len(self)} levels come out, positions {-len(self)} to "
                f"{len(self) - 1}."
            )
        values = [self[i][key] for i in positions]
        return values[0] if isinstance(idx, int) else values

    def get_dicts(
        self, keys: Iterable[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return fields of the levels that come out as dicts.

        Args:
            keys: names of the fields, as in :meth:`get`; None is ``num_chs``, ``reduction``,
                ``module`` and ``index``.
            idx: one position among what comes out, several, or None for all.

        Returns:
            A dict for a single position, otherwise a list of dicts.

        Example:
            >>> featnet.feature_info("resnet18").get_dicts(["num_chs", "reduction"], -1)
            {'num_chs': 512, 'reduction': 32}
        """
        names = tuple(keys) if keys is not None else tuple(self.info[0])
        if isinstance(idx, int):
            return {name: self[idx][name] for name in names}
        positions = range(len(self)) if idx is None else idx
        return [{name: self[i][name] for name in names} for i in positions]

    @overload
    def channels(self, idx: int) -> int: ...
    @overload
    def channels(self, idx: Sequence[int] | None = None) -> list[int]: ...
    def channels(self, idx: int | Sequence[int] | None = None) -> int | list[int]:
        """Return the number of channels of each map that comes out.

        Args:
            idx: one position among what comes out, several, or None for all.

        Returns:
            The value at a single position, otherwise a list of values.
        """
        return self.get("channels", idx)

    @overload
    def reduction(self, idx: int) -> int: ...
    @overload
    def reduction(self, idx: Sequence[int] | None = None) -> list[int]: ...
    def reduction(self, idx: int | Sequence[int] | None = None) -> int | list[int]:
        """Return the reduction, the input pixels per position, of each map that comes out.

        Args:
            idx: one position among what comes out, several, or None for all.

        Returns:
            The value at a single position, otherwise a list of values.
        """
        return self.get("reduction", idx)

    @overload
    def module_name(self, idx: int) -> str: ...
    @overload
    def module_name(self, idx: Sequence[int] | None = None) -> list[str]: ...
    def module_name(self, idx: int | Sequence[int] | None = None) -> str | list[str]:
        """Return the module name of each map that comes out.

        Args:
            idx: one position among what comes out, several, or None for all.

        Returns:
            The value at a single position, otherwise a list of values.
        """
        return self.get("module", idx)

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the exact size of each map that comes out, for one size of the input.

        One run on the meta device tells them: nothing is computed, whatever the size.

        Args:
            size: (height, width) of the input in pixels.

        Returns:
            (height, width) of each map, in the order in which they come out.

        Raises:
            ArgumentError: the levels belong to no network (a bare declaration).
            InputSizeError: the network cannot take this size.

        Example:
            >>> featnet.feature_info("resnet18", out_indices=(1, 2)).sizes((33, 64))
            [(9, 16), (5, 8)]
        """
        if self._measure is None:
            raise ArgumentError(
                "sizes() needs a network: take feature_info from a model or an extractor, "
                "or featnet.feature_info(name)."
            )
        every = self._measure(check_size(size))
        return [every[i] for i in self._selected]

    def to_input(self, points: Any, idx: int, *, size: tuple[int, int]) -> Any:
        """Bring positions (x, y) of a map to the pixels of the input that they stand for.

        Pixels count from the input's left and upper border, so that the middle of the first pixel
        is at (0.5, 0.5); :meth:`featnet.ImageTransform.to_source` leads on to the image.

        Args:
            points: a tensor or array (..., 2) of columns and rows of the map, from 0.
            idx: position of the map among what comes out.
            size: (height, width) of the input in pixels.

        Returns:
            A tensor or array (..., 2): the middle of each position's share of the input.

        Raises:
            ArgumentError: the levels belong to no network, or no points.
            InputSizeError: the network cannot take this size.

        Example:
            >>> info = featnet.feature_info("resnet18", out_indices=(3,))
            >>> info.to_input(torch.tensor([[0, 0], [2, 1]]), 0, size=(64, 96)).tolist()
            [[8.0, 8.0], [40.0, 24.0]]
        """
        height, width = self.sizes(size)[idx]
        if getattr(points, "shape", (0,))[-1] != 2:
            raise ArgumentError(f"points={points!r}: a tensor or array (..., 2) is expected.")
        pixels = points + 0.5
        pixels[..., 0] *= size[1] / width
        pixels[..., 1] *= size[0] / height
        return pixels

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeatureInfo):
            return NotImplemented
        return self.info == other.info and self._selected == other._selected

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        rows = [(str(f.index), f.module, str(f.channels), str(f.reduction)) for f in self]
        return table(("level", "module", "channels", "reduction"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns as text: words (the second column) to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (header, *rows)
    )


def _describe(levels: Sequence[Feature]) -> str:
    rows = ", ".join(f"{f.index}: {f.module} (/{f.reduction})" for f in levels)
    return f"The network has {len(levels)} levels: {rows}."


def _index(value: object) -> int | None:
    """Return the int that a value stands for; None if it is none (arrays have __index__, too)."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def resolve(out_indices: int | Sequence[int] | None, levels: Sequence[Feature]) -> tuple[int, ...]:
    """Turn ``out_indices`` into indices from the front, in the order asked.

    Args:
        out_indices: None is every level, an int the last n; a sequence holds indices in any order,
            of which negative ones count from the end.
        levels: every level of the network.

    Returns:
        Indices from 0 to ``len(levels) - 1``, each once.

    Raises:
        OutIndexError: bools, floats, strings, nothing, duplicates (also by sign), out of range.
    """
    total = len(levels)
    if out_indices is None:
        return tuple(range(total))

    def refuse(why: str) -> OutIndexError:
        return OutIndexError(f"out_indices={out_indices!r}: {why}. {_describe(levels)}")

    if isinstance(out_indices, (set, frozenset, Mapping)):
        raise refuse("a set or dict has no order, which the levels come out in")
    if isinstance(out_indices, (bool, str, float)):
        raise refuse("an int (the last n levels) or a sequence of ints is expected")
    count = _index(out_indices)
    if count is not None:
        if not 1 <= count <= total:
            raise refuse(f"an int asks for the last n levels, and n is from 1 to {total}")
        return tuple(range(total - count, total))
    try:
        items = list(out_indices)  # type: ignore[arg-type]
    except TypeError:
        raise refuse("an int or a sequence of ints is expected") from None
    if not items:
        raise refuse("at least one level must be asked for")
    indices: list[int] = []
    for item in items:
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            raise refuse(f"{item!r} is a {type(item).__name__}, not an int")
        index = operator.index(item)
        if not -total <= index < total:
            raise refuse(f"{index} is out of range, {-total} to {total - 1}")
        if index % total in indices:
            raise refuse(f"level {index % total} is asked for twice")
        indices.append(index % total)
    return tuple(indices)


def resolve_strides(out_strides: Sequence[int], levels: Sequence[Feature]) -> tuple[int, ...]:
    """Return the deepest level of each reduction, in the order asked.

    Args:
        out_strides: reductions, each once.
        levels: every level of the network.

    Returns:
        Indices from 0 to ``len(levels) - 1``.

    Raises:
        OutIndexError: a reduction that no level has, or one that is asked for twice.
    """
    deepest = {level.reduction: level.index for level in levels}
    several = isinstance(out_strides, Sequence) and not isinstance(out_strides, str)
    wanted: list[int] = list(out_strides) if several else [out_strides]  # type: ignore[list-item]
    for stride in wanted:
        unfit = isinstance(stride, bool) or not hasattr(stride, "__index__")
        if unfit or stride not in deepest:
            raise OutIndexError(
                f"out_strides={out_strides!r}: no level has reduction {stride!r}; "
                f"there are {sorted(deepest)}. {_describe(levels)}"
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise OutIndexError(
            f"out_strides={out_strides!r}: at least one, and each one once. {_describe(levels)}"
        )
    return tuple(deepest[stride] for stride in wanted)


def output_keys(
    out_map: Sequence[str] | Mapping[str, str] | None, modules: list[str]
) -> tuple[str, ...]:
    """Return the names of the outputs: their modules' names, or those in ``out_map``.

    Args:
        out_map: a name for each output, in their order, or a mapping from module names.
        modules: names of the modules whose outputs come out.

    Returns:
        Distinct names, one for each output.

    Raises:
        ArgumentError: names that do not fit the outputs.
    """
    if out_map is None:
        return tuple(modules)
    if isinstance(out_map, Mapping):
        strange = [name for name in out_map if name not in modules]
        if strange:
            raise ArgumentError(
                f"out_map={out_map!r}: {strange[0]!r} does not come out, {modules} do."
                + nearest(strange[0], modules)
            )
        keys = tuple(out_map.get(name, name) for name in modules)
    else:
        keys = tuple(out_map) if isinstance(out_map, Sequence) else ()
    if isinstance(out_map, str) or len(keys) != len(modules) or len(set(keys)) < len(keys):
        raise ArgumentError(
            f"out_map={out_map!r}: {len(modules)} distinct names are expected, for {modules}."
        )
    return keys
