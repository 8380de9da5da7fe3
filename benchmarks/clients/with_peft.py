"""peft: low-rank adapters in timm's networks."""

from __future__ import annotations

import timm
from peft import LoraConfig, get_peft_model

from .common import images


def adapters_in_a_vit() -> None:
    config = LoraConfig(target_modules=["qkv"], modules_to_save=["head"], r=2)
    model = get_peft_model(timm.create_model("test_vit", num_classes=3), config)
    model(images(160)).sum().backward()


def adapters_in_a_convnet() -> None:
    config = LoraConfig(target_modules=r".*\.conv\d", modules_to_save=["fc"], r=2)
    model = get_peft_model(timm.create_model("test_resnet", num_classes=3), config)
    assert model.merge_and_unload()(images()).shape == (2, 3)
