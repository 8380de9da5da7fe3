"""torchvision: detectors and getters over timm's networks."""

from __future__ import annotations

import timm
import torch
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FeaturePyramidNetwork

from .common import images

LAYERS = {"layer2": "0", "layer3": "1", "layer4": "2"}


def pyramid_over_a_network() -> None:
    backbone = BackboneWithFPN(timm.create_model("resnet18"), LAYERS, [128, 256, 512], 16)
    assert len(backbone(images())) == 4


def pyramid_over_a_features_net() -> None:
    net = timm.create_model("resnet18", features_only=True)
    assert len(BackboneWithFPN(net, LAYERS, [128, 256, 512], 16)(images())) == 4


def getter_over_flat_children() -> None:
    net = timm.create_model("convnext_atto", features_only=True)
    assert list(IntermediateLayerGetter(net, {"stages_1": "fine"})(images())) == ["fine"]


def detectors() -> None:
    for kind in (FasterRCNN, RetinaNet):
        net = timm.create_model("resnet18", features_only=True)
        backbone = BackboneWithFPN(net, LAYERS, [128, 256, 512], 16)
        anchors = {}
        if kind is RetinaNet:
            from torchvision.models.detection.anchor_utils import AnchorGenerator

            sizes = ((16,), (32,), (64,), (128,))
            anchors["anchor_generator"] = AnchorGenerator(sizes, ((1.0,),) * 4)
        else:
            from torchvision.models.detection.anchor_utils import AnchorGenerator

            sizes = ((16,), (32,), (64,), (128,))
            anchors["rpn_anchor_generator"] = AnchorGenerator(sizes, ((1.0,),) * 4)
        model = kind(backbone, 3, min_size=64, max_size=64, **anchors).eval()
        assert "boxes" in model(list(images()))[0]


def pyramid_by_hand() -> None:
    net = timm.create_model("regnetx_002", features_only=True, out_indices=(2, 3, 4))
    pyramid = FeaturePyramidNetwork(net.feature_info.channels(), 16)
    names = net.feature_info.module_name()
    assert len(pyramid(dict(zip(names, net(images()), strict=True)))) == 3


def graph() -> None:
    model = timm.create_model("resnet18").eval()
    extractor = create_feature_extractor(model, {"layer2": "fine"})
    assert extractor(images())["fine"].shape[1] == 128


def segmentation_over_children() -> None:
    body = torch.nn.Sequential(*list(timm.create_model("resnet18").children())[:-2])
    assert body(images()).shape == (2, 512, 2, 2)
