"""anomalib: its extractor, and detectors that read timm's networks."""

from __future__ import annotations

import torch
from anomalib.models.components.feature_extractors.timm import TimmFeatureExtractor

from .common import images


def extractor() -> None:
    extractor = TimmFeatureExtractor("resnet18", ["layer1", "layer3"], pre_trained=False)
    maps = extractor(images())
    assert list(maps) == ["layer1", "layer3"] and extractor.out_dims == [64, 256]


def extractor_of_convnext() -> None:
    extractor = TimmFeatureExtractor("convnext_atto", ["stages.1"], pre_trained=False)
    assert extractor(images())["stages.1"].shape[1] == 80


def extractor_with_gradients() -> None:
    extractor = TimmFeatureExtractor("resnet18", ["layer2"], False, requires_grad=True)
    extractor(images())["layer2"].mean().backward()


def padim() -> None:
    from anomalib.models.image.padim.torch_model import PadimModel

    model = PadimModel(backbone="resnet18", pre_trained=False, layers=["layer1", "layer2"])
    assert model.train()(images()).ndim >= 2


def patchcore() -> None:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(["layer2", "layer3"], backbone="resnet18", pre_trained=False)
    assert model.train()(images()).ndim == 2


def fastflow() -> None:
    from anomalib.models.image.fastflow.torch_model import FastflowModel

    model = FastflowModel((64, 64), "resnet18", pre_trained=False, flow_steps=2)
    assert model.train()(images())[0]


def reverse_distillation() -> None:
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    layers = ["layer1", "layer2", "layer3"]
    model = ReverseDistillationModel("resnet18", (64, 64), layers, "add", pre_trained=False)
    assert model.train()(images())[0]


def drop_path_of_dinomaly() -> None:
    from anomalib.models.image.dinomaly import torch_model

    assert torch_model.DropPath(0.5).eval()(torch.ones(2)).sum() == 2
