"""Checkpoints from the hub, from folders and urls: the hub's real client against a small hub of our
own on the loopback interface."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import hubserver
import pytest
import torch
from safetensors.torch import load, save

import featnet
from featnet import create_model
from featnet.checkpoints import hub, writing
from featnet.cli import main
from featnet.errors import ArgumentError, CheckpointError, UnknownModelError

NAME = "test_resnet"
TAG = "r160_in1k"
REPO = f"timm/{NAME}.{TAG}"
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def donor() -> Any:
    return helpers.fill_noise(create_model(NAME)).eval()


@pytest.fixture(scope="module")
def weights(donor: Any) -> bytes:
    return save({key: value.contiguous() for key, value in donor.state_dict().items()})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubserver.Hub]:
    """The hub that the client talks to, with an empty cache and no patience."""
    import huggingface_hub
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    with hubserver.running() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        for module in (file_download, _http):
            monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
        huggingface_hub.close_session()
        yield running
        huggingface_hub.close_session()


def config(**more: Any) -> bytes:
    content = {
        "architecture": NAME,
        "num_classes": 1000,
        "pretrained_cfg": {"tag": TAG, "mean": [0.5] * 3},
    }
    return json.dumps({**content, **more}).encode()


def same(model: Any, donor: Any) -> bool:
    state = donor.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def forbid_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a socket was opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("features_only", [False, True])
def test_a_name_of_the_tables(
    features_only: bool, server: hubserver.Hub, weights: bytes, donor: Any
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    model = create_model(NAME, pretrained=True, features_only=features_only)
    assert same(model, donor)
    assert model.load_report.loaded == len(model.state_dict())
    assert server.count("GET", "/cdn/") == 1, "the file is large: behind a redirect"


def _replace(file: Path) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(b"x")
    os.replace(other, file)


@pytest.mark.parametrize("harm", [os.unlink, _replace])
def test_what_came_from_the_hub_outlives_the_cache(
    harm: Any, server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    model = create_model(NAME, pretrained=True)
    blobs = [p for p in (tmp_path / "cache").rglob("blobs/*") if p.stat().st_size == len(weights)]
    assert blobs
    for blob in blobs:
        harm(blob)
    assert same(model, donor)


def test_a_repository_with_a_config(server: hubserver.Hub, weights: bytes, donor: Any) -> None:
    server.add("me/mine", {"config.json": config(), "model.safetensors": weights})
    for name in ("hf-hub:me/mine", "hf_hub:me/mine", "HF-Hub:me/mine"):
        model = create_model(name, pretrained=True)
        assert same(model, donor)
        assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
        assert model.pretrained_cfg["hf_hub_id"] == "me/mine"
    assert featnet.feature_info("hf-hub:me/mine").channels() == donor.feature_info.channels()


def test_what_a_config_says_is_built(server: hubserver.Hub) -> None:
    small = helpers.fill_noise(create_model(NAME, num_classes=3, in_chans=4))
    files = {
        "config.json": config(num_classes=3, model_args={"in_chans": 4, "drop_rate": 0.5}),
        "model.safetensors": save(small.state_dict()),
    }
    server.add("me/small", files)
    model = create_model("hf-hub:me/small", pretrained=True)
    assert same(model, small)
    assert (model.num_classes, model.in_chans, model.drop_rate) == (3, 4, 0.5)
    other = create_model("hf-hub:me/small", pretrained=True, num_classes=5, in_chans=1)
    assert (other.num_classes, other.in_chans) == (5, 1)
    empty = create_model("hf-hub:me/small")
    assert empty.num_classes == 3 and not hasattr(empty, "load_report")


def test_a_revision_is_pinned(server: hubserver.Hub, weights: bytes, donor: Any) -> None:
    zero = save({key: torch.zeros_like(value) for key, value in donor.state_dict().items()})
    repo = server.add("me/mine", {"config.json": config(), "model.safetensors": weights})
    first = repo.sha(0)
    repo.commits.append({"config.json": config(), "model.safetensors": zero})
    assert same(create_model(f"hf-hub:me/mine@{first}", pretrained=True), donor)
    newest = create_model("hf-hub:me/mine", pretrained=True)
    assert not newest.state_dict()[
        "conv1.0.weight" if "conv1.0.weight" in newest.state_dict() else "conv1.weight"
    ].any()
    with pytest.raises(CheckpointError, match="has no revision 'gone'"):
        create_model("hf-hub:me/mine@gone", pretrained=True)


def test_shards_are_of_one_commit(server: hubserver.Hub, donor: Any) -> None:
    state = donor.state_dict()
    keys = list(state)
    parts = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    index = {"metadata": {}, "weight_map": {k: f for f, names in parts.items() for k in names}}
    files = {f: save({k: state[k].contiguous() for k in names}) for f, names in parts.items()}
    files |= {"config.json": config(), "model.safetensors.index.json": json.dumps(index).encode()}
    repo = server.add("me/large", files)

    def push(handler: Any) -> bool:  # between the index and its shards
        repo.commits.append({**files, "b.safetensors": b"new"})
        return False

    server.fail("GET", "index.json", push)
    assert same(create_model("hf-hub:me/large", pretrained=True), donor)


def test_pytorchs_files_where_there_are_no_safetensors(
    server: hubserver.Hub, donor: Any, tmp_path: Path
) -> None:
    torch.save(donor.state_dict(), tmp_path / "m.bin")
    content = (tmp_path / "m.bin").read_bytes()
    server.add("me/old", {"config.json": config(), "pytorch_model.bin": content})
    assert same(create_model("hf-hub:me/old", pretrained=True), donor)
    before = len(server.log)
    assert same(create_model("hf-hub:me/old", pretrained=True), donor)
    assert len(server.log) == before, "that there is no model.safetensors is cached as well"


def test_offline_pytorchs_file_alone_is_enough(
    server: hubserver.Hub, donor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a cache that another program filled, nothing says that there are no safetensors."""
    from huggingface_hub import constants, hf_hub_download

    torch.save(donor.state_dict(), tmp_path / "m.bin")
    content = (tmp_path / "m.bin").read_bytes()
    server.add("me/old", {"config.json": config(), "pytorch_model.bin": content})
    for file in ("config.json", "pytorch_model.bin"):
        hf_hub_download("me/old", file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(create_model("hf-hub:me/old", pretrained=True), donor)


def test_a_flat_config_of_old(server: hubserver.Hub, weights: bytes, donor: Any) -> None:
    flat = {"architecture": NAME, "num_classes": 1000, "mean": [0.1] * 3, "unheard_of": 3}
    server.add("me/flat", {"config.json": json.dumps(flat).encode(), "model.safetensors": weights})
    model = create_model("hf-hub:me/flat", pretrained=True)
    assert same(model, donor) and model.pretrained_cfg["mean"] == (0.1,) * 3


def test_a_repository_that_a_table_names(server: hubserver.Hub, tmp_path: Path) -> None:
    """Not all weights of the tables are in timm's repositories."""
    ids = {featnet.get_weights(n).hf_hub_id: n for n in featnet.list_pretrained("vit_base_mci*")}
    others = {repo: name for repo, name in ids.items() if not repo.startswith("timm/")}
    assert others
    for repo, name in others.items():
        refused(name, f"'{repo}'", "does not exist, or is private")


def test_no_code_of_a_fetched_file_is_run(
    server: hubserver.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, ("bomb",)

    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "x": Bomb()}, tmp_path / "m.bin")
    files = {"config.json": config(), "pytorch_model.bin": (tmp_path / "m.bin").read_bytes()}
    server.add("me/bomb", files)
    refused("hf-hub:me/bomb", "pytorch_model.bin", "featnet runs no code that a file brings along")
    assert not (tmp_path / "bomb").exists()


