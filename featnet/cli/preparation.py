"""The network, the transform and the form of the results that ``featnet extract`` is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, InputSizeError
from ..size import Size
from .network import build, find_device

if TYPE_CHECKING:
    from ..extraction.extractors import FeatureNet
    from ..images.many.forward import Settings
    from ..images.transform import ImageTransform


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
    device = find_device("cpu" if args.engine == "ray" else args.device)  # workers have their own
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
