"""A batch without images gives an output without rows, in every family."""

from __future__ import annotations

import copy

import helpers
import pytest
import torch


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
