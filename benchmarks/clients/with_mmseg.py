"""mmsegmentation: its backbone of timm's networks."""

from __future__ import annotations

from .common import images, module_alone

TIMMBackbone = module_alone("mmseg.models.backbones.timm_backbone", "mmsegmentation").TIMMBackbone


def features() -> None:
    net = TIMMBackbone("resnet18", True, False, out_indices=(1, 2, 3, 4)).eval()
    assert [y.shape[1] for y in net(images())] == [64, 128, 256, 512]


def output_stride() -> None:
    net = TIMMBackbone("resnet18", True, False, out_indices=(3, 4), output_stride=8).eval()
    assert [y.shape[-1] for y in net(images())] == [8, 8]


def of_a_transformer() -> None:
    options = dict(pretrained=False, features_only=True, out_indices=(0, 3), img_size=64)
    net = TIMMBackbone("swin_tiny_patch4_window7_224", **options).eval()
    assert len(net(images())) == 2


def one_channel() -> None:
    net = TIMMBackbone("resnet18", pretrained=False, features_only=True, in_channels=1)
    assert len(net(images(channels=1))) == 5
