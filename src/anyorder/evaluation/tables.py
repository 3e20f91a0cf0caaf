"""Tables of measurements: as Markdown, the same on screen and in a document, and as plain data.

A column may be followed by one of ratios to the first row's value. Numbers are rounded when they
are shown, never before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
"""None: not measured, or it makes no sense here."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one value of every row means."""

    key: str
    """In rows and in JSON."""
    title: str
    digits: int = 2
    """Decimals shown of a float."""
    ratio: bool = False
    """Is it followed by the ratio to the first row's value?"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values by column, and what has to be said with them."""

    columns: Seq[Column]
    rows: Seq[Mapping[str, Cell]]
    notes: Seq[str] = field(default=())

    def with_ratios(self) -> Table:
        """With a column of ratios behind each that asks for one, if there are rows to compare."""
        if len(self.rows) < 2:
            return self
        columns: list[Column] = []
        rows: list[dict[str, Cell]] = [dict(row) for row in self.rows]
        for column in self.columns:
            columns.append(column)
            if not column.ratio:
                continue
            key = f"{column.key}_ratio"
            columns.append(Column(key=key, title="ratio", digits=3))
            for row in rows:
                row[key] = _ratio(row.get(column.key), self.rows[0].get(column.key))
        return dataclasses.replace(self, columns=columns, rows=rows)

    def cells(self) -> list[list[str]]:
        """The head and the rows as they are shown; columns without any value are left out."""
        used = [
            column
            for column in self.columns
            if any(row.get(column.key) is not None for row in self.rows)
        ]
        body = [
            [_shown(row.get(column.key), column.digits) for column in used] for row in self.rows
        ]
        return [[column.title for column in used], *body]

    def markdown(self) -> str:
        """Aligned for the eye as well; notes below."""
        cells = [[cell.replace("|", "\\|") for cell in row] for row in self.cells()]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, unrounded."""
        return {"rows": [dict(row) for row in self.rows], "notes": list(self.notes)}


def _ratio(value: Cell, first: Cell) -> float | None:
    if not isinstance(value, int | float) or not isinstance(first, int | float) or not first:
        return None
    return value / first


def _shown(value: Cell, digits: int) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else value
