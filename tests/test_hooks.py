"""FeatureHooks and FeatureHookNet: what modules put out, and nothing left behind."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import foreign as foreign_models
import helpers
import pytest
import torch
from torch import nn

from featnet import FeatureDictNet, FeatureHookNet, FeatureHooks, FeatureListNet, Tap, create_model
from featnet.errors import ArgumentError, MissingFeatureError
from featnet.extraction.hooks import matching, resolve_taps

NAME = "test_resnet"


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def model() -> Any:
    return helpers.fill_noise(create_model(NAME)).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return helpers.image_batch(64, 64)


class Pair(nn.Module):
    """Two outputs, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.conv(x)
        return y, {"double": 2 * y}


class Foreign(nn.Module):
    """A network that is no Backbone, with every awkwardness."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.unused = nn.Conv2d(8, 8, 1)
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fail = False
        self.feature_info: Any = [
            dict(num_chs=4, reduction=1, module="act"),
            dict(num_chs=8, reduction=2, module="down"),
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.pair(x)
        y = self.twice(self.twice(y))
        y = self.down(self.act(self.bn(y)))
        if self.fail:
            raise RuntimeError("on purpose")
        return self.deep(y)


@pytest.fixture
def foreign() -> Any:
    return helpers.fill_noise(Foreign()).eval()


def steps(f: Foreign, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every intermediate result, computed without hooks and without in-place operations."""
    a = f.pair.conv(x)
    b = f.twice(a)
    c = f.twice(b)
    d = f.bn(c)
    e = torch.relu(d)
    g = f.down(e)
    return {"pair": a, "first": b, "last": c, "bn": d, "act": e, "down": g, "deep": f.deep(g)}


# What comes out ---------------------------------------------------------------------------------


def test_forward_and_forward_pre(foreign: Any, x: torch.Tensor) -> None:
    truth = steps(foreign, x)
    taps = [
        "act",
        Tap("down"),
        Tap("down", kind="forward_pre", key="given"),
        Tap("pair", key="two"),
    ]
    with FeatureHooks(foreign, taps) as hooks, hooks.collect() as found:
        out = foreign(x)
    assert list(found) == ["act", "down", "given", "two"]
    assert torch.equal(found["act"], truth["act"]) and torch.equal(found["down"], truth["down"])
    assert torch.equal(found["given"], truth["act"])
    value, more = found["two"]
    assert torch.equal(value, truth["pair"]) and torch.equal(more["double"], 2 * truth["pair"])
    assert torch.equal(out, truth["deep"])


def test_a_hook_net_gives_tuples_as_they_are(foreign: Any, x: torch.Tensor) -> None:
    net = FeatureHookNet(foreign, taps=["pair"])
    value, more = net(x)["pair"]
    assert torch.equal(value, steps(foreign, x)["pair"]) and torch.equal(more["double"], 2 * value)


def test_a_pre_tap_of_a_hook_net(foreign: Any, x: torch.Tensor) -> None:
    net = FeatureHookNet(foreign, taps=[Tap("down", kind="forward_pre", key="given"), "down"])
    found, truth = net(x), steps(foreign, x)
    assert torch.equal(found["given"], truth["act"]) and torch.equal(found["down"], truth["down"])


def test_what_an_inplace_operation_overwrites_is_what_the_module_put_out() -> None:
    model = helpers.fill_noise(create_model("resnet18")).eval()
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        wanted = model.bn1(model.conv1(x))
        found = FeatureHookNet(model, taps=["bn1", "act1"])(x)
    assert (wanted < 0).any()
    assert torch.equal(found["bn1"], wanted) and torch.equal(found["act1"], wanted.relu())


@pytest.mark.parametrize("kind", ["forward", "forward_pre"])
def test_plain_hooks_too_give_what_was_there(kind: str, foreign: Any, x: torch.Tensor) -> None:
    """``act`` is given what it then overwrites."""
    name = "bn" if kind == "forward" else "act"
    wanted = steps(foreign, x)["bn"]
    hooks = FeatureHooks(foreign, [Tap(name, kind=kind)])
    with torch.no_grad(), hooks.collect() as found:
        foreign(x)
    assert (wanted < 0).any() and torch.equal(found[name], wanted)


def test_only_of_what_is_overwritten_there_is_a_copy(foreign: Any, x: torch.Tensor) -> None:
    """The network goes on with it, and the original comes out."""
    seen: dict[str, Any] = {}
    for name in ("bn", "down", "act"):
        foreign.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.__setitem__(name, output.data_ptr())
        )
    with torch.no_grad():
        found = FeatureHookNet(foreign, taps=["bn", "act", "down"])(x)
    assert all(found[name].data_ptr() == seen[name] for name in ("bn", "act", "down"))
    assert seen["act"] != seen["bn"]


