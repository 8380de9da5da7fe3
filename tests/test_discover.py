"""discover, extract and list_taps: levels and modules of networks that declare nothing."""

from __future__ import annotations

import copy
import functools
import os
import warnings
from pathlib import Path
from typing import Any

import foreign
import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet.errors import ArgumentError, MissingFeatureError, TraceError
from featnet.extraction import layout
from featnet.features import Feature
from featnet.tracing import trace

# discover --------------------------------------------------------------------------------------


def test_torchvisions_models(tv_name: str) -> None:
    """Each level's map has the channels, and at this and other sizes the side, that it says; the
    deepest is what the network pools."""
    model = foreign.torchvision_model(tv_name, device="meta")
    info = featnet.discover(model)
    reductions = info.reduction()
    assert reductions == sorted(set(reductions)) and reductions[0] <= 16
    isotropic = tv_name.startswith("vit_")
    assert reductions[-1] >= (14 if isotropic or tv_name.startswith("squeezenet") else 32)
    assert isotropic == (len(reductions) == 1)
    net = featnet.FeatureListNet(model, feature_info=info)
    maps = net(torch.empty(1, 3, 224, 224, device="meta"))
    sizes = info.sizes((224, 224))
    assert [m.shape[1] for m in maps] == info.channels()
    assert [tuple(m.shape[2:]) for m in maps] == sizes
    for size, r in zip(sizes, reductions, strict=True):
        assert 0.55 * 224 / r <= size[0] <= 224 / r + 1  # unpadded kernels lose some
    weights = helpers.peer("torchvision.models").get_model_weights(tv_name).DEFAULT
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if last and len([*model.children()][-1].state_dict()) == 2:
        assert info.channels()[-1] == last[-1].in_features, weights


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("resnet18", ["relu", "layer1", "layer2", "layer3", "layer4"]),
        (
            "densenet121",
            [
                "features.relu0",
                "features.denseblock1",
                "features.denseblock2",
                "features.denseblock3",
                "features.norm5",
            ],
        ),
        ("mobilenet_v2", ["features.1", "features.3", "features.6", "features.13", "features.18"]),
        ("swin_t", ["features.1", "features.3", "features.5", "permute"]),
        ("squeezenet1_1", ["features.1", "features.4", "features.7", "features.12"]),
        ("vit_b_32", ["encoder"]),
    ],
)
def test_the_modules_that_end_a_resolution(name: str, modules: list[str]) -> None:
    info = featnet.discover(foreign.torchvision_model(name, device="meta"))
    assert info.module_name() == modules


def _families() -> list[str]:
    """A model of every family; with FEATNET_EXHAUSTIVE=1 all that differ."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return list(helpers.representatives())
    rows = (Path(featnet.__file__).parent / "models" / "index.txt").read_text().splitlines()
    family = dict(row.split()[:2] for row in rows)
    return list({family[name]: name for name in reversed(helpers.named())}.values())


@functools.cache
def _hidden(name: str) -> tuple[dict[int, Feature], featnet.FeatureInfo]:
    """Declared levels, of each resolution the last; and what is found."""
    model = helpers.meta_model(name)
    found = featnet.discover(model, (model.in_chans, *(model.img_size or (256, 256))))
    return {level.reduction: level for level in model.feature_info}, found


@pytest.mark.parametrize("name", _families())
def test_our_own_with_their_declaration_hidden(name: str) -> None:
    """Every declared resolution is found. Where the level is another, its module runs later (it is
    the head's), or the declared one is inside of a step to a coarser resolution, or a mere 1x1
    convolution of it."""
    model = helpers.meta_model(name)
    declared, info = _hidden(name)
    found = {level.reduction: level for level in info}
    calls = trace.run(model, trace.probe_size(model), through=True).calls
    order = [call.name for call in calls]
    height = {
        call.name: call.outputs[0][-2]
        for call in calls
        if call.outputs and len(call.outputs[0]) == 4
    }
    assert found.keys() >= declared.keys()
    assert all(r < min(declared) for r in found.keys() - declared.keys())  # a stem's own map
    for reduction, level in declared.items():
        mine = found[reduction]
        if mine.channels != level.channels:
            outer = level.module.rpartition(".")[0]
            later = order.index(mine.module) > order.index(level.module)
            kernel = getattr(model.get_submodule(level.module), "kernel_size", None)
            behind = kernel == (1, 1)
            assert later or behind or height[outer] < height[level.module], (mine, level)


def test_the_share_that_agrees() -> None:
    """Of all families; docs/foreign_models.md says which do not."""
    agree = [
        [(f.channels, f.reduction) for f in info] == [(f.channels, r) for r, f in declared.items()]
        for declared, info in map(_hidden, _families())
    ]
    assert sum(agree) / len(agree) >= 0.77


class Pooled(nn.Module):
    """A head of its own layers; (N, C, H, W) -> (N, 2C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kv = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.kv(x).mean((2, 3))


def test_what_a_head_does_before_it_pools_is_no_level() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1), Pooled(8))
    for model in (body, nn.Sequential(body, nn.Linear(16, 5))):
        assert featnet.discover(model).channels() == [4, 8]


