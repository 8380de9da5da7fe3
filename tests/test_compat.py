"""featnet in timm's place: the switch, the names, and what is built."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from torch import nn

import featnet
from featnet import registry
from featnet.compat import modules, names, use_as_timm
from featnet.errors import ArgumentError, CheckpointError, OutIndexError, UnknownModelError


def theirs() -> list[str]:
    return [name for name in sys.modules if name == "timm" or name.startswith("timm.")]


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module is loaded that holds timm; afterwards those that were are back."""
    for name in theirs():
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def timm(nowhere: None) -> Iterator[Any]:
    with use_as_timm():
        yield importlib.import_module("timm")


# The switch ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nowhere")
def test_it_is_undone_exactly() -> None:
    before, finders = dict(sys.modules), list(sys.meta_path)
    with use_as_timm() as switch:
        import timm.models.layers

        assert timm is featnet.compat.timm  # type: ignore[attr-defined]
        assert timm.models.layers.DropPath is timm.layers.DropPath
        assert importlib.metadata.version("timm") == timm.__version__ == modules.VERSION
        assert importlib.util.find_spec("timm") is not None
    assert not theirs() and {**before, **sys.modules} == sys.modules
    assert [f for f in sys.meta_path if f is not modules._FINDER] == [
        f for f in finders if f is not modules._FINDER
    ]
    with pytest.raises(ArgumentError, match="undone already"):
        switch.undo()


