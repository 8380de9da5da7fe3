"""Distil a network into a smaller one by its levels: what the maps say, without any labels.

python examples/distillation.py --out build/distillation.png

Levels of the same stride are paired. A 1x1 convolution brings the student's maps to the teacher's
channels, and the loss is one minus the cosine of their vectors. Images are crops of the left parts
of the photographs; the right parts are for the measurement.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import featnet

PHOTOS = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".jpg", ".png"))
SIDE, STRIDES = 112, (8, 16)


def crops(seed: int, count: int, photos: list[Image.Image]) -> list[Image.Image]:
    """Crops at random places, of random sizes, half of them mirrored."""
    rng, images = random.Random(seed), []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = rng.randint(SIDE, min(photo.size))
        left, top = (rng.randint(0, length - side) for length in photo.size)
        image = photo.resize((SIDE, SIDE), box=(left, top, left + side, top + side))
        mirror = Image.Transpose.FLIP_LEFT_RIGHT
        images.append(image.transpose(mirror) if rng.random() < 0.5 else image)
    return images


class Student(nn.Module):
    """A backbone and, for each level, a 1x1 convolution to the teacher's channels."""

    def __init__(self, name: str, channels: list[int]) -> None:
        super().__init__()
        self.backbone = featnet.create_model(name, features_only=True, out_strides=STRIDES)
        pairs = zip(self.backbone.feature_info.channels(), channels, strict=True)
        self.to_teacher = nn.ModuleList(nn.Conv2d(own, wanted, 1) for own, wanted in pairs)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(y) for layer, y in zip(self.to_teacher, self.backbone(x), strict=True)]


def cosines(maps: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    """Mean cosine of the vectors of each level, (levels,)."""
    pairs = zip(maps, wanted, strict=True)
    return torch.stack([F.cosine_similarity(a, b, dim=1).mean() for a, b in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--student", default="resnet10t", help="any model with strides 8 and 16")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/distillation.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    teacher = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_strides=STRIDES,
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    student = Student(args.student, teacher.feature_info.channels())
    transform = featnet.create_transform(teacher, fit="keep")
    photos = [Image.open(path).convert("RGB") for path in PHOTOS]
    lefts = [p.crop((0, 0, p.width * 6 // 10, p.height)) for p in photos]
    rights = [p.crop((p.width * 6 // 10, 0, p.width, p.height)) for p in photos]
    shown = crops(-1, 16, rights)
    x = transform(shown)
    with torch.inference_mode():
        wanted = teacher(x)
        before = student.train()(x)  # untrained statistics say nothing: those of the batch
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, args.steps)
    for step in range(args.steps):
        images = transform(crops(step, args.batch_size, lefts))
        with torch.no_grad():
            targets = teacher(images)
        loss = (1 - cosines(student(images), targets)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}/{args.steps}  loss {loss.item():.3f}", flush=True)
    with torch.inference_mode():
        after = student.eval()(x)
    first, last = cosines(before, wanted).tolist(), cosines(after, wanted).tolist()
    for stride, a, b in zip(STRIDES, first, last, strict=True):
        print(f"stride {stride}: cosine with the teacher {a:.3f} before, {b:.3f} after")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    columns = [F.normalize(maps[0][:4], dim=1) for maps in (wanted, before, after)]
    (level,) = featnet.FeatureBasis.fit(columns[:1]).levels  # the teacher's colours for all three
    captions = ["teacher", "student before", "student after"]
    basis = featnet.FeatureBasis((level,) * 3)
    featnet.render_features(columns, shown[:4], basis=basis, captions=captions).save(args.out)
    print(f"images and their maps at stride {STRIDES[0]}: {args.out}")


if __name__ == "__main__":
    main()
