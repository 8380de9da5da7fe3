"""What is special in the hybrids of convolutions and attention."""

from __future__ import annotations

import copy

import helpers
import pytest
import torch
from helpers import image_batch

import featnet


@pytest.mark.parametrize("stride", [32, 8])
def test_norms_of_next_vit_become_part_of_layers(stride: int) -> None:
    net = featnet.create_model(
        "nextvit_small", depths=(1, 2, 5, 2), features_only=True, output_stride=stride
    )
    helpers.fill_noise(net).double().eval()
    deployed = featnet.reparameterize(net)
    norms = [sum("norm" in n for n, _ in m.named_parameters()) for m in (net, deployed)]
    assert norms[1] < norms[0]
    x = image_batch(64, 96, dtype=torch.float64)
    with torch.inference_mode():
        for a, b in zip(deployed(x), net(x), strict=True):
            assert helpers.error(a, b) < 1e-10


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvit_l1"])
def test_linear_attention_stays_in_float32(name: str) -> None:
    """Sums over a map that half precision cannot hold: finite, and near the float32 numbers."""
    model = featnet.create_model(name, features_only=True).eval()
    helpers.fill_noise(model)
    x = image_batch(256, 256)
    with torch.inference_mode():
        wanted = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model(x)
        half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    for maps in (cast, half):
        assert all(y.isfinite().all() for y in maps)
        assert max(helpers.error(a.float(), b) for a, b in zip(maps, wanted, strict=True)) < 0.1


def test_the_attention_itself_under_autocast() -> None:
    from featnet.layers import relu_attention

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5000, 16) * 30
    wanted = relu_attention(q, k, v, eps=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relu_attention(q, k, v, eps=1e-5), wanted)
