"""``featnet list`` and ``featnet info``: names and facts, from tables where they have them."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .. import registry
from ..capabilities import Capabilities, read_table
from ..features import table
from .network import check_model, selection


def print_list(args: argparse.Namespace) -> int:
    """Print the names that pass the filters, one a line, as a table or as JSON; 1 if there are
    none.

    Raises:
        ArgumentError: a filter with an unknown value.
    """
    names = registry.list_models(
        args.filter,
        pretrained=args.pretrained,
        module=args.family or "",
        stride=args.stride,
        levels=args.levels,
        output_stride=args.output_stride,
        min_params=args.min_params,
        max_params=args.max_params,
        max_macs=args.max_macs,
        licence=args.licence or "",
        sort=args.sort,
    )
    if args.json:
        print("[\n" + ",\n".join(json.dumps(facts(name)) for name in names) + "\n]")
        return 0 if names else 1
    if not names:
        asked = " ".join(args.filter)
        print(f"featnet: no model matches{f' {asked!r}' if asked else ''}", file=sys.stderr)
        return 1
    print(_long(names) if args.long else "\n".join(names))
    return 0


def facts(name: str) -> dict[str, Any]:
    """Collect the facts about a model without building it."""
    variant = name.partition(".")[0]
    record, weights = read_table().get(variant), registry.get_weights(name)
    row: dict[str, Any] = {"name": name, "family": registry.family_of(variant)}
    if record is not None:
        row |= record.to_row()
    if weights is not None:
        row |= {
            "checkpoints": registry.checkpoints_of(variant),
            "licence": weights.license,
            "mean": list(weights.mean),
            "std": list(weights.std),
            "interpolation": weights.interpolation,
            "crop_pct": weights.crop_pct,
            "input_size": list(weights.input_size[1:]),
        }
    return row


def _long(names: list[str]) -> str:
    rows = []
    for name in names:
        record, weights = read_table().get(name.partition(".")[0]), registry.get_weights(name)
        licence = weights.license if weights is not None else None
        rows.append([name, *_sizes(record), licence or "-"])
    header = ["name", "params", "MACs", "input", "levels", "strides", "licence"]
    columns = [[row[0] for row in rows], *([row[i] for row in rows] for i in range(1, 7))]
    widths = [max(len(title), *map(len, c)) for title, c in zip(header, columns, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i in (0, 6) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *rows)
    ]
    return "\n".join(lines)


def _sizes(record: Capabilities | None) -> list[str]:
    if record is None:
        return ["-"] * 5
    strides = sorted(set(record.reductions))
    return [
        short(record.params),
        short(record.macs),
        "x".join(map(str, dict.fromkeys(record.input_size))),
        str(len(record.channels)),
        ",".join(map(str, strides)),
    ]


def short(count: float) -> str:
    """A number in three digits: 25.6M, 4.09G."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return (
                f"{count / scale:.3g}{unit}"
                if count < 999.5 * scale
                else f"{count / scale:.0f}{unit}"
            )
    return str(int(count))


def print_info(args: argparse.Namespace) -> int:
    """Print a model's levels and facts; what arguments change is measured on the meta device.

    Raises:
        FeatnetError: no such model, or levels that it has not.
    """
    check_model(args.name)
    variant = args.name.partition(".")[0]
    record = read_table().get(variant)
    options = selection(args)
    info: Any = None
    if record is None or options or args.input_size:
        from .. import feature_info

        info = feature_info(args.name, **options)
    header, rows = _levels(record, info, args.input_size)
    known = registry.is_model(variant)
    if args.json:
        levels = [dict(zip(header, row, strict=True)) for row in rows]
        row = {**facts(args.name), "papers": registry.papers_of(variant)} if known else {}
        print(json.dumps({**row, "outputs": levels}, indent=1))
        return 0
    print(table(header, [[str(cell) for cell in row] for row in rows]))
    if known:
        print("\n".join(_facts(args.name, record)))
    return 0


def _levels(
    record: Capabilities | None, info: Any, size: list[int] | None
) -> tuple[list[str], list[list[Any]]]:
    """The table of the levels that come out."""
    header = ["level", "module", "channels", "reduction"]
    if info is None:
        assert record is not None
        columns: Any = (record.modules, record.channels, record.reductions)
        rows = [[i, *row] for i, row in enumerate(zip(*columns, strict=True))]
    else:
        columns = (info.out_indices, info.module_name(), info.channels(), info.reduction())
        rows = [list(row) for row in zip(*columns, strict=True)]
    if size:
        header.append("map size")
        for row, (height, width) in zip(rows, info.sizes((size[0], size[1])), strict=True):
            row.append(f"{height} x {width}")
    return header, rows


def _facts(name: str, record: Capabilities | None) -> list[str]:
    """Lines of what is known beside the levels."""
    variant, weights = name.partition(".")[0], registry.get_weights(name)
    rows = [("family", registry.family_of(variant))]
    if record is not None:
        side = "x".join(map(str, record.input_size))
        strides = ", ".join(map(str, record.output_strides))
        rows += [
            ("parameters", f"{short(record.params)} ({record.params:,})"),
            ("multiply-adds", f"{short(record.macs)} at {side} (FLOPs: {short(2 * record.macs)})"),
            ("output strides", strides),
        ]
        if record.prefix_tokens:
            rows.append(("prefix tokens", str(record.prefix_tokens)))
    if weights is not None:
        numbers = ("mean", weights.mean), ("std", weights.std)
        rows += [(word, ", ".join(f"{value:g}" for value in values)) for word, values in numbers]
        crop = f"{weights.interpolation}, crop {weights.crop_pct:g} ({weights.crop_mode})"
        rows += [("input", f"{'x'.join(map(str, weights.input_size[1:]))}, {crop}")]
        rows += [("licence", weights.license or "not stated")]
    papers = registry.papers_of(variant).items()
    rows += [
        ("papers" if i == 0 else "", f"{url}  {title}") for i, (title, url) in enumerate(papers)
    ]
    tags = registry.checkpoints_of(variant)
    rows.append(("checkpoints", ", ".join(tags) or "none"))
    width = max(len(word) for word, _ in rows) + 1
    return ["", *(f"{word + ':' * bool(word):<{width}} {text}" for word, text in rows)]
