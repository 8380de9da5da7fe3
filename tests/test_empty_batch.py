"""A batch without images gives an output without rows, in every family."""

from __future__ import annotations

import copy

import helpers
import pytest
import torch

import featnet
from featnet.errors import ArgumentError


@pytest.mark.parametrize("name", helpers.families())
@torch.no_grad()
def test_an_empty_batch(name: str) -> None:
    model = copy.deepcopy(helpers.meta_model(name)).eval()
    size = helpers.sizes(name)[0]
    try:
        y = model(torch.empty(0, 3, *size, device="meta"))
    except TypeError as error:  # torch resamples no empty batch on the meta device
        assert "cond must be a bool" in str(error)
        y = model.to_empty(device="cpu")(torch.empty(0, 3, *size))
    assert y.shape[0] == 0


def test_a_sparse_batch_is_answered() -> None:
    net = featnet.create_model("test_resnet", features_only=True).eval()
    with pytest.raises(ArgumentError, match=r"sparse.*to_dense"):
        net(helpers.image_batch(32, 32).to_sparse())