def test_the_environment_of_the_hub(
    server: hubserver.Hub, weights: bytes, tmp_path: Path, nursery: Nursery
) -> None:
    """Endpoint, token and place of the cache, as all tools of the hub have them."""
    server.add("me/own", {"config.json": config(), "model.safetensors": weights}, token="secret")
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "secret",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": nursery.path,
        "TQDM_POSITION": "-1",  # progress although this is no terminal
    }
    command = [sys.executable, "-m", "featnet.cli", "prefetch", "hf-hub:me/own"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file = Path(done.stdout.split()[-1])
    assert file.is_relative_to(tmp_path / "home") and file.read_bytes() == weights
    assert "%" in done.stderr, "no progress is shown"


# The cache --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, f"{NAME}.{TAG}", "hf-hub:me/mine"])
def test_after_prefetch_no_socket_is_opened(
    name: str,
    server: hubserver.Hub,
    weights: bytes,
    donor: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    server.add("me/mine", {"config.json": config(), "model.safetensors": weights})
    for cache in (None, tmp_path / "other"):
        found = featnet.prefetch([name], cache_dir=cache)
        assert found[name].read_bytes() == weights
        with monkeypatch.context() as patch:
            forbid_sockets(patch)
            assert same(create_model(name, pretrained=True, cache_dir=cache), donor)
            with pytest.raises(AssertionError, match="a socket was opened"):
                socket.create_connection(("127.0.0.1", 1))


def test_prefetch_takes_what_is_newer(server: hubserver.Hub, weights: bytes, donor: Any) -> None:
    repo = server.add("me/mine", {"config.json": config(), "model.safetensors": b"old" * 999})
    featnet.prefetch("hf-hub:me/mine")
    repo.commits.append({"config.json": config(), "model.safetensors": weights})
    featnet.prefetch("hf-hub:me/mine")
    assert same(create_model("hf-hub:me/mine", pretrained=True), donor)


def test_prefetch_on_the_command_line(
    server: hubserver.Hub, weights: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    assert main(["prefetch", NAME, "--cache-dir", str(tmp_path / "here")]) == 0
    printed = capsys.readouterr().out
    assert NAME in printed and str(tmp_path / "here") in printed
    assert main(["prefetch", "hf-hub:me/nothing"]) == 2
    assert "does not exist, or is private" in capsys.readouterr().err


def test_prefetch_looks_at_all_names_first(server: hubserver.Hub) -> None:
    with pytest.raises(UnknownModelError, match="resnet5000"):
        featnet.prefetch([NAME, "resnet5000"])
    assert not server.log


# Faults of the network --------------------------------------------------------------------------


FAULTS: dict[str, tuple[str, str, hubserver.Fault, int]] = {
    "a cut connection": ("GET", "/cdn/", hubserver.cut(5000), 2),
    "500 on HEAD": ("HEAD", "resolve", hubserver.status(500), 1),
    "503 on HEAD": ("HEAD", "resolve", hubserver.status(503), 2),
    "429 once": ("HEAD", "resolve", hubserver.status(429, retry_after="1"), 1),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_passes_is_waited_for(
    kind: str, server: hubserver.Hub, weights: bytes, donor: Any
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    method, path, fault, times = FAULTS[kind]
    server.fail(method, path, fault, times=times)
    assert same(create_model(NAME, pretrained=True), donor)
    assert not server.faults, "the fault has not occurred"


def test_a_cut_download_leaves_nothing_and_the_next_one_succeeds(
    server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    server.fail("GET", "/cdn/", hubserver.cut(100), times=99)
    with pytest.raises(CheckpointError, match=f"model.safetensors of the hub's '{REPO}'"):
        create_model(NAME, pretrained=True)
    blobs = [p for p in (tmp_path / "cache").rglob("blobs/*") if p.stat().st_size]
    assert not blobs, "half a file is in the cache"
    server.faults.clear()
    assert same(create_model(NAME, pretrained=True), donor)


def refused(name: str, *words: str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        create_model(name, pretrained=True, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


def test_an_error_of_the_server(server: hubserver.Hub, weights: bytes, donor: Any) -> None:
    server.add(REPO, {"model.safetensors": weights})
    server.fail("GET", "/cdn/", hubserver.status(500))
    refused(NAME, f"model.safetensors of the hub's '{REPO}'", "cannot be fetched", "500")
    assert same(create_model(NAME, pretrained=True), donor)


def test_an_unknown_repository(server: hubserver.Hub) -> None:
    refused("hf-hub:me/nothing", "me/nothing", "does not exist, or is private", "hf auth login")


def test_a_gated_repository(
    server: hubserver.Hub, weights: bytes, donor: Any, monkeypatch: Any
) -> None:
    files = {"config.json": config(), "model.safetensors": weights}
    server.add("me/gated", files, gated=True, token="secret")
    refused("hf-hub:me/gated", "me/gated", "is gated", "hf auth login", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert same(create_model("hf-hub:me/gated", pretrained=True), donor)


def test_a_private_repository_opens_with_the_token(
    server: hubserver.Hub, weights: bytes, donor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add("me/own", {"config.json": config(), "model.safetensors": weights}, token="secret")
    refused("hf-hub:me/own", "does not exist, or is private")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert same(create_model("hf-hub:me/own", pretrained=True), donor)


def test_no_file_in_the_repository(server: hubserver.Hub) -> None:
    server.add(REPO, {"README.md": b"hello"})
    refused(NAME, REPO, "has none of model.safetensors")
    server.add("me/bare", {"README.md": b"hello"})
    refused("hf-hub:me/bare", "has no config.json")


def test_offline_and_not_cached(
    server: hubserver.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = (
        "model.safetensors",
        REPO,
        "not in the local cache",
        str(tmp_path / "cache"),
        "featnet prefetch",
    )
    refused(NAME, *words)
    assert not server.log


def test_the_hub_cannot_be_reached(server: hubserver.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        refused(NAME, REPO, "the hub cannot be reached", "featnet prefetch", "checkpoint_path=")


def test_too_many_requests(server: hubserver.Hub, weights: bytes) -> None:
    server.add(REPO, {"model.safetensors": weights})
    server.fail("HEAD", "resolve", hubserver.status(429), times=99)
    refused(NAME, REPO, "429")


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "does not fit on the disk"), (errno.EROFS, "cannot be written")],
)
def test_a_disk_that_takes_nothing(
    number: int, words: str, server: hubserver.Hub, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number))

    server.add(REPO, {"model.safetensors": weights})
    monkeypatch.setattr(file_download, "http_get", refuse)
    refused(NAME, words, "cache_dir=")


def test_a_cache_that_cannot_be_written(
    server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    (tmp_path / "file").touch()
    refused(NAME, REPO, cache_dir=tmp_path / "file")
    featnet.prefetch(NAME)
    if os.getuid():  # root may write everywhere
        (tmp_path / "cache").chmod(0o500)
    assert same(create_model(NAME, pretrained=True), donor)


def test_a_repository_that_is_none(server: hubserver.Hub) -> None:
    refused("hf-hub:a/b/c", "'a/b/c'", "no repository")
    refused("hf-hub:me/..", "no repository")


# Pinned hashes ----------------------------------------------------------------------------------


def test_a_pinned_hash(server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path) -> None:
    server.add(REPO, {"model.safetensors": weights})
    right = hashlib.sha256(weights).hexdigest()
    for pin in (right, right[:8].upper()):
        overlay = {"sha256": pin}
        assert same(create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay), donor)
    refused(NAME, right, "removed from the cache", pretrained_cfg_overlay={"sha256": "0" * 64})
    assert not [
        p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.stat().st_size > 5000
    ]
    assert same(create_model(NAME, pretrained=True), donor)
    refused(NAME, "hexadecimal digits", pretrained_cfg_overlay={"sha256": "what"})


def test_a_pinned_hash_leaves_a_file_of_ones_own(weights: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(weights)
    refused(NAME, "SHA-256", pretrained_cfg_overlay={"file": str(path), "sha256": "0" * 64})
    assert path.read_bytes() == weights


def test_a_url_has_its_hash_in_its_name(
    server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    server.blobs["x"] = weights
    digest = hashlib.sha256(weights).hexdigest()[:8]
    files = {f"m-{digest}.safetensors": weights, "m-00000000.safetensors": weights}
    server.add("me/files", files)
    address = f"{server.url}/me/files/resolve/main/"

    def build(name: str) -> Any:
        overlay = {"url": address + name, "hf_hub_id": None}
        return create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay)

    assert same(build(f"m-{digest}.safetensors"), donor)
    before = len(server.log)
    assert same(build(f"m-{digest}.safetensors"), donor) and len(server.log) == before
    with pytest.raises(CheckpointError, match="invalid hash value"):
        build("m-00000000.safetensors")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    assert sorted(p.name for p in folder.glob("*.safetensors")) == [f"m-{digest}.safetensors"]


# Names and configs that mean nothing ------------------------------------------------------------


NAMES = {
    "hub:me/mine": "Unknown source 'hub'",
    "hf-hub:": "nothing behind the colon",
    "me/mine": "hf-hub:me/mine",
    "./folder": "local-dir:./folder",
    "C:\\models\\mine": "local-dir:C:",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_means_nothing(name: str) -> None:
    with pytest.raises(UnknownModelError) as caught:
        create_model(name)
    assert NAMES[name] in str(caught.value)


CONFIGS: dict[str, tuple[bytes, str]] = {
    "no json": (b"{", "is no config.json"),
    "a list": (b"[]", "is no config.json"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "nan": (b'{"architecture": "resnet18", "num_classes": NaN}', "is no config.json"),
    "twice": (b'{"architecture": "resnet18", "architecture": "resnet34"}', "a key occurs twice"),
    "no architecture": (b"{}", "names no architecture"),
    "of transformers": (
        b'{"model_type": "resnet", "architectures": ["ResNetModel"]}',
        "transformers",
    ),
    "unknown architecture": (b'{"architecture": "resnet5000"}', "Unknown model 'resnet5000'"),
    "a number": (b'{"architecture": 3}', "is no config.json"),
    "unknown argument": (b'{"architecture": "resnet18", "model_args": {"wdith": 3}}', "'wdith'"),
    "arguments that are none": (
        b'{"architecture": "resnet18", "model_args": [3]}',
        "is no config.json",
    ),
    "classes": (
        b'{"architecture": "resnet18", "num_classes": "ten"}',
        "num_classes='ten': an int from 0",
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_means_nothing(kind: str, tmp_path: Path) -> None:
    content, why = CONFIGS[kind]
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(featnet_errors()) as caught:
        create_model(f"local-dir:{tmp_path}")
    assert why in str(caught.value) and str(tmp_path / "config.json") in str(caught.value)


def featnet_errors() -> Any:
    return (CheckpointError, ArgumentError, UnknownModelError)


def test_a_config_and_a_tag_contradict(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(config())
    with pytest.raises(ArgumentError, match="contradicts"):
        create_model(f"local-dir:{tmp_path}", pretrained_cfg="a1_in1k")


def test_folders_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        create_model(f"local-dir:{tmp_path / 'nothing'}")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        create_model(f"local-dir:{tmp_path}")
    (tmp_path / "config.json").write_bytes(config())
    create_model(f"local-dir:{tmp_path}")
    with pytest.raises(CheckpointError, match="has no weights"):
        create_model(f"local-dir:{tmp_path}", pretrained=True)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="a.safetensors, b.safetensors"):
        create_model(f"local-dir:{tmp_path}", pretrained=True)


# Saving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 7, "in_chans": 5},
        {"num_classes": 0, "global_pool": "max"},
        {"drop_rate": 0.3},
    ],
    ids=str,
)
def test_round_trip(options: dict[str, Any], timm: Any, tmp_path: Path) -> None:
    model = helpers.fill_noise(create_model(NAME, **options)).eval()
    folder = featnet.save_for_hub(model, tmp_path / "saved")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert same(again, model) and list(again.state_dict()) == list(model.state_dict())
    x = torch.randn(1, model.in_chans, 64, 64, generator=torch.Generator().manual_seed(0))
    peer = helpers.peer_model(f"local-dir:{folder}", pretrained=True).eval()
    assert same(peer, model)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(peer(x), model(x), rtol=1e-5, atol=1e-6)
    for field in ("mean", "std", "crop_pct", "interpolation", "input_size", "license"):
        assert again.pretrained_cfg[field] == model.pretrained_cfg[field] or field == "input_size"
    assert again.pretrained_cfg.input_size[0] == model.in_chans
    assert model.num_classes == again.num_classes and again.drop_rate == model.drop_rate


def test_what_timm_saves_is_read(timm: Any, tmp_path: Path) -> None:
    peer = helpers.fill_noise(helpers.peer_model(NAME, num_classes=9, in_chans=2)).eval()
    timm.models.save_for_hf(peer, str(tmp_path), safe_serialization=True)
    model = create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert same(model, peer) and (model.num_classes, model.in_chans) == (9, 2)
    net = create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert same(net, peer)


def test_push_and_pull(server: hubserver.Hub, donor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="hf auth login"):
        featnet.push_to_hub(donor, "me/pushed")
    monkeypatch.setenv("HF_TOKEN", "writer")
    url = featnet.push_to_hub(donor, "me/pushed")
    assert url.startswith(server.url)
    pushed = server.repos["me/pushed"].commits[-1]
    assert sorted(pushed) == ["README.md", "config.json", "model.safetensors"]
    assert b'create_model("hf-hub:me/pushed"' in pushed["README.md"]
    assert b"license: apache-2.0" in pushed["README.md"]
    assert same(create_model("hf-hub:me/pushed", pretrained=True), donor)
    server.repos["me/pushed"].commits.append({"README.md": b"my own words"})
    featnet.push_to_hub(donor, "me/pushed", message="again")
    assert server.repos["me/pushed"].commits[-1]["README.md"] == b"my own words"


def test_saving_over_the_file_that_the_model_is_mapped_from(donor: Any, tmp_path: Path) -> None:
    featnet.save_for_hub(donor, tmp_path)
    model = create_model(f"local-dir:{tmp_path}", pretrained=True)
    with torch.no_grad():
        model.fc.bias += 1
    featnet.save_for_hub(model, tmp_path)
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(again, model) and not same(again, donor)


def test_what_cannot_be_saved(donor: Any, tmp_path: Path) -> None:
    net = create_model(NAME, features_only=True)
    for model in (net, torch.nn.Identity()):
        with pytest.raises(ArgumentError, match="cannot be saved for the hub"):
            featnet.save_for_hub(model, tmp_path / "x")
    odd = create_model(NAME, act_layer=torch.nn.ReLU6)
    with pytest.raises(ArgumentError, match="act_layer=.*model_args="):
        featnet.save_for_hub(odd, tmp_path / "x")
    featnet.save_for_hub(odd, tmp_path / "named", model_args={"act_layer": "relu6"})
    changed = create_model(NAME)
    changed.conv1 = torch.nn.Conv2d(1, 2, 3)
    with pytest.raises(ArgumentError, match="was changed since it was created"):
        featnet.save_for_hub(changed, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        featnet.save_for_hub(donor, tmp_path / "file")


def test_a_classifier_that_was_replaced_is_saved_as_it_is(tmp_path: Path) -> None:
    model = create_model(NAME)
    model.reset_classifier(4, "max")
    featnet.save_for_hub(model, tmp_path)
    again = create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(again, model) and again.global_pool.pool_type == "max"


# Several processes ------------------------------------------------------------------------------


NURSERY = """
import json, os, signal, sys, traceback
import torch, featnet.factory, featnet.checkpoints.publish, huggingface_hub.file_download
from huggingface_hub import constants
torch.set_num_threads(1)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    url, cache, source, out = json.loads(line)
    child = os.fork()
    if child == 0:
        constants.ENDPOINT, constants.HF_HUB_CACHE = url, cache
        constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
        constants.HF_HUB_DISABLE_XET = True
        constants.DOWNLOAD_CHUNK_SIZE = 1000
        try:
            names = {"out": out}
            exec(source, names)
            result = json.dumps(names.get("result"))
        except BaseException:
            result = json.dumps(traceback.format_exc())
        with open(out + ".tmp", "w") as file:
            file.write(result)
        os.replace(out + ".tmp", out)
        os._exit(0)
    print(child, flush=True)
"""


class Nursery:
    """A process that has imported everything, and forks children that run a piece of code."""

    def __init__(self) -> None:
        root = str(Path(featnet.__file__).parents[1])
        path = self.path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def start(self, url: str, cache: Path, source: str, out: Path) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([url, str(cache), source, str(out)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def stop(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    processes = Nursery()
    yield processes
    processes.stop()


def until(condition: Any, *, seconds: float = 60) -> Any:
    """Wait until a condition holds (time.sleep does not sleep here)."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        threading.Event().wait(0.02)
    return found


CREATE = """
import featnet
model = featnet.create_model("test_resnet", pretrained=True)
result = sum(float(v.double().sum()) for v in model.state_dict().values())
"""


def test_eight_processes_fetch_once(
    server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path, nursery: Nursery
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    server.slow = 0.5  # so that all are there before the first is through
    outs = [tmp_path / f"{number}.json" for number in range(8)]
    for out in outs:
        nursery.start(server.url, tmp_path / "shared", CREATE, out)
    until(lambda: all(out.exists() for out in outs))
    wanted = sum(float(v.double().sum()) for v in donor.state_dict().values())
    assert [json.loads(out.read_text()) for out in outs] == [pytest.approx(wanted, rel=1e-12)] * 8
    assert server.count("HEAD", "resolve") >= 8
    assert server.count("GET", "/cdn/") == 1


def test_eight_processes_fetch_a_url_once(
    server: hubserver.Hub, weights: bytes, tmp_path: Path, nursery: Nursery
) -> None:
    server.add("me/files", {"m.safetensors": weights})
    server.slow = 0.5
    code = f"""
import featnet
cfg = dict(url="{server.url}/me/files/resolve/main/m.safetensors", hf_hub_id=None)
cache = r"{tmp_path}/urls"
model = featnet.create_model("test_resnet", pretrained_cfg_overlay=cfg, cache_dir=cache)
result = model.load_report.loaded
"""
    outs = [tmp_path / f"{number}.json" for number in range(8)]
    for out in outs:
        nursery.start(server.url, tmp_path / "shared", code, out)
    until(lambda: all(out.exists() for out in outs))
    count = len(create_model(NAME).state_dict())
    assert [json.loads(out.read_text()) for out in outs] == [count] * 8
    assert server.count("GET", "/cdn/") == 1


def test_a_process_killed_while_it_downloads_leaves_no_half_file(
    server: hubserver.Hub, weights: bytes, donor: Any, tmp_path: Path, nursery: Nursery
) -> None:
    server.add(REPO, {"model.safetensors": weights})
    server.slow = 60.0
    child = nursery.start(server.url, tmp_path / "cache", CREATE, tmp_path / "out")
    half = until(
        lambda: [p for p in (tmp_path / "cache").rglob("*.incomplete") if p.stat().st_size]
    )
    os.kill(child, signal.SIGKILL)
    assert half[0].stat().st_size < len(weights)
    server.slow = 0.0
    assert same(create_model(NAME, pretrained=True), donor)
    assert not (tmp_path / "out").exists()


SAVE = """
import threading, torch, featnet
from featnet.checkpoints import writing
model = featnet.create_model("test_resnet")
def half(file, value):
    file.write(b"half")
    file.flush()
    open(out + ".writing", "w").close()
    threading.Event().wait(60)
writing._write_tensor = half
featnet.save_for_hub(model, {folder!r})
"""


def test_a_process_killed_while_it_saves_leaves_no_half_file(
    server: hubserver.Hub, donor: Any, tmp_path: Path, nursery: Nursery
) -> None:
    folder = featnet.save_for_hub(donor, tmp_path / "saved")
    code = SAVE.replace("{folder!r}", repr(str(folder)))
    child = nursery.start(server.url, tmp_path / "cache", code, tmp_path / "out")
    until((tmp_path / "out.writing").exists)
    os.kill(child, signal.SIGKILL)
    assert same(create_model(f"local-dir:{folder}", pretrained=True), donor)
    assert any(path.name.startswith(".featnet-") for path in folder.iterdir())
    featnet.save_for_hub(donor, folder)
    assert same(create_model(f"local-dir:{folder}", pretrained=True), donor)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md"}


def test_what_a_process_at_work_writes_is_left_to_it(donor: Any, tmp_path: Path) -> None:
    with writing.staged(tmp_path / "other.txt") as draft:
        draft.write_text("half")
        featnet.save_for_hub(donor, tmp_path)
        assert draft.exists()
    assert (tmp_path / "other.txt").read_text() == "half"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".featnet-")]


def test_the_server_speaks_ranges(server: hubserver.Hub) -> None:
    """The double itself: a resumed download asks for the rest, and gets it."""
    body = bytes(range(256)) * 400
    server.add("me/files", {"f.bin": body})
    server.fail("GET", "/cdn/", hubserver.cut(20000))
    from huggingface_hub import hf_hub_download

    path = hf_hub_download("me/files", "f.bin")
    assert Path(path).read_bytes() == body
    assert server.count("GET", "/cdn/") == 2 and load(save({"a": torch.ones(2)}))["a"].sum() == 2


def test_errors_name_what_they_are_about() -> None:
    assert (
        issubclass(CheckpointError, (RuntimeError, ValueError))
        and hub.ON_THE_HUB[0] == "model.safetensors"
    )
