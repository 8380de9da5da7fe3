"""Train a small segmentation head on dilated features, on one process or several.

    python examples/segmentation.py --steps 60 --out build/segmentation
    torchrun --nproc-per-node 2 examples/segmentation.py --steps 60 --out build/segmentation

The task is made here: coloured ellipses are drawn over the photographs of this folder, and the head
has to find them. Batches depend on the step alone, so that any number of processes sees the same
ones, and a run that was killed goes on where its last checkpoint was (``--resume``).
"""

from __future__ import annotations

import argparse
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import featnet
from featnet.errors import CheckpointError

PHOTOS = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".jpg", ".png"))
SIDE = 128  # of an image, in pixels


class Segmenter(nn.Module):
    """The maps of three levels, all at 1/8 of the input, to a score per pixel."""

    def __init__(self, backbone: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        channels = backbone.feature_info.channels()  # known before anything has run
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.head = nn.Sequential(
            nn.GroupNorm(8, width), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(x)
        y = sum(lateral(m) for lateral, m in zip(self.laterals, maps, strict=True))
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")


def sample(number: int, transform: featnet.ImageTransform) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and mask number so-and-so: a crop of a photograph, with an ellipse over it."""
    rng = random.Random(number)
    photo = Image.open(rng.choice(PHOTOS)).convert("RGB")
    left, top = (rng.randrange(side - SIDE) for side in photo.size)
    image = photo.crop((left, top, left + SIDE, top + SIDE))
    mask = Image.new("L", (SIDE, SIDE))
    i, j, a, b = (rng.randrange(low, high) for low, high in ((0, 80), (0, 80), (32, 64), (32, 64)))
    colour = tuple(rng.randrange(256) for _ in range(3))
    ImageDraw.Draw(image).ellipse((i, j, i + a, j + b), fill=colour)
    ImageDraw.Draw(mask).ellipse((i, j, i + a, j + b), fill=1)
    x = transform(image)
    mask = mask.resize((x.shape[2], x.shape[1]))
    pixels = torch.frombuffer(bytearray(mask.tobytes()), dtype=torch.uint8)
    return x, pixels.view(1, *x.shape[1:]).float()


def batch(numbers: range, transform: featnet.ImageTransform) -> tuple[torch.Tensor, torch.Tensor]:
    images, masks = zip(*(sample(number, transform) for number in numbers), strict=True)
    return torch.stack(images), torch.stack(masks)


def build() -> tuple[Segmenter, str]:
    """The network with the weights of featnet[demo], where that is installed."""
    torch.manual_seed(0)
    try:
        weights, source = featnet.demo_weights(), "ImageNet weights"
    except CheckpointError:
        weights, source = None, "random weights"
    backbone = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=(2, 3, 4),
        output_stride=8,
        checkpoint_path=weights,
    )
    featnet.freeze(backbone, until=1)  # parameters and statistics, also after train()
    # Batches are small, and of one process only: the statistics of ImageNet are better
    featnet.FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)
    return Segmenter(backbone), source


@torch.inference_mode()
def evaluate(model: Segmenter, transform: featnet.ImageTransform, file: Path) -> float:
    """Mean intersection over union of 32 images that were not trained on; four of them as a
    file."""
    x, mask = batch(range(10**6, 10**6 + 32), transform)
    found = model.eval()(x) > 0
    both, either = (found & (mask > 0)).sum((1, 2, 3)), (found | (mask > 0)).sum((1, 2, 3))
    images = transform.denormalize(x[:4]).clamp(0, 1)
    shown = torch.cat(
        (images, images * (0.3 + 0.7 * found[:4])), 2
    )  # the second row: what is found
    pixels = (torch.cat(list(shown), 2) * 255).byte().permute(1, 2, 0).contiguous()
    Image.fromarray(pixels.numpy()).save(file)
    return float((both / either.clamp(min=1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes together")
    parser.add_argument("--side", type=int, default=SIDE, help="of the images, in pixels")
    parser.add_argument("--out", type=Path, default=Path("build/segmentation"))
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    args = parser.parse_args()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if args.batch_size % world:
        parser.error(f"--batch-size {args.batch_size} is no multiple of {world} processes")
    if world > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    args.out.mkdir(parents=True, exist_ok=True)
    model, source = build()
    transform = featnet.create_transform(model.backbone, input_size=args.side)
    groups = featnet.param_groups(
        {"backbone": model.backbone, "laterals": model.laterals, "head": model.head},
        lr=0.03,
        weight_decay=1e-4,
        layer_decay=0.7,
    )
    optimizer, first, saved = torch.optim.SGD(groups, momentum=0.9), 0, args.out / "last.pt"
    if args.resume and saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    net = DistributedDataParallel(model) if world > 1 else model
    net.train()
    share, started = args.batch_size // world, time.monotonic()
    for step in range(first, args.steps):
        start = step * args.batch_size + rank * share
        x, mask = batch(range(start, start + share), transform)
        loss = F.binary_cross_entropy_with_logits(net(x), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss = loss.detach() / world
        if world > 1:
            dist.all_reduce(loss)
        if rank == 0:
            rate = (step + 1 - first) * args.batch_size / (time.monotonic() - started)
            print(f"step {step + 1}/{args.steps}  loss {loss:.8f}  {rate:.1f} images/s", flush=True)
            if (step + 1) % 5 == 0 or step + 1 == args.steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save({**state, "step": step + 1}, saved.with_suffix(".part"))
                saved.with_suffix(".part").replace(saved)  # whole, or not at all
    if rank == 0:
        file = args.out / "found.png"
        iou = evaluate(model, transform, file)
        print(f"IoU {iou:.3f} on images that were not trained on ({source}); {file}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
