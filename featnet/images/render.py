"""An image beside its feature maps, in colours one can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# The panels fit into this box (width, height); small images are enlarged to the least height.
BOX, LEAST_HEIGHT = (1024, 512), 128
COLUMNS, GAP, CAPTION = 6, 8, 24
FONT_SIZE = 14
# Percentiles that become black and full intensity: a few outliers must not flatten the rest.
LOW, HIGH = 0.01, 0.99


def to_rgb(feature: torch.Tensor) -> torch.Tensor:
    """The first three principal components of a map's vectors, as colours.

    Takes (C, h, w), gives uint8 (h, w, 3). Each component is scaled by its own percentiles.
    Components without variance (a constant map, fewer than three channels) are mid-grey; a single
    channel is shown in grey. The sign of a component is arbitrary: here its largest score in size
    is positive, so that the same map always has the same colours.
    """
    import torch

    channels, height, width = feature.shape
    vectors = feature.detach().cpu().double().flatten(1).t()  # (h * w, C)
    vectors = torch.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    scores = _principal_scores(vectors - vectors.mean(0), count=3)  # (h * w, 3)
    if channels == 1:
        scores = scores[:, :1].expand(-1, 3)
    ordered = scores.sort(dim=0).values
    low, high = (ordered[round(q * (len(ordered) - 1))] for q in (LOW, HIGH))
    span = high - low
    flat = span == 0
    scaled = ((scores - low) / torch.where(flat, torch.ones_like(span), span)).clamp(0, 1)
    scaled = torch.where(flat, torch.full_like(scaled, 0.5), scaled)
    return (scaled * 255).round().to(torch.uint8).view(height, width, 3)


def _principal_scores(centred: torch.Tensor, *, count: int) -> torch.Tensor:
    """Coordinates of the rows of (n, C) along their ``count`` main axes: (n, count)."""
    import torch

    n, channels = centred.shape
    if n < channels:  # the same scores from the smaller of the two symmetric matrices
        values, vectors = torch.linalg.eigh(centred @ centred.t())
        scores = vectors * values.clamp(min=0).sqrt()
    else:
        values, vectors = torch.linalg.eigh(centred.t() @ centred)
        scores = centred @ vectors
    # eigh is ascending; what is left of a rank that is too low is rounding noise, not a component
    scores = torch.where(values > 1e-12 * values[-1], scores, torch.zeros_like(scores))
    scores = scores.flip(1)[:, :count]
    largest = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    scores = torch.where(largest < 0, -scores, scores)
    missing = scores.new_zeros(n, count - scores.shape[1])
    return torch.cat([scores, missing], dim=1)


def render(image: Image, *, title: str, levels: Sequence[tuple[str, torch.Tensor]]) -> Image:
    """One image: ``image`` over ``title``, then each ``(caption, map of (C, h, w))``."""
    from PIL import Image, ImageDraw, ImageFont

    size = _panel_size(image.size)
    panels = [(title, image.resize(size, Image.Resampling.BICUBIC))]
    for caption, feature in levels:
        rgb = to_rgb(feature)
        small = Image.frombytes("RGB", (rgb.shape[1], rgb.shape[0]), rgb.numpy().tobytes())
        panels.append((caption, small.resize(size, Image.Resampling.NEAREST)))

    font = ImageFont.load_default(FONT_SIZE)
    widest = max(round(font.getlength(caption)) for caption, _ in panels)
    cell = (max(size[0], widest) + GAP, size[1] + CAPTION + GAP)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + GAP, rows * cell[1] + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (caption, panel) in enumerate(panels):
        left, top = GAP + i % columns * cell[0], GAP + i // columns * cell[1]
        sheet.paste(panel, (left, top))
        draw.text((left, top + size[1] + 4), caption, fill="black", font=font)
    return sheet


def _panel_size(image: tuple[int, int]) -> tuple[int, int]:
    """The image's size (width, height), scaled only where it is too large or too small."""
    width, height = image
    scale = max(1.0, LEAST_HEIGHT / height)
    scale = min(scale, BOX[0] / width, BOX[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
