"""The results of a run, as a page and as data, written whenever something is added."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ..common import Table


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a check.

    Attributes:
        check: its name.
        outcome: ``"passed"``, ``"FAILED"``, ``"needs CUDA"`` or ``"no time left"``.
        detail: what was seen, or why it failed.
        seconds: that it took.
    """

    check: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def row(self) -> list[str]:
        """Its cells in the page."""
        return [self.check, self.outcome, self.detail, f"{self.seconds:.1f}"]


class Record:
    """Collects what a run finds, prints it, and keeps two files up to date.

    Args:
        folder: of ``gpu.md`` and ``gpu.json``.
        measured: machine, versions, date and command, in a sentence.

    Attributes:
        outcomes, tables: what there is so far.
        left_out: what was not run or measured, with the reason.
    """

    def __init__(self, folder: Path, measured: str) -> None:
        self.folder, self.measured = folder, measured
        self.outcomes: list[Outcome] = []
        self.tables: list[Table] = []
        self.left_out: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        print(measured + "\n", flush=True)

    @property
    def failures(self) -> list[str]:
        """Checks that failed, and networks that could not be measured."""
        rows = [(table.title, row) for table in self.tables for row in table.rows]
        return [outcome.check for outcome in self.outcomes if outcome.outcome == "FAILED"] + [
            f"{title}: {row[0]}" for title, row in rows if row[1].startswith("failed: ")
        ]

    def add(self, outcome: Outcome) -> None:
        """Keep what became of a check."""
        self.outcomes.append(outcome)
        print(" | ".join(outcome.row), flush=True)
        self.write()

    def add_rows(self, table: Table) -> None:
        """Keep more rows of a table, which begins with its first ones."""
        if not self.tables or self.tables[-1].title != table.title:
            self.tables.append(dataclasses.replace(table, rows=[]))
            print(f"\n{table.title}: {' | '.join(table.header)}")
        last = self.tables[-1]
        self.tables[-1] = dataclasses.replace(last, rows=[*last.rows, *table.rows])
        for row in table.rows:
            print(" | ".join(row), flush=True)
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        """Keep what there will be no figure of."""
        self.left_out[what] = why
        print(f"{what}: left out, {why}", flush=True)
        self.write()

    def write(self) -> None:
        """Write both files."""
        data = {
            "measured": self.measured,
            "checks": [dataclasses.asdict(outcome) for outcome in self.outcomes],
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "left_out": self.left_out,
            "failures": self.failures,
        }
        text = json.dumps(data, indent=1, ensure_ascii=False)
        (self.folder / "gpu.json").write_text(text + "\n", encoding="utf-8")
        (self.folder / "gpu.md").write_text(str(self), encoding="utf-8")

    def __str__(self) -> str:
        rows = [outcome.row for outcome in self.outcomes]
        checks = Table("Checks", ("check", "outcome", "what was seen", "s"), rows)
        parts = ["# On a GPU\n", f"{self.measured}\n", *map(str, (checks, *self.tables))]
        if self.left_out:
            parts.append("## Left out\n")
            parts += [f"- {what}: {why}" for what, why in self.left_out.items()]
            parts.append("")
        return "\n".join(parts)
