"""Under timm's names: networks that people inherit from, optimisers, losses, levels by default."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet.compat import modules, names
from featnet.compat.creation import DEFAULT_LEVELS, create_model
from featnet.errors import ArgumentError

OURS = f"{modules.FRONT}."


def load(path: str) -> tuple[Any, Any]:
    """A module of timm's, and featnet's for it."""
    helpers.peer("timm")
    return importlib.import_module(f"timm.{path}"), importlib.import_module(OURS + path)


# A network that inherits from timm's, as libraries and papers write them --------------------------


def residual(library: Any) -> nn.Module:
    class Trunk(library.resnet.ResNet):
        def __init__(self, **kwargs: Any) -> None:
            block = library.resnet.Bottleneck
            super().__init__(block=block, layers=[1, 1, 2, 1], num_classes=7, **kwargs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
            return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    return Trunk(
        stem_type="deep_tiered", stem_width=32, avg_down=True, block_args=dict(attn_layer="se")
    )


def selective(library: Any) -> nn.Module:
    kernels = dict(rd_ratio=1 / 8, rd_divisor=16, split_input=True)
    return library.resnet.ResNet(
        library.sknet.SelectiveKernelBasic,
        [1, 1, 1, 1],
        block_args=dict(sk_kwargs=kernels),
        zero_init_last=False,
        aa_layer=nn.AvgPool2d,
    )


def mobile(library: Any) -> nn.Module:
    module = library.efficientnet
    lines = [["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r2_k3_s2_e6_c24_se0.25"], ["ir_r1_k5_s2_e6_c40"]]

    class Trunk(module.EfficientNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks(self.bn1(self.conv_stem(x)))

    return Trunk(
        block_args=module.decode_arch_def(lines, 1.2),
        num_features=module.round_channels(1280, 1.1, 8, None),
        round_chs_fn=partial(module.round_channels, multiplier=1.1),
        act_layer=nn.SiLU,
    )


def masked(library: Any) -> nn.Module:
    """The encoder of masked autoencoders."""

    class Encoder(library.vision_transformer.VisionTransformer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.fc_norm = nn.LayerNorm(kwargs["embed_dim"])
            del self.norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patch_embed(x)
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
            x = self.pos_drop(x)
            for block in self.blocks:
                x = block(x)
            return self.head(self.fc_norm(x[:, 1:].mean(1)))

    norm = partial(nn.LayerNorm, eps=1e-6)
    return Encoder(img_size=64, embed_dim=48, depth=2, num_heads=3, norm_layer=norm, num_classes=5)


def positional(library: Any) -> nn.Module:
    kind = library.vision_transformer.VisionTransformer
    return kind(64, 16, 3, 5, embed_dim=48, depth=2, num_heads=3, class_token=True, reg_tokens=1)


def with_blocks(library: Any) -> nn.Module:
    """Blocks of one's own, which inherit from timm's."""
    module = library.vision_transformer

    class Doubled(module.Block):
        def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
            return super().forward(x) * 2

    model = module.VisionTransformer(64, embed_dim=48, depth=2, num_heads=3, block_fn=Doubled)
    model.default_cfg = {"mean": (0.5,) * 3}
    assert model.default_cfg["mean"][0] == 0.5
    return model


PARTS = ("resnet", "sknet", "efficientnet", "vision_transformer")


@pytest.mark.parametrize("make", [residual, selective, mobile, masked, positional, with_blocks])
def test_what_inherits_from_timms_gives_the_same_numbers(make: Callable[[Any], nn.Module]) -> None:
    pairs = [load(f"models.{part}") for part in PARTS]
    theirs, ours = (
        make(SimpleNamespace(**{part: pair[side] for part, pair in zip(PARTS, pairs, strict=True)}))
        for side in (0, 1)
    )
    helpers.fill_noise(theirs).eval()
    assert list(theirs.state_dict()) == list(ours.state_dict())
    ours.eval().load_state_dict(theirs.state_dict())
    x = helpers.image_batch(64, 64)
    assert torch.equal(ours(x), theirs(x))


def test_who_is_an_instance() -> None:
    kind = importlib.import_module(OURS + "models.resnet").ResNet
    own = residual(SimpleNamespace(resnet=importlib.import_module(OURS + "models.resnet")))
    model = featnet.create_model("test_resnet")
    assert isinstance(model, kind) and isinstance(own, kind) and not isinstance(model, type(own))
    assert issubclass(type(own), kind) and not issubclass(kind, type(own))
    assert not isinstance(nn.ReLU(), kind) and isinstance(own, type(own))


def test_what_inheritance_is_refused() -> None:
    resnet = importlib.import_module(OURS + "models.resnet")

    class Block(nn.Module):
        expansion = 1

        def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
            super().__init__()

    with pytest.raises(NotImplementedError, match="blocks are called with other arguments"):
        resnet.ResNet(Block, [1, 1, 1, 1])
    with pytest.raises(NotImplementedError, match="attn_layer and sk_kwargs"):
        resnet.ResNet(resnet.BasicBlock, [1, 1], block_args=dict(other=1))
    with pytest.raises(ArgumentError, match="stem_type='tiered'"):
        resnet.ResNet(resnet.BasicBlock, [1, 1], stem_type="tiered")
    builder = importlib.import_module(OURS + "models.efficientnet")
    with pytest.raises(ArgumentError, match="what decode_arch_def returns"):
        builder.EfficientNet([[{"block_type": "ir"}]])
    with pytest.raises(ArgumentError, match="'ceil' or 'round'"):
        builder.decode_arch_def([["ir_c8"]], depth_trunc="floor")
    vit = importlib.import_module(OURS + "models.vision_transformer")
    with pytest.raises(ArgumentError, match="weight_init='jax'"):
        vit.VisionTransformer(weight_init="jax")


def test_output_stride_of_what_inherits() -> None:
    resnet = importlib.import_module(OURS + "models.resnet")
    x = torch.randn(1, 3, 64, 64)
    dense = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], output_stride=8).eval()
    plain = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]).eval()
    plain.load_state_dict(dense.state_dict())
    y = dense.forward_features(x)
    assert y.shape[-1] == 8
    assert helpers.error(y[..., ::4, ::4], plain.forward_features(x)) < 1e-6


def test_every_family_has_its_class() -> None:
    """A module of timm's whose models featnet has names the network's class, or timm's has none."""
    named = {*names.CLASSES, *(path.removeprefix("models.") for path in names.NAMES)}
    lacking = [
        module
        for module in modules.families()
        if module not in named
        and any("." not in n and n[:1].isupper() for n in modules.peer_names()[f"models.{module}"])
    ]
    assert lacking == NO_CLASS


