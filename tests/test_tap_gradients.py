"""What is tapped has its gradient: that of a network without in-place operations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import foreign
import helpers
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import featnet
from featnet import FeatureHookNet, FeatureHooks, FeatureListNet, Tap

TEN = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "vgg11_bn",
)


class OutOfPlace(TorchFunctionMode):
    """A context in which functions that write into their input put out a new tensor instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {**(kwargs or {})}
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        name = getattr(func, "__name__", "")
        if name.startswith("__i"):
            func = getattr(torch.Tensor, f"__{name[3:]}", func)
        elif name.endswith("_") and not name.endswith("__"):
            func = getattr(torch.Tensor, name[:-1], func)
        return func(*args, **kwargs)


def gradients(logit: torch.Tensor, values: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(logit, values, retain_graph=True))


def plain_values(model: nn.Module, x: torch.Tensor, names: list[str]) -> Any:
    """(values, output) by hooks of torch, of the network without in-place operations."""
    values: dict[str, Any] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: values.__setitem__(name, output)
        )
        for name in names
    ]
    with OutOfPlace():
        output = model(x)
    for handle in handles:
        handle.remove()
    return [values[name] for name in names], output


def once(model: nn.Module, x: torch.Tensor) -> list[str]:
    """Modules that run once and put out a tensor."""
    ran: Counter[str] = Counter()
    with FeatureHooks(
        model,
        [Tap(name, which="all") for name, _ in model.named_modules() if name],
        rewritten=(),
    ) as hooks:
        outer, features = hooks.begin({}), dict[Any, Any]()
        hooks.end(outer)
        outer = hooks.begin(features)
        with torch.no_grad():
            model(x)
        hooks.end(outer)
    ran.update({name: len(values) for name, values in features.items()})
    return [n for n, values in features.items() if len(values) == 1 and torch.is_tensor(values[0])]


@pytest.mark.parametrize("name", TEN)
def test_every_tap_of_ten_networks(name: str) -> None:
    model = foreign.torchvision_model(name).double()
    side = foreign.side_of(model)
    x = helpers.image_batch(side, side, dtype=torch.float64).requires_grad_()
    names = once(model, x)
    wanted, output = plain_values(model, x, names)
    logit = output[0].max()
    truth = gradients(logit, wanted)
    features, output = featnet.extract(model, names, logits=True)(x)
    found = [features[name] for name in names]
    torch.testing.assert_close(output[0].max(), logit)
    for tap, value, grad, a, b in zip(
        names, found, gradients(output[0].max(), found), wanted, truth, strict=True
    ):
        assert helpers.error(value, a) < 1e-10 and helpers.error(grad, b) < 1e-9, tap
