"""Find the photograph that a crop was cut from: one vector per image, nearest neighbours.

python examples/retrieval.py --out build/retrieval.png
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from PIL import Image

import featnet

PHOTOS = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".jpg", ".png"))


def crops(count: int) -> tuple[list[Image.Image], list[int]]:
    """Crops of the photographs at random places, scales and sides, and the photograph of each."""
    rng = random.Random(0)
    images, labels = [], []
    for number in range(count):
        label = number % len(PHOTOS)
        photo = Image.open(PHOTOS[label]).convert("RGB")
        side = round(min(photo.size) * rng.uniform(0.5, 0.9))
        left, top = (rng.randrange(length - side + 1) for length in photo.size)
        image = photo.crop((left, top, left + side, top + side))
        images.append(image.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image)
        labels.append(label)
    return images, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--crops", type=int, default=40)
    parser.add_argument("--pool", default="avg", help="avg, max or gem")
    parser.add_argument("--out", type=Path, default=Path("build/retrieval.png"))
    args = parser.parse_args()
    net = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=(3, 4),
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    images, labels = crops(args.crops)
    with torch.inference_mode():
        x = featnet.create_transform(net)(images)
        vectors = featnet.pool_features(net(x), args.pool)  # (N, 112 + 320), of length 1
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-1)  # an image is not its own neighbour
    nearest = similarity.argmax(1)
    right = sum(labels[i] == labels[j] for i, j in enumerate(nearest.tolist()))
    print(f"{right} of {len(images)} crops have a crop of the same photograph as nearest neighbour")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (8 * 96, 2 * 96))
    for column in range(min(8, len(images))):  # above the crop, below its neighbour
        for row, index in enumerate((column, int(nearest[column]))):
            sheet.paste(images[index].resize((96, 96)), (96 * column, 96 * row))
    sheet.save(args.out)
    print(f"the first crops above their neighbours: {args.out}")


if __name__ == "__main__":
    main()
