"""discover over other people's networks: levels, channels and reductions as they are known."""

from __future__ import annotations

import helpers
import pytest
import torch
import zoo

import featnet


@pytest.mark.parametrize("name", zoo.TRANSFORMERS)
def test_transformers(name: str) -> None:
    """The levels are what the configuration says, and what comes out is what the level says."""
    case = zoo.TRANSFORMERS[name]
    model = case.build()
    info = featnet.discover(model, case.size)
    assert [(f.channels, f.reduction) for f in info] == case.levels, info
    with torch.no_grad():
        maps = featnet.FeatureListNet(model, feature_info=info)(helpers.image_batch(*case.size))
    assert [y.shape[1] for y in maps] == [c for c, _ in case.levels]
    assert [tuple(y.shape[2:]) for y in maps] == info.sizes(case.size)
    assert [case.size[0] // y.shape[2] for y in maps] == [r for _, r in case.levels]
