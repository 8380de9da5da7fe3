"""Write the levels of a network to an ONNX file, and draw them where there is no torch.

    python examples/onnx_levels.py export --to build/onnx
    python examples/onnx_levels.py run --to build/onnx

The second command needs NumPy, Pillow and onnxruntime. It normalises an image as the first one has
noted, runs the file, compares with the numbers that torch gave, and draws main components.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

PHOTO = Path(__file__).with_name("chelsea.png")


def export(folder: Path, photo: Path, levels: list[int], output_stride: int) -> None:
    """Write `levels.onnx`, how an image becomes its input, and the maps of a photograph."""
    import torch

    import featnet

    net = featnet.create_model(
        "tf_efficientnet_lite0",
        features_only=True,
        out_indices=levels,
        output_stride=output_stride,
        checkpoint_path=featnet.demo_weights(),
    ).eval()
    report = featnet.export(net, folder / "levels.onnx", example=torch.randn(2, 3, 64, 96))
    print(report)
    transform = featnet.create_transform(net, fit="keep")
    facts = dict(mean=transform.mean, std=transform.std, levels=report.outputs)
    (folder / "levels.json").write_text(json.dumps(facts), encoding="utf-8")
    with torch.inference_mode():
        maps = net(transform([photo]))
    np.savez(folder / "torch.npz", *(y.numpy() for y in maps))


def components(y: np.ndarray) -> np.ndarray:
    """Turn a map (C, h, w) into colours (h, w, 3): its three main components, from 0 to 1."""
    vectors = y.reshape(len(y), -1).T
    centred = vectors - vectors.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    scores = centred @ axes.T
    low, high = np.percentile(scores, (1, 99), axis=0)
    return ((scores - low) / (high - low)).clip(0, 1).reshape(*y.shape[1:], 3)


def run(folder: Path, photo: Path) -> None:
    """Run the file on an image, compare it with torch's maps, and draw the levels."""
    import onnxruntime

    facts = json.loads((folder / "levels.json").read_text(encoding="utf-8"))
    image = Image.open(photo).convert("RGB")
    pixels = np.asarray(image, np.float32) / 255
    x = ((pixels - facts["mean"]) / facts["std"]).astype(np.float32).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(folder / "levels.onnx")
    maps = session.run(facts["levels"], {session.get_inputs()[0].name: x})
    with np.load(folder / "torch.npz") as stored:
        wanted = [stored[name] for name in stored.files]
    if [y.shape for y in maps] == [y.shape for y in wanted]:
        pairs = zip(maps, wanted, strict=True)
        off = max(float(abs(y - z).max() / abs(z).max()) for y, z in pairs)
        print(f"differs by {off:.1e} from torch")
    sheet = Image.new("RGB", (image.width * (1 + len(maps)), image.height))
    sheet.paste(image)
    for i, y in enumerate(maps, 1):
        colours = Image.fromarray((components(y[0]) * 255).astype(np.uint8))
        sheet.paste(colours.resize(image.size, Image.Resampling.NEAREST), (i * image.width, 0))
    sheet.save(folder / "levels.png")
    print(f"{', '.join(facts['levels'])} of {photo.name}: {folder / 'levels.png'}")
    print(f"torch is {'loaded' if sys.modules.get('torch') else 'not loaded'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=("export", "run"))
    parser.add_argument(
        "--to", type=Path, default=Path("build/onnx"), help="the folder of the file"
    )
    parser.add_argument("--image", type=Path, default=PHOTO)
    parser.add_argument("--levels", type=int, nargs="+", default=[2, 3], metavar="LEVEL")
    parser.add_argument("--output-stride", type=int, default=8, choices=(8, 16))
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    if args.step == "export":
        export(args.to, args.image, args.levels, args.output_stride)
    elif not (args.to / "levels.onnx").exists():
        parser.error(f"there is no {args.to / 'levels.onnx'}: run the step `export` first")
    else:
        run(args.to, args.image)


if __name__ == "__main__":
    main()