def test_which_of_several_calls(foreign: Any, x: torch.Tensor) -> None:
    truth = steps(foreign, x)
    taps = [Tap("twice", key=which, which=which) for which in ("first", "last", "all")]
    for found in (FeatureHookNet(foreign, taps=taps)(x), collected(foreign, taps, x)):
        assert torch.equal(found["first"], truth["first"])
        assert torch.equal(found["last"], truth["last"])
        assert [
            torch.equal(a, truth[b]) for a, b in zip(found["all"], ("first", "last"), strict=True)
        ]


def collected(model: nn.Module, taps: Any, x: torch.Tensor) -> dict[Any, Any]:
    with FeatureHooks(model, taps) as hooks, hooks.collect() as found:
        model(x)
    return found


def test_several_calls_of_one_tap_are_an_error_that_says_how(foreign: Any, x: torch.Tensor) -> None:
    with pytest.raises(MissingFeatureError, match=r"'twice'.*which='first'"):
        FeatureHookNet(foreign, taps=["twice"])
    with pytest.raises(MissingFeatureError, match=r"'twice'.*which='first'"):
        collected(foreign, ["twice"], x)


def test_patterns_and_dicts(model: Any, x: torch.Tensor) -> None:
    found = FeatureHookNet(model, taps=["layer?"])(x)
    assert list(found) == ["layer1", "layer2", "layer3", "layer4"]
    named = FeatureHookNet(model, taps={"layer2": "middle", "layer4": "deep"})
    assert list(named(x)) == ["middle", "deep"]
    assert named.feature_info.channels() == [named(x)[k].shape[1] for k in ("middle", "deep")]
    assert torch.equal(named(x)["deep"], model.forward_features(x))
    listed = FeatureHookNet(model, taps=["layer4", "layer1"], return_dict=False)(x)
    assert isinstance(listed, list) and len(listed) == 2
    assert torch.equal(listed[1], found["layer1"]) and torch.equal(listed[0], found["layer4"])


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("layer*", ["layer1", "layer2"]),
        ("layer1.*", ["layer1.0", "layer1.1"]),
        ("layer?.*.conv*", ["layer1.0.conv1", "layer1.1.conv1"]),
        ("layer1.**", ["layer1.0", "layer1.0.conv1", "layer1.1", "layer1.1.conv1"]),
        ("**.conv1", ["conv1", "layer1.0.conv1", "layer1.1.conv1"]),
        ("**", None),
        ("*", ["conv1", "layer1", "layer2", "a[b"]),
        ("layer[2-9]", ["layer2"]),
        ("layer[!2]", ["layer1"]),
        ("layer1[!x]0", []),
        ("layer1[.-]0", []),
        ("layer1.", []),
        ("a[b", ["a[b"]),
        ("layer1?0", []),
        ("", []),
    ],
)
def test_patterns_stay_inside_a_part(pattern: str, names: list[str] | None) -> None:
    every = ["conv1", "layer1", "layer1.0", "layer1.0.conv1", "layer1.1", "layer1.1.conv1"]
    every += ["layer2", "a[b"]
    assert matching(pattern, every) == (every if names is None else names)


def test_the_stages_of_a_resnet_and_the_blocks_of_a_vit() -> None:
    resnet = foreign_models.torchvision_model("resnet18", device="meta")
    stages = [f"layer{i}" for i in (1, 2, 3, 4)]
    assert [tap.module for tap in resolve_taps(resnet, ["layer*"])] == stages
    vit = helpers.meta_model("vit_tiny_patch16_224")
    assert [t.key for t in resolve_taps(vit, "blocks.*")] == [
        f"blocks.{i}" for i in range(len(vit.blocks))
    ]
    with pytest.raises(MissingFeatureError, match=r"no module 'block\.\*'.*'blocks\.0'"):
        resolve_taps(vit, "block.*")


@pytest.mark.parametrize(
    ("taps", "kind", "part"),
    [
        (["layre1"], MissingFeatureError, "Did you mean 'layer1'"),
        (["blocks.*"], MissingFeatureError, "'blocks.*'"),
        ([], ArgumentError, "No taps"),
        (["layer1", "layer1"], ArgumentError, "distinct keys"),
        ([3], ArgumentError, "3"),
        (3, ArgumentError, "3"),
    ],
)
def test_taps_that_mean_nothing(model: Any, taps: Any, kind: type[Exception], part: str) -> None:
    for build in (FeatureHooks, lambda m, t: FeatureHookNet(m, taps=t)):
        with pytest.raises(kind) as caught:
            build(model, taps)
        assert part in str(caught.value)
    assert hook_count(model) == 0


