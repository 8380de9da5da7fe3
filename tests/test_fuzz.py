"""Broken and hostile files: each ends in one CheckpointError; no crash, no leftover, nothing
loaded.

``FEATNET_FUZZ=5000`` tries more of each kind.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from safetensors.torch import save
from torch import nn

from featnet import create_model
from featnet.checkpoints import checkpoint, files, mindspore
from featnet.errors import CheckpointError

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

FEW = hypothesis.settings(
    max_examples=int(os.environ.get("FEATNET_FUZZ", "50")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


class Tiny(nn.Module):
    """A model of few tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)


STATE = {key: value.clone() for key, value in helpers.fill_noise(Tiny()).state_dict().items()}
WHOLE = save(STATE)
LENGTH = int.from_bytes(WHOLE[:8], "little")
HEADER = json.loads(WHOLE[8 : 8 + LENGTH])
BODY = WHOLE[8 + LENGTH :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("fuzz")


def build(header: Any, body: bytes = BODY) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def ends_well(path: Path) -> bool:
    """Whether a file loads; if not, that it ends as it should: one error, and nothing changed."""
    model = Tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    around = sorted(os.listdir(path.parent))
    try:
        report = checkpoint.load(model, files.read(path), source=str(path))
    except CheckpointError as error:
        assert "\n" in str(error) or str(error).endswith((".", "?")), str(error)
        assert str(path.parent) in str(error)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        return False
    finally:
        assert sorted(os.listdir(path.parent)) == around
    assert report.loaded == len(before) - len(report.initial)
    return True


def test_the_whole_file_loads(folder: Path) -> None:
    (folder / "m.safetensors").write_bytes(WHOLE)
    assert ends_well(folder / "m.safetensors")
    (folder / "m.safetensors").write_bytes(build(HEADER))
    assert ends_well(folder / "m.safetensors"), "what the tests build is a file"


@FEW
@hypothesis.given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_file(folder: Path, length: int) -> None:
    path = folder / "cut.safetensors"
    path.write_bytes(WHOLE[:length])
    assert not ends_well(path)


@FEW
@hypothesis.given(st.integers(0, 8 + LENGTH - 1), st.integers(1, 255))
def test_a_byte_of_the_header_that_is_another(folder: Path, at: int, change: int) -> None:
    content = bytearray(WHOLE)
    content[at] ^= change
    path = folder / "byte.safetensors"
    path.write_bytes(content)
    if ends_well(path):  # a padding space, or the metadata
        assert checkpoint.read(path).keys() == STATE.keys()


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
number = st.integers(-5, 3000) | st.integers(-(2**70), 2**70)


@FEW
@hypothesis.given(
    st.sampled_from(sorted(set(HEADER) - {"__metadata__"})),
    st.sampled_from(["dtype", "shape", "data_offsets"]),
    junk | st.lists(number, max_size=4) | st.sampled_from(sorted(files.BITS)),
)
def test_an_entry_of_the_header_that_lies(folder: Path, name: str, field: str, value: Any) -> None:
    hypothesis.assume(value != HEADER[name][field])
    header = {**HEADER, name: {**HEADER[name], field: value}}
    path = folder / "entry.safetensors"
    path.write_bytes(build(header))
    # a counter may have become another number of as many bytes
    assert ends_well(path) == (HEADER[name]["dtype"] == "I64" and value in ("F64", "U64"))


@FEW
@hypothesis.given(
    st.dictionaries(st.sampled_from([*HEADER, "x", "__metadata__"]), junk, max_size=4)
)
def test_entries_that_are_junk(folder: Path, entries: dict[str, Any]) -> None:
    hypothesis.assume(set(entries) - {"__metadata__"})
    path = folder / "junk.safetensors"
    path.write_bytes(build({**HEADER, **entries}))
    assert not ends_well(path)


@FEW
@hypothesis.given(st.binary(max_size=200))
def test_bytes_at_random(folder: Path, content: bytes) -> None:
    for name in ("r.safetensors", "r.pth", "r.ckpt", "r.index.json", "r.bin"):
        (folder / name).write_bytes(content)
        assert not ends_well(folder / name)


HEADERS = {
    "a key twice": build(
        json.dumps(HEADER).encode()[:-1]
        + b', "fc.bias": '
        + json.dumps(HEADER["fc.bias"]).encode()
        + b"}"
    ),
    "NaN": build(json.dumps({**HEADER, "fc.bias": float("nan")}).encode()),
    "a name that is NaN": build(json.dumps({**HEADER, "fc.bias": float("inf")}).encode()),
    "nested deeply": build(b"[" * 100000 + b"]" * 100000),
    "a header of 2**63 bytes": b"\xff" * 7 + b"\x7f" + b"{}",
    "a header that is longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "no header": b"\0" * 8,
    "a gap": build(
        {
            **HEADER,
            "fc.bias": {
                **HEADER["fc.bias"],
                "data_offsets": [n + 4 for n in HEADER["fc.bias"]["data_offsets"]],
            },
        },
        BODY + b"\0" * 4,
    ),
    "an overlap": build(
        {
            k: {**v, "data_offsets": HEADER["fc.bias"]["data_offsets"]} if k == "bn.bias" else v
            for k, v in HEADER.items()
        }
    ),
    "bytes behind": build(HEADER, BODY + b"\0"),
    "a huge shape": build({**HEADER, "fc.bias": {**HEADER["fc.bias"], "shape": [2**40, 2**40]}}),
    "a shape that overflows": build(
        {**HEADER, "fc.bias": {**HEADER["fc.bias"], "shape": [2**32, 2**32, 20]}}
    ),
    "a negative shape": build({**HEADER, "fc.bias": {**HEADER["fc.bias"], "shape": [-5]}}),
    "no UTF-8": build(b'{"\xff\xfe": {}}'),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(HEADERS[kind])
    assert not ends_well(path)


# Shards -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Path:
    place = folder / "sharded"
    place.mkdir()
    keys = list(STATE)
    for name, part in {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}.items():
        (place / name).write_bytes(save({key: STATE[key] for key in part}))
    return place


def weight_map() -> dict[str, str]:
    keys = list(STATE)
    return {k: "ab"[i % 2] + ".safetensors" for i, k in enumerate(keys)}


def test_the_whole_index_loads(sharded: Path) -> None:
    path = sharded / "whole.index.json"
    path.write_text(json.dumps({"weight_map": weight_map()}))
    assert ends_well(path)
    path.unlink()


SHARDS = {
    "outside": "../m.safetensors",
    "absolute": "/etc/passwd",
    "hidden outside": "x/../../m.safetensors",
    "of Windows": "..\\m.safetensors",
    "drive": "C:m.safetensors",
    "nothing": "",
    "itself": "i.index.json",
    "dot": ".",
    "dots": "..",
    "null": "a\0.safetensors",
    "missing": "c.safetensors",
    "the other's": None,
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_that_are_elsewhere(kind: str, sharded: Path) -> None:
    path = sharded / "i.index.json"
    name = SHARDS[kind] if SHARDS[kind] is not None else weight_map()["conv.bias"]
    path.write_text(json.dumps({"weight_map": {**weight_map(), "conv.weight": name}}))
    assert not ends_well(path)
    with pytest.raises(CheckpointError):
        if kind in ("missing", "the other's"):
            raise CheckpointError("these are names that a hub may be asked for")
        files.shards(path)
    path.unlink()


@FEW
@hypothesis.given(junk | st.dictionaries(st.sampled_from(["weight_map", "metadata"]), junk))
def test_an_index_of_junk(sharded: Path, content: Any) -> None:
    path = sharded / "junk.index.json"
    path.write_text(json.dumps(content))
    assert not ends_well(path)
    path.unlink()


# PyTorch's files --------------------------------------------------------------------------------


def pth(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


PTH = pth(STATE)


@FEW
@hypothesis.given(st.integers(0, len(PTH) - 1), st.integers(1, 255))
def test_a_byte_of_a_pth_that_is_another(folder: Path, at: int, change: int) -> None:
    content = bytearray(PTH)
    content[at] ^= change
    path = folder / "byte.pth"
    path.write_bytes(content)
    ends_well(path)


@FEW
@hypothesis.given(st.integers(0, len(PTH) - 1))
def test_a_cut_pth(folder: Path, length: int) -> None:
    path = folder / "cut.pth"
    path.write_bytes(PTH[:length])
    assert not ends_well(path)


def compressed() -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(PTH)) as old,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return buffer.getvalue()


# MindSpore's files

CKPT = (Path(__file__).parent / "golden" / "mindspore.ckpt").read_bytes()


def read_well(path: Path) -> None:
    """It is read, or refused with one error that names it."""
    try:
        assert checkpoint.read(path)
    except CheckpointError as error:
        assert str(path) in str(error)


@FEW
@hypothesis.given(st.integers(0, len(CKPT) - 18), st.integers(1, 255), st.booleans())
def test_a_byte_of_a_ckpt_that_is_another(
    folder: Path, at: int, change: int, checked: bool
) -> None:
    content = bytearray(CKPT if checked else CKPT[: -mindspore.CHECKSUM])
    content[at] ^= change
    path = folder / "byte.ckpt"
    path.write_bytes(content)
    if checked:
        with pytest.raises(CheckpointError, match="cannot be read"):
            files.read(path)
    else:
        read_well(path)


@FEW
@hypothesis.given(st.integers(0, len(CKPT) - 1))
def test_a_cut_ckpt(folder: Path, length: int) -> None:
    path = folder / "cut.ckpt"
    path.write_bytes(CKPT[:length])
    read_well(path)


# NumPy's archives


def npz() -> bytes:
    np, buffer = pytest.importorskip("numpy"), io.BytesIO()
    np.savez(buffer, **{"embedding/kernel": np.arange(6.0).reshape(2, 3), "cls": np.zeros((2, 0))})
    return buffer.getvalue()


@FEW
@hypothesis.given(st.integers(0, 700), st.integers(1, 255), st.booleans())
def test_a_byte_of_an_npz_that_is_another(folder: Path, at: int, change: int, cut: bool) -> None:
    content = bytearray(npz())
    at %= len(content)
    content[at] ^= change
    path = folder / "byte.npz"
    path.write_bytes(content[:at] if cut else content)
    read_well(path)


HOSTILE = {
    "compressed, so that it may grow": compressed(),
    "larger than its bytes": pth({"fc.bias": torch.zeros(1).expand(2**40)}),
    "sparse": pth({"fc.bias": torch.zeros(5).to_sparse()}),
    "meta": pth({"fc.bias": torch.zeros(5, device="meta")}),
    "names that are numbers": pth({1: torch.zeros(1)}),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pth(kind: str, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(HOSTILE[kind])
    assert not ends_well(tmp_path / "m.pth")


def test_the_refusal_of_code_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "model": Tiny()}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="Tiny.*runs no code.*torch.save.model.state_dict"):
        files.read(tmp_path / "m.pth")


def test_a_config_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_JSON", 100)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "x": "y" * 100}))
    with pytest.raises(CheckpointError, match="bytes are too many"):
        create_model(f"local-dir:{tmp_path}")


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="root may read everything"
)
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(WHOLE)
    path.chmod(0)
    assert not ends_well(path)


def test_weights_in_a_folder_are_chosen_by_name(tmp_path: Path) -> None:
    (tmp_path / "z.pth").write_bytes(PTH)
    assert files.in_folder(tmp_path).name == "z.pth"
    (tmp_path / "model.safetensors").write_bytes(WHOLE)
    assert files.in_folder(tmp_path).name == "model.safetensors"
