"""HieraDet: SAM 2's checkpoints, and maps that are no whole number of windows."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import image_batch

import featnet
from featnet.models.hieradet_sam2 import WindowAttention

TINY: dict[str, Any] = dict(embed_dim=16, stages=(1, 1, 2, 1), global_att_blocks=(3,))
LAYOUTS = {
    "authors": (
        "image_encoder.trunk.",
        ((r"mlp\.fc1", "mlp.layers.0"), (r"mlp\.fc2", "mlp.layers.1")),
    ),
    "transformers": (
        "vision_encoder.backbone.",
        (
            (r"mlp\.fc1", "mlp.proj_in"),
            (r"mlp\.fc2", "mlp.proj_out"),
            (r"\.norm(\d)", r".layer_norm\1"),
            (r"patch_embed\.proj", "patch_embed.projection"),
        ),
    ),
}


def make(**options: Any) -> Any:
    model = featnet.create_model("sam2_hiera_tiny", **TINY, **options).eval()
    helpers.fill_noise(model)
    return model


@pytest.mark.parametrize("kind", LAYOUTS)
def test_whole_checkpoints_of_sam2_load(kind: str, tmp_path: Path) -> None:
    model, (prefix, rules) = make(num_classes=0), LAYOUTS[kind]
    state = {
        "image_encoder.neck.convs.0.conv.weight": torch.zeros(2),
        "no_mem_embed": torch.ones(1),
    }
    for key, value in model.state_dict().items():
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        if not key.startswith("head."):  # files of SAM 2 have no norm behind the last block
            state[prefix + key] = value
    torch.save({"model": state}, tmp_path / "sam2.1_hiera_tiny.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that norm
        other = featnet.create_model(
            "sam2_hiera_tiny",
            num_classes=0,
            checkpoint_path=tmp_path / "sam2.1_hiera_tiny.pt",
            **TINY,
        )
    loaded = other.state_dict()
    wanted = model.state_dict()
    assert all(torch.equal(loaded[k], wanted[k]) for k in wanted if not k.startswith("head."))


def test_the_trunk_of_transformers() -> None:
    """Its encoder gives what the network here gives with the weights of its file."""
    helpers.peer("transformers")
    sam2 = pytest.importorskip("transformers.models.sam2.modeling_sam2")
    config = sam2.Sam2HieraDetConfig(
        hidden_size=16,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[7, 7],
    )
    theirs = sam2.Sam2HieraDetModel(config).eval()
    helpers.fill_noise(theirs)
    ours = make(num_classes=0)
    state = {f"vision_encoder.backbone.{k}": v for k, v in theirs.state_dict().items()}
    left = ours.load_state_dict(ours.convert_state_dict(state), strict=False)
    assert not left.unexpected_keys and all(key.startswith("head.") for key in left.missing_keys)
    x = image_batch(256, 320)
    with torch.inference_mode():
        wanted = theirs(x).intermediate_hidden_states
        found = ours.forward_intermediates(x, intermediates_only=True)
    for a, b in zip(found, wanted, strict=True):
        assert helpers.error(a, b.permute(0, 3, 1, 2)) < 1e-5


def test_windows_see_the_zeros_that_fill_them_up() -> None:
    """A map with its zeros written out gives the same; a last row alone is pooled with itself."""
    attention = WindowAttention(4, 8, num_heads=2, window=(4, 4), stride=2)
    x = torch.randn(1, 6, 6, 4)
    whole = torch.nn.functional.pad(x, (0, 0, 0, 2, 0, 2))
    assert torch.equal(attention(x), attention(whole)[:, :3, :3])
    odd = x[:, :5, :5]
    twice = odd[:, [0, 1, 2, 3, 4, 4]][:, :, [0, 1, 2, 3, 4, 4]]
    assert torch.equal(attention(odd), attention(twice))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(window_spec=(8, 4, 14)), "a window for each stage"),
        (dict(q_pool=4), "in all but the first"),
        (dict(window_spec=(7, 4, 14, 7)), "7 is pooled by 2"),
        (dict(weight_init="moco"), "'jax'"),
    ],
)
def test_arguments_that_cannot_be(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        make(**options)
    assert says in str(error.value)
