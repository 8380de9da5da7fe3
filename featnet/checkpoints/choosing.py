"""Find the network in a file: by the names and shapes of tensors, not by what holds them.

A training script keeps weights in dictionaries of any name, wrappers put words before and into
names, and several networks may lie in one file. Every dictionary with tensors is a candidate, with
every prefix under which the network's names are. The one that fits best is taken, averaged weights
before the others; of two that fit alike none is.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import nn

from ..errors import CheckpointError, nearest
from . import conversion
from .conversion import Layout
from .files import Contents, some
from .pickled import NotDense
from .stored import Leaf, Stored, place_of

Path = tuple[str, ...]
Shapes = Mapping[str, torch.Size]

# What torch and trainers put into names, anywhere
WRAPPERS = frozenset(
    {"_checkpoint_wrapped_module", "_forward_module", "_fsdp_wrapped_module", "_orig_mod", "module"}
)
# Words in a name that holds averaged weights
AVERAGED = frozenset(
    {"average", "averaged", "ema", "momentum", "polyak", "swa", "target", "teacher"}
)
COUNTERS = ("num_batches_tracked", "n_averaged")  # no weights
DEPTH, MOST = 6, 100_000  # of dictionaries in each other; of tensors that are looked at


@dataclasses.dataclass(frozen=True)
class Option:
    """A way to see the network in a file.

    Attributes:
        path: keys of the dictionaries that lead to the tensors.
        tensors: of that dictionary, as the file names them.
        prefix: what is before the network's names.
        names: the names of the tensors that the network has, as the file names them.
        score: how well it fits; the larger the better.
        layout, root: another library's, see :func:`conversion.recognise`.
        children: of a Sequential of the network's children, number to name.
        joined: several dictionaries seen as one.
    """

    path: Path
    tensors: Mapping[str, Leaf]
    prefix: str = ""
    names: tuple[str, ...] = ()
    score: tuple[int, ...] = ()
    layout: Layout | None = None
    root: str = ""
    children: Mapping[str, str] = dataclasses.field(default_factory=dict)
    joined: bool = False

    @property
    def label(self) -> str:
        """The path to the network's names: dictionaries and prefix."""
        return "".join(f"{key}." for key in self.path) + self.prefix

    @property
    def averaged(self) -> str:
        """The part of the label that says that weights are averaged, ``""`` where none does."""
        parts = [*self.path, *self.prefix.split(".")]
        return next((part for part in parts if AVERAGED & set(_words(part))), "")

    @property
    def steps(self) -> tuple[str, ...]:
        """The words of a report about the choice."""
        return (f"averaged weights, {self.averaged!r}",) if self.averaged else ()


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


def unwrap(name: str, wrappers: frozenset[str] = WRAPPERS) -> str:
    """A name without what wrappers put into it."""
    parts = name.split(".")
    return ".".join(part for part in parts if part not in wrappers)


def wrappers_of(target: Iterable[str]) -> frozenset[str]:
    """Find the parts of names that only wrappers add."""
    return WRAPPERS - {part for name in target for part in name.split(".")}


# Collecting -------------------------------------------------------------------------------------


def collect(content: object) -> list[Option]:
    """Every dictionary that holds tensors, and every dictionary of such, with dotted names."""
    options: list[Option] = []
    _walk(content, (), options, set())
    return options


def _walk(value: object, path: Path, options: list[Option], above: set[int]) -> dict[str, Leaf]:
    """All tensors in a value by their dotted names; adds the dictionaries in it to ``options``."""
    if isinstance(value, (list, tuple)):
        value = _pairs(value)
    if not isinstance(value, Mapping) or id(value) in above or len(path) > DEPTH:
        return {}
    above = above | {id(value)}
    own: dict[str, Leaf] = {}
    below: dict[str, Leaf] = {}
    for key, item in value.items():
        name = str(key)
        if _is_tensor(item):
            if isinstance(key, str):
                own[name] = item
        elif isinstance(item, (Mapping, list, tuple)):
            inner = _walk(item, (*path, name), options, above)
            if len(below) < MOST:
                below.update({f"{name}.{end}": leaf for end, leaf in inner.items()})
    if own:
        options.append(Option(path, own))
    if below:
        options.append(Option(path, {**own, **below}, joined=True))
    return {**own, **below}


def _is_tensor(value: object) -> bool:
    return isinstance(value, (Stored, torch.Tensor, NotDense))


def _pairs(value: Any) -> Any:
    """A list of names and tensors as a dictionary."""
    pairs: list[Any] = [
        item for item in value if isinstance(item, (list, tuple)) and len(item) == 2
    ]
    named = all(isinstance(key, str) and _is_tensor(leaf) for key, leaf in pairs)
    return dict(pairs) if pairs and named and len(pairs) == len(value) else None


def _is_dense(leaf: object) -> bool:
    if isinstance(leaf, torch.Tensor):
        return leaf.layout is torch.strided and not leaf.is_quantized
    return isinstance(leaf, Stored)


