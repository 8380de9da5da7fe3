"""mmpretrain: its backbone of timm's networks."""

from __future__ import annotations

import sys
import types

from .common import images, module_alone

sys.modules["mmcv"] = types.ModuleType("mmcv")  # imported for its version, and not used
TIMMBackbone = module_alone("mmpretrain.models.backbones.timm_backbone", "mmpretrain").TIMMBackbone


def _backbone(name: str, **options: object) -> object:
    net = TIMMBackbone(name, **options)
    net.eval()  # returns nothing
    return net


def features() -> None:
    net = _backbone("resnet18", features_only=True, out_indices=(1, 2, 3, 4))
    assert [y.shape[1] for y in net(images())] == [64, 128, 256, 512]


def last_map_of_a_classifier() -> None:
    for name in ("resnet18", "convnext_atto"):
        (y,) = _backbone(name)(images())
        assert y.shape[-2:] == (2, 2)


def output_stride() -> None:
    net = _backbone("resnet18", features_only=True, out_indices=(3, 4), output_stride=8)
    assert [y.shape[-1] for y in net(images())] == [8, 8]


def output_stride_of_densenet() -> None:
    net = _backbone("densenet121", features_only=True, out_indices=(3, 4), output_stride=8)
    assert [y.shape[-1] for y in net(images())] == [8, 8]


def norm_of_a_registry() -> None:
    from mmpretrain.registry import MODELS
    from torch import nn

    @MODELS.register_module()
    class Groups(nn.GroupNorm):
        def __init__(self, channels: int, **options: object) -> None:
            super().__init__(8, channels, **options)

    net = _backbone("resnet18", features_only=True, norm_layer="Groups")
    assert any(isinstance(module, Groups) for module in net.modules())
