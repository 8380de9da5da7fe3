"""From a file to a model: read, adapt, check, assign; all or nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import CheckpointError, nearest
from .weights import Weights

State = dict[str, torch.Tensor]

# Where training scripts keep the weights, best first
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "params")
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "body.", "encoder.", "net.")


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of a checkpoint.

    Attributes:
        source: where it came from.
        loaded: number of tensors that were taken as they are.
        converted: key to what was done to it.
        dropped: key to why it was not taken.
        initial: names of the model's tensors that keep their initial values.
    """

    source: str
    loaded: int
    converted: Mapping[str, str]
    dropped: Mapping[str, str]
    initial: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.loaded} tensors loaded"]
        lines += [f"  converted {key}: {how}" for key, how in self.converted.items()]
        lines += [f"  dropped {key}: {why}" for key, why in self.dropped.items()]
        lines += [f"  initial {key}" for key in self.initial]
        return "\n".join(lines)


def read(path: str | Path) -> State:
    """The tensors of a ``.safetensors``, ``.pth``/``.pt``/``.bin`` file, or a sharded index
    (``*.index.json``), memory-mapped.

    Raises:
        CheckpointError: missing, empty, truncated, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        near = path.parent.glob("*") if path.parent.is_dir() else ()
        raise CheckpointError(
            f"Checkpoint {str(path)!r} {what}." + nearest(path.name, [p.name for p in near])
        )
    if path.stat().st_size == 0:
        raise CheckpointError(f"Checkpoint {str(path)!r} is empty.")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"Checkpoint {str(path)!r} is a Git LFS pointer, not the file: run 'git lfs pull'."
        )
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            from safetensors.torch import load_file

            return dict(load_file(path))
        zipped = head.startswith(b"PK")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        why = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"Checkpoint {str(path)!r} cannot be read: it is truncated, not a checkpoint, or "
            f"holds more than tensors ({type(error).__name__}: {why})."
        ) from error
    return unwrap(content, source=str(path))


def _read_shards(path: Path) -> State:
    try:
        files: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is no index of shards: {error!r}.") from error
    state: State = {}
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{str(path)!r} names {name!r}, which is outside its folder.")
        shard = read(path.parent / name)
        state.update({k: v for k, v in shard.items() if files.get(k) == name})
    missing = [key for key in files if key not in state]
    if missing:
        raise CheckpointError(f"{str(path)!r}: no shard has {_some(missing)}.")
    return state


def unwrap(content: Any, *, source: str = "checkpoint") -> State:
    """The state dict in what a training script saved, EMA weights first.

    Raises:
        CheckpointError: there is none.
    """
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        inner = next((content[k] for k in CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    if isinstance(content, Mapping):
        state = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        if state:
            return state
    raise CheckpointError(f"{source!r} holds no tensors: a {type(content).__name__}.")


def strip_prefix(state: Mapping[str, torch.Tensor], wanted: Iterable[str]) -> tuple[State, str]:
    """Without the prefix (or prefixes) that a wrapper added, if that is what makes it fit."""
    names, prefix = set(wanted), ""
    for _ in range(3):
        if any(key[len(prefix) :] in names for key in state if key.startswith(prefix)):
            break
        rest = [key[len(prefix) :] for key in state if key.startswith(prefix)]
        longer = next((p for p in PREFIXES if any(key.startswith(p) for key in rest)), None)
        if longer is None:
            return dict(state), ""
        prefix += longer
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}, prefix


def adapt_input_conv(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """A convolution's weight (O, C, kh, kw) for another number of input channels.

    To one channel it is summed: a grey picture, repeated, gives the same. To others it is repeated
    and scaled by ``C / in_chans``, so that the response keeps its size.
    """
    have = weight.shape[1]
    if in_chans == have:
        return weight
    values = weight.float()
    if in_chans == 1:
        return values.sum(1, keepdim=True).to(weight.dtype)
    repeated = values.repeat(1, math.ceil(in_chans / have), 1, 1)[:, :in_chans]
    return (repeated * (have / in_chans)).to(weight.dtype)


def fit(model: Any, state: Mapping[str, torch.Tensor], cfg: Weights | None = None) -> tuple[
    State, dict[str, str], dict[str, str]
]:
    """Adapt a state dict to a model's layout, size, ``in_chans`` and ``num_classes``.

    Returns:
        the adapted dict, what was converted, what was dropped and why. Nothing is written into
        ``state`` or ``model``.
    """
    target = model.state_dict()
    found, prefix = strip_prefix(state, target)
    converted = {"*": f"prefix {prefix!r} removed"} if prefix else {}
    if hasattr(model, "convert_state_dict"):
        before, found = found, model.convert_state_dict(found)
        changed = [k for k, v in found.items() if before.get(k) is not v]
        converted |= dict.fromkeys(changed, "from another layout or size")
        gone = [k for k in before if k not in found]
        converted |= dict.fromkeys(gone, "renamed, merged, or nothing that the model has")
    dropped: dict[str, str] = {}
    names = getattr(model, "first_conv", ())
    for name in (names,) if isinstance(names, str) else names:
        key = f"{name}.weight"
        old, new = found.get(key), target.get(key)
        if old is None or new is None or old.shape[1] == new.shape[1] or old.ndim != 4:
            continue
        found[key] = adapt_input_conv(old, new.shape[1])
        converted[key] = f"{old.shape[1]} input channels to {new.shape[1]}"
    names = getattr(model, "last_fc", ())
    offset = cfg.label_offset if cfg is not None and cfg.label_offset else 0
    for name in (names,) if isinstance(names, str) else names:
        for key in (f"{name}.weight", f"{name}.bias"):
            old, new = found.get(key), target.get(key)
            if old is None:
                continue
            if new is None:
                del found[key]
                dropped[key] = "the model has no classifier"
            elif offset and old.shape[0] == new.shape[0] + offset:
                found[key] = old[offset:]
                converted[key] = f"{offset} background class removed"
            elif old.shape[0] != new.shape[0]:
                del found[key]
                dropped[key] = f"{old.shape[0]} classes, the model has {new.shape[0]}"
    return found, converted, dropped


def load(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str, cfg: Weights | None = None
) -> LoadReport:
    """Put a state dict into a model, adapted; the tensors themselves where dtype and device fit.

    Raises:
        CheckpointError: anything is missing, unexpected or of another shape. The model is then
            what it was.
    """
    target = model.state_dict()
    found, converted, dropped = fit(model, state, cfg)
    optional = {k for k in dropped if k in target}
    if cfg is not None and not cfg.num_classes:
        names = getattr(model, "last_fc", ())
        heads = (names,) if isinstance(names, str) else names
        ends = ("weight", "bias")
        optional |= {f"{name}.{end}" for name in heads for end in ends} & set(target)
    optional |= {k for k in target if k.endswith("num_batches_tracked")}
    missing = [k for k in target if k not in found and k not in optional]
    unexpected = [k for k in found if k not in target]
    misshaped = [
        f"{k} {tuple(v.shape)}, not {tuple(target[k].shape)}"
        for k, v in found.items()
        if k in target and v.shape != target[k].shape
    ]
    if missing or unexpected or misshaped:
        raise CheckpointError(
            _diff(type(model).__name__, source, len(found), missing, unexpected, misshaped)
        )
    initial = tuple(k for k in target if k not in found)
    ready = {k: v.to(target[k]) if target[k].device.type != "meta" else v for k, v in found.items()}
    # assign: a tensor that is mapped from a file is taken, not copied
    model.load_state_dict(ready, strict=False, assign=True)
    return LoadReport(source, len(ready) - len(set(converted) & set(ready)), converted, dropped, initial)


def _some(items: list[str], *, most: int = 5) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


def _diff(
    model: str, source: str, total: int, missing: list[str], unexpected: list[str],
    misshaped: list[str],
) -> str:  # fmt: skip
    lines = [f"{source!r} does not fit {model} ({total} tensors); nothing was loaded."]
    if missing:
        lines.append(f"  missing ({len(missing)}): {_some(missing)}")
    if unexpected:
        lines.append(f"  unexpected ({len(unexpected)}): {_some(unexpected)}")
        hint = nearest(unexpected[0], missing)
        if hint:
            lines.append(f"  {unexpected[0]}:{hint}")
    if misshaped:
        lines.append(f"  of another shape ({len(misshaped)}): {_some(misshaped)}")
    return "\n".join(lines)