# Choosing ---------------------------------------------------------------------------------------


def choose(contents: Contents, model: nn.Module | None, *, prefix: str | None = None) -> Option:
    """The network in a file.

    Args:
        model: the whole network; None takes the largest dictionary.
        prefix: the dictionary, or the start of the names, that is meant.

    Raises:
        CheckpointError: there are no tensors, or nothing under the prefix, or several networks.
    """
    options = collect(contents.content)
    if not options:
        content = contents.content
        what = "an empty dictionary" if content == {} else f"a {type(content).__name__}"
        raise CheckpointError(f"{contents.source!r} holds no tensors by name: {what}.")
    if prefix:
        options = list(_under(options, prefix, contents.source))
    if model is None:
        single = [option for option in options if not option.joined]
        option = _resolve([_sized(option) for option in single or options], contents.source)
    else:
        target = {name: value.shape for name, value in model.state_dict().items()}
        option = _best(options, model, target, contents)
    start = option.prefix if option.layout is None else ""
    for name, leaf in option.tensors.items():
        if name.startswith(start) and not _is_dense(leaf):
            raise CheckpointError(
                f"{contents.source!r}: {name!r} is no dense tensor that the file holds."
            )
    dense = {name: leaf for name, leaf in option.tensors.items() if _is_dense(leaf)}
    return dataclasses.replace(option, tensors=dense)


def _best(options: list[Option], model: nn.Module, target: Shapes, contents: Contents) -> Option:
    if len(options) == 1 and not contents.format and options[0].tensors.keys() == target.keys():
        return options[0]
    foreign = _foreign(options, model, target, contents.format)
    if foreign:
        return _resolve(foreign, contents.source)
    wrappers = wrappers_of(target)
    native = [each for option in options for each in _native(option, target, wrappers)]
    enough = sum(not name.endswith(COUNTERS) for name in target) // 2
    fitting = [each for each in native if each.score[0] >= max(1, enough)]
    if not fitting:
        children = [each for option in options for each in _children(option, model, target)]
        fitting = [each for each in children if each.score[0] >= max(1, enough)]
    if fitting:
        return _resolve(fitting, contents.source)
    # Names that only the family knows: of the dictionaries the one with most of the network's
    # shapes, and the prefix under which most names fit
    best: dict[int, Option] = {}
    for each in native:
        known = best.get(id(each.tensors))
        if known is None or each.score > known.score:
            best[id(each.tensors)] = each
    ranked = []
    for option in options:
        prefix = best.get(id(option.tensors), option).prefix
        score = _overlap(option.tensors.values(), target)
        ranked.append(
            dataclasses.replace(option, prefix=prefix, score=(score,), names=(*option.tensors,))
        )
    return _resolve(ranked, contents.source)


def _sized(option: Option) -> Option:
    dense = (math.prod(leaf.shape) for leaf in option.tensors.values() if _is_dense(leaf))
    return dataclasses.replace(option, score=(sum(dense),), names=tuple(option.tensors))


def _overlap(leaves: Iterable[Any], target: Shapes) -> int:
    """Number of tensors whose shapes the network has, each as often as it has it."""
    shapes = collections.Counter(tuple(leaf.shape) for leaf in leaves if _is_dense(leaf))
    return (shapes & collections.Counter(map(tuple, target.values()))).total()


def _foreign(
    options: Iterable[Option], model: nn.Module, target: Shapes, format: str
) -> list[Option]:
    """Find networks in layouts of other libraries: of the first that fits, all places."""
    plain = [(option, *_unwrapped(option.tensors, target)) for option in options]
    for layout, root in conversion.ways(conversion.layouts(model, format=format)):
        fitting = []
        for option, tensors, _ in plain:
            marks = [mark[len(root) :] for mark in layout.marks]
            for prefix in conversion.find_prefixes(tensors, marks):
                names = tuple(name for name in tensors if name.startswith(prefix))
                score = (_overlap((tensors[name] for name in names), target),)
                fitting.append(
                    dataclasses.replace(
                        option,
                        prefix=prefix,
                        names=names,
                        score=score,
                        layout=layout,
                        root=root,
                        tensors=tensors,
                    )
                )
        if fitting:
            return fitting
    return []


def _unwrapped(tensors: Mapping[str, Leaf], target: Iterable[str]) -> tuple[dict[str, Leaf], bool]:
    """Tensors by names without wrappers' words, as far as these stay different."""
    wrappers = wrappers_of(target)
    plain = {unwrap(name, wrappers): leaf for name, leaf in tensors.items()}
    plain.pop("n_averaged", None)
    same = len(plain) < len(tensors) - ("n_averaged" in tensors)
    return (dict(tensors), False) if same else (plain, True)


