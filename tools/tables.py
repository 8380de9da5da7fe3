"""Write the checkpoint tables and the pruned shapes from the facts in timm's registry.

    python tools/tables.py FAMILY [TIMM_MODULE ...] [--out DIR]
    python tools/tables.py --pruned [VARIANT ...] [--out DIR]

A maintainer's tool: it needs timm (1.0.31), the library does not. The first form writes
``featnet/models/FAMILY.json``, a line a checkpoint, from the timm modules named (without any, those
that the family's table has been written from, or the one that is called as the family). It reads
the table back, compares every field with timm's, and prints what the tables leave to the model
class: ``first_conv``, ``last_fc``, and the levels of each group of variants. The second form writes
``featnet/models/pruned.json``, the channel counts in which a pruned variant differs from the
variant it was cut from (all that timm has, when none is named).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import difflib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs
from timm.models._registry import _model_to_module, _module_to_models
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "featnet" / "models"
sys.path.insert(0, str(ROOT))

from featnet.weights import Weights  # noqa: E402

FROM_KEY = ("architecture", "tag")
FROM_CLASS = ("first_conv", "classifier")
PEER = {field.name: field.default for field in dataclasses.fields(PretrainedCfg)}
# Fields that both libraries have; a field of featnet alone (a digest) is not the peer's to fill
COLUMNS = [
    f.name
    for f in dataclasses.fields(Weights)
    if f.name in PEER and f.name not in FROM_KEY + FROM_CLASS
]


def plain(value: Any) -> Any:
    """A field's value as both sides can hold it: lists are tuples, and ``""`` is no value."""
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    return None if value == "" else value


def checkpoints(modules: Sequence[str]) -> Iterator[tuple[str, PretrainedCfg]]:
    """``("variant.tag", cfg)`` in natural order of variants, a variant's default tag first.

    Raises:
        ValueError: no such timm module, or a cfg says something that `Weights` has no field for.
    """
    known = {field.name for field in dataclasses.fields(Weights)}
    for module in modules:
        if not timm.list_models(module=module):
            near = difflib.get_close_matches(module, _module_to_models, n=3, cutoff=0.5)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(f"timm has no models in a module {module!r}{hint}")
    for variant in timm.list_models(module=modules, include_tags=False):
        for key, cfg in (get_arch_pretrained_cfgs(variant) or {variant: PretrainedCfg()}).items():
            for field in dataclasses.fields(PretrainedCfg):
                value = getattr(cfg, field.name)
                if field.name not in known and value != field.default:
                    raise ValueError(f"{key}: Weights has no field for {field.name}={value!r}")
            yield key, cfg


def row(key: str, cfg: PretrainedCfg) -> dict[str, Any]:
    """The fields of a table's line: what differs from the defaults, in the fields' order.

    ``hf_hub_id`` defaults to ``"timm/" + key``, so that "none" is written out as null.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Weights)}
    defaults["hf_hub_id"] = f"timm/{key}"
    values = {name: plain(getattr(cfg, name)) for name in COLUMNS}
    return {name: value for name, value in values.items() if value != defaults[name]}


def load(path: Path) -> dict[str, Weights]:
    """The checkpoints of a table, its keys and hub ids filled in."""
    table: dict[str, Weights] = {}
    for key, fields in json.loads(path.read_text(encoding="utf-8")).items():
        variant, _, tag = key.partition(".")
        table[key] = Weights(
            **{"architecture": variant, "tag": tag, "hf_hub_id": f"timm/{key}", **fields}
        )
    return table


def compare(path: Path, cfgs: Mapping[str, PretrainedCfg]) -> int:
    """Compare a written table with timm's cfgs field by field; the number of fields compared.

    Raises:
        ValueError: a key or a field differs.
    """
    table = load(path)
    if list(table) != list(cfgs):
        raise ValueError(f"{path}: the keys are not timm's")
    for key, cfg in cfgs.items():
        variant, _, tag = key.partition(".")
        if (table[key].architecture, table[key].tag) != (variant, tag):
            raise ValueError(f"{path}: {key}: architecture or tag")
        if cfg.architecture and (cfg.architecture, cfg.tag or "") != (variant, tag):
            raise ValueError(f"{key}: timm calls it {cfg.architecture!r}, {cfg.tag!r}")
        for name in COLUMNS:
            ours, theirs = plain(getattr(table[key], name)), plain(getattr(cfg, name))
            if ours != theirs:
                raise ValueError(f"{path}: {key}: {name} is {ours!r}, timm's is {theirs!r}")
    return len(cfgs) * (len(COLUMNS) + len(FROM_KEY))


def write_lines(path: Path, lines: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a JSON object with one line an entry."""
    dump = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    body = ",\n".join(f"{dump(key)}:{dump(value)}" for key, value in lines.items())
    path.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")


