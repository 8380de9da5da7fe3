"""From tensors to a model: convert, adapt, check, assign; all or nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, nearest
from ..weights import Weights
from . import choosing, conversion, files, keymap, stored
from .conversion import Draft, one_error
from .files import some
from .stored import State

# What to do where only the classifier is missing
ADVICE = "num_classes=n makes a new one, num_classes=0 or features_only=True needs none."


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """The result of loading a checkpoint. Printing it gives a summary.

    Attributes:
        source: where it came from.
        steps: what was done to all of it: averaged weights chosen, a prefix removed, another
            library's names translated.
        taken: names of the model's tensors that are the file's, value for value.
        converted: names of those whose values were adapted, to what was done.
        dropped: names of the file's tensors that were not taken, to why.
        initial: names of the model's tensors that keep their initial values.
        nonfinite: names of those with values that are NaN or infinite; of mapped files, which are
            not read here, none.

    Example:
        >>> import featnet
        >>> model = featnet.create_model("test_resnet", num_classes=10)
        >>> report = featnet.load_checkpoint(model, model.state_dict())
        >>> report.loaded == len(model.state_dict()), report.dropped
        (True, {})
    """

    source: str
    steps: tuple[str, ...]
    taken: tuple[str, ...]
    converted: Mapping[str, str]
    dropped: Mapping[str, str]
    initial: tuple[str, ...]
    nonfinite: tuple[str, ...] = ()

    @property
    def loaded(self) -> int:
        """Number of tensors that were taken as they are."""
        return len(self.taken)

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded"]
        parts += [f"{len(self.converted)} converted"] * bool(self.converted)
        parts += [f"{len(self.dropped)} dropped"] * bool(self.dropped)
        parts += [f"{len(self.initial)} left at their initial values"] * bool(self.initial)
        lines = [f"{self.source}: {', '.join(parts)}", *(f"  {step}" for step in self.steps)]
        lines += [f"  converted {some(keys)}: {how}" for how, keys in _grouped(self.converted)]
        lines += [f"  dropped {some(keys)}: {why}" for why, keys in _grouped(self.dropped)]
        lines += [f"  initial {some(self.initial)}"] * bool(self.initial)
        lines += [f"  NaN or infinity in {some(self.nonfinite)}"] * bool(self.nonfinite)
        return "\n".join(lines)


def _grouped(reasons: Mapping[str, str]) -> Iterable[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        groups.setdefault(reason, []).append(key)
    return groups.items()


def read(path: str | Path, *, prefix: str | None = None) -> State:
    """The tensors of a file, read into memory; of its dictionaries those of the largest.

    Args:
        prefix: the dictionary, or the start of names, that is meant.

    Raises:
        CheckpointError: it cannot be read, holds none, or several networks.
    """
    option = choosing.choose(files.read(path), None, prefix=prefix)
    return stored.fetch(option.tensors)


# Adaptation -------------------------------------------------------------------------------------


def adapt_input_conv(weight: torch.Tensor, in_chans: int) -> torch.Tensor:
    """A convolution's weight (O, C, kh, kw) for another number of input channels.

    To one channel it is summed: a grey image, repeated, gives the same. To others it is repeated
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


