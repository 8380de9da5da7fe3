"""extract_tiled: the maps of an image that is too large for one forward, from parts of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..backbone import Backbone
from ..errors import ArgumentError, OutIndexError, nearest
from ..inputs import check_input
from ..size import Size
from ..tracing import structure, trace
from ..tracing.reach import Reach, Side, measure
from ..values import checked
from .cuts import Cut, Piece, pieces, plan, smallest
from .extractors import FeatureListNet, FeatureNet

Prepare = Callable[[torch.Tensor], torch.Tensor]
Out = Sequence[torch.Tensor] | Mapping[Any, torch.Tensor]


@checked
def extract_tiled(
    net: nn.Module,
    image: torch.Tensor,
    *,
    tile: int | Size = 1024,
    levels: Sequence[int | str] | None = None,
    blend: bool | int = False,
    prepare: Prepare | None = None,
    out: Out | None = None,
) -> Any:
    """Compute the maps of a large image tile by tile, in the memory that one tile takes.

    Where a network is local, the maps equal those of the whole image up to rounding, borders
    included. Tiles overlap by what a position sees around it, which runs on the meta device show,
    and begin where strides and windows of the whole image do.

    A level that sees the whole map is refused, with the module that does: squeeze-and-excitation,
    attention or a norm over all positions, a table of positions, interpolation to a side that is no
    multiple. Shifted windows see the opposite border, unless the map is a whole number of windows:
    then they are exact. An image that fits into one tile is computed at once, by any network.

    With ``blend`` these levels are computed too, but are *not* those of the whole image: each tile
    sees itself alone, and neighbours are mixed linearly across their seam. Levels that see no
    further than half a seam stay exact.

    Args:
        net: an extractor of featnet, a Backbone, or any module that turns images (N, C, H, W) into
            a map, or a list, tuple or dict of them; in eval mode.
        image: (N, C, H, W), of any type if ``prepare`` converts it; in memory or in a mapped file.
        tile: the largest (height, width) that the network is given, in pixels; or one number.
        levels: the maps that come out, in this order: indices of levels, as in ``out_indices``, or
            keys of a dict; of a module from elsewhere, positions among its outputs. All by default.
        blend: True, or the width of a seam in pixels; True is a quarter of the tile.
        prepare: turns a part of the image into the network's input, each pixel by itself:
            conversion and normalisation.
        out: tensors that the maps are written into, in memory or in mapped files: one for each map,
            in their order or under their keys.

    Returns:
        A list of maps, or a dict where the network returns one; one map of a module that returns
        one. They are where the image is.

    Raises:
        ArgumentError: a level sees the whole map, or further than the tile; the network is in
            training mode; ``out`` does not fit.
        OutIndexError: a level that is not there.
        InputSizeError: no batch of images, or of a size that the network cannot take.
        TraceError: the network cannot be looked into.

    Example:
        >>> net = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2)).eval()
        >>> image = torch.randn(1, 3, 250, 333)
        >>> fine, coarse = featnet.extract_tiled(net, image, tile=224)
        >>> fine.shape, coarse.shape
        (torch.Size([1, 64, 63, 84]), torch.Size([1, 128, 32, 42]))
        >>> torch.allclose(coarse, net(image)[1], atol=1e-4)
        True
    """
    structure.check_module(net)
    if net.training:
        raise ArgumentError(
            f"The {type(net).__name__} is in training mode, in which norms see all positions: call "
            "net.eval() first."
        )
    if isinstance(net, Backbone):
        net, levels = FeatureListNet(net, levels).eval(), None  # type: ignore[arg-type]
    channels = trace.channels_of(net)
    check_input(image, image.shape[1] if prepare is not None and image.ndim == 4 else channels)
    size: Size = (image.shape[-2], image.shape[-1])
    most: Size = (tile, tile) if isinstance(tile, int) else tile
    job = _Job(net, image, prepare, levels, out)
    if size[0] <= most[0] and size[1] <= most[1]:
        return job.whole()
    seam = min(most) // 4 if blend is True else int(blend)
    sides = measure(net, (channels, *size), job.select)
    pairs = list(zip(*(side.reaches for side in sides), strict=True))
    exact = [_is_exact(pair, seam) for pair in pairs]
    if not (seam or all(exact)) or any(reach.dim is None for pair in pairs for reach in pair):
        raise job.sees_all(pairs)
    cuts = []
    for axis, side in enumerate(sides):
        local = [pair[axis] for pair, is_local in zip(pairs, exact, strict=True) if is_local]
        before = max([seam // 2, *(reach.before for reach in local)])
        after = max([seam // 2, *(reach.after for reach in local)])
        parts = plan(size[axis], most[axis], side.period, before, after)
        if parts is None:
            raise job.too_small(most, sides, seam)
        cuts.append(parts)
    return job.tiles(cuts, pairs, exact, seam)


Pair = tuple[Reach, ...]  # of rows and of columns


def _is_exact(pair: Pair, seam: int) -> bool:
    far = seam and max(max(reach.before, reach.after) for reach in pair) > seam // 2
    return not far and not any(reach.whole for reach in pair)


class _Job:
    """A network, an image, and the outputs that are wanted."""

    def __init__(
        self,
        net: nn.Module,
        image: torch.Tensor,
        prepare: Prepare | None,
        levels: Sequence[int | str] | None,
        out: Out | None,
    ) -> None:
        self.net, self.image, self.prepare = net, image, prepare
        self.levels, self.out = levels, out
        self.size: Size = (image.shape[-2], image.shape[-1])
        self.device = next((p.device for p in net.parameters()), image.device)
        self.kind: type = list  # of what the network returns
        self.names: list[Any] = []  # of the outputs that are wanted
        if isinstance(net, FeatureNet) and levels is not None:
            for level in levels:
                self._at(level, list(net._keys))

    def select(self, value: Any) -> list[torch.Tensor]:
        """The maps that are wanted among what the network returned."""
        if isinstance(value, torch.Tensor):
            self.kind, outputs = torch.Tensor, {0: value}
        elif isinstance(value, Mapping):
            self.kind, outputs = dict, dict(value)
        else:
            self.kind, outputs = list, dict(enumerate(value))
        keys = list(outputs)
        wanted = (
            range(len(keys)) if self.levels is None else [self._at(i, keys) for i in self.levels]
        )
        self.names = [keys[at] for at in wanted] if self.levels is None else list(self.levels)
        if self.levels is None and isinstance(self.net, FeatureNet) and self.kind is list:
            self.names = [*self.net._indices]
        self.keys = [keys[at] for at in wanted]
        maps = [outputs[key] for key in self.keys]
        for key, y in zip(self.keys, maps, strict=True):
            if not isinstance(y, torch.Tensor) or y.ndim != 4:
                what = f"{y.ndim} dimensions" if isinstance(y, torch.Tensor) else type(y).__name__
                raise ArgumentError(f"Output {key!r} is no map (N, C, H, W): {what}.")
        return maps

    def _at(self, level: int | str, keys: Sequence[Any]) -> int:
        """The position of a level among the outputs."""
        names: list[Any] = list(keys)
        if isinstance(self.net, FeatureNet) and not isinstance(level, str):
            names = list(self.net._indices)
        if level in names:
            return names.index(level)
        raise OutIndexError(
            f"levels={self.levels!r}: {level!r} does not come out of this "
            f"{type(self.net).__name__}; there are {names}." + nearest(level, map(str, names))
        )

    def run(self, rows: Cut, columns: Cut) -> list[torch.Tensor]:
        """Run the network on a part of the image."""
        part = self.image[..., rows.start : rows.stop, columns.start : columns.stop]
        x = part if self.prepare is None else self.prepare(part)
        with torch.no_grad():
            return self.select(self.net(x.to(self.device)))

    def targets(
        self, maps: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """The caller's tensors for the whole maps, or new ones.

        Raises:
            ArgumentError: these do not fit.
        """
        if self.out is None:
            pairs = zip(maps, shapes, strict=True)
            return [y.new_empty(tuple(shape), device=self.image.device) for y, shape in pairs]
        out = list(self.out.values() if isinstance(self.out, Mapping) else self.out)
        if isinstance(self.out, Mapping) and list(self.out) != self.keys:
            out = [self.out[key] for key in self.keys if key in self.out]
        if [tuple(each.shape) for each in out] != [tuple(shape) for shape in shapes]:
            raise ArgumentError(
                f"out has the shapes {[tuple(each.shape) for each in out]}; those of the maps are "
                f"{dict(zip(self.names, map(tuple, shapes), strict=True))}."
            )
        return out

    def pack(self, maps: list[torch.Tensor]) -> Any:
        """Maps as the network itself returns them."""
        if self.kind is torch.Tensor:
            return maps[0]
        return dict(zip(self.keys, maps, strict=True)) if self.kind is dict else maps

    def whole(self) -> Any:
        """Compute all at once."""
        maps = self.run(*(Cut(0, side, 0, side) for side in self.size))
        targets = self.targets(maps, [y.shape for y in maps])
        for target, y in zip(targets, maps, strict=True):
            target.copy_(y)
        return self.pack(targets)

    def tiles(
        self, cuts: Sequence[Sequence[Cut]], pairs: Sequence[Pair], exact: Sequence[bool], seam: int
    ) -> Any:
        """Compute part by part."""
        places = [
            [
                pieces(parts, reach.step, reach.length, side, 0 if is_exact else seam)
                for parts, reach, side in zip(cuts, pair, self.size, strict=True)
            ]
            for pair, is_exact in zip(pairs, exact, strict=True)
        ]
        targets: list[torch.Tensor] = []
        for row, column in itertools.product(*(range(len(parts)) for parts in cuts)):
            maps = self.run(cuts[0][row], cuts[1][column])
            if not targets:
                targets = self.targets(
                    maps, [_full(*each) for each in zip(maps, pairs, strict=True)]
                )
                for target, is_exact in zip(targets, exact, strict=True):
                    if not is_exact:
                        target.zero_()
            for target, y, pair, (rows, columns) in zip(targets, maps, pairs, places, strict=True):
                _write(target, y, pair, (rows[row], columns[column]))
            del maps, y  # before the next ones are computed
        return self.pack(targets)

    def sees_all(self, pairs: Sequence[Pair]) -> ArgumentError:
        """The error of levels that cannot be had from parts."""
        whys = [next((reach.whole for reach in pair if reach.whole), "") for pair in pairs]
        named = dict(zip(self.names, whys, strict=True))
        rows = "; ".join(f"{name!r}: {why}" for name, why in named.items() if why)
        local = [name for name, why in named.items() if not why]
        return ArgumentError(
            f"{type(self.net).__name__} has levels that see the whole map, and are not to be had "
            f"exactly from tiles ({rows}). "
            + (f"Those that are: levels={local}. " if local else "")
            + "blend=True mixes tiles that see themselves alone; a tile of "
            f"{self.size[0]} x {self.size[1]} computes all at once."
        )

    def too_small(self, most: Size, sides: Sequence[Side], seam: int) -> ArgumentError:
        """The error of a tile that some level sees beyond."""
        rows = []
        for i, name in enumerate(self.names):
            reaches = [side.reaches[i] for side in sides]
            if not any(reach.whole for reach in reaches):
                least = [
                    smallest(length, side.period, reach.before, reach.after)
                    for length, side, reach in zip(self.size, sides, reaches, strict=True)
                ]
                far = max(max(reach.before, reach.after) for reach in reaches)
                rows.append(f"{name!r} sees {far} pixels around it: {least[0]} x {least[1]}")
        return ArgumentError(
            f"tile={most[0]} x {most[1]} is too small"
            + (f" for seams of {seam} pixels" if seam else "")
            + f"; strides and windows repeat every {sides[0].period} x {sides[1].period} pixels. "
            f"The smallest tile of each level: {'; '.join(rows)}."
        )


def _full(y: torch.Tensor, pair: Pair) -> list[int]:
    """The shape of a whole map, from that of a part's."""
    lengths = {reach.dim: reach.length for reach in pair}
    return [lengths.get(dim, length) for dim, length in enumerate(y.shape)]


def _write(target: torch.Tensor, y: torch.Tensor, pair: Pair, places: tuple[Piece, Piece]) -> None:
    """Write a part's map into the whole one, or add its share to it."""
    mixed = any(piece.share is not None for piece in places)
    for reach, piece in zip(pair, places, strict=True):
        assert reach.dim is not None
        y = y.narrow(reach.dim, piece.source.start, piece.source.stop - piece.source.start)
        target = target.narrow(
            reach.dim, piece.target.start, piece.target.stop - piece.target.start
        )
        if piece.share is not None:
            like = [-1 if dim == reach.dim else 1 for dim in range(4)]
            y = y * piece.share.to(y).reshape(like)
    if mixed:
        target += y.to(target)
    else:
        target.copy_(y)
