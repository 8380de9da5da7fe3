"""Other people's networks, built small, and the levels that their configurations say they have."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import helpers
import torch
from torch import nn


class Case(NamedTuple):
    """A network from elsewhere.

    Attributes:
        build: makes it.
        levels: (channels, reduction) of its levels, as its configuration says.
        size: (H, W) of its input.
    """

    build: Callable[[], nn.Module]
    levels: list[tuple[int, int]]
    size: tuple[int, int] = (64, 64)


def _built(config: str, model: str, **options: Any) -> nn.Module:
    transformers: Any = helpers.peer("transformers")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()


def _case(
    config: str,
    model: str,
    levels: list[tuple[int, int]],
    size: tuple[int, int] = (64, 64),
    **options: Any,
) -> Case:
    return Case(lambda: _built(config, model, **options), levels, size)


_VIT: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=48,
    image_size=64,
    patch_size=8,
)
_FOUR = [8, 16, 24, 32]


def _pyramid(channels: list[int], first: int = 4) -> list[tuple[int, int]]:
    return [(c, first * 2**i) for i, c in enumerate(channels)]


def _swin(**options: Any) -> dict[str, Any]:
    return dict(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, image_size=128
    ) | dict(options)


_SWIN = _pyramid([8, 16, 32, 64])
_RESNET = dict(embedding_size=8, hidden_sizes=_FOUR, depths=[1, 2, 1, 1], layer_type="basic")


def _sub(**options: Any) -> Any:
    """A backbone's configuration, for a network that is put on one."""
    transformers: Any = helpers.peer("transformers")
    kind = options.pop("kind")
    return getattr(transformers, kind)(**options)


def _swin_backbone() -> Any:
    return _sub(kind="SwinConfig", **_swin(), out_features=[f"stage{i}" for i in (1, 2, 3, 4)])


def _dino_backbone() -> Any:
    return _sub(
        kind="Dinov2Config", **_VIT, mlp_ratio=2, out_indices=[1, 2, 3], reshape_hidden_states=False
    )


