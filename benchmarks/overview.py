"""``python -m benchmarks.overview``: docs/benchmarks.md and its chart, from the tables behind it.

Nothing is measured: a row is the median of a column of a table in docs/benchmarks/. Each command
that writes such a table writes the overview too.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from . import pages
from .common import TIMES, Table

SPEED = TIMES[1]
Numbers = dict[str, float]


def speeds(**where: str) -> Callable[[Table], Numbers]:
    """Read how many times faster than timm the rows of a table are."""
    return lambda table: table.column(SPEED, **where)


def named(column: str) -> Callable[[Table], Numbers]:
    """Read a column of another name."""
    return lambda table: table.column(column)


def imports(table: Table) -> Numbers:
    """How many times sooner than timm what a program imports is there."""
    seconds = table.column("added s (median)")
    ours = "`from featnet import create_model`"
    return {ours: seconds["`import timm`"] / seconds[ours]} if len(seconds) > 1 else {}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the overview.

    Attributes:
        what: its first cell.
        page, title: of the table behind it.
        numbers: those of the table that count, by name.
        speed: they are times timm's speed, and belong into the chart.
    """

    what: str
    page: str
    title: str
    numbers: Callable[[Table], Numbers] = dataclasses.field(default_factory=speeds)
    speed: bool = True


ROWS = (
    Row("All levels, eager, float32", "forward", "All levels, eager, float32, cpu"),
    Row("All levels, eager, bfloat16", "forward", "All levels, eager, bfloat16, cpu"),
    Row("The second level alone", "early", "The second level alone, float32, cpu"),
    Row("Output stride 8", "dilated", "Output stride 8, float32, cpu"),
    Row("A training step", "training", "Training step, float32, cpu"),
    Row("`optimize`, beside timm in channels_last", "compiled", "Optimised, float32, cpu"),
    Row(
        '`optimize(engine="auto")`, beside timm\'s quickest eager form',
        "engines",
        "Engines, float32, batch 1",
        named("times timm's best"),
    ),
    Row(
        '`optimize(engine="auto")`, beside the best engine run by hand',
        "engines",
        "Engines, float32, batch 1",
        named("against the best by hand"),
        speed=False,
    ),
    Row(
        "Memory of a forward to the last level, as a share of timm's",
        "memory",
        "Memory, float32, cpu",
        named("times timm's"),
        speed=False,
    ),
    Row(
        "`create_model` of an extractor, all levels",
        "start",
        "Extractors of several families",
        speeds(**{"what is made": "all levels"}),
    ),
    Row(
        "`create_model` of an extractor, the second level",
        "start",
        "Extractors of several families",
        speeds(**{"what is made": "the second level"}),
    ),
    Row("`import`", "start", "Import", imports),
    Row(
        "`import` and `create_model` with a local checkpoint",
        "start",
        "Loading a local safetensors file",
        speeds(contender="featnet"),
    ),
)

HEAD = """# Figures

featnet beside timm, on a CPU: how many times timm's speed it has, above 1 if it is faster, unless
the row names another unit. A row is the median over networks, and the chart has a dot for each.
"""
CHART = """
![A line of dots for each row: how many times timm's speed each network has](benchmarks.svg)
"""
HOW = """
No figure was measured on a GPU yet: [how to](gpu.md).

## How they are measured

Both libraries are called in turn in one process (of imports and of loading each call has its own),
the order reversed from round to round. A network's figure is the median of its rounds' ratios, with
the middle half beside it, where 25 to 75 % of them lie: one that contains 1 shows no difference.
The machines have neighbours, and wide middle halves were measured beside busy ones.
"""
TAIL = """
## All tables

`python -m benchmarks.overview` writes this page from the tables. Besides those above there are
[int8](benchmarks/int8.md), [large images](benchmarks/large.md), [many images](benchmarks/many.md)
and [levels found in networks that declare none](benchmarks/discovery.md). Figures of other subjects
are where these are: [networks from elsewhere](foreign_models.md#figures), [their output
strides](foreign_strides.md), [dilated convolutions](dilation.md#speed), [lines of code](sizes.md).

`python -m benchmarks --quick` takes a few minutes and shows that all works.
`python -m benchmarks` runs the first three commands, for hours.

| command | tables of |
| --- | --- |
"""
COMMANDS = {
    "python -m benchmarks.core": ("start", "forward", "early", "dilated", "training"),
    "python -m benchmarks.loading": ("start",),
    "python -m benchmarks.families": (
        "forward", "early", "dilated", "training", "compiled", "engines", "memory",
    ),
    "python -m benchmarks.engines": ("engines",),
    "python -m benchmarks.int8": ("int8",),
    "python -m benchmarks.large sizes": ("large",),
    "python -m benchmarks.large tiled": ("large",),
    "python -m benchmarks.many": ("many",),
    "python -m benchmarks.discovery": ("discovery",),
}  # fmt: skip
LAST = """
With `--out docs/benchmarks` each replaces there the tables that it measured, no others, and this
page. `--only`, `--names` and `--dtype`, where a command has them, choose among tables and networks;
`--help` tells.
"""


