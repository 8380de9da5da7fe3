"""What single families promise beyond the laws: ResNet and its relatives, HRNet, DenseNet,
VoVNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import fill_noise, image_batch
from torch import nn

import featnet
from featnet.errors import ArgumentError
from featnet.models.resnet import BasicBlock, Bottleneck, ResNet

META = torch.device("meta")


@pytest.mark.parametrize("stages", [1, 3, 5])
def test_a_resnet_has_as_many_stages_as_depths(stages: int) -> None:
    with META:
        model = ResNet(BasicBlock, (1,) * stages, num_classes=10, drop_block_rate=0.1)
        net = featnet.FeatureListNet(model)
        maps = net.eval()(torch.empty(1, 3, 128, 96))
    assert net.feature_info.reduction() == [2, 4, 8, 16, 32, 64][: stages + 1]
    assert [y.shape[1] for y in maps] == [64, *(64 * 2**i for i in range(stages))]
    assert [y.shape[2] for y in maps] == [128 // r for r in net.feature_info.reduction()]
    assert model(torch.empty(1, 3, 128, 96, device=META)).shape == (1, 10)


@pytest.mark.parametrize(
    "wrong", [{"depths": ()}, {"planes": (64, 128, 256)}, {"block": (BasicBlock, Bottleneck)}]
)
def test_stages_that_do_not_match_are_refused(wrong: dict[str, Any]) -> None:
    arguments = {"block": BasicBlock, "depths": (1, 1, 1, 1), **wrong}
    with META, pytest.raises(ArgumentError, match="depths=.* says how many stages"):
        ResNet(**arguments)


def test_an_hrnet_computes_the_branch_that_is_asked_for() -> None:
    with META:
        model = featnet.create_model("hrnet_w18_small")
    for index in range(1, 5):
        net = featnet.FeatureListNet(model, (index,))
        wide = net.get_submodule("incre_modules")
        assert [name for name, _ in wide.named_children()] == [str(index - 1)]


@pytest.mark.parametrize("size", [(65, 97), (50, 33)])
def test_an_hrnet_takes_any_size(size: tuple[int, int]) -> None:
    with META:
        net = featnet.create_model("hrnet_w18_small", features_only=True).eval()
        maps = net(torch.empty(1, 3, *size))
    assert [tuple(y.shape[2:]) for y in maps] == [
        tuple(-(-side // r) for side in size) for r in (2, 4, 8, 16, 32)
    ]


def test_an_hrnet_has_its_branches_as_levels() -> None:
    with META:
        net = featnet.create_model(
            "hrnet_w18_small", features_only=True, feature_location="", output_stride=8
        ).eval()
        maps = net(torch.empty(1, 3, 64, 96))
    assert net.feature_info.channels() == [64, 16, 32, 64, 128]
    assert net.feature_info.reduction() == [2, 4, 8, 8, 8]
    assert [tuple(y.shape[1:]) for y in maps[3:]] == [(64, 8, 12), (128, 8, 12)]
    with META, pytest.raises(ArgumentError, match="'incr'.* Did you mean 'incre'"):
        featnet.create_model("hrnet_w18_small", feature_location="incr")


@pytest.mark.parametrize(
    ("name", "options", "channels", "reduction"),
    [
        ("resnest26d", {}, [64, 256, 512, 1024, 2048], [2, 4, 8, 16, 32]),
        ("regnety_032", {}, [32, 72, 216, 576, 1512], [2, 4, 8, 16, 32]),
        (
            "mobilenetv3_large_100",
            {"out_indices": [1, 2, 3, 4]},
            [24, 40, 112, 960],
            [4, 8, 16, 32],
        ),
        ("mobilenetv3_large_100", {}, [16, 24, 40, 112, 960], [2, 4, 8, 16, 32]),
        ("convnext_tiny", {"out_indices": [1, 2, 3]}, [192, 384, 768], [8, 16, 32]),
        ("convnext_tiny", {}, [96, 192, 384, 768], [4, 8, 16, 32]),
        ("ecaresnet101d", {"output_stride": 8, "out_indices": (2, 4)}, [512, 2048], [8, 8]),
    ],
)
def test_features(name: str, options: Any, channels: list[int], reduction: list[int]) -> None:
    with META:
        net = featnet.create_model(name, features_only=True, **options).eval()
        maps = net(torch.empty(2, 3, 320, 320))
    assert net.feature_info.channels() == channels == [y.shape[1] for y in maps]
    assert net.feature_info.reduction() == reduction == [320 // y.shape[2] for y in maps]


def test_heads_are_taken_off() -> None:
    with META:
        dense = featnet.create_model("densenet121").eval()
        dense.reset_classifier(0, "")
        assert dense(torch.empty(2, 3, 224, 224)).shape == (2, 1024, 7, 7)
        xception = featnet.create_model("xception41").eval()
        assert xception.forward_features(torch.empty(2, 3, 299, 299)).shape == (2, 2048, 10, 10)
        vov = featnet.create_model("ese_vovnet19b_dw").eval()
        vov.reset_classifier(0)
        assert vov(torch.empty(2, 3, 224, 224)).shape == (2, 1024)


@pytest.mark.parametrize("name", ["densenet121", "hrnet_w18_small"])
def test_recomputing_changes_no_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = fill_noise(featnet.create_model(name)).train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
        model.set_grad_checkpointing(recompute)
        x = image_batch(64, 64).requires_grad_()
        model.forward_features(x).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
