"""Match two crops of a photograph that are shifted against each other, position by position.

python examples/correspondence.py --output-stride 8 --out build/correspondence.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

import featnet

PHOTO = Path(__file__).with_name("chelsea.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-stride", type=int, default=8, choices=(8, 16))
    parser.add_argument("--shift", type=int, nargs=2, default=(37, 21), metavar=("X", "Y"))
    parser.add_argument("--side", type=int, default=256, help="of the crops, in pixels")
    parser.add_argument("--image", type=Path, default=PHOTO)
    parser.add_argument("--out", type=Path, default=Path("build/correspondence.png"))
    args = parser.parse_args()
    net = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=(3,),
        output_stride=args.output_stride,
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    photo, (dx, dy), side = Image.open(args.image).convert("RGB"), args.shift, args.side
    left, top = (photo.width - side - dx) // 2, (photo.height - side - dy) // 2
    if left < 0 or top < 0:
        parser.error(
            f"--side {side} and --shift {dx} {dy} do not fit {photo.width} x {photo.height}"
        )
    first = photo.crop((left, top, left + side, top + side))
    second = photo.crop((left + dx, top + dy, left + dx + side, top + dy + side))
    with torch.inference_mode():
        (maps,) = net(featnet.create_transform(net, fit="keep")([first, second]))
    a, b = F.normalize(maps, dim=1).flatten(2)  # (C, h * w) each
    rows, columns = maps.shape[-2:]
    grid = torch.stack(
        torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1
    ).view(-1, 2)
    here = net.feature_info.to_input(grid, 0, size=(side, side))  # pixels of the first crop
    there = here[(a.T @ b).argmax(1)]  # the most similar position of the second
    wanted = here - torch.tensor([dx, dy])
    seen = ((wanted >= 0) & (wanted < side)).all(1)  # what is in both crops
    cell = side / columns
    close = ((there - wanted).abs() <= cell).all(1) & seen
    share = float(close.sum() / seen.sum())
    print(f"{share:.1%} of {int(seen.sum())} positions within one cell of {cell:g} pixels")

    sheet = Image.new("RGB", (2 * side, side))
    sheet.paste(first, (0, 0))
    sheet.paste(second, (side, 0))
    draw = ImageDraw.Draw(sheet)
    for i in range(0, len(grid), max(1, len(grid) // 60)):
        if seen[i]:
            (x, y), (u, v) = here[i].tolist(), there[i].tolist()
            draw.line((x, y, side + u, v), fill=(0, 255, 0) if close[i] else (255, 0, 0))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out)
    print(f"matches in green, misses in red: {args.out}")


if __name__ == "__main__":
    main()