TRANSFORMERS: dict[str, Case] = {
    "ResNet": _case("ResNetConfig", "ResNetModel", [(8, 2), *_pyramid(_FOUR)], **_RESNET),
    "ResNet classifier": _case(
        "ResNetConfig",
        "ResNetForImageClassification",
        [(8, 2), *_pyramid(_FOUR)],
        **_RESNET,
        num_labels=24,
    ),
    "ConvNeXt": _case(
        "ConvNextConfig", "ConvNextModel", _pyramid(_FOUR), hidden_sizes=_FOUR, depths=[1, 1, 2, 1]
    ),
    "ConvNeXtV2": _case(
        "ConvNextV2Config",
        "ConvNextV2ForImageClassification",
        _pyramid(_FOUR),
        hidden_sizes=_FOUR,
        depths=[1, 1, 2, 1],
    ),
    "ViT": _case("ViTConfig", "ViTModel", [(32, 8)], **_VIT),
    "ViT classifier": _case(
        "ViTConfig", "ViTForImageClassification", [(32, 8)], **_VIT, num_labels=32
    ),
    "DeiT": _case("DeiTConfig", "DeiTModel", [(32, 8)], **_VIT),
    "BEiT": _case("BeitConfig", "BeitModel", [(32, 8)], **_VIT),
    "Swin": _case("SwinConfig", "SwinModel", _SWIN, (128, 128), **_swin()),
    "Swin backbone": Case(lambda: _built_from("SwinBackbone", _swin_backbone()), _SWIN, (128, 128)),
    "SwinV2": _case("Swinv2Config", "Swinv2Model", _SWIN, (128, 128), **_swin()),
    "Hiera": _case(
        "HieraConfig",
        "HieraModel",
        _pyramid([8, 16, 32, 64]),
        (128, 128),
        embed_dim=8,
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 2, 4],
        image_size=[128, 128],
    ),
    "FocalNet": _case(
        "FocalNetConfig",
        "FocalNetModel",
        _pyramid([8, 16, 32, 64]),
        embed_dim=8,
        hidden_sizes=[8, 16, 32, 64],
        depths=[1, 1, 2, 1],
        image_size=64,
    ),
    "PVTv2": _case(
        "PvtV2Config",
        "PvtV2Model",
        _pyramid(_FOUR),
        hidden_sizes=_FOUR,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "Segformer": _case(
        "SegformerConfig",
        "SegformerModel",
        _pyramid(_FOUR),
        hidden_sizes=_FOUR,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
    ),
    "Segformer segmentation": _case(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        _pyramid(_FOUR),
        hidden_sizes=_FOUR,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=20,
    ),
    "DINOv2": _case("Dinov2Config", "Dinov2Model", [(32, 8)], **_VIT, mlp_ratio=2),
    "DINOv3": _case("DINOv3ViTConfig", "DINOv3ViTModel", [(32, 8)], **_VIT, num_register_tokens=4),
    "MobileNetV2": _case(
        "MobileNetV2Config", "MobileNetV2Model", [(16, 2), (24, 4), (32, 8), (96, 16), (1280, 32)]
    ),
    "MobileViT": _case(
        "MobileViTConfig",
        "MobileViTModel",
        [(8, 2), (12, 4), (16, 8), (20, 16), (40, 32)],
        image_size=64,
        hidden_sizes=[16, 20, 24],
        neck_hidden_sizes=[6, 8, 12, 16, 20, 24, 40],
    ),
    "EfficientNet": _case(
        "EfficientNetConfig",
        "EfficientNetModel",
        [(16, 2), (24, 4), (40, 8), (112, 16), (320, 32)],
        width_coefficient=1.0,
        depth_coefficient=1.0,
        image_size=64,
        hidden_dim=1280,
    ),
    "BiT": _case(
        "BitConfig",
        "BitModel",
        [(8, 2), *_pyramid(_FOUR)],
        embedding_size=8,
        hidden_sizes=_FOUR,
        depths=[1, 1, 1, 1],
        num_groups=2,
    ),
    "DPT": _case(
        "DPTConfig",
        "DPTForDepthEstimation",
        [(32, 8)],
        **(_VIT | {"num_hidden_layers": 4}),
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
    ),
    "DepthAnything": Case(
        lambda: _built(
            "DepthAnythingConfig",
            "DepthAnythingForDepthEstimation",
            backbone_config=_sub(
                kind="Dinov2Config",
                **(_VIT | {"num_hidden_layers": 4}),
                mlp_ratio=2,
                out_indices=[1, 2, 3, 4],
                reshape_hidden_states=False,
            ),
            reassemble_hidden_size=32,
            patch_size=8,
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8,
        ),
        [(32, 8)],
    ),
    "UperNet": Case(
        lambda: _built(
            "UperNetConfig",
            "UperNetForSemanticSegmentation",
            backbone_config=_swin_backbone(),
            hidden_size=16,
            auxiliary_channels=8,
            auxiliary_in_channels=32,
            num_labels=21,
        ),
        _SWIN,
        (128, 128),
    ),
    "Mask2Former pixel level": Case(
        lambda: (
            _built(
                "Mask2FormerConfig",
                "Mask2FormerModel",
                backbone_config=_swin_backbone(),
                feature_size=32,
                mask_feature_size=32,
                hidden_dim=32,
                encoder_feedforward_dim=32,
                encoder_layers=1,
                decoder_layers=2,
                num_attention_heads=2,
                dim_feedforward=32,
            ).pixel_level_module
        ),
        _SWIN,
        (128, 128),
    ),
}


def _built_from(model: str, config: Any) -> nn.Module:
    transformers: Any = helpers.peer("transformers")
    torch.manual_seed(0)
    return getattr(transformers, model)(config).eval()
