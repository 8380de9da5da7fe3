"""Large images: the maps that are put together from tiles are those of the whole image."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import facts, families, fill_noise, image_batch, noisy
from torch import nn

import featnet
from benchmarks.memory import peak
from featnet.errors import ArgumentError, InputSizeError, OutIndexError
from featnet.extraction.cuts import pieces, plan, smallest
from featnet.tracing.reach import Side, measure

EXHAUSTIVE = os.environ.get("FEATNET_EXHAUSTIVE") == "1"
MOST = 220  # pixels of a tile that is still quick in float64
TOLERANCE = 1e-12
# Of all families those whose smallest representative is quick; the others with FEATNET_EXHAUSTIVE=1
QUICK = [
    name
    for name in families()
    if EXHAUSTIVE or (facts(name).params < 12e6 and facts(name).modules < 150)
]


def odd_size(name: str) -> tuple[int, int]:
    """An input size that a model takes, the oddest that there is."""
    model = helpers.shallow_model(name)
    for size in ((129, 161), (132, 164), (128, 160), *helpers.sizes(name)):
        try:
            model.feature_info.sizes(size)
        except InputSizeError:
            continue
        return size
    raise AssertionError


def is_of_pixels(why: str) -> bool:
    """Whether a far pixel shows that a level sees the whole map; it tells positions apart, else."""
    return not any(word in why for word in ("positions", "another way", "cumsum"))


def least_tile(side: Side, level: int, length: int) -> int:
    """The smallest tile for an image that is much longer."""
    reach, longer = side.reaches[level], length + 100 * side.period
    return smallest(longer, side.period, reach.before, reach.after)


@pytest.mark.parametrize("name", QUICK)
def test_tiles_are_the_image_where_a_level_is_local_and_only_there(name: str) -> None:
    """In float64, borders and odd sizes included; what is said to see the whole map sees its other
    corner."""
    size = odd_size(name)
    sides = measure(featnet.FeatureListNet(helpers.shallow_model(name)), (3, *size))
    pairs = list(zip(*(side.reaches for side in sides), strict=True))
    local = [i for i, pair in enumerate(pairs) if not any(reach.whole for reach in pair)]
    least = {
        i: [least_tile(side, i, length) for side, length in zip(sides, size, strict=True)]
        for i in local
    }
    small = [i for i in local if max(least[i]) <= MOST]
    far = [i for i, pair in enumerate(pairs) if all(is_of_pixels(reach.whole) for reach in pair)]
    far = [i for i in far if i not in local][:1]
    if not small and not far:
        return
    levels = [*small, *far]
    net: Any = noisy(
        lambda: featnet.FeatureListNet(helpers.create_shallow(name), levels, copy=False)
    )
    net = net.double().eval()
    for axis in (0, 1) if small else ():
        sizes, tile = [*size], [*size]
        tile[axis] = max(least[i][axis] for i in small)
        period = sides[axis].period
        sizes[axis] = tile[axis] + 1 + (size[axis] - tile[axis] - 1) % period
        x = image_batch(*sizes, dtype=torch.float64)
        with torch.inference_mode():
            whole = net(x)
        maps = featnet.extract_tiled(net, x, tile=(tile[0], tile[1]), levels=small)
        for part, wanted in zip(maps, whole, strict=False):
            assert helpers.error(part, wanted) < TOLERANCE, (axis, part.shape)
    if far:
        assert any(sees_its_corners(net, size, seed) for seed in range(4)), pairs[far[0]]


def sees_its_corners(net: Any, size: tuple[int, int], seed: int) -> bool:
    """Whether the last position of the last level depends on the first pixel. With some noise the
    units that would tell are dead."""
    fill_noise(net, seed)
    x = image_batch(*size, dtype=torch.float64)
    other = x.clone()
    other[..., 0, 0] += 1
    with torch.inference_mode():
        a, b = net(x)[-1], net(other)[-1]
    return not torch.equal(a[..., -1, -1], b[..., -1, -1])


# Windows that are shifted ------------------------------------------------------------------------


def small_swin() -> Any:
    net = featnet.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        out_indices=(0, 1),
        embed_dim=24,
        depths=(2, 2, 1, 1),
    )
    return fill_noise(net).double().eval()


def test_shifted_windows_are_exact_on_whole_windows_and_refused_elsewhere() -> None:
    net = small_swin()
    x = image_batch(448, 112, dtype=torch.float64)
    with torch.inference_mode():
        whole = net(x)
    maps = featnet.extract_tiled(net, x, tile=(336, 112))
    assert all(helpers.error(a, b) < TOLERANCE for a, b in zip(maps, whole, strict=True))
    with pytest.raises(ArgumentError, match="shifted windows"):
        featnet.extract_tiled(net, image_batch(344, 112, dtype=torch.float64), tile=(336, 112))
    # and rightly so: the first row is seen in the last one
    x = image_batch(120, 112, dtype=torch.float64)
    other = x.clone()
    other[..., 0, :] += 1
    with torch.inference_mode():
        pairs = zip(net(x), net(other), strict=True)
        assert all(not torch.equal(a[..., -1, :], b[..., -1, :]) for a, b in pairs)


# Networks from elsewhere -------------------------------------------------------------------------


class Up(nn.Module):
    """Maps that go down to /8 and up again, by each kind of resampling, beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 4, 3, 2, 1)
        self.down2 = nn.Sequential(nn.AvgPool2d(3, 2, 1), nn.Conv2d(4, 6, 5, 2, 2))
        self.up1 = nn.ConvTranspose2d(6, 4, 4, 2, 1)
        self.up2 = nn.Upsample(scale_factor=2, mode="bilinear")
        self.out = nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        fine = self.down1(x)
        coarse = self.down2(fine)
        y = self.up2(self.up1(coarse))
        both = F.pixel_shuffle(torch.cat([y, fine[..., : y.shape[-2], : y.shape[-1]]], 1), 2)
        return {"coarse": coarse, "fine": self.out(y).roll(1, 1), "shuffled": both}


