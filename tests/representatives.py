"""The few variants that stand for all: in them every kind of module of the registry occurs.

    python tests/helpers.py            families that have no line in golden/representatives.json yet
    python tests/helpers.py FAMILY ... these families, after they changed
    python tests/helpers.py --all      every family anew, with the fewest variants: minutes

The file has a line a family: its representatives, and the kinds of modules (:func:`signature`) that
each of them stands for. A kind that several families have is on one line only.

``golden/structures.json`` has the structure of every variant: the set of its kinds, as a number.
One variant of each structure goes through the laws; see ``test_laws.py``. ``golden/facts.json`` has
what tests choose among the representatives by.
"""

from __future__ import annotations

import functools
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from networks import FACTS, facts_of, full_model, meta_model, parameter_count, read_facts
from torch import nn

import featnet
from featnet import registry
from featnet.layers import PatchConv


def _signature_of(module: nn.Module) -> tuple[Any, ...]:
    """A kind of module: its class, tensors and children, and of a window what decides how it is
    padded and dilated."""
    facts: list[Any] = [type(module).__module__, type(module).__qualname__]
    kernel = 1 if isinstance(module, PatchConv) else getattr(module, "kernel_size", 1)
    kernel = kernel if isinstance(kernel, int) else max(kernel)
    facts.append((min(kernel, 3 + kernel % 2), getattr(module, "stride", 1) in (1, (1, 1))))
    facts.append(
        (getattr(module, "padding", 0) in (0, (0, 0)), getattr(module, "ceil_mode", False))
    )
    groups = getattr(module, "groups", 1)
    facts.append(groups > 1 if isinstance(groups, int) else groups)
    facts.append(tuple(key for key, value in module._parameters.items() if value is not None))
    facts.append(tuple(key for key, value in module._buffers.items() if value is not None))
    if not isinstance(module, (nn.Sequential, nn.ModuleList)):
        facts += [(key, type(value).__qualname__) for key, value in module._modules.items()]
    return tuple(facts)


@functools.cache
def signature(name: str) -> frozenset[str]:
    """What a model is made of, whatever its depth and width: one variant for each is enough
    where numbers are compared."""
    kinds = {_signature_of(module) for module in full_model(name).modules()}
    return frozenset(f"{zlib.crc32(repr(kind).encode()):08x}" for kind in kinds)


def structure(name: str) -> str:
    """A number for the set of its kinds of modules: variants of one differ in depths and widths."""
    return f"{zlib.crc32(' '.join(sorted(signature(name))).encode()):08x}"


GOLDEN = Path(__file__).parent / "golden"
REPRESENTATIVES = GOLDEN / "representatives.json"
STRUCTURES = GOLDEN / "structures.json"

# family -> {representative: the kinds of modules it stands for}
Table = Mapping[str, Mapping[str, Sequence[str]]]


@functools.cache
def chosen() -> Table:
    """The table as ``python tests/helpers.py`` last wrote it."""
    lines = json.loads(REPRESENTATIVES.read_text(encoding="utf-8"))
    return {
        family: {name: kinds.split() for name, kinds in names.items()}
        for family, names in lines.items()
    }


@functools.cache
def structures() -> Mapping[str, str]:
    """The structure of every variant, as the file has it."""
    lines = json.loads(STRUCTURES.read_text(encoding="utf-8"))
    return {name: number for number, names in lines.items() for name in names.split()}


@functools.cache
def others() -> tuple[str, ...]:
    """The smallest variant of every structure that no representative has."""
    of, smallest = structures(), dict[str, str]()
    for name in sorted(featnet.list_models(), key=parameter_count):
        smallest.setdefault(of.get(name, name), name)  # a new one stands for itself
    seen = {of[name] for name in representatives() if name in of}
    return tuple(name for number, name in smallest.items() if number not in seen)


@functools.cache
def kinds_chosen() -> frozenset[str]:
    """The kinds of modules that the representatives of the file stand for."""
    return kinds_of(chosen())


def kinds_of(table: Table) -> frozenset[str]:
    """The kinds of modules that the representatives of a table stand for."""
    return frozenset(kind for names in table.values() for kinds in names.values() for kind in kinds)


