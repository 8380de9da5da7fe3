"""NASNet and PNASNet: sizes, and a shift that grows with the map."""

from __future__ import annotations

import pytest
import torch

import featnet
from featnet.layers.cells import Factorized, SameAvgPool2d, Shift


@pytest.mark.parametrize("name", ["nasnetalarge", "pnasnet5large"])
def test_sizes(name: str) -> None:
    info = featnet.feature_info(name)
    assert [height for height, _ in info.sizes((331, 331))] == [165, 83, 42, 21, 11]


def test_a_shift_reads_the_same_positions_of_a_denser_map() -> None:
    dense, shift = torch.arange(24.0).reshape(1, 1, 4, 6), Shift()
    sparse = dense[..., ::2, ::2]
    wanted = shift(sparse)
    assert torch.equal(shift.dilate(2, (1, 1))(dense)[..., ::2, ::2], wanted)
    assert wanted[0, 0, 0].tolist() == [14.0, 16.0, 0.0]


def test_a_dilated_average_is_that_of_each_map() -> None:
    pool, x = SameAvgPool2d(3, 2), torch.rand(1, 2, 9, 9, dtype=torch.float64)
    wanted = pool(x[..., ::2, ::2])
    pool.dilate(2, (2, 2))
    torch.testing.assert_close(pool(x)[..., ::2, ::2], wanted)


def test_both_halves_of_a_map_are_seen() -> None:
    """Even positions by one path, odd ones by the other."""
    half = Factorized(1, 1).eval()
    for path in (half.get_submodule("path_1.conv"), half.get_submodule("path_2.conv")):
        torch.nn.init.ones_(path.get_parameter("weight"))
    y = half(torch.arange(16.0).reshape(1, 1, 4, 4))
    assert (y[0, 0] * 1.001).floor().tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert (y[0, 1] * 1.001).floor().tolist() == [[5.0, 7.0], [13.0, 15.0]]
