"""``featnet extract``: images in, their feature maps, vectors and drawings out."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, FeatnetError, InputSizeError
from ..images.finding import Item, find_images
from ..images.reading import read_image, require_pillow
from .network import build, find_device
from .outputs import Plan, Result, write_errors, writer_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ..extraction.extractors import FeatureNet
    from ..images.fits import Placement
    from ..images.transform import ImageTransform


def extract(args: argparse.Namespace) -> int:
    """Run the model on the images and write what comes out.

    Everything that can be wrong with the paths is found before the model is built.

    Returns:
        The exit code: 0, or 1 where some of several images could not be read.

    Raises:
        FeatnetError: an image or a folder that cannot be, or anything about the model.
    """
    items = find_images(args.images)
    require_pillow()
    # The only image is read before anything is made, so that a wrong one leaves no folder behind
    ready = {items[0]: read(items[0])} if len(items) == 1 else {}
    plan = Plan.prepare(args, items)
    if not plan.todo:
        write_errors(args.out, [])
        print(f"Nothing to do: all outputs exist in {str(args.out)!r}; --overwrite replaces them.")
        return 0
    job = Job.prepare(args)
    writer = writer_of(args, plan, job.model, job.source, job.net)
    failed: list[tuple[Item, Exception]] = []
    for item, result in job.run(_bar(plan.todo), ready):
        if isinstance(result, Exception):
            print(f"featnet: skipped: {result}", file=sys.stderr)
            failed.append((item, result))
        else:
            writer.add(item, result)
    writer.close()
    if args.out is not None and not plan.single:
        write_errors(args.out, failed)
    if failed:
        print(f"featnet: {len(failed)} of {len(plan.todo)} images were skipped.", file=sys.stderr)
    return 1 if failed else 0


def read(item: Item) -> Image:
    """The image of an item.

    Raises:
        ImageError: it cannot be read.
    """
    if item.path is not None:
        return read_image(item.path)
    return read_image(io.BytesIO(sys.stdin.buffer.read()), name="standard input")


def _bar(items: list[Item]) -> Iterable[Item]:
    """The items, with a progress bar on a terminal when they take longer than two seconds."""
    tqdm: Any = importlib.import_module("tqdm")  # huggingface_hub needs it; it has no types
    bar: Iterable[Item] = tqdm.tqdm(items, unit="image", delay=2, disable=None)
    return bar if len(items) > 1 else items


@dataclasses.dataclass
class Prepared:
    """An image that waits for its batch."""

    item: Item
    x: torch.Tensor
    size: tuple[int, int]  # of the image
    place: Placement
    preview: Image | None


class Job:
    """A network and how images become its inputs.

    Attributes:
        model: the network's name.
        source: where its weights are from.
        net: the extractor.
    """

    def __init__(
        self, args: argparse.Namespace, net: FeatureNet, source: str, device: torch.device
    ) -> None:
        self.args, self.net, self.source, self.device = args, net, source, device
        self.model: str = args.model
        self._transform: ImageTransform | None = None

    @classmethod
    def prepare(cls, args: argparse.Namespace) -> Job:
        """Build the network that the arguments ask for, on its device."""
        options: dict[str, Any] = {}
        if args.pool and not args.out_indices and not args.out_strides:
            args.out_indices = [-1]  # a vector of all levels at once is seldom wanted
        if args.pool == "cls":
            options["return_prefix_tokens"] = True
        try:
            net, source = build(args, **options)
        except ArgumentError as error:
            if args.pool == "cls" and "prefix tokens" in str(error):
                raise ArgumentError(
                    f"--pool cls: {args.model} has no class token; avg, max and gem need none."
                ) from error
            raise
        device = find_device(args.device)
        return cls(args, net.eval().to(device), source, device)

    def run(
        self, items: Iterable[Item], ready: dict[Item, Image]
    ) -> Iterator[tuple[Item, Result | FeatnetError]]:
        """Results of the items, in batches of inputs of one size; errors in place of images that
        cannot be read."""
        batch: list[Prepared] = []
        strict = bool(ready)  # what is wrong with the only image is an error
        for item in items:
            try:
                prepared = self._prepare(item, ready.pop(item) if item in ready else read(item))
            except FeatnetError as error:
                if strict:
                    raise
                yield item, error
                continue
            full = len(batch) == self.args.batch_size
            if batch and (full or batch[0].x.shape != prepared.x.shape):
                yield from self._flush(batch, strict=strict)
            batch.append(prepared)
            del prepared
        yield from self._flush(batch, strict=strict)

    def _prepare(self, item: Item, image: Image) -> Prepared:
        from ..images.render import panel_size

        size = (image.height, image.width)
        if self._transform is None:
            self._transform = self._choose(size)
        x, place = self._transform.normalize(image), self._transform.placement(size)
        preview = None
        if self.args.render:
            preview = self._transform.shown(image).resize(panel_size(place.size[::-1]))
        return Prepared(item, x, size, place, preview)

    def _choose(self, image: tuple[int, int]) -> ImageTransform:
        """The transform that was asked for, or else one that keeps the aspect ratio.

        Vectors are of the crop that the weights were evaluated with. Maps are of the whole image:
        as it is, or of the size that the weights were trained with where that was one for all, or
        padded where the network takes no other.
        """
        from ..images.transform import create_transform

        args = self.args

        def transform(fit: str) -> ImageTransform:
            size, side = args.input_size, args.max_side
            return create_transform(self.net, input_size=size, fit=fit, max_side=side)

        if args.fit:
            return transform(args.fit)
        if args.input_size:
            return transform("pad")
        if args.pool and not args.max_side:
            return transform("crop")
        cfg = self.net.pretrained_cfg
        chosen = transform("short" if cfg is not None and cfg.fixed_input_size else "keep")
        place = chosen.placement(image)
        try:
            self.net.feature_info.sizes(self._padded(place.size))
        except InputSizeError:
            if args.max_side:
                raise
            return transform("pad")
        return chosen

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        step = getattr(self.net, "size_divisibility", 1)
        return -(-size[0] // step) * step, -(-size[1] // step) * step

    def _flush(
        self, batch: list[Prepared], *, strict: bool
    ) -> Iterator[tuple[Item, Result | FeatnetError]]:
        """Run the waiting batch, and empty it."""
        if not batch:
            return
        waiting = batch[:]
        batch.clear()
        names = self.net.feature_info.module_name()
        try:
            maps, vectors = self._forward([prepared.__dict__.pop("x") for prepared in waiting])
        except InputSizeError as error:
            if strict:
                raise
            yield from ((each.item, error) for each in waiting)
            return
        for n, each in enumerate(waiting):
            named = {} if vectors is not None else {k: maps[k][n : n + 1] for k in names}
            vector = None if vectors is None else vectors[n]
            yield each.item, Result(named, vector, each.size, each.place, each.preview)

    def _forward(
        self, inputs: list[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The maps of a batch on the CPU, by their levels' names, or its vectors."""
        import torch

        from .. import pad_to_divisor, pool_features, unpad

        x = inputs.pop()[None] if len(inputs) == 1 else torch.stack(inputs)
        size = x.shape[-2:]
        if self._padded((size[0], size[1])) != tuple(size):
            x = pad_to_divisor(x, self.net)
        if self.device.type == "cuda":  # copied while this goes on, from memory that stays
            x = x.pin_memory()
        padded, shape = x.shape, (len(x), 1, *size)
        with torch.inference_mode():
            outputs = self.net(x.to(self.device, non_blocking=True))
            del x
            if self.args.pool:
                normalize = not self.args.no_normalize
                vectors = pool_features(outputs, self.args.pool, normalize=normalize)
                return {}, vectors.float().cpu()
            maps = {}
            before, after = torch.empty(shape, device="meta"), torch.empty(padded, device="meta")
            for name in self.net.feature_info.module_name():
                maps[name] = unpad(outputs.pop(0).float().cpu(), before, padded=after)
        return maps, None
