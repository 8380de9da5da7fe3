"""effdet: EfficientDet over timm's networks."""

from __future__ import annotations

import torch
from effdet import DetBenchTrain, get_efficientdet_config
from effdet.efficientdet import EfficientDet
from effdet.factory import create_model_from_config

from .common import images


def _config(name: str) -> object:
    config = get_efficientdet_config(name)
    config.image_size = (128, 128)
    return config


def detectors() -> None:
    for name in ("tf_efficientdet_lite0", "efficientdet_d0", "cspresdet50"):
        model = EfficientDet(_config(name), pretrained_backbone=False).eval()
        classes, boxes = model(images(128, count=1))
        assert len(classes) == len(boxes) == 5


def training() -> None:
    model = EfficientDet(_config("tf_efficientdet_lite0"), pretrained_backbone=False)
    bench = DetBenchTrain(model).eval()
    target = dict(bbox=torch.tensor([[[10.0, 10, 60, 60]]]), cls=torch.ones(1, 1))
    target |= dict(img_scale=torch.ones(1), img_size=torch.tensor([[128.0, 128]]))
    loss = bench(images(128, count=1), target)["loss"]
    loss.backward()


def prediction() -> None:
    bench = create_model_from_config(
        _config("tf_efficientdet_lite0"), bench_task="predict", pretrained_backbone=False
    )
    assert bench.eval()(images(128, count=1)).shape[-1] == 6
