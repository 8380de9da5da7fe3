"""GC ViT at sizes and strides that it was not made for."""

from __future__ import annotations

from typing import Any

import torch
from helpers import error, fill_noise, image_batch, law_error, noisy, peer_model

import featnet

SMALL: dict[str, Any] = dict(depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), embed_dim=16)


def test_another_size_is_the_peers_for_that_size() -> None:
    size = (128, 160)
    peer = noisy(lambda: peer_model("gcvit_xxtiny", img_size=size)).eval()
    ours = featnet.create_model("gcvit_xxtiny", img_size=size).eval()
    ours.load_state_dict(peer.state_dict())
    x = image_batch(*size)
    with torch.inference_mode():
        assert error(ours(x), peer(x)) < 1e-5


def test_a_checkpoint_of_another_size_is_what_its_own_network_does_there() -> None:
    ours = fill_noise(featnet.create_model("gcvit_xxtiny", **SMALL)).eval()
    larger = featnet.create_model("gcvit_xxtiny", img_size=(256, 288), **SMALL).eval()
    larger.load_state_dict(larger.convert_state_dict(ours.state_dict()))
    assert larger.stages[0].blocks[0].attn.rel_pos.relative_position_bias_table.shape[0] == 15 * 17
    x = image_batch(256, 288)
    with torch.inference_mode():
        assert error(larger(x), ours(x)) < 1e-5


def test_the_query_is_one_of_each_image() -> None:
    ours = fill_noise(featnet.create_model("gcvit_xxtiny", **SMALL)).eval()
    x = image_batch(97, 130, batch=3)
    with torch.inference_mode():
        assert error(ours(x), torch.cat([ours(image[None]) for image in x])) < 1e-5


def test_the_law_holds_with_all_that_sees_the_whole_map() -> None:
    """Queries and gates are of each interleaved map."""
    ours = fill_noise(featnet.create_model("gcvit_xxtiny", **SMALL)).double().eval()
    dense = featnet.create_model("gcvit_xxtiny", features_only=True, output_stride=8, **SMALL)
    dense = dense.double().eval()
    dense.load_state_dict({key: ours.state_dict()[key] for key in dense.state_dict()})
    for size in ((64, 96), (97, 65)):
        x = image_batch(*size, dtype=torch.float64)
        with torch.inference_mode():
            maps = ours.forward_intermediates(x, intermediates_only=True)
            assert law_error(dense(x), maps, [1, 1, 2, 4]) < 1e-12
