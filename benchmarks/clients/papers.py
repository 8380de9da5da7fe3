"""The ways in which papers' and detectors' code stands on timm: written anew, in their manner."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import timm
import torch
from torch import nn

from .common import images


def real_time_detector() -> None:
    """Channels, strides and names of a features net, read by a getter."""
    from torchvision.models._utils import IntermediateLayerGetter

    net = timm.create_model("resnet18", features_only=True, exportable=True)
    wanted = ["layer2", "layer3", "layer4"]
    info = net.feature_info
    indices = [info.module_name().index(name) for name in wanted]
    assert [info.channels()[i] for i in indices] == [128, 256, 512]
    assert [info.reduction()[i] for i in indices] == [8, 16, 32]
    assert list(IntermediateLayerGetter(net, dict(zip(wanted, wanted, strict=True)))(images()))


def masked_autoencoder() -> None:
    from timm.models.vision_transformer import Block, PatchEmbed, VisionTransformer

    class Encoder(VisionTransformer):
        def __init__(self, **options: object) -> None:
            super().__init__(**options)
            self.fc_norm = nn.LayerNorm(options["embed_dim"])
            del self.norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch_embed(x)
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
            for block in self.blocks:
                x = block(x)
            return self.head(self.fc_norm(x[:, 1:].mean(1)))

    norm = partial(nn.LayerNorm, eps=1e-6)
    model = Encoder(img_size=64, embed_dim=48, depth=2, num_heads=3, norm_layer=norm)
    assert model(images()).shape == (2, 1000)
    assert PatchEmbed(64, 16, 3, 48).num_patches == 16
    assert Block(48, 3, 4.0, qkv_bias=True, norm_layer=norm)(torch.randn(2, 5, 48)).shape[1] == 5


def data_efficient_transformer() -> None:
    from timm.models.layers import trunc_normal_
    from timm.models.registry import register_model
    from timm.models.vision_transformer import VisionTransformer, _cfg

    class Distilled(VisionTransformer):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            self.dist_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
            trunc_normal_(self.dist_token, std=0.02)

    @register_model
    def a_distilled_vit(pretrained: bool = False, **options: object) -> nn.Module:
        options = {key: options[key] for key in options if not key.startswith("pretrained_cfg")}
        model = Distilled(img_size=64, embed_dim=48, depth=1, num_heads=3, num_classes=5)
        model.default_cfg = _cfg()
        return model

    model = timm.create_model("a_distilled_vit")
    assert model(images()).shape == (2, 5) and model.default_cfg["mean"]


def hierarchical_transformer() -> None:
    from timm.models.layers import DropPath, to_2tuple, trunc_normal_

    assert to_2tuple(7) == (7, 7) and DropPath(0.1).eval()(torch.ones(2, 3)).sum() == 6
    trunc_normal_(torch.empty(3, 3), std=0.02)


def trunk_of_a_resnet() -> None:
    from timm.models.resnet import BasicBlock, ResNet

    class Trunk(ResNet):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
            fine = self.layer1(x)
            return [fine, self.layer2(fine)]

    fine, coarse = Trunk(BasicBlock, [1, 1, 1, 1])(images())
    assert fine.shape[1] == 64 and coarse.shape[1] == 128


def block_of_ones_own_in_a_resnet() -> None:
    from timm.models.resnet import BasicBlock, ResNet

    class Plain(BasicBlock):
        def __init__(self, *channels: int, **options: object) -> None:
            super().__init__(*channels, **options)

    assert ResNet(Plain, [1, 1, 1, 1])(images()).shape == (2, 1000)


def optimiser_of_a_script() -> None:
    from timm.optim import create_optimizer, create_optimizer_v2
    from timm.optim.optim_factory import param_groups_weight_decay

    model = timm.create_model("test_vit", num_classes=3)
    args = SimpleNamespace(opt="adamw", lr=1e-3, weight_decay=0.05, momentum=0.9)
    create_optimizer(args, model)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    model(images(160)).sum().backward()
    optimizer.step()
    assert len(param_groups_weight_decay(model, 0.05)) == 2


def losses_of_a_script() -> None:
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    logits = torch.randn(4, 3)
    assert LabelSmoothingCrossEntropy(0.1)(logits, torch.tensor([0, 1, 2, 0])) > 0
    assert SoftTargetCrossEntropy()(logits, torch.rand(4, 3).softmax(1)) > 0


def schedule_of_a_script() -> None:
    from timm.scheduler import CosineLRScheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    CosineLRScheduler(optimizer, t_initial=10, warmup_t=2).step(1)


def mixture_of_a_script() -> None:
    from timm.data import Mixup

    Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=3)(images(count=4), torch.arange(4) % 3)


def input_of_a_script() -> None:
    from timm.data import create_transform
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    options = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    assert create_transform(64, is_training=True, color_jitter=0.4, re_prob=0.25, **options)
    assert create_transform(64, **options)


def last_layers_of_a_depth_network() -> None:
    model = timm.create_model("vit_tiny_patch16_224").eval()
    outputs: list[torch.Tensor] = []
    for index in (2, 5):
        model.blocks[index].register_forward_hook(lambda m, i, y: outputs.append(y))
    model(images(224))
    assert [y.shape[1] for y in outputs] == [197, 197]
