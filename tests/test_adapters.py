"""featnet in other libraries' places: adapters, and their own code unmodified over featnet."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet import adapters
from featnet.errors import ArgumentError


def net(**options: Any) -> Any:
    made = featnet.create_model("resnet18", features_only=True, out_indices=(1, 2, 3, 4), **options)
    return helpers.fill_noise(made).eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return helpers.picture(64, 64)


def optional(name: str) -> Any:
    """A consumer that is not a peer: without it the test is skipped."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


# Adapters --------------------------------------------------------------------------------------


def test_none_of_the_libraries_is_imported() -> None:
    import subprocess

    code = "import featnet.adapters, sys; print([m for m in ('torchvision', 'transformers', 'detectron2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchvisions_detectors_over_an_fpn(x: torch.Tensor) -> None:
    helpers.peer("torchvision")
    from torchvision.models.detection import FasterRCNN
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

    body = net()
    neck = FeaturePyramidNetwork(body.feature_info.channels(), 16)
    backbone = adapters.TorchvisionBackbone(body, neck=neck)
    assert backbone.out_channels == 16
    assert [tuple(m.shape) for m in backbone(x).values()] == [(1, 16, s, s) for s in (16, 8, 4, 2)]
    from torchvision.models.detection.rpn import AnchorGenerator

    detector = FasterRCNN(
        backbone, num_classes=3, min_size=64, max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
    ).train()  # fmt: skip
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in body.parameters())


def test_one_map_needs_no_neck(x: torch.Tensor) -> None:
    body = featnet.create_model("resnet18", features_only=True, out_indices=(3,))
    backbone = adapters.TorchvisionBackbone(body, names=["map"])
    assert backbone.out_channels == 256 and list(backbone(x)) == ["map"]
    with pytest.raises(ArgumentError, match=r"\[64, 128, 256, 512\] channels"):
        adapters.TorchvisionBackbone(net())


def test_detectron2s_interface(x: torch.Tensor) -> None:
    backbone = adapters.Detectron2Backbone(net())
    shapes = backbone.output_shape()
    assert list(shapes) == ["res2", "res3", "res4", "res5"] == list(backbone(x))
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32] and shapes["res5"].channels == 512
    for name, y in backbone(x).items():
        assert y.shape[1] == shapes[name].channels and y.shape[-1] == 64 // shapes[name].stride
    assert backbone.size_divisibility == 32 and backbone.padding_constraints == {}
    dense = adapters.Detectron2Backbone(net(output_stride=8))
    assert list(dense(x)) == ["p0", "p1", "p2", "p3"] and dense.size_divisibility == 8


def test_transformers_interface(x: torch.Tensor) -> None:
    backbone = adapters.TransformersBackbone(net())
    output = backbone(x)
    assert [m.shape[1] for m in output.feature_maps] == backbone.channels == [64, 128, 256, 512]
    assert output[0] is output["feature_maps"] is output.feature_maps and len(output) == 1
    assert isinstance(backbone(x, return_dict=False), tuple)
    with pytest.raises(ArgumentError, match="hidden_states"):
        backbone(x, output_hidden_states=True)


def test_every_kind_of_extractor(x: torch.Tensor) -> None:
    model = featnet.create_model("resnet18").eval()
    nodes = featnet.create_feature_extractor(model, ["layer2", "layer4"], suppress_diff_warning=True)
    taps = featnet.extract(model, ["layer2", "layer4"])
    for made in (nodes, taps):
        assert list(adapters.Detectron2Backbone(made)(x)) == ["res3", "res5"]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (nn.Conv2d(3, 3, 1), {}, "no extractor"),
        ("resnet18", {}, "str is no extractor"),
        (None, {"names": ["a"]}, "4 distinct names"),
        (None, {"names": "abcd"}, "4 distinct names"),
        (None, {"names": ["a", "a", "b", "c"]}, "4 distinct names"),
    ],
)
def test_bad_arguments(given: Any, options: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        adapters.TransformersBackbone(net() if given is None else given, **options)
    with pytest.raises(ArgumentError, match="NCHW"):
        adapters.Detectron2Backbone(net(output_fmt="NHWC"))


# Consumers, unmodified, featnet in timm's place -----------------------------------------------


@pytest.fixture
def as_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", featnet)


@pytest.mark.usefixtures("as_timm")
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "convnext_atto"])
def test_segmentation_models_pytorch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    optional("segmentation_models_pytorch")
    from segmentation_models_pytorch.encoders import timm_universal

    monkeypatch.setattr(timm_universal, "timm", featnet)
    encoder = timm_universal.TimmUniversalEncoder(name, pretrained=False, in_channels=3, depth=5)
    x = helpers.picture(64, 64)
    maps = encoder(x)
    assert [m.shape[1] for m in maps] == list(encoder.out_channels)
    assert [64 // m.shape[-1] for m in maps] == [1, 2, 4, 8, 16, 32]
    if name == "resnet18":
        dense = timm_universal.TimmUniversalEncoder(name, pretrained=False, depth=5, output_stride=8)
        assert [64 // m.shape[-1] for m in dense(x)] == [1, 2, 4, 8, 8, 8]


@pytest.mark.usefixtures("as_timm")
def test_segmentation_models_pytorch_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    smp = optional("segmentation_models_pytorch")
    from segmentation_models_pytorch.encoders import timm_universal

    monkeypatch.setattr(timm_universal, "timm", featnet)
    model = smp.Unet("tu-resnet18", encoder_weights=None, classes=2)
    assert type(model.encoder.model).__module__.startswith("featnet")
    y = model(helpers.picture(64, 64, batch=2))
    assert y.shape == (2, 2, 64, 64)
    y.square().mean().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_transformers_timm_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    optional("transformers")
    from transformers import TimmBackboneConfig
    from transformers.models.timm_backbone import modeling_timm_backbone as module

    monkeypatch.setattr(module, "timm", featnet)
    config = TimmBackboneConfig(backbone="resnet18", out_indices=(1, 2, 3, 4), use_pretrained_backbone=False)
    backbone = module.TimmBackbone(config).eval()
    assert type(backbone._backbone).__module__.startswith("featnet")
    x = helpers.picture(64, 64)
    with torch.no_grad():
        output = backbone(x)
        assert [m.shape[1] for m in output.feature_maps] == [64, 128, 256, 512] == list(backbone.channels)
        every = backbone(x, output_hidden_states=True)
    assert torch.equal(every.feature_maps[-1], output.feature_maps[-1])
