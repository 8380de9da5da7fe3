"""What only a CUDA device can show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import helpers
import pytest
import torch

import featnet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NAMES = ("resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224")
TOLERANCE = 0.05  # of bfloat16, relative to the largest value


def net_of(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    net = featnet.create_model(name, features_only=True, **options)
    return helpers.fill_noise(net).eval().to("cuda", dtype)


def batch(dtype: torch.dtype = torch.float32, side: int = 224) -> torch.Tensor:
    return helpers.image_batch(side, side, batch=2).to("cuda", dtype)


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert helpers.error(a.float(), b.float()) <= tolerance


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torch.inference_mode():
        yield
    torch.compiler.reset()


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("compiled", [False, True])
def test_dilated_in_bfloat16_and_channels_last(stride: int, compiled: bool) -> None:
    wanted = net_of("resnet18", output_stride=stride)(batch())
    net = net_of("resnet18", torch.bfloat16, output_stride=stride)
    net = net.to(memory_format=torch.channels_last)
    call = torch.compile(net, fullgraph=True) if compiled else net
    maps = call(batch(torch.bfloat16).to(memory_format=torch.channels_last))
    assert_close(maps, wanted, TOLERANCE)
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in maps)


@pytest.mark.parametrize("name", NAMES)
def test_a_cuda_graph_replays(name: str) -> None:
    net, x = net_of(name), batch()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # whatever is chosen or kept at the first calls
        for _ in range(3):
            net(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        maps = net(x)
    x.copy_(batch().flip(3))
    graph.replay()
    assert_close(maps, net(x), 1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["list", "hook"])
def test_no_forward_waits_for_the_device(name: str, kind: str) -> None:
    net, x = net_of(name, feature_cls=kind), batch()
    net(x)  # tables are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        net(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_optimized() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        net = net_of("resnet18", dtype)
        made = featnet.optimize(net, example=batch(dtype))
        assert made.optimize_report.folded and not made.optimize_report.packed
        assert_close(
            made(batch(dtype)), net(batch(dtype)), 1e-2 if dtype == torch.float32 else 0.05
        )
