"""discover over other people's networks: levels, channels and reductions as they are known."""

from __future__ import annotations

from typing import Any

import foreign
import helpers
import pytest
import torch
import zoo

import featnet
from featnet.checkpoints.instant import SkipInit


@pytest.mark.parametrize("name", zoo.TRANSFORMERS)
def test_transformers(name: str) -> None:
    """The levels are what the configuration says, and what comes out is what the level says."""
    case = zoo.TRANSFORMERS[name]
    model = case.build()
    info = featnet.discover(model, case.size)
    assert [(f.channels, f.reduction) for f in info] == case.levels, info
    with torch.no_grad():
        maps = featnet.FeatureListNet(model, feature_info=info)(helpers.image_batch(*case.size))
    assert [y.shape[1] for y in maps] == [c for c, _ in case.levels]
    assert [tuple(y.shape[2:]) for y in maps] == info.sizes(case.size)
    assert [case.size[0] // y.shape[2] for y in maps] == [r for _, r in case.levels]


@torch.no_grad()
def test_tokens_in_an_order_of_their_own_are_not_given_back_shuffled() -> None:
    """Hiera keeps its tokens in the order of its windows: the same maps as its own
    ``reshaped_hidden_states``."""
    case = zoo.TRANSFORMERS["Hiera"]
    model, x = case.build(), helpers.image_batch(*case.size, batch=2)
    info = featnet.discover(model, case.size)
    assert [bool(level.order) for level in info] == [True, True, True, False]
    maps = featnet.FeatureListNet(model, feature_info=info)(x)
    want = model(x, output_hidden_states=True).reshaped_hidden_states
    # these are before the next stage's pooling; the first is the embedding
    for y, other in zip(maps, want[1:], strict=True):
        assert torch.equal(y, other.permute(0, 3, 1, 2))


def test_a_vit_of_1024_channels_and_one_input_size_is_no_map_of_197_channels() -> None:
    models = helpers.peer("torchvision.models")
    net = models.VisionTransformer(
        image_size=224, patch_size=16, num_layers=1, num_heads=2, hidden_dim=1024, mlp_dim=32
    ).eval()
    for heads in (net.heads, torch.nn.Identity()):
        net.heads = heads
        (level,) = featnet.discover(net)
        assert (level.channels, level.reduction, level.layout, level.prefix) == (1024, 16, "NLC", 1)


def test_scales_that_come_back_as_one_sequence_are_no_map() -> None:
    class Scales(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 6, 4, 4), torch.nn.Conv2d(6, 6, 2, 2)
            self.mix = torch.nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            y = self.b(x)
            scales = [t.flatten(2).transpose(1, 2) for t in (x, y, self.b(y))]
            return self.mix(torch.cat(scales, 1))

    assert featnet.discover(Scales()).module_name() == ["a"]


# torchvision
# ---------------------------------------------------------------------------------------


def _rows(info: featnet.FeatureInfo) -> list[tuple[int, int]]:
    return [(level.channels, level.reduction) for level in info]


class Nested(torch.nn.Module):
    """A network in another one."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x)


def test_a_head_changes_no_level(tv_name: str) -> None:
    """With the classifier, with as many classes as a level has channels, without it, and nested."""
    model = foreign.torchvision_model(tv_name, device="meta")
    want = _rows(featnet.discover(model))
    child, head = [*model.named_children()][-1]
    if isinstance(head, torch.nn.Linear):  # as many classes as a level has channels
        channels = want[len(want) // 2][0]
        setattr(model, child, torch.nn.Linear(head.in_features, channels, device="meta"))
        assert _rows(featnet.discover(model)) == want
    setattr(model, child, torch.nn.Identity())
    assert _rows(featnet.discover(Nested(model))) == want


_RESNET50 = [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)]
_DILATED = [(64, 2), (256, 4), (2048, 8)]
_MOBILE = [(16, 2), (24, 4), (40, 8)]


@pytest.mark.parametrize(
    ("kind", "name", "want", "last"),
    [
        ("segmentation", "fcn_resnet50", _DILATED, "backbone.layer4"),
        ("segmentation", "deeplabv3_resnet50", _DILATED, "backbone.layer4"),
        ("segmentation", "lraspp_mobilenet_v3_large", [*_MOBILE, (960, 16)], "backbone.16"),
        ("detection", "fasterrcnn_resnet50_fpn", _RESNET50, "body.layer4"),
        ("detection", "retinanet_resnet50_fpn", _RESNET50, "body.layer4"),
        (
            "detection",
            "fasterrcnn_mobilenet_v3_large_fpn",
            [*_MOBILE, (112, 16), (960, 32)],
            "body.16",
        ),
    ],
)
def test_decoders_and_pyramids_are_no_levels(
    kind: str, name: str, want: list[tuple[int, int]], last: str
) -> None:
    models = helpers.peer("torchvision.models")
    builder = getattr(getattr(models, kind), name)
    with SkipInit():
        model = builder(weights=None, weights_backbone=None).eval().to("meta")
    info = featnet.discover(model.backbone if kind == "detection" else model)
    assert _rows(info) == want and info.module_name()[-1] == last


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "hiera_tiny_224"]
)
@pytest.mark.parametrize("form", ["headless", "nested"])
def test_our_own_headless_and_nested(name: str, form: str) -> None:
    with torch.device("meta"):
        net = featnet.create_model(name, num_classes=0).eval()
    model = Nested(net) if form == "nested" else net
    last = {level.reduction: level.channels for level in net.feature_info}
    info = featnet.discover(model, net.img_size or (256, 256))
    assert _rows(info) == [(channels, reduction) for reduction, channels in last.items()]
