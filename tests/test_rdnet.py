"""RDNet: its authors' checkpoints, and dense blocks whose input is a level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fill_noise, image_batch

import featnet

SMALL: dict[str, Any] = {
    "growth_rates": (8, 16, 8, 24),
    "depths": (1, 2, 1, 1),
    "downsample": (1, 3),
    "stem_chs": 16,
    "num_classes": 5,
}


def small() -> Any:
    return fill_noise(featnet.create_model("rdnet_tiny", **SMALL)).eval()


def test_the_authors_file(timm: Any, tmp_path: Path) -> None:
    """A stem within a stem, inside of a training state; timm reads it alike."""
    from timm.models.rdnet import checkpoint_filter_fn

    model = small()
    state = model.state_dict()
    theirs = {k.replace("stem.", "stem.stem.", 1): v for k, v in state.items()}
    assert theirs.keys() != state.keys()
    assert model.convert_state_dict(theirs).keys() == state.keys()
    assert checkpoint_filter_fn({"model": dict(theirs)}, None).keys() == state.keys()
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    loaded: Any = featnet.create_model(
        "rdnet_tiny", checkpoint_path=str(tmp_path / "theirs.pth"), **SMALL
    ).eval()
    x = image_batch(64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("downsample", [(1, 3), (1, 2), (2, 3)])
def test_a_level_is_the_last_stage_of_its_size(downsample: tuple[int, ...]) -> None:
    model = featnet.create_model("rdnet_tiny", **{**SMALL, "downsample": downsample})
    ends = [i for i in range(4) if i == 3 or i + 1 in downsample]
    assert model.feature_info.module_name() == [f"dense_stages.{i}" for i in ends]
    assert model.feature_info.reduction() == [4, 8, 16]
