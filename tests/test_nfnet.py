"""NFNet: gains of activations, and standardised weights that become plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import error, fill_noise, image_batch
from torch import nn

import featnet
from featnet.errors import ArgumentError
from featnet.layers import StdConv2d
from featnet.models.nfnet import GAINS


@pytest.mark.parametrize("act", sorted(GAINS))
def test_a_gain_keeps_the_variance(act: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(1_000_000, dtype=torch.float64)
    y = featnet.layers.get_act(act)()(x) * GAINS[act]
    assert abs(y.std().item() - 1) < 0.01


def test_an_activation_without_a_known_gain() -> None:
    with pytest.raises(ArgumentError, match="act_layer='relu7'.*Did you mean 'relu'"):
        featnet.create_model("test_nfnet", act_layer="relu7")
    with pytest.raises(ArgumentError, match="act_layer="):
        featnet.create_model("test_nfnet", act_layer=nn.ReLU)


@pytest.mark.parametrize("name", ["test_nfnet", "nf_resnet26"])
@pytest.mark.parametrize("same", [False, True])
def test_weights_are_folded(name: str, same: bool) -> None:
    """At an output stride and with SAME padding as well."""
    net: Any = featnet.create_model(
        name, features_only=True, output_stride=8, same_padding=same, scaled_acts=same
    )
    net = fill_noise(net).eval()
    plain: Any = featnet.reparameterize(net)
    fast: Any = featnet.optimize(net)
    for other in (plain, fast):
        assert not any(isinstance(module, StdConv2d) for module in other.modules())
    assert not any(key.endswith("gain") for key in plain.state_dict())
    x = image_batch(65, 96)
    for found, quick, wanted in zip(plain(x), fast(x), net(x), strict=True):
        assert error(found, wanted) < 1e-5 and error(quick, wanted) < 1e-4
