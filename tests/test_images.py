"""An image to an input, and maps to vectors."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import photographs
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import featnet
from featnet.errors import ArgumentError, UnknownModelError
from featnet.images.fits import FITS
from featnet.images.reading import ImageError, read_image, to_pil

CHELSEA = photographs.PATHS["chelsea"]  # 300 x 451


# Any image --------------------------------------------------------------------------------------


def kinds_of(path: Path) -> dict[str, Any]:
    """The same image as everything that an image can be."""
    with Image.open(path) as opened:
        pillow = opened.convert("RGB")
    array = np.asarray(pillow)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    return {
        "str": str(path),
        "path": path,
        "pillow": pillow,
        "array": array,
        "strided": np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
        "tensor": tensor,
        "floats": tensor.float() / 255,
        "doubles": array.astype(np.float64) / 255,
        "uint16": array.astype(np.uint16) * 257,
    }


def test_every_kind_of_image_gives_the_same_input() -> None:
    transform = featnet.create_transform("resnet50", input_size=64)
    expected = transform(CHELSEA)
    assert expected.shape == (3, 64, 64) and expected.dtype == torch.float32
    for name, image in kinds_of(CHELSEA).items():
        assert torch.equal(transform(image), expected), name
    both = transform([str(CHELSEA), kinds_of(CHELSEA)["tensor"]])
    assert torch.equal(both, torch.stack([expected, expected]))


def test_grey_images() -> None:
    grey = torch.arange(12, dtype=torch.uint8).view(3, 4)
    for image in (grey.numpy(), grey, grey[None], grey.numpy()[..., None]):
        assert np.array_equal(np.asarray(to_pil(image)), grey[..., None].expand(3, 4, 3).numpy())


def test_a_transparent_array_lies_on_white() -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    assert to_pil(pixels).getpixel((0, 0)) == (255, 255, 255)


def test_float_tiff(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(path)
    assert read_image(path).getpixel((0, 0)) == (128,) * 3
    for low, high in ((0.0, 255.0), (-0.5, 0.5), (float("nan"), 1.0)):
        Image.fromarray(np.array([[low, high]], np.float32)).save(path)
        with pytest.raises(ImageError, match=f"float.tif.*floats from {low:g} to"):
            read_image(path)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"array \(3, 8, 9\) is no image \(H, W, C\).*permute"),
        (torch.zeros(8, 9, 3, dtype=torch.uint8), r"no image \(C, H, W\).*looks like \(H, W, C\)"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "no image"),
        (np.zeros((8, 9, 5), np.uint8), "of 1, 3 or 4 channels"),
        (np.zeros((0, 9, 3), np.uint8), "no pixels"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (np.zeros((8, 9, 3), np.int64), "int64: uint8, or floats from 0 to 1"),
        (np.full((8, 9, 3), 200.0), "floats from 200 to 200: 0 to 1"),
        (torch.full((3, 4, 4), -1.0), "floats from -1 to -1"),
        (np.full((8, 9, 3), np.nan), "floats from nan"),
    ],
)
def test_what_is_no_image(image: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        featnet.create_transform("resnet50")(image)


def test_what_is_no_image_at_all() -> None:
    transform = featnet.create_transform("resnet50")
    with pytest.raises(ArgumentError, match="7 is a int: a path, a Pillow image"):
        transform(7)
    with pytest.raises(ArgumentError, match="list of images is empty"):
        transform([])
    with pytest.raises(ImageError, match="'https:/.*' is a URL: download"):
        transform("https://example.org/cat.jpg")
    with pytest.raises(ImageError, match="does not exist"):
        transform("no-such.jpg")


# The fits ---------------------------------------------------------------------------------------


def test_cropping_is_timms_evaluation_transform(timm: Any) -> None:
    """For a hundred checkpoints, and all whose inputs are not square."""
    tags = featnet.list_pretrained()
    chosen = random.Random(0).sample(tags, 100)
    chosen += [t for t in tags if len(set(featnet.get_weights(t).input_size[1:])) > 1]
    images = [read_image(path) for path in photographs.PATHS.values()]
    done = set()
    for tag in chosen:
        ours = featnet.create_transform(tag)
        if ours in done:
            continue
        done.add(ours)
        config = timm.data.resolve_data_config(
            {}, pretrained_cfg=timm.get_pretrained_cfg(tag).to_dict()
        )
        theirs = timm.data.create_transform(**config)
        for image in images:
            assert (ours(image) - theirs(image)).abs().max() < 1 / 255, tag
    assert len(done) > 10


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("pct", [0.8, 1.0, 1.2])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_every_way_to_crop_is_timms(mode: str, pct: float, size: Any, timm: Any) -> None:
    ours = featnet.ImageTransform(size, crop_mode=mode, crop_pct=pct)
    theirs = timm.data.create_transform(
        (3, *size), crop_mode=mode, crop_pct=pct, interpolation="bicubic"
    )
    for shape in ((90, 61), (61, 90), (50, 50), (200, 8), (1, 1)):
        image = Image.effect_noise(shape, 90).convert("RGB")
        a, b = ours(image), theirs(image)
        assert a.shape == b.shape
        known = ours.denormalize(b) > 1e-3  # timm's border of what is too small is black
        assert ((a - b).abs() * known).max() < 1 / 255, shape


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (8, 2000), (2000, 8), (1, 1), (64, 64)])
def test_the_size_and_the_aspect_of_a_fit(fit: str, shape: tuple[int, int]) -> None:
    transform = featnet.create_transform("resnet50", input_size=(64, 96), fit=fit)
    x = transform(torch.zeros(3, *shape, dtype=torch.uint8))
    place = transform.placement(shape)
    assert tuple(x.shape) == (3, *place.size)
    if fit in ("crop", "pad", "squash"):
        assert place.size == (64, 96)
    if fit == "short":
        assert min(place.size) == 64
    if fit == "keep":
        assert place.size == shape
    if fit != "squash":  # one scale for both sides, up to the rounding of a side to a pixel
        scale = max(place.resized) / max(shape)
        assert abs(min(place.resized) - min(shape) * scale) <= 1 + scale


def test_padding_is_the_mean_and_in_the_middle() -> None:
    transform = featnet.create_transform("resnet50", input_size=64, fit="pad")
    x = transform(torch.full((3, 100, 200), 255, dtype=torch.uint8))
    bright = (x > 1).all(0)
    assert bright[16:48].all() and not bright[:16].any() and not bright[48:].any()
    assert x[:, :16].abs().max() < 0.5 / 255 / min(transform.std) + 1e-6


def test_denormalize_gives_the_image_back() -> None:
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    for name in ("resnet50", "tf_efficientnet_lite0", "vit_base_patch16_clip_224.openai"):
        transform = featnet.create_transform(name, fit="keep")
        again = transform.denormalize(transform([image]))[0]
        assert torch.equal((again * 255).round().to(torch.uint8), image)


@pytest.mark.parametrize("fit", FITS)
def test_pixels_of_the_input_are_pixels_of_the_image(fit: str) -> None:
    """A bright block is where to_source says."""
    transform = featnet.create_transform("resnet50", input_size=(60, 90), fit=fit, mean=(0, 0, 0))
    image = torch.zeros(3, 240, 300, dtype=torch.uint8)
    image[:, 100:120, 130:170] = 255
    bright = (transform(image)[0] > 0.5 / transform.std[0]).nonzero()
    low, high = bright.min(0).values.flip(0), bright.max(0).values.flip(0) + 1
    box = torch.cat([low, high]).double()
    source = transform.to_source(box, size=(240, 300))
    assert (source - torch.tensor([130, 100, 170, 120])).abs().max() <= 240 / 60 / 2 + 0.5
    assert torch.equal(transform.to_source(box[:2], size=(240, 300)), source[:2])


def test_long_and_thin_images_take_little_memory() -> None:
    thin = Image.new("RGB", (1, 400_000))
    assert featnet.create_transform("resnet50")(thin).shape == (3, 224, 224)
    with pytest.raises(ImageError, match="would become .* say max_side="):
        featnet.create_transform("resnet50", fit="short")(thin)
    limited = featnet.create_transform("resnet50", fit="short", max_side=1000)
    assert limited(thin).shape == (3, 1000, 1)


def test_inputs_that_differ_in_size_are_no_batch() -> None:
    transform = featnet.create_transform("resnet50", fit="keep")
    images = [torch.zeros(3, n, 8, dtype=torch.uint8) for n in (8, 9)]
    with pytest.raises(ArgumentError, match=r"\(8, 8\) and \(9, 8\).*'keep'"):
        transform(images)


# Whose input it is ------------------------------------------------------------------------------


def test_everything_that_knows_its_weights() -> None:
    name, options = "tf_efficientnet_lite0", dict(features_only=True, out_indices=(3,))
    expected = featnet.create_transform(name)
    assert expected.mean == (0.5, 0.5, 0.5)
    with torch.device("meta"):
        model = featnet.create_model(name)
        nets = [
            model,
            featnet.create_model(name, **options),
            featnet.create_model(name, **options, feature_cls="hook"),
            featnet.create_feature_extractor(model, ["blocks.2"]),
            featnet.adapters.TorchvisionBackbone(featnet.create_model(name, **options)),
            torch.nn.DataParallel(featnet.create_model(name, **options)),
            featnet.extract(model, ["blocks.2"]),
        ]
    for net in nets:
        assert featnet.create_transform(net) == expected, type(net)
    weights = featnet.get_weights(name)
    assert featnet.create_transform(weights) == expected
    assert featnet.create_transform(dict(weights)) == expected


def test_timms_models_too(timm: Any) -> None:
    peer = helpers.peer_model("tf_efficientnet_lite0", pretrained=False)
    assert featnet.create_transform(peer) == featnet.create_transform("tf_efficientnet_lite0")


def test_the_size_for_testing() -> None:
    name = "resnet50.a1_in1k"
    weights = featnet.get_weights(name)
    plain = featnet.create_transform(name)
    larger = featnet.create_transform(name, use_test_size=True)
    assert plain.input_size == weights.input_size[1:] and plain.crop_pct == weights.crop_pct
    assert larger.input_size == weights.test_input_size[1:]
    assert larger.crop_pct == weights.test_crop_pct


def test_a_network_of_grey_images() -> None:
    with torch.device("meta"):
        net = featnet.create_model("resnet18", in_chans=1)
        odd = featnet.create_model("resnet18", in_chans=5)
    transform = featnet.create_transform(net, input_size=32)
    assert transform(CHELSEA).shape == (1, 32, 32)
    assert transform.denormalize(transform(CHELSEA)).shape == (1, 32, 32)
    with pytest.raises(ArgumentError, match="in_chans=5"):
        featnet.create_transform(odd)


def test_a_transform_goes_to_workers() -> None:
    transform = featnet.create_transform("resnet50", input_size=32)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(CHELSEA), transform(CHELSEA))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(fit="crp"), "fit='crp'.*'crop'"),
        (dict(interpolation="bicubik"), "interpolation='bicubik'.*'bicubic'"),
        (dict(input_size=0), "input_size=0"),
        (dict(input_size=(1, 2, 3, 4)), "input_size="),
        (dict(input_size="224"), "input_size='224'"),
        (dict(mean=(0.5, 0.5)), "three numbers"),
        (dict(mean="grey"), "mean='grey'"),
        (dict(crop_pct=0), "crop_pct=0"),
        (dict(max_side=100), "max_side=100 has no effect"),
        (dict(max_side=0, fit="keep"), "max_side=0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        featnet.create_transform("resnet50", **options)


def test_bad_sources() -> None:
    with pytest.raises(UnknownModelError, match="resnet51.*resnet50"):
        featnet.create_transform("resnet51")
    with pytest.raises(ArgumentError, match="Linear says nothing about its inputs"):
        featnet.create_transform(torch.nn.Linear(1, 1))


# Vectors ----------------------------------------------------------------------------------------


def test_pools_are_what_they_are_called() -> None:
    maps = [torch.randn(2, 8, 4, 5).double(), torch.randn(2, 3, 2, 2).double()]
    expected = {
        "avg": torch.cat([m.mean((2, 3)) for m in maps], 1),
        "max": torch.cat([m.flatten(2).max(2).values for m in maps], 1),
        "gem": torch.cat([(m.clamp(1e-6) ** 3).mean((2, 3)) ** (1 / 3) for m in maps], 1),
    }
    for pool, vectors in expected.items():
        torch.testing.assert_close(featnet.pool_features(maps, pool, normalize=False), vectors)
        unit = featnet.pool_features(dict(enumerate(maps)), pool=pool)
        torch.testing.assert_close(unit, F.normalize(vectors))
    one = featnet.pool_features(maps[0], normalize=False)
    torch.testing.assert_close(one, maps[0].mean((2, 3)))


def test_half_precision_is_summed_in_single() -> None:
    maps = torch.full((1, 1, 300, 300), 1.001, dtype=torch.float16)
    assert featnet.pool_features(maps, normalize=False).dtype == torch.float32


def test_the_class_token_is_the_first_of_the_prefix() -> None:
    net = helpers.create(
        "vit_tiny_patch16_224", features_only=True, out_indices=(1, -1), return_prefix_tokens=True
    ).eval()
    x = helpers.image_batch(224, 224, batch=2)
    with torch.no_grad():
        maps = net(x)
    vectors = featnet.pool_features(maps, "cls", normalize=False)
    assert torch.equal(vectors, torch.cat([tokens[:, 0] for _, tokens in maps], 1))
    average = featnet.pool_features(maps, normalize=False)
    assert torch.equal(average, torch.cat([m.mean((2, 3)) for m, _ in maps], 1))
    assert torch.equal(
        featnet.pool_features(maps[0], "cls"), featnet.pool_features(maps[:1], "cls")
    )
    with pytest.raises(ArgumentError, match="no class token.*return_prefix_tokens=True"):
        featnet.pool_features([m for m, _ in maps], "cls")


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        ([], "no maps"),
        ([3], "int is no map"),
        (torch.zeros(2, 3), r"\(2, 3\): \(N, C, H, W\)"),
        (torch.zeros(3, 4, 4), r"x\[None\]"),
        (torch.zeros(1, 3, 0, 4), "shape"),
    ],
)
def test_what_is_no_map(maps: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        featnet.pool_features(maps)
    with pytest.raises(ArgumentError, match="pool='ag'.*'avg'"):
        featnet.pool_features(torch.zeros(1, 1, 1, 1), "ag")
