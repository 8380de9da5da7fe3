"""Checkpoints as people have them: whose memory the weights are, which tensors of a file are the
network, what else may lie in a file, and what is no checkpoint."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import functools
import gzip
import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import tarfile
import types
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import featnet
from featnet import create_model, load_checkpoint
from featnet.checkpoints import checkpoint
from featnet.errors import ArgumentError, CheckpointError

NAME = "test_resnet"
State = dict[str, torch.Tensor]


def noisy(seed: int = 0, **options: Any) -> State:
    torch.manual_seed(seed)
    model = create_model(NAME, **{"num_classes": 10, **options})
    return {
        k: torch.randn_like(v) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def state() -> State:
    return noisy()


def same(model: nn.Module, wanted: State, start: str = "") -> bool:
    return all(torch.equal(v, wanted[start + k]) for k, v in model.state_dict().items())


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# Whose memory it is -----------------------------------------------------------------------------


def _safetensors(state: State, folder: Path) -> Path:
    save_file(state, folder / "m.safetensors")
    return folder / "m.safetensors"


def _npz(state: State, folder: Path) -> Path:
    np = pytest.importorskip("numpy")
    np.savez(folder / "m.npz", **{k: v.numpy() for k, v in state.items()})
    return folder / "m.npz"


def _shards(state: State, folder: Path) -> Path:
    (folder / "m.index.json").write_text(
        __import__("json").dumps({"weight_map": dict.fromkeys(state, "m.safetensors")})
    )
    _safetensors(state, folder)
    return folder / "m.index.json"


def _folder(state: State, folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder


WAYS: dict[str, Callable[[State, Path], Path]] = {
    "pth": lambda s, f: saved(s, f / "m.pth"),
    "old pth": lambda s, f: saved(s, f / "m.pth", _use_new_zipfile_serialization=False),
    "safetensors": _safetensors,
    "npz": _npz,
    "shards": _shards,
    "folder": _folder,
    "ckpt": lambda s, f: saved(
        {"state_dict": {"model." + k: v for k, v in s.items()}}, f / "last.ckpt"
    ),
}
HARM: dict[str, Callable[[Path], None]] = {
    "overwritten": lambda p: p.write_bytes(os.urandom(p.stat().st_size)),
    "truncated": lambda p: os.truncate(p, 100),
    "replaced": lambda p: (
        p.with_suffix(".new").write_bytes(b"x") and os.replace(p.with_suffix(".new"), p)
    ),
    "deleted": lambda p: p.unlink(),
}


def _classifier(path: Path) -> nn.Module:
    return create_model(NAME, num_classes=10, checkpoint_path=path)


def _extractor(path: Path) -> nn.Module:
    return create_model(NAME, features_only=True, checkpoint_path=path)


def _loaded(path: Path) -> nn.Module:
    model = create_model(NAME, num_classes=10)
    load_checkpoint(model, path)
    return model


def _adapted(path: Path) -> nn.Module:
    return create_model(NAME, num_classes=3, in_chans=1, checkpoint_path=path)


LOADS = (_classifier, _extractor, _loaded, _adapted)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_loaded_is_the_process_own(
    way: str, harm: str, state: State, tmp_path: Path
) -> None:
    path = WAYS[way](state, tmp_path)
    models = [load(path) for load in LOADS]
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    for file in [p for p in tmp_path.iterdir() if p.suffix != ".json"]:
        HARM[harm](file)
    for model, wanted in zip(models, before, strict=True):
        assert same(model, wanted)
    assert same(models[0], state) and same(models[1], state) and same(models[2], state)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_converted_is_a_file_of_its_own(
    way: str, harm: str, state: State, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    path = WAYS[way](state, source)
    out = tmp_path / "out.safetensors"
    featnet.convert_checkpoint(path, out, model=NAME, options={"num_classes": 10})
    for file in [p for p in source.iterdir() if p.suffix != ".json"]:
        HARM[harm](file)
    assert same(_classifier(out), state)


def test_a_file_is_saved_over_by_the_model_that_came_from_it(state: State, tmp_path: Path) -> None:
    code = (
        "import sys, torch, featnet; path = sys.argv[1]\n"
        "m = featnet.create_model('test_resnet', num_classes=10, checkpoint_path=path)\n"
        "torch.save(m.state_dict(), path)\n"
        "featnet.load_checkpoint(m, path); torch.save(m.state_dict(), path)\n"
    )
    path = saved(state, tmp_path / "last.pth")
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert same(_classifier(path), state)


def test_each_tensor_has_memory_of_its_own(state: State, tmp_path: Path) -> None:
    """Saved alone, or kept by an extractor, one tensor does not drag the file along."""
    for way in ("pth", "safetensors"):
        model = _classifier(WAYS[way](state, tmp_path))
        for value in model.state_dict().values():
            assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


@pytest.mark.parametrize("way", ["pth", "safetensors", "shards"])
def test_mapped_on_request(way: str, state: State, tmp_path: Path) -> None:
    path = WAYS[way](state, tmp_path)
    for mmap, where in ((True, True), (False, False), (None, False)):
        model = create_model(NAME, num_classes=10, checkpoint_path=path, mmap=mmap)
        assert same(model, state)
        with open("/proc/self/maps") as maps:
            mapped = any(
                line.rstrip().endswith((".pth", ".safetensors")) and str(tmp_path) in line
                for line in maps
            )
        assert mapped is where
        del model
    model = create_model(NAME, num_classes=10)
    load_checkpoint(model, path, mmap=True)
    assert same(model, state)
    with pytest.raises(ArgumentError, match="mmap='yes': True, False or None"):
        create_model(NAME, checkpoint_path=path, mmap="yes")


def test_an_optimiser_goes_on_with_what_was_loaded(state: State, tmp_path: Path) -> None:
    model = create_model(NAME, num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    load_checkpoint(model, saved(state, tmp_path / "m.pth"))
    model(helpers.image_batch(64, 64, batch=2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.fc.bias, state["fc.bias"])


def test_a_state_dict_in_place_of_a_path(state: State) -> None:
    kept = {k: v.clone() for k, v in state.items()}
    for model in (
        create_model(NAME, num_classes=10, checkpoint_path=state),
        create_model(NAME, num_classes=10, checkpoint_path={"module": {"model": state}}),
    ):
        assert same(model, state) and "the state dict" in str(model.load_report)
        with torch.no_grad():
            for value in model.parameters():
                value.zero_()
        assert all(torch.equal(state[k], kept[k]) for k in kept), "the caller's tensors changed"
    with pytest.raises(CheckpointError, match="holds no tensors by name: an empty dictionary"):
        create_model(NAME, checkpoint_path={})


def test_peak_of_memory(tmp_path: Path) -> None:
    """A file of 90 MB is read into the memory of the parameters, and nowhere else."""
    code = (
        "import sys, torch, featnet, featnet.factory\n"
        "def memory(field):\n"
        "    with open('/proc/self/status') as status:\n"
        "        return next(int(l.split()[1]) * 1024 for l in status if l.startswith(field))\n"
        "featnet.create_model('test_resnet', "
        "checkpoint_path=featnet.create_model('test_resnet').state_dict())\n"
        "open('/proc/self/clear_refs', 'w').write('5'); before = memory('VmRSS')\n"
        "m = featnet.create_model('resnet50', checkpoint_path=sys.argv[1])\n"
        "print(memory('VmHWM') - before)\n"
    )
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process is Linux's to say")
    with torch.device("meta"):
        shapes = create_model("resnet50").state_dict()
    content = {k: torch.ones(v.shape, dtype=v.dtype) for k, v in shapes.items()}
    for path in (saved(content, tmp_path / "m.pth"), _safetensors(content, tmp_path)):
        size = path.stat().st_size
        run = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert int(run.stdout) < 1.1 * size + (4 << 20)


# Which tensors are the network ------------------------------------------------------------------


def prefixed(state: State, prefix: str) -> State:
    return {prefix + k: v for k, v in state.items()}


def blocks_compiled(state: State) -> State:
    return {k.replace("layer1.0.", "layer1.0._orig_mod."): v for k, v in state.items()}


def deep(state: State) -> State:
    """As FSDP and checkpoint wrappers leave names."""
    return {
        f"_fsdp_wrapped_module.{k}".replace(
            "layer2.0.", "layer2._fsdp_wrapped_module._checkpoint_wrapped_module.0."
        ): v
        for k, v in state.items()
    }


CONTAINERS: dict[str, Callable[[State], Any]] = {
    **{
        name: functools.partial(
            lambda name, s: {name: s, "epoch": 3, "loss": torch.tensor(1.0)}, name
        )
        for name in (
            "model_state_dict",
            "net",
            "weights",
            "network",
            "backbone",
            "ema",
            "student",
            "generator",
            "anything at all",
        )
    },
    "nested": lambda s: {"checkpoint": {"model": s, "cfg": {"a": [1, 2]}}, "meta": {}},
    "pairs": lambda s: list(s.items()),
    "pairs in a dictionary": lambda s: {"state": list(s.items())},
    "a teacher without weights": lambda s: {"teacher": {"temp": 0.1}, "state_dict": s},
    "an empty average": lambda s: {"state_dict_ema": {}, "state_dict": s},
    "a small average": lambda s: {"ema": {"decay": torch.tensor(0.9)}, "model": s},
    "optimizer states": lambda s: {
        "model": s,
        "optimizer": {
            "state": {i: {"exp_avg": v, "exp_avg_sq": v} for i, v in enumerate(s.values())},
            "param_groups": [{"lr": 0.1, "params": [0, 1]}],
        },
    },
    "one dictionary for each module": lambda s: {
        name: {k[len(name) + 1 :]: v for k, v in s.items() if k.startswith(f"{name}.")}
        for name in dict.fromkeys(k.partition(".")[0] for k in s)
    },
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled, parallel": lambda s: prefixed(s, "_orig_mod.module."),
    "parallel, compiled, inside": lambda s: prefixed(s, "model.module._orig_mod.net."),
    "block by block": blocks_compiled,
    "block by block, parallel": lambda s: prefixed(blocks_compiled(s), "module."),
    "sharded and recomputed": deep,
    "sharded, lightning": lambda s: {"state_dict": prefixed(deep(s), "_forward_module.model.")},
    "averaged by torch": lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
    "averaged by torch, block by block": lambda s: {
        "n_averaged": torch.tensor(3),
        **prefixed(blocks_compiled(s), "module."),
    },
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_whatever_holds_the_weights(kind: str, state: State, tmp_path: Path) -> None:
    path = saved(CONTAINERS[kind](state), tmp_path / "m.pth")
    model = create_model(NAME, num_classes=10, checkpoint_path=path)
    assert same(model, state) and not model.load_report.initial
    assert same(create_model(NAME, features_only=True, checkpoint_path=path), state)


OTHER = noisy(1)

AVERAGES: dict[str, Callable[[State], Any]] = {
    "teacher": lambda s: {"student": OTHER, "teacher": s},
    "ema": lambda s: {"model": OTHER, "model_ema": s},
    "ema first": lambda s: {"model_ema": s, "model": OTHER},
    "flat": lambda s: {**prefixed(OTHER, "student."), **prefixed(s, "teacher.")},
    "flat, ema": lambda s: {
        "state_dict": {**prefixed(OTHER, "model."), **prefixed(s, "ema_model.module.")}
    },
    "momentum": lambda s: {**prefixed(OTHER, "base_encoder."), **prefixed(s, "momentum_encoder.")},
    "nested": lambda s: {"weights": {"raw": OTHER, "ema": {"module": s}}},
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights_come_first(kind: str, state: State, tmp_path: Path) -> None:
    model = create_model(
        NAME, num_classes=10, checkpoint_path=saved(AVERAGES[kind](state), tmp_path / "m.pth")
    )
    assert same(model, state)
    assert any("averaged weights" in step for step in model.load_report.steps)


TIES: dict[str, tuple[Callable[[State], Any], str, str]] = {
    "encoders": (
        lambda s: {**prefixed(s, "module.encoder_q."), **prefixed(OTHER, "module.encoder_k.")},
        "module.encoder_q",
        "module.encoder_k.",
    ),
    "views": (lambda s: {"rgb": s, "depth": OTHER}, "rgb", "depth."),
    "views, flat": (
        lambda s: {**prefixed(OTHER, "depth."), **prefixed(s, "rgb.")},
        "rgb",
        "depth.",
    ),
    "two averages": (lambda s: {"ema_fast": s, "ema_slow": OTHER}, "ema_fast", "ema_slow."),
    "a prefix and none": (lambda s: {**OTHER, **prefixed(s, "copy.")}, "copy", "no prefix"),
}


@pytest.mark.parametrize("kind", TIES)
@pytest.mark.parametrize("features_only", [False, True])
def test_two_networks_that_fit_alike(
    kind: str, features_only: bool, state: State, tmp_path: Path
) -> None:
    make, prefix, other = TIES[kind]
    path = saved(make(state), tmp_path / "m.pth")
    options: dict[str, Any] = {"features_only": True} if features_only else {"num_classes": 10}
    with pytest.raises(CheckpointError, match="2 networks that fit alike") as caught:
        create_model(NAME, checkpoint_path=path, **options)
    assert all(word in str(caught.value) for word in (prefix, other, "checkpoint_prefix="))
    for chosen in (prefix, f"{prefix}."):
        model = create_model(NAME, checkpoint_path=path, checkpoint_prefix=chosen, **options)
        assert same(model, state)
    model = create_model(NAME, num_classes=10)
    load_checkpoint(model, path, checkpoint_prefix=prefix)
    assert same(model, state)
    out = tmp_path / "out.safetensors"
    featnet.convert_checkpoint(path, out, model=NAME, checkpoint_prefix=prefix)
    assert same(_classifier(out), state)
    with pytest.raises(CheckpointError, match="checkpoint_prefix='nothing': nothing in.*there are"):
        create_model(NAME, checkpoint_path=path, checkpoint_prefix="nothing")


@pytest.mark.parametrize("seed", ["0", "1", "7"])
def test_the_order_of_a_hash_decides_nothing(seed: str, tmp_path: Path) -> None:
    """torchvision's layouts, of which a file holds two."""
    torchvision = pytest.importorskip("torchvision")
    one = torchvision.models.mobilenet_v3_small(num_classes=4).state_dict()
    two = {k: v.clone() for k, v in one.items()}
    path = saved({**prefixed(one, "q."), **prefixed(two, "k.")}, tmp_path / "m.pth")
    code = (
        "import sys, featnet\n"
        "try: featnet.create_model('mobilenetv3_small_100', num_classes=4, "
        "checkpoint_path=sys.argv[1])\n"
        "except featnet.errors.CheckpointError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": seed},
    )
    assert "2 networks that fit alike, under 'q.', 'k.'" in run.stdout


