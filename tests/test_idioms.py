"""Networks with idioms of their own: whatever torch lets a module do, the entry points take."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import helpers
import pytest
import torch
import zoo
from torch import nn

import featnet
from featnet.errors import ArgumentError, TraceError
from featnet.tracing.watch import tensors


class Plain(nn.Module):
    """(N, 3, H, W) -> (N, 5); two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(torch.relu(self.a(x))).mean((2, 3)))


class Silent(Plain):
    """As the backbones of mm*: freezes what it likes, and returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)
        for parameter in self.a.parameters():
            parameter.requires_grad = False

    def eval(self) -> None:  # type: ignore[override]
        self.train(False)


ENTRIES: dict[str, Callable[[nn.Module], Any]] = {
    "discover": featnet.discover,
    "extract": lambda m: featnet.extract(m, ["a", "b"]),
    "extract levels": featnet.extract,
    "extract logits": lambda m: featnet.extract(m, ["b"], logits=True),
    "FeatureListNet": lambda m: featnet.FeatureListNet(m, feature_info=featnet.discover(m)),
    "FeatureHooks": lambda m: featnet.FeatureHooks(m, ["a"]),
    "create_feature_extractor": lambda m: featnet.create_feature_extractor(m, ["a", "b"]),
    "get_graph_node_names": featnet.get_graph_node_names,
    "set_output_stride": lambda m: featnet.set_output_stride(m, 2),
    "list_taps": featnet.list_taps,
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_train_that_returns_nothing(entry: str) -> None:
    """And whose side effects do not reach the caller's parameters."""
    model = helpers.fill_noise(Silent())
    made = ENTRIES[entry](model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    if isinstance(made, nn.Module):
        x = helpers.image_batch(16, 16)
        made.eval()
        made.train()
        assert made.training
        made(x)


# Hooks that are part of the forward --------------------------------------------------------------


class ByMethod(Plain):
    """Goes on with what a hook of its own kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []
        self.a.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self.kept.append(output)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a(x)
        return self.head(self.b(self.kept.pop()).mean((2, 3)))


class ByClosure(ByMethod):
    """The same with a closure over the network."""

    def __init__(self) -> None:
        Plain.__init__(self)
        kept = self.kept = []
        self.a.register_forward_hook(lambda module, args, output: kept.append(output))


class Changing(Plain):
    """Whose hook changes what the module puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.b.register_forward_hook(self._shrink)

    def _shrink(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output[..., ::2, ::2]


@pytest.mark.parametrize("cls", [ByMethod, ByClosure, Changing])
def test_hooks_that_are_part_of_the_forward(cls: type[Plain]) -> None:
    model = helpers.fill_noise(cls()).eval()
    x = helpers.image_batch(32, 32)
    info = featnet.discover(model, (32, 32))
    last = 8 if cls is Changing else 4
    assert [(f.module, f.reduction) for f in info] == [("a", 2), ("b", last)]
    with torch.no_grad():
        want = model(x)
        features, logits = featnet.extract(model, ["a", "b"], logits=True)(x)
        assert torch.equal(logits, want)
        assert torch.equal(model.head(features["b"].mean((2, 3))), want)
        maps = featnet.FeatureListNet(model, feature_info=info)(x)
    assert [y.shape[-1] for y in maps] == [16, 32 // last]
    assert not getattr(model, "kept", [])  # nothing was left in the caller's


def test_hooks_that_only_look_are_not_called_to_find_something_out() -> None:
    model, shapes = Plain(), list[Any]()
    model.a.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    featnet.discover(model, (32, 32))
    net = featnet.extract(model, ["b"])
    assert shapes == []
    net(helpers.image_batch(32, 32))
    assert shapes == [(1, 4, 16, 16)]


def test_a_hook_that_breaks_on_the_meta_device_is_set_aside() -> None:
    model = ByMethod()

    def look(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        assert model is not None and output.sum().item() is not None  # refers to the network

    model.b.register_forward_hook(look)
    assert featnet.discover(model, (32, 32)).module_name() == ["a", "b"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["Segformer segmentation", "DepthAnything", "UperNet"])
def test_transformers_hooks_before_and_after_the_first_forward(name: str) -> None:
    """transformers collects hidden states by hooks that the first forward puts on."""
    case = zoo.TRANSFORMERS[name]
    model, x = case.build(), helpers.image_batch(*case.size)
    tap = featnet.discover(model, case.size).module_name()[-1]
    first = featnet.extract(model, [tap])(x)
    want = model(x)
    assert featnet.discover(model, case.size).module_name()[-1] == tap
    net = featnet.extract(model, [tap], logits=True)
    features, output = net(x)
    for got, expected in ((first, features), (output, want)):
        pairs = zip(tensors(got), tensors(expected), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


# Forwards that were replaced ----------------------------------------------------------------------


def _by_method(model: Any) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.b(self.a(x).tanh()).mean((2, 3)))

    model.forward = types.MethodType(forward, model)


def _by_closure(model: Any) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return model.head(model.b(model.a(x).tanh()).mean((2, 3)))

    model.forward = forward


def _by_partial(model: Any) -> None:
    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        return module.head(module.b(module.a(x).tanh()).mean((2, 3)))

    model.forward = functools.partial(forward, model)


def _around(model: Any) -> None:
    old = model.a.forward
    model.a.forward = lambda x: old(x).tanh()
    model.forward = lambda x: model.head(model.b(model.a(x)).mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("change", [_by_method, _by_closure, _by_partial, _around])
def test_a_forward_that_was_replaced_is_what_runs(change: Callable[[Any], None]) -> None:
    model = helpers.fill_noise(Plain()).eval()
    plain, x = model(helpers.image_batch(32, 32)), helpers.image_batch(32, 32)
    change(model)
    want = model(x)
    assert not torch.equal(want, plain)
    y = featnet.extract(model, ["b"])(x)["b"]
    assert torch.equal(model.head(y.mean((2, 3))), want)
    features, output = featnet.extract(model, ["b"], logits=True)(x)
    assert torch.equal(output, want) and torch.equal(features["b"], y)
    with featnet.FeatureHooks(model, ["b"]) as hooks, hooks.collect() as collected:
        model(x)
    assert torch.equal(collected["b"], y)
    assert featnet.discover(model, (32, 32)).module_name() == ["a", "b"]
    dense = featnet.set_output_stride(model, 2)
    assert torch.allclose(featnet.extract(dense, ["b"])(x)["b"][..., ::2, ::2], y, atol=1e-6)


class Noisy(Plain):
    """With a branch that runs in training only, before the last level."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.never = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        if self.training:
            x = x + self.noise(x)
        return self.head(self.b(x).mean((2, 3)))


@pytest.mark.parametrize("mode", [True, False])
def test_a_branch_that_runs_in_training_is_not_pruned_away(mode: bool) -> None:
    model = helpers.fill_noise(Noisy()).train(mode)
    info = featnet.discover(model, (32, 32))
    x = helpers.image_batch(32, 32, batch=2)
    want = model.train().b(model.a(x) + model.noise(model.a(x)))
    model.train(mode)
    for net in (featnet.extract(model, ["b"]), featnet.FeatureDictNet(model, feature_info=info)):
        assert torch.equal(net.train()(x)["b"], want)
        assert net.never is None and net.head is None


# Caches ------------------------------------------------------------------------------------------

_GRIDS: dict[Any, torch.Tensor] = {}


@functools.cache
def _memoised(side: int, device_type: str) -> torch.Tensor:
    return torch.ones(side, device=device_type)


class Cached(Plain):
    """Keeps tensors in all sorts of places, under keys without a device."""

    grids: ClassVar[dict[Any, torch.Tensor]] = {}
    ones: torch.Tensor | None = None
    listed: ClassVar[list[torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        for cache in (self.grids, _GRIDS):
            if x.shape[-1] not in cache:
                cache[x.shape[-1]] = torch.ones(x.shape[-1], device=x.device)
            x = x + cache[x.shape[-1]]
        if Cached.ones is None:
            Cached.ones = torch.ones(1, device=x.device)
        if not self.listed:
            self.listed.append(torch.ones(1, device=x.device))
        x = x + Cached.ones + self.listed[0]
        if not hasattr(type(self), "late"):
            type(self).late = torch.ones(1, device=x.device)
        return self.head(self.b(x + type(self).late).mean((2, 3)))


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    _GRIDS.clear()
    Cached.grids.clear()
    Cached.listed.clear()
    Cached.ones = None
    if hasattr(Cached, "late"):
        del Cached.late


@torch.no_grad()
@pytest.mark.parametrize("first", [False, True])
def test_no_meta_tensor_is_left_in_a_cache(first: bool, clean: None) -> None:
    model = helpers.fill_noise(Cached()).eval()
    x = helpers.image_batch(32, 32)
    before = model(x) if first else None  # what is there already stays
    kept = dict(_GRIDS)
    info = featnet.discover(model, (32, 32))
    assert all(_GRIDS[key] is value for key, value in kept.items()) and len(_GRIDS) == len(kept)
    net = featnet.extract(model, ["b"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.fx has something to say about such a forward
        featnet.set_output_stride(model, 2)
    want = model(x)
    assert before is None or torch.equal(before, want)
    assert torch.equal(model.head(net(x)["b"].mean((2, 3))), want)
    assert info.module_name() == ["a", "b"]


# One input size
# ------------------------------------------------------------------------------------


class OneSize(Plain):
    """Takes one size, and may name another."""

    def __init__(self, side: int, **names: Any) -> None:
        super().__init__()
        self.side = side
        self.__dict__.update(names)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] == self.side
        return super().forward(x)


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
@pytest.mark.parametrize("entry", sorted(set(ENTRIES) - {"discover", "get_graph_node_names"}))
def test_a_size_that_no_guess_hits_is_given(entry: str) -> None:
    model = helpers.fill_noise(OneSize(72)).eval()
    options: dict[str, Any] = {"input_size": (72, 72)}
    info = featnet.discover(model, (3, 72, 72))
    assert info.input_size == (72, 72) and info.reduction() == [2, 4]
    calls: dict[str, Callable[[], Any]] = {
        "extract": lambda: featnet.extract(model, ["b"], **options),
        "extract levels": lambda: featnet.extract(model, **options),
        "extract logits": lambda: featnet.extract(model, ["b"], logits=True, **options),
        "FeatureListNet": lambda: featnet.FeatureListNet(model, feature_info=info),
        "FeatureHooks": lambda: featnet.FeatureHooks(model, ["a"], **options),
        "create_feature_extractor": lambda: featnet.create_feature_extractor(
            model, ["a", "b"], **options
        ),
        "set_output_stride": lambda: featnet.set_output_stride(model, 2, **options),
        "list_taps": lambda: featnet.list_taps(model, **options),
    }
    made = calls[entry]()
    if isinstance(made, nn.Module):
        made(helpers.image_batch(72, 72))
    if entry.startswith("extract"):
        with pytest.raises(TraceError, match="input_size="):
            ENTRIES[entry](model)


@pytest.mark.parametrize(
    "names",
    [
        {"img_size": 72},
        {"image_size": (72, 72)},
        {"config": types.SimpleNamespace(image_size=72)},
        {"pretrained_cfg": {"input_size": (3, 72, 72)}},
        {"config": types.SimpleNamespace(vision_config=types.SimpleNamespace(image_size=[72, 72]))},
        {"patch_embed": nn.Identity()},
    ],
)
def test_a_size_that_the_network_names_is_tried_first(names: dict[str, Any]) -> None:
    model = OneSize(72, **{k: v for k, v in names.items() if k != "patch_embed"})
    if "patch_embed" in names:
        model.patch_embed = names["patch_embed"]
        model.patch_embed.img_size = (72, 72)
    assert featnet.discover(model).input_size == (72, 72)
    assert list(featnet.extract(model, ["a"])(helpers.image_batch(72, 72))) == ["a"]


def test_a_size_that_is_named_and_does_not_run_is_not_the_end() -> None:
    model = OneSize(96, img_size=(72, 72), image_size=80)
    assert featnet.discover(model).input_size == (96, 96)
    featnet.extract(model, ["a"])(helpers.image_batch(96, 96))


@pytest.mark.parametrize("wrong", [72, "72", (3, 0, 72), (72.0, 72), (1, 3, 72, 72)])
def test_an_input_size_that_is_none(wrong: Any) -> None:
    for call in (featnet.extract, featnet.create_feature_extractor, featnet.FeatureHooks):
        with pytest.raises(ArgumentError, match="input_size="):
            call(Plain(), ["a"], input_size=wrong)


# Detectors
# -----------------------------------------------------------------------------------------


class Resizing(Plain):
    """As a detector: brings its input to a size of its own, looks at values, returns a list."""

    forwards = 0

    def forward(self, x: torch.Tensor) -> Any:
        type(self).forwards += not x.is_meta
        y = self.b(self.a(nn.functional.interpolate(x, (64, 64))))
        return [{"boxes": y.new_zeros(int((y > 0).sum().item()), 4)} for _ in x]


def test_a_detector_is_looked_into_by_three_forwards_at_most() -> None:
    model = Resizing().eval()
    Resizing.forwards = 0
    net = featnet.extract(model, ["a", "b"])
    assert Resizing.forwards <= 3
    assert [y.shape[-1] for y in net(helpers.image_batch(48, 48)).values()] == [32, 16]
    with pytest.raises(ArgumentError, match="resizes its input"):
        featnet.discover(model)


def test_a_size_that_was_given_once_is_known_ever_after(tmp_path: Path) -> None:
    """It travels with the levels, and with the extractor that was made of them."""
    model = OneSize(328).eval()
    info = featnet.discover(model, (328, 328))
    for net in (
        featnet.extract(model, info),
        featnet.FeatureListNet(model, feature_info=info),
        featnet.extract(model, ["a", "b"], input_size=(328, 328)),
    ):
        assert net.feature_info.input_size == (328, 328)
        rates = {group["lr"] for group in featnet.param_groups(net, lr=1.0, layer_decay=0.5)}
        assert rates >= {0.5, 1.0}
        featnet.optimize(net)
        featnet.export(net, tmp_path / "net.pt2", dynamic=())
        featnet.freeze(net, until=0)
        featnet.unfreeze(net)
    with pytest.raises(ArgumentError, match=r"(?s)layer_decay=0\.5 has no layers.*input_size="):
        featnet.param_groups(model, lr=1.0, layer_decay=0.5)
