"""What timm's tests ask of timm, asked of featnet under its names: models, levels, graphs, names
and files. The smallest network of every family, on the meta device where numbers do not matter.

Scripting, files whose code is run, and levels in another order than was asked are what timm has and
featnet refuses: the tests ask for the refusals.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from featnet import registry
from featnet.compat import use_as_timm
from featnet.errors import ArgumentError, CheckpointError


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
            patch.delitem(sys.modules, name)
        with use_as_timm():
            yield importlib.import_module("timm")


def create(timm: Any, name: str, **options: Any) -> Any:
    """A network or a features net, small where it can be."""
    return timm.create_model(name, device="meta", **helpers.small(name), **options).eval()


def image(timm: Any, model: Any) -> torch.Tensor:
    """Two images of the size that the model's weights are for."""
    size = timm.data.resolve_model_data_config(model)["input_size"]
    return torch.empty(2, *size, device="meta")


# Models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", helpers.families())
def test_a_model(name: str, timm: Any) -> None:
    """Scores, gradients, features with and without pooling, and what the record names."""
    model = create(timm, name, num_classes=7)
    x = image(timm, model)
    with helpers.Cheap():
        scores = model(x)
        assert scores.shape == (2, 7)
        scores.sum().backward()
        features, maps = model.forward_intermediates(x)
    lacking = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking
    assert [y.shape[1] for y in maps] == [row["num_chs"] for row in model.feature_info]
    state, record = model.state_dict(), model.default_cfg
    assert record == model.pretrained_cfg and {"mean", "std", "input_size"} <= {*record}
    for field in ("first_conv", "classifier"):
        names = record.get(field) or ()
        for key in (names,) if isinstance(names, str) else names:
            assert f"{key}.weight" in state, field
    before = model.forward_head(features, pre_logits=True)
    assert before.shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), (nn.Module, tuple)) and model.num_classes == 7
    model.reset_classifier(5)
    assert model.forward_head(features).shape == (2, 5)
    model.reset_classifier(0)
    assert model.forward_head(features).shape == before.shape and model.num_classes == 0
    model.reset_classifier(0, "")
    whole = model.forward_head(features)
    width = whole.shape[1 if whole.ndim == 4 else -1]
    assert width in (model.num_features, model.head_hidden_size)
    model.set_grad_checkpointing(True)
    assert model.group_matcher(coarse=True)


@pytest.mark.parametrize("name", helpers.families()[::2])
def test_levels(name: str, timm: Any) -> None:
    """A features net gives what its ``feature_info`` says."""
    net = create(timm, name, features_only=True)
    x, info = image(timm, net), net.feature_info
    with helpers.Cheap():
        maps = net(x)
    assert len(maps) == len(info.channels()) == len(info.out_indices)
    assert [y.shape[1] for y in maps] == info.channels()
    assert info.reduction() == sorted(info.reduction()) and info.module_name()
    for y, step in zip(maps, info.reduction(), strict=True):
        for side, length in zip(y.shape[2:], x.shape[2:], strict=True):
            assert abs(side - length / step) <= 4  # convolutions that do not pad
    assert info.get_dicts(keys=["num_chs"]) == [{"num_chs": c} for c in info.channels()]
    assert net.default_cfg == net.pretrained_cfg


NUMBERS = ("test_resnet", "test_vit", "test_efficientnet", "test_convnext2")


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str, timm: Any) -> None:
    """Ways to the same values; a model that was saved is the same one."""
    model = helpers.fill_noise(timm.create_model(name)).eval()
    x = torch.rand(2, *timm.data.resolve_model_data_config(model)["input_size"])
    features, maps = model.forward_intermediates(x)
    assert torch.isfinite(model(x)).all()
    assert torch.equal(features, model.forward_features(x))
    assert torch.equal(model.forward_head(features), model(x))
    only = model.forward_intermediates(x, indices=[-1, 0], intermediates_only=True)
    assert torch.equal(only[0], maps[-1]) and torch.equal(only[1], maps[0])
    (last,) = model.forward_intermediates(x, indices=1, intermediates_only=True, stop_early=True)
    assert torch.equal(last, maps[-1])
    for kind in ("list", "dict", "hook", "getter", "fx"):
        net = timm.create_model(name, features_only=True, out_indices=(0, -1), feature_cls=kind)
        net.load_state_dict(model.state_dict(), strict=False)
        found = net.eval()(x)
        found = [*found.values()] if isinstance(found, dict) else found
        assert torch.equal(found[0], maps[0]) and torch.equal(found[1], maps[-1]), kind
    net = timm.create_model(name, features_only=True, out_indices=(-1, 0))
    assert net.feature_info.out_indices == (-1, 0)
    assert net.feature_info.channels() == [maps[-1].shape[1], maps[0].shape[1]]
    with pytest.raises(ArgumentError, match="torch.jit.script is not supported"):
        timm.create_model(name, scriptable=True)