def test_shapes_tell_two_networks_apart(state: State, tmp_path: Path) -> None:
    one = noisy(2, in_chans=1)
    path = saved({"depth": one, "rgb": state}, tmp_path / "m.pth")
    assert same(create_model(NAME, num_classes=10, checkpoint_path=path), state)
    assert same(create_model(NAME, num_classes=10, in_chans=1, checkpoint_path=path), one)
    small = create_model("resnet10t", num_classes=10).state_dict()
    large = create_model("resnet14t", num_classes=10).state_dict()
    path = saved({"student": small, "teacher": large}, tmp_path / "d.pth")
    assert same(create_model("resnet10t", num_classes=10, checkpoint_path=path), small)
    assert same(create_model("resnet14t", num_classes=10, checkpoint_path=path), large)


def test_the_same_tensors_twice_are_one_network(state: State, tmp_path: Path) -> None:
    path = saved({"model": state, "model_without_ddp": dict(state)}, tmp_path / "m.pth")
    assert same(create_model(NAME, num_classes=10, checkpoint_path=path), state)


HEADS: dict[str, dict[str, torch.Tensor]] = {
    "layers": {"fc.0.weight": torch.ones(4, 96), "fc.2.bias": torch.ones(4)},
    "another": {"arc.weight": torch.ones(4, 96)},
    "several": {"head_age.weight": torch.ones(1, 96), "head_sex.weight": torch.ones(2, 96)},
    "weight-normed": {"fc.weight_g": torch.ones(4, 1), "fc.weight_v": torch.ones(4, 96)},
    "parametrised": {"fc.parametrizations.weight.original0": torch.ones(4, 1)},
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_that_are_not_the_networks(kind: str, state: State, tmp_path: Path) -> None:
    body = {k: v for k, v in state.items() if not k.startswith("fc.")}
    path = saved({**body, **HEADS[kind]}, tmp_path / "m.pth")
    for options in ({"features_only": True}, {"num_classes": 3}, {"num_classes": 0}):
        model = create_model(NAME, checkpoint_path=path, **options)
        assert set(model.load_report.dropped) == set(HEADS[kind])
        assert torch.equal(
            model.state_dict()["layer1.0.conv1.weight"], state["layer1.0.conv1.weight"]
        )
    with pytest.raises(CheckpointError, match="missing|unexpected"):
        create_model(NAME, checkpoint_path=path)
    with pytest.raises(CheckpointError, match=f"unexpected.*{next(iter(HEADS[kind]))}"):
        create_model(
            NAME,
            num_classes=10,
            checkpoint_path=saved({**state, **HEADS[kind]}, tmp_path / "m.pth"),
        )
    more = {**body, **HEADS[kind], "layer1.7.conv1.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match="layer1.7.conv1.weight"):
        create_model(NAME, features_only=True, checkpoint_path=saved(more, tmp_path / "n.pth"))


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_children_of_a_resnet_in_a_sequential(prefix: str, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    theirs = helpers.fill_noise(torchvision.models.resnet18())
    body = nn.Sequential(*list(theirs.children())[:-1])
    path = saved(prefixed(body.state_dict(), prefix), tmp_path / "m.pth")
    net = create_model("resnet18", features_only=True, checkpoint_path=path)
    assert same(net, theirs.state_dict())
    model = create_model("resnet18", num_classes=5, checkpoint_path=path)
    assert torch.equal(model.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


# More than tensors ------------------------------------------------------------------------------


class Config:
    """A class of the user's."""

    def __init__(self) -> None:
        self.lr = 0.1


def _inert() -> dict[str, Any]:
    np = pytest.importorskip("numpy")
    return {
        "args": argparse.Namespace(
            lr=0.1, data=pathlib.Path("/data"), nested=argparse.Namespace(a=1)
        ),
        "path": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:/d")],
        "best": np.float64(0.9),
        "counts": np.int64(3),
        "array": np.arange(6.0).reshape(2, 3),
        "object array": np.array(["a", None], dtype=object),
        "dtype": np.dtype("float32"),
        "rng": np.random.default_rng(0).bit_generator.state,
        "ordered": collections.OrderedDict(a=1),
        "defaultdict": collections.defaultdict(list, a=[1]),
        "counter": collections.Counter("abc"),
        "deque": collections.deque([1, 2], maxlen=3),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "torch dtype": torch.float16,
        "set": {1, 2},
        "frozenset": frozenset({1}),
        "complex": 1 + 2j,
        "range": range(3),
        "slice": slice(1, 2),
        "bytes": b"abc",
        "bytearray": bytearray(b"abc"),
        "date": datetime.datetime.now(),
        "span": datetime.timedelta(seconds=3),
        "decimal": decimal.Decimal("1.5"),
        "uuid": uuid.uuid4(),
        "simple": types.SimpleNamespace(a=1),
        "large": 2**70,
        "torch version": torch.__version__,
        "parameter": nn.Parameter(torch.ones(2)),
        "rng state": torch.get_rng_state(),
    }


@pytest.mark.parametrize(
    "options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}]
)
def test_values_of_all_kinds_are_passed_over(
    options: dict[str, Any], state: State, tmp_path: Path
) -> None:
    for name, value in _inert().items():
        path = saved({"state_dict": state, "epoch": 3, name: value}, tmp_path / "m.pth", **options)
        assert checkpoint.read(path).keys() == state.keys(), name
    path = saved({"hyper_parameters": _inert(), "state_dict": state}, tmp_path / "m.pth", **options)
    assert same(create_model(NAME, num_classes=10, checkpoint_path=path), state)


class Bomb:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch bomb",)


class Escape:
    """A class whose name would write on a terminal."""


Escape.__qualname__ = Escape.__name__ = "\x1b[31mred"

FOREIGN: dict[str, tuple[Callable[[], Any], str]] = {
    "a class": (lambda: {"cfg": Config()}, "test_checkpoints.Config"),
    "a module": (lambda: nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
    "code": (lambda: {"x": Bomb()}, "posix.system"),
    "a class inside another": (lambda: {"a": [{"b": (Config(),)}]}, "test_checkpoints.Config"),
    "a function": (lambda: {"f": os.path.join}, "posixpath.join"),
    "print": (lambda: {"f": print}, "print"),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_more_than_values_is_named(
    kind: str, old: bool, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, name = FOREIGN[kind]
    content = {"state_dict": state, "extra": make()}
    path = saved(content, tmp_path / "m.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError) as caught:
        create_model(NAME, num_classes=10, checkpoint_path=path)
    message = str(caught.value)
    assert name in message and "torch.save(model.state_dict()" in message
    assert "weights_only" not in message and message.isprintable()
    assert not (tmp_path / "bomb").exists()


def test_a_class_that_was_said_to_be_safe_is_passed_over(state: State, tmp_path: Path) -> None:
    path = saved({"state_dict": state, "cfg": Config()}, tmp_path / "m.pth")
    with torch.serialization.safe_globals([Config]):
        assert same(create_model(NAME, num_classes=10, checkpoint_path=path), state)
    with pytest.raises(CheckpointError, match="Config"):
        create_model(NAME, num_classes=10, checkpoint_path=path)


def test_names_without_escapes(state: State, tmp_path: Path) -> None:
    content = b"\x80\x02c__main__\n\x1b[31mred\n)\x81."
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "m.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    with pytest.raises(CheckpointError, match=r"x1b\[31mred") as caught:
        checkpoint.read(tmp_path / "m.pth")
    assert str(caught.value).isprintable()


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("a"))


def _script(path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)).save(str(path))


def _program(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 3), (torch.ones(1, 2),)), path)


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.txt", b"1")


def _onnx(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), path)


STRANGERS: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "page": (b"<!DOCTYPE html>\n<html><head>", "a page of the web"),
    "page, later": (b"\n  <html lang=en>", "a page of the web"),
    "error of a store": (b'<?xml version="1.0"?><Error>', "a page of the web"),
    "json": (b'{"error": "not found"}', "a JSON text"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "gzip": (gzip.compress(b"x" * 99), "gzip"),
    "tar": (_tar, "tar archive"),
    "script": (_script, r"torch\.jit\.load\(file\)\.state_dict\(\)"),
    "program": (_program, r"torch\.export\.load"),
    "zip": (_zip, "zip archive of weights.txt"),
    "onnx": (_onnx, "ONNX"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "noise": (bytes(range(256)) * 9, "truncated or not a checkpoint"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_checkpoint_is_named(kind: str, suffix: str, tmp_path: Path) -> None:
    content, why = STRANGERS[kind]
    path = tmp_path / f"m{suffix}"
    if callable(content):
        content(tmp_path / "made.pt2")
        (tmp_path / "made.pt2").rename(path)
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=why if kind != "noise" else "truncated or not a"):
        create_model(NAME, checkpoint_path=path)


def test_formats_are_known_by_their_bytes(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "m.pth")
    assert same(_classifier(tmp_path / "m.pth"), state)
    saved(state, tmp_path / "m.safetensors")
    assert same(_classifier(tmp_path / "m.safetensors"), state)
    save_file(state, tmp_path / "noname")
    assert same(_classifier(tmp_path / "noname"), state)


def test_folders(state: State, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    _shards(state, tmp_path / "shards")
    assert same(_classifier(tmp_path / "shards"), state)
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(b"x")
    (tmp_path / "dcp" / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="distributed checkpoint.*dcp_to_torch_save"):
        _classifier(tmp_path / "dcp")
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="is a folder that has no weights"):
        _classifier(tmp_path / "none")


@pytest.mark.parametrize("path", ["a\0b.pth", "x" * 5000, f"{'y' * 300}.pth"])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        create_model(NAME, checkpoint_path=path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(create_model(NAME), path)


def test_the_home_folder(state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _safetensors(state, tmp_path)
    assert same(create_model(NAME, num_classes=10, checkpoint_path="~/m.safetensors"), state)
    model = create_model(NAME, num_classes=10)
    load_checkpoint(model, "~/m.safetensors")
    assert same(model, state)


def test_values_that_are_no_numbers_are_said(state: State, tmp_path: Path) -> None:
    bad = {
        **state,
        "fc.bias": state["fc.bias"] * float("nan"),
        "bn1.weight": state["bn1.weight"] / 0,
    }
    model = create_model(NAME, num_classes=10, checkpoint_path=_safetensors(bad, tmp_path))
    assert set(model.load_report.nonfinite) == {"fc.bias", "bn1.weight"}
    assert "NaN or infinity in bn1.weight, fc.bias" in str(model.load_report)
    assert not create_model(NAME, num_classes=10, checkpoint_path=state).load_report.nonfinite


# Re-parameterised -------------------------------------------------------------------------------


def test_both_forms_of_a_network(tmp_path: Path) -> None:
    name = "repvgg_a0"
    trained = helpers.fill_noise(create_model(name, num_classes=5)).eval()
    deployed = featnet.reparameterize(trained)
    path = _safetensors(deployed.state_dict(), tmp_path)
    with pytest.raises(CheckpointError, match=r"reparameterize.*reparameterized=True"):
        create_model(name, num_classes=5, checkpoint_path=path)
    again = create_model(name, num_classes=5, reparameterized=True, checkpoint_path=path)
    assert same(again, deployed.state_dict())
    from_training = saved(trained.state_dict(), tmp_path / "trained.pth")
    other = create_model(name, num_classes=5, reparameterized=True, checkpoint_path=from_training)
    assert same(other.eval(), deployed.state_dict())
    for model in (again, deployed):
        featnet.save_for_hub(model, tmp_path / "hub")
        back = create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
        assert same(back, deployed.state_dict())
        net = create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True, features_only=True)
        assert same(net, deployed.state_dict())
        shutil.rmtree(tmp_path / "hub")
    with pytest.raises(ArgumentError, match="nothing to re-parameterise"):
        create_model(NAME, reparameterized=True)


# One door ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "graph"])
@pytest.mark.parametrize("foreign", [False, True])
def test_into_every_extractor(kind: str, foreign: bool, tmp_path: Path) -> None:
    name, options = "mobilenetv3_small_100", {"out_indices": (1, 2)}
    if foreign:
        torchvision = pytest.importorskip("torchvision")
        theirs = helpers.fill_noise(torchvision.models.mobilenet_v3_small(num_classes=4))
    else:
        theirs = helpers.fill_noise(create_model(name, num_classes=4))
    path = saved(theirs.state_dict(), tmp_path / "m.pth")
    if kind == "graph":
        if foreign:
            pytest.skip("a graph does not know whose it is")
        theirs = helpers.fill_noise(create_model(NAME, num_classes=4))
        path = saved(theirs.state_dict(), tmp_path / "m.pth")
        body = create_model(NAME)
        net = featnet.create_feature_extractor(body, [body.feature_info[1]["module"]])
    else:
        net = create_model(name, features_only=True, feature_cls=kind, **options)
    report = load_checkpoint(net, path)
    if kind == "graph":
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in net.state_dict().items())
        return
    wanted = create_model(
        name, features_only=True, feature_cls=kind, checkpoint_path=path, **options
    )
    assert same(net, wanted.state_dict())
    assert report == wanted.load_report == net.load_report


def test_other_sizes_into_an_extractor(tmp_path: Path) -> None:
    model = helpers.fill_noise(create_model("test_vit", num_classes=4))
    path = saved(model.state_dict(), tmp_path / "m.pth")
    options: dict[str, Any] = {"features_only": True, "img_size": 96, "in_chans": 1}
    net = create_model("test_vit", **options)
    load_checkpoint(net, path)
    wanted = create_model("test_vit", checkpoint_path=path, **options)
    assert same(net, wanted.state_dict()) and net.load_report == wanted.load_report


def test_a_file_without_a_classifier_and_advice_that_can_be_followed(
    state: State, tmp_path: Path
) -> None:
    body = {k: v for k, v in state.items() if not k.startswith("fc.")}
    model = create_model(NAME, num_classes=10)
    with pytest.raises(CheckpointError, match=r"reset_classifier\(0\)"):
        load_checkpoint(model, body)
    model.reset_classifier(0)
    load_checkpoint(model, body)
    model.reset_classifier(4)
    assert model.fc.out_features == 4 and torch.equal(model.bn1.weight, state["bn1.weight"])


def test_no_module() -> None:
    with pytest.raises(ArgumentError, match="a str, not a torch.nn.Module"):
        load_checkpoint("resnet18", {})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="3 is no path: a int"):
        load_checkpoint(create_model(NAME), 3)  # type: ignore[arg-type]


def test_pickles_are_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(pickle.dumps({"a": [1, 2]}))
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        checkpoint.read(tmp_path / "m.pth")
