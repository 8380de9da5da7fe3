"""kornia, which does not import timm: augmentation before a network of it, and a loss behind it."""

from __future__ import annotations

import kornia
import timm
import torch

from .common import images


def augmentation_before_a_network() -> None:
    augment = kornia.augmentation.AugmentationSequential(
        kornia.augmentation.RandomHorizontalFlip(p=1.0), data_keys=["input"]
    )
    model = torch.nn.Sequential(augment, timm.create_model("resnet18", num_classes=3))
    assert model.eval()(images()).shape == (2, 3)


def loss_over_maps() -> None:
    net = timm.create_model("resnet18", features_only=True, out_indices=(1,))
    loss = kornia.losses.total_variation(net(images())[0]).mean()
    loss.backward()
