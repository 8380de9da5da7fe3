"""From an image on disk to what a network takes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, FeatnetError, nearest

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# What Pillow raises, depending on the format, for bytes that are not a whole image.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


class ImageError(FeatnetError, ValueError):
    """An image that cannot be read."""


class MissingExtraError(FeatnetError, ImportError):
    """A package of the extra ``featnet[cli]`` that is not installed."""


def require_pillow() -> None:
    """Check for Pillow, which only the command line needs.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "reading and writing images needs Pillow, which is not installed; "
            "install it with: pip install 'featnet[cli]'"
        ) from error


def read_image(path: Path) -> Image:
    """The whole image at ``path`` in RGB, turned upright, transparency laid over white.

    Raises:
        ImageError: the file is missing, is a folder, is not an image, or is cut off.
        MissingExtraError: Pillow is not installed.
    """
    require_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.exists():
        raise ImageError(f"image {str(path)!r} does not exist")
    if path.is_dir():
        raise ImageError(f"image {str(path)!r} is a folder, not a file")
    try:
        with Image.open(path) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened))
    except PermissionError as error:
        raise ImageError(f"image {str(path)!r} may not be read: {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{str(path)!r} is not an image in a format Pillow reads") from error
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise ImageError(
            f"image {str(path)!r} is damaged or cut off, and could not be read ({error})"
        ) from error


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def network_size(image: tuple[int, int], *, multiple: int) -> tuple[int, int]:
    """The size ``(height, width)`` nearest to the image's whose sides ``multiple`` divides."""
    height, width = (max(1, round(side / multiple)) * multiple for side in image)
    return height, width


def to_input(image: Image, *, size: tuple[int, int], cfg: Mapping[str, Any]) -> torch.Tensor:
    """The whole image at ``size`` (height, width), normalised as ``cfg`` says: (1, 3, H, W).

    Raises:
        ArgumentError: the weights' interpolation is not one of Pillow's.
    """
    import torch
    from PIL.Image import Resampling

    name = cfg["interpolation"]
    if name not in _FILTERS:
        raise ArgumentError(
            f"interpolation {name!r} of the weights is not one of {', '.join(_FILTERS)}."
            + nearest(name, _FILTERS)
        )
    height, width = size
    resized = image.resize((width, height), Resampling[name.upper()])
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    x = pixels.view(height, width, 3).permute(2, 0, 1).float() / 255  # (3, H, W)
    mean, std = (torch.tensor(cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return ((x - mean) / std).unsqueeze(0).contiguous()
