"""Train torchvision's RetinaNet over an FPN on the features of a frozen backbone.

python examples/detection.py --out build/detection.png

Cats, cups and astronauts are cut from photographs and put onto a fourth one. The backbone keeps its
ImageNet weights; the pyramid and the heads learn.
"""

from __future__ import annotations

import argparse
import random
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, box_iou
from torchvision.transforms.functional import pil_to_tensor
from torchvision.utils import draw_bounding_boxes, save_image

import featnet
from featnet.adapters import TorchvisionBackbone

SIDE, WIDTH = 128, 64  # pixels of an image's side, and channels of the pyramid
CLASSES = ("cat", "cup", "astronaut")
PHOTOS = ("chelsea.png", "coffee.jpg", "astronaut.jpg")
PLACES = ((90, 20, 360, 290), (120, 15, 440, 285), (130, 60, 280, 230))  # of the objects there


photograph = cache(lambda name: Image.open(Path(__file__).with_name(name)).convert("RGB"))


def scene(number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """An image (3, SIDE, SIDE) from 0 to 1 with one to three objects, their boxes and labels."""
    rng = random.Random(number)
    left, top = (rng.randrange(length - SIDE) for length in photograph("rocket.jpg").size)
    image = photograph("rocket.jpg").crop((left, top, left + SIDE, top + SIDE))
    boxes, labels = [], []
    for corner in rng.sample([(0, 0), (64, 0), (0, 64), (64, 64)], rng.randint(1, 3)):
        wide, high, label = rng.randint(36, 62), rng.randint(36, 62), rng.randrange(3)
        x, y = corner[0] + rng.randint(0, 64 - wide), corner[1] + rng.randint(0, 64 - high)
        cut = photograph(PHOTOS[label]).resize((wide, high), box=PLACES[label])
        mask = Image.new("L", cut.size)
        ImageDraw.Draw(mask).ellipse((0, 0, wide - 1, high - 1), fill=255)
        image.paste(cut, (x, y), mask)
        boxes.append((x, y, x + wide, y + high))
        labels.append(label)
    target = dict(boxes=torch.tensor(boxes).float(), labels=torch.tensor(labels))
    return pil_to_tensor(image) / 255, target


def build() -> RetinaNet:
    """RetinaNet over three levels of a pyramid; the backbone below stays as it is."""
    torch.manual_seed(0)
    options = dict(features_only=True, checkpoint_path=featnet.demo_weights())
    body = featnet.create_model("tf_efficientnet_lite0", out_strides=(8, 16, 32), **options)
    featnet.freeze(body)
    neck = FeaturePyramidNetwork(body.feature_info.channels(), WIDTH)
    backbone = TorchvisionBackbone(body, neck=neck)  # the pair is tried here
    sizes = tuple((3.0 * r, 4.2 * r) for r in backbone.feature_info.reduction())
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    head = RetinaNetHead(WIDTH, 2, len(CLASSES), norm_layer=partial(nn.GroupNorm, 8))
    norm = featnet.create_transform(body)
    shared = dict(anchor_generator=anchors, head=head, image_mean=norm.mean, image_std=norm.std)
    return RetinaNet(backbone, len(CLASSES), SIDE, SIDE, score_thresh=0.4, nms_thresh=0.3, **shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--test", type=int, default=32, help="images to measure on")
    parser.add_argument("--out", type=Path, default=Path("build/detection.png"))
    args = parser.parse_args()
    model = build().train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, args.steps, pct_start=0.2)
    for step in range(args.steps):
        numbers = range(step * args.batch_size, (step + 1) * args.batch_size)
        losses = model(*map(list, zip(*map(scene, numbers), strict=True)))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        print(f"step {step + 1}/{args.steps}  loss {sum(losses.values()).item():.3f}", flush=True)
    images, targets = zip(*map(scene, range(10**6, 10**6 + args.test)), strict=True)
    with torch.inference_mode():
        found = model.eval()(list(images))
    hits = 0  # objects that a box of their class covers with an IoU of at least a half
    for truth, boxes in zip(targets, found, strict=True):
        fits = box_iou(truth["boxes"], boxes["boxes"]) >= 0.5
        hits += int((fits & (truth["labels"][:, None] == boxes["labels"])).any(1).sum())
    objects, count = (sum(len(each["boxes"]) for each in x) for x in (targets, found))
    print(f"found {hits} of {objects} objects with {count} boxes")
    pictures = []
    for image, boxes in zip(images[:4], found, strict=False):
        names, large = (
            [CLASSES[i] for i in boxes["labels"]],
            F.interpolate(image[None], 2 * SIDE)[0],
        )
        if names:
            large = draw_bounding_boxes(large, boxes["boxes"] * 2, names, colors="lime", width=2)
        pictures.append(large)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_image(pictures, args.out)
    print(f"boxes and classes: {args.out}")


if __name__ == "__main__":
    main()