def _native(option: Option, target: Shapes, wrappers: frozenset[str]) -> Iterator[Option]:
    """The prefixes under which names of the network are."""
    starts = {name.partition(".")[0] for name in target}
    places: dict[str, list[tuple[str, str]]] = {}
    for name in option.tensors:
        parts = name.split(".")
        kept = [i for i, part in enumerate(parts) if part not in wrappers]
        for at in kept:
            if parts[at] not in starts:
                continue
            end = ".".join(parts[i] for i in kept if i >= at)
            if end in target:
                prefix = "".join(f"{part}." for part in parts[:at])
                places.setdefault(prefix, []).append((name, end))
    most = max(map(len, places.values()), default=0)
    for prefix, pairs in places.items():
        if 2 * len(pairs) < most:
            continue
        weights = [(name, end) for name, end in pairs if not end.endswith(COUNTERS)]
        same = sum(_shape(option.tensors[name]) == target[end] for name, end in weights)
        ends = {end for _, end in pairs}
        rest = (
            unwrap(name[len(prefix) :], wrappers)
            for name in option.tensors
            if name.startswith(prefix)
        )
        alien = sum(end not in ends and end.partition(".")[0] in starts for end in rest)
        yield dataclasses.replace(
            option,
            prefix=prefix,
            names=tuple(name for name, _ in pairs),
            score=(same, -alien, len(weights)),
        )


def _shape(leaf: Any) -> torch.Size | None:
    return leaf.shape if _is_dense(leaf) else None


def _children(option: Option, model: nn.Module, target: Shapes) -> Iterator[Option]:
    """Places where names begin with numbers: the network's children in a Sequential."""
    wrappers = wrappers_of(target)
    groups: dict[str, dict[str, list[str]]] = {}
    for name in option.tensors:
        parts = name.split(".")
        at = next((i for i, part in enumerate(parts[:-1]) if part.isdigit()), None)
        if at is not None:
            prefix = "".join(f"{part}." for part in parts[:at])
            groups.setdefault(prefix, {}).setdefault(parts[at], []).append(name)
    stateful = list(dict.fromkeys(name.partition(".")[0] for name in target if "." in name))
    for prefix, members in groups.items():
        children = dict(zip(sorted(members, key=int), stateful, strict=False))
        names, same = [], 0
        for number, child in children.items():
            for name in members[number]:
                end = unwrap(f"{child}.{name[len(prefix) + len(number) + 1 :]}", wrappers)
                if end in target and not end.endswith(COUNTERS):
                    names.append(name)
                    same += _shape(option.tensors[name]) == target[end]
        if names:
            yield dataclasses.replace(
                option, prefix=prefix, names=tuple(names), score=(same,), children=children
            )


def _resolve(options: list[Option], source: str) -> Option:
    """The best of several, averaged weights first.

    Raises:
        CheckpointError: two are equally good and not the same tensors.
    """
    top = max(option.score for option in options)
    different: dict[frozenset[Any], Option] = {}
    for option in options:
        if option.score != top:
            continue
        tensors = (option.tensors[name] for name in option.names)
        key = frozenset(place_of(leaf) if _is_dense(leaf) else id(leaf) for leaf in tensors)
        known = different.get(key)
        if known is None or (len(option.path), -len(option.tensors)) > (
            len(known.path),
            -len(known.tensors),
        ):
            different[key] = option
    equal = list(different.values())
    averaged = [option for option in equal if option.averaged]
    equal = averaged or equal
    if len(equal) > 1:
        _refuse_tie(equal, source)
    return equal[0]


def _refuse_tie(options: list[Option], source: str) -> NoReturn:
    labels = [option.label or "(no prefix)" for option in options]
    raise CheckpointError(
        f"{source!r} holds {len(options)} networks that fit alike, under "
        f"{some(map(repr, labels), most=8)}: say which one is meant, "
        f"checkpoint_prefix={labels[0].rstrip('.')!r} for instance."
    )


def _under(options: list[Option], prefix: object, source: str) -> Iterator[Option]:
    """Return the part of a file in a dictionary, or under a start of names, that was asked for.

    Raises:
        CheckpointError: nothing is.
    """
    wanted = f"{prefix}".strip(".")
    start, there = f"{wanted}.", False
    for option in options:
        label = "".join(f"{key}." for key in option.path)
        if label.startswith(start):
            there = True
            yield option
            continue
        cut: dict[str, Leaf] = {}
        for name, leaf in option.tensors.items():
            for whole in (name, label + name):
                if whole.startswith(start):
                    cut.setdefault(whole[len(start) :], leaf)
        if cut:
            there = True
            yield dataclasses.replace(option, path=(*option.path, wanted), tensors=cut)
    if there:
        return
    labels = {f"{option.path[-1]}" for option in options if option.path}
    labels |= {name.partition(".")[0] for option in options for name in option.tensors}
    raise CheckpointError(
        f"checkpoint_prefix={prefix!r}: nothing in {source!r} is under it; there are "
        f"{some(sorted(labels), most=12)}.{nearest(wanted, labels)}"
    )
