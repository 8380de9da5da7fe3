"""The Inceptions: unpadded stems, and the classifier in the middle that files may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import featnet
from featnet.errors import InputSizeError


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("inception_v3", [147, 71, 35, 17, 8]),
        ("inception_v4", [147, 73, 35, 17, 8]),
        ("inception_resnet_v2", [147, 71, 35, 17, 8]),
    ],
)
def test_sizes(name: str, sides: list[int]) -> None:
    info = featnet.feature_info(name)
    assert [height for height, _ in info.sizes((299, 299))] == sides
    with pytest.raises(InputSizeError, match="smallest square that works is 75 x 75"):
        info.sizes((64, 64))


def test_a_file_with_a_classifier_in_the_middle(tmp_path: Path) -> None:
    """It is left out, and the report says so."""
    with torch.device("meta"):
        shapes = featnet.create_model("inception_v3").state_dict()
    state = {key: torch.rand(v.shape).to(v.dtype) for key, v in shapes.items()}
    more = {"AuxLogits.fc.weight": torch.ones(1000, 768), "AuxLogits.fc.bias": torch.ones(1000)}
    torch.save({**state, **more}, tmp_path / "tv.pth")
    model: Any = featnet.create_model("inception_v3", checkpoint_path=tmp_path / "tv.pth")
    assert model.load_report.dropped.keys() == more.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