def write_table(family: str, modules: Sequence[str], out: Path) -> dict[str, PretrainedCfg]:
    """Write the table of one family, and compare it with timm's cfgs, which are returned."""
    cfgs = dict(checkpoints(modules))
    path = out / f"{family}.json"
    write_lines(path, {key: row(key, cfg) for key, cfg in cfgs.items()})
    compared = compare(path, cfgs)
    table = load(path)
    variants = {weights.architecture for weights in table.values()}
    usable = {key for key, weights in table.items() if weights.has_weights}
    print(
        f"{path}: {len(variants)} variants, {len(table)} checkpoints, {len(usable)} with weights,"
        f" {path.stat().st_size} bytes; {compared} fields agree with timm's"
    )
    without = variants - {table[key].architecture for key in usable}
    print(f"  variants without weights: {' '.join(sorted(without)) or 'none'}")
    return cfgs


def describe(cfgs: Mapping[str, PretrainedCfg]) -> None:
    """Print the facts about the variants that their classes hold."""
    heads = {variant_of(key): (plain(c.first_conv), plain(c.classifier)) for key, c in cfgs.items()}
    print("  first_conv, last_fc:")
    print_groups(heads)
    print("  levels (/reduction channels module); the channels are those of the first variant:")
    print_groups({variant: levels(variant) for variant in heads})


def variant_of(key: str) -> str:
    """``"resnet50.a1_in1k"`` to ``"resnet50"``."""
    return key.partition(".")[0]


def print_groups(facts: Mapping[str, Any]) -> None:
    """Print each fact once, with the variants that share it."""
    groups: dict[Any, list[str]] = collections.defaultdict(list)
    for variant, fact in facts.items():
        groups[fact].append(variant)
    for fact, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        shown = " ".join(names[:6]) + (f" ... ({len(names)} variants)" if len(names) > 6 else "")
        print(f"    {fact}: {shown}")


class Levels(tuple[tuple[int, str], ...]):
    """(reduction, module) of every level; equal whatever the channels, which are only shown."""

    channels: list[int]

    def __repr__(self) -> str:
        rows = zip(self, self.channels, strict=True)
        return " ".join(f"/{reduction} {c} {module!r}" for (reduction, module), c in rows)


def levels(variant: str) -> Levels | str:
    """The peer's full list of levels, of which its own wrappers may leave some out."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            info = timm.create_model(variant).feature_info
    except (RuntimeError, NotImplementedError) as error:
        return f"not to be built on the meta device ({type(error).__name__})"
    rows = Levels((level["reduction"], level["module"]) for level in info)
    rows.channels = [level["num_chs"] for level in info]
    return rows


def modules_of(family: str) -> list[str]:
    """The timm modules of a family that has a table; else the one of its name."""
    with contextlib.suppress(FileNotFoundError):
        variants = {variant_of(key) for key in load(MODELS / f"{family}.json")}
        modules = {_model_to_module[variant] for variant in variants if variant in _model_to_module}
        if modules:
            return sorted(modules)
    return [family]


def differences(variant: str) -> dict[str, dict[str, int]]:
    """The channel counts in which a pruned variant differs from the one it was cut from.

    ``out``: dim 0 of a weight (conv, norm, linear); ``in``: dim 1 of a weight (conv, linear);
    ``groups``: of a depthwise conv, whose dim 1 stays 1 (its input channels are its groups).

    Raises:
        ValueError: the two differ in more than widths.
    """
    with torch.device("meta"):
        pruned = timm.create_model(variant)
        parent = timm.create_model(variant.removesuffix("_pruned"))
    old, new = dict(parent.named_modules()), dict(pruned.named_modules())
    if list(old) != list(new) or list(parent.state_dict()) != list(pruned.state_dict()):
        raise ValueError(f"{variant}: its modules are not those of the unpruned variant")
    changes: dict[str, dict[str, int]] = {"out": {}, "in": {}, "groups": {}}
    for name, after in new.items():
        before = old[name]
        if not isinstance(after, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            continue
        for kind, was, now in zip(
            ("out", "in"), before.weight.shape, after.weight.shape, strict=False
        ):
            if was != now:
                changes[kind][name] = now
        if isinstance(after, nn.Conv2d) and before.groups != after.groups:
            changes["groups"][name] = after.groups
    return {kind: widths for kind, widths in changes.items() if widths}


def write_pruned(variants: Sequence[str], out: Path) -> None:
    """Write ``pruned.json``; no names stands for every pruned variant of timm.

    A variant that differs in no shape is left out: its checkpoint alone is pruned (zeros).
    """
    plans = {variant: differences(variant) for variant in variants or timm.list_models("*_pruned")}
    plans = {variant: plan for variant, plan in plans.items() if plan}
    path = out / "pruned.json"
    write_lines(path, plans)
    print(f"{path}: {path.stat().st_size} bytes")
    for variant, plan in plans.items():
        print(f"  {variant}: " + ", ".join(f"{len(plan[kind])} {kind}" for kind in plan))


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="FAMILY [TIMM_MODULE ...], or pruned variants")
    parser.add_argument("--pruned", action="store_true", help="write pruned.json")
    parser.add_argument("--out", type=Path, default=MODELS, metavar="DIR")
    args = parser.parse_args(arguments)
    if args.pruned:
        write_pruned(args.names, args.out)
    elif not args.names:
        parser.error("a family, and the timm modules that it covers where they have other names")
    else:
        family, *modules = args.names
        describe(write_table(family, modules or modules_of(family), args.out))


if __name__ == "__main__":
    main()
