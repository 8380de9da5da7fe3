"""TResNet: its authors' checkpoints, its stem, and the sizes that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fill_noise, image_batch
from torch import nn

import featnet

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "width": 16, "num_classes": 5}


def test_the_authors_file(timm: Any, tmp_path: Path) -> None:
    """Layers by number, and norms whose weights have no sign; timm reads it alike."""
    from timm.models.tresnet import checkpoint_filter_fn

    model = fill_noise(featnet.create_model("tresnet_m", **SMALL)).eval()
    theirs = {}
    for key, value in model.state_dict().items():
        key = key.replace("downsample.1.conv", "downsample.1.0")
        key = key.replace("downsample.1.bn", "downsample.1.1")
        if "layer" in key:
            twice = ".0" if "conv1" in key else ""
            key = key.replace(".conv.", f"{twice}.0.").replace(".bn.", f"{twice}.1.")
        else:
            key = key.replace("conv1.conv.", "conv1.0.").replace("conv1.bn.", "conv1.1.")
        theirs[key] = -value if key.endswith(("1.weight", "bn.weight")) else value
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    ours: Any = featnet.create_model("tresnet_m", checkpoint_path=tmp_path / "theirs.pth", **SMALL)
    wanted = checkpoint_filter_fn({"model": dict(theirs)}, None)
    assert ours.state_dict().keys() == wanted.keys()
    assert all(torch.equal(v, wanted[k]) for k, v in ours.state_dict().items())


def test_one_channel_sees_a_grey_image_as_three_do(tmp_path: Path) -> None:
    model: Any = fill_noise(featnet.create_model("tresnet_m", **SMALL)).eval()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    grey: Any = featnet.create_model(
        "tresnet_m", in_chans=1, checkpoint_path=tmp_path / "m.pth", **SMALL
    ).eval()
    x = image_batch(32, 32)[:, :1]
    torch.testing.assert_close(grey(x), model(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_an_image_without_whole_patches_is_padded() -> None:
    net: Any = featnet.create_model("tresnet_m", features_only=True, **SMALL).eval()
    x = image_batch(33, 45)
    padded = nn.functional.pad(x, (0, 3, 0, 3))
    assert all(map(torch.equal, net(x), net(padded)))
    assert net.feature_info.reduction()[:2] == [4, 4]


@pytest.mark.parametrize("kind", ["list", "dict", "hook"])
def test_a_child_may_have_the_name_of_an_extractors_attribute(kind: str) -> None:
    """TResNet's own ``body``: by its name it is found in the extractor as in the network."""
    net = featnet.create_model("tresnet_m", features_only=True, feature_cls=kind, device="meta")
    for name, module in net.named_modules():
        assert net.get_submodule(name) is module
    for name, parameter in net.named_parameters():
        assert net.get_parameter(name) is parameter
    net.set_submodule("body.conv1.act", other := torch.nn.Identity())
    assert net.get_submodule("body.conv1.act") is net.body.get_submodule("body.conv1.act") is other
