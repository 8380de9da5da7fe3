"""``python -m benchmarks.int8``: what int8 would change, on trained weights.

``tf_efficientnet_lite0`` of the extra ``demo``, which was made for int8, is written as ONNX and
quantised by onnxruntime: weights by channel, activations calibrated on crops of the photographs in
``examples/``. On other crops of them: how often the first class is the same, the cosine between the
maps, and the speed, beside float32 in the same engine.
"""

from __future__ import annotations

import importlib
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

import featnet
from featnet.checkpoints.demo import DEMO_MODEL
from featnet.deploy.exporting import onnx_program

from .command import parsed, parser_of, report
from .common import Table, alternate

# Options of onnxruntime.quantization.quantize_static. Processors without VNNI add pairs of products
# up in 16 bits, which may overflow but with weights of 7 bits.
WAYS = {
    "smallest and largest": {"calibrate_method": "MinMax"},
    "the same, weights of 7 bits": {"calibrate_method": "MinMax", "reduce_range": True},
    "entropy, weights of 7 bits": {"calibrate_method": "Entropy", "reduce_range": True},
    "percentile, weights of 7 bits": {"calibrate_method": "Percentile", "reduce_range": True},
}


class Everything(nn.Module):
    """The classes' scores and all levels of a network."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, C, H, W) -> scores (N, classes), then maps."""
        last, maps = self.model.forward_intermediates(x)
        return self.model.forward_head(last), *maps


class Crops:
    """Inputs of one image each, which onnxruntime's calibration asks for one after the other."""

    def __init__(self, inputs: torch.Tensor) -> None:
        self.inputs = iter(inputs.split(1))

    def get_next(self) -> dict[str, Any] | None:
        """The next input by its name, None after the last."""
        x = next(self.inputs, None)
        return None if x is None else {"image": x.numpy()}


def crops_of(transform: Any, count: int, seed: int) -> torch.Tensor:
    """Inputs (count, C, H, W): a third to all of a photograph, anywhere in it."""
    rng = random.Random(seed)
    folder = Path(__file__).parents[1] / "examples"
    photos = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.[pj][np]g"))]
    found = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = round(min(photo.size) * rng.uniform(1 / 3, 1))
        left, top = rng.randrange(photo.width - side + 1), rng.randrange(photo.height - side + 1)
        found.append(photo.crop((left, top, left + side, top + side)))
    inputs: torch.Tensor = transform(found)
    return inputs


def quantised(program: bytes, inputs: torch.Tensor, way: dict[str, Any]) -> bytes:
    """An ONNX program in int8."""
    tools: Any = importlib.import_module("onnxruntime.quantization")
    options = {**way, "calibrate_method": tools.CalibrationMethod[way["calibrate_method"]]}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("float.onnx", "prepared.onnx", "int8.onnx")]
        paths[0].write_bytes(program)
        tools.shape_inference.quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        tools.quantize_static(paths[1], paths[2], Crops(inputs), per_channel=True, **options)
        return paths[2].read_bytes()


def run(threads: int, calibrated: int, tested: int) -> Iterator[Table]:
    """A row for each way of calibrating."""
    onnxruntime: Any = importlib.import_module("onnxruntime")
    model: Any = featnet.create_model(DEMO_MODEL, checkpoint_path=featnet.demo_weights()).eval()
    transform = featnet.create_transform(model)
    seen, new = crops_of(transform, calibrated, 0), crops_of(transform, tested, 1)
    program = onnx_program(Everything(model).eval(), new[:1])

    def session(content: bytes) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(content, options)

    def outputs(net: Any) -> list[torch.Tensor]:
        each = [net.run(None, {"image": x.numpy()}) for x in new.split(1)]
        return [torch.cat([*map(torch.from_numpy, same)]) for same in zip(*each, strict=True)]

    full, rows = session(program), []
    x, wanted = new[:1].numpy(), outputs(full)
    for name, way in WAYS.items():
        net = session(quantised(program, seen, way))
        found = outputs(net)
        same = (found[0].argmax(1) == wanted[0].argmax(1)).float().mean().item()
        cosines = [
            torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()
            for a, b in zip(found[1:], wanted[1:], strict=True)
        ]
        times = alternate(
            {
                "float32": lambda: full.run(None, {"image": x}),
                "int8": lambda n=net: n.run(None, {"image": x}),
            },
            rounds=9,
        )
        shown = ", ".join(f"{cosine:.3f}" for cosine in cosines)
        cells = [times["float32"].cells[0], *times["int8"].cells]
        rows.append([name, f"{same:.0%}", shown, *cells])
    note = (
        f"{DEMO_MODEL}, one image of {x.shape[2]} x {x.shape[3]}; calibrated on {calibrated} crops "
        f"of the photographs, compared on {tested} others."
    )
    header = (
        "range of activations", "the same first class", "cosine of the levels", "float32, ms",
        "int8, ms", "times float32's speed", "middle half",
    )  # fmt: skip
    yield Table("int8 beside float32", header, rows, note, "int8")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, report."""
    parser = parser_of("benchmarks.int8", __doc__)
    parser.add_argument("--calibrated", type=int, default=64, help="crops (default: 64)")
    parser.add_argument("--tested", type=int, default=200, help="crops (default: 200)")
    args = parsed(parser, argv)
    tables = run(args.threads, args.calibrated, args.tested)
    return report(args, tables, ("onnx", "onnxruntime"))


if __name__ == "__main__":
    sys.exit(main())
