"""``featnet extract``: images in, their feature maps, vectors and drawings out.

One photograph gives files to look at, here; everything else is a run over many images, in
:mod:`featnet.cli.many`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, InputSizeError
from ..images.finding import Item, find_images
from ..images.reading import read_image, require_pillow
from ..size import Size
from .network import build, find_device

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..extraction.extractors import FeatureNet
    from ..images.many.forward import Settings
    from ..images.transform import ImageTransform


def extract(args: argparse.Namespace) -> int:
    """Run the model on the images and write what comes out.

    Everything that can be wrong with the paths is found before the model is built.

    Returns:
        The exit code: 0, or 1 where some of many images could not be read.

    Raises:
        FeatnetError: an image or a folder that cannot be, or anything about the model.
    """
    items = find_images(args.images)
    require_pillow()
    if len(args.images) == 1 and (items[0].path is None or str(items[0].path) == args.images[0]):
        _extract_one(args, items[0])
        return 0
    from .many import extract_many

    return extract_many(args, items)


def _extract_one(args: argparse.Namespace, item: Item) -> None:
    """Write the maps or the vector of one photograph."""
    from .outputs import Result, prepare, writer_of

    image = _read(item)  # before anything is made, so that a wrong one leaves no folder behind
    prepare(args)
    net, source = network(args)

    from ..images.many.forward import VECTOR, forward
    from ..images.render import panel_size

    size = (image.height, image.width)
    transform = choose_transform(args, net, lambda: size)
    place, preview = transform.placement(size), None
    if args.render:
        preview = transform.shown(image).resize(panel_size(place.size[::-1]))
    (values,) = forward(net, transform.normalize(image)[None], settings(args))
    vector = values.pop(VECTOR, None)
    maps = {name: values[name][None] for name in net.feature_info.module_name() if values}
    writer_of(args, source, net).write(item, Result(maps, vector, size, place, preview))


def _read(item: Item) -> Image:
    """The image of an item.

    Raises:
        ImageError: it cannot be read.
    """
    if item.path is not None:
        return read_image(item.path)
    return read_image(io.BytesIO(sys.stdin.buffer.read()), name="standard input")


def network(args: argparse.Namespace) -> tuple[FeatureNet, str]:
    """Build the network that the arguments ask for, on its device; say where its weights are
    from."""
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
    if source.startswith("random") and not args.json:
        print(
            f"The weights are random (seed {args.seed}); "
            "--pretrained, --checkpoint FILE or --demo gives trained ones."
        )
    return net.eval().to(device), source


def settings(args: argparse.Namespace) -> Settings:
    """The form of the results that the arguments ask for."""
    from ..images.many.forward import Settings

    return Settings(args.pool, normalize=not args.no_normalize)


def choose_transform(
    args: argparse.Namespace, net: FeatureNet, size_of: Callable[[], Size]
) -> ImageTransform:
    """The transform that was asked for, or else one that keeps the aspect ratio.

    Vectors are of the crop that the weights were evaluated with. Maps are of the whole image: as
    it is, or of the size that the weights were trained with where that was one for all, or padded
    where the network takes no other.

    Args:
        args: the command line.
        net: the network.
        size_of: gives (height, width) of an image, where that decides it.
    """
    from ..images.transform import create_transform

    def transform(fit: str) -> ImageTransform:
        return create_transform(net, input_size=args.input_size, fit=fit, max_side=args.max_side)

    if args.fit:
        return transform(args.fit)
    if args.input_size:
        return transform("pad")
    if args.pool and not args.max_side:
        return transform("crop")
    cfg = net.pretrained_cfg
    chosen = transform("short" if cfg is not None and cfg.fixed_input_size else "keep")
    step = getattr(net, "size_divisibility", 1)
    height, width = (-(-side // step) * step for side in chosen.placement(size_of()).size)
    try:
        net.feature_info.sizes((height, width))
    except InputSizeError:
        if args.max_side:
            raise
        return transform("pad")
    return chosen
