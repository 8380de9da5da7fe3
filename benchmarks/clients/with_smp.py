"""segmentation_models_pytorch: encoders of timm's, and those that inherit from its classes."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch

from .common import images

STYLES = ("tu-resnet18", "tu-convnext_atto", "tu-vgg11", "tu-dla34", "tu-tresnet_m")
STYLES += (
    "tu-mobilenetv3_small_050",
    "tu-swin_tiny_patch4_window7_224",
    "tu-tf_efficientnet_lite0",
)


def depths_and_channels() -> None:
    for name in STYLES:
        side = 224 if "swin" in name else 64
        for depth in (3, 5):
            encoder = smp.encoders.get_encoder(
                name, in_channels=4, depth=depth, weights=None
            ).eval()
            maps = encoder(images(side, channels=4))
            assert [y.shape[1] for y in maps] == encoder.out_channels and len(maps) == depth + 1
            assert [y.shape[-1] for y in maps] == [side // 2**i for i in range(depth + 1)]


def decoders() -> None:
    for kind in (smp.Unet, smp.FPN, smp.Linknet, smp.UnetPlusPlus, smp.MAnet, smp.PSPNet):
        model = kind("tu-resnet18", encoder_weights=None, classes=2).eval()
        assert model(images()).shape == (2, 2, 64, 64)


def output_stride() -> None:
    model = smp.DeepLabV3Plus("tu-resnet18", encoder_weights=None, encoder_output_stride=8).eval()
    assert [y.shape[-1] for y in model.encoder(images())] == [64, 32, 16, 8, 8, 8]


def output_stride_of_densenet() -> None:
    model = smp.DeepLabV3Plus(
        "tu-densenet121", encoder_weights=None, encoder_output_stride=8
    ).eval()
    assert model(images()).shape[-1] == 64


def output_stride_of_convnext() -> None:
    model = smp.DeepLabV3Plus("tu-convnext_atto", encoder_weights=None, encoder_output_stride=16)
    assert model.eval()(images()).shape[-1] == 64


def encoders_that_inherit() -> None:
    for name in ("timm-efficientnet-b0", "timm-tf_efficientnet_lite0", "timm-skresnet18"):
        assert smp.Unet(name, encoder_weights=None).eval()(images()).shape[-1] == 64


def encoders_that_were_renamed() -> None:
    for name in ("timm-regnetx_002", "timm-res2net50_26w_4s", "timm-mobilenetv3_small_075"):
        assert smp.Unet(name, encoder_weights=None).eval()(images()).shape[-1] == 64


def vision_transformers() -> None:
    encoder = dict(encoder_name="tu-vit_tiny_patch16_224", encoder_weights=None)
    model = smp.DPT(**encoder, decoder_readout="cat", dynamic_img_size=True).eval()
    assert model(images(96)).shape[-1] == 96


def training_step() -> None:
    model = smp.Unet("tu-resnet18", encoder_weights=None, aux_params=dict(classes=3))
    masks, labels = model(images())
    (masks.mean() + labels.mean()).backward()
    assert all(p.grad is not None for p in model.parameters())


def compiled_export() -> None:
    model = smp.Unet("tu-resnet18", encoder_weights=None).eval()
    program = torch.export.export(model, (images(),), strict=True)
    assert torch.allclose(program.module()(images()), model(images()), atol=1e-5)


def checkpoint_on_disk() -> None:
    model = smp.Unet("tu-resnet18", encoder_weights=None)
    again = smp.Unet("tu-resnet18", encoder_weights=None)
    again.load_state_dict(model.state_dict())


def preprocessing() -> None:
    assert smp.encoders.get_preprocessing_params("tu-resnet18", "imagenet")["mean"]
