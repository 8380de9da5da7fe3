"""Find defects from good images alone: distances to a bank of features, as in PatchCore.

python examples/anomaly.py --out build/anomaly.png

PatchCore (https://arxiv.org/abs/2106.08265) keeps features of good images and asks of each position
of a new one how far its nearest neighbour among them is. Nothing is trained. The images here are
views of one photograph, moved, turned and lit differently, and the defects are drawn over them.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance

import featnet

PHOTO = Path(__file__).with_name("coffee.jpg")
SIDE = 224  # of a view, in pixels


def view(number: int) -> Image.Image:
    """A view of the photograph: turned by up to 3 degrees, moved by 6 pixels, lighter or darker."""
    rng = random.Random(number)
    photo = Image.open(PHOTO).convert("RGB").resize((390, 260))
    photo = photo.rotate(rng.uniform(-3, 3), Image.Resampling.BICUBIC)
    left, top = 83 + rng.randint(-6, 6), 18 + rng.randint(-6, 6)
    image = photo.crop((left, top, left + SIDE, top + SIDE))
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.85, 1.15))


def spoil(image: Image.Image, number: int) -> tuple[Image.Image, Image.Image]:
    """Draw a scratch, paste a piece from elsewhere, or make a spot; also give the defect's mask."""
    rng, mask = random.Random(f"defect {number}"), Image.new("L", image.size)
    pen, (x, y) = ImageDraw.Draw(mask), (rng.randint(40, SIDE - 80) for _ in range(2))
    if number % 3 == 0:
        pen.line((x, y, x + rng.randint(20, 50), y + rng.randint(-30, 30)), fill=255, width=3)
    elif number % 3 == 1:
        pen.rectangle((x, y, x + rng.randint(14, 24), y + rng.randint(14, 24)), fill=255)
    else:
        pen.ellipse((x, y, x + rng.randint(12, 22), y + rng.randint(12, 22)), fill=255)
    other = Image.new("RGB", image.size, rng.choice(["gray", "tan", "black", "white"]))
    if number % 3 == 1:
        other = image.transpose(Image.Transpose.ROTATE_180)
    return Image.composite(other, image, mask), mask


class AnomalyMap:
    """Distances of an image's features to a bank of some of those of good images."""

    def __init__(self, good: list[Image.Image], size: int) -> None:
        self.net = featnet.create_model(
            "tf_efficientnet_lite0",
            features_only=True,
            out_indices=(2, 3),
            output_stride=8,  # both levels have maps of one size
            checkpoint_path=featnet.demo_weights(),
        ).eval()
        self.transform = featnet.create_transform(self.net, fit="keep")
        vectors = self.vectors(good).flatten(0, 2)
        chosen, far = [0], torch.cdist(vectors[:1], vectors)[0]
        for _ in range(size - 1):  # always the vector that is farthest from those chosen
            chosen.append(int(far.argmax()))
            far = far.minimum(torch.cdist(vectors[chosen[-1:]], vectors)[0])
        self.bank = vectors[chosen]

    @torch.inference_mode()
    def vectors(self, images: list[Image.Image]) -> torch.Tensor:
        """Vectors of the surroundings of each position, (N, h, w, C)."""
        maps = [F.normalize(y, dim=1) for y in self.net(self.transform(images))]  # of equal weight
        return F.avg_pool2d(torch.cat(maps, 1), 3, 1, 1).permute(0, 2, 3, 1)

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """Scores of the pixels, (N, 1, H, W)."""
        vectors = self.vectors(images)
        scores = torch.cdist(vectors, self.bank).amin(-1)
        return F.interpolate(scores[:, None], (SIDE, SIDE), mode="bicubic")


def auroc(scores: torch.Tensor, wrong: torch.Tensor) -> float:
    """Probability that what is wrong scores higher than what is right."""
    ranks = scores.argsort().argsort()[wrong].double() + 1
    bad, right = int(wrong.sum()), int((~wrong).sum())
    return float((ranks.sum() - bad * (bad + 1) / 2) / (bad * right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--good", type=int, default=8, help="images that the bank is made of")
    parser.add_argument("--test", type=int, default=6, help="images with defects, and without")
    parser.add_argument("--bank", type=int, default=500, help="vectors that are kept")
    parser.add_argument("--out", type=Path, default=Path("build/anomaly.png"))
    args = parser.parse_args()
    find = AnomalyMap([view(i) for i in range(args.good)], args.bank)
    good = [view(1000 + i) for i in range(args.test)]
    bad, masks = zip(*(spoil(view(2000 + i), i) for i in range(args.test)), strict=True)
    scores = find([*bad, *good])
    wrong = torch.tensor(np.stack(masks)) > 0
    truth = torch.cat((wrong, torch.zeros_like(wrong)))[:, None]  # as the scores are
    pixels = auroc(scores.flatten(), truth.flatten())
    images = auroc(scores.amax((1, 2, 3)), truth.amax((1, 2, 3)))
    print(f"AUROC of pixels {pixels:.3f}, of images {images:.3f}")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    shown, captions = [truth[:3].float(), scores[:3]], ["the defect", "the distances"]
    sheet = featnet.render_features(shown, list(bad[:3]), style="heat", captions=captions)
    sheet.save(args.out)
    print(f"images, defects, distances: {args.out}")


if __name__ == "__main__":
    main()