class Tokens(nn.Module):
    """Tokens with a prefix, then channels-last maps, then a map; (N, C, H, W) -> (N, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, 6, 4, 4), nn.Linear(6, 6)
        self.last, self.down = nn.Linear(6, 10), nn.Conv2d(10, 12, 2, 2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x)
        n, c, h, w = x.shape
        tokens = torch.cat((x.new_zeros(n, 2, c), x.flatten(2).transpose(1, 2)), 1)
        tokens = self.mix(tokens)
        y = self.last(tokens[:, 2:].unflatten(1, (h, w)))
        return self.head(self.down(y.permute(0, 3, 1, 2)).mean((2, 3)))


def test_layouts() -> None:
    model = helpers.fill_noise(Tokens()).eval()
    info = featnet.discover(model, (3, 32, 48))
    assert info.module_name() == ["last", "down"]
    assert [f.layout for f in info] == ["NHWC", "NCHW"]
    model.last = nn.Identity()
    model.down = nn.Conv2d(6, 12, 2, 2)
    info = featnet.discover(model, (3, 32, 48))
    assert info.module_name() == ["mix", "down"]
    assert (info[0].layout, info[0].prefix, info.channels()) == ("NLC", 2, [6, 12])
    x = helpers.image_batch(32, 48)
    net = featnet.FeatureDictNet(model, feature_info=info)
    want = model.mix(model.patch(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert helpers.error(net(x)["mix"], want) <= 1e-5
    assert info.sizes((64, 64)) == [(16, 16), (8, 8)]


@pytest.mark.parametrize(
    ("shape", "size", "want"),
    [
        ((1, 64, 56, 56), (224, 224), (64, 4, "NCHW", 0)),
        ((1, 56, 56, 64), (224, 224), (64, 4, "NHWC", 0)),
        ((1, 14, 28, 64), (224, 448), (64, 16, "NHWC", 0)),
        ((1, 197, 768), (224, 224), (768, 16, "NLC", 1)),
        ((1, 201, 768), (224, 224), (768, 16, "NLC", 5)),
        ((1, 256, 1024), (224, 224), (1024, 14, "NLC", 0)),
        ((1, 768, 49), (224, 224), (768, 32, "NCL", 0)),
        ((1, 729, 1152), (384, 384), (1152, 14, "NLC", 0)),
        ((1, 512, 1, 1), (224, 224), None),
        ((1, 512), (224, 224), None),
        ((1, 1, 64), (256, 256), None),
        ((1, 12, 196, 196), (224, 224), (12, 1, "NCHW", 0)),  # one shape does not tell
    ],
)
def test_one_shape(shape: Any, size: Any, want: Any) -> None:
    found = layout.of_one(shape, size)
    got = found and (found.channels, found.reduction, found.axes, found.prefix)
    assert got == want


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        ((1, 64, 56, 56), (1, 64, 112, 112), (64, 4, "NCHW", 0)),
        ((1, 192, 25, 25), (1, 192, 53, 53), (192, 8, "NCHW", 0)),  # unpadded kernels
        ((1, 512, 7, 7), (1, 512, 7, 7), None),  # an adaptive pool
        ((1, 12, 196, 196), (1, 12, 784, 784), None),  # attention
        ((64, 49, 96), (256, 49, 96), None),  # windows
        ((1, 197, 768), (1, 785, 768), (768, 16, "NLC", 1)),
        ((1, 2, 3), (1, 2), None),
    ],
)
def test_two_shapes(first: Any, second: Any, want: Any) -> None:
    found = layout.of_two(first, second, (224, 224), (448, 448))
    got = found and (found.channels, found.reduction, found.axes, found.prefix)
    assert got == want


def test_a_table_one_can_read() -> None:
    lines = repr(featnet.discover(foreign.torchvision_model("resnet18", device="meta"))).split("\n")
    assert lines[0].split() == ["level", "module", "channels", "reduction"]
    assert lines[5].split() == ["4", "layer4", "512", "32"]


class Choosy(nn.Module):
    """Looks at values, which a run on the meta device has none of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Conv2d(4, 8, 3, 2, 1),
            nn.Conv2d(8, 9, 1),
        )
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        x = torch.relu(self.a(x))
        if x.mean() > 1e9:
            x = -x
        return self.c(self.b(x))


