"""Models written elsewhere: declared levels, output stride, timm's and MindCV's manners."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import foreign
import helpers
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import featnet
from featnet import registry
from featnet.errors import (
    ArgumentError,
    CheckpointError,
    MissingFeatureError,
    OutIndexError,
    OutputStrideError,
)

# Output stride ---------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: Any) -> None:
    if "convnet" in metafunc.fixturenames:
        try:
            names = foreign.torchvision_names()
        except BaseException:  # skipped, or failed, where the test runs
            names = ("resnet18",)
        # A transformer's windows are no kernels
        names = tuple(n for n in names if not n.startswith(("vit", "swin", "maxvit")))
        metafunc.parametrize("convnet", foreign.light(names, also="inception_v3"))


def without_global(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "SqueezeExcitation":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
    return model


@torch.no_grad()
def test_the_a_trous_law(convnet: str) -> None:
    """In float64, at the first size at which unpadded kernels lose no position of one map only."""
    model = without_global(foreign.torchvision_model(convnet).double())
    info = featnet.discover(model, (192, 192))
    names = info.module_name()
    stride = 8 if info.reduction()[-1] >= 16 else 4
    dense_model = featnet.set_output_stride(model, stride)
    nets = featnet.extract(dense_model, names), featnet.extract(model, names)
    steps = {level.module: level.reduction // min(level.reduction, stride) for level in info}
    for side in (64, 72, 160):
        x = helpers.image_batch(side, side, dtype=torch.float64)
        try:
            dense, full = (net(x) for net in nets)
        except RuntimeError:  # smaller than a kernel
            continue
        pairs = [(dense[name][..., ::step, ::step], full[name]) for name, step in steps.items()]
        if all(a.shape == b.shape for a, b in pairs):
            break
    assert all(helpers.error(a, b) < 1e-10 for a, b in pairs)
    assert max(steps.values()) > 1
    ours, theirs = dense_model.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(ours[key].data_ptr() == value.data_ptr() for key, value in theirs.items())


def test_torchvisions_own_dilated_resnet50() -> None:
    plain = foreign.torchvision_model("resnet50")
    theirs = foreign.torchvision_model("resnet50", replace_stride_with_dilation=[False, True, True])
    theirs.load_state_dict(plain.state_dict())
    ours = featnet.set_output_stride(plain, 8)
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        a, b = (featnet.extract(model, ["layer?"])(x) for model in (ours, theirs))
        plain_maps = featnet.extract(plain, ["layer?"])(x)
    assert [y.shape[-1] for y in b.values()] == [16, 8, 8, 8]
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert helpers.error(a["layer4"][..., ::4, ::4], plain_maps["layer4"]) < 1e-5


class Functional(nn.Module):
    """Pools by functions; (N, C, H, W) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, o, 3, 1, 1) for i, o in ((3, 4), (4, 6), (6, 8)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.avg_pool2d(self.b(x), 3, stride=2, padding=1)
        x = F.max_pool2d(self.c(x), kernel_size=2, stride=2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@torch.no_grad()
def test_pooling_functions_follow() -> None:
    model = helpers.fill_noise(Functional()).double().eval()
    x = helpers.image_batch(32, 32, dtype=torch.float64)
    dense = featnet.set_output_stride(model, 2)
    full = featnet.extract(model, ["b", "c"])(x)
    for way in (lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))):
        found = featnet.extract(way(dense), ["b", "c"])(x)
        assert found["c"].shape[-1] == 16 and found["b"].shape[-1] == 16
        assert helpers.error(found["c"][..., ::2, ::2], full["c"]) < 1e-12
    assert isinstance(dense, Functional) and type(model) is Functional
    assert model(x).shape == dense(x).shape == (1, 5)
    compiled = torch.compile(dense, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), dense(x))


def test_in_place_and_not() -> None:
    model = foreign.torchvision_model("resnet18")
    before = repr(model)
    dense = featnet.set_output_stride(model, 16)
    assert repr(model) == before and dense is not model
    assert featnet.set_output_stride(model, 16, inplace=True) is model
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), dense(x))
    own = featnet.create_model("resnet18").eval()
    assert featnet.set_output_stride(own, 8) is not own
    assert own.feature_info.reduction()[-1] == 32


