"""What a report is: one declared table. Columns with type, unit and both titles; rows by a query as of an instant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marketplace.reports.facts import Facts

Row = tuple[Any, ...]
UNITS = {
    "text": "", "integer": "", "fen": "fen", "micro_fen": "micro-fen", "yuan": "CNY", "instant": "ISO 8601, +08:00",
    "day": "ISO 8601, Asia/Shanghai", "flag": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """`kind` is one of UNITS. A value is an int for integer, fen, micro_fen, yuan (fen, written as yuan) and instant
    (Unix ms); a bool for flag; a str else. None is an empty cell in every kind."""

    name: str
    kind: str
    zh: str
    en: str

    def view(self) -> dict[str, str]:
        return {
            "name": self.name,
            "type": self.kind,
            "unit": UNITS[self.kind],
            "title_zh": self.zh,
            "title_en": self.en,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """`rows` yields one tuple a row in a fixed order. `note_zh`/`note_en` say what cannot be told of the past: with
    them, the same `as_of` asked later may answer otherwise (`reproducible` is False). `verdict`: the flag column that
    is False in a row that does not agree; "": the report judges nothing."""

    name: str
    zh: str
    en: str
    columns: tuple[Column, ...]
    rows: Callable[[Facts], Iterator[Row]]
    note_zh: str = ""
    note_en: str = ""
    verdict: str = ""

    def differs(self, row: Row) -> bool:
        """Whether a row says that something does not agree."""
        return any(
            column.name == self.verdict and cell is False for column, cell in zip(self.columns, row, strict=True)
        )

    @property
    def reproducible(self) -> bool:
        return not self.note_en

    def view(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title_zh": self.zh,
            "title_en": self.en,
            "reproducible": self.reproducible,
            "note_zh": self.note_zh,
            "note_en": self.note_en,
            "columns": [column.view() for column in self.columns],
        }


def columns(text: str) -> tuple[Column, ...]:
    """Columns from lines `name kind 中文 | English`."""
    found = []
    for line in filter(None, text.splitlines()):
        left, _, en = line.partition("|")
        name, kind, zh = left.split(None, 2)
        if kind not in UNITS:
            raise ValueError(f"column {name}: {kind!r} is none of {sorted(UNITS)}")
        found.append(Column(name, kind, zh.strip(), en.strip()))
    return tuple(found)
