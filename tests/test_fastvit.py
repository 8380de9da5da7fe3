"""FastViT: its form for inference, its authors' checkpoints."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import error, fill_noise, image_batch, peer_model

import featnet

SMALL: dict[str, Any] = dict(layers=(1, 1, 1, 1), embed_dims=(32, 64, 64, 128), num_classes=6)
every_mixer = pytest.mark.parametrize("name", ["fastvit_t8", "fastvit_mci0"])


@every_mixer
def test_deployed_checkpoints_of_the_peer(name: str) -> None:
    peer = fill_noise(peer_model(name, **SMALL)).eval()
    x = image_batch(64, 96)
    for module in list(peer.modules())[::-1]:
        if hasattr(module, "reparameterize") and getattr(module, "reparam_conv", 0) is None:
            module.reparameterize()
    ours = featnet.reparameterize(featnet.create_model(name, **SMALL).eval())
    ours.load_state_dict(peer.state_dict())
    with torch.inference_mode():
        assert error(ours(x), peer(x)) < 1e-5


@every_mixer
@pytest.mark.parametrize("stride", [32, 8])
def test_one_convolution_equals_its_branches(name: str, stride: int) -> None:
    options = {k: v for k, v in SMALL.items() if k != "num_classes"}
    net = featnet.create_model(name, features_only=True, output_stride=stride, **options)
    fill_noise(net).eval()
    deployed, x = featnet.reparameterize(net), image_batch(65, 96)
    kinds = {type(m).__name__ for m in deployed.modules()}
    assert "RepMixer" in kinds and not any("reparam" in n for n, _ in net.named_modules())
    with torch.inference_mode():
        for ours, theirs in zip(deployed(x), net(x), strict=True):
            assert error(ours, theirs) < 1e-4
    again = featnet.reparameterize(deployed)
    assert list(again.state_dict()) == list(deployed.state_dict())


def old_key(key: str) -> str:
    """A key under the authors' names: one flat list, in which what halves the size has places."""
    places = {"0": 0, "1": 2, "2": 4, "3": 7}
    ends = {"1": 1, "2": 3, "3": 5}
    key = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"network.{places[m[1]]}.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"network.{ends[m[1]]}.", key)
    key = re.sub(r"^stages\.3\.pos_emb\.pos_enc\.", "network.6.pe.", key)
    for new, old in (
        ("stem.", "patch_embed."),
        ("conv_kxk", "rbr_conv"),
        ("conv_scale", "rbr_scale"),
        ("identity", "rbr_skip"),
        ("large_conv", "lkb_origin"),
        ("final_conv", "conv_exp"),
        ("mlp", "convffn"),
        ("se.fc1", "se.reduce"),
        ("se.fc2", "se.expand"),
        (".gamma", ""),
        ("head.fc.", "head."),
    ):
        key = key.replace(new, old)
    return key


def test_mobileclip_checkpoints() -> None:
    net = fill_noise(featnet.create_model("fastvit_mci0", **SMALL)).eval()
    with torch.no_grad():
        net.head.fc.bias.zero_()
    state = dict(net.state_dict())
    plain = {old_key(k): v for k, v in state.items()}
    clip = {f"image_encoder.model.{k}": v for k, v in plain.items() if "head" not in k}
    clip["image_encoder.model.head.proj"] = state["head.fc.weight"].T
    clip["text_encoder.positions"] = torch.zeros(1)
    trained = {f"module.visual.trunk.{k}": v for k, v in state.items()}
    peers = pytest.importorskip("timm.models.fastvit")
    peer = peer_model("fastvit_mci0", **SMALL)
    for other in (plain, clip, trained, state):
        ours = net.convert_state_dict(other)
        theirs = peers.checkpoint_filter_fn(dict(other), peer)
        assert ours.keys() == state.keys() == theirs.keys()
        assert all(torch.equal(ours[k], v) and torch.equal(theirs[k], v) for k, v in state.items())