def test_any_network_that_is_local() -> None:
    net = fill_noise(Up()).double().eval()
    x = image_batch(184, 128, dtype=torch.float64)
    maps = featnet.extract_tiled(net, x, tile=96)
    with torch.inference_mode():
        whole = net(x)
    assert list(maps) == ["coarse", "fine", "shuffled"]
    assert all(helpers.error(maps[key], whole[key]) < TOLERANCE for key in whole)
    only = featnet.extract_tiled(net, x, tile=96, levels=("fine",))
    assert list(only) == ["fine"] and torch.equal(only["fine"], maps["fine"])
    tapped = featnet.extract(net, {"down2.1": "coarse"})
    again = featnet.extract_tiled(tapped, x, tile=(96, 200))
    assert helpers.error(again["coarse"], whole["coarse"]) < TOLERANCE


def test_one_map_and_channels_last() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).permute(0, 2, 3, 1)

    net, x = Last().double().eval(), image_batch(61, 75, dtype=torch.float64)
    y = featnet.extract_tiled(net, x, tile=24)
    assert y.shape == (1, 31, 38, 4) and helpers.error(y, net(x)) < TOLERANCE


UNEVEN = {
    "positions": lambda x: x + torch.arange(x.shape[-1], dtype=x.dtype, device=x.device),
    "roll": lambda x: x.roll(1, -1),
    "flip": lambda x: x.flip(-1),
    "mean": lambda x: x - x.mean(-1, keepdim=True),
    "softmax": lambda x: x.softmax(-2),
    "cumsum": lambda x: x.cumsum(-1),
    "instance_norm": lambda x: F.instance_norm(x),
    "corners": lambda x: F.interpolate(
        x, scale_factor=2.0, mode="bilinear", align_corners=True, recompute_scale_factor=False
    ),
    "size": lambda x: F.interpolate(x, size=(x.shape[-2] // 2 + 3, 40), mode="bilinear"),
    "attention": lambda x: F.scaled_dot_product_attention(*(x.flatten(2).mT,) * 3).mT.view_as(x),
    "fft": lambda x: torch.fft.rfft2(x).real,
    "sort": lambda x: x.sort(-1).values,
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_what_is_not_local_is_refused(kind: str) -> None:
    """Also where no rule knows the operation."""

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> Any:
            return UNEVEN[kind](self.conv(x))  # type: ignore[no-untyped-call]

    with pytest.raises((ArgumentError, featnet.errors.TraceError)):
        featnet.extract_tiled(Uneven().eval(), torch.zeros(1, 3, 160, 160), tile=64)


def test_what_is_written_in_place_is_not_missed() -> None:
    class Written(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.max_pool2d(x, 3, 1, 1)
            y[..., 0:1].add_(x.mean())
            return y

    with pytest.raises(ArgumentError, match="written in part"):
        featnet.extract_tiled(Written().eval(), torch.zeros(1, 3, 160, 160), tile=64)


# Seams -------------------------------------------------------------------------------------------


def test_blended_levels_are_mixed_and_local_ones_stay_exact() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 2, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            y = self.conv(x)
            return [y, y * 0 + y.mean((2, 3), keepdim=True)]

    net, x = Half().double().eval(), image_batch(97, 131, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"1: .*mean.*levels=\[0\]"):
        featnet.extract_tiled(net, x, tile=64)
    local, mixed = featnet.extract_tiled(net, x, tile=64, blend=16)
    assert helpers.error(local, net(x)[0]) < TOLERANCE
    means = mixed[0, 0]  # of each tile, with a ramp between two
    assert torch.equal(means[0, :8], means[0, :1].expand(8)) and len(means[0].unique()) > 8
    steps = (means[0, 1:] - means[0, :-1]).abs().max()
    assert 0 < steps < 0.5 * (means.max() - means.min())
    constant = torch.ones_like(x)
    shares = featnet.extract_tiled(net, constant, tile=64, blend=True)[1][..., 8:-8, 8:-8]
    assert shares.shape[-1] > 40 and shares.std((2, 3)).max() < 0.05  # they sum up to one


@pytest.mark.parametrize("seam", [0, 24])
def test_parts_cover_a_side_once(seam: int) -> None:
    """Each position from one part, that has all that it sees; shares sum up to one."""
    for side, most, period, before, after in itertools.product(
        (100, 131, 257), (64, 90), (8, 12), (0, 13), (7, 20)
    ):
        before, after = max(before, seam // 2), max(after, seam // 2)
        cuts = plan(side, most, period, before, after)
        if cuts is None:
            assert most < smallest(side, period, before, after)
            continue
        for cut in cuts:
            assert cut.stop - cut.start <= most
            assert cut.start % period == 0 and (side - cut.stop) % period == 0
            assert cut.start in (0, min(cut.start, cut.first - before))
            assert cut.stop == side or cut.last + after <= cut.stop
        length = -(-side // 4)
        total = torch.zeros(length)
        for piece in pieces(cuts, 4, length, side, seam):  # type: ignore[arg-type]
            total[piece.target] += 1 if piece.share is None else piece.share
        assert torch.allclose(total, torch.ones(length))


def test_the_smallest_tile_is_one() -> None:
    for side, period, before, after in itertools.product((300, 413), (8, 32), (0, 45), (31, 70)):
        least = smallest(side, period, before, after)
        assert plan(side, least, period, before, after) is not None
        assert plan(side, least - 1, period, before, after) is None


# What comes out, and where it is -----------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> Any:
    model = fill_noise(featnet.create_model("test_resnet"))
    return featnet.FeatureListNet(model, out_indices=(3, 0)).eval()


def test_extractors_and_networks(net: Any) -> None:
    model = featnet.create_model("test_resnet").eval()
    model.load_state_dict(net.state_dict(), strict=False)
    x = image_batch(150, 131)
    wanted = featnet.extract_tiled(net, x, tile=128)
    as_dict = featnet.FeatureDictNet(model, (3, 0), out_map=("late", "early")).eval()
    maps = featnet.extract_tiled(as_dict, x, tile=128, levels=("early", 3))
    assert list(maps) == ["early", "late"]
    hook = featnet.FeatureHookNet(model, (3, 0)).eval()
    found = [[maps["late"], maps["early"]], featnet.extract_tiled(hook, x, tile=128)]
    found.append(featnet.extract_tiled(model, x, tile=128, levels=(3, 0)))
    for each in found:
        assert all(torch.equal(a, b) for a, b in zip(each, wanted, strict=True))


def test_bytes_in_and_mapped_files_out(net: Any, tmp_path: Path) -> None:
    image = torch.randint(0, 255, (1, 3, 150, 131), dtype=torch.uint8)
    shapes = [(1, 32, 10, 9), (1, 16, 75, 66)]
    whole = net(image.float() / 255)
    shapes = [tuple(y.shape) for y in whole]
    out = [
        torch.from_file(str(tmp_path / str(i)), shared=True, size=y.numel()).view(y.shape)
        for i, y in enumerate(whole)
    ]
    maps = featnet.extract_tiled(
        net, image, tile=128, prepare=lambda part: part.float() / 255, out=out
    )
    assert all(a is b for a, b in zip(maps, out, strict=True)) and len(shapes) == 2
    assert all(helpers.error(a, b) < 1e-5 for a, b in zip(maps, whole, strict=True))


def test_memory_is_that_of_a_tile(net: Any) -> None:
    """Beside the maps themselves, whatever the size of the image."""
    took = []
    for side in (300, 600):
        x = torch.zeros(1, 3, side, 150)
        out = [torch.empty(y.shape) for y in net(x)]
        took.append(peak(lambda x=x, out=out: featnet.extract_tiled(net, x, tile=150, out=out)))
    assert took[1] < 1.05 * took[0]


def test_a_small_image_is_computed_at_once() -> None:
    net = fill_noise(featnet.create_model("test_efficientnet", features_only=True)).eval()
    x = image_batch(65, 97)
    maps = featnet.extract_tiled(net, x, tile=128)
    assert all(torch.equal(a, b) for a, b in zip(maps, net(x), strict=True))


# Bad input ---------------------------------------------------------------------------------------


def test_bad_input(net: Any) -> None:
    x = image_batch(150, 131)
    with pytest.raises(ArgumentError, match=r"tile=64 x 64 is too small.*3 sees \d+ pixels"):
        featnet.extract_tiled(net, x, tile=64)
    with pytest.raises(OutIndexError, match=r"5 does not come out .*\[3, 0\]"):
        featnet.extract_tiled(net, x, levels=(5,))
    with pytest.raises(OutIndexError, match="'layer3' does not come out"):
        featnet.extract_tiled(net, x, levels=("layer3",))
    with pytest.raises(ArgumentError, match="training mode"):
        featnet.extract_tiled(featnet.create_model("test_resnet").train(), x)
    with pytest.raises(InputSizeError, match=r"x\[None\]"):
        featnet.extract_tiled(net, x[0])
    with pytest.raises(ArgumentError, match="a list"):
        featnet.extract_tiled(net, [x])
    with pytest.raises(ArgumentError, match=r"out has the shapes .*\(1, 3, 4, 4\)"):
        featnet.extract_tiled(net, x, tile=128, out=[torch.zeros(1, 3, 4, 4)])
    with pytest.raises(ArgumentError, match="tile"):
        featnet.extract_tiled(net, x, tile=0)
    with pytest.raises(ArgumentError, match="is no map"):
        featnet.extract_tiled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten()).eval(), x, tile=64)
    vit = featnet.create_model("test_vit", features_only=True).eval()
    with pytest.raises(ArgumentError, match=r"see the whole map.*positions.*blend=True"):
        featnet.extract_tiled(vit, image_batch(176, 176), tile=96)
    with pytest.raises(InputSizeError, match="patches"):
        featnet.extract_tiled(vit, image_batch(161, 160), tile=96)
