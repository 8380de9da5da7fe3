"""Public functions with one wrong argument: each is answered by an error of featnet's own."""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

import featnet
from featnet.errors import FeatnetError

# As many as fit into some seconds, always the same ones
FEW = hypothesis.settings(
    derandomize=True,
    max_examples=int(os.environ.get("FEATNET_FUZZ", "250")),
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
NAME = "test_resnet"
IMAGES = torch.zeros(1, 3, 64, 64)


@cache
def _built(features_only: bool = False) -> Any:
    return featnet.create_model(NAME, features_only=features_only).eval()


def network() -> Any:
    return copy.deepcopy(_built())


def extractor() -> Any:
    return copy.deepcopy(_built(True))


def foreign() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())


def maps() -> torch.Tensor:
    return torch.rand(2, 8, 4, 4)


# A call that works, of each: positional arguments, keywords
Call = tuple[tuple[Any, ...], dict[str, Any]]
CALLS: dict[str, Callable[[], Call]] = {
    "FeatureDictNet": lambda: ((network(),), {"out_indices": (1, 2)}),
    "FeatureHookNet": lambda: ((network(),), {"out_indices": (1, 2)}),
    "FeatureHooks": lambda: ((foreign(), ["1"]), {}),
    "FeatureListNet": lambda: ((network(),), {"out_indices": (1, 2)}),
    "FrozenBatchNorm2d": lambda: ((8,), {}),
    "SimplePyramid": lambda: ((_built(True).feature_info,), {}),
    "convert_checkpoint": lambda: ((network().state_dict(), "out.safetensors"), {"model": NAME}),
    "create_feature_extractor": lambda: ((foreign(), ["1"]), {}),
    "create_model": lambda: ((NAME,), {"features_only": True, "device": "meta"}),
    "create_transform": lambda: ((_built(),), {}),
    "discover": lambda: ((foreign(),), {}),
    "extract": lambda: ((foreign(), ["1", "3"]), {}),
    "extract_tiled": lambda: ((extractor(), IMAGES), {"tile": 64, "blend": True}),
    "feature_info": lambda: ((NAME,), {}),
    "freeze": lambda: ((network(),), {"until": 1}),
    "get_graph_node_names": lambda: ((foreign(),), {}),
    "get_weights": lambda: (("resnet50",), {}),
    "is_model": lambda: (("resnet50",), {}),
    "list_models": lambda: ((), {}),
    "list_modules": lambda: ((), {}),
    "list_pretrained": lambda: ((), {}),
    "list_taps": lambda: ((foreign(),), {}),
    "load_checkpoint": lambda: ((network(), network().state_dict()), {}),
    "model_entrypoint": lambda: (("resnet50",), {}),
    "optimize": lambda: ((network(),), {}),
    "pad_to_divisor": lambda: ((IMAGES, _built(True)), {}),
    "param_groups": lambda: ((network(),), {"lr": 0.1, "layer_decay": 0.9}),
    "pool_features": lambda: ((maps(),), {}),
    "render_features": lambda: ((maps(),), {}),
    "reparameterize": lambda: ((featnet.create_model("repghostnet_050"),), {}),
    "save_for_hub": lambda: ((network(), "folder"), {}),
    "set_output_stride": lambda: ((foreign(), 2), {}),
    "unfreeze": lambda: ((network(),), {"last": 1}),
}
# What reaches the hub or runs the caller's own code is not called with anything that comes along
LEFT = {"build_model_with_cfg", "demo_weights", "export", "prefetch", "push_to_hub", "register"}
LEFT |= {"register_model", "unpad"}
# They start processes or engines, or need what these wrote; their own tests hold their refusals
LEFT |= {"extract_dataset", "extract_images", "read_features", "load_optimized", "save_optimized"}
ARGUMENTS = [
    (name, parameter.name)
    for name in CALLS
    for parameter in inspect.signature(getattr(featnet, name)).parameters.values()
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
]
WRONG: dict[str, Callable[[], Any]] = {
    **{repr(v): lambda v=v: v for v in (None, True, -3, 0, 7, 2.5, float("nan"))},
    **{repr(v): lambda v=v: v for v in ("", "zzz", b"x", "/none/x.pth", (3,), [1, "a"])},
    **{repr(v): lambda v=v: copy.copy(v) for v in ([], {}, {"a": 1}, {1}, ["layer9"])},
    "object": object,
    "values": lambda: torch.ones(2),
    "images": lambda: IMAGES,
    "linear": lambda: nn.Linear(2, 2),
    "class": lambda: nn.ReLU,
    "dtype": lambda: torch.float16,
}


def test_every_public_function_is_called() -> None:
    functions = {name for name in featnet.__all__ if inspect.isfunction(getattr(featnet, name))}
    assert functions <= CALLS.keys() | LEFT


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args, options = CALLS[name]()
    getattr(featnet, name)(*args, **options)


@FEW
@hypothesis.given(st.sampled_from(ARGUMENTS), st.sampled_from(sorted(WRONG)))
def test_one_wrong_argument(
    tmp_path_factory: pytest.TempPathFactory, where: tuple[str, str], wrong: str
) -> None:
    name, argument = where
    function = getattr(featnet, name)
    args, options = CALLS[name]()
    names = list(inspect.signature(function).parameters)
    given = {**dict(zip(names, args, strict=False)), **options, argument: WRONG[wrong]()}
    by_position = [given.pop(n) for n in names[: len(args)]]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(tmp_path_factory.mktemp("calls", numbered=True))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            function(*by_position, **given)
        except FeatnetError as error:
            assert str(error)
