"""CSPNeXt: OpenMMLab's checkpoints, and pools side by side under an output stride."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import image_batch, noisy, peer_model
from torch import nn

import featnet


@pytest.mark.parametrize("detector", [False, True])
def test_openmmlab_checkpoints(detector: bool) -> None:
    """Stages are counted from one there; a detector holds the backbone beside other parts."""
    peer: Any = noisy(lambda: peer_model("cspnext_tiny")).eval()
    state = {
        re.sub(r"^stages\.(\d+)", lambda m: f"stage{int(m[1]) + 1}", key): value
        for key, value in peer.state_dict().items()
    }
    if detector:
        state = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("head.")}
        state["neck.reduce_layers.0.conv.weight"] = torch.rand(1)
        state["bbox_head.rtm_cls.0.bias"] = torch.rand(1)
    model = featnet.create_model("cspnext_tiny", num_classes=0 if detector else 1000).eval()
    model.load_state_dict(model.convert_state_dict(state), strict=True)
    x = image_batch(65, 97)
    theirs = peer.forward_features(x)
    assert torch.equal(model.forward_features(x), theirs)
    own = peer.state_dict()
    assert model.convert_state_dict(own).keys() == own.keys()


def test_pools_side_by_side_are_dilated() -> None:
    net = featnet.create_model("cspnext_tiny", features_only=True, output_stride=8)
    pools = [module for module in net.modules() if isinstance(module, nn.MaxPool2d)]
    assert [pool.kernel_size for pool in pools] == [5, 9, 13]
    assert {pool.dilation for pool in pools} == {(4, 4)}