# timm's class there is a block, and the network a ResNet, ByobNet or VisionTransformer
NO_CLASS = ["mobilevit", "res2net", "resnest", "vision_transformer_hybrid"]


# Levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["tresnet_m", "dla34", "selecsls42", "deit_tiny_patch16_224", "convmixer_768_32"]
)
def test_levels_by_default_are_timms(name: str) -> None:
    peer = helpers.peer("timm")
    with torch.device("meta"):
        theirs = peer.create_model(name, features_only=True).feature_info
        ours = create_model(name, features_only=True).feature_info
    assert ours.reduction() == theirs.reduction() and ours.module_name()
    assert modules.peer_models()[name] in DEFAULT_LEVELS


# Optimisers and losses ----------------------------------------------------------------------------


@pytest.mark.parametrize("opt", list(importlib.import_module(OURS + "optim").list_optimizers()))
def test_optimizers_step_as_timms(opt: str) -> None:
    theirs, ours = load("optim")
    steps = []
    for library in (theirs, ours):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
        options = dict(opt=opt, lr=0.05, weight_decay=0.1)
        optimizer = library.create_optimizer_v2(model, **options)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 12).view(3, 4)).square().sum().backward()
            optimizer.step()
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert helpers.error(steps[1], steps[0]) < 1e-6


