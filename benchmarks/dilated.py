"""Dilated convolutions in four forms that give the same numbers.

    python -m benchmarks.dilated [--device cpu]

For the shapes of networks at output stride 8: the dense convolution (no dilation), torch's dilated
one, torch's on a map that was padded before (:class:`featnet.dilation.windows.PaddedConv2d`), and
the dense one on each of the d * d interleaved maps. One thread on a CPU; the quickest of several
rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .common import Table, seconds_of

# channels, groups, kernel, dilation, side of the map
SHAPES = (
    (512, 1, 3, 4, 40),
    (1024, 32, 3, 4, 40),
    (672, 672, 3, 4, 40),
    (672, 672, 5, 2, 40),
    (960, 960, 5, 4, 40),
    (384, 384, 7, 2, 40),
    (768, 768, 7, 4, 40),
)


def interleaved(x: torch.Tensor, weight: torch.Tensor, dilation: int, groups: int) -> torch.Tensor:
    """The dilated convolution as a dense one over the maps of every ``dilation``-th position."""
    (n, _, height, width), d = x.shape, dilation
    x = F.pad(x, (0, -width % d, 0, -height % d))
    rows, columns = x.shape[-2] // d, x.shape[-1] // d
    maps = x.view(n, -1, rows, d, columns, d).permute(3, 5, 0, 1, 2, 4).flatten(0, 2)
    found = F.conv2d(maps, weight, padding=weight.shape[-1] // 2, groups=groups)
    found = found.view(d, d, n, -1, rows, columns).permute(2, 3, 4, 0, 5, 1)
    return found.reshape(n, -1, rows * d, columns * d)[..., :height, :width]


def forms(
    x: torch.Tensor, weight: torch.Tensor, dilation: int, groups: int
) -> dict[str, Callable[[], torch.Tensor]]:
    """The four, by name."""
    half = weight.shape[-1] // 2
    reach, sides = half * dilation, (half * dilation,) * 4
    return {
        "dense": lambda: F.conv2d(x, weight, padding=half, groups=groups),
        "dilated": lambda: F.conv2d(x, weight, None, 1, reach, dilation, groups),
        "padded before": lambda: F.conv2d(F.pad(x, sides), weight, None, 1, 0, dilation, groups),
        "interleaved": lambda: interleaved(x, weight, dilation, groups),
    }


@torch.inference_mode()
def run(device: str, rounds: int = 10) -> Table:
    """Milliseconds of each form, by shape, dtype and memory format."""
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for channels, groups, kernel, dilation, side in SHAPES:
                x = torch.randn(1, channels, side, side, device=device, dtype=dtype)
                x = x.contiguous(memory_format=memory_format)
                weight = torch.randn(channels, channels // groups, kernel, kernel, device=device)
                works = forms(x, weight.to(dtype), dilation, groups)
                for name in ("padded before", "interleaved") if dtype == torch.float32 else ():
                    torch.testing.assert_close(
                        works[name](), works["dilated"](), rtol=1e-3, atol=1e-3
                    )
                best = [
                    min(seconds_of(work, device) for _ in range(rounds)) for work in works.values()
                ]
                layout = "NCHW" if memory_format == torch.contiguous_format else "channels_last"
                groups_of = "depthwise" if groups == channels else f"{groups} groups"
                shape = f"{channels}, {groups_of}, {kernel} x {kernel}, dilation {dilation}"
                what = [str(dtype).removeprefix("torch."), layout, shape]
                rows.append([*what, *(f"{seconds * 1e3:.2f}" for seconds in best)])
    return Table(
        "Dilated convolutions, ms", ["dtype", "format", "channels, groups, kernel", *works], rows
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dilated", description=__doc__)
    parser.add_argument("--device", default="cpu", help="default: cpu")
    torch.set_num_threads(1)
    print(run(parser.parse_args().device))
