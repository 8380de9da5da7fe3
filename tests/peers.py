"""The peer libraries, and timm's models with what the tests ask of them."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import re
import sys
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from networks import attends, meta_model, repeats, small, without
from noise import Unset
from torch import nn

import featnet


def peer(name: str) -> Any:
    """A peer library; without it a skip, or with FEATNET_REQUIRE_PEERS=1 a failure."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("FEATNET_REQUIRE_PEERS") == "1":
            pytest.fail(f"FEATNET_REQUIRE_PEERS=1, and {name} is missing: {error}")
        pytest.skip(f"{name} is not installed")


def peer_model(name: str, **options: Any) -> nn.Module:
    """timm's model of this name as it is for its checkpoint (which decides some of its constants),
    without that (unless ``pretrained`` is given), and its warnings unheard."""
    timm = peer("timm")
    skip: Any = contextlib.nullcontext()
    if "pretrained" not in options:
        skip = mock.patch("timm.models._builder.load_pretrained")
    with warnings.catch_warnings(), skip:
        warnings.simplefilter("ignore")
        options = {"pretrained": True, **options}
        try:
            model: nn.Module = timm.create_model(name, **options)
        except TypeError as error:
            if "multiple values" not in str(error):
                raise
            model = _overridden(timm, name, options)
    return model


def _overridden(timm: Any, name: str, options: dict[str, Any]) -> nn.Module:
    """A model of a function that states the arguments which the options change."""
    own = ("pretrained", "features_only", "out_indices", "output_stride")
    changes = {key: value for key, value in options.items() if key not in own}
    module = sys.modules[timm.model_entrypoint(name).__module__]
    build = module.build_model_with_cfg  # type: ignore[attr-defined]

    def changed(*args: Any, **kwargs: Any) -> Any:
        return build(*args, **{**kwargs, **changes})

    with mock.patch.object(module, "build_model_with_cfg", changed):
        model: nn.Module = timm.create_model(
            name, **{key: value for key, value in options.items() if key in own}
        )
    return model


def peer_features(name: str, weights: dict[str, torch.Tensor], stride: int) -> Any:
    """timm's extractor, without repeats, with the classifier's weights; None where it refuses the
    stride, or has tables of positions of another size for it."""
    flat = {key.replace(".", "_"): value for key, value in weights.items()}  # as it renames them
    if attends(meta_model(name)):
        return Intermediates(name, weights) if stride == 32 else None
    try:
        options: dict[str, Any] = {} if stride == 32 else {"output_stride": stride}
        options["out_indices"] = peer_levels(name)
        with Unset():
            net = peer_model(name, features_only=True, **small(name), **options)
        paths = {re.sub(r"^(model|body)\.", "", path): path for path, _ in net.named_modules()}
        for path in repeats(name):
            there = [paths[p] for p in (path, path.replace(".", "_", 1)) if p in paths]
            without(there[:1], net)
        own = {k: re.sub(r"^(model|body)\.", "", k).replace(".", "_") for k in net.state_dict()}
        net.load_state_dict({k: flat[flatted] for k, flatted in own.items()}, strict=True)
    except (RuntimeError, NotImplementedError, AssertionError, TypeError):
        return None
    return net.eval()


@functools.cache
def peer_levels(name: str) -> tuple[int, ...]:
    """Indices of all levels that timm's model declares: its extractors leave some out by default.
    One that names no module (an entry to keep the count) cannot be asked for."""
    with torch.device("meta"), Unset():
        info = peer_model(name).feature_info
    return tuple(index for index, level in enumerate(info) if level["module"])


class Intermediates:
    """Levels of timm's transformers, whose extractors are only for the last three."""

    def __init__(self, name: str, weights: dict[str, torch.Tensor]) -> None:
        with Unset():
            self.model: Any = peer_transformer(name, **small(name)).eval()
        without(repeats(name), self.model)
        self.model.load_state_dict(weights, strict=True)
        self.feature_info = featnet.FeatureInfo(self.model.feature_info)

    def __call__(self, x: torch.Tensor, norm: bool = False) -> Any:
        model = at_size(self.model, (x.shape[-2], x.shape[-1]))
        maps = model.forward_intermediates(x, norm=norm, intermediates_only=True)
        if not norm and [y.shape[1] for y in maps] != self.feature_info.channels():
            raise RuntimeError  # it thinks that a hybrid's map of an odd size is smaller
        return maps


def peer_transformer(name: str, **options: Any) -> nn.Module:
    """timm's, for any input size if it can."""
    try:
        return peer_model(name, dynamic_img_size=True, **options)
    except TypeError:
        return peer_model(name, **options)


def at_size(peer: Any, size: tuple[int, int]) -> Any:
    """timm's model, changed to take inputs of a size if it takes but one."""
    if getattr(peer, "dynamic_img_size", True) and hasattr(peer, "dynamic_img_size"):
        return peer
    if any(hasattr(module, "rel_pos_type") for module in peer.modules()):
        return with_distances_of(copy.deepcopy(peer), size)
    if not getattr(getattr(peer, "patch_embed", None), "strict_img_size", False):
        return peer
    if not hasattr(peer, "set_input_size"):
        return peer  # its tables cannot be of another size
    changed = copy.deepcopy(peer)
    changed.set_input_size(img_size=size)
    return changed


def with_distances_of(peer: Any, size: tuple[int, int]) -> Any:
    """timm's MViTv2 with tables as it would resample them from a checkpoint, if it were built for
    this size. At another size than that it reads the wrong rows of its tables, or none."""
    own = peer.pretrained_cfg["input_size"][-2:]
    for module in (m for m in peer.modules() if hasattr(m, "rel_pos_type")):
        for axis, built, side in zip("hw", own, size, strict=True):
            table = getattr(module, f"rel_pos_{axis}").detach()
            step = built // ((len(table) + 1) // 2)  # pixels
            resampled = nn.functional.interpolate(
                table.T[None], size=2 * -(-side // step) - 1, mode="linear"
            )
            setattr(module, f"rel_pos_{axis}", nn.Parameter(resampled[0].T))
    return peer
