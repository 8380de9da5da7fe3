"""What is tapped has its gradient: that of a network without in-place operations."""

from __future__ import annotations

from typing import Any, NamedTuple

import foreign
import helpers
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import featnet
from featnet import FeatureHookNet, FeatureHooks, Tap

TEN = (
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
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
    taps = [Tap(name, which="all") for name, _ in model.named_modules() if name]
    features: dict[Any, Any] = {}
    with FeatureHooks(model, taps, rewritten=()) as hooks, torch.no_grad():
        outer = hooks.begin(features)
        model(x)
        hooks.end(outer)
    return [n for n, values in features.items() if len(values) == 1 and torch.is_tensor(values[0])]


def network(name: str) -> Any:
    """A torchvision model of noise; VGG with a small classifier behind one position."""
    if not name.startswith("vgg"):
        return foreign.torchvision_model(name).double()
    model = foreign.torchvision_model(name, device="meta")
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(
        nn.Linear(512, 16), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(16, 4)
    )
    return helpers.fill_noise(model.to_empty(device="cpu")).double().eval()


@pytest.mark.parametrize("name", TEN)
def test_every_tap_of_ten_networks(name: str) -> None:
    model = network(name)
    side = foreign.side_of(model)
    x = helpers.image_batch(side, side, dtype=torch.float64).requires_grad_()
    names = once(model, x)
    wanted, output = plain_values(model, x, names)
    logit = output[0].max()
    truth = gradients(logit, wanted)
    features, output = featnet.extract(model, names, logits=True)(x)
    values = [features[name] for name in names]
    torch.testing.assert_close(output[0].max(), logit)
    rows = zip(names, values, gradients(output[0].max(), values), wanted, truth, strict=True)
    for tap, value, grad, a, b in rows:
        assert helpers.error(value, a) < 1e-10 and helpers.error(grad, b) < 1e-9, tap


def ways(model: nn.Module, names: list[str], last: str) -> dict[str, Any]:
    """Functions of an input that give (values of the modules, value of the last one)."""

    def collected(x: torch.Tensor) -> Any:
        with FeatureHooks(model, [*names, last]) as hooks, hooks.collect() as features:
            model(x)
        return [features[name] for name in names], features[last]

    def whole(net: Any) -> Any:
        def call(x: torch.Tensor) -> Any:
            values = net(x)
            values = list(values.values()) if isinstance(values, dict) else values
            return values[:-1], values[-1]

        return call

    def with_logits(x: torch.Tensor) -> Any:
        features, output = featnet.extract(model, names, logits=True)(x)
        return [features[name] for name in names], output

    graph = featnet.create_feature_extractor(model, [*names, last], suppress_diff_warning=True)
    return {
        "extract": whole(featnet.extract(model, [*names, last])),
        "logits": with_logits,
        "collect": collected,
        "list": whole(FeatureHookNet(model, taps=[*names, last], return_dict=False)),
        "graph": whole(graph),
    }


CASES = {
    "resnet18": (["conv1", "bn1", "layer1.0.bn2", "layer1.0", "layer3", "layer4.1.bn1"], "fc"),
    "vgg11": (["features.0", "features.1", "features.3", "features.18"], "classifier.3"),
    "densenet121": (["features.norm0", "features.denseblock1", "features.norm5"], "classifier"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_every_way_of_tapping(name: str, training: bool) -> None:
    names, last = CASES[name]
    model = network(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train(training)
    x = helpers.image_batch(64, 64, dtype=torch.float64, batch=2).requires_grad_()
    wanted, output = plain_values(model, x, names)
    truth = gradients(output[:, 0].sum(), wanted)
    for way, call in ways(model, names, last).items():
        values, output = call(x)
        for value in values:
            value.retain_grad()
        output[:, 0].sum().backward()
        rows = zip(names, values, wanted, truth, strict=True)
        for tap, value, a, b in rows:
            assert helpers.error(value, a) < 1e-10, (way, tap)
            assert value.grad is not None and helpers.error(value.grad, b) < 1e-9, (way, tap)


def test_twice() -> None:
    """The gradient of a gradient (a penalty on it, for instance)."""
    model = foreign.torchvision_model("resnet18").double()
    x = helpers.image_batch(64, 64, dtype=torch.float64).requires_grad_()
    names = ["bn1", "layer1", "layer2.0.bn1"]

    def penalties(values: list[torch.Tensor], output: torch.Tensor) -> list[torch.Tensor]:
        firsts = torch.autograd.grad(output[0, 0].square(), values, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in firsts), [x, *values]))

    truth = penalties(*plain_values(model, x, names))
    for way, call in ways(model, names, "fc").items():
        for a, b in zip(penalties(*call(x)), truth, strict=True):
            assert helpers.error(a, b) < 1e-9, way


class Both(NamedTuple):
    """An output that is no tensor."""

    first: torch.Tensor
    second: torch.Tensor


class Splits(nn.Module):
    def forward(self, x: torch.Tensor) -> Both:
        return Both(x * 2, x + 1)


class Shift(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(0.5)


class Shares(nn.Module):
    """Outputs that lie in the memory of inputs, and are overwritten through other names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = nn.Conv2d(3, 6, 3, padding=1), nn.Identity()
        self.view, self.shift = nn.Flatten(2), Shift()
        self.split, self.last = Splits(), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        y = self.same(input=x)
        x += 1.5
        z = self.view(x)
        x.mul_(0.5)
        self.shift(x)  # its result is not used
        x.add_(y * 0.1)
        both = self.split(x)
        both.first.add_(z.view_as(x))
        both.second.exp_()
        return self.last(both.first * both.second + y)


def by_hand(f: Shares, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The same, each value by itself: x, y and z are one map."""
    values = {"conv": f.conv(x)}
    values["view"] = (values["conv"] + 1.5).flatten(2)
    values["given"] = values["view"].view_as(values["conv"]) * 0.5
    values["shift"] = values["given"] - 0.5
    e = values["shift"] + values["shift"] * 0.1
    values["first"], values["second"] = e * 2, e + 1
    output = f.last((values["first"] + e) * values["second"].exp() + e)
    return values | {"same": values["conv"]}, output


def test_outputs_that_are_inputs() -> None:
    """Values are what they were, the network's numbers stay, gradients are those of the values."""
    model: Any = helpers.fill_noise(Shares()).double()
    x = helpers.image_batch(8, 8, dtype=torch.float64)
    with torch.no_grad():
        untapped = model(x)
    taps = ["conv", "same", "view", "shift", "split"]
    given = Tap("shift", kind="forward_pre", key="given")
    found, output = featnet.extract(model, [*taps, given], logits=True)(x)
    assert torch.equal(output, untapped) and isinstance(found["split"], Both)
    found |= found.pop("split")._asdict()
    wanted, same = by_hand(model, x)
    torch.testing.assert_close(same, untapped)
    truth = gradients(same.sum(), [wanted[name] for name in found])
    grads = gradients(output.sum(), list(found.values()))
    for name, grad, b in zip(found, grads, truth, strict=True):
        torch.testing.assert_close(found[name], wanted[name], msg=name)
        torch.testing.assert_close(grad, b, msg=name)


class Drops(nn.Module):
    """Overwrites what an activation put out: by dropout in training, by another in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 6, 3), nn.Dropout(0.5, inplace=True)
        self.act, self.last = nn.Hardswish(), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.act(self.conv(x))))


@pytest.mark.parametrize("training", [False, True])
def test_what_only_training_overwrites(training: bool) -> None:
    model: Any = helpers.fill_noise(Drops()).train(training)
    x = helpers.image_batch(8, 8)
    torch.manual_seed(0)
    features, output = featnet.extract(model, ["act", "drop"], logits=True)(x)
    act = model.act(model.conv(x))
    torch.manual_seed(0)
    drop = torch.nn.functional.dropout(act, 0.5, training)
    torch.testing.assert_close(features["act"], act)
    torch.testing.assert_close(features["drop"], drop)
    truth = gradients(model.last(drop).sum(), [act, drop])
    for a, b in zip(gradients(output.sum(), [*features.values()]), truth, strict=True):
        torch.testing.assert_close(a, b)


class Stubborn(nn.Module):
    """Runs at one size that nobody guesses, so that what it overwrites is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True)
        self.same, self.last = nn.Identity(), nn.Linear(6 * 9 * 9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.same(self.relu(self.conv(x))).flatten(1))


def test_where_it_is_not_known_what_is_overwritten() -> None:
    model: Any = helpers.fill_noise(Stubborn())
    x = helpers.image_batch(11, 11)
    taps = ["conv", "relu", "same"]
    with FeatureHooks(model, taps) as hooks, hooks.collect() as features:
        output = model(x)
    conv = model.conv(x)
    relu = conv.relu()
    wanted = model.last(relu.flatten(1))
    assert torch.equal(output, wanted)
    truth = dict(zip(taps, gradients(wanted.sum(), [conv, relu, relu]), strict=True))
    values = dict(zip(taps, (conv, relu, relu), strict=True))
    for name, grad in zip(taps, gradients(output.sum(), [*features.values()]), strict=True):
        torch.testing.assert_close(features[name], values[name], msg=name)
        torch.testing.assert_close(grad, truth[name], msg=name)
