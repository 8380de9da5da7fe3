"""CoaT's modules that several blocks share, and the two forms of its scales."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import error, fill_noise, image_batch
from torch import nn

import featnet
from featnet.models.coat import Shrink

SMALL: dict[str, Any] = dict(
    embed_dims=(16, 24, 24, 24), serial_depths=(1, 1, 1, 1), parallel_depth=2
)


def names(model: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return found


def small(name: str = "coat_tiny", **options: Any) -> Any:
    return fill_noise(featnet.create_model(name, **{**SMALL, **options})).eval()


def test_shared_modules_stay_shared(tmp_path: Path) -> None:
    model = small()
    wanted = sorted(names(model).values())
    assert [f"parallel_blocks.0.mlp{i}.fc1.bias" for i in (2, 3, 4)] in wanted
    assert any(same[0] == "crpe2.conv_list.0.bias" and len(same) == 4 for same in wanted)
    file = tmp_path / "weights.pt"
    torch.save(model.state_dict(), file)
    loaded = featnet.create_model("coat_tiny", checkpoint_path=str(file), **SMALL).eval()
    copies = [loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    x = image_batch(64, 96)
    with torch.inference_mode():
        for other in copies:
            assert sorted(names(other).values()) == wanted
            assert torch.equal(other(x), model(x))
    assert sorted(names(loaded.to(torch.float64)).values()) == wanted
    net = featnet.FeatureListNet(model, (1,))
    keys = set(net.state_dict())
    assert sorted(names(net).values()) == sorted(
        same for same in ([k for k in group if k in keys] for group in wanted) if same
    )
    assert not any(".norm23" in key and key.startswith("parallel_blocks.1") for key in keys)


def test_a_checkpoint_that_holds_what_is_shared_once() -> None:
    model, other = small(), small()
    state = model.state_dict()
    once = {key: state[key] for key, _ in model.named_parameters()}
    assert len(once) < len(state)
    converted = other.convert_state_dict({**once, "norm1.weight": torch.ones(16)})
    assert other.load_state_dict(converted)
    assert other.convert_state_dict(state).keys() == state.keys()


def test_the_first_level_does_without_the_parallel_blocks() -> None:
    first = featnet.FeatureListNet(small(), (0,))
    assert not any(key.startswith(("parallel", "serial_blocks2")) for key in first.state_dict())


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_is_interpolation(factor: int) -> None:
    x = torch.randn(1, 2, 8, 12)
    wanted = F.interpolate(x, scale_factor=1 / factor, mode="bilinear")
    assert torch.allclose(Shrink(factor)(x), wanted, atol=1e-6)
    assert Shrink(factor)(x[..., :7, :9]).shape[-2:] == (-(-7 // factor), -(-9 // factor))
    dense = Shrink(factor)
    dense.dilate(2, (1, 1))
    wide = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.allclose(dense(wide)[..., :: 2 * factor, :: 2 * factor], wanted, atol=1e-6)


def test_scales_of_several_widths_cannot_exchange() -> None:
    for name, wrong in (("coat_tiny", {"embed_dims": (16, 24, 24, 32)}), ("coat_lite_tiny", {})):
        with pytest.raises(featnet.errors.ArgumentError, match="no parallel blocks"):
            small(name, **wrong)


def test_an_output_stride_keeps_the_class_token() -> None:
    """It asks the positions of the original network, whatever lies between them."""
    model = small("coat_lite_tiny", parallel_depth=0).double()
    dense = featnet.create_model(
        "coat_lite_tiny", features_only=True, output_stride=8, **{**SMALL, "parallel_depth": 0}
    )
    dense = dense.double().eval()
    dense.load_state_dict({k: model.state_dict()[k] for k in dense.state_dict()})
    x = image_batch(64, 96, dtype=torch.float64)
    with torch.inference_mode():
        tokens = [
            maps[-1][1]
            for maps in (
                net.forward_intermediates(x, intermediates_only=True, return_prefix_tokens=True)
                for net in (model, dense.body)
            )
        ]
    assert error(*tokens) < 1e-12
