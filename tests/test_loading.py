"""Files into models: every format, in every mode, adapted; or an error, and the model as it was."""

from __future__ import annotations

import gc
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import save_file

import featnet
from featnet import create_model
from featnet.checkpoints import checkpoint
from featnet.errors import CheckpointError

NAME = "test_resnet"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def donor() -> Any:
    return helpers.fill_noise(create_model(NAME, num_classes=10)).eval()


@pytest.fixture(scope="module")
def state(donor: Any) -> State:
    return {key: value.detach().clone() for key, value in donor.state_dict().items()}


def _shards(state: State, folder: Path) -> Path:
    keys = list(state)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, folder / file)
    index = folder / "model.safetensors.index.json"
    files = {name: file for file, names in parts.items() for name in names}
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")
    return index


def _saved(name: str, wrap: Callable[[State], Any]) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        torch.save(wrap(state), folder / name)
        return folder / name

    return write


def _safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def _old_format(state: State, folder: Path) -> Path:
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def _zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


FORMATS: dict[str, Callable[[State, Path], Path]] = {
    "safetensors": _safetensors,
    "pth": _saved("m.pth", dict),
    "pt": _saved("m.pt", dict),
    "pth of the old format": _old_format,
    "state_dict": _saved("m.pth", lambda s: {"state_dict": s, "epoch": 3}),
    "model": _saved("m.pth", lambda s: {"model": s, "optimizer": {"lr": 0.1}}),
    "ema first": _saved("m.pth", lambda s: {"state_dict": _zeros(s), "state_dict_ema": s}),
    "model_ema first": _saved("m.pth", lambda s: {"model": _zeros(s), "model_ema": s}),
    "params_ema first": _saved("m.pth", lambda s: {"params": _zeros(s), "params_ema": s}),
    "encoder, module prefix": _saved(
        "m.pth", lambda s: {"encoder": {f"module.{k}": v for k, v in s.items()}, "opt": {}}
    ),
    "module prefix": _saved("m.pth", lambda s: {f"module.{k}": v for k, v in s.items()}),
    "compiled, parallel": _saved(
        "m.pth", lambda s: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}}
    ),
    "shards": _shards,
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_in_every_mode(kind: str, donor: Any, state: State, tmp_path: Path) -> None:
    path = FORMATS[kind](state, tmp_path)
    x = helpers.image_batch(64, 64)
    model = create_model(NAME, num_classes=10, checkpoint_path=path).eval()
    net = create_model(NAME, checkpoint_path=str(path), features_only=True).eval()
    with torch.no_grad():
        # Tensors that are mapped from a file lie where they lie: MKL's matrix product may round
        # otherwise where they are not aligned
        torch.testing.assert_close(model(x), donor(x), rtol=1e-5, atol=1e-6)
        wanted = donor.forward_intermediates(x, intermediates_only=True)
        for y, w in zip(net(x), wanted, strict=True):
            assert torch.equal(y, w)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook"])
