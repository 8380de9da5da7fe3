"""Values of arguments: what an annotation does not allow is refused, by one check."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import featnet
from featnet import registry
from featnet.errors import ArgumentError, FeatnetError, InputSizeError, OutIndexError
from featnet.values import check_size, check_value


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", [0, 3], [-1, 1.0, True, "3", None, [1]]),
        ("float", [0, 0.5, 3], [True, "0.1", None, float("nan"), float("inf")]),
        ("bool", [True, False], [0, 1, "yes", None]),
        ("str | None", ["a", None], [b"a", 1]),
        ("Size", [(3, 4), [3, 4]], [3, (3,), (3, 4, 5), (0, 4), "34", (3.0, 4)]),
        ("int | tuple[int, int]", [5, (3, 4)], [(3, 4, 5), 5.0]),
        ("Sequence[int]", [(), (1, 2, 3)], [3, "12", (1, 2.0), (-1,)]),
        ("Sequence[int | None] | None", [(1, None), None], [(1, "a"), 0]),
        ("tuple[float, ...]", [(0.5,), [1, 2, 3]], ["a", 0.5, ("a",)]),
        ("Layer | None", [None, 3, "anything"], []),
    ],
)
def test_annotations(annotation: str, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        check_value("x", value, annotation)
    for value in wrong:
        with pytest.raises(ArgumentError, match=r"^here: x=.* expected\.$"):
            check_value("x", value, annotation, where="here: ")


def test_every_row_passes() -> None:
    for name in featnet.list_models():
        entry = registry.find(name)
        registry.check_values(entry.build, entry.row, what=name)


WRONG = {
    "int": [-1, 2.5, "3", True],
    "float": ["0.1", True],
    "bool": ["yes", 1],
    "str": [7],
    "Size": [0, "224", (1,)],
}


@pytest.mark.parametrize("family", featnet.list_modules())
def test_no_constructor_takes_a_wrong_type(family: str) -> None:
    entry = registry.find(featnet.list_models(module=family)[0])
    checked = 0
    for parameter in inspect.signature(entry.build).parameters.values():
        for value in WRONG.get(str(parameter.annotation), ()):
            with pytest.raises(ArgumentError, match=f"{parameter.name}="):
                featnet.create_model(entry.name, device="meta", **{parameter.name: value})
            checked += 1
    assert checked > 5


@pytest.mark.parametrize("size", [224, (3, 64, 64), "224", (64.0, 64.0), None, (64,), (True, True)])
def test_sizes_takes_two_ints(size: Any) -> None:
    with pytest.raises(ArgumentError, match=r"\(height, width\) in pixels"):
        featnet.feature_info("resnet18").sizes(size)
    with pytest.raises(InputSizeError, match="sides from 1"):
        check_size((0, 5))


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"input_size": 224}, r"input_size=224: \(channels, height, width\)"),
        ({"mean": "a"}, "mean='a': a sequence of numbers"),
        ({"num_classes": -3}, "num_classes=-3"),
        ({"fixed_input_size": "no"}, "fixed_input_size='no': True or False"),
    ],
)
def test_records_of_weights(overlay: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        featnet.create_model("resnet18", pretrained_cfg_overlay=overlay, device="meta")


@pytest.mark.parametrize("value", [None, [], 5, "path.pth"])
def test_public_functions_answer_what_they_cannot_take(value: Any) -> None:
    """Each raises one of featnet's own errors, or takes it."""
    net = featnet.create_model("test_resnet", features_only=True)
    calls = [
        lambda: featnet.FeatureInfo(value),
        lambda: featnet.SimplePyramid(value),
        lambda: featnet.build_model_with_cfg(value),
        lambda: featnet.list_models(value),
        lambda: featnet.list_pretrained(value),
        lambda: featnet.prefetch(value),
        lambda: featnet.pad_to_divisor(value, net),
        lambda: featnet.unpad(value, value, padded=value),
        lambda: featnet.pool_features(value),
        lambda: featnet.render_features(value),
        lambda: featnet.create_model(value),
        lambda: featnet.feature_info(value),
        lambda: featnet.load_checkpoint(value, value),
        lambda: featnet.FeatureListNet(value),
        lambda: featnet.FeatureHookNet(value),
        lambda: featnet.discover(value),
        lambda: featnet.extract(value, ["a"]),
        lambda: featnet.freeze(value),
        lambda: featnet.param_groups(value, lr=0.1),
        lambda: featnet.optimize(value),
        lambda: featnet.reparameterize(value),
        lambda: featnet.set_output_stride(value, 8),
        lambda: featnet.save_for_hub(value, value),
        lambda: featnet.create_transform(value),
        lambda: net.feature_info.channels(value if value else "a"),
    ]
    for index, call in enumerate(calls):
        try:
            call()
        except FeatnetError as error:
            assert str(error), index


def test_positions_that_do_not_come_out() -> None:
    info = featnet.feature_info("resnet18", out_indices=(1, 2))
    assert info.channels(-2) == 64 and info.channels([0, 1]) == [64, 128]
    for idx in (2, -3, [0, 5]):
        with pytest.raises(OutIndexError, match="2 levels come out, positions -2 to 1"):
            info.channels(idx)


def test_an_input_on_another_device() -> None:
    net = featnet.create_model("test_resnet", features_only=True)
    with pytest.raises(ArgumentError, match="input is on meta and the network on cpu"):
        net(torch.zeros(1, 3, 64, 64, device="meta"))
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match="device='cuda'"):
            featnet.create_model("test_resnet", device="cuda")
