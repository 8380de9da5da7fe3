"""Graph extractors: torchvision's interface and numbers, and what it gets wrong done right."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from typing import Any

import foreign
import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet.errors import ArgumentError, MissingFeatureError, TraceError
from featnet.extraction.fx import effects, nodes
from featnet.tracing import structure


def extractor(model: nn.Module, *args: Any, **options: Any) -> Any:
    options.setdefault("suppress_diff_warning", True)
    return featnet.create_feature_extractor(model, *args, **options)


@pytest.fixture(scope="module")
def resnet() -> Any:
    return foreign.torchvision_model("resnet18")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return helpers.image_batch(64, 64, batch=2)


def peer() -> Any:
    return helpers.peer("torchvision.models.feature_extraction")


# Against the peer ------------------------------------------------------------------------------


def test_names_are_torchvisions(tv_name: str) -> None:
    """Position by position, but for modules whose own names end in a number."""
    model = foreign.torchvision_model(tv_name, device="meta")
    modules = dict(model.named_modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer().get_graph_node_names(model)
    ours = featnet.get_graph_node_names(model, suppress_diff_warning=True)
    for mine, other in zip(ours, theirs, strict=True):
        different = {a for a, b in zip(mine, other, strict=True) if a != b}
        assert all(name in modules and name[-1].isdigit() for name in different), different
        assert len(set(mine)) == len(mine)


@pytest.mark.parametrize("some_name", foreign.some_torchvision_names())
def test_outputs_are_torchvisions(some_name: str) -> None:
    """Many nodes at once, in any order, and each is what the peer gives for it alone."""
    model = foreign.torchvision_model(some_name)
    side = foreign.side_of(model)
    x = helpers.image_batch(side, side)
    every = featnet.get_graph_node_names(model, suppress_diff_warning=True)[1]
    top = [n for n, _ in model.named_children() if any(e.startswith(f"{n}.") for e in every)]
    chosen = random.Random(0).sample(every[1:], 6) + top[-1:]
    wanted = {n: f"out {i}" for i, n in enumerate(chosen)}
    with torch.no_grad():
        found = extractor(model, wanted)(x)
        assert list(found) == list(wanted.values())
        for n in [*chosen[:2], *top[-1:]]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                alone = peer().create_feature_extractor(model, [n])
            assert same(found[wanted[n]], alone(x)[n]), n


def same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_the_documented_example_of_mask_rcnn_trains() -> None:
    """torchvision's own example, its import changed."""
    helpers.peer("torchvision")
    from torchvision.models.detection.mask_rcnn import MaskRCNN
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

    class WithFPN(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = foreign.torchvision_model("resnet18")
            self.body = featnet.create_feature_extractor(
                model, return_nodes={f"layer{k}": str(v) for v, k in enumerate([1, 2, 3, 4])}
            )
            with torch.no_grad():
                out = self.body(torch.randn(2, 3, 64, 64))
            self.out_channels = 16
            self.fpn = FeaturePyramidNetwork(
                [o.shape[1] for o in out.values()], self.out_channels, LastLevelMaxPool()
            )

        def forward(self, x: torch.Tensor) -> Any:
            return self.fpn(self.body(x))

    model = MaskRCNN(WithFPN(), num_classes=3, min_size=64, max_size=64).train()
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[:, 4:40, 4:40] = 1
    target = {"boxes": boxes, "labels": torch.tensor([1]), "masks": masks}
    losses = model([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    grads = [p.grad for p in model.backbone.body.parameters()]
    assert all(g is not None and g.isfinite().all() for g in grads)
    assert any(g.abs().sum() > 0 for g in grads)


# Where the peer is wrong -----------------------------------------------------------------------


class Numbered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_2 = nn.Conv2d(3, 4, 1)
        self.conv_1 = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.relu_1 = nn.Sigmoid()
        self.shift_1 = nn.Parameter(torch.ones(1))

    def forward(self, image_1: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv_1(self.relu(self.conv_2(image_1)))) + self.shift_1
        return self.relu_1(x)


def test_modules_whose_names_end_in_a_number_keep_them() -> None:
    model = helpers.fill_noise(Numbered())
    names = ["image_1", "conv_2", "relu", "conv_1", "relu_2", "shift_1", "add", "relu_1"]
    assert featnet.get_graph_node_names(model) == (names, names)
    x = helpers.image_batch(5, 5)
    first = model.conv_2(x)
    second = model.conv_1(first.relu())
    want = {"conv_1": second, "conv_2": first, "relu_2": second.relu(), "relu_1": model(x)}
    found = extractor(model, list(want))(x)
    assert all(torch.equal(found[name], value) for name, value in want.items())


def test_two_queries_of_one_node_are_two_outputs(resnet: Any, x: torch.Tensor) -> None:
    found = extractor(resnet, ["layer4", "layer4.1", "layer4.1.relu_1"])(x)
    assert list(found) == ["layer4", "layer4.1", "layer4.1.relu_1"]
    assert all(torch.equal(found["layer4"], value) for value in found.values())


@pytest.mark.parametrize("query", ["layer.", "layer", "layer4.", "", "layer4.1.relu_7", ".*"])
def test_names_are_no_patterns(query: str, resnet: Any) -> None:
    with pytest.raises(MissingFeatureError, match="is not present in ResNet") as caught:
        extractor(resnet, [query])
    assert isinstance(caught.value, ValueError)  # the peer's


def test_the_nearest_node_is_named(resnet: Any) -> None:
    with pytest.raises(ValueError, match=r"'layer4\.1\.relu'"):
        extractor(resnet, ["layer4.1.rleu"])


def test_what_is_overwritten_is_what_the_node_put_out(resnet: Any, x: torch.Tensor) -> None:
    names = ["bn1", "layer1.0.bn2", "layer1.0.add", "layer1.0.relu_1"]
    together = extractor(resnet, names)(x)
    for name in names:
        assert torch.equal(together[name], extractor(resnet, [name])(x)[name]), name
    assert together["bn1"].min() < 0 <= together["layer1.0.relu_1"].min()


def test_only_what_is_overwritten_is_cloned(resnet: Any) -> None:
    net = extractor(resnet, ["layer1", "layer1.0.add", "layer4"])
    copies = [node for node in net.graph.nodes if node.target == "clone"]
    assert [copy.args[0].name for copy in copies] == ["add"]


def test_an_inplace_operation_whose_result_is_unused_stays() -> None:
    model = helpers.fill_noise(foreign.Scaled()).eval()
    x = helpers.image_batch(8, 8)
    net = extractor(model, ["relu_1", "down"])
    assert torch.equal(net(x)["relu_1"], model(x))
    assert torch.equal(net(x)["down"], model.down(model.conv(x).relu()))


class Writes(nn.Module):
    """Ways to write into a tensor, and to look at one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Identity(), nn.Conv2d(4, 4, 1))
        self.late = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(inplace=True)))
        self.drop = nn.Dropout(0.5, inplace=True)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.conv(x)
        b = a[:, :2]
        b += 1
        c = self.down(a)
        c.view(-1).fill_(7)
        d = nn.functional.relu(c, True)
        e = nn.functional.batch_norm(d, self.mean, self.var, None, None, self.training)
        torch.relu_(e)
        f = e.transpose(2, 3).clamp_(max=3)
        g = torch.add(f, 1, out=f.new_empty(0))
        return self.drop(self.late(g.mul(2)) * d.mean((2, 3), keepdim=True))


def _graphs(model: nn.Module) -> Any:
    for mode in (True, False):
        body = structure.clone(model).train(mode)
        graph = nodes.trace(body, None, None)[0]
        (last,) = [node for node in graph.nodes if node.op == "output"]
        graph.erase_node(last)
        yield body, graph


@pytest.mark.parametrize("some_name", [*foreign.some_torchvision_names(), Writes])
def test_what_names_tell_of_writing_is_never_less_than_a_run_shows(some_name: Any) -> None:
    model = (
        some_name() if some_name is Writes else foreign.torchvision_model(some_name, device="meta")
    )
    total = 0
    for body, graph in _graphs(model):
        told = effects.guess(body, graph)
        seen = effects.observe(body, graph, effects.sizes_for(body), channels=3)
        assert seen is not None
        for writer in graph.nodes:
            if not seen.writes[writer]:
                continue
            for node in graph.nodes:
                if seen.writes[writer] & seen.holds[node]:
                    total += 1
                    assert told.writes[writer] & told.holds[node], (writer, node)
    assert total > {Writes: 8, "resnet18": 0}.get(some_name, -1)


def test_most_networks_need_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("featnet.extraction.fx.graph.observe", no)
    for name, taps in (
        ("resnet18", ["layer1", "layer4"]),
        ("mobilenet_v3_small", ["features.1"]),
        ("vit_b_32", ["encoder.ln"]),
        ("densenet121", ["features.denseblock1"]),
    ):
        extractor(foreign.torchvision_model(name, device="meta"), taps)


def test_options_are_not_written_into(resnet: Any) -> None:
    options = {"leaf_modules": [type(resnet.layer1[0])], "autowrap_functions": []}
    before = copy.deepcopy(options)
    names = featnet.get_graph_node_names(resnet, tracer_kwargs=options)[1]
    assert options == before and "layer1.0" in names and "layer1.0.conv1" not in names


def test_the_model_is_not_changed(resnet: Any, x: torch.Tensor) -> None:
    model = foreign.torchvision_model("resnet18").train()
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    seen: list[str] = []
    model.conv1.register_forward_hook(lambda *_: seen.append("conv1"))
    net = extractor(model, ["layer2"])
    assert [m.training for m in model.modules()] == modes
    assert model.fc is not None and net.training
    net.eval()(x)
    assert [m.training for m in model.modules()] == modes and seen == ["conv1"]
    assert net.conv1.weight is model.conv1.weight and net.fc is None


# What comes out --------------------------------------------------------------------------------


def test_info_and_state(resnet: Any, x: torch.Tensor) -> None:
    net = extractor(resnet, {"layer3": "c", "layer1.0.add": "a", "flatten": "v"})
    assert net.feature_info.channels() == [f.shape[1] for f in net(x).values()] == [256, 64, 512]
    assert net.feature_info.module_name() == ["c", "a", "v"]
    assert net.feature_info.reduction(0) == 16 and net.feature_info.reduction(1) == 4
    big = net(helpers.image_batch(65, 97))
    assert net.feature_info.sizes((65, 97))[:2] == [tuple(f.shape[2:]) for f in [*big.values()][:2]]
    whole = resnet.state_dict()
    assert list(net.state_dict()) == [k for k in whole if not k.startswith("fc")]
    early = extractor(resnet, ["layer1"])
    assert set(early.state_dict()) == {k for k in whole if k.startswith(("conv1", "bn1", "layer1"))}


def test_made_in_inference_mode(resnet: Any, x: torch.Tensor) -> None:
    with torch.inference_mode():
        net = extractor(resnet, ["layer1.0.add"])
        assert net.feature_info.channels() == [64]
        found = net(x)["layer1.0.add"]
    assert torch.equal(found, extractor(resnet, ["layer1.0.add"])(x)["layer1.0.add"])


def test_channels_last_maps_and_tokens_are_known() -> None:
    net = extractor(
        foreign.torchvision_model("swin_t", device="meta"), ["features.1", "features.7"]
    )
    info = net.feature_info
    assert info.channels() == [96, 768] and info.reduction() == [4, 32]
    assert info[0].layout == "NHWC" and info.sizes((64, 96)) == [(16, 24), (2, 3)]
    net = extractor(foreign.torchvision_model("vit_b_32", device="meta"), ["encoder.ln"])
    (level,) = net.feature_info
    assert (level.channels, level.reduction, level.layout, level.prefix) == (768, 32, "NLC", 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(training: bool, way: str, resnet: Any, x: torch.Tensor) -> None:
    net = extractor(copy.deepcopy(resnet), ["layer2", "layer1.0.add"]).train(training)
    if way == "deepcopy":
        other = copy.deepcopy(net)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        other = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert other.training is training and other.conv1.training is training
    for mode in (training, not training):  # batch norm: each step changes the statistics
        a, b = net.train(mode)(x), other.train(mode)(x)
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert other.conv1.weight is not net.conv1.weight


def test_train_and_eval_nodes(x: torch.Tensor) -> None:
    class Modes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.b(x) if self.training else torch.tanh(x)

    model = Modes().eval()
    with pytest.warns(UserWarning, match=r"only in train mode: b; only in eval mode: tanh"):
        train, evaluation = featnet.get_graph_node_names(model)
    assert train[-1] == "b" and evaluation[-1] == "tanh"
    net = extractor(model, train_return_nodes=["b"], eval_return_nodes={"tanh": "t"})
    assert list(net(x)) == ["t"] and list(net.train()(x)) == ["b"]
    with pytest.raises(MissingFeatureError, match="'b' is not present"):
        extractor(model, ["b"])
    for given in (
        {},
        {"train_return_nodes": ["b"]},
        {"eval_return_nodes": ["b"]},
        {"return_nodes": ["a"], "train_return_nodes": ["a"], "eval_return_nodes": ["a"]},
    ):
        with pytest.raises(ValueError, match="train_return_nodes and eval_return_nodes together"):
            extractor(model, **given)


def test_compiles_exports_and_traces(resnet: Any, x: torch.Tensor) -> None:
    net = extractor(resnet, ["layer2", "layer1.0.add"])
    want = net(x)
    compiled = torch.compile(net, backend="eager", fullgraph=True)(x)
    exported = torch.export.export(net, (x,), strict=True).module()(x)
    traced = torch.fx.symbolic_trace(net)(x)
    as_module = net.graph_module()(x)
    for found in (compiled, exported, traced, as_module):
        assert all(torch.equal(found[name], value) for name, value in want.items())


def test_several_arguments_and_constants() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor, twice: bool = False) -> torch.Tensor:
            return torch.sin(a + b * 2 if twice else a + b)

    net = extractor(Two(), ["add"], concrete_args={"twice": True})
    assert torch.equal(net(torch.ones(2), torch.ones(2), True)["add"], torch.full((2,), 3.0))
    with pytest.raises(TraceError, match="batch of images"):
        _ = net.feature_info


# What torch.fx cannot trace --------------------------------------------------------------------


class Choosy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 3, 2, 1),
            nn.Conv2d(4, 8, 3, 2, 1),
            nn.Conv2d(8, 8, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        if x.mean() > 1e9:  # the line
            x = -x
        return self.c(self.b(x))


def test_modules_of_what_cannot_be_traced_are_read_by_hooks(x: torch.Tensor) -> None:
    model = helpers.fill_noise(Choosy())
    with pytest.warns(UserWarning, match=r"the line.*by hooks") as caught:
        net = featnet.create_feature_extractor(model, {"b": "second", "a": "first"})
    assert len(caught) == 1 and isinstance(net, featnet.FeatureHookNet)
    found = net(x)
    assert list(found) == ["second", "first"] and torch.equal(found["first"], model.a(x))
    assert net.c is None  # early stop
    assert net.feature_info.channels() == [8, 4] and net.feature_info.reduction() == [4, 2]


@pytest.mark.parametrize("nodes", [["relu"], ["b", "nothing"]])
def test_nodes_that_need_a_graph_name_the_line(nodes: list[str]) -> None:
    line = r"test_graph\.py, line \d+, `if x\.mean\(\) > 1e9:  # the line`"
    with pytest.raises(MissingFeatureError, match=line):
        featnet.create_feature_extractor(Choosy(), nodes)
    with pytest.raises(TraceError, match=line):
        featnet.get_graph_node_names(Choosy())


def test_leaf_modules_and_functions(x: torch.Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Choosy())
    net = extractor(model, ["1"], tracer_kwargs={"leaf_modules": (Choosy,)})
    assert torch.equal(net(x)["1"], model(x))
    other = pickle.loads(pickle.dumps(net))
    assert torch.equal(other(x)["1"], model(x))


# Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"return_nodes": []}, r"return_nodes=\[\]"),
        ({"return_nodes": "layer4"}, "return_nodes='layer4'"),
        ({"return_nodes": {"layer1": "a", "layer2": "a"}}, "output name of its own"),
        ({"return_nodes": ["layer1"], "tracer_kwargs": {"leaf_module": []}}, "'leaf_modules'"),
        ({"return_nodes": ["layer1"], "tracer_kwargs": {"leaf_modules": [3]}}, "and 3 is none"),
    ],
)
def test_bad_arguments(options: Any, message: str, resnet: Any) -> None:
    with pytest.raises(ArgumentError, match=message):
        featnet.create_feature_extractor(resnet, **options)


def test_what_is_no_module_to_look_into(resnet: Any) -> None:
    small = nn.Sequential(nn.Conv2d(3, 4, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(small)
    for model, part in (
        (scripted, "scripted"),
        (torch.compile(small, backend="eager"), "_orig_mod"),
        (torch.relu, "not a torch.nn.Module"),
    ):
        with pytest.raises(ArgumentError, match=part):
            featnet.create_feature_extractor(model, ["0"])


def test_hooks_of_others(x: torch.Tensor) -> None:
    model = foreign.torchvision_model("resnet18")
    seen: list[str] = []
    model.layer1.register_forward_hook(lambda *_: seen.append("layer1"))
    model.layer1[0].conv1.register_forward_hook(lambda *_: seen.append("conv1"))
    with pytest.warns(UserWarning, match="Hooks on layer1 are not called"):
        net = extractor(model, ["layer2"])
    assert seen == []
    net(x)
    assert seen == ["conv1"]  # a leaf keeps its hooks
    model(x)
    assert seen == ["conv1", "conv1", "layer1"]


def test_a_model_on_the_meta_device_stays_there() -> None:
    net = extractor(foreign.torchvision_model("resnet18", device="meta"), ["layer1"])
    assert net(torch.empty(1, 3, 64, 64, device="meta"))["layer1"].shape == (1, 64, 16, 16)
