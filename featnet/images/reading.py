"""Read images: files, Pillow images, arrays and tensors become upright RGB."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import ArgumentError, FeatnetError

if TYPE_CHECKING:
    from PIL.Image import Image

# What Pillow raises, depending on the format, for bytes that are not a whole image.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_URL = re.compile(r"(https?|ftp|s3|gs|file):/", re.IGNORECASE)  # a Path has but one slash


class ImageError(FeatnetError, ValueError):
    """An image that cannot be read."""


class MissingExtraError(FeatnetError, ImportError):
    """A package of one of featnet's extras that is not installed."""


def require_pillow() -> None:
    """Check for Pillow, which only images need.

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


def to_pil(image: Any) -> Image:
    """One image of any accepted kind, in RGB and upright.

    Args:
        image: a path; a Pillow image; a uint8 array (H, W, C) or (H, W); a uint8 tensor (C, H, W);
            arrays and tensors of floats from 0 to 1.

    Raises:
        ImageError: a file that is no image, or values, shapes or a size that an image cannot have.
        ArgumentError: something else.
        MissingExtraError: Pillow is not installed.
    """
    require_pillow()
    from PIL import Image, ImageOps

    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ImageError(f"The image has no pixels: its size is {image.size}.")
        return _to_rgb(ImageOps.exif_transpose(image), "The image")
    if type(image).__module__.partition(".")[0] == "torch" and hasattr(image, "detach"):
        tensor = image.detach().cpu()
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if tensor.ndim == 3:
            tensor = tensor.permute(1, 2, 0)
        return _from_array(tensor.numpy(), f"A tensor {tuple(image.shape)}", "(C, H, W)")
    if hasattr(image, "__array_interface__"):
        import numpy as np

        return _from_array(np.asarray(image), f"An array {tuple(image.shape)}", "(H, W, C)")
    raise ArgumentError(
        f"{image!r:.80} is a {type(image).__name__}: a path, a Pillow image, an array (H, W, C), a "
        "tensor (C, H, W) of uint8, or a list of them is expected."
    )


def read_image(source: Path | IO[bytes], *, name: str = "") -> Image:
    """Read a whole image in RGB, turned upright, transparency laid over white.

    Args:
        source: a path, or a file that is open.
        name: for messages; by default the path.

    Raises:
        ImageError: the file is missing, is a folder, is not an image, or is cut off.
        MissingExtraError: Pillow is not installed.
    """
    require_pillow()
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = name or repr(str(source))
    if isinstance(source, Path):
        _check_path(source)
    try:
        with Image.open(source) as opened:
            opened.load()
            return _to_rgb(ImageOps.exif_transpose(opened), f"image {name}")
    except ImageError:
        raise
    except PermissionError as error:
        raise ImageError(f"image {name} may not be read: {error.strerror}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image in a format Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {name} is too large: {error}") from error
    except _BROKEN as error:
        raise ImageError(
            f"image {name} is damaged or cut off, and could not be read ({error})"
        ) from error


def _check_path(path: Path) -> None:
    if _URL.match(str(path)):
        raise ImageError(f"{str(path)!r} is a URL: download the image first, and give its path")
    if not path.exists():
        raise ImageError(f"image {str(path)!r} does not exist")
    if path.is_dir():
        raise ImageError(f"image {str(path)!r} is a folder, not a file")


def _to_rgb(image: Image, name: str) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip to white
        return image.convert("I").point(lambda value: value * (1 / 257)).convert("RGB")
    if image.mode == "F":
        import numpy as np

        return _from_array(np.asarray(image), name, "(H, W)")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _check_unit(low: float, high: float, name: str) -> None:
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ImageError(
            f"{name} has floats from {low:g} to {high:g}: 0 to 1 is expected. Bring them into that "
            "range, or save the image as uint8."
        )


def _from_array(pixels: Any, name: str, layout: str) -> Image:
    """An array (H, W, C) or (H, W) of uint8, of uint16, or of floats from 0 to 1."""
    import numpy as np
    from PIL import Image

    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        other = "(H, W, C)" if layout == "(C, H, W)" else "(C, H, W)"
        swapped = pixels.ndim == 3 and pixels.shape[0 if layout == "(H, W, C)" else 1] in (1, 3, 4)
        hint = f" It looks like {other}: permute it." if swapped else ""
        raise ImageError(f"{name} is no image {layout} of 1, 3 or 4 channels.{hint}")
    if 0 in pixels.shape:
        raise ImageError(f"{name} has no pixels.")
    if pixels.dtype.kind == "f":
        _check_unit(float(pixels.min()), float(pixels.max()), name)
        pixels = (pixels * 255).round().astype(np.uint8)
    elif pixels.dtype == np.uint16:
        pixels = (pixels.astype(np.uint32) // 257).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise ImageError(f"{name} is of {pixels.dtype}: uint8, or floats from 0 to 1 are expected.")
    flat = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    return _to_rgb(Image.fromarray(np.ascontiguousarray(flat)), name)
