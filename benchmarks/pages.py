"""The pages of docs/benchmarks: prose, then sections, of which each is one table.

A table that is measured anew takes the place of the section with its title, or comes last; all else
in the page stays. The pages are the data that :mod:`benchmarks.overview` reads.
"""

from __future__ import annotations

import re
from pathlib import Path

from .common import Table

FOLDER = Path(__file__).parents[1] / "docs" / "benchmarks"
HEADING = re.compile(r"^## ", re.MULTILINE)


def _cells(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    return [cell.strip().replace(r"\|", "|") for cell in cells]


def parse(section: str, page: str = "") -> Table:
    """The table of a section, which ``str`` writes again.

    Raises:
        ValueError: the section holds no table, or a row with more cells than its header.
    """
    title, *lines = section.removeprefix("## ").strip().splitlines()
    header, *rows = [_cells(line) for line in lines if line.startswith("|")] or [[]]
    if not header or any(len(row) > len(header) for row in rows):
        raise ValueError(f"{page}: the section {title!r} is not one table with a header.")
    text = "\n".join(line for line in lines if not line.startswith("|"))
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    measured = [part for part in paragraphs if part.startswith("Measured on ")]
    note = " ".join(part for part in paragraphs if part not in measured)
    return Table(title, header, rows[1:], note, page, " ".join(measured))


def read(path: Path) -> tuple[str, list[Table]]:
    """The prose above the sections of a page, and their tables."""
    prose, *sections = HEADING.split(path.read_text(encoding="utf-8"))
    return prose, [parse(section, path.stem) for section in sections]


def put(folder: Path, table: Table) -> Path:
    """Write a table into its page, and leave the page's other tables as they are."""
    path = folder / f"{table.page}.md"
    name = table.page.replace("_", " ").capitalize()
    prose, tables = read(path) if path.exists() else (f"# Figures: {name}\n\n", [])
    titles = [other.title for other in tables]
    if table.title in titles:
        tables[titles.index(table.title)] = table
    else:
        tables.append(table)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(prose + "\n".join(map(str, tables)), encoding="utf-8")
    return path


def read_all(folder: Path) -> dict[tuple[str, str], Table]:
    """The tables of all pages, by page and title."""
    pages = [read(path)[1] for path in sorted(folder.glob("*.md"))]
    return {(table.page, table.title): table for tables in pages for table in tables}