def names_of(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """One or several names as several."""
    return (names,) if isinstance(names, str) else names


def first(names: str | tuple[str, ...]) -> str:
    """Of one or several names the first."""
    return names_of(names)[0]


def _family_changes(draft: Draft, model: object) -> None:
    """Apply the family's own conversion: older layouts, position tables of another size."""
    change = getattr(model, "convert_state_dict", None)
    if change is None:
        return
    before = draft.tensors
    by_id = {id(value): key for key, value in before.items()}
    after: Mapping[str, torch.Tensor] = change(before)
    renamed = {by_id[id(v)]: k for k, v in after.items() if id(v) in by_id and by_id[id(v)] != k}
    gone = [k for k in before if k not in after and k not in renamed]
    for key in gone:
        draft.drop(key, f"{type(model).__name__} has no use for it")
    if renamed:
        draft.rename(lambda key: renamed.get(key, key))
        draft.steps.append(f"an older layout: {len(renamed)} tensors renamed")
    for key, value in after.items():
        old = draft.tensors.get(key)
        if old is not value:
            what = (
                "made from others" if old is None else f"{list(old.shape)} to {list(value.shape)}"
            )
            draft.put(key, value, what)


def _adapt_input(draft: Draft, model: object, target: Mapping[str, torch.Tensor]) -> None:
    for name in names_of(getattr(model, "first_conv", ())):
        key = f"{name}.weight"
        old, new = draft.tensors.get(key), target.get(key)
        if old is None or new is None or old.ndim != 4 or new.ndim != 4:
            continue
        if old.shape[1] != new.shape[1] and old.shape[0] == new.shape[0] and old.shape[1]:
            # behind a stem that makes channels of pixels, the image's channels lie innermost
            chans = getattr(model, "in_chans", new.shape[1])
            pixels = new.shape[1] // chans
            if old.shape[1] % pixels:
                continue
            apart = torch.unflatten(old, 1, (pixels, -1)).flatten(0, 1)
            adapted = torch.unflatten(adapt_input_conv(apart, chans), 0, (-1, pixels)).flatten(1, 2)
            draft.put(key, adapted, f"{old.shape[1]} input channels to {new.shape[1]}")


def _adapt_classes(
    draft: Draft, model: object, target: Mapping[str, torch.Tensor], offset: int
) -> None:
    for name in names_of(getattr(model, "last_fc", ())):
        for key in (f"{name}.weight", f"{name}.bias"):
            old, new = draft.tensors.get(key), target.get(key)
            if old is None:
                continue
            if new is None:
                draft.drop(key, "the model has no classifier")
            elif offset and old.ndim and old.shape[0] == new.shape[0] + offset:
                draft.put(key, old[offset:], f"{offset} background class removed")
            elif old.ndim and old.shape[0] != new.shape[0]:
                draft.drop(key, f"{old.shape[0]} classes, the model has {new.shape[0]}")


@dataclasses.dataclass(frozen=True)
class Choices:
    """The caller's choices about a file.

    Attributes:
        cfg: what is known of the checkpoint.
        prefix: the dictionary, or the start of names, that is meant.
        mmap: map the file instead of reading it.
        auto_mapping: match names that were flattened or prefixed.
    """

    cfg: Weights | None = None
    prefix: str | None = None
    mmap: bool = False
    auto_mapping: bool = True


def translate(model: Any, contents: files.Contents, choices: Choices = Choices()) -> Draft:
    """Tensors under the model's names, with the file's own input channels and classes.

    Raises:
        CheckpointError: another library's network that computes something else than the model,
            tensors of shapes that it cannot have, or several networks in one file.
    """
    with one_error(model):
        option = choosing.choose(contents, model, prefix=choices.prefix)
        if option.layout is None and contents.format:
            conversion.refuse(option.tensors, model, format=contents.format)
        draft = Draft(option.tensors, option.steps)
        draft.strip(option.prefix)
        if option.layout is not None:
            draft.fetch(mmap=choices.mmap)
            conversion.apply(draft, model, option.layout, option.root)
            _family_changes(draft, model)
            return draft
        target = model.state_dict()
        _unwrap(draft, option, choosing.wrappers_of(target))
        if choices.auto_mapping:
            keymap.apply(draft, target)
        draft.fetch(mmap=choices.mmap)
        _family_changes(draft, model)
        if not option.prefix or draft.tensors.keys() >= target.keys():
            return draft
        whole = Draft(option.tensors, option.steps)  # some layouts are known by their prefix
        whole.fetch(mmap=choices.mmap)
        _family_changes(whole, model)
        better = len(whole.tensors.keys() & target) > len(draft.tensors.keys() & target)
        return whole if better else draft


def _unwrap(draft: Draft, option: choosing.Option, wrappers: frozenset[str]) -> None:
    """Take out what wrappers put into names, and bring children of a Sequential under theirs."""
    words = {part for name in draft.tensors for part in name.split(".")} & wrappers
    plain = {choosing.unwrap(name, wrappers) for name in draft.tensors}
    if words and len(plain) == len(draft.tensors):
        draft.rename(lambda name: choosing.unwrap(name, wrappers))
        draft.steps.append(f"{', '.join(map(repr, sorted(words)))} removed from names")
    if option.children:

        def child(name: str) -> str:
            number, dot, rest = name.partition(".")
            return f"{option.children.get(number, number)}{dot}{rest}"

        draft.rename(child)
        shown = ", ".join(f"{old} is {new!r}" for old, new in option.children.items())
        draft.steps.append(f"children of a Sequential: {shown}")


def fit(model: Any, contents: files.Contents, choices: Choices = Choices()) -> Draft:
    """Tensors under the model's names, with its input channels and classes.

    Nothing is written into the tensors or the model.

    Raises:
        CheckpointError: as :func:`translate`.
    """
    draft, target = translate(model, contents, choices), model.state_dict()
    cfg = choices.cfg
    _adapt_input(draft, model, target)
    _adapt_classes(draft, model, target, (cfg.label_offset if cfg is not None else 0) or 0)
    return draft


# Loading ----------------------------------------------------------------------------------------


def load(
    model: nn.Module,
    state: Mapping[str, Any] | files.Contents,
    *,
    source: str,
    cfg: Weights | None = None,
) -> LoadReport:
    """Put what a file holds into a model: :func:`fit`, then :func:`assign`.

    Raises:
        CheckpointError: anything is missing, unexpected or of another shape. The model is then
            what it was.
    """
    contents = state if isinstance(state, files.Contents) else files.Contents(state, source)
    return assign(model, fit(model, contents, Choices(cfg)), source=source, cfg=cfg)


def assign(
    net: nn.Module,
    draft: Draft,
    *,
    source: str,
    cfg: Weights | None = None,
    adopt: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    optional: Collection[str] = (),
    pruned: Collection[str] = (),
    headless: bool = False,
    advice: str = ADVICE,
) -> LoadReport:
    """Put tensors under a network's names into it, or into an extractor that was cut from it.

    Args:
        adopt: the tensors themselves become the network's where dtype and device fit, for one that
            nobody has used yet. Without it they are copied into those of the network, which an
            optimiser may hold.
        device, dtype: of the tensors that are put in; by default as the network's.
        optional: names of the network's tensors that may be absent.
        pruned: names that the whole network has and ``net`` has not; tensors of these are dropped.
        headless: no classifier is meant to be complete: tensors of modules that the network has not
            are dropped, too.
        advice: what an error says where only the classifier is missing.

    Raises:
        CheckpointError: anything is missing, unexpected or of another shape. The network is then
            what it was.
    """
    target, network = net.state_dict(), net.__dict__.get("body", net)  # an extractor's network
    for key in [key for key in draft.tensors if key in pruned]:
        draft.drop(key, "no level needs it")
    if headless and not draft.layout:  # of another library's names none may be left over
        _drop_heads(draft, network, {*target, *pruned})
    tensors = draft.tensors
    missing = [key for key in _missing(network, draft, target, cfg) if key not in optional]
    unexpected = [k for k in tensors if k not in target]
    misshaped = [
        f"{k} {tuple(v.shape)}, not {tuple(target[k].shape)}"
        for k, v in tensors.items()
        if k in target and v.shape != target[k].shape
    ] + [
        f"{k} of {v.dtype}, not {target[k].dtype}"
        for k, v in tensors.items()
        if k in target and not _castable(v.dtype, target[k].dtype)
    ]
    if missing or unexpected or misshaped:
        raise CheckpointError(_diff(network, source, draft, missing, unexpected, misshaped, advice))
    initial = tuple(k for k in target if k not in tensors)
    unborn = [k for k in initial if target[k].is_meta] + [
        name for name, b in net.named_buffers() if b.is_meta and name not in target
    ]
    on_meta = any(value.is_meta for value in target.values())
    if unborn and on_meta:
        raise CheckpointError(
            f"The model is on the meta device, and {source!r} does not hold {some(unborn)}: build "
            "it with create_model(..., checkpoint_path=) instead. Nothing was loaded."
        )
    empty = [k for k, v in tensors.items() if v.is_meta and not target[k].is_meta]
    if empty:
        raise CheckpointError(
            f"{source!r}: {some(empty)} on the meta device have no values. Nothing was loaded."
        )
    names = tuple(tensors)
    nonfinite = () if draft.mapped else tuple(k for k in names if not _is_finite(tensors[k]))
    if adopt or on_meta:
        for key in names:
            tensors[key] = _place(tensors[key], target[key], device, dtype)
    net.load_state_dict(tensors, strict=False, assign=adopt or on_meta)
    taken = tuple(k for k in names if k not in draft.converted)
    return LoadReport(
        source, tuple(draft.steps), taken, draft.converted, draft.dropped, initial, nonfinite
    )


def _is_finite(value: torch.Tensor) -> bool:
    """Tell if no value is NaN or infinite."""
    if not value.numel() or not value.is_floating_point() or value.is_meta:
        return True
    if value.itemsize == 1:
        value = value.half()
    low, high = torch.aminmax(value)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _drop_heads(draft: Draft, network: Any, whole: Collection[str]) -> None:
    """Drop tensors of modules that the network has not: a head of the file's own."""
    children = {name.partition(".")[0] for name in whole} | {n for n, _ in network.named_children()}
    modules = {name for name, _ in network.named_modules()}
    heads = tuple(f"{name}." for name in names_of(getattr(network, "last_fc", ())))
    around = tuple(f"{head[:-1].rpartition('.')[0]}." for head in heads if head.count(".") > 1)
    for key in [key for key in draft.tensors if key not in whole]:
        module = key.rpartition(".")[0]
        if key.partition(".")[0] not in children:
            draft.drop(key, f"the network has no {key.partition('.')[0]!r}")
        elif key.startswith(heads) or (key.startswith(around) and module not in modules):
            draft.drop(key, "the network's classifier has no such tensor")


def _missing(
    model: Any, draft: Draft, target: Mapping[str, torch.Tensor], cfg: Weights | None
) -> list[str]:
    """List the tensors that a file must have and lacks."""
    optional = set(draft.left_out)
    if cfg is not None and not cfg.num_classes:  # nor, in some files, the norm before a classifier
        beside = tuple(f"{n.rpartition('.')[0]}." for n in names_of(model.last_fc) if "." in n)
        optional |= _head(model) | {key for key in target if key.startswith(beside)}
    return [
        key
        for key in target
        if key not in draft.tensors
        and key not in optional
        and not key.endswith("num_batches_tracked")
    ]


def _head(model: object) -> set[str]:
    """Names of the classifier's tensors."""
    names = names_of(getattr(model, "last_fc", ()))
    return {f"{name}.{end}" for name in names for end in ("weight", "bias")}


def _castable(stored: torch.dtype, wanted: torch.dtype) -> bool:
    """Between floating-point types values keep their meaning; counters may have become floats."""
    if stored.is_complex or stored is torch.bool:
        return stored is wanted
    return stored.is_floating_point or not wanted.is_floating_point


def _place(
    value: torch.Tensor, like: torch.Tensor, device: torch.device | None, dtype: torch.dtype | None
) -> torch.Tensor:
    """The tensor on its device, in its dtype: itself, where it is so already."""
    wanted = dtype if dtype is not None and like.is_floating_point() else like.dtype
    where = device if device is not None else like.device
    if where.type == "meta":
        return value if dtype is None else value.to(wanted)
    return value.to(where, wanted)


def _diff(
    model: nn.Module,
    source: str,
    draft: Draft,
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
    advice: str,
) -> str:
    total, name = len(draft.names), type(model).__name__
    lines = [f"{source!r} does not fit {name} ({total} tensors); nothing was loaded."]
    if missing:
        lines.append(f"  missing ({len(missing)}): {some(missing)}")
    if unexpected:
        lines.append(f"  unexpected ({len(unexpected)}): {some(unexpected)}")
        hint = nearest(unexpected[0], missing)
        if hint:
            lines.append(f"  {unexpected[0]}:{hint}")
    if misshaped:
        kind = "shape" if all("(" in item for item in misshaped) else "shape or kind"
        lines.append(f"  of another {kind} ({len(misshaped)}): {some(misshaped)}")
    if missing and set(missing) <= _head(model):
        lines.append(f"  The file has no classifier: {advice}")
    blocks = [
        name for name, m in model.named_modules() if callable(getattr(m, "reparameterize", None))
    ]
    inside = tuple(f"{name}." if name else "" for name in blocks)
    if unexpected and blocks and all(k.startswith(inside) for k in (*missing, *unexpected)):
        lines.append(
            "  It may be of the network after reparameterize(): create_model(..., "
            "reparameterized=True) takes it."
        )
    layout = conversion.recognise(draft.names)
    if layout is not None and layout.family not in {c.__name__ for c in type(model).__mro__}:
        lines.append(f"  It looks like {layout.name}.")
    return "\n".join(lines)