def day_of(table: Table) -> str:
    """The day, or days, on which a table was measured."""
    return table.measured.removeprefix("Measured on ").partition(":")[0]


def link_to(folder: Path, name: str) -> str:
    """A link to a page, by its heading."""
    path = folder / f"{name}.md"
    title = pages.read(path)[0].splitlines()[0].removeprefix("# ") if path.exists() else name
    return f"[{title}]({folder.name}/{name}.md)"


def page(folder: Path) -> str:
    """The overview of the tables in a folder."""
    tables = pages.read_all(folder)
    lines = [HEAD, "| | median | least to most | measured | tables |", "| --- " * 5 + "|"]
    sources: dict[str, list[str]] = {}
    for row in ROWS:
        table = tables.get((row.page, row.title))
        numbers = [*row.numbers(table).values()] if table else []
        if table is None or not numbers:
            lines.append(f"| {row.what} | not measured | - | - | - |")
            continue
        spread = f"{min(numbers):.2f} to {max(numbers):.2f} of {len(numbers)}"
        cells = [f"{statistics.median(numbers):.2f}", spread if len(numbers) > 1 else "-"]
        cells += [day_of(table), link_to(folder, row.page)]
        lines.append(f"| {row.what} | {' | '.join(cells)} |")
        sources.setdefault(table.measured, []).append(row.what)
    lines += [CHART.rstrip(), HOW]
    lines += [f"- {'; '.join(rows)}: {measured}" for measured, rows in sources.items()]
    lines.append(TAIL.rstrip())
    for command, names in COMMANDS.items():
        links = (link_to(folder, name) for name in names)
        lines.append(f"| `{command}` | {', '.join(links)} |")
    return "\n".join(lines) + "\n" + LAST


LOW, HIGH, WIDTH, LEFT = 0.5, 50.0, 760, 250
TICKS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def _x(ratio: float) -> float:
    share = math.log(min(max(ratio, LOW), HIGH) / LOW) / math.log(HIGH / LOW)
    return LEFT + share * (WIDTH - LEFT - 20)


def _escaped(words: str) -> str:
    return re.sub("[`]", "", words).replace("&", "&amp;").replace("<", "&lt;")


def chart(lines: Mapping[str, Numbers]) -> str:
    """Ratios as an SVG image: a line of dots for each name, timm's speed a darker rule."""
    height = 34 * len(lines) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13">',
        "<title>Times timm's speed, a dot for each network</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="16">times timm\'s speed, a dot for each network</text>',
    ]
    for tick in TICKS:
        x, colour = _x(tick), "#444" if tick == 1 else "#ddd"
        parts += [
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="26" y2="{height - 28}" stroke="{colour}"/>',
            f'<text x="{x:.0f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>',
        ]
    for index, (what, numbers) in enumerate(lines.items()):
        y = 46 + 34 * index
        parts.append(f'<text x="8" y="{y + 4}">{_escaped(what)}</text>')
        parts += [
            f'<circle cx="{_x(value):.1f}" cy="{y}" r="5" fill="#2a6fb0" fill-opacity="0.6">'
            f"<title>{_escaped(name)}: {value:.2f}</title></circle>"
            for name, value in numbers.items()
        ]
    return "\n".join([*parts, "</svg>\n"])


def write(folder: Path) -> Path:
    """Write the overview of a folder's tables beside it, and its chart; return the page."""
    tables = pages.read_all(folder)
    found = {
        row.what: row.numbers(tables[row.page, row.title])
        for row in ROWS
        if row.speed and (row.page, row.title) in tables
    }
    path = folder.with_suffix(".md")
    folder.with_suffix(".svg").write_text(chart(found), encoding="utf-8")
    path.write_text(page(folder), encoding="utf-8")
    return path


def main() -> int:
    """Parse the command line, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overview", description=__doc__)
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", default=pages.FOLDER, help="default: docs/benchmarks"
    )
    print(write(parser.parse_args().out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