@pytest.mark.parametrize("output_stride", [32, 8])
def test_features_from_the_classifiers_file_are_the_classifiers(
    feature_cls: str, output_stride: int, donor: Any, state: State, tmp_path: Path
) -> None:
    path = _safetensors(state, tmp_path)
    net = create_model(
        NAME,
        features_only=True,
        feature_cls=feature_cls,
        out_indices=(2, 0, -1),
        checkpoint_path=path,
        output_stride=output_stride,
    ).eval()
    same = create_model(
        NAME, num_classes=10, checkpoint_path=path, output_stride=output_stride
    ).eval()
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        found = net(x)
        found = list(found.values()) if isinstance(found, dict) else found
        wanted = same.forward_intermediates(x, (2, 0, -1), intermediates_only=True)
    assert all(torch.equal(y, w) for y, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_path_means_none(features_only: bool, empty: Any) -> None:
    with torch.device("meta"):
        create_model(NAME, features_only=features_only, checkpoint_path=empty)


# Adaptation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "resnet18"])
@pytest.mark.parametrize("features_only", [False, True])
def test_one_channel_sees_a_grey_image_as_three_do(
    name: str, features_only: bool, tmp_path: Path
) -> None:
    three = helpers.fill_noise(create_model(name)).eval()
    path = _safetensors(three.state_dict(), tmp_path)
    options: dict[str, Any] = {"features_only": features_only}
    one = create_model(name, in_chans=1, checkpoint_path=path, **options).eval()
    three = create_model(name, checkpoint_path=path, **options).eval()
    grey = helpers.image_batch(64, 64)[:, :1]
    with torch.no_grad():
        a, b = one(grey), three(grey.expand(-1, 3, -1, -1))
    for y, w in zip(a, b, strict=True) if features_only else [(a, b)]:
        assert helpers.error(y, w) < 1e-4


def test_four_channels_repeat_and_keep_the_size_of_the_response(
    state: State, tmp_path: Path
) -> None:
    model = create_model(
        NAME, num_classes=10, in_chans=4, checkpoint_path=_safetensors(state, tmp_path)
    )
    key = f"{model.first_conv}.weight"
    old, new = state[key], model.state_dict()[key]
    assert new.shape[1] == 4
    torch.testing.assert_close(new[:, :3], old * 0.75)
    torch.testing.assert_close(new[:, 3], old[:, 0] * 0.75)
    assert model.load_report.converted == {key: "3 input channels to 4"}
    assert model.load_report.dropped == {}


def test_classes_are_kept_when_equal(state: State, tmp_path: Path) -> None:
    path = _safetensors(state, tmp_path)
    model = create_model(NAME, num_classes=10, checkpoint_path=path)
    assert torch.equal(model.fc.weight, state["fc.weight"])
    assert model.load_report.loaded == len(state) and not model.load_report.dropped
    assert "tensors loaded" in str(model.load_report)


def test_other_classes_are_dropped_and_reported(state: State, tmp_path: Path) -> None:
    model = create_model(NAME, num_classes=7, checkpoint_path=_safetensors(state, tmp_path))
    report = model.load_report
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert "10 classes, the model has 7" in str(report)
    assert {"fc.weight", "fc.bias"} == set(report.initial)
    weight = model.fc.weight
    assert weight.shape[0] == 7 and 0 < weight.abs().max() < 10 and weight.std() > 0
    assert torch.isfinite(model.eval()(helpers.image_batch(64, 64))).all()


def test_without_classes_the_classifier_is_dropped(state: State, tmp_path: Path) -> None:
    model = create_model(NAME, num_classes=0, checkpoint_path=_safetensors(state, tmp_path))
    assert model.load_report.dropped == dict.fromkeys(
        ("fc.weight", "fc.bias"), "the model has no classifier"
    )


def test_what_a_file_leaves_out_is_initialised_as_without_the_file(
    state: State, tmp_path: Path
) -> None:
    path = _safetensors(state, tmp_path)
    torch.manual_seed(3)
    found = create_model(NAME, num_classes=7, checkpoint_path=path).fc
    assert -0.5 < float(found.bias.detach().min()) < float(found.bias.detach().max()) < 0.5
    width = found.in_features**-0.5
    assert float(found.weight.detach().abs().max()) <= width * 1.01


def test_loading_writes_into_nothing_that_was_given(state: State) -> None:
    kept = {key: value.clone() for key, value in state.items()}
    names = list(state)
    checkpoint.load(create_model(NAME, num_classes=5, in_chans=1), state, source="here")
    assert list(state) == names
    assert all(torch.equal(state[key], kept[key]) for key in kept)


def test_a_loaded_model_trains_and_its_file_stays(state: State, tmp_path: Path) -> None:
    for write in (FORMATS["safetensors"], FORMATS["pth"]):
        path = write(state, tmp_path)
        before = path.read_bytes()
        model = create_model(NAME, num_classes=10, checkpoint_path=path).train()
        model(helpers.image_batch(64, 64, batch=2)).sum().backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        assert all(p.requires_grad and p.grad is not None for p in model.parameters())
        assert path.read_bytes() == before


def test_a_model_of_another_dtype_keeps_it(state: State) -> None:
    model = create_model(NAME, num_classes=10).double()
    checkpoint.load(model, state, source="here")
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("features_only", [False, True])
def test_a_file_in_the_overlay(
    features_only: bool, donor: Any, state: State, tmp_path: Path
) -> None:
    overlay = {"file": str(_safetensors(state, tmp_path)), "num_classes": 10}
    model = create_model(
        NAME, pretrained=True, features_only=features_only, pretrained_cfg_overlay=overlay
    ).eval()
    x = helpers.image_batch(64, 64)
    with torch.no_grad():
        if features_only:
            assert torch.equal(model(x)[-1], donor.forward_features(x))
        else:
            torch.testing.assert_close(model(x), donor(x), rtol=1e-5, atol=1e-6)
            assert model.num_classes == 10
    assert model.pretrained_cfg["file"] == overlay["file"]


def test_a_background_class_is_removed(state: State, tmp_path: Path) -> None:
    more = {
        **state,
        "fc.weight": torch.cat([torch.zeros(1, *state["fc.weight"].shape[1:]), state["fc.weight"]]),
        "fc.bias": torch.cat([torch.zeros(1), state["fc.bias"]]),
    }
    overlay = {"file": str(_safetensors(more, tmp_path)), "num_classes": 10, "label_offset": 1}
    model = create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.fc.weight, state["fc.weight"])


