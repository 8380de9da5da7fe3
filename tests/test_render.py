"""Maps as images: the structure is in the colours, for one image or for several."""

from __future__ import annotations

from typing import Any

import numpy as np
import photographs
import pytest
import torch
from PIL import Image

import featnet
from featnet import FeatureBasis, render_features
from featnet.errors import ArgumentError
from featnet.images import components
from featnet.images.render import HEAT, heat


def colours(x: torch.Tensor) -> torch.Tensor:
    """A map's own colours, (h, w, 3), from 0 to 255."""
    level = FeatureBasis.fit([x[None]]).levels[0]
    return (level.colours(x) * 255).round().to(torch.uint8)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_components_find_the_structure() -> None:
    ramp = torch.linspace(-1, 1, 20)
    rgb = colours(noise(16).view(16, 1, 1) * ramp.expand(1, 8, 20))
    assert rgb.shape == (8, 20, 3)
    steps = rgb[0, :, 0].int().diff()
    assert (steps >= 0).all() or (steps <= 0).all()
    assert {rgb[0, 0, 0].item(), rgb[0, -1, 0].item()} == {0, 255}
    assert (rgb[..., 1:] == 128).all()  # one component only: the others are not noise


@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 4, 6), (2, 3, 3), (300, 2, 2), (3, 40, 2)])
def test_components_of_any_shape(shape: tuple[int, int, int]) -> None:
    x = noise(*shape)
    assert colours(x).shape == (*shape[1:], 3) and torch.equal(colours(x), colours(x))
    assert (colours(torch.full(shape, torch.nan)) == 128).all()
    assert (colours(torch.ones(shape)) == 128).all()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (400, 300), (300, 400)])
def test_the_axes_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    """However they were found: from either of the symmetric matrices, or by iteration."""
    scale = torch.linspace(3, 0.1, shape[1], dtype=torch.float64) ** 3
    rows = noise(*shape).double() * scale
    rows -= rows.mean(0)
    axes = components._axes(rows, count=3)
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3].t()
    assert (axes * expected).sum(0).abs().min() > 1 - 1e-4


def test_large_maps_are_sampled_and_projected_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(8, 64, 64) * torch.linspace(3, 1, 8).view(8, 1, 1) + noise(8, 1, 1)
    whole = colours(x).int()
    monkeypatch.setattr(components, "SAMPLE", 8 * 64 * 8)
    monkeypatch.setattr(components, "CHUNK", 999)
    assert (colours(x).int() - whole).abs().float().mean() < 20
    level = FeatureBasis.fit([x[None]]).levels[0]
    monkeypatch.setattr(components, "CHUNK", 10**9)
    assert torch.allclose(level.colours(x), FeatureBasis.fit([x[None]]).levels[0].colours(x))


def test_one_basis_gives_what_is_alike_one_colour() -> None:
    """Two images of the same two things in different shares."""
    things = noise(2, 16)
    a, b = torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long)
    a[:, :1], b[:, :3] = 1, 1
    maps = [things[index].permute(2, 0, 1)[None] for index in (a, b)]
    basis = FeatureBasis.fit(maps)
    one, other = (basis.levels[0].colours(m[0]) for m in maps)
    assert torch.equal(one[0, 0], other[0, 0]) and torch.equal(one[3, 3], other[3, 3])
    batch = np.asarray(render_features(torch.cat(maps)))  # a batch has one basis by itself
    assert len(np.unique(batch.reshape(-1, 3), axis=0)) == 3  # two colours on white


def test_rows_are_images_and_columns_levels() -> None:
    maps = {"a": noise(2, 8, 16, 16), "b": noise(2, 4, 8, 8)}
    plain = render_features(maps)
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)
    beside = render_features(maps, [image, image], captions=["a", "b"])
    assert plain.size == (8 + 2 * 136, 8 + 2 * 136)
    assert beside.size == (8 + 3 * 208, 8 + 2 * (200 + 24 + 8))
    alone = render_features(maps["a"][:1])
    assert alone.size == (128, 128)