def test_groups_of_a_script() -> None:
    optim = importlib.import_module(OURS + "optim")
    model = featnet.create_model("test_vit")
    args = SimpleNamespace(opt="adamw", lr=1e-3, weight_decay=0.05, opt_betas=(0.9, 0.95))
    optimizer = optim.create_optimizer(args, model)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.9, 0.95)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}
    groups = optim.param_groups_layer_decay(model, 0.05, ["weight"], layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.0} and "lr" not in groups[0]
    with pytest.raises(NotImplementedError, match="no optimiser 'lamb' of timm's, only torch's"):
        optim.create_optimizer_v2(model, "lamb")
    with pytest.raises(ArgumentError, match="betaz: no argument of Adam.*Did you mean 'betas'"):
        optim.create_optimizer_v2(model, "adam", betaz=1)


def test_losses_are_timms() -> None:
    theirs, ours = load("loss")
    logits, classes = torch.randn(6, 5), torch.randint(0, 5, (6,))
    want = theirs.LabelSmoothingCrossEntropy(0.2)(logits, classes)
    assert helpers.error(ours.LabelSmoothingCrossEntropy(0.2)(logits, classes), want) < 1e-6
    soft = torch.rand(6, 5).softmax(1)
    want = theirs.SoftTargetCrossEntropy()(logits, soft)
    assert helpers.error(ours.SoftTargetCrossEntropy()(logits, soft), want) < 1e-6


SCHEDULES: list[dict[str, Any]] = [
    dict(t_initial=5, lr_min=1e-3),
    dict(t_initial=6, warmup_t=2, warmup_lr_init=1e-4),
    dict(t_initial=6, warmup_t=3, warmup_prefix=True, k_decay=1.5),
    dict(t_initial=3, cycle_limit=3, cycle_decay=0.5, cycle_mul=2.0, t_in_epochs=False),
]


@pytest.mark.parametrize("options", SCHEDULES)
def test_the_cosine_schedule_is_timms(options: dict[str, Any]) -> None:
    rates, lengths = [], []
    for library in load("scheduler"):
        groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.4)]
        groups[1]["lr_scale"] = 0.5
        optimizer = torch.optim.SGD(groups)
        schedule = library.CosineLRScheduler(optimizer, **options)
        seen = [group["lr"] for group in optimizer.param_groups]
        for step in range(30):
            schedule.step(step)
            schedule.step_update(step)
            seen += [group["lr"] for group in optimizer.param_groups]
        again = library.CosineLRScheduler(optimizer, 7, initialize=False)
        again.load_state_dict(schedule.state_dict())
        again.step(4)
        again.step_update(4)
        rates.append([*seen, *(group["lr"] for group in optimizer.param_groups)])
        lengths.append([schedule.get_cycle_length(n) for n in range(4)])
    assert lengths[0] == lengths[1] and len({*rates[0]}) > 6
    assert rates[1] == pytest.approx(rates[0], abs=1e-9)


def test_what_the_cosine_schedule_refuses() -> None:
    kind = importlib.import_module(OURS + "scheduler").CosineLRScheduler
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(ArgumentError, match="t_initial=0"):
        kind(optimizer, 0)
    with pytest.raises(ArgumentError, match="group 0 of the optimiser has no 'initial_lr'"):
        kind(optimizer, 3, initialize=False)
    with pytest.raises(NotImplementedError, match=r"noise_range_t=\(1, 2\): there is no noise"):
        kind(optimizer, 3, noise_range_t=(1, 2))


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("scheduler", "create_scheduler_v2", "SequentialLR of LinearLR and CosineAnnealingLR"),
        ("data", "Mixup", "transforms.v2.MixUp and CutMix"),
        ("data.loader", "create_loader", "torchvision.datasets.ImageFolder"),
        ("loss", "BinaryCrossEntropy", "BCEWithLogitsLoss"),
    ],
)
def test_what_training_scripts_are_told(path: str, name: str, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        getattr(importlib.import_module(OURS + path), name)(None)
