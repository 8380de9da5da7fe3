"""Estimate depth with a decoder over the levels of a vision transformer, as DPT does.

python examples/depth.py --out build/depth.png

All levels of a plain transformer have the stride of its patches. DPT (arxiv.org/abs/2103.13413)
brings each to a stride of its own and merges them from the coarsest to the finest. The scenes are
computed, so that depth is known: balls in front of a wall on a tiled floor, in haze, seen by
cameras of different heights and tilts. Nothing is pretrained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from scenes import SIDE, batch, planes
from torch import nn

import featnet


class Residual(nn.Sequential):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int) -> None:
        first, second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        super().__init__(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class Depth(nn.Module):
    """Levels at 2, 1 and 1/2 times their size, merged from the last; a map of log distances."""

    def __init__(self, backbone: nn.Module, width: int = 48) -> None:
        super().__init__()
        self.backbone, info = backbone, backbone.feature_info
        pyramids = (
            featnet.SimplePyramid(info, out_channels=width, scales=(s,)) for s in (2, 1, 0.5)
        )
        self.reassemble = nn.ModuleList(pyramids)
        self.merges = nn.ModuleList(Residual(width) for _ in range(3))
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = zip(self.reassemble, self.backbone(x), strict=True)
        maps = [layer(y)[0] for layer, y in levels]
        y = torch.zeros_like(maps[-1])
        for level, merge in zip(reversed(maps), self.merges, strict=True):
            y = merge(F.interpolate(y, size=level.shape[-2:], mode="bilinear") + level)
        return F.interpolate(self.head(y), size=x.shape[-2:], mode="bilinear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/depth.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    options = dict(out_indices=(1, 3, 5), patch_size=8, img_size=SIDE)
    model = Depth(featnet.create_model("test_vit", features_only=True, **options)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, args.steps, pct_start=0.2)
    mean = torch.zeros(1, 1, SIDE, SIDE)
    for step in range(args.steps):
        x, depth = batch(range(step * args.batch_size, (step + 1) * args.batch_size))
        mean += depth.mean(0) / args.steps
        loss = F.l1_loss(model(x), depth)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.4f}", flush=True)
    x, depth = batch(range(10**6, 10**6 + 32))
    with torch.inference_mode():
        found = model.eval()(x)
    for name, guess in ("network", found), ("mean scene", mean), ("best plane", planes(depth)):
        error = (guess - depth).abs().mean().exp() - 1
        print(f"{name}: off by {100 * error:.1f}% of the distance")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    images, pair = list(((x[:4] / 4 + 0.5) * 255).byte()), [-depth[:4], -found[:4]]
    captions = ["the distance", "the estimate"]
    featnet.render_features(pair, images, style="heat", captions=captions).save(args.out)
    print(f"scenes, and near in light: {args.out}")


if __name__ == "__main__":
    main()