def test_a_model_that_refuses_meta_runs_on_zeros() -> None:
    model = helpers.fill_noise(Choosy())
    assert featnet.discover(model, (64, 64)).module_name() == ["a", "c"]
    x = helpers.image_batch(16, 16)
    net = featnet.extract(model, ["a"])
    assert model.calls == 0  # a copy ran
    assert torch.equal(net(x)["a"], model.a(x))


def test_patches_that_leave_a_rest_at_the_only_size_a_network_takes() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.mix = nn.Conv2d(3, 6, 14, 14), nn.Linear(6, 6)
            self.position, self.head = nn.Parameter(torch.zeros(1, 27 * 27, 6)), nn.Linear(6, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.patch(x).flatten(2).transpose(1, 2) + self.position
            return self.head(self.mix(y).mean(1))

    info = featnet.discover(Fixed(), (3, 384, 384))
    assert info.module_name() == ["mix"] and info.reduction() == [14]


@pytest.mark.parametrize(
    ("size", "sides", "want"),
    [
        ((384, 384), (27, 27), 14),
        ((224, 224), (13, 13), 16),
        ((224, 224), (54, 54), 4),
        ((299, 299), (35, 35), 8),
        ((384, 224), (27, 16), 14),
        ((64, 64), (5, 5), 16),
        ((96, 96), (8, 8), 12),
    ],
)
def test_nominal_reductions(size: Any, sides: Any, want: int) -> None:
    assert layout.nominal(size, sides) == want


def test_no_pyramid_is_said_so() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10))
    with pytest.raises(ArgumentError, match=r"has no pyramid.*\(1, 10\)"):
        featnet.discover(flat, (3, 8, 8))
    with pytest.raises(ArgumentError, match="has no pyramid"):
        featnet.discover(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1)))
    with pytest.raises(TraceError, match=r"Sequential does not run on an input of \(3, 9, 9\)"):
        featnet.discover(flat, (3, 9, 9))


@pytest.mark.parametrize("wrong", [224, "224", (3,), (3, 0, 8), (1, 3, 8, 8), (3.0, 8, 8), None])
def test_input_sizes(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"\(C, H, W\) or \(H, W\) is expected"):
        featnet.discover(nn.Conv2d(3, 4, 3), wrong)


