"""Draw maps: as colours of their components or as heat, beside an image or over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ArgumentError, check_choice
from ..values import checked
from .components import FeatureBasis
from .pooling import as_levels
from .reading import require_pillow, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

STYLES = ("components", "heat")
# The panels fit into this box (width, height); small images are enlarged to the least height.
BOX, LEAST_HEIGHT = (1024, 512), 128
COLUMNS, GAP, CAPTION = 6, 8, 24
FONT_SIZE = 14
# Heat from 0 to 1 in equal steps: dark blue, violet, red, orange, light yellow
HEAT = (
    (0.05, 0.03, 0.25),
    (0.42, 0.08, 0.50),
    (0.80, 0.22, 0.32),
    (0.97, 0.58, 0.15),
    (1, 1, 0.75),
)


@dataclasses.dataclass(frozen=True)
class Panel:
    """One image of a sheet, and what is written below it."""

    image: Image
    caption: str = ""


@checked
def render_features(
    maps: object,
    image: object = None,
    *,
    basis: FeatureBasis | None = None,
    style: str = "components",
    overlay: float | None = None,
    captions: Sequence[str] | None = None,
) -> Image:
    """Draw the maps of one or several images, a row for each image and a column for each level.

    Args:
        maps: what an extractor returns: a map (N, C, h, w), a list or a dict of maps.
        image: the image that the maps are of, or a list of N images: paths, Pillow images, uint8
            arrays or tensors. It is the first column, and the maps are drawn in its size.
        basis: the colours of :meth:`FeatureBasis.fit`; by default those that fit these maps.
        style: ``"components"`` shows the first three principal components as red, green and blue;
            ``"heat"`` shows a map of one channel, or the lengths of the vectors, from dark to
            light.
        overlay: opacity of the maps over the image, from 0 to 1, in place of the first column.
        captions: of the levels, written below the rows.

    Returns:
        A Pillow image in RGB. Equal maps give equal pixels. Besides the maps only little memory is
        used, however large they are.

    Raises:
        ArgumentError: no maps, as many images as there are not, or an argument that cannot be.
        MissingExtraError: Pillow is not installed.

    Example:
        >>> import torch
        >>> from featnet import render_features
        >>> maps = [torch.rand(2, 16, 20, 30), torch.rand(2, 32, 10, 15)]  # two levels
        >>> render_features(maps).size
        (408, 280)
    """
    require_pillow()
    check_choice("style", style, STYLES)
    levels = [x for x, _ in as_levels(maps)]
    images = _images(image, len(levels[0]))
    if overlay is not None and (not images or not 0 <= overlay <= 1):
        raise ArgumentError(
            f"overlay={overlay!r}: " + ("0 to 1 is expected." if images else "it needs image=.")
        )
    if captions is not None and len(captions) != len(levels):
        raise ArgumentError(f"captions={captions!r}: {len(levels)} are expected, one a level.")
    if basis is None and style == "components":
        basis = FeatureBasis.fit([levels])
    if basis is not None and len(basis.levels) != len(levels):
        raise ArgumentError(f"The basis is of {len(basis.levels)} levels, there are {len(levels)}.")
    rows: list[Sequence[Panel]] = []
    for n in range(len(levels[0])):
        photograph = images[n] if images else None
        size = panel_size(
            photograph.size if photograph else (levels[0].shape[3], levels[0].shape[2])
        )
        row = [] if photograph is None or overlay is not None else [Panel(photograph.resize(size))]
        for i, x in enumerate(levels):
            drawn = draw(x[n], size, basis.levels[i] if basis and style == "components" else None)
            if overlay is not None and photograph is not None:
                drawn = _blend(photograph.resize(size), drawn, overlay)
            row.append(Panel(drawn, captions[i] if captions else ""))
        rows += wrapped(row)
    return sheet(rows)


def wrapped(row: Sequence[Panel]) -> list[Sequence[Panel]]:
    """A row in parts that a sheet has place for."""
    return [row[i : i + COLUMNS] for i in range(0, len(row), COLUMNS)]


def _images(image: object, count: int) -> list[Image]:
    if image is None:
        return []
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if isinstance(image, torch.Tensor) and image.ndim == 4:
        images = list(image)
    if len(images) != count:
        raise ArgumentError(f"There are {len(images)} images and maps of {count}.")
    return [to_pil(each) for each in images]


def _blend(below: Image, above: Image, opacity: float) -> Image:
    from PIL import Image as pillow

    return pillow.blend(below, above, opacity)


def draw(x: torch.Tensor, size: tuple[int, int], level: Any = None) -> Image:
    """Draw one map (C, h, w) in a size (width, height): by a level's basis, or else as heat."""
    from PIL import Image as pillow

    rgb = heat(x) if level is None else level.colours(x)  # (h, w, 3)
    pixels = (rgb * 255).round().to(torch.uint8).contiguous()
    height, width = pixels.shape[:2]
    small = pillow.frombytes("RGB", (width, height), bytes(pixels.numpy().data))
    crowded = width > size[0] or height > size[1]  # more positions than pixels: their mean
    return small.resize(size, pillow.Resampling.BOX if crowded else pillow.Resampling.NEAREST)


def heat(x: torch.Tensor) -> torch.Tensor:
    """Colours of a map of one channel, or of the lengths of its vectors: (C, h, w) -> (h, w, 3)."""
    x = x.detach().cpu()
    values = (
        x[0].float() if len(x) == 1 else torch.linalg.vector_norm(x, dim=0, dtype=torch.float32)
    )
    values = torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low) if high > low else torch.full_like(values, 0.5)
    table = torch.tensor(HEAT)
    place = scaled * (len(HEAT) - 1)
    first = place.floor().long().clamp(max=len(HEAT) - 2)
    part = (place - first)[..., None]
    return table[first] * (1 - part) + table[first + 1] * part


def sheet(rows: Sequence[Sequence[Panel]], *, footer: str = "") -> Image:
    """Put panels in rows onto one image, each over its caption, and a line below all."""
    from PIL import Image as pillow
    from PIL import ImageDraw, ImageFont

    panels = [panel for row in rows for panel in row]
    if len(panels) == 1 and not panels[0].caption and not footer:
        return panels[0].image
    font = ImageFont.load_default(FONT_SIZE)
    caption = CAPTION if any(panel.caption for panel in panels) else 0
    widest = max(round(font.getlength(panel.caption)) for panel in panels)
    cell_width = max(widest, *(panel.image.width for panel in panels)) + GAP
    heights = [max(panel.image.height for panel in row) + caption + GAP for row in rows]
    width = max(map(len, rows)) * cell_width + GAP
    width = max(width, round(font.getlength(footer)) + 2 * GAP)
    canvas = pillow.new("RGB", (width, sum(heights) + GAP + (CAPTION if footer else 0)), "white")
    pen, top = ImageDraw.Draw(canvas), GAP
    for row, height in zip(rows, heights, strict=True):
        for i, panel in enumerate(row):
            left = GAP + i * cell_width
            canvas.paste(panel.image, (left, top))
            if panel.caption:
                pen.text((left, top + panel.image.height + 4), panel.caption, "black", font)
        top += height
    if footer:
        pen.text((GAP, top), footer, "black", font)
    return canvas


def panel_size(image: tuple[int, int]) -> tuple[int, int]:
    """An image's size (width, height), scaled only where it is too large or too small."""
    width, height = image
    scale = max(1.0, LEAST_HEIGHT / height)
    scale = min(scale, BOX[0] / width, BOX[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
