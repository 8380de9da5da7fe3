"""Show where a classifier sees a class: Grad-CAM (https://arxiv.org/abs/1610.02391) through a tap.

python examples/gradcam.py --out build/gradcam.png

The four photographs are put together into one image. The gradient of a class with respect to the
map before the classifier says which channels speak for it, and the map says where they do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import nn

import featnet

HERE = Path(__file__).parent
PHOTOS = ("chelsea.png", "coffee.jpg", "rocket.jpg", "astronaut.jpg")  # row by row
CLASSES = {"tiger cat": 282, "espresso": 967, "missile": 657}  # of ImageNet, on the first three
SIDE = 224  # of a photograph on the mosaic, in pixels


def mosaic() -> Image.Image:
    """Put the photographs into the four quarters of an image."""
    image = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    for i, name in enumerate(PHOTOS):
        photo = ImageOps.fit(Image.open(HERE / name).convert("RGB"), (SIDE, SIDE))
        image.paste(photo, (i % 2 * SIDE, i // 2 * SIDE))
    return image


def grad_cam(model: nn.Module, x: torch.Tensor, label: int, tap: str) -> torch.Tensor:
    """Return the heat of a class, (N, 1, h, w), at the positions of a module's output."""
    with featnet.FeatureHooks(model, [tap]) as hooks, hooks.collect() as outputs:
        logits = model(x)
    (gradient,) = torch.autograd.grad(logits[:, label].sum(), outputs[tap])
    weights = gradient.mean((2, 3), keepdim=True)  # (N, C, 1, 1): how much a channel speaks for it
    return (weights * outputs[tap]).sum(1, keepdim=True).relu().detach()


def quarters(heat: torch.Tensor) -> torch.Tensor:
    """Return the share of the heat in each quarter, row by row."""
    rows, columns = (torch.arange(n) * 2 // n for n in heat.shape[2:])
    index = (rows[:, None] * 2 + columns).flatten()
    return torch.zeros(4).index_add_(0, index, heat.flatten()) / heat.sum().clamp(min=1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--tap", default="act2", help="a module; `act2` is the last before the pool"
    )
    parser.add_argument("--output-stride", type=int, default=16, choices=(8, 16, 32))
    parser.add_argument("--out", type=Path, default=Path("build/gradcam.png"))
    args = parser.parse_args()
    model = featnet.create_model(
        "tf_efficientnet_lite0",
        output_stride=args.output_stride,
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    image = mosaic()
    x = featnet.create_transform(model, fit="keep")([image])  # (1, 3, 448, 448)
    maps, least = [], 1.0
    for i, (name, label) in enumerate(CLASSES.items()):
        heat = grad_cam(model, x, label, args.tap)
        share = float(quarters(heat)[i])
        least = min(least, share)
        print(f"{name}: {share:.1%} of the heat on {PHOTOS[i]}")
        maps.append(heat)
    print(f"each class has at least {least:.1%} of its heat on its own photograph; chance is 25%")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = featnet.render_features(
        maps, [image], style="heat", overlay=0.6, captions=list(CLASSES)
    )
    sheet.save(args.out)
    print(f"the heat of each class: {args.out}")


if __name__ == "__main__":
    main()
