"""Pruned containers hold what runs, in order and under their keys; other attributes are None."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import foreign
import helpers
import pytest
import torch
from helpers import image_batch
from torch import nn

import featnet
from featnet import Backbone, FeatureDictNet, FeatureHookNet, FeatureListNet
from featnet.extraction.pruning import Removed

KINDS = (FeatureListNet, FeatureDictNet, FeatureHookNet)
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def as_list(value: Any) -> list[torch.Tensor]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def check(net: nn.Module, model: nn.Module) -> None:
    """No container holds None, and what is there is the model's, under the same keys, in order."""
    whole = dict(model.named_modules(remove_duplicate=False))
    for name, module in net.named_modules(remove_duplicate=False):
        if name and isinstance(module, CONTAINERS):
            children = module._modules
            assert None not in children.values(), name
            keys = [key for key in whole[name]._modules if key in children]
            assert keys == list(children), name
            if not isinstance(module, nn.ModuleDict) and children:
                assert list(module) == list(children.values())
                assert module[-1] is list(children.values())[-1] and len(module) == len(children)
                assert module[0] is next(iter(children.values()))


# Family, the container, which level, and how many children are left of it
CUT = [
    ("vit_tiny_patch16_224", "blocks", 1, 2),
    ("vit_relpos_small_patch16_224", "blocks", 1, 2),
    ("convnext_atto", "stages", 1, 2),
    ("swin_tiny_patch4_window7_224", "layers", 1, 2),
    ("efficientnet_b0", "blocks", 2, 3),
    ("densenet121", "features", 1, 5),
    ("vgg11", "features", 2, 10),
    ("resnet18", "", 2, None),
    ("hiera_tiny_224", "blocks", 1, 3),
    ("rexnet_100", "features", 1, 3),
    ("pvt_v2_b0", "stages", 0, 1),
    ("vovnet39a", "stages", 1, 1),
    ("legacy_xception", "block2.rep", 2, None),
    ("hrnet_w18_small", "stage4.0.fuse_layers", 4, 1),
    ("hrnet_w18_small", "stage4.0.fuse_layers", 1, 1),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "container", "index", "count"), CUT)
def test_families(kind: Any, name: str, container: str, index: int, count: int | None) -> None:
    model = helpers.meta_model(name)
    net = kind(model, (index,))
    check(net, model)
    if count is not None:
        left = net.get_submodule(container)
        assert len(left) == count
        assert [key for key, _ in left.named_children()] == list(left._modules)
        assert isinstance(left, CONTAINERS)
    (y,) = as_list(net(torch.empty(1, 3, 224, 224, device="meta")))
    assert [tuple(y.shape[2:])] == net.feature_info.sizes((224, 224))


def test_attributes_that_are_gone_are_none() -> None:
    for kind in KINDS:
        net = kind(helpers.meta_model("resnet18"), (2,))
        assert net.layer3 is None and net.layer4 is None and net.fc is None
        assert net.layer1[0].downsample is None


def test_blocks_are_a_plain_loop() -> None:
    """As fully_shard(block), compile, or freezing is applied."""
    net = featnet.create_model(
        "vit_tiny_patch16_224", features_only=True, out_indices=(3,), depth=6
    )
    assert [type(block).__name__ for block in net.blocks] == ["Block"] * 4
    assert [key for key, _ in net.blocks.named_children()] == ["0", "1", "2", "3"]
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = net.eval()(x)[0]
        for block in net.blocks:
            block.mlp.fc2.weight.zero_()
        assert not torch.equal(net(x)[0], before)
    for other in (copy.deepcopy(net.blocks[-1]), pickle.loads(pickle.dumps(net.blocks[0]))):
        assert isinstance(other, type(net.blocks[0]))


# Models from elsewhere --------------------------------------------------------------------------


TAPS = {
    "convnext_tiny": ["features.3"],
    "swin_t": ["features.3"],
    "efficientnet_b0": ["features.3"],
    "densenet121": ["features.denseblock2"],
    "vgg11": ["features.8"],
    "mobilenet_v3_small": ["features.4"],
    "resnet18": ["layer2.0"],
    "vit_b_16": ["encoder.layers.encoder_layer_3"],
}


@pytest.mark.parametrize("name", TAPS)
def test_torchvision(name: str) -> None:
    model = foreign.torchvision_model(name, device="meta")
    net = featnet.extract(model, TAPS[name])
    check(net, model)
    parent, _, child = TAPS[name][0].rpartition(".")
    left = net.get_submodule(parent)
    assert next(reversed(left._modules)) == child  # nothing behind it
    side = 224 if "vit" in name else 64
    assert net(torch.empty(1, 3, side, side, device="meta"))
    assert all(module is not None for module in model.get_submodule(parent).children())


def stage(in_chs: int, out_chs: int) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, 3, 2, 1)


class Base(nn.Module):
    """Stages and norms, read in a way that counts on their places."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([stage(3, 4), stage(4, 4), stage(4, 4), stage(4, 4)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(4)])


class Zipped(Base):
    """As SegFormer: a stage and its norm come together."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, norm in zip(self.stages, self.norms, strict=True):
            x = norm(layer(x))
        return x


