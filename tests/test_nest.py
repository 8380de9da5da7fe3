"""NesT's blocks at sizes that they were not made for."""

from __future__ import annotations

import torch
from helpers import error, noisy, peer_model

import featnet
from featnet.models.nest import BlockAttention

SMALL = dict(embed_dims=(24, 48, 96), depths=(1, 1, 1))


def test_what_fills_blocks_up_is_not_seen() -> None:
    options = dict(qkv_bias=True, attn_drop=0.0, proj_drop=0.0)
    attention, alone = (BlockAttention(12, 3, count=count, **options) for count in (2, 1))
    alone.load_state_dict(attention.state_dict())
    x = torch.randn(1, 9, 7, 12)  # blocks of 5 x 4
    y = attention(x)
    for rows in (slice(0, 5), slice(5, 9)):
        for columns in (slice(0, 4), slice(4, 7)):
            assert torch.allclose(y[:, rows, columns], alone(x[:, rows, columns]), atol=1e-6)


def test_a_checkpoint_of_another_size_is_what_its_own_network_does_there() -> None:
    ours = featnet.create_model("nest_tiny", **SMALL).eval()
    larger = featnet.create_model("nest_tiny", img_size=(256, 288), **SMALL).eval()
    larger.load_state_dict(larger.convert_state_dict(ours.state_dict()))
    assert larger.levels[1].pos_embed.shape == (1, 4, 16 * 18, 48)
    x = torch.randn(1, 3, 256, 288)
    with torch.inference_mode():
        assert error(larger(x), ours(x)) < 1e-5


def test_another_size_is_the_peers_for_that_size() -> None:
    peer = noisy(lambda: peer_model("nest_tiny_jx", img_size=160)).eval()
    ours = featnet.create_model("nest_tiny_jx", img_size=160).eval()
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        assert error(ours(x), peer(x)) < 1e-5