@pytest.mark.parametrize("wrong", [{"kind": "backward"}, {"which": "second"}])
def test_a_tap_of_another_kind(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong.values()))):
        Tap("layer1", **wrong)


# Missing ----------------------------------------------------------------------------------------


def test_a_tap_that_did_not_fire_is_named(foreign: Any, x: torch.Tensor) -> None:
    with pytest.raises(MissingFeatureError, match="'unused'"):
        FeatureHookNet(foreign, taps=["act", "unused"])
    hooks = FeatureHooks(foreign, ["act", "unused"])
    with pytest.raises(MissingFeatureError, match="'unused'") as caught, hooks.collect():
        foreign(x)
    assert "'act'" not in str(caught.value)
    with pytest.raises(MissingFeatureError), hooks.collect():
        pass


# Removal and retention --------------------------------------------------------------------------


def test_hooks_come_off_and_others_stay(foreign: Any, x: torch.Tensor) -> None:
    foreign.act.register_forward_hook(lambda *a: None)
    base = hook_count(foreign)
    hooks = FeatureHooks(foreign, ["act", Tap("down", kind="forward_pre")])
    assert hook_count(foreign) == base + 2
    hooks.remove()
    hooks.remove()
    assert hook_count(foreign) == base
    with FeatureHooks(foreign, ["act"]):
        assert hook_count(foreign) == base + 1
    with pytest.raises(ZeroDivisionError), FeatureHooks(foreign, ["act"]):
        1 / 0  # noqa: B018
    assert hook_count(foreign) == base


def test_an_error_in_the_constructor_leaves_no_hook(foreign: Any) -> None:
    with pytest.raises(MissingFeatureError):
        FeatureHooks(foreign, ["act", "nothing"])
    with pytest.raises(MissingFeatureError):
        FeatureHookNet(foreign, taps=["act", "unused"])
    assert hook_count(foreign) == 0


@pytest.mark.parametrize("how", ["hooks", "net"])
def test_nothing_is_retained(how: str, foreign: Any, x: torch.Tensor) -> None:
    refs: list[Any] = []
    net = FeatureHookNet(foreign, taps=["act", "deep"], prune=False)
    hooks = FeatureHooks(foreign, ["act", "deep"])
    owner = net.body if how == "net" else foreign
    for name in ("act", "down"):
        owner.get_submodule(name).register_forward_hook(
            lambda module, args, output: refs.append(weakref.ref(output))
        )

    def forward() -> None:
        if how == "net":
            net(x)
        else:
            with hooks.collect() as found:
                foreign(x)
            found.clear()

    for fail in (True, False):
        owner.fail = fail
        try:
            forward()
        except RuntimeError as error:
            assert fail and str(error) == "on purpose"
            error.__traceback__ = None
        gc.collect()
        assert refs and all(ref() is None for ref in refs)
    owner.fail = False
    forward()  # and the failed one before does no harm


def test_a_plain_forward_collects_nothing(foreign: Any, x: torch.Tensor) -> None:
    hooks = FeatureHooks(foreign, ["act"])
    refs: list[Any] = []
    foreign.act.register_forward_hook(lambda m, a, output: refs.append(weakref.ref(output)))
    foreign(x)
    gc.collect()
    assert refs[0]() is None
    with hooks.collect() as found:
        foreign(x)
    assert set(found) == {"act"}


# Copies and replacements ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FeatureListNet, FeatureDictNet, FeatureHookNet])
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_works_alone(kind: Any, way: str, model: Any, x: torch.Tensor) -> None:
    net = kind(model)
    copied = copy.deepcopy(net) if way == "deepcopy" else pickle.loads(pickle.dumps(net))
    assert hook_count(copied) == hook_count(net)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, intermediates_only=True)
        for parameter in copied.parameters():
            parameter.zero_()
        for maps in (net(x), net(x)):
            found = list(maps.values()) if isinstance(maps, dict) else maps
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        maps = copied(x)
    found = list(maps.values()) if isinstance(maps, dict) else maps
    assert not any(y.any() for y in found), "the copy's maps must be the copy's"
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in net.parameters()}


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_hooks_and_model_copied_together(way: str, foreign: Any, x: torch.Tensor) -> None:
    both = (foreign, FeatureHooks(foreign, ["act", "down"]))
    other, hooks = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
    with torch.no_grad():
        other.down.weight.zero_()
        other.down.bias.zero_()
        with hooks.collect() as found:
            other(x)
        with both[1].collect() as mine:
            foreign(x)
    assert not found["down"].any() and mine["down"].any()
    hooks.remove()
    assert hook_count(other) == 0 and hook_count(foreign) == 2