class Counted(Base):
    """As Swin: between stages alone there is a norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.stages):
            x = layer(x)
            if i < len(self.stages) - 1:
                x = self.norms[i](x)
        return x


class Numbered(Base):
    """As HRNet: by index, and not all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages[0](x)
        x = self.stages[2](x)
        return self.stages[3](x)


class FromTheEnd(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages[-1](self.stages[-2](self.stages[-4](x)))


class Sliced(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(*self.stages)  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stages[:1](x)
        x = self.stages[2:](x)
        return self.norms[3](x)


class Named(Base):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({f"s{i}": layer for i, layer in enumerate(self.stages)})  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, layer in self.stages.items():
            x = layer(x) if name != "s1" else x
        return x


@pytest.mark.parametrize(
    ("kind", "tap", "kept"),
    [
        (Zipped, "stages.1", ("0", "1")),
        (Zipped, "norms.1", ("0", "1")),
        (Counted, "stages.1", ("0", "1")),
        (Counted, "norms.1", None),
        (Numbered, "stages.3", ("0", "2", "3")),
        (Numbered, "stages.2", ("0", "2")),
        (FromTheEnd, "stages.2", None),
        (Sliced, "stages.2", None),
        (Sliced, "norms.3", None),
        (Named, "stages.s2", None),
        (Named, "stages.s0", ("s0",)),
    ],
)
def test_a_forward_that_counts_on_places(kind: Any, tap: str, kept: Any) -> None:
    model = helpers.fill_noise(kind()).eval()
    x, out = image_batch(64, 64), {}
    handle = model.get_submodule(tap).register_forward_hook(
        lambda m, a, y: out.update(y=y.detach())
    )
    model(x)
    handle.remove()
    net = featnet.extract(model, [tap]).eval()
    check(net, model)
    assert torch.equal(net(x)[tap], out["y"])
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x)[tap], out["y"])
    used = {key.rpartition(".")[0] for key in net.state_dict()}
    ran = {name for name, module in model.named_modules() if not list(module.children())}
    assert used <= ran and tap in used
    gone = [m for m in net.modules() if isinstance(m, Removed)]
    assert not any(True for m in gone for _ in m.parameters())
    if kept is not None:
        assert tuple(net.stages._modules) == kept
        assert not any(isinstance(m, Removed) for m in net.stages)


def test_a_list_with_gaps() -> None:
    net = featnet.extract(Numbered(), ["stages.3"])
    stages = net.stages
    assert isinstance(stages, nn.ModuleList) and len(stages) == 3
    first, second, third = stages
    assert stages[0] is first and stages[2] is second and stages[3] is third  # as they were called
    assert (stages[-1], stages[-2], stages[-3]) == (third, second, first)
    assert stages[1] is second  # what was there is gone: by position
    assert list(stages[1:]) == [second, third]
    with pytest.raises(IndexError):
        stages[4]
    assert list(net.state_dict()) == [
        f"stages.{i}.{k}" for i in (0, 2, 3) for k in ("weight", "bias")
    ]


def test_dropout_that_runs_in_training_stays() -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ops = nn.ModuleList([stage(3, 4), nn.Dropout(0.5)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.ops[0](x)
            return (self.ops[1](x) if self.training else x).sum((2, 3))

    net = featnet.extract(Drops(), ["ops.0"], logits=False)
    assert len(net.ops) == 2
    assert net.train()(image_batch(8, 8))["ops.0"].shape == (1, 4, 4, 4)


def test_graphs_too() -> None:
    model = foreign.torchvision_model("vgg11", device="meta")
    net = featnet.create_feature_extractor(model, ["features.8"])
    assert len(net.features) == 9
    check(net, model)


class Side(Backbone):
    """Two lists that are read together, as a private network may."""

    first_conv, last_fc = "stages.0", "fc"

    def __init__(self) -> None:
        super().__init__()
        self.stages, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (a, b) in enumerate(((3, 4), (4, 8), (8, 16))):
            self.stages.append(stage(a, b))
            self.norms.append(nn.BatchNorm2d(b))
            self.add_level(f"stages.{i}", channels=b, reduction=2 ** (i + 1))
        self.add_head(16, num_classes=2, global_pool="avg")

    def forward_levels(self, x: torch.Tensor) -> Iterator[Any]:
        for layer, norm in zip(self.stages, self.norms, strict=False):
            x = layer(x)
            yield x
            x = norm(x)

    def finish(self, y: torch.Tensor) -> torch.Tensor:
        return self.norms[-1](y)


@pytest.mark.parametrize("kind", KINDS)
def test_a_private_backbone_that_zips(kind: Any) -> None:
    model, x = helpers.fill_noise(Side()).eval(), image_batch(32, 32)
    whole = as_list(FeatureListNet(model)(x))
    net = kind(model, (1,))
    check(net, model)
    assert torch.equal(as_list(net(x))[0], whole[1])
    assert len(net.stages) == 2
