"""EfficientNet-PyTorch's checkpoints: the same numbers, and meaning where the weights are
trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helpers
import photographs
import pytest
import torch
from safetensors.torch import save_file

import featnet
from featnet.errors import CheckpointError

# Ours: its package and its name there. Lite0 and B0 have as many blocks, as have Lite1, Lite2, B1
# and B2: the squeeze-excites and the widths tell them apart.
NETWORKS = {
    "tf_efficientnet_lite0": ("efficientnet_lite_pytorch", "efficientnet-lite0"),
    "tf_efficientnet_lite1": ("efficientnet_lite_pytorch", "efficientnet-lite1"),
    "tf_efficientnet_lite2": ("efficientnet_lite_pytorch", "efficientnet-lite2"),
    "tf_efficientnet_b0": ("efficientnet_pytorch", "efficientnet-b0"),
    "tf_efficientnet_b2": ("efficientnet_pytorch", "efficientnet-b2"),
}
SIZE = 64


def build(name: str, **options: Any) -> Any:
    """The other package's network; it pads for inputs of one size."""
    package, other = NETWORKS[name]
    return helpers.peer(package).EfficientNet.from_name(other, image_size=SIZE, **options)


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize("other", NETWORKS)
def test_the_same_numbers(other: str, tmp_path: Path) -> None:
    theirs = helpers.noisy(lambda: build(other, num_classes=10)).double().eval()
    state = theirs.state_dict()
    path = saved(state, tmp_path / "m.safetensors")
    model = featnet.create_model(
        other, num_classes=10, checkpoint_path=path, dtype=torch.float64
    ).eval()
    report = model.load_report
    assert report.steps == ("layout of EfficientNet-PyTorch",) and not report.converted
    assert report.loaded == len(state) == len(model.state_dict())
    x = helpers.image_batch(SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        assert helpers.error(model(x), theirs(x)) < 1e-10
        features = model.forward_features(x)
        assert helpers.error(features, theirs.extract_features(x)) < 1e-10


def test_below_a_prefix_and_without_a_classifier(tmp_path: Path) -> None:
    """As the encoder in the checkpoint of a segmentation model."""
    state = helpers.noisy(lambda: build("tf_efficientnet_lite0")).state_dict()
    state = {f"encoder.{k}": v for k, v in state.items() if not k.startswith("_fc")}
    path = saved({**state, "decoder.x": torch.ones(1)}, tmp_path / "m.safetensors")
    net = featnet.create_model("tf_efficientnet_lite0", features_only=True, checkpoint_path=path)
    assert torch.equal(net.body.conv_stem.weight, state["encoder._conv_stem.weight"])
    assert net.load_report.dropped["decoder.x"] == "outside of 'encoder.'"


def test_a_file_of_another_of_these_networks_is_named(tmp_path: Path) -> None:
    """Whose tensors are as many, in the same order."""
    with helpers.Unset():
        shapes = {name: build(name).state_dict() for name in NETWORKS}
    for right in ("tf_efficientnet_lite1", "tf_efficientnet_b2"):
        path = saved(shapes[right], tmp_path / "m.safetensors")
        for wrong in NETWORKS:
            if wrong != right:
                with pytest.raises(CheckpointError, match=f"those of '{right}', not"):
                    featnet.create_model(wrong, checkpoint_path=path)


def test_another_padding_is_refused(tmp_path: Path) -> None:
    path = saved(build("tf_efficientnet_b0").state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="TensorFlow's padding.*build 'tf_efficientnet_b0'"):
        featnet.create_model("efficientnet_b0", checkpoint_path=path)
    model = featnet.create_model("efficientnet_b0", pad_type="same", checkpoint_path=path)
    assert "epsilon 0.001 instead of 1e-05" in str(model.load_report)


# With trained weights ---------------------------------------------------------------------------


def top(model: Any, photograph: str) -> list[int]:
    x = featnet.create_transform(model)([photographs.PATHS[photograph]])
    with torch.no_grad():
        return model(x)[0].topk(3).indices.tolist()


def test_photographs_are_recognised() -> None:
    model = photographs.trained()
    assert {name: top(model, name)[0] for name in photographs.CLASSES} == photographs.CLASSES


def test_at_output_stride_8_the_cat_is_still_a_tiger_cat(timm: Any) -> None:
    """The classes keep their order where dilation keeps what the weights mean; timm's does not."""
    plain, dense = photographs.trained(), photographs.trained(output_stride=8)
    assert top(plain, "chelsea")[0] == top(dense, "chelsea")[0] == 282
    assert set(top(plain, "chelsea")) == set(top(dense, "chelsea"))
    peer = helpers.peer_model("tf_efficientnet_lite0", pretrained=False, output_stride=8)
    peer.load_state_dict(plain.state_dict())
    x = featnet.create_transform(plain)([photographs.PATHS["chelsea"]])
    with torch.no_grad():
        assert peer.eval()(x).argmax() == 285
