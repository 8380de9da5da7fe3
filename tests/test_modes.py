"""The modes in which people run backbones: exported, compiled, channels_last, half precision."""

from __future__ import annotations

import os
import warnings
from typing import Any

import helpers
import pytest
import torch
from helpers import fill_noise, picture, representatives

import featnet

DYNAMIC = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)


def smallest() -> list[str]:
    """The smallest variants of the ten smallest convolutional families; with FEATNET_EXHAUSTIVE=1 every
    representative. Tracing takes many seconds a model."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return list(representatives())
    best: dict[str, str] = {}
    for name in sorted(representatives(), key=helpers.parameter_count):
        if not helpers.attends(helpers.meta_model(name)):  # maps of tokens have their own strides
            best.setdefault(featnet.registry._module_of(name), name)
    return list(best.values())[:10]


def list_net(name: str, **options: Any) -> Any:
    return fill_noise(featnet.create_model(
        name, features_only=True, **helpers.small(name), **options
    )).eval()


@pytest.mark.parametrize("name", smallest())
def test_export(name: str) -> None:
    """Law 7: dynamo takes the whole forward as one graph, whose sizes are free."""
    net, sizes = list_net(name), helpers.sizes(name)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (picture(*sizes[0], batch=2),), dynamic_shapes=DYNAMIC, strict=True)
        x = picture(*sizes[-1], batch=3)
        found = program.module()(x)
    with torch.no_grad():
        for a, b in zip(found, net(x), strict=True):
            assert helpers.error(a, b) <= 1e-6


@pytest.mark.parametrize("name", smallest())
def test_bfloat16_in_channels_last(name: str) -> None:
    net = list_net(name).to(torch.bfloat16)
    for parameter in net.parameters():
        if parameter.ndim == 4:  # Module.to(memory_format=) refuses where other ranks are too
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    x = picture(*helpers.sizes(name)[0], batch=2).bfloat16().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        maps = net(x)
    for level, y in zip(net.feature_info, maps, strict=True):
        assert y.dtype == torch.bfloat16 and torch.isfinite(y).all(), level
