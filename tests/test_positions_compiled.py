"""Networks with a table of positions train under torch.compile, at any size."""

from __future__ import annotations

from collections.abc import Iterator

import helpers
import pytest
import torch
from torch import nn

from featnet.layers import positions


class Adds(nn.Module):
    """Adds a table of positions, learned for 7 x 7."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 49, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[2], x.shape[3])
        table = positions.resample_positions(self.table, size, old=(7, 7))
        return x.flatten(2).transpose(1, 2) * table


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_second_size_in_training() -> None:
    model = Adds()
    fast = torch.compile(model, backend="aot_eager", fullgraph=True)
    for size in ((9, 12), (5, 4), (14, 3)):
        x = helpers.image_batch(*size)
        grads = []
        for net in (model, fast):
            y = net(x)
            grads.append((y, *torch.autograd.grad(y.square().sum(), model.table)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
