"""The directive ``model-table``: a row for every model of the registry; ``models.csv`` beside it.

Both are made of what the registry and its measured table know; neither needs torch.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from featnet import registry
from featnet.capabilities import read_table

COLUMNS = (
    "name",
    "family",
    "parameters",
    "FLOPs",
    "input",
    "sizes",
    "reductions",
    "channels",
    "output strides",
    "licences",
    "paper",
)
NUMBERS = {"parameters", "FLOPs", "input"}


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
    """Make a row for each model, its values as the CSV file has them."""
    table = read_table()
    return tuple(_row(name, table[name]) for name in registry.list_models())


def _row(name: str, facts: Any) -> dict[str, str]:
    return {
        "name": name,
        "family": registry.family_of(name),
        "parameters": str(facts.params),
        "FLOPs": str(2 * facts.macs),
        "input": "x".join(map(str, facts.input_size)),
        "sizes": _sizes(facts),
        "channels": " ".join(map(str, facts.channels)),
        "reductions": " ".join(map(str, facts.reductions)),
        "output strides": " ".join(map(str, facts.output_strides)),
        "licences": "; ".join(_licences(name)),
        "paper": " ".join(registry.papers_of(name).values()),
    }


def _sizes(facts: Any) -> str:
    words = f"multiples of {facts.size_multiple}" if facts.size_multiple else "any"
    return f"{words} up to {'x'.join(map(str, facts.input_size))}" if facts.largest else words


def _licences(name: str) -> list[str]:
    """Give the checkpoints by their licence: ``apache-2.0: a1_in1k, a2_in1k``."""
    tags: dict[str, list[str]] = {}
    for checkpoint in registry.checkpoints_of(name):
        weights = registry.get_weights(checkpoint)
        licence = (weights.license if weights is not None else None) or "not stated"
        tags.setdefault(licence, []).append(checkpoint.partition(".")[2] or name)
    return [f"{licence}: {', '.join(names)}" for licence, names in tags.items()]


def short(number: int) -> str:
    """Write a number with three digits and a letter: 25.6M."""
    for letter, unit in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)


def _runs(numbers: Sequence[str]) -> str:
    """Shorten equal neighbours: ``768 768 768`` is ``3 x 768``."""
    groups: list[list[str]] = []
    for number in numbers:
        if groups and groups[-1][0] == number:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(g[0] if len(g) < 3 else f"{len(g)} &times; {g[0]}" for g in groups)


def _cell(column: str, row: dict[str, str]) -> str:
    value = row[column]
    match column:
        case "parameters" | "FLOPs":
            return f'<td data-value="{value}">{short(int(value))}</td>'
        case "input":
            height, width = value.split("x")
            return f'<td data-value="{int(height) * int(width)}">{height} &times; {width}</td>'
        case "channels" | "reductions":
            return f"<td>{_runs(value.split())}</td>"
        case "licences":
            lines = [line.partition(": ") for line in value.split("; ") if line]
            heads = ", ".join(f"{licence} ({tags.count(',') + 1})" for licence, _, tags in lines)
            tags = "<br>".join(f"<b>{escape(name)}</b>: {escape(tags)}" for name, _, tags in lines)
            summary = f"<details><summary>{escape(heads)}</summary>{tags}</details>"
            return f"<td>{summary if lines else 'no checkpoint'}</td>"
        case "paper":
            links = (f'<a href="{url}">{url.rpartition("/")[2]}</a>' for url in value.split())
            return f"<td>{' '.join(links)}</td>"
        case "name":
            return f'<th scope="row">{escape(value).replace("_", "_<wbr>")}</th>'
    return f"<td>{escape(value)}</td>"


def html() -> str:
    """Write the table, its search box and its heads."""
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{column}</button></th>'
        for column in COLUMNS
    )
    body = "\n".join(f"<tr>{''.join(_cell(c, row) for c in COLUMNS)}</tr>" for row in rows())
    return f"""<div class="models">
<p class="models-tools"><label>Search <input type="search" id="models-search"
placeholder="resnet apache-2.0" autocomplete="off"></label>
<output id="models-count">{len(rows())} models</output> <a href="models.csv" download>CSV</a></p>
<div class="models-box" tabindex="0"><table id="models-table"><thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div></div>
<script src="_static/models.js"></script>"""


class ModelTable(SphinxDirective):
    """``model-table``: takes no arguments and no content."""

    def run(self) -> list[nodes.Node]:
        """Put the table into the page."""
        return [nodes.raw("", html(), format="html")]


def write_csv(app: Sphinx, error: Exception | None) -> None:
    """Write ``models.csv`` beside the pages."""
    if error is None and app.builder.format == "html":
        with (Path(app.outdir) / "models.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows())


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive and the file to a build."""
    app.add_directive("model-table", ModelTable)
    app.connect("build-finished", write_csv)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
