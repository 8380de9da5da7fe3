"""ResNetV2: BiT's own archives, and standardised convolutions that are folded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error, fill_noise, image_batch

import featnet
from featnet.errors import ArgumentError
from featnet.layers import StdConv2d

SMALL: dict[str, Any] = {
    "depths": (1, 2, 1, 1),
    "widths": (128, 128, 256, 256),
    "stem_widths": (32,),
}
LAYERS = {"conv": "standardized_conv2d", "norm": "group_norm"}
OUTER = {"stem": "root_block/standardized_conv2d", "norm": "group_norm", "head": "head/conv2d"}


def bit(**options: Any) -> Any:
    return featnet.create_model("resnetv2_50x1_bit", **SMALL, **options)


def bits_name(key: str, value: torch.Tensor) -> str:
    """The name that BiT's archives have for a tensor."""
    *path, leaf = key.split(".")
    name = OUTER.get(path[0], "")
    if path[0] == "stages":
        unit = f"block{int(path[1]) + 1}/unit{int(path[3]) + 1:02d}"
        layer = (
            f"{'abc'[int(path[4][-1]) - 1]}/{LAYERS[path[4][:-1]]}" if path[4][-1].isdigit() else ""
        )
        name = f"{unit}/{layer or 'a/proj/standardized_conv2d'}"
    weight = "kernel" if value.ndim == 4 else "gamma"
    bias = "bias" if path[0] == "head" else "beta"
    return f"resnet/{name}/{weight if leaf == 'weight' else bias}"


@pytest.mark.parametrize("num_classes", [5, 7])
def test_bits_own_archive(num_classes: int, timm: Any, tmp_path: Path) -> None:
    """Kernels whose channels come last, into a classifier of as many classes or of others; timm
    reads them alike."""
    np = pytest.importorskip("numpy")
    donor = fill_noise(bit(num_classes=5)).eval()
    arrays = {
        bits_name(key, value): (value.permute(2, 3, 1, 0) if value.ndim == 4 else value).numpy()
        for key, value in donor.state_dict().items()
    }
    np.savez(tmp_path / "bit.npz", **arrays)
    ours = bit(num_classes=num_classes, checkpoint_path=tmp_path / "bit.npz").eval()
    x = image_batch(64, 64)
    assert torch.equal(ours.forward_features(x), donor.forward_features(x))
    if num_classes == 5:
        peer: Any = timm.models.resnetv2.ResNetV2(
            layers=SMALL["depths"],
            channels=SMALL["widths"],
            stem_chs=32,
            stem_type="fixed",
            conv_layer=partial(timm.layers.StdConv2d, eps=1e-8),
            num_classes=5,
        ).eval()
        peer.load_pretrained(str(tmp_path / "bit.npz"))
        assert error(ours(x), peer(x)) < 1e-5


@pytest.mark.parametrize(
    ("name", "options"), [("resnetv2_50x1_bit", SMALL), ("vit_tiny_r_s16_p8_224", {"depth": 1})]
)
def test_standardised_convolutions_are_folded(name: str, options: dict[str, Any]) -> None:
    """Their weights do not change in eval; the values stay."""
    net: Any = fill_noise(featnet.create_model(name, features_only=True, **options)).eval()
    fast: Any = featnet.optimize(net)
    assert any(isinstance(module, StdConv2d) for module in net.modules())
    assert not any(isinstance(module, StdConv2d) for module in fast.modules())
    x = image_batch(64, 96)
    for found, wanted in zip(fast(x), net(x), strict=True):
        assert error(found, wanted) < 1e-4


def test_a_pool_that_does_not_exist() -> None:
    with pytest.raises(ArgumentError, match="stem_pool='fixd'.*Did you mean 'fixed'"):
        featnet.create_model("resnetv2_18", stem_pool="fixd")