def cover(names: Sequence[str], missing: frozenset[str]) -> dict[str, list[str]]:
    """Few and small variants in which the missing kinds of modules occur, and which of them in
    which.

    Greedy set cover: the variant with the most kinds that are still missing for its size comes
        next.
    """
    cost = {name: parameter_count(name) ** 0.5 for name in names}
    chosen: dict[str, list[str]] = {}
    while missing:
        best = max(names, key=lambda name: len(signature(name) & missing) / cost[name])
        chosen[best] = sorted(signature(best) & missing)
        missing -= signature(best)
    return dict(sorted(chosen.items()))


def choose(families: Iterable[str], table: Table) -> dict[str, dict[str, list[str]]]:
    """The table with the lines of some families made anew; the others are left as they are."""
    families = list(families)
    present = featnet.list_modules()
    kept = {f: {n: list(k) for n, k in names.items()} for f, names in table.items() if f in present}
    for family in families:
        kept.pop(family, None)
    names = featnet.list_models(module=families) if families else []
    kinds = frozenset[str]().union(*map(signature, names))
    for name, stands_for in cover(names, kinds - kinds_of(kept)).items():
        kept.setdefault(registry._module_of(name), {})[name] = stands_for
    return dict(sorted(kept.items()))


def write_facts(names: Sequence[str], families: Sequence[str]) -> None:
    """Write the facts of the representatives; of those of these families anew."""
    known = {n: f for n, f in read_facts().items() if registry._module_of(n) not in families}
    rows = (
        f"{json.dumps(name)}: {json.dumps([' '.join(types), *rest])}"
        for name in sorted(names)
        for types, *rest in [known.get(name) or facts_of(meta_model(name))]
    )
    FACTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def write_structures(families: Sequence[str]) -> None:
    """Write the file, a line a structure; of the variants of these families anew."""
    known, lines = structures(), dict[str, list[str]]()
    anew = {*featnet.list_models(module=families)} if families else set[str]()
    for name in featnet.list_models():
        number = known[name] if name in known and name not in anew else structure(name)
        lines.setdefault(number, []).append(name)
    rows = (
        f"{json.dumps(number)}: {json.dumps(' '.join(names))}" for number, names in lines.items()
    )
    STRUCTURES.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


def write(table: Table) -> None:
    """Write the file, a line a family."""
    lines = (
        f"{json.dumps(family)}: "
        f"{json.dumps({name: ' '.join(kinds) for name, kinds in names.items()})}"
        for family, names in table.items()
    )
    REPRESENTATIVES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Choose the representatives of the families named, of all, or of those that have none."""
    present = featnet.list_modules()
    table = chosen()
    families = [f for f in present if f not in table]
    if arguments:
        families = present if list(arguments) == ["--all"] else list(arguments)
    unknown = sorted({*families} - {*present})
    if unknown:
        raise SystemExit(
            f"no such family: {', '.join(unknown)}. Those of featnet/models/index.txt are"
            f" {', '.join(present)}; python -m featnet.registry writes it."
        )
    write(new := choose(families, table))
    write_structures(families)
    write_facts([name for names in new.values() for name in names], families)
    for family in families:
        print(f"{family}: {', '.join(new.get(family, {})) or 'nothing that others have not'}")


def named() -> list[str]:
    """The representatives of the file."""
    return sorted(name for names in chosen().values() for name in names)


@functools.cache
def representatives() -> tuple[str, ...]:
    """The small ones that were chosen; with FEATNET_EXHAUSTIVE=1 the smallest variant of every
    combination of modules."""
    if os.environ.get("FEATNET_EXHAUSTIVE") != "1":
        return tuple(named())
    best: dict[frozenset[Any], str] = {}
    for name in sorted(featnet.list_models(), key=parameter_count):
        best.setdefault(signature(name), name)
    return tuple(best.values())


@functools.cache
def families() -> tuple[str, ...]:
    """The smallest representative of every family; with FEATNET_EXHAUSTIVE=1 all of them."""
    if os.environ.get("FEATNET_EXHAUSTIVE") == "1":
        return representatives()
    best: dict[str, str] = {}
    for name in sorted(representatives(), key=parameter_count):
        best.setdefault(registry._module_of(name), name)
    return tuple(best.values())
