"""See what dilation gives a mask: one head, trained on features of strides 32, 16 and 8.

python examples/dilated.py --out build/dilated.png

The last level of a network knows most and has the coarsest map. `output_stride` turns its strides
into dilations: the same weights, a finer map. What is to be found are balloons with strings, drawn
over photographs. The strings are four pixels wide, thinner than one position of any of the maps.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from ellipses import PHOTOS, SIDE, loss_of
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import featnet


def sample(number: int) -> tuple[Image.Image, np.ndarray]:
    """A crop of a photograph with a balloon and its string, and their mask (SIDE, SIDE)."""
    rng = random.Random(number)
    photo = Image.open(rng.choice(PHOTOS)).convert("RGB")
    left, top = (rng.randrange(side - SIDE) for side in photo.size)
    image, mask = photo.crop((left, top, left + SIDE, top + SIDE)), Image.new("L", (SIDE, SIDE))
    x, y, a, b = (rng.randint(*r) for r in ((20, 76), (20, 44), (10, 18), (12, 18)))
    points = [(x, y)]
    for step in range(rng.randint(2, 4)):
        points.append((points[-1][0] + rng.randint(-14, 14), y + b + 14 * step))
    colour = tuple(rng.randrange(256) for _ in range(3))
    for pen, fill in ((ImageDraw.Draw(image), colour), (ImageDraw.Draw(mask), 1)):
        pen.line(points, fill=fill, width=4, joint="curve")
        pen.ellipse((x - a, y - b, x + a, y + b), fill=fill)
    return image, np.asarray(mask)


class Segmenter(nn.Module):
    """Two 3x3 convolutions over the last level, and scores that are interpolated."""

    def __init__(self, stride: int, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(0)
        name, weights = "tf_efficientnet_lite0", featnet.demo_weights()
        options = dict(out_indices=(4,), output_stride=stride, checkpoint_path=weights)
        self.backbone = featnet.create_model(name, features_only=True, **options)
        featnet.freeze(self.backbone, until=2)
        featnet.FrozenBatchNorm2d.convert_frozen_batchnorm(self.backbone)  # the batches are small
        layers: list[nn.Module] = []
        for channels in (*self.backbone.feature_info.channels(), width):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (y,) = self.backbone(x)
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")


def batch(net: Segmenter, numbers: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, SIDE, SIDE), normalised, and masks (N, 1, SIDE, SIDE)."""
    images, masks = zip(*map(sample, numbers), strict=True)
    x = featnet.create_transform(net.backbone, fit="keep")(list(images))
    return x, torch.tensor(np.stack(masks)).float()[:, None]


def scores(found: torch.Tensor, mask: torch.Tensor) -> tuple[float, float]:
    """Intersection over union, and F-score of the boundaries where 2 pixels beside is right."""
    iou = (found * mask).sum() / (found + mask).clamp(max=1).sum()
    edges = [F.max_pool2d(m, 3, 1, 1) - m for m in (found, mask)]
    wide = [F.max_pool2d(edge, 5, 1, 2) for edge in edges]
    pairs = [((edges[i] * wide[1 - i]).sum(), edges[i].sum().clamp(min=1)) for i in (0, 1)]
    precision, recall = (right / all_of_them for right, all_of_them in pairs)
    return float(iou), float(2 * precision * recall / (precision + recall).clamp(min=1e-6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--strides", type=int, nargs="+", default=[32, 16, 8], metavar="STRIDE")
    parser.add_argument("--out", type=Path, default=Path("build/dilated.png"))
    args = parser.parse_args()
    masks = []
    for stride in args.strides:
        net = Segmenter(stride).train()
        groups = featnet.param_groups(dict(net.named_children()), lr=2e-3, layer_decay=0.7)
        optimizer, rates = torch.optim.AdamW(groups), [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, args.steps, pct_start=0.2)
        for step in range(args.steps):
            x, mask = batch(net, range(step * args.batch_size, (step + 1) * args.batch_size))
            optimizer.zero_grad()
            loss_of(net(x), mask).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        x, mask = batch(net, range(10**6, 10**6 + 32))
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            found = (net.eval()(x) > 0).float()
        (iou, edge), flops = scores(found, mask), counter.get_total_flops() / len(x) / 1e9
        print(f"stride {stride}: IoU {iou:.3f}, boundary F {edge:.3f}, {flops:.2f} GFLOPs an image")
        masks.append(found[:4])
    images = [sample(number)[0] for number in range(10**6, 10**6 + 4)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    captions = ["the mask", *(f"stride {stride}" for stride in args.strides)]
    maps = [mask[:4], *masks]
    featnet.render_features(maps, images, style="heat", captions=captions).save(args.out)
    print(f"images and masks: {args.out}")


if __name__ == "__main__":
    main()
