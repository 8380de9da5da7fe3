"""Train a U-Net on dilated features, in one process or several; a run that was killed goes on.

    python examples/segmentation.py --out build/segmentation
    torchrun --nproc-per-node 2 examples/segmentation.py --out build/segmentation --resume

Batches depend on the step alone, so that any number of processes sees the same ones.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from ellipses import SIDE, batch, evaluate, loss_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import featnet
from featnet.errors import CheckpointError


class UNet(nn.Module):
    """From the coarsest map up: each finer one is added, at its size; then a score per pixel."""

    def __init__(self, backbone: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.backbone = backbone
        channels = backbone.feature_info.channels()  # known before anything has run
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.merges = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU())
            for _ in channels
        )
        self.score = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        laterals = [lateral(m) for lateral, m in zip(self.laterals, self.backbone(x), strict=True)]
        y = torch.zeros_like(laterals[-1])
        for lateral, merge in zip(reversed(laterals), self.merges, strict=True):
            y = merge(F.interpolate(y, size=lateral.shape[-2:], mode="bilinear") + lateral)
        return F.interpolate(self.score(y), size=x.shape[-2:], mode="bilinear")


def build() -> tuple[UNet, str]:
    """The network, and which weights it begins with."""
    torch.manual_seed(0)
    try:
        weights, source = featnet.demo_weights(), "ImageNet weights"
    except CheckpointError:
        weights, source = None, "random weights"
    options = dict(features_only=True, output_stride=8, checkpoint_path=weights)
    backbone = featnet.create_model("tf_efficientnet_lite0", out_indices=(0, 1, 2, 4), **options)
    featnet.freeze(backbone, until=2)  # parameters and statistics, also after train()
    featnet.FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)  # the batches are small
    return UNet(backbone), source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=8, help="of all processes together")
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
    transform = featnet.create_transform(model.backbone, input_size=SIDE)
    parts = dict(model.named_children())
    groups = featnet.param_groups(parts, lr=0.2, weight_decay=1e-4, layer_decay=0.7)
    rates = [group["lr"] for group in groups]
    optimizer, first, saved = torch.optim.SGD(groups, momentum=0.9), 0, args.out / "last.pt"
    if args.resume and saved.exists():
        first, weights, moments = torch.load(saved)
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
    net = (DistributedDataParallel(model) if world > 1 else model).train()
    share, started = args.batch_size // world, time.monotonic()
    for step in range(first, args.steps):
        start = step * args.batch_size + rank * share
        x, mask = batch(range(start, start + share), transform)
        loss = loss_of(net(x), mask)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, rate in zip(
            optimizer.param_groups, rates, strict=True
        ):  # a cosine, after 8 steps
            group["lr"] = rate * min(1, (step + 1) / 8) * math.cos(step / args.steps * math.pi / 2)
        optimizer.step()
        loss = loss.detach() / world
        if world > 1:
            dist.all_reduce(loss)
        if rank == 0:
            rate = (step + 1 - first) * args.batch_size / (time.monotonic() - started)
            print(f"step {step + 1}/{args.steps}  loss {loss:.8f}  {rate:.1f} images/s", flush=True)
            if (step + 1) % 5 == 0 or step + 1 == args.steps:
                state = (step + 1, model.state_dict(), optimizer.state_dict())
                torch.save(state, saved.with_suffix(".part"))
                saved.with_suffix(".part").replace(saved)  # whole, or not at all
    if rank == 0:
        iou = evaluate(model, transform, args.out / "found.png")
        print(f"IoU {iou:.3f} on images that were not trained on ({source}); {args.out}/found.png")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