def fake(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A timm, and a module that holds it, a class of it, one that featnet lacks, and one of a
    module that nobody knows."""
    real, layers = types.ModuleType("timm"), types.ModuleType("timm.layers")
    holder: Any = types.ModuleType("a_holder")
    for name, home in (("DropPath", "layers"), ("NonLocalAttn", "layers"), ("Secret", "_own")):
        setattr(holder, name, type(name, (), {"__module__": f"timm.{home}"}))
    holder.timm, holder.number = real, 3
    for module in (real, layers, holder):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return holder


@pytest.mark.usefixtures("nowhere")
def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    holder: Any = fake(monkeypatch)
    before = dict(vars(holder))
    with pytest.raises(ArgumentError, match="too late: a_holder.* hold timm already.*rebind=True"):
        use_as_timm()
    assert vars(holder) == before and sys.modules["timm"] is holder.timm
    for number in range(12):
        other: Any = types.ModuleType(f"a_holder_{number}")
        other.timm = holder.timm
        monkeypatch.setitem(sys.modules, other.__name__, other)
    with pytest.raises(ArgumentError, match=r"a_holder_0, .* and \d+ more hold timm already"):
        use_as_timm()
    with use_as_timm(rebind=True) as switch:
        assert holder.timm is featnet.compat.timm  # type: ignore[attr-defined]
        assert holder.DropPath is holder.timm.layers.DropPath
        assert {"a_holder.DropPath", "a_holder.timm"} <= {*switch.rebound}
        assert {"a_holder.NonLocalAttn", "a_holder.Secret"} <= {*switch.kept}
    assert vars(holder) == before and sys.modules["timm"] is holder.timm


@pytest.mark.usefixtures("nowhere")
def test_twice_and_in_another_order() -> None:
    outer, inner = use_as_timm(), use_as_timm(flat=True)
    with pytest.raises(ArgumentError, match="still on: undo that first"):
        outer.undo()
    inner.undo()
    assert importlib.import_module("timm") is featnet.compat.timm  # type: ignore[attr-defined]
    outer.undo()
    assert not theirs()


def test_the_command(tmp_path: Path) -> None:
    script = tmp_path / "user.py"
    (tmp_path / "beside.py").write_text("from timm import create_model\n")
    script.write_text(
        "import sys, beside\n"
        "net = beside.create_model('test_resnet', features_only=True)\n"
        "print(type(net).__module__, sys.argv[1:], __name__)\n"
    )
    command = [sys.executable, "-m", "featnet.compat", str(script), "--flag", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "featnet.extraction.extractors", "['--flag',", "'x']", "__main__",
    ]  # fmt: skip
    wrong = subprocess.run([*command[:3], "no.py"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "'no.py' does not exist" in wrong.stderr


# Names --------------------------------------------------------------------------------------------

PATHS = sorted({*names.NAMES, *names.SAME, *(f"models.{name}" for name in modules.families())})


@pytest.mark.parametrize("path", PATHS)
def test_every_name_is_there(path: str) -> None:
    module = importlib.import_module(f"{modules.FRONT}.{path}".strip("."))
    assert set(module.__all__) == set(modules.table(path))
    for name in module.__all__:
        getattr(module, name)


def test_names_that_are_called_by_timms_modules_are_timms() -> None:
    """The list of what timm has is that of the installed one."""
    peer = helpers.peer("timm")
    assert peer.__version__ == modules.VERSION
    assert set(modules.peer_models()) == set(peer.list_models())
    for path in ("layers", "data", "utils"):
        there = importlib.import_module(f"timm.{path}")
        assert all(hasattr(there, name) for name in modules.peer_names()[path])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from timm.layers import NonLocalAttn", "timm 1.0.31 itself has it"),
        ("from timm.layers import DropPth", "Did you mean 'DropPath'"),
        ("from timm.layers import AttentionPool", "Did you mean 'AttentionPool2d'"),
        (
            "from timm.layers import LayerNormAct2d",
            "mean 'LayerNorm2d'.* timm 1.0.31 itself has it",
        ),
        ("import timm.task", "no timm.task. timm 1.0.31 itself has it"),
        ("from timm.models.resnet import Resnet", "Did you mean 'ResNet'"),
        ("from timm.models.vision_transformer import nothing", "no timm.models.vision_transformer"),
    ],
)
def test_what_is_missing(code: str, message: str, timm: Any) -> None:
    with pytest.raises(ImportError, match=message):
        exec(code)
    assert not hasattr(timm.layers, "NonLocalAttn")


def test_a_family_that_featnet_lacks_can_be_asked_about(timm: Any) -> None:
    from timm.models.cait import Cait

    assert not isinstance(timm.create_model("test_resnet"), Cait)
    with pytest.raises(NotImplementedError, match="family that featnet lacks"):
        Cait(depth=3)
    with pytest.raises(ImportError, match="no timm.models.cait.Ciat"):
        from timm.models.cait import Ciat  # noqa: F401


def test_names_that_only_say_what_to_use(timm: Any) -> None:
    from timm.layers import RotaryEmbeddingCat

    assert not isinstance(nn.ReLU(), RotaryEmbeddingCat)
    with pytest.raises(NotImplementedError, match="no RotaryEmbeddingCat of timm's: featnet"):
        RotaryEmbeddingCat(8)


# What is built ------------------------------------------------------------------------------------


def test_models(timm: Any) -> None:
    model = timm.create_model("resnet18.a1_in1k", False, None, None, "", num_classes=0)
    assert isinstance(model, timm.models.resnet.ResNet)
    assert timm.models.resnet50(num_classes=3).fc.out_features == 3
    assert timm.model_entrypoint("resnet18", "resnet")(num_classes=4).num_classes == 4
    net = timm.create_model("test_resnet", features_only=1, feature_cls="getter", out_indices=[1])
    assert net.feature_info.channels() == [64] or len(net) == 1
    with pytest.raises(UnknownModelError, match="timm 1.0.31 itself has 'cait_s24_224'"):
        timm.create_model("cait_s24_224")
    with pytest.raises(UnknownModelError, match="Did you mean 'resnet50'"):
        timm.create_model("resnet5O")
    with pytest.raises(UnknownModelError, match="in module 'vgg'"):
        timm.model_entrypoint("resnet18", "vgg")
    with pytest.raises(ArgumentError, match="torch.jit.script"):
        timm.layers.set_scriptable(True)


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224"])
def test_a_vit_says_what_it_is_in_timms_words(timm: Any, name: str) -> None:
    model = timm.create_model(name, num_classes=0)
    assert model.default_cfg.get("pool_size") is None
    assert model.patch_embed(torch.zeros(1, 3, 28 * 8, 28 * 8)).ndim == 4 and model.dynamic_img_size
    assert featnet.get_weights(name) is None or model.default_cfg["mean"]


def test_the_registry(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timm.list_models("resnet1?") == ["resnet18"]
    assert "vit_tiny_patch16_224" in timm.list_models(module="vision_transformer")
    assert not timm.list_models("resnet*", module="vision_transformer")
    assert "resnet50.a1_in1k" in timm.list_pretrained("resnet50*")
    assert timm.is_model("resnet18.a1_in1k") and not timm.is_model("cait_s24_224")
    assert timm.models.is_model_pretrained("resnet18.a1_in1k")
    assert not timm.models.is_model_pretrained("resnet18.nothing")
    assert timm.get_pretrained_cfg_value("resnet18", "crop_pct") == 0.95
    assert timm.models.get_pretrained_cfg("nothing") is None
    cfg = timm.models._builder.resolve_pretrained_cfg("resnet50", "a1_in1k", {"num_classes": 7})
    assert cfg.tag == "a1_in1k" and cfg.num_classes == 7
    assert {"resnet", "vision_transformer"} <= set(timm.list_modules())
    assert timm.models.parse_model_name("hf_hub:a/b") == ("hf-hub", "a/b")
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return nn.Identity()

    with pytest.warns(UserWarning, match="Overwriting"):
        timm.models.register_model(resnet18)
    assert isinstance(timm.create_model("resnet18"), nn.Identity)


@pytest.mark.usefixtures("nowhere")
@pytest.mark.parametrize("name", ["convnext_atto", "regnetx_002"])
def test_flat_children(name: str) -> None:
    with use_as_timm(flat=True):
        from timm import create_model

        net = helpers.fill_noise(create_model(name, features_only=True)).eval()
    x, y = helpers.image_batch(64, 64), None
    maps = net(x)
    children = dict(net.named_children())
    found, y = [], x
    for key, child in children.items():
        y = child(y)
        if key in net.return_layers:
            found.append(y)
    assert all(torch.equal(a, b) for a, b in zip(found, maps, strict=True))
    assert ("stages_0" in children) == (name == "convnext_atto")
    assert net.feature_info.channels() == [m.shape[1] for m in maps] and len(net) == len(maps)
    assert not any(module.training for module in net.modules())
    net.train()
    assert all(module.training for module in net.modules())
    assert getattr(net, "net", net).training


def test_images(timm: Any) -> None:
    model = timm.create_model("resnet18.a1_in1k")
    config = timm.data.resolve_model_data_config(model, args={"img_size": 96})
    assert config["input_size"] == (3, 96, 96) and config["crop_pct"] == 0.95
    transform = timm.data.create_transform(**config, is_training=False)
    image = torch.randint(0, 255, (3, 120, 150), dtype=torch.uint8)
    want = featnet.create_transform(model, input_size=96)(image)
    assert torch.equal(transform(image), want) and len(transform.transforms) == 1
    with pytest.raises(NotImplementedError, match="auto_augment"):
        timm.data.create_transform(96, True, auto_augment="rand-m9")


# Against timm's own -------------------------------------------------------------------------------


def test_layers_are_timms() -> None:
    """The same numbers from the same weights."""
    helpers.peer("timm")
    peer, ours = (
        importlib.import_module("timm.layers"),
        importlib.import_module(f"{modules.FRONT}.layers"),
    )
    x, tokens = helpers.image_batch(15, 17), torch.randn(2, 5, 12)
    for name, arguments, options, value in (
        ("Mlp", (12,), {"hidden_features": 7, "norm_layer": nn.LayerNorm}, tokens),
        ("Attention", (12,), {"num_heads": 3, "qk_norm": True, "norm_layer": nn.LayerNorm}, tokens),
        ("PatchEmbed", ((15, 17), (5, 4), 3, 8), {"strict_img_size": False}, x[..., :15, :16]),
        ("create_conv2d", (3, 6, 3), {"stride": 2, "padding": "same"}, x),
        ("create_conv2d", (3, 6, 5), {"dilation": 2, "depthwise": True, "bias": True}, x),
        ("create_conv2d", (3, 6, 2), {"padding": 1}, x),
        ("create_pool2d", ("max", 3, 2), {}, x),
        ("create_pool2d", ("avg", 2), {}, x),
        ("create_pool2d", ("max", 3, 2), {"padding": "same"}, x),
        ("create_pool2d", ("avg", 3, 2), {"padding": "same"}, x),
        ("SelectAdaptivePool2d", (), {"pool_type": "catavgmax"}, x),
        ("LayerScale", (12,), {}, tokens),
        ("AttentionPool2d", (8, (3, 4), 5), {"head_dim": 4}, torch.randn(2, 8, 3, 4)),
        ("AttentionPool2d", (8, 2, 0), {"num_heads": 2, "pool_type": ""}, torch.randn(2, 8, 3, 4)),
        ("AttentionPool2d", (8,), {"head_dim": 4, "qkv_separate": True}, torch.randn(2, 8, 3, 4)),
        ("RotAttentionPool2d", (8, 5), {"head_dim": 4}, torch.randn(2, 8, 3, 4)),
        ("RotAttentionPool2d", (8, 0, (3, 4)), {"num_heads": 2, "pool_type": ""},
         torch.randn(2, 8, 3, 4)),
        ("RotAttentionPool2d", (8, None, 2, 16), {"head_dim": 8, "rope_type": "base"},
         torch.randn(2, 8, 5, 3)),
        ("RotAttentionPool2d", (8,), {"head_dim": 8, "rope_type": "dinov3", "class_token": True,
         "qkv_separate": True, "qkv_bias": False}, torch.randn(2, 8, 3, 4)),
    ):  # fmt: skip
        a, b = (getattr(library, name)(*arguments, **options).eval() for library in (peer, ours))
        b.load_state_dict(a.state_dict())
        assert helpers.error(a(value), b(value)) < 1e-6, name
    pools = [library.RotAttentionPool2d(8, 5, head_dim=4) for library in (peer, ours)]
    pools[1].load_state_dict(pools[0].state_dict())
    value = torch.randn(2, 8, 3, 4)
    assert helpers.error(pools[1](value, True), pools[0](value, pre_logits=True)) < 1e-6
    for options, message in (
        ({"rope_type": "mrope"}, "'cat', 'base'"),
        ({"class_token": True, "embed_dim": 8, "head_dim": 4}, "in_features=4"),
        ({"num_heads": 3}, "4 channels cannot be split into 3 heads"),
        ({"num_heads": 2}, "a multiple of 4 channels in a head"),
        ({"pool_type": "max", "num_heads": 1}, "'token'"),
    ):
        with pytest.raises(ArgumentError, match=message):
            ours.RotAttentionPool2d(4, **options)
    table = torch.randn(1, 17, 8)
    for arguments in (((5, 6),), ((3, 3), (2, 8))):
        got = ours.resample_abs_pos_embed(table, *arguments)
        assert helpers.error(got, peer.resample_abs_pos_embed(table, *arguments)) < 1e-6
    assert ours.to_2tuple(3) == (3, 3) and ours.to_3tuple([1, 2, 3]) == (1, 2, 3)
    assert ours.make_divisible(37) == peer.make_divisible(37)


def test_walks_are_timms() -> None:
    peer = helpers.peer("timm").models
    ours = importlib.import_module(f"{modules.FRONT}.models")
    model = featnet.create_model("test_vit")
    matcher = model.group_matcher(coarse=False)
    for options in ({}, {"reverse": True}):
        for name in ("group_parameters", "group_modules"):
            a, b = (getattr(side, name)(model, matcher, **options) for side in (peer, ours))
            assert dict(a) == b
    weight = torch.randn(4, 3, 2, 2)
    for channels in (1, 2, 3, 5):
        got = ours.adapt_input_conv(channels, weight)
        assert helpers.error(got, peer.adapt_input_conv(channels, weight)) < 1e-6
    assert ours.feature_take_indices(5, [0, -1]) == ([0, 4], 4)
    with pytest.raises(OutIndexError):
        ours.feature_take_indices(5, [5])
    modules_, x = [nn.Linear(3, 3) for _ in range(5)], torch.randn(2, 3, requires_grad=True)
    want = nn.Sequential(*modules_)(x)
    assert torch.equal(ours.checkpoint_seq(modules_, x, every=2, skip_last=True), want)


def test_files(tmp_path: Path) -> None:
    ours = importlib.import_module(f"{modules.FRONT}.models")
    model = helpers.fill_noise(featnet.create_model("test_resnet"))
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": {}, "state_dict_ema": state}, tmp_path / "a.pth")
    again = featnet.create_model("test_resnet")
    ours.load_checkpoint(again, tmp_path / "a.pth")
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in again.state_dict().items())
    optimizer = torch.optim.SGD(again.parameters(), 0.1, momentum=0.9)
    content = {"state_dict": state, "optimizer": optimizer.state_dict(), "epoch": 3, "version": 2}
    torch.save(content, tmp_path / "last.pth")
    assert ours.resume_checkpoint(again, tmp_path / "last.pth", optimizer) == 4
    renamed = {str(i): v for i, v in enumerate(model.state_dict().values())}
    assert ours.remap_state_dict(renamed, model).keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="1 tensors; the model has"):
        ours.remap_state_dict({"a": torch.ones(1)}, model)
    ours.save_for_hf(model, tmp_path / "hub")
    back = featnet.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert torch.equal(back.fc.weight, model.fc.weight)
    assert (
        "num_classes"
        not in (tmp_path / "hub" / "config.json")
        .read_text()
        .partition("model_args")[2]
        .partition("}")[0]
    )
    config, name, arguments = ours.load_model_config_from_path(tmp_path / "hub")
    assert name == "test_resnet" and config["num_classes"] == 1000 and arguments == {}


# Training -----------------------------------------------------------------------------------------


def test_helpers_for_training() -> None:
    utils = importlib.import_module(f"{modules.FRONT}.utils")
    model = helpers.fill_noise(featnet.create_model("test_resnet")).eval()
    x = helpers.image_batch(64, 64)
    want = model(x)
    frozen = utils.freeze_batch_norm_2d(featnet.create_model("test_resnet").eval())
    frozen.load_state_dict(model.state_dict())
    assert torch.equal(frozen.train()(x), want)
    assert torch.equal(utils.unfreeze_batch_norm_2d(frozen).eval()(x), want)
    utils.freeze(model, ["layer1"])
    assert (
        not any(p.requires_grad for p in model.layer1.parameters())
        and model.fc.weight.requires_grad
    )
    utils.unfreeze(model, "layer1")
    assert all(p.requires_grad for p in model.parameters())
    ema = utils.ModelEmaV3(model, decay=0.75, use_warmup=True)
    before = ema.module.fc.weight.clone()
    with torch.no_grad():
        model.fc.weight.add_(1.0)
    ema.update(model)
    assert helpers.error(ema.module.fc.weight, before + 0.25) < 1e-6
    assert utils.unwrap_model(ema) is ema.module
    assert [round(ema.get_decay(step), 3) for step in (None, 1, 2, 9999)] == [0.75, 0.0, 0.37, 0.75]
    scores, classes = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.3, 0.2]]), torch.tensor([1, 1])
    assert [a.item() for a in utils.accuracy(scores, classes, (1, 2))] == [50.0, 100.0]


def test_nothing_imports_it() -> None:
    code = "import sys, featnet; featnet.create_model('test_resnet'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "featnet.compat" not in done.stdout.split()


def test_more_than_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours = importlib.import_module(f"{modules.FRONT}.models")
    state = {"weight": torch.ones(2)}
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "b.pth")
    assert list(ours.load_state_dict(tmp_path / "b.pth")) == ["weight"]
    torch.save({"state_dict": state, "args": Path()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="No automatic unsafe pickle fallback"):
        ours.load_state_dict(tmp_path / "c.pth")
    assert list(ours.load_state_dict_from_path(tmp_path)) == ["weight"]
    assert "b.pth, c.pth: the first is read" in caplog.text
    with pytest.raises(CheckpointError, match="No suitable checkpoints"):
        ours.load_state_dict_from_path(tmp_path / "nowhere")
    assert ours.safe_model_name("hf-hub:a/resnet18.a1_in1k") == "a_resnet18_a1_in1k"
    assert ours.parse_model_name("local-dir://server/share") == ("local-dir", "//server/share")


def test_layouts() -> None:
    layers = importlib.import_module(f"{modules.FRONT}.layers")
    assert layers.get_channel_dim("NHWC") == 3 and layers.get_spatial_dim("NCHW") == (2, 3)
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(layers.nchw_to(x, layers.Format.NHWC), x.permute(0, 2, 3, 1))
    assert layers.nhwc_to(x.permute(0, 2, 3, 1), "NLC").shape == (2, 20, 3)
    assert modules.look_up("models", "VGG") and not isinstance(x, modules.look_up("models", "Cait"))
