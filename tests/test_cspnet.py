"""CspNet: levels and sizes that the families of its file do not share."""

from __future__ import annotations

import pytest
import torch
from helpers import image_batch

import featnet
from featnet.layers import BlurPool2d, SqueezeExcite


def test_no_level_is_lost() -> None:
    """The peer's extractors leave the last map of this one out, by its name."""
    net = featnet.create_model("sedarknet21", features_only=True, device="meta")
    assert net.feature_info.reduction() == [1, 2, 4, 8, 16, 32]
    assert net.feature_info.channels()[-1] == 1024


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("darknet17", [(65, 97), (33, 49), (17, 25), (9, 13), (5, 7), (3, 4)]),
        ("darknetaa53", [(65, 97), (32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]),
        ("cs3darknet_focus_s", [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]),
        ("cs3darknet_s", [(33, 49), (17, 25), (9, 13), (5, 7), (3, 4)]),
    ],
)
def test_odd_sizes(name: str, sizes: list[tuple[int, int]]) -> None:
    """Even kernels and average pools drop the last row of an odd map, odd kernels keep it."""
    assert featnet.feature_info(name).sizes((65, 97)) == sizes


def test_a_gate_has_the_activation_of_its_network() -> None:
    for name, act in (("sedarknet21", torch.nn.LeakyReLU), ("cs3sedarknet_l", torch.nn.SiLU)):
        model = featnet.create_model(name, device="meta")
        gates = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
        assert gates and all(isinstance(gate.act, act) for gate in gates)


def test_blurs_stride_in_place_of_convolutions() -> None:
    net = featnet.create_model("cspresnet50", features_only=True, aa_layer="blur").eval()
    blurs = [module for module in net.modules() if isinstance(module, BlurPool2d)]
    assert [blur.channels for blur in blurs] == [64, 128, 256, 512]  # the stem's pool, three stages
    maps = net(image_batch(65, 97))
    assert [tuple(y.shape[-2:]) for y in maps] == net.feature_info.sizes((65, 97))
