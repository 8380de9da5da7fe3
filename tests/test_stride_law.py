"""The output stride of networks of others is proved by numbers, wherever they pad."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import foreign
import helpers
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featnet
from featnet.errors import ArgumentError, OutputStrideError


def conv(kernel: int = 3, stride: int = 2, channels: int = 8, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, kernel, stride, **options)


class Pads(nn.Module):
    """Pads by a function in its forward."""

    def __init__(self, amounts: tuple[int, ...], mode: str = "constant", *, between: bool) -> None:
        super().__init__()
        self.amounts, self.mode, self.between = amounts, mode, between
        self.a, self.b, self.c = conv(channels=3, padding=1), conv(), conv(padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(F.pad(self.a(x), self.amounts, mode=self.mode))
        if self.between:  # what is padded does not go into a window at once
            x = F.pad(x, self.amounts, mode=self.mode).relu()
        return self.c(x)


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(conv(channels=3, padding=1), *modules)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "padding_mode": lambda: chain(
        conv(padding=1, padding_mode="reflect"), conv(padding=1, padding_mode="circular")
    ),
    "same": lambda: chain(conv(padding=1), conv(stride=1, padding="same"), conv(padding=1)),
    "same, even": lambda: chain(conv(padding=1), conv(4, 1, padding="same"), conv(padding=1)),
    "reflect": lambda: chain(
        nn.ReflectionPad2d(1), conv(), nn.ReplicationPad2d(2), conv(5, 1), conv(padding=1)
    ),
    "zero": lambda: chain(
        nn.ZeroPad2d((0, 1, 0, 1)), conv(), nn.ZeroPad2d(1), conv(stride=1), conv(padding=1)
    ),
    "pools": lambda: chain(
        nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2), nn.ReflectionPad2d(1), nn.AvgPool2d(3, 2)
    ),
    "function": lambda: Pads((0, 1, 0, 1), between=False),
    "function, between": lambda: Pads((0, 1, 0, 1), between=True),
    "function, reflect": lambda: Pads((1, 1, 1, 1), "reflect", between=False),
}


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_padding_outside_of_padding(name: str, stride: int) -> None:
    model = helpers.fill_noise(NETWORKS[name]()).double().eval()
    dense = featnet.set_output_stride(model, stride)
    x = helpers.image_batch(64, 96, dtype=torch.float64)
    full, step = model(x), 8 // stride
    for net in (dense, copy.deepcopy(dense), pickle.loads(pickle.dumps(dense))):
        found = net(x)[..., ::step, ::step]
        assert found.shape == full.shape and helpers.error(found, full) < 1e-10
    assert list(dense.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (127, 90)])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@torch.no_grad()
def test_borders_of_unpadded_pools_that_round_up(pool: Any, size: tuple[int, int]) -> None:
    """A position that the original dropped has no place in the dense map either."""

    def reduced() -> nn.Module:
        return pool(3, 2, ceil_mode=True)

    model = chain(reduced(), conv(stride=1, padding=1), reduced(), conv(stride=1, padding=1))
    model = helpers.fill_noise(model).double().eval()
    x = helpers.image_batch(*size, dtype=torch.float64)
    full = model(x)
    for stride in (2, 4):
        found = featnet.set_output_stride(model, stride)(x)[..., :: 8 // stride, :: 8 // stride]
        assert found.shape == full.shape and helpers.error(found, full) < 1e-10


@torch.no_grad()
def test_tensorflows_padding() -> None:
    timm, name = helpers.peer("timm"), "tf_efficientnet_b0"
    model = timm.create_model(name)
    dense = featnet.set_output_stride(model, 8)
    assert [row["reduction"] for row in dense.feature_info][-1] == 8
    peers = featnet.set_output_stride(model, 16, tensorflow_padding=True).double().eval()
    theirs = timm.create_model(name, output_stride=16).double().eval()
    theirs.load_state_dict(model.state_dict())
    x = helpers.image_batch(64, 96, dtype=torch.float64)
    assert helpers.error(peers(x), theirs(x)) < 1e-10
    with pytest.raises(ArgumentError, match="tensorflow_padding"):
        own = featnet.create_model("resnet18")
        featnet.set_output_stride(own, 8, tensorflow_padding=True)


@torch.no_grad()
def test_padding_of_transformers_and_lukemelas() -> None:
    transformers = helpers.peer("transformers")
    peer = helpers.peer("efficientnet_pytorch")
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, tf_padding=True)
    for model in (
        transformers.MobileNetV2Model(config),
        peer.EfficientNet.from_name("efficientnet-b0"),
    ):
        assert featnet.set_output_stride(model.eval(), 16) is not model


class Numbered(nn.Module):
    """Adds a table that is laid out by the size of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(channels=3, padding=1), conv(padding=1)
        self.c = conv(stride=1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x))
        return self.c(y * torch.arange(y.shape[-1], dtype=y.dtype, device=y.device))


def test_what_cannot_be_made_to_hold_is_refused_by_name() -> None:
    model = Numbered().eval()
    with pytest.raises(OutputStrideError, match=r"does not hold at c: .*between b and c"):
        featnet.set_output_stride(model, 2)
    swin = foreign.torchvision_model("swin_t", device="meta")
    with pytest.raises(OutputStrideError, match=r"features\.6.*reduction 32"):
        featnet.set_output_stride(swin, 4)
    with pytest.raises(OutputStrideError, match="no convolution"):
        featnet.set_output_stride(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)), 4)
    patches = nn.Sequential(conv(14, 14, 3), nn.ReLU())
    with pytest.raises(OutputStrideError, match=r"can have \[14\]"):
        featnet.set_output_stride(patches, 8)