def test_what_returns_nothing_tensor_like() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.talk = nn.Conv2d(3, 4, 3, 2, 1), Say()

        def forward(self, x: torch.Tensor) -> str:
            self.conv(x)
            return self.talk(x)

    class Say(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "text"

    assert featnet.discover(Silent()).module_name() == ["conv"]
    with pytest.raises(MissingFeatureError, match="'talk' gives no tensor"):
        featnet.extract(Silent(), ["talk"])


# extract ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> Any:
    return foreign.torchvision_model("resnet18")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return helpers.image_batch(64, 64)


def test_names_globs_and_dicts(resnet: Any, x: torch.Tensor) -> None:
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert list(featnet.extract(resnet, ["layer?"])(x)) == layers
    assert list(featnet.extract(resnet, "layer2.*.conv1")(x)) == [
        "layer2.0.conv1",
        "layer2.1.conv1",
    ]
    net = featnet.extract(resnet, {"layer3": 3, "bn1": "early"})
    found = net(x)
    assert list(found) == [3, "early"]
    assert torch.equal(found["early"], resnet.bn1(resnet.conv1(x)))
    assert net.layer4 is None and net.fc is None and resnet.fc is not None
    assert net.feature_info.channels() == [256, 64]
    with pytest.raises(MissingFeatureError, match=r"no module 'layer11'.*'layer1'"):
        featnet.extract(resnet, ["layer11"])


def test_features_and_logits_in_one_pass(resnet: Any, x: torch.Tensor) -> None:
    runs: list[int] = []
    model = copy.deepcopy(resnet)
    model.conv1.register_forward_hook(lambda *_: runs.append(1))
    net = featnet.extract(model, ["layer1", "avgpool"], logits=True)
    runs.clear()
    features, logits = net(x)
    assert runs == [1] and list(features) == ["layer1", "avgpool"]
    assert torch.equal(logits, resnet(x))
    assert torch.equal(resnet.fc(features["avgpool"].flatten(1)), logits)


def test_levels_of_what_declares_none(resnet: Any, x: torch.Tensor) -> None:
    net = featnet.extract(resnet)
    assert list(net(x)) == ["relu", "layer1", "layer2", "layer3", "layer4"]
    info = featnet.discover(resnet)
    some = featnet.FeatureInfo.from_other(info, (3, 1))
    assert list(featnet.extract(resnet, some)(x)) == ["layer3", "layer1"]
    with pytest.raises(ArgumentError, match=r"module_name\(\)"):
        featnet.extract(resnet, logits=True)


def test_a_module_at_two_resolutions_wants_a_choice(x: torch.Tensor) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 3, 3, 1, 1), nn.MaxPool2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(self.pool(self.conv(x)))

    model = helpers.fill_noise(Shared())
    with pytest.raises(MissingFeatureError, match=r"runs 2 times.*which='first'"):
        featnet.extract(model, ["conv"])
    for which, want in (("first", [64]), ("last", [32]), ("all", [64, 32])):
        found = featnet.extract(model, [featnet.Tap("conv", which=which)])(x)["conv"]
        assert [y.shape[-1] for y in (found if which == "all" else [found])] == want
    with pytest.raises(MissingFeatureError, match="runs 0 times"):
        featnet.extract(Unused(), ["never"])


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_hooks_of_others_stay(x: torch.Tensor) -> None:
    model = foreign.torchvision_model("resnet18")
    seen: list[str] = []
    model.layer1.register_forward_hook(lambda *_: seen.append("hook"))
    net = featnet.extract(model, ["layer2"])
    assert seen == []  # nobody's hooks are called to find something out
    net(x)
    assert seen == ["hook"] and len(model.layer1._forward_hooks) == 1
    assert not model.layer2._forward_hooks


def test_what_cannot_be_tapped(resnet: Any) -> None:
    compiled = torch.compile(nn.Sequential(nn.Conv2d(3, 3, 1)), backend="eager")
    for call in (featnet.extract, featnet.list_taps, featnet.discover):
        with pytest.raises(ArgumentError, match="_orig_mod"):
            call(compiled)
        with pytest.raises(ArgumentError, match="not a torch.nn.Module"):
            call("resnet18")