# Failures ---------------------------------------------------------------------------------------


class Bomb:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("bomb",)


def _bytes(name: str, content: bytes) -> Callable[[State, Path], Path]:
    def write(state: State, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _cut(write: Callable[[State, Path], Path], keep: float) -> Callable[[State, Path], Path]:
    def cut(state: State, folder: Path) -> Path:
        path = write(state, folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])
        return path

    return cut


def _without_a_shard(state: State, folder: Path) -> Path:
    index = _shards(state, folder)
    (folder / "b.safetensors").unlink()
    return index


def _outside(state: State, folder: Path) -> Path:
    index = folder / "m.index.json"
    index.write_text('{"weight_map": {"fc.weight": "../m.safetensors"}}', encoding="utf-8")
    return index


UNREADABLE: dict[str, tuple[Callable[[State, Path], Path], str]] = {
    "missing": (lambda s, f: f / "nothing.pth", "does not exist"),
    "folder": (lambda s, f: f, "is a folder"),
    "empty": (_bytes("m.pth", b""), "is empty"),
    "empty safetensors": (_bytes("m.safetensors", b""), "is empty"),
    "text": (_bytes("m.pth", b"this is no checkpoint\n" * 9), "cannot be read"),
    "text as safetensors": (_bytes("m.safetensors", b"no checkpoint\n" * 9), "cannot be read"),
    "lfs, safetensors": (
        _bytes("m.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "git lfs pull",
    ),
    "lfs": (_bytes("m.pth", b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "safetensors cut": (_cut(_safetensors, 0.5), "cannot be read"),
    "safetensors cut in the header": (_cut(_safetensors, 0.001), "cannot be read"),
    "pth cut": (_cut(FORMATS["pth"], 0.5), "cannot be read"),
    "old pth cut": (_cut(_old_format, 0.5), "cannot be read"),
    "code": (_bytes("m.pth", pickle.dumps({"state_dict": Bomb()})), "more than tensors"),
    "code, zipped": (
        _saved("m.pth", lambda s: {"state_dict": s, "x": Bomb()}),
        "more than tensors",
    ),
    "number": (_saved("m.pth", lambda s: 3), "holds no tensors"),
    "no tensors": (_saved("m.pth", lambda s: {"epoch": 3}), "holds no tensors"),
    "index": (_bytes("m.index.json", b"{}"), "no index of shards"),
    "index of nothing": (_bytes("m.index.json", b"[1"), "no index of shards"),
    "shard missing": (_without_a_shard, "b.safetensors' does not exist"),
    "shard outside": (_outside, "outside its folder"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read(
    kind: str, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, why = UNREADABLE[kind]
    path = write(state, tmp_path)
    for features_only in (False, True):
        with pytest.raises(CheckpointError) as caught:
            create_model(NAME, checkpoint_path=path, features_only=features_only)
        assert why in str(caught.value) and str(path.parent) in str(caught.value)
        assert isinstance(caught.value, (RuntimeError, ValueError))
    assert not (tmp_path / "bomb").exists()


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "resnet18.pth").touch()
    with pytest.raises(CheckpointError, match=r"Did you mean 'resnet18\.pth'"):
        create_model(NAME, checkpoint_path=tmp_path / "resnet18.pt")


MISFITS: dict[str, tuple[Callable[[State], State], tuple[str, ...]]] = {
    "one key missing": (
        lambda s: {k: v for k, v in s.items() if k != "layer1.0.conv1.weight"},
        ("missing (1): layer1.0.conv1.weight",),
    ),
    "one key more": (
        lambda s: {**s, "extra.weight": torch.zeros(1)},
        ("unexpected (1): extra.weight",),
    ),
    "one shape": (
        lambda s: {**s, "layer2.0.bn1.weight": torch.zeros(3)},
        ("of another shape (1): layer2.0.bn1.weight (3,), not (48,)",),
    ),
    "one key misspelt": (
        lambda s: {
            ("layer1.0.convl.weight" if k == "layer1.0.conv1.weight" else k): v
            for k, v in s.items()
        },
        (
            "missing (1)",
            "unexpected (1)",
            "layer1.0.convl.weight: Did you mean 'layer1.0.conv1.weight'",
        ),
    ),
    "another model": (
        lambda s: dict(create_model("resnet10t").state_dict()),
        ("missing", "of another shape", "more"),
    ),
    "nothing in common": (
        lambda s: {f"w{i}": torch.zeros(1) for i in range(9)},
        ("unexpected (9): w0, w1, w2, w3, w4 and 4 more", "missing"),
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_what_does_not_fit_leaves_the_model_as_it_was(
    kind: str, state: State, tmp_path: Path
) -> None:
    change, parts = MISFITS[kind]
    path = _safetensors({k: v.contiguous() for k, v in change(state).items()}, tmp_path)
    model = create_model(NAME, num_classes=10)
    before = {k: (v.data_ptr(), v.clone()) for k, v in model.state_dict().items()}
    parameters = list(model.parameters())
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(model, checkpoint.read(path), source=str(path))
    message = str(caught.value)
    assert "nothing was loaded" in message and str(path) in message and "ResNet" in message
    assert all(part in message for part in parts), message
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(
        v.data_ptr() == before[k][0] and torch.equal(v, before[k][1]) for k, v in after.items()
    )
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    for features_only in (False, True):
        if features_only and kind == "one key more":  # no head of the file's concerns an extractor
            net = create_model(NAME, checkpoint_path=path, features_only=True)
            assert net.load_report.dropped["extra.weight"] == "the network has no 'extra'"
            continue
        with pytest.raises(CheckpointError, match="does not fit ResNet"):
            create_model(NAME, num_classes=10, checkpoint_path=path, features_only=features_only)


def test_a_checkpoint_without_the_classifier_is_refused_where_one_is_wanted(state: State) -> None:
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with pytest.raises(CheckpointError, match=r"missing \(2\): fc\.weight, fc\.bias"):
        checkpoint.load(create_model(NAME, num_classes=10), headless, source="here")


def test_batches_tracked_may_be_missing(state: State) -> None:
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    report = checkpoint.load(create_model(NAME, num_classes=10), old, source="here")
    assert report.loaded == len(old)
    assert all(k.endswith("num_batches_tracked") for k in report.initial)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(enabled: bool, state: State, tmp_path: Path) -> None:
    path = _safetensors(state, tmp_path)
    seen = []
    was = gc.isenabled()

    def look(phase: str, info: Any) -> None:
        seen.append(phase)

    try:
        gc.enable() if enabled else gc.disable()
        create_model(NAME, checkpoint_path=path, num_classes=10)
        assert gc.isenabled() == enabled
        with pytest.raises(CheckpointError):
            create_model(NAME, checkpoint_path=tmp_path / "nothing")
        assert gc.isenabled() == enabled
        gc.collect()
        gc.callbacks.append(look)
        create_model("densenet201", device="meta")
        assert len(seen) <= 2, "collections while a network is built"
    finally:
        gc.callbacks[:] = [c for c in gc.callbacks if c is not look]
        gc.enable() if was else gc.disable()


def test_a_report_is_public() -> None:
    assert featnet.LoadReport is checkpoint.LoadReport


# Building without initialising ------------------------------------------------------------------


class Counting(torch.overrides.TorchFunctionMode):
    """Counts what writes random or constant numbers into a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("normal_", "uniform_", "fill_", "zero_", "copy_", "erfinv_"):
            target = args[0] if args else (kwargs or {}).get("tensor")
            self.written += isinstance(target, torch.nn.Parameter)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [NAME, "convnext_atto", "test_efficientnet"])
def test_nothing_is_initialised_that_a_file_replaces(name: str, tmp_path: Path) -> None:
    path = _safetensors(helpers.fill_noise(create_model(name)).state_dict(), tmp_path)
    with Counting() as counting:
        create_model(name)
    assert counting.written, "initialisation is seen"
    with Counting() as counting:
        create_model(name, checkpoint_path=path)
    assert not counting.written


@pytest.mark.parametrize("name", [NAME, "convnext_atto", "test_efficientnet"])
def test_what_is_left_has_its_own_distribution(name: str, tmp_path: Path) -> None:
    """A new classifier's, in a model that is otherwise a file's: as in a model without a file."""
    state = helpers.fill_noise(create_model(name)).state_dict()
    path = _safetensors(state, tmp_path)
    classes = 500
    torch.manual_seed(1)
    found = create_model(name, num_classes=classes, checkpoint_path=path)
    fresh = create_model(name, num_classes=classes)
    for key in found.load_report.initial:
        a, b = found.state_dict()[key], fresh.state_dict()[key]
        torch.testing.assert_close(a.mean(), b.mean(), rtol=0.1, atol=0.02)
        torch.testing.assert_close(a.std(), b.std(), rtol=0.1, atol=1e-6)
        assert not torch.equal(a, b) or not b.std()
    torch.manual_seed(1)
    again = create_model(name, num_classes=classes, checkpoint_path=path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in found.state_dict().items())


@pytest.mark.parametrize("name", featnet.list_models("test_*"))
def test_random_weights_come_from_the_seed(name: str) -> None:
    def drawn() -> State:
        torch.manual_seed(7)
        return create_model(name).state_dict()

    first, second = drawn(), drawn()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


# The smallest of each family that has no test_* model; vgg's classifier is nearly all of it
SMALLEST: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", {}),
    "coat": ("coat_lite_tiny", {}),
    "densenet": ("densenet121", {}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "hiera": ("hiera_tiny_224", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "nest": ("nest_tiny", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "regnet": ("regnetx_002", {}),
    "res2net": ("res2next50", {}),
    "resnest": ("resnest14d", {}),
    "rexnet": ("rexnet_100", {}),
    "senet": ("legacy_seresnet18", {}),
    "sknet": ("skresnet18", {}),
    "swin": ("swin_tiny_patch4_window7_224", {}),
    "swin_v2": ("swinv2_tiny_window16_256", {}),
    "swin_v2_cr": ("swinv2_cr_tiny_224", {}),
    "vgg": ("vgg11", {"mlp_ratio": 0.01}),
    "vit_hybrid": ("vit_tiny_r_s16_p8_224", {}),
    "vit_sam": ("samvit_base_patch16_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
}


def smallest(module: str) -> tuple[str, dict[str, Any]]:
    names = featnet.list_models("test_*", module=module) or featnet.list_models(module=module)
    name, options = SMALLEST.get(module, (names[0], {}))
    return name, {**helpers.small(name), **options}


@pytest.mark.parametrize("module", featnet.list_modules())
def test_random_weights_are_drawn_as_the_peers(module: str, timm: Any) -> None:
    """Mean and deviation of every tensor, within what so many draws may differ by."""
    name, options = smallest(module)
    torch.manual_seed(7)
    ours = create_model(name, **options).state_dict()
    torch.manual_seed(7)
    theirs = helpers.peer_model(name, **options).state_dict()
    assert list(ours) == list(theirs)
    for key, value in ours.items():
        a, b = value.double(), theirs[key].double()
        if torch.equal(a, b):
            continue
        if b.numel() > 1:  # of millions of draws torch's trunc_normal_ puts a few on its edges
            middle, edge = float(b.mean()), 8 * float(b.std())
            a, b = (t.clamp(middle - edge, middle + edge) for t in (a, b))
        spread = max(float(a.std()), float(b.std())) if b.numel() > 1 else 1.0
        few = 8 / b.numel() ** 0.5
        assert abs(float(a.mean() - b.mean())) <= few * spread, key
        assert b.numel() == 1 or abs(float(a.std() - b.std())) <= few * spread, key


FILTERS = ("resnetblur18", "efficientnet_blur_b0", "densenetblur121d")


@pytest.mark.parametrize("name", [*featnet.list_models("test_*"), *FILTERS])
def test_buffers_that_no_file_holds(name: str, tmp_path: Path) -> None:
    """Positions, windows, filters: computed as without a file, in the dtype that was asked for."""
    whole = create_model(name, num_classes=10)
    path = _safetensors({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path)
    loaded = create_model(name, num_classes=10, checkpoint_path=path)
    wanted = dict(whole.named_buffers())
    for key, value in loaded.named_buffers():
        assert torch.equal(value, wanted[key]) and value.dtype == wanted[key].dtype, key
    half = create_model(name, num_classes=10, checkpoint_path=path, dtype=torch.float16)
    for key, value in (*half.named_buffers(), *half.named_parameters()):
        if value.is_floating_point():
            assert value.dtype == torch.float16, key


@pytest.mark.parametrize("module", ["swin", "swin_v2", "swin_v2_cr", "eva", "beit", "vit_relpos"])
def test_tables_that_are_computed(module: str, tmp_path: Path) -> None:
    """Masks of windows, distances, rotations: a loaded model gives what the donor gave."""
    name, options = smallest(module)
    if module.startswith("swin"):
        options = {
            "embed_dim": 16,
            "num_heads": (1, 2, 4, 8),
            "depths": (2, 2, 2, 2),
            "window_size": 8,
        }
    donor = helpers.fill_noise(create_model(name, num_classes=10, **options)).eval()
    path = _safetensors({k: v.contiguous() for k, v in donor.state_dict().items()}, tmp_path)
    loaded = create_model(name, num_classes=10, checkpoint_path=path, **options).eval()
    size = donor.pretrained_cfg.input_size[1:]
    with torch.no_grad():
        assert (
            helpers.error(loaded(helpers.image_batch(*size)), donor(helpers.image_batch(*size)))
            < 1e-5
        )


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pth"])
def test_tensors_are_mapped_on_request(kind: str, state: State, tmp_path: Path) -> None:
    path = FORMATS[kind](state, tmp_path)
    model = create_model(NAME, num_classes=10, checkpoint_path=path, mmap=True)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    lines = [line for line in maps.read_text().splitlines() if str(tmp_path) in line]
    spans = [line.split()[0].split("-") for line in lines]
    spans_ = [(int(a, 16), int(b, 16)) for a, b in spans]
    assert spans_
    for value in model.parameters():
        assert any(a <= value.data_ptr() < b for a, b in spans_)
        assert value.untyped_storage().nbytes() == value.nbytes, "saving it saves only itself"


# Places and precision ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("features_only", [False, True])
def test_dtype(dtype: torch.dtype, features_only: bool, state: State, tmp_path: Path) -> None:
    path = _safetensors(state, tmp_path)
    options: dict[str, Any] = {"features_only": features_only, "dtype": dtype}
    options |= {} if features_only else {"num_classes": 10}
    for more in ({}, {"checkpoint_path": path}):
        model = create_model(NAME, **options, **more)
        kinds = {v.dtype for v in model.state_dict().values()}
        assert kinds == {dtype, torch.int64}
    assert all(torch.equal(v, state[k].to(v.dtype)) for k, v in model.state_dict().items())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_a_file_of_half_precision_is_loaded_as_asked(
    stored: torch.dtype, state: State, tmp_path: Path
) -> None:
    half = {k: v.to(stored) for k, v in state.items()}  # the counters too
    path = _safetensors(half, tmp_path)
    for dtype, wanted in ((None, torch.float32), (stored, stored)):
        model = create_model(NAME, num_classes=10, checkpoint_path=path, dtype=dtype)
        assert {v.dtype for v in model.state_dict().values()} == {wanted, torch.int64}
        assert torch.equal(model.fc.weight, half["fc.weight"].to(wanted))


def test_a_device(state: State, tmp_path: Path) -> None:
    path = _safetensors(state, tmp_path)
    assert {p.device.type for p in create_model(NAME, device="meta").parameters()} == {"meta"}
    model = create_model(NAME, num_classes=10, device="cpu", checkpoint_path=path)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("features_only", [False, True])
def test_straight_to_the_gpu(features_only: bool, state: State, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path = _safetensors(state, tmp_path)
    options: dict[str, Any] = {
        "features_only": features_only,
        "device": "cuda",
        "dtype": torch.float16,
    }
    options |= {} if features_only else {"num_classes": 10}
    for more in ({}, {"checkpoint_path": path}):
        model = create_model(NAME, **options, **more)
        assert {v.device.type for v in model.state_dict().values()} == {"cuda"}
        assert {v.device.type for v in model.buffers()} == {"cuda"}
    with torch.device("cuda"):
        again = create_model(NAME, num_classes=10, checkpoint_path=path)
    assert {v.device.type for v in again.state_dict().values()} == {"cuda"}


def test_places_that_are_none(state: State, tmp_path: Path) -> None:
    from featnet.errors import ArgumentError

    path = _safetensors(state, tmp_path)
    for options in (
        {"device": "gpuu"},
        {"dtype": torch.int8},
        {"dtype": "float16"},
        {"device": 3.5},
    ):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            create_model(NAME, **options)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="meta device holds no weights"):
        create_model(NAME, device="meta", checkpoint_path=path)
    with torch.device("meta"), pytest.raises(ArgumentError, match="meta device holds no weights"):
        create_model(NAME, checkpoint_path=path)


# The report -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 10},
        {"num_classes": 3, "in_chans": 1},
        {"features_only": True},
        {"features_only": True, "out_indices": (0, 1)},
    ],
    ids=str,
)
def test_a_report_counts_every_tensor_once(
    kind: str, options: dict[str, Any], state: State, tmp_path: Path
) -> None:
    path = FORMATS[kind](state, tmp_path)
    if not options:
        options = {"num_classes": 10, "in_chans": 2}
    net = create_model(NAME, checkpoint_path=path, **options)
    report, names = net.load_report, set(net.state_dict())
    parts = [set(report.taken), set(report.converted), set(report.initial)]
    assert set().union(*parts) == names and sum(map(len, parts)) == len(names)
    assert len(report.taken) + len(report.converted) + len(report.dropped) == len(state)
    text = str(report)
    assert text.startswith(f"{path}: {report.loaded} tensors loaded")
    assert ("averaged weights" in text) == ("ema" in kind)
    assert ("removed" in text) == ("module prefix" in kind or "compiled" in kind)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "backbone.", "body.", "encoder.", "model.backbone.body.", "student."],
)
def test_any_prefix(prefix: str, state: State, tmp_path: Path) -> None:
    path = _safetensors({prefix + k: v for k, v in state.items()}, tmp_path)
    for options in ({"num_classes": 10}, {"features_only": True}):
        model = create_model(NAME, checkpoint_path=path, **options)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert f"prefix {prefix!r} removed" in str(model.load_report)


def test_what_lies_outside_of_a_prefix_is_reported(state: State, tmp_path: Path) -> None:
    more = {f"detector.backbone.{k}": v for k, v in state.items()} | {
        "detector.head.w": torch.ones(2)
    }
    model = create_model(NAME, num_classes=10, checkpoint_path=_safetensors(more, tmp_path))
    assert model.load_report.dropped == {"detector.head.w": "outside of 'detector.backbone.'"}
    assert model.load_report.steps == ("prefix 'detector.backbone.' removed",)


# From extractor to classifier and back -----------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, "convnext_atto", "vgg11", "test_efficientnet"])
def test_a_file_of_an_extractor(name: str, tmp_path: Path) -> None:
    options = {"mlp_ratio": 0.01} if name == "vgg11" else {}
    net = helpers.fill_noise(create_model(name, features_only=True, **options))
    path = _safetensors(net.state_dict(), tmp_path)
    again = create_model(name, features_only=True, checkpoint_path=path, **options)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert not again.load_report.initial and not again.load_report.dropped
    with pytest.raises(CheckpointError, match="missing"):
        create_model(name, checkpoint_path=path, **options)
    model = create_model(name, num_classes=7, checkpoint_path=path, **options)
    kept = model.state_dict()
    assert all(torch.equal(v, kept[k]) for k, v in net.state_dict().items())
    assert set(model.load_report.initial) == set(kept) - set(net.state_dict())
    values = [kept[k] for k in model.load_report.initial if k.endswith("weight")]
    assert all(v.isfinite().all() and v.std() > 0 for v in values if v.ndim > 1)


def test_a_file_of_some_levels(tmp_path: Path) -> None:
    some = {"features_only": True, "out_indices": (0, 1)}
    net = helpers.fill_noise(create_model(NAME, **some))
    path = _safetensors(net.state_dict(), tmp_path)
    again = create_model(NAME, checkpoint_path=path, **some)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    with pytest.raises(CheckpointError, match="missing"):
        create_model(NAME, features_only=True, checkpoint_path=path)


@pytest.mark.parametrize("chans", [(3, 1), (3, 5), (13, 3), (13, 26), (13, 1), (1, 3), (4, 4)])
@pytest.mark.parametrize("name", [NAME, "test_efficientnet", "resnet10t", "test_vit"])
def test_channels_from_any_number_to_any(name: str, chans: tuple[int, int], tmp_path: Path) -> None:
    """Of a constant image the responses agree: the first channels repeat, and their scale keeps
    the sum where one number divides the other."""
    have, want = chans
    old = helpers.fill_noise(create_model(name, in_chans=have)).eval()
    path = _safetensors(old.state_dict(), tmp_path)
    new = create_model(name, in_chans=want, checkpoint_path=path).eval()
    key = f"{new.first_conv}.weight"
    a, b = old.state_dict()[key], new.state_dict()[key]
    assert b.shape[1] == want
    if want % have == 0 or want == 1:
        torch.testing.assert_close(a.sum(1), b.sum(1), rtol=1e-4, atol=1e-4)
    others = (
        {k for k, v in old.state_dict().items() if not torch.equal(v, new.state_dict()[k])} - {key}
        if have != want
        else set()
    )
    assert not others


def test_into_a_model_that_is_there(donor: Any, state: State, tmp_path: Path) -> None:
    path = _safetensors(state, tmp_path)
    model = create_model(NAME, num_classes=10)
    report = featnet.load_checkpoint(model, path)
    assert report.loaded == len(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    empty = create_model(NAME, num_classes=10, device="meta")
    featnet.load_checkpoint(empty, path)
    assert all(torch.equal(v, state[k]) for k, v in empty.state_dict().items())
