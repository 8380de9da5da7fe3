"""Write the checkpoint tables and the pruned shapes from the facts in timm's registry.

    python tools/tables.py FAMILY TIMM_MODULE [TIMM_MODULE ...] [--out DIR]
    python tools/tables.py --pruned [VARIANT ...] [--out DIR]

A maintainer's tool: it needs timm (1.0.31), the library does not. The first form writes
``featnet/models/FAMILY.json``, a line a checkpoint, reads it back and compares every field with
timm's; it also prints what the tables leave to the model class. The second form writes
``featnet/models/pruned.json``, the channel counts in which a pruned variant differs from the
variant it was cut from (all that timm has, when none is named).
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from featnet.weights import Weights  # noqa: E402

FROM_KEY = ("architecture", "tag")
FROM_CLASS = ("first_conv", "classifier")
COLUMNS = [f.name for f in dataclasses.fields(Weights) if f.name not in FROM_KEY + FROM_CLASS]


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
            raise ValueError(f"timm has no models in a module {module!r}")
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


def write_table(family: str, modules: Sequence[str], out: Path) -> None:
    """Write, compare and describe the table of one family."""
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
    groups: dict[tuple[Any, Any], list[str]] = collections.defaultdict(list)
    for key, cfg in cfgs.items():
        groups[plain(cfg.first_conv), plain(cfg.classifier)].append(key)
    for pair, keys in sorted(groups.items(), key=lambda item: -len(item[1])):
        archs = list(dict.fromkeys(key.partition(".")[0] for key in keys))
        shown = " ".join(archs[:6]) + (f" ... ({len(archs)} variants)" if len(archs) > 6 else "")
        print(f"  {len(keys):4d}  first_conv={pair[0]!r} classifier={pair[1]!r}: {shown}")


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


def main() -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="FAMILY TIMM_MODULE ..., or pruned variants")
    parser.add_argument("--pruned", action="store_true", help="write pruned.json")
    parser.add_argument("--out", type=Path, default=ROOT / "featnet" / "models", metavar="DIR")
    args = parser.parse_args()
    if args.pruned:
        write_pruned(args.names, args.out)
    elif len(args.names) < 2:
        parser.error("a family and at least one timm module")
    else:
        write_table(args.names[0], args.names[1:], args.out)


if __name__ == "__main__":
    main()