def test_a_tapped_module_that_is_replaced(foreign: Any, x: torch.Tensor) -> None:
    hooks = FeatureHooks(foreign, ["down"])
    old = foreign.down
    foreign.down = nn.Conv2d(4, 8, 1, stride=2)
    with torch.no_grad(), hooks.collect() as found:
        foreign(x)
    assert torch.equal(found["down"], foreign.down(steps_act(foreign, x)))
    assert hook_count(old) == 0
    hooks.remove()
    assert hook_count(foreign) == 0


def steps_act(f: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = torch.relu(f.bn(f.twice(f.twice(f.pair.conv(x)))))
    return y


def test_a_tapped_module_of_a_net_that_is_replaced(model: Any, x: torch.Tensor) -> None:
    net = FeatureHookNet(model, (0, 1))
    net.layer1 = nn.Conv2d(32, 7, 1)
    assert net(x)[1].shape[1] == 7
    assert model.forward_intermediates(x, (1,), intermediates_only=True)[0].shape[1] == 32


# Threads and nesting ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["hooks", "net"])
def test_threads_do_not_see_each_other(how: str, model: Any) -> None:
    net, hooks = FeatureHookNet(model), FeatureHooks(model, ["layer1", "layer4"])
    inputs = [helpers.image_batch(64, 64, seed=i) for i in range(4)]
    wrong: list[int] = []
    barrier = threading.Barrier(4)

    def work(i: int) -> None:
        with torch.no_grad():
            wanted = model.forward_intermediates(inputs[i], (1, 4), intermediates_only=True)
            barrier.wait()
            for _ in range(5):
                if how == "net":
                    maps = net(inputs[i])
                    found = [maps[1], maps[4]]
                else:
                    with hooks.collect() as features:
                        model(inputs[i])
                    found = list(features.values())
                if not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nested_collections(foreign: Any, x: torch.Tensor) -> None:
    hooks = FeatureHooks(foreign, ["act"])
    other = x + 1
    with torch.no_grad(), hooks.collect() as outer:
        foreign(x)
        with hooks.collect() as inner:
            foreign(other)
    assert torch.equal(inner["act"], steps_act(foreign, other))
    assert torch.equal(outer["act"], steps_act(foreign, x))


def test_a_failed_inner_collection_leaves_the_outer(foreign: Any, x: torch.Tensor) -> None:
    hooks = FeatureHooks(foreign, ["act"])
    with torch.no_grad(), hooks.collect() as outer:
        foreign.fail = True
        with pytest.raises(RuntimeError, match="on purpose"), hooks.collect():
            foreign(x + 1)
        foreign.fail = False
        foreign(x)
    assert torch.equal(outer["act"], steps_act(foreign, x))


def test_two_sets_of_hooks_on_one_model(foreign: Any, x: torch.Tensor) -> None:
    a, b = FeatureHooks(foreign, ["act"]), FeatureHooks(foreign, ["down"])
    with a.collect() as first, b.collect() as second:
        foreign(x)
    assert set(first) == {"act"} and set(second) == {"down"}
    a.remove()
    assert hook_count(foreign) == 1


# Foreign declarations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vocabulary", [("num_chs", "module"), ("chs", "name"), ("channels", "module")]
)
@pytest.mark.parametrize("kind", [FeatureListNet, FeatureDictNet, FeatureHookNet])
def test_a_foreign_declaration(
    kind: Any, vocabulary: tuple[str, str], foreign: Any, x: torch.Tensor
) -> None:
    chs, name = vocabulary
    foreign.feature_info = [
        {chs: 4, "reduction": 1, name: "act"},
        {chs: 8, "reduction": 2, name: "down"},
    ]
    keys, truth = list(foreign.state_dict()), steps(foreign, x)
    net = kind(foreign, (1, 0))
    maps = net(x)
    if isinstance(maps, OrderedDict):
        assert list(maps) == ["down", "act"]
        maps = list(maps.values())
    assert torch.equal(maps[0], truth["down"]) and torch.equal(maps[1], truth["act"])
    assert net.feature_info.channels() == [8, 4] and net.feature_info.reduction() == [2, 1]
    assert net.feature_info.sizes((10, 7)) == [(5, 4), (10, 7)]
    assert not {"deep.weight", "unused.weight"} & set(net.state_dict()), "pruned"
    assert list(foreign.state_dict()) == keys and hook_count(foreign) == 0
    assert torch.equal(foreign(x), truth["deep"])


