"""``featnet extract``: images in, their feature maps, vectors and drawings out.

One photograph gives files to look at, here; everything else is a run over many images, in
:mod:`featnet.cli.many`.
"""

from __future__ import annotations

import argparse
import io
import sys
from typing import TYPE_CHECKING

from ..images.finding import Item, find_images
from ..images.reading import read_image, require_pillow
from .preparation import choose_transform, network, settings

if TYPE_CHECKING:
    from PIL.Image import Image


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
    single = items[0].path is None or str(items[0].path) == args.images[0]
    if len(args.images) == 1 and single and args.engine == "local":
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
