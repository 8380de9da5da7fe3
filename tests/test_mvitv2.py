"""MViTv2: tables of distances at other sizes than the one that they were made for."""

from __future__ import annotations

from typing import Any

import helpers
import pytest
import torch
from helpers import image_batch

import featnet
from featnet.layers import distances

SMALL: dict[str, Any] = dict(depths=(1, 1, 1, 1), embed_dim=16)


@pytest.mark.parametrize(("queries", "keys"), [(8, 4), (9, 3), (4, 8), (8, 15), (5, 5), (1, 1)])
def test_a_distance_counts_positions_of_the_finer_side(queries: int, keys: int) -> None:
    side = max(queries, keys)
    table = torch.arange(2.0 * side - 1)[:, None]
    wanted = torch.empty(queries, keys)
    for i in range(queries):
        for j in range(keys):
            offset = i * max(keys / queries, 1) + (keys - 1 - j) * max(queries / keys, 1)
            wanted[i, j] = int(offset)
    assert torch.equal(distances(table, queries, keys, coarser=queries > keys)[..., 0], wanted)


def test_another_size_is_the_peers_for_that_size(timm: Any) -> None:
    """Built for 96 pixels, from the weights for 224, by its own conversion."""
    config = timm.models.mvitv2.MultiScaleVitCfg(**SMALL)
    peer = timm.models.mvitv2.MultiScaleVit(config, img_size=(96, 96)).eval()
    ours = featnet.create_model("mvitv2_tiny", **SMALL).eval()
    helpers.fill_noise(ours)
    state = timm.models.mvitv2.checkpoint_filter_fn(dict(ours.state_dict()), peer)
    peer.load_state_dict(state)
    other = featnet.create_model("mvitv2_tiny", img_size=96, **SMALL).eval()
    other.load_state_dict(other.convert_state_dict(ours.state_dict()))
    x = image_batch(96, 96)
    with torch.inference_mode():
        wanted = peer(x)
        assert helpers.error(ours(x), wanted) < 1e-5
        assert helpers.error(other(x), wanted) < 1e-5


def test_hooks_on_stages_read_maps() -> None:
    net = featnet.create_model("mvitv2_small_cls", **SMALL)
    levels = net.feature_info.module_name()
    assert levels == [f"stages.{i}" for i in range(4)]
    hooked = featnet.FeatureHookNet(net, out_indices=(0, 3)).eval()
    shapes = [tuple(y.shape) for y in hooked(image_batch(64, 96))]
    assert shapes == [(1, 16, 16, 24), (1, 128, 2, 3)]


def test_a_class_token_for_each_interleaved_map() -> None:
    """Each is what the image that its map begins at gives; the first is the original's."""
    net = featnet.create_model("mvitv2_small_cls", **SMALL).eval()
    helpers.fill_noise(net)
    dense = featnet.create_model("mvitv2_small_cls", output_stride=8, **SMALL).eval()
    dense.load_state_dict(net.state_dict())
    x = image_batch(64, 96)
    with torch.inference_mode():
        (a,), (b,) = (
            m.forward_intermediates(x, (3,), intermediates_only=True, return_prefix_tokens=True)
            for m in (net, dense)
        )
        assert helpers.error(net(x), dense(x)) < 1e-5
    assert helpers.error(a[1], b[1]) < 1e-5 and helpers.error(a[0], b[0][..., ::4, ::4]) < 1e-5
