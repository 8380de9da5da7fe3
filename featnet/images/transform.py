"""Turn an image into an input: read, resized, cropped or padded, normalised as weights want it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..checkpoints import sources
from ..errors import ArgumentError, check_choice
from ..values import checked
from ..weights import Weights
from .fits import FITS, Placement
from .reading import ImageError, to_pil

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_LARGE = 2**27  # pixels
# What a configuration says about inputs
_FIELDS = (
    *("input_size", "test_input_size", "interpolation", "mean", "std"),
    *("crop_pct", "test_crop_pct", "crop_mode"),
)
# Where wrappers keep the network that they are around
_WRAPPED = ("net", "module", "_orig_mod", "body", "model")


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Turn images into normalised inputs; :func:`create_transform` makes one from a network.

    Attributes:
        input_size: (height, width) that ``fit`` aims at.
        fit: ``"crop"``, ``"pad"``, ``"squash"``, ``"short"`` or ``"keep"``.
        mean: of each channel, for values from 0 to 1; of one channel for grey inputs.
        std: standard deviation of each channel, likewise.
        interpolation: name of a filter of Pillow's.
        crop_pct: share of the shorter side that ``fit="crop"`` keeps.
        crop_mode: what ``fit="crop"`` does before its crop: ``"center"`` keeps the aspect ratio,
            ``"squash"`` does not, ``"border"`` keeps the whole image.
        max_side: longest side of what ``"short"`` and ``"keep"`` give.

    Raises:
        ArgumentError: a value that cannot be.

    Example:
        >>> import torch
        >>> from featnet import ImageTransform
        >>> transform = ImageTransform((64, 96), fit="pad")
        >>> x = transform(torch.full((3, 100, 100), 255, dtype=torch.uint8))
        >>> x.shape
        torch.Size([3, 64, 96])
        >>> transform.placement((100, 100))
        Placement(resized=(64, 64), offset=(0, 16), size=(64, 96))
        >>> round(transform.denormalize(x)[:, 0, 16:-16].min().item(), 3)
        1.0
    """

    input_size: tuple[int, int]
    fit: str = "crop"
    mean: tuple[float, ...] = Weights.mean
    std: tuple[float, ...] = Weights.std
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    max_side: int | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("fit", self.fit, FITS),
            ("interpolation", self.interpolation, FILTERS),
            ("crop_mode", self.crop_mode, ("center", "squash", "border")),
        ):
            check_choice(name, value, choices)
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ArgumentError(
                f"mean={self.mean!r}, std={self.std!r}: three numbers each are expected, or one "
                "each for grey inputs."
            )
        crop_pct = self.crop_pct
        if isinstance(crop_pct, bool) or not isinstance(crop_pct, (int, float)) or crop_pct <= 0:
            raise ArgumentError(f"crop_pct={crop_pct!r}: a number above 0 is expected.")
        if self.max_side is not None and self.fit not in ("short", "keep"):
            raise ArgumentError(
                f'max_side={self.max_side!r} has no effect with fit={self.fit!r}: "short" and '
                '"keep" are limited by it.'
            )

    def __call__(self, images: object) -> torch.Tensor:
        """Give the input of one image, (C, H, W), or of a list of images, (N, C, H, W).

        Args:
            images: a path, a Pillow image, a uint8 array (H, W, C) or tensor (C, H, W), or a list
                or tuple of them.

        Returns:
            float32, normalised.

        Raises:
            ImageError: an image that cannot be read, or values that an image cannot have.
            ArgumentError: no image, an empty list, or images whose inputs differ in size.
        """
        import torch

        if not isinstance(images, (list, tuple)):
            return self._one(images)
        if not images:
            raise ArgumentError("The list of images is empty.")
        inputs = [self._one(image) for image in images]
        shapes = list(dict.fromkeys(tuple(x.shape[1:]) for x in inputs))
        if len(shapes) > 1:
            raise ArgumentError(
                f"The inputs have different sizes, {shapes[0]} and {shapes[1]}, and cannot be one "
                f'batch: take fit="crop", "pad" or "squash" instead of {self.fit!r}, or one image '
                "at a time."
            )
        return torch.stack(inputs)

    def denormalize(self, x: torch.Tensor) -> torch.Tensor:
        """Give the image(s) of an input back.

        Args:
            x: (..., C, H, W), as the transform made it.

        Returns:
            (..., C, H, W) with values from 0 to 1.
        """
        mean, std = self._statistics(x)
        return (x * std + mean).clamp(0, 1)

    def placement(self, size: tuple[int, int]) -> Placement:
        """Say where an image lies in its input.

        Args:
            size: (height, width) of the image.

        Returns:
            The size that the image is resized to, and its offset.
        """
        return FITS[self.fit](self, size)

    def to_source(self, points: Any, *, size: tuple[int, int]) -> Any:
        """Bring pixels (x, y) of an input to those of the image that it was made of.

        Args:
            points: a tensor or array (..., 2), or (..., 4) of boxes (x1, y1, x2, y2).
            size: (height, width) of the image.

        Returns:
            Points or boxes in pixels of the image.
        """
        place = self.placement(size)
        (top, left), (tall, wide) = place.offset, place.resized
        result = points.clone() if hasattr(points, "clone") else points.copy()
        for first, offset, scale in ((0, left, size[1] / wide), (1, top, size[0] / tall)):
            result[..., first::2] = (points[..., first::2] - offset) * scale
        return result

    def _one(self, image: object) -> torch.Tensor:
        return self.normalize(to_pil(image))

    def normalize(self, image: Image) -> torch.Tensor:
        """Make the input of one image that has been read.

        Args:
            image: a Pillow image in RGB.

        Returns:
            (C, H, W), float32.
        """
        import torch

        placed = self.shown(image)
        if len(self.mean) == 1:
            placed = placed.convert("L")
        pixels = torch.frombuffer(bytearray(placed.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(placed.height, placed.width, len(self.mean)).permute(2, 0, 1)
        x = pixels.to(torch.float32, memory_format=torch.contiguous_format)  # (C, H, W)
        mean, std = self._statistics(x)
        return x.div_(255).sub_(mean).div_(std)

    def shown(self, image: Image) -> Image:
        """Give what the network is shown of an image: resized, cropped, padded.

        Args:
            image: a Pillow image in RGB.

        Returns:
            A Pillow image.

        Raises:
            ImageError: it would be too large.
        """
        from PIL import Image as pillow

        place = self.placement((image.height, image.width))
        (top, left), (height, width) = place.offset, place.size
        resampling = pillow.Resampling[self.interpolation.upper()]
        if place.resized != (image.height, image.width):
            if math.prod(place.resized) > _LARGE:
                return self._place_part(image, place)
            image = image.resize(place.resized[::-1], resampling)
        if image.size == (width, height) and not (top or left):
            return image
        if top <= 0 and left <= 0 and image.height >= height - top and image.width >= width - left:
            return image.crop((-left, -top, width - left, height - top))
        fill = tuple(round(255 * value) for value in self._colour())
        canvas = pillow.new("RGB", (width, height), fill)
        canvas.paste(image, (left, top))
        return canvas

    def _place_part(self, image: Image, place: Placement) -> Image:
        """Resize only what stays of an image that is very long and thin."""
        from PIL import Image as pillow

        (tall, wide), (top, left), (height, width) = place.resized, place.offset, place.size
        if top > 0 or left > 0 or math.prod(place.size) > _LARGE:
            raise ImageError(
                f"An image of {image.height} x {image.width} would become {tall} x {wide} with "
                f"fit={self.fit!r}: say max_side=, or another fit."
            )
        x, y = image.width / wide, image.height / tall
        box = (-left * x, -top * y, (width - left) * x, (height - top) * y)
        filter = pillow.Resampling[self.interpolation.upper()]
        return image.resize((width, height), filter, box=box)

    def _colour(self) -> tuple[float, ...]:
        """The colour that becomes zero."""
        return self.mean if len(self.mean) == 3 else self.mean * 3

    def _statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        def column(values: tuple[float, ...]) -> torch.Tensor:
            return torch.tensor(values, device=x.device, dtype=x.dtype).view(-1, 1, 1)

        return column(self.mean), column(self.std)


# From a network to its transform ----------------------------------------------------------------


@checked
def create_transform(
    source: object,
    *,
    input_size: int | Sequence[int] | None = None,
    fit: str = "crop",
    interpolation: str | None = None,
    crop_pct: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    max_side: int | None = None,
    use_test_size: bool = False,
) -> ImageTransform:
    """Make the transform that turns images into inputs of a network, as its weights want them.

    With ``fit="crop"`` the input is what the weights were evaluated with. The others keep the
    whole image: ``"pad"`` in the middle of an input of ``input_size``, ``"squash"`` stretched to
    it, ``"short"`` with the shorter side of ``input_size`` and the aspect ratio kept, ``"keep"`` as
    it is. For a network whose inputs have sides of certain multiples, follow the last two by
    :func:`featnet.pad_to_divisor`.

    Args:
        source: a network, extractor or adapter; the name of a model (``"resnet50.a1_in1k"``,
            ``"hf-hub:org/name"``); or :class:`featnet.Weights`.
        input_size: a side in pixels, or (height, width); by default the weights' own.
        fit: ``"crop"``, ``"pad"``, ``"squash"``, ``"short"`` or ``"keep"``.
        interpolation, crop_pct, mean, std: in place of the weights' own.
        max_side: longest side in pixels of what ``"short"`` and ``"keep"`` give.
        use_test_size: take the larger input size and crop that some weights name for testing.

    Returns:
        A callable: one image -> (C, H, W), a list of images -> (N, C, H, W). It has
        ``denormalize`` to give the image back, and ``to_source`` for coordinates.

    Raises:
        ArgumentError: an unknown fit, or a source that says nothing about its inputs.
        UnknownModelError: no such model.

    Example:
        >>> import featnet, torch
        >>> transform = featnet.create_transform("resnet50.a1_in1k", input_size=160)
        >>> image = torch.zeros(3, 300, 451, dtype=torch.uint8)
        >>> tuple(transform(image).shape), tuple(transform([image, image]).shape)
        ((3, 160, 160), (2, 3, 160, 160))
        >>> featnet.create_transform("resnet50", fit="short")(image).shape
        torch.Size([3, 224, 336])
    """
    weights, channels = _weights_of(source)
    test = use_test_size
    height, width = ((test and weights.test_input_size) or weights.input_size)[-2:]
    means = tuple(weights.mean if mean is None else _numbers("mean", mean))
    stds = tuple(weights.std if std is None else _numbers("std", std))
    if channels == 1 and len(means) == 3:
        means, stds = (sum(means) / 3,), (sum(stds) / 3,)
    elif channels not in (1, 3):
        raise ArgumentError(
            f"The network was built with in_chans={channels}: an image gives inputs of 3 channels, "
            "or of 1 in grey."
        )
    return ImageTransform(
        (height, width) if input_size is None else _size(input_size),
        fit=fit,
        mean=means,
        std=stds,
        interpolation=interpolation or weights.interpolation,
        crop_pct=((test and weights.test_crop_pct) or weights.crop_pct)
        if crop_pct is None
        else crop_pct,
        crop_mode=weights.crop_mode,
        max_side=None if max_side is None else _side("max_side", max_side),
    )


def _weights_of(source: object) -> tuple[Weights, int]:
    """Return a source's facts about its inputs, and their number of channels."""
    if isinstance(source, str):
        weights = sources.entry(source).weights
        return weights or Weights(), 3
    if isinstance(source, Weights):
        return source, 3
    if isinstance(source, Mapping):
        return _weights(source), 3
    network = source
    for _ in range(8):  # wrappers in wrappers
        cfg = getattr(network, "pretrained_cfg", None)
        if cfg is not None:
            return _weights(cfg), int(getattr(network, "in_chans", 3))
        inner = (getattr(network, name, None) for name in _WRAPPED)
        network = next((x for x in inner if hasattr(x, "forward")), None)
        if network is None:
            break
    raise ArgumentError(
        f"{type(source).__name__} says nothing about its inputs (it has no pretrained_cfg): give "
        "the name of a model, or featnet.Weights(mean=..., std=..., input_size=(3, H, W))."
    )


def _weights(cfg: object) -> Weights:
    """The fields of any library's configuration that say how an input is made."""
    if isinstance(cfg, Weights):
        return cfg
    known = cfg if isinstance(cfg, Mapping) else vars(cfg)
    return Weights(**{name: known[name] for name in _FIELDS if known.get(name) is not None})


def _size(value: int | Sequence[int]) -> tuple[int, int]:
    sides = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(sides) == 1:
        sides *= 2
    if len(sides) not in (2, 3):
        raise ArgumentError(
            f"input_size={value!r}: a side in pixels or (height, width) is expected."
        )
    height, width = (_side("input_size", side) for side in sides[-2:])
    return height, width


def _side(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise ArgumentError(f"{name}={value!r}: a positive number of pixels is expected.")
    return int(value)


def _numbers(name: str, values: Sequence[float]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"{name}={values!r}: numbers, one a channel, are expected.") from error
