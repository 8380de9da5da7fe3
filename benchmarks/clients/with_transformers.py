"""transformers: TimmBackbone, TimmWrapper, and detectors that stand on them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import timm
import torch
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
    TimmWrapperModel,
)

from .common import images


def _backbone(name: str = "resnet18", **options: object) -> TimmBackbone:
    config = TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, **options)
    return TimmBackbone(config).eval()


def backbone() -> None:
    maps = _backbone(out_indices=(1, 2, 3, 4))(images()).feature_maps
    assert [y.shape[1] for y in maps] == [64, 128, 256, 512]


def backbone_of_negative_indices() -> None:
    assert [y.shape[1] for y in _backbone(out_indices=(-2, -1))(images()).feature_maps] == [
        256,
        512,
    ]


def backbone_with_hidden_states() -> None:
    output = _backbone(out_indices=(-1,))(images(), output_hidden_states=True)
    assert len(output.hidden_states) == 5 and len(output.feature_maps) == 1


def backbone_by_auto_class() -> None:
    config = TimmBackboneConfig(backbone="resnet18", use_pretrained_backbone=False)
    net = AutoBackbone.from_config(config)
    assert net.channels == [512]


def backbone_frozen() -> None:
    net = _backbone(freeze_batch_norm_2d=True)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def detector() -> None:
    config = DetrConfig(
        use_timm_backbone=True, backbone="resnet18", use_pretrained_backbone=False,
        backbone_config=None, encoder_layers=1, decoder_layers=1, d_model=32,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=5,
    )  # fmt: skip
    logits = DetrForObjectDetection(config).eval()(images()).logits
    assert logits.shape[:2] == (2, 5)


def real_time_detector() -> None:
    backbone = TimmBackboneConfig(
        backbone="resnet18", out_indices=(2, 3, 4), use_pretrained_backbone=False
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[128, 256, 512], encoder_hidden_dim=32,
        encoder_ffn_dim=32, encoder_attention_heads=2, d_model=32, decoder_in_channels=[32] * 3,
        decoder_ffn_dim=32, decoder_attention_heads=2, decoder_layers=1, num_queries=5,
        num_denoising=0,
    )  # fmt: skip
    logits = RTDetrForObjectDetection(config).eval()(images()).logits
    assert logits.shape[:2] == (2, 5)


def _wrapper(name: str, kind: type, **options: object) -> torch.nn.Module:
    return kind(TimmWrapperConfig(architecture=name, num_labels=7, **options)).eval()


def wrapper_classifies() -> None:
    model = _wrapper("test_resnet", TimmWrapperForImageClassification)
    output = model(images(), labels=torch.tensor([1, 2]))
    assert output.logits.shape == (2, 7) and output.loss > 0


def wrapper_of_features() -> None:
    for name in ("test_resnet", "test_vit"):
        output = _wrapper(name, TimmWrapperModel)(images(160), output_hidden_states=True)
        assert output.last_hidden_state is not None and output.hidden_states


def wrapper_saved() -> None:
    model = _wrapper("test_resnet", TimmWrapperForImageClassification)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = TimmWrapperForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(again(images()).logits, model(images()).logits)


def wrapper_of_a_folder_for_the_hub() -> None:
    model = timm.create_model("test_resnet", num_classes=5)
    with tempfile.TemporaryDirectory() as folder:
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        processor = TimmWrapperImageProcessor.from_pretrained(folder)
        again = TimmWrapperForImageClassification.from_pretrained(Path(folder))
    assert processor.data_config["mean"] and again.config.num_labels == 5