def test_many_levels_go_on_in_the_next_row() -> None:
    assert render_features([noise(1, 3, 4, 4) for _ in range(8)]).size == (8 + 6 * 136, 8 + 2 * 136)


def test_overlay_lies_over_the_image() -> None:
    maps, image = noise(1, 8, 4, 4), Image.new("RGB", (128, 128), (200, 100, 0))
    features = np.asarray(render_features(maps, image, overlay=1.0))
    assert np.array_equal(features, np.asarray(render_features(maps)))
    photograph = np.asarray(render_features(maps, image, overlay=0.0))
    assert np.array_equal(photograph, np.asarray(image))


def test_heat_of_one_channel_and_of_lengths() -> None:
    x = torch.arange(5.0).view(1, 1, 5)
    assert torch.allclose(heat(x)[0], torch.tensor(HEAT).float())
    lengths = torch.stack([x[0] * 3, x[0] * 4])
    assert torch.allclose(heat(lengths), heat(x))
    assert torch.isfinite(heat(torch.full((2, 3, 3), torch.nan))).all()
    drawn = render_features(x[None], style="heat")
    assert drawn.getpixel((0, 0)) == tuple(round(255 * v) for v in HEAT[0])


def test_more_positions_than_pixels_are_averaged() -> None:
    checkers = (torch.arange(2048)[:, None] + torch.arange(2048)[None]) % 2
    pixels = np.asarray(render_features(checkers.float()[None, None]))
    assert pixels.shape == (512, 512, 3) and (abs(pixels.astype(int) - 128) <= 1).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(style="hot"), "style='hot'.*'heat'|style='hot': one of components, heat"),
        (dict(overlay=0.5), "needs image="),
        (dict(overlay=2, image=torch.zeros(3, 8, 8)), "overlay=2: 0 to 1"),
        (dict(image=[torch.zeros(3, 8, 8)] * 2), "2 images and maps of 1"),
        (dict(captions=["a", "b"]), "1 are expected"),
        (dict(basis=FeatureBasis.fit([torch.zeros(1, 7, 2, 2)])), "4 channels, and a basis.*7"),
        (dict(basis=FeatureBasis.fit([[torch.zeros(1, 4, 2, 2)] * 2])), "basis is of 2 levels"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        render_features(torch.zeros(1, 4, 2, 2), **options)


def test_bad_outputs() -> None:
    with pytest.raises(ArgumentError, match="takes a list"):
        FeatureBasis.fit(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ArgumentError, match="at least one"):
        FeatureBasis.fit([])
    with pytest.raises(ArgumentError, match=r"\[4\] and \[5\]"):
        FeatureBasis.fit([torch.zeros(1, 4, 2, 2), torch.zeros(1, 5, 2, 2)])


def test_the_eyes_are_alike_and_nothing_else_is() -> None:
    """At output stride 8, with trained weights; what the images show is in the maps."""
    places = {  # in pixels of the photograph (x, y), two of each part
        "eye": [(172, 113), (318, 137)],
        "nose": [(262, 240), (268, 246)],
        "ear": [(60, 12), (362, 30)],
        "back": [(420, 120), (430, 240)],
    }
    net = photographs.trained(features_only=True, output_stride=8, out_indices=(3,))
    x = featnet.create_transform(net, fit="keep")([photographs.PATHS["chelsea"]])
    with torch.no_grad():
        (features,) = net(x)
    centred = features[0] - features[0].mean((1, 2), keepdim=True)
    unit = torch.nn.functional.normalize(centred, dim=0)
    at = {
        part: torch.stack([unit[:, y // 8, x // 8] for x, y in pixels])
        for part, pixels in places.items()
    }
    for part in ("eye", "nose"):
        pair, others = at[part], torch.cat([v for name, v in at.items() if name != part])
        assert pair[0] @ pair[1] > 0.7 > 0.5 > (pair @ others.t()).max(), part
