"""supervision: results of timm's classifiers."""

from __future__ import annotations

import supervision
import timm
import torch
from timm.data import create_transform, resolve_data_config

from .common import images


def classifications() -> None:
    output = timm.create_model("resnet18", num_classes=5).eval()(images(count=1))
    assert len(supervision.Classifications.from_timm(output.detach())) == 5


def feature_extraction() -> None:
    model = timm.create_model("resnet18", num_classes=0).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 512) and transform.transforms
