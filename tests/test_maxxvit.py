"""MaxViT and CoAtNet at sizes that their tables of distances were not made for."""

from __future__ import annotations

import warnings
from typing import Any

import helpers
import pytest
import torch
from helpers import image_batch

import featnet
from featnet.layers import relative_bias
from featnet.models._maxxvit_blocks import AttentionSettings, PartitionAttention

# One of each kind of distances: a table, TensorFlow's, an MLP
BIASES = ("coatnet_nano_rw_224", "maxvit_tiny_tf_224", "maxvit_rmlp_pico_rw_256")


@pytest.mark.parametrize("name", BIASES)
def test_built_for_another_size(name: str, timm: Any) -> None:
    """Tables of a file are resampled once, as timm resamples them."""
    native = helpers.peer_model(name).eval()
    helpers.fill_noise(native)
    state, size = native.state_dict(), (160, 160)
    peer = helpers.peer_model(name, img_size=size).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = timm.models.maxxvit.checkpoint_filter_fn(dict(state), peer)
    peer.load_state_dict(wanted)
    ours = featnet.create_model(name, img_size=size).eval()
    found = ours.convert_state_dict(state)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in wanted.items()}
    ours.load_state_dict(found)
    x = image_batch(*size)
    with torch.inference_mode():
        assert helpers.error(ours(x), peer(x)) < 1e-5


@pytest.mark.parametrize("name", ["coatnet_nano_rw_224", "coatnet_rmlp_nano_rw_224"])
def test_attention_over_the_map_at_another_size(name: str, timm: Any) -> None:
    """After it was built: as timm's network that is built for that size, rectangles too."""
    ours, size = featnet.create_model(name).eval(), (160, 224)
    helpers.fill_noise(ours)
    peer = helpers.peer_model(name, img_size=size).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = timm.models.maxxvit.checkpoint_filter_fn(dict(ours.state_dict()), peer)
    peer.load_state_dict(state)
    x = image_batch(*size)
    with torch.inference_mode():
        assert helpers.error(ours(x), peer(x)) < 1e-5


@pytest.mark.parametrize("grid", [False, True])
def test_nobody_sees_what_was_filled_in(grid: bool) -> None:
    """A map that is smaller than a window: attention over the map, with its distances."""
    torch.manual_seed(0)
    settings = AttentionSettings(dim_head=8)
    block = PartitionAttention(
        16, settings=settings, window=(7, 7), grid=grid, drop_path=0.0
    ).double()
    helpers.fill_noise(block)
    x = torch.randn(2, 4, 5, 16, dtype=torch.float64)
    attn: Any = block.attn
    table = attn.rel_pos.relative_position_bias_table.reshape(13, 13, 2)[3:-3, 2:-2]
    q, k, v = attn.qkv(x.flatten(1, 2)).reshape(2, 20, 2, 3, 8).permute(3, 0, 2, 1, 4)
    shares = (q @ k.transpose(-1, -2) * 8**-0.5 + relative_bias(table, (4, 5))).softmax(-1)
    wanted = attn.proj((shares @ v).transpose(1, 2).reshape(2, 4, 5, 16))
    found = block.partitioned(x, attn, (7, 7), grid=grid)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(block_type=("C", "C", "T")), "equally many"),
        (dict(block_type=("C", "C", "T", "X")), "block_type='X': one of 'C', 'T'"),
        (dict(weight_init="vit"), "'vit_eff'"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(featnet.errors.ArgumentError, match=message):
        featnet.create_model("coatnet_nano_rw_224", **options)
