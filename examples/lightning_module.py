"""Fine-tune a network inside a LightningModule: frozen early levels, rates that fall with depth.

python examples/lightning_module.py --out build/lightning

Needs `pip install lightning`. The task is to name the shape that is drawn over a photograph. What
Lightning saves is read by `featnet.create_model` as it is.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from ellipses import PHOTOS
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

import featnet

MODEL, SHAPES, SIDE = "tf_efficientnet_lite0", ("ellipse", "triangle", "rectangle", "star"), 96


def sample(number: int) -> tuple[Image.Image, int]:
    """A crop of a photograph with a shape over it, and the shape's index."""
    rng = random.Random(number)
    photo = Image.open(rng.choice(PHOTOS)).convert("RGB")
    left, top = (rng.randrange(length - SIDE) for length in photo.size)
    image, shape = photo.crop((left, top, left + SIDE, top + SIDE)), rng.randrange(len(SHAPES))
    x, y, radius = rng.randint(30, 66), rng.randint(30, 66), rng.randint(14, 28)
    corners, start = (64, 3, 4, 10)[shape], rng.uniform(0, math.tau)
    points = []
    for i in range(corners):
        r = radius * (0.4 if SHAPES[shape] == "star" and i % 2 else 1)
        angle = start + i / corners * math.tau
        points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
    colour = tuple(rng.randrange(256) for _ in range(3))
    ImageDraw.Draw(image).polygon(points, fill=colour)
    return image, shape


class Classifier(lightning.LightningModule):
    """A classifier whose first levels stay as they are and whose later ones learn more slowly."""

    def __init__(self, until: int = 1, lr: float = 2e-3, layer_decay: float = 0.7) -> None:
        super().__init__()
        self.save_hyperparameters()
        weights = featnet.demo_weights()
        self.model = featnet.create_model(MODEL, num_classes=len(SHAPES), checkpoint_path=weights)
        featnet.freeze(self.model, until=until)  # holds when Lightning calls train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        x, shapes = batch
        loss = F.cross_entropy(self(x), shapes)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        x, shapes = batch
        self.log("accuracy", (self(x).argmax(1) == shapes).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, object]:
        options = dict(lr=self.hparams.lr, layer_decay=self.hparams.layer_decay)
        groups = featnet.param_groups(self.model, weight_decay=0.05, **options)
        optimizer, rates = torch.optim.AdamW(groups), [group["lr"] for group in groups]
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=384, help="in an epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("build/lightning"))
    args = parser.parse_args()
    torch.manual_seed(0)
    module = Classifier()
    transform = featnet.create_transform(module.model, fit="keep")
    train, test = range(args.images), range(10**6, 10**6 + 128)
    pairs = [[(transform(image), shape) for image, shape in map(sample, r)] for r in (train, test)]
    loaders = [DataLoader(each, args.batch_size) for each in pairs]
    quiet = dict(logger=False, enable_model_summary=False, enable_checkpointing=False)
    trainer = lightning.Trainer(max_epochs=args.epochs, default_root_dir=args.out, **quiet)
    trainer.fit(module, *loaders)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(args.out / "last.ckpt")
    model = featnet.create_model(
        MODEL, num_classes=4, checkpoint_path=args.out / "last.ckpt"
    ).eval()
    images, shapes = zip(*map(sample, test), strict=True)
    with torch.inference_mode():
        found = model(transform(list(images))).argmax(1)
    right = int((found == torch.tensor(shapes)).sum())
    sheet = Image.new("RGB", (8 * SIDE, 3 * (SIDE + 16)), "white")
    for i, image in enumerate(images[:24]):
        x, y = i % 8 * SIDE, i // 8 * (SIDE + 16)
        sheet.paste(image, (x, y))
        colour = "green" if found[i] == shapes[i] else "red"
        ImageDraw.Draw(sheet).text((x + 4, y + SIDE + 2), SHAPES[found[i]], fill=colour)
    sheet.save(args.out / "found.png")
    print(f"{right} of {len(images)} new images named right; {args.out}/found.png")


if __name__ == "__main__":
    main()