class Aliases(nn.Module):
    """One module under two names, one weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.tied = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 3, 2, 1)
        self.b, self.tied.weight = self.a, self.a.weight
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.tied(self.b(x)))


def test_what_has_two_names_is_not_removed_under_one(x: torch.Tensor) -> None:
    model = helpers.fill_noise(Aliases())
    want = model.tied(model.a(x))
    for name in ("b", "a"):
        assert torch.equal(featnet.extract(model, [name])(x)[name], model.a(x))
    net = featnet.extract(model, ["tied"])
    assert torch.equal(net(x)["tied"], want) and net.last is None
    nodes = featnet.create_feature_extractor(model, ["tied"])
    assert torch.equal(nodes(x)["tied"], want)


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_an_extractor_within_a_model_is_a_part_like_others(resnet: Any, x: torch.Tensor) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = featnet.extract(resnet, ["layer1", "layer3"])
            self.neck = nn.Conv2d(256, 8, 3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.neck(self.body(x)["layer3"])

    model = Detector().eval()
    assert featnet.discover(model).module_name()[-2:] == ["body.layer3.1", "neck"]
    net = featnet.extract(model, ["body.layer2", "neck"])
    assert torch.equal(net(x)["neck"], model(x))
    assert torch.equal(net(x)["neck"], model.neck(resnet.layer3(net(x)["body.layer2"])))
    for call in (featnet.extract, featnet.create_feature_extractor):
        with pytest.raises(ArgumentError, match="FeatureHookNet is an extractor.*made from"):
            call(model.body, ["layer1"])


@torch.no_grad()
def test_parts_that_are_compiled_or_scripted(x: torch.Tensor) -> None:
    model = foreign.torchvision_model("resnet18")
    want = featnet.extract(model, ["layer3"])(x)["layer3"]
    inside = copy.deepcopy(model)
    inside.layer2 = torch.compile(inside.layer2, backend="eager")
    whole = copy.deepcopy(model)
    whole.compile(backend="eager")
    for given in (inside, whole):
        assert featnet.discover(given).channels() == [64, 64, 128, 256, 512]
        net = featnet.extract(given, ["layer3"])
        assert torch.equal(net(x)["layer3"], want)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.layer2 = torch.jit.script(model.layer2)
    for call in (featnet.extract, featnet.create_feature_extractor):
        with pytest.raises(ArgumentError, match="layer2 of the ResNet is scripted"):
            call(model, ["layer3"])


# list_taps -------------------------------------------------------------------------------------


def test_a_model_that_does_not_run_is_said_so() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3, 2))
    for call in (featnet.extract, featnet.list_taps, featnet.discover):
        with pytest.raises(
            TraceError, match=r"Sequential does not run on an input of .*uninitialized"
        ):
            call(lazy, *([["0"]] if call is featnet.extract else []))


def test_list_taps(resnet: Any, capsys: pytest.CaptureFixture[str]) -> None:
    featnet.list_taps(resnet, input_size=(64, 96))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ResNet, input (1, 3, 64, 96)"
    assert len(lines) == 1 + len([n for n, _ in resnet.named_modules() if n])
    row = next(line for line in lines if line.split()[0] == "layer2.0.downsample.0")
    assert row.startswith("      layer2") and row.split(maxsplit=2)[1:] == [
        "Conv2d",
        "(1, 128, 8, 12)",
    ]
    assert any("layer1.0.relu" in line and "(2 times)" in line for line in lines)
    featnet.list_taps(Unused(), depth=1)
    assert "does not run" in capsys.readouterr().out
    with pytest.raises(TraceError, match="does not run on an input of 1 x 1"):
        featnet.list_taps(nn.Conv2d(3, 3, 3), input_size=(1, 1))


def test_a_feature_of_another_layout_is_still_a_feature() -> None:
    row = Feature(3, 4, "a", layout="NHWC")
    assert dict(row) == {"num_chs": 3, "reduction": 4, "module": "a", "index": 0}
