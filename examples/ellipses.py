"""A task for examples: to find coloured ellipses on the photographs of this folder."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn

import featnet

PHOTOS = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".jpg", ".png"))
SIDE = 96  # of an image, in pixels


def sample(number: int, transform: featnet.ImageTransform) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and mask of a number: a crop of a photograph, with an ellipse over it."""
    rng = random.Random(number)
    photo = Image.open(rng.choice(PHOTOS)).convert("RGB")
    left, top = (rng.randrange(side - SIDE) for side in photo.size)
    image = photo.crop((left, top, left + SIDE, top + SIDE))
    mask = Image.new("L", (SIDE, SIDE))
    i, j, a, b = (rng.randrange(low, high) for low, high in ((0, 56), (0, 56), (24, 48), (24, 48)))
    colour = tuple(rng.randrange(256) for _ in range(3))
    ImageDraw.Draw(image).ellipse((i, j, i + a, j + b), fill=colour)
    ImageDraw.Draw(mask).ellipse((i, j, i + a, j + b), fill=1)
    x = transform(image)
    mask = mask.resize((x.shape[2], x.shape[1]))
    pixels = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8)
    return x, pixels.view(1, *x.shape[1:]).float()


def batch(numbers: range, transform: featnet.ImageTransform) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, H, W) and masks (N, 1, H, W)."""
    images, masks = zip(*(sample(number, transform) for number in numbers), strict=True)
    return torch.stack(images), torch.stack(masks)


def loss_of(y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the pixels, and Dice's loss of each image."""
    p, dims = y.sigmoid(), (1, 2, 3)
    dice = 2 * (p * mask).sum(dims) / (p + mask).sum(dims)
    return F.binary_cross_entropy_with_logits(y, mask) + 1 - dice.mean()


@torch.inference_mode()
def evaluate(model: nn.Module, transform: featnet.ImageTransform, file: Path) -> float:
    """Mean intersection over union of 32 new images; four of them go to a file, with the masks."""
    x, mask = batch(range(10**6, 10**6 + 32), transform)
    found = model.eval()(x) > 0
    both, either = (found & (mask > 0)).sum((1, 2, 3)), (found | (mask > 0)).sum((1, 2, 3))
    images = transform.denormalize(x[:4])
    shown = torch.cat((images, images * (0.3 + 0.7 * found[:4])), 2)
    pixels = (torch.cat(list(shown), 2) * 255).byte().permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(file)
    return float((both / either.clamp(min=1)).mean())
