"""A report as CSV, XLSX or JSON, row by row into a file; the same rows give the same bytes.

CSV is UTF-8 with a byte-order mark, and a text cell that a spreadsheet would run as a formula begins with an
apostrophe. XLSX holds fen as integers and, beside each, a column in yuan.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from marketplace.clock import instant
from marketplace.reports.declared import Column, Report, Row
from marketplace.reports.refusals import too_long

EPOCH = (1980, 1, 1, 0, 0, 0)  # of every entry of an archive
XLSX_ROWS = 200_000  # openpyxl keeps the texts of a workbook in memory
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def write_csv(report: Report, rows: Iterable[Row], path: Path, meta: dict[str, Any]) -> int:
    """Answers the number of rows. `meta` is not in a CSV: its manifest has it."""
    count = 0
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([column.name for column in report.columns])
        for row in rows:
            writer.writerow([_csv_cell(*pair) for pair in zip(report.columns, row, strict=True)])
            count += 1
    return count


def write_json(report: Report, rows: Iterable[Row], path: Path, meta: dict[str, Any]) -> int:
    """One object: `report` (its declaration), what `meta` says, `rows` (objects by column name) and `total`."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        head = _dumps({"report": report.view(), **meta})
        file.write(head[:-1] + ',"rows":[')
        for row in rows:
            cells = {column.name: _value(column, cell) for column, cell in zip(report.columns, row, strict=True)}
            file.write(("," if count else "") + "\n" + _dumps(cells))
            count += 1
        file.write(f'\n],"total":{count}}}\n')
    return count


def write_xlsx(report: Report, rows: Iterable[Row], path: Path, meta: dict[str, Any]) -> int:
    """One sheet with titles in both languages. `Conflict` REPORT_TOO_LONG past XLSX_ROWS."""
    from openpyxl import Workbook

    book = Workbook(write_only=True)
    sheet = book.create_sheet(report.name[:31])
    sheet.freeze_panes = "A2"
    titles = []
    for column in report.columns:
        unit = {"fen": " (分 fen)", "yuan": " (元 CNY)", "micro_fen": " (10⁻⁶ 分 fen)"}.get(column.kind, "")
        titles.append(f"{column.zh} {column.en}{unit}")
        if column.kind == "fen":
            titles.append(f"{column.zh} {column.en} (元 CNY)")
    sheet.append(titles)
    count = 0
    for row in rows:
        count += 1
        if count > XLSX_ROWS:
            raise too_long(XLSX_ROWS)
        sheet.append([cell for pair in zip(report.columns, row, strict=True) for cell in _xlsx_cells(sheet, *pair)])
    draft = path.with_suffix(".draft")
    book.save(draft)
    _settle(draft, path)
    draft.unlink()
    return count


WRITERS: dict[str, Callable[[Report, Iterable[Row], Path, dict[str, Any]], int]] = {
    "csv": write_csv,
    "xlsx": write_xlsx,
    "json": write_json,
}
MEDIA = {
    "csv": "text/csv; charset=utf-8",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "json": "application/json",
}


def _settle(draft: Path, path: Path) -> None:
    """Copy a workbook with the times that openpyxl put in it set to one instant."""
    with zipfile.ZipFile(draft) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if name == "docProps/core.xml":
                text = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", b"1980-01-01T00:00:00Z", source.read(name))
                target.writestr(entry, text)
                continue
            with source.open(name) as reader, target.open(entry, "w") as writer:
                shutil.copyfileobj(reader, writer)


def yuan(fen: int) -> str:
    """Exactly, with two places."""
    sign, whole = ("-" if fen < 0 else ""), abs(fen)
    return f"{sign}{whole // 100}.{whole % 100:02d}"


def iso(ms: int) -> str:
    moment: datetime = instant(ms)
    return moment.isoformat(timespec="milliseconds")


def _value(column: Column, cell: Any) -> Any:
    """As JSON has it: numbers stay numbers, instants are ISO 8601, yuan a decimal text."""
    if cell is None:
        return None
    if column.kind == "instant":
        return iso(cell)
    return yuan(cell) if column.kind == "yuan" else cell


def _csv_cell(column: Column, cell: Any) -> Any:
    value = _value(column, cell)
    if column.kind == "flag" and value is not None:
        return "true" if value else "false"
    if column.kind in ("text", "day") and isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return value


def _xlsx_cells(sheet: Any, column: Column, cell: Any) -> list[Any]:
    from openpyxl.cell import WriteOnlyCell

    if column.kind == "fen":
        return [cell, _yuan_cell(sheet, cell)]
    if column.kind == "yuan":
        return [_yuan_cell(sheet, cell)]
    value = _value(column, cell)
    if not isinstance(value, str):
        return [value]
    made = WriteOnlyCell(sheet, _CONTROL.sub(" ", value)[:32_767])
    made.data_type = "s"  # a text stays a text, whatever it begins with
    return [made]


def _yuan_cell(sheet: Any, fen: int | None) -> Any:
    from decimal import Decimal

    from openpyxl.cell import WriteOnlyCell

    made = WriteOnlyCell(sheet, None if fen is None else Decimal(yuan(fen)))
    made.number_format = "0.00"
    return made


def _dumps(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