# Tables or tokens that are made from the size of the map, outside of the blocks that are left out
UNTRACED = ("beit", "coat", "hieradet_sam2", "mvitv2", "pit", "vit_sam")


@pytest.mark.parametrize(
    "name", [n for n in helpers.families() if registry.family_of(n) not in UNTRACED][::4]
)
def test_graphs(name: str, timm: Any) -> None:
    """torchvision's tracer goes through a network with timm's list of what it must not go into."""
    tracing = helpers.peer("torchvision.models.feature_extraction")
    model = create(timm, name)
    tracer = tracing.NodePathTracer(
        leaf_modules=timm.layers.get_notrace_modules(),
        autowrap_functions=timm.layers.get_notrace_functions(),
        param_shapes_constant=True,
    )
    graph = fx.GraphModule(model, tracer.trace(model))
    with helpers.Cheap():
        assert graph(image(timm, model)).shape == (2, model.num_classes)


# Names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "place"),
    [
        ("resnet50", None, "resnet50"),
        ("resnet50.a1_in1k", None, "resnet50.a1_in1k"),
        ("hf-hub:org/repo", "hf-hub", "org/repo"),
        ("hf-hub:org/repo@v2", "hf-hub", "org/repo@v2"),
        ("hf_hub:org/a_hf_hub_b", "hf-hub", "org/a_hf_hub_b"),
        ("Hf-Hub:org/repo", "hf-hub", "org/repo"),
        ("local-dir:some/folder", "local-dir", "some/folder"),
        ("local-dir:/a#b/c?d", "local-dir", "/a#b/c?d"),
        (r"local-dir:D:\nets\one:two", "local-dir", r"D:\nets\one:two"),
        (r"local-dir:\\host\nets", "local-dir", r"\\host\nets"),
        ("local-dir://host/nets", "local-dir", "//host/nets"),
    ],
)
def test_a_name_and_its_source(name: str, source: str | None, place: str, timm: Any) -> None:
    assert timm.models.parse_model_name(name) == (source, place)


@pytest.mark.parametrize(
    "name", ["/nets/resnet50", "nets/resnet50", r"D:\resnet50", "D:resnet50", r"\\?\D:\resnet50"]
)
def test_a_path_is_no_name(name: str, timm: Any) -> None:
    """The error names both sources that it may be meant for; nothing else is built in its place."""
    for function in (timm.models.parse_model_name, timm.create_model):
        with pytest.raises(ValueError) as caught:
            function(name)
        assert all(f"{source}:{name}" in str(caught.value) for source in ("hf-hub", "local-dir"))


@pytest.mark.parametrize("name", ["nowhere:resnet50", "hf-hub:", "local-dir:"])
def test_a_source_that_is_none(name: str, timm: Any) -> None:
    with pytest.raises(ValueError, match=name):
        timm.models.parse_model_name(name)


def test_lists(timm: Any) -> None:
    names = timm.list_models()
    assert len(names) > 1000 and names == list(dict.fromkeys(names))
    assert all(timm.is_model(name) for name in names[::20])
    with_weights = timm.list_models("resnet1*", pretrained=True)
    assert with_weights and all("." in name for name in with_weights)
    assert {name.partition(".")[0] for name in with_weights} <= {*timm.list_models("resnet1*")}
    assert not {*timm.list_models("resnet*", exclude_filters="*a")} & {*timm.list_models("*a")}
    assert timm.models.safe_model_name("hf-hub:org/net.one") == "org_net_one"
    with pytest.raises(RuntimeError, match="^Unknown model"):
        timm.create_model("resnet5O")
    assert timm.create_model("test_resnet", foo=None).num_classes == 1000


# Files --------------------------------------------------------------------------------------------