class Folds(nn.Module):
    """Changes the size by a reshape, which nothing can dilate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(16, 8, 3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.pixel_unshuffle(self.a(x), 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (64, "the nearest is 32"),
        (3, r"\[2, 4, 8, 16, 32\]"),
        ("8", "is a str"),
        (True, "is a bool"),
        (0, "can have"),
    ],
)
def test_strides_that_cannot_be(wrong: Any, message: str) -> None:
    model = foreign.torchvision_model("resnet18", device="meta")
    with pytest.raises(OutputStrideError, match=message):
        featnet.set_output_stride(model, wrong)


def test_a_stride_that_is_not_held_names_the_place_and_changes_nothing() -> None:
    model = helpers.fill_noise(Folds()).eval()
    x = helpers.image_batch(32, 32)
    with torch.no_grad():
        before = model(x)
        with pytest.raises(OutputStrideError, match=r"b \(Conv2d\) puts out maps at reduction 8"):
            featnet.set_output_stride(model, 2, inplace=True)
        assert torch.equal(model(x), before)
    net = featnet.create_model("resnet18", features_only=True)
    with pytest.raises(ArgumentError, match="before extracting"):
        featnet.set_output_stride(net, 8)


def test_a_module_that_would_need_two_strides() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.down = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
            self.conv = nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.down(self.conv(self.stem(x))))

    with pytest.raises(OutputStrideError, match="conv runs at two resolutions"):
        featnet.set_output_stride(Twice(), 2)
    on_meta = featnet.set_output_stride(foreign.torchvision_model("resnet18", device="meta"), 8)
    assert next(on_meta.parameters()).is_meta
    with pytest.raises(ArgumentError, match="_orig_mod"):
        featnet.set_output_stride(torch.compile(Twice(), backend="eager"), 2)


# timm's models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("resnet18", "list"),
        ("efficientnet_b0", "dict"),
        ("test_vit", "list"),
        ("swin_tiny_patch4_window7_224", "hook"),
        ("convnext_atto", "hook"),
    ],
)
@torch.no_grad()
def test_timm_models_in_our_extractors(name: str, cls: str) -> None:
    timm = helpers.peer("timm")
    model = helpers.fill_noise(timm.create_model(name)).eval()
    kind = {
        "list": featnet.FeatureListNet,
        "dict": featnet.FeatureDictNet,
        "hook": featnet.FeatureHookNet,
    }
    side = model.pretrained_cfg["input_size"][-1]
    side = side if model.pretrained_cfg.get("fixed_input_size") else 64
    x = helpers.image_batch(side, side)
    net = kind[cls](model, out_indices=(-1, 1))
    found = net(x)
    maps = list(found.values()) if isinstance(found, dict) else found
    assert [y.shape[1] for y in maps] == net.feature_info.channels()
    assert [tuple(y.shape[2:]) for y in maps] == net.feature_info.sizes((side, side))
    total = len(model.feature_info)
    wanted = model.forward_intermediates(
        x, indices=[1, total - 1], norm=False, intermediates_only=True, output_fmt="NCHW"
    )
    assert all(torch.equal(a, b) for a, b in zip(maps, wanted[::-1], strict=True))


@torch.no_grad()
def test_timm_models_are_tapped_dilated_and_discovered() -> None:
    timm = helpers.peer("timm")
    model = helpers.fill_noise(timm.create_model("resnet18")).eval().double()
    x = helpers.image_batch(64, 64, dtype=torch.float64)
    assert torch.equal(
        featnet.extract(model, ["layer2"])(x)["layer2"], featnet.extract(model)(x)["layer2"]
    )
    assert featnet.discover(model).reduction() == [row["reduction"] for row in model.feature_info]
    dense = featnet.set_output_stride(model, 8)
    assert [row["reduction"] for row in dense.feature_info] == [2, 4, 8, 8, 8]
    assert [row["reduction"] for row in model.feature_info] == [2, 4, 8, 16, 32]
    a = featnet.FeatureListNet(dense)(x)[-1][..., ::4, ::4]
    assert helpers.error(a, featnet.FeatureListNet(model)(x)[-1]) < 1e-10
    nodes = featnet.create_feature_extractor(
        model, ["layer1", "layer3"], suppress_diff_warning=True
    )
    assert torch.equal(nodes(x)["layer3"], featnet.FeatureListNet(model)(x)[3])


# Declared models: MindCV's three cases are run on docs/foreign_models.md -----------------------


class Chain(nn.Module):
    def __init__(self, num_classes: int = 3, **kwargs: Any) -> None:
        super().__init__()
        self.flatten_sequential = True
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1))
        self.feature_info: Any = [
            dict(chs=4, reduction=2, name="layers_0"),
            dict(num_chs=8, reduction=4, module="layers.1"),
        ]
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.layers[0](x))  # no child, and still right
        return self.head(self.layers[1](y).mean((2, 3)))


@torch.no_grad()
def test_names_of_a_flattened_network_and_functions_between() -> None:
    model = helpers.fill_noise(Chain())
    x = helpers.image_batch(16, 16)
    for kind in (featnet.FeatureListNet, featnet.FeatureDictNet, featnet.FeatureHookNet):
        net = kind(model, out_indices=(1, 0))
        found = net(x)
        maps = list(found.values()) if isinstance(found, dict) else found
        assert torch.equal(maps[1], model.layers[0](x))
        assert torch.equal(maps[0], model.layers[1](model.layers[0](x).relu()))
        assert net.feature_info.module_name() == ["layers.1", "layers.0"]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (dict(chs=4, reduction=2, name="layer0"), MissingFeatureError, "no module 'layer0'"),
        (
            dict(chs=5, reduction=2, name="layers.0"),
            ArgumentError,
            r"5 channels.*\(1, 4, 128, 128\)",
        ),
        (dict(chs=4, reduction=8, name="layers.0"), ArgumentError, "reduction 8"),
        (dict(chs=3, reduction=2, name="head"), ArgumentError, "shape"),
    ],
)
def test_a_declaration_that_is_not_true(row: Any, error: Any, message: str) -> None:
    model = Chain()
    model.feature_info = [row, model.feature_info[1]]
    with pytest.raises(error, match=message):
        featnet.FeatureListNet(model)
    with pytest.raises(OutIndexError, match="out of range"):
        featnet.FeatureListNet(Chain(), out_indices=(0, 2))


def test_a_rewritten_model_returns_as_many_as_it_declares() -> None:
    class Short(Chain):
        is_rewritten = True

        def forward(self, x: torch.Tensor) -> Any:
            return [self.layers[0](x)]

    with pytest.raises(ArgumentError, match=r"declares 2 levels.*returns 1 tensors"):
        featnet.FeatureListNet(Short())


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    yield


@pytest.mark.usefixtures("registered")
def test_a_misspelt_argument_is_not_swallowed() -> None:
    @featnet.register_model
    def chain(pretrained: bool = False, **kwargs: Any) -> Any:
        return featnet.build_model_with_cfg(Chain, pretrained, **kwargs)

    with pytest.raises(ArgumentError, match="'feature_only'. Did you mean 'features_only'"):
        featnet.create_model("chain", feature_only=True)
    assert isinstance(featnet.create_model("chain", features_only=True), featnet.FeatureListNet)
    dense = featnet.create_model("chain", features_only=True, output_stride=2)
    assert dense.feature_info.reduction() == [2, 2]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.replace("layers.", "layers_"),
        lambda k: k.replace(".", "_"),
        lambda k: f"body.{k}",
        lambda k: f"module.model.{k}",
        lambda k: f"model.{k.replace('layers.', 'layers_')}",
    ],
)
def test_mapped_names(change: Any, tmp_path: Path) -> None:
    @featnet.register_model
    def chain(pretrained: bool = False, **kwargs: Any) -> Any:
        return featnet.build_model_with_cfg(Chain, pretrained, **kwargs)

    state = helpers.fill_noise(Chain()).state_dict()
    path = tmp_path / "flat.pth"
    torch.save({change(key): value for key, value in state.items()}, path)
    for options in ({}, {"features_only": True}):
        model = featnet.create_model("chain", checkpoint_path=path, **options)
        found = model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in found.items())
        assert any("mapped" in step or "prefix" in step for step in model.load_report.steps)


@pytest.mark.usefixtures("registered")
def test_mapping_in_the_other_direction_and_not_at_all(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict(
                {"layers_0": nn.Conv2d(3, 4, 3), "layers_1": nn.Conv2d(4, 8, 3)}
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body["layers_1"](self.body["layers_0"](x))

    @featnet.register_model
    def wrapped(pretrained: bool = False, **kwargs: Any) -> Any:
        return featnet.build_model_with_cfg(Wrapped, pretrained, **kwargs)

    state = {k: v for k, v in helpers.fill_noise(Chain()).state_dict().items() if "head" not in k}
    path = tmp_path / "plain.pth"
    torch.save(state, path)
    model = featnet.create_model("wrapped", checkpoint_path=path, auto_mapping=True)
    assert torch.equal(model.body["layers_1"].weight, state["layers.1.weight"])
    assert any("'layers.0.weight' to 'body.layers_0.weight'" in s for s in model.load_report.steps)
    with pytest.raises(CheckpointError, match="missing"):
        featnet.create_model("wrapped", checkpoint_path=path, auto_mapping=False)


# Threads ---------------------------------------------------------------------------------------


def test_threads_on_one_extractor() -> None:
    """8 threads x 30 calls, inputs and sizes of their own: each call its own features."""
    model = foreign.torchvision_model("resnet18")
    net = featnet.extract(model, ["layer1", "bn1"])
    sizes = [(32 + 8 * i, 32) for i in range(8)]
    xs = [helpers.image_batch(*size, seed=i) for i, size in enumerate(sizes)]
    with torch.inference_mode():
        want = [net(x) for x in xs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            with torch.inference_mode():
                found = net(xs[index])
            if not all(torch.equal(found[k], want[index][k]) for k in found):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
