"""DLA: sizes that the peer refuses, and the authors' checkpoints."""

from __future__ import annotations

import torch
from helpers import image_batch, noisy, peer_model
from torch import nn

import featnet


def test_every_size_has_maps() -> None:
    """Pools keep the last row of an odd map, as the strided convolutions beside them do."""
    net = featnet.create_model("dla46_c", features_only=True).eval()
    pools = [module for module in net.modules() if isinstance(module, nn.MaxPool2d)]
    assert len(pools) == 6 and all(pool.ceil_mode for pool in pools)
    for size in ((225, 193), (33, 1)):
        maps = net(image_batch(*size))
        assert [tuple(y.shape[-2:]) for y in maps] == net.feature_info.sizes(size)
    sizes = net.feature_info.sizes((225, 193))
    assert sizes == [(225, 193), (113, 97), (57, 49), (29, 25), (15, 13), (8, 7)]


def test_projections_that_nothing_reads_are_left_out() -> None:
    """The authors' trees of more than two blocks have one; the peer loads without them, too."""
    peer = noisy(lambda: peer_model("dla46_c")).eval()
    state = dict(peer.state_dict())
    unread = {"level3.project.0.weight": torch.rand(64, 64, 1, 1)}
    unread["level3.project.1.weight"] = torch.rand(64)
    model = featnet.create_model("dla46_c").eval()
    model.load_state_dict(model.convert_state_dict({**state, **unread}), strict=True)
    x = image_batch(64, 64)
    assert torch.equal(model(x), peer(x))
