"""discover over other people's networks: levels, channels and reductions as they are known."""

from __future__ import annotations

import helpers
import pytest
import torch
import zoo

import featnet


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