STATES = {name: {"weight": torch.full((2,), float(i))} for i, name in enumerate("abc")}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"model.safetensors": "a", "zero.safetensors": "b"}, "a"),
        ({"pytorch_model.bin": "a", "aa.safetensors": "b"}, "a"),
        ({"net.safetensors": "b", "net.pth": "a", "net.bin": "c"}, "b"),
        ({"net.pth": "c"}, "c"),
    ],
)
def test_the_file_of_a_folder(
    files: dict[str, str], wanted: str, tmp_path: Path, timm: Any
) -> None:
    for file, content in files.items():
        save = save_file if file.endswith(".safetensors") else torch.save
        save(STATES[content], tmp_path / file)
    for folder in (tmp_path, str(tmp_path)):
        found = timm.models._hub.load_state_dict_from_path(folder)
        assert torch.equal(found["weight"], STATES[wanted]["weight"])


def test_a_folder_of_several_files_or_none(
    tmp_path: Path, timm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CheckpointError, match="No suitable checkpoints"):
        timm.models._hub.load_state_dict_from_path(tmp_path)
    for content in "ba":
        torch.save(STATES[content], tmp_path / f"{content}.pth")
    found = timm.models._hub.load_state_dict_from_path(tmp_path)
    assert found["weight"][0] == 0.0 and "a.pth, b.pth: the first is read" in caplog.text


def test_a_model_in_a_folder(tmp_path: Path, timm: Any) -> None:
    """What ``save_for_hf`` writes says all that the model needs."""
    model = helpers.fill_noise(timm.create_model("test_resnet", num_classes=4, in_chans=1)).eval()
    timm.models.save_for_hf(model, tmp_path, model_args={"in_chans": 1})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "test_resnet" and config["num_classes"] == 4
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.rand(2, 1, 64, 64)
    assert torch.equal(again(x), model(x))


@pytest.fixture
def training(tmp_path: Path, timm: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A model, its optimiser after a step, and what a training script saves of them."""
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    content = {"epoch": 4, "version": 2, "arch": "test_resnet", "metric": 0.5}
    content |= {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
    return model, optimizer, content


@pytest.mark.parametrize("beside", [None, argparse.Namespace(lr=0.1, opt="sgd")])
def test_going_on(beside: object, training: Any, tmp_path: Path, timm: Any) -> None:
    """Tensors, plain values, and the arguments of a command are read; the next epoch comes out."""
    model, optimizer, content = training
    torch.save({**content, "args": beside}, tmp_path / "last.pth.tar")
    again = timm.create_model("test_resnet", num_classes=3)
    fresh = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    assert timm.models.resume_checkpoint(again, tmp_path / "last.pth.tar", fresh) == 5
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    (one, *_), (other, *_) = (o.state_dict()["state"].values() for o in (optimizer, fresh))
    assert torch.equal(one["momentum_buffer"], other["momentum_buffer"])


def test_code_in_a_file_is_not_run(training: Any, tmp_path: Path, timm: Any) -> None:
    """Also where the caller would allow it, as timm does with ``weights_only=False``."""
    model, _, content = training
    torch.save({**content, "args": Path("a")}, tmp_path / "odd.pth")
    for load in (timm.models.load_checkpoint, timm.models.resume_checkpoint):
        for options in ({}, {"weights_only": False}):
            with pytest.raises(CheckpointError, match="holds more than tensors"):
                load(model, tmp_path / "odd.pth", **options)


def test_averaged_weights_and_what_does_not_fit(tmp_path: Path, timm: Any) -> None:
    model = timm.create_model("test_resnet", num_classes=3)
    average = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    names = {"state_dict": model.state_dict(), "state_dict_ema": average}
    torch.save(names, tmp_path / "both.pth")
    found = {
        ema: timm.models.load_state_dict(tmp_path / "both.pth", use_ema=ema)["fc.weight"]
        for ema in (True, False)
    }
    assert not found[True].any() and torch.equal(found[False], model.fc.weight)
    key = next(key for key in average if key.startswith("layer2"))
    del names["state_dict_ema"], names["state_dict"][key]
    torch.save(names, tmp_path / "less.pth")
    other = timm.create_model("test_resnet", num_classes=3)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=key):
        timm.models.load_checkpoint(other, tmp_path / "less.pth")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
