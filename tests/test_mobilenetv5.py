"""MobileNetV5: the fusion of its last levels, Gemma's checkpoints."""

from __future__ import annotations

import pytest
import torch
from helpers import error, fill_noise

import featnet
from featnet.layers import get_act, get_norm
from featnet.layers.mobile_spec import MobileSettings
from featnet.models.mobilenetv5 import Fusion


@pytest.mark.parametrize("size", [(16, 32), (48, 16), (24, 16), (8, 12)])
def test_fusion_at_every_size(size: tuple[int, int]) -> None:
    peers = pytest.importorskip("timm.models.mobilenetv5")
    settings = MobileSettings(
        act=get_act("gelu_tanh"),
        norm=get_norm("rmsnorm2d"),
        attention=torch.nn.Identity,
        smooth=None,
        pad_type="same",
        se_of_input=True,
        layer_scale=1e-5,
    )
    ours = fill_noise(Fusion(24, 32, settings=settings)).eval()
    peer = peers.MobileNetV5MultiScaleFusionAdapter(24, 32, output_resolution=16).eval()
    peer.load_state_dict(ours.state_dict())
    fine, coarse = torch.randn(2, 8, *size), torch.randn(2, 16, size[0] // 2, size[1] // 2)
    with torch.inference_mode():
        assert torch.equal(ours(fine, coarse), peer([fine, coarse]))


def test_gemma_checkpoints() -> None:
    encoder = featnet.create_model("mobilenetv5_300m_enc", device="meta")
    tower = featnet.create_model("mobilenetv5_300m", device="meta", num_classes=0)
    state = tower.state_dict()
    whole = {f"model.vision_tower.timm_model.{k}": v for k, v in state.items()}
    whole["model.language_model.norm.weight"] = torch.zeros(1)
    ours = encoder.convert_state_dict(whole)
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in encoder.state_dict().items()
    }
    assert encoder(torch.empty(1, 3, 256, 320, device="meta")).shape == (1, 2048, 16, 16)


def test_attention_keeps_its_keys_under_an_output_stride() -> None:
    """Keys are thinned out by a convolution, whose stride is not the output stride's to take."""
    from featnet.layers.mobile_attention import MultiQueryAttention2d
    from featnet.layers.mobile_spec import Spec

    spec = Spec("mqa", kernel=3, channels=16, heads=2, kv_stride=2, d=8)
    for pad_type in ("", "same"):
        options = dict(norm=get_norm("rmsnorm2d"), pad_type=pad_type)
        block = fill_noise(MultiQueryAttention2d(16, spec, **options)).double()
        x = torch.randn(1, 16, 13, 10, dtype=torch.float64)
        wanted = block(x[..., ::2, ::2])
        assert error(block.dilate(2, (1, 1))(x)[..., ::2, ::2], wanted) < 1e-12
