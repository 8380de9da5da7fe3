"""fastai: learners over timm's networks."""

from __future__ import annotations

import torch
from fastai.vision.all import DynamicUnet
from fastai.vision.learner import TimmBody, create_timm_model, num_features_model

from .common import images


def classifier() -> None:
    model, config = create_timm_model("convnext_atto", 5, pretrained=False)
    assert model.eval()(images()).shape == (2, 5) and config["mean"]


def classifier_of_a_resnet() -> None:
    model, _ = create_timm_model("resnet18", 5, pretrained=False, custom_head=None)
    assert model.eval()(images()).shape == (2, 5)


def classifier_of_a_vit() -> None:
    model, _ = create_timm_model("vit_tiny_patch16_224", 5, pretrained=False)
    assert model.eval()(images(224)).shape == (2, 5)


def body_alone() -> None:
    import timm

    body = TimmBody(timm.create_model("efficientnet_lite0", num_classes=0), n_in=3)
    assert body.eval()(images()).shape[1] == 1280


def u_net_over_the_children() -> None:
    import timm

    net = timm.create_model("resnet18", num_classes=0)
    body = torch.nn.Sequential(*list(net.children())[:-2])
    assert num_features_model(body) == 512
    assert DynamicUnet(body, 2, (64, 64)).eval()(images()).shape == (2, 2, 64, 64)