def test_what_is_past_the_last_tap_does_not_run(foreign: Any, x: torch.Tensor) -> None:
    net = FeatureHookNet(foreign, (0,), prune=False)
    net.down.register_forward_hook(lambda *a: pytest.fail("down ran"))
    net(x)


# torch.compile ----------------------------------------------------------------------------------


@pytest.fixture
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: Any, backend: str = "eager") -> Any:
    return torch.compile(model, fullgraph=True, backend=backend)


def same(found: Any, wanted: list[torch.Tensor]) -> bool:
    maps = list(found.values()) if isinstance(found, dict) else found
    return len(maps) == len(wanted) and all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(maps, wanted, strict=True)
    )


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_hook_net_compiles_whole(backend: str, model: Any, x: torch.Tensor) -> None:
    net = FeatureHookNet(model, (0, 2, 3))
    with torch.no_grad():
        wanted = model.forward_intermediates(x, (0, 2, 3), intermediates_only=True)
        assert same(compiled(net, backend)(x), wanted)


@pytest.mark.usefixtures("fresh")
def test_a_compiled_tap_gives_what_was_there_before_the_inplace_operation(
    model: Any, x: torch.Tensor
) -> None:
    net = FeatureHookNet(model, taps=["bn1", "act1"])
    with torch.no_grad():
        wanted = model.bn1(model.conv1(x))
        assert same(compiled(net, "aot_eager")(x), [wanted, wanted.relu()])


@pytest.mark.usefixtures("fresh")
def test_a_foreign_net_compiles_whole(foreign: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        truth = steps(foreign, x)
        assert same(compiled(FeatureHookNet(foreign))(x), [truth["act"], truth["down"]])


@pytest.mark.usefixtures("fresh")
def test_hooks_before_compiling(foreign: Any, x: torch.Tensor) -> None:
    hooks, fast = FeatureHooks(foreign, ["act", "down"]), torch.compile(foreign, backend="eager")
    with torch.no_grad():
        truth = steps(foreign, x)
        for _ in range(2):
            with hooks.collect() as found:
                fast(x)
            assert same(found, [truth["act"], truth["down"]])
        with hooks.collect() as found:
            fast(x + 1)
        assert not same(found, [truth["act"], truth["down"]]), "not those of the call before"


@pytest.mark.usefixtures("fresh")
def test_hooks_on_what_was_compiled_and_run(foreign: Any, x: torch.Tensor) -> None:
    """Right features or an error that names the taps; never silently none."""
    fast = torch.compile(foreign, backend="eager")
    with torch.no_grad():
        fast(x)
        truth = steps(foreign, x)
        hooks = FeatureHooks(foreign, ["act"])
        try:
            with hooks.collect() as found:
                fast(x)
        except MissingFeatureError as error:
            assert "'act'" in str(error) and "torch.compiler.reset" in str(error)
        else:
            assert same(found, [truth["act"]])


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("first", ["list", "hook other", "hook same", "classifier"])
def test_a_hook_net_after_another_of_its_class(first: str, model: Any, x: torch.Tensor) -> None:
    """Graphs of one instance are never another's, though code and shapes agree."""
    other = helpers.fill_noise(create_model(NAME), seed=5).eval()
    before: dict[str, Any] = {
        "list": lambda: FeatureListNet(other),
        "hook other": lambda: FeatureHookNet(other, (1, 4)),
        "hook same": lambda: FeatureHookNet(other, (0, 3)),
        "classifier": lambda: other,
    }
    net = FeatureHookNet(model, (0, 3))
    with torch.no_grad():
        compiled(before[first]())(x)
        wanted = model.forward_intermediates(x, (0, 3), intermediates_only=True)
        fast = compiled(net)
        for _ in range(2):
            try:
                found = fast(x)
            except MissingFeatureError as error:
                assert "torch.compiler.reset" in str(error)
            else:
                assert same(found, wanted)


@pytest.mark.usefixtures("fresh")
def test_gradients_through_a_compiled_hook_net(model: Any, x: torch.Tensor) -> None:
    net = FeatureHookNet(model, (0, 2))
    sum(y.square().mean() for y in net(x)).backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    sum(y.square().mean() for y in compiled(net, "aot_eager")(x)).backward()
    for p, grad in zip(net.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-5)
