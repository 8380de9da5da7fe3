"""open_clip: image towers of timm's networks."""

from __future__ import annotations

import open_clip
from open_clip.timm_model import TimmModel

from .common import images


def tower_of_a_vit() -> None:
    tower = TimmModel("vit_tiny_patch16_224", 16, image_size=224, pool="", proj="mlp")
    assert tower(images(224)).shape[-1] == 16


def tower_of_a_convnet() -> None:
    assert TimmModel("convnext_atto", 16, pool="avg", proj="linear")(images()).shape == (2, 16)


def tower_with_attention_pool() -> None:
    assert TimmModel("resnet18", 16, image_size=64, pool="abs_attn")(images()).shape == (2, 16)


def tower_with_rotary_attention_pool() -> None:
    assert TimmModel("resnet18", 16, image_size=64, pool="rot_attn")(images()).shape == (2, 16)


def locked_tower() -> None:
    for name in ("convnext_atto", "vit_tiny_patch16_224", "resnet18"):
        tower = TimmModel(name, 16, image_size=64, pool="avg" if "vit" not in name else "")
        tower.lock(unlocked_groups=1, freeze_bn_stats=True)
        assert any(p.requires_grad for p in tower.parameters())
        assert not all(p.requires_grad for p in tower.parameters())


def checkpointing() -> None:
    TimmModel("vit_tiny_patch16_224", 16, image_size=64, pool="").set_grad_checkpointing(True)


def a_model_of_two_towers() -> None:
    vision = dict(timm_model_name="test_convnext", timm_pool="avg", timm_proj="linear")
    text = dict(context_length=8, vocab_size=50, width=32, heads=2, layers=1)
    model = open_clip.CLIP(
        16, open_clip.CLIPVisionCfg(image_size=64, **vision), open_clip.CLIPTextCfg(**text)
    )
    assert model.encode_image(images()).shape == (2, 16)
