"""Reading a table that somebody uploads: CSV (UTF-8 or GBK; comma, semicolon or tab) or Parquet, bounded."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
from typing import Any

from model_store.errors import BadInput, Refusal, TooLarge

MAX_ROWS = 100_000
MAX_COLUMNS = 2_000
MAX_CELLS = 5_000_000
PARQUET_MAGIC = b"PAR1"
MAX_UNPACKED_BYTES = 512 * 1024 * 1024
MAX_VALUES = 16_000_000  # of a Parquet table, the elements of lists counted
BATCH_BYTES = 128 * 1024 * 1024  # unpacked together at worst
_ENCODINGS = ("utf-8-sig", "gb18030")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_NO_TABLES = {
    b"PK\x03\x04": "Excel (.xlsx) or zip, 请另存为 CSV",
    b"\xd0\xcf\x11\xe0": "Excel (.xls), 请另存为 CSV",
    b"\x1f\x8b\x08\x00": "gzip",
    b"%PDF": "PDF",
}
_CODE = re.compile(r"[+-]?0\d")  # 007 is a code, not a number
csv.field_size_limit(4 * 1024 * 1024)  # a cell may hold a series of samples


def read_table(
    content: bytes, filename: str = "", *, max_rows: int = MAX_ROWS, as_text: bool = False
) -> tuple[list[str], list[dict[str, Any]]]:
    """(headings, rows). CSV cells are numbers where they read as numbers, else text; empty ones None.

    `as_text` leaves CSV cells as they are written, so that a table can be given back unchanged. What the content is
    decides how it is read; `filename` is for the message only.

    Raises `BadInput` TABLE_UNREADABLE, TABLE_EMPTY, HEADING_TWICE, ROW_LENGTH; `TooLarge` TABLE_TOO_LARGE.
    """
    if content[:4] == PARQUET_MAGIC:
        return _read_parquet(content, max_rows)
    if content[:4] in _NO_TABLES:
        raise _unreadable(f"{filename[:80] or 'the file'}: {_NO_TABLES[content[:4]]}")
    return _read_csv(content, max_rows, as_text)


def write_csv(headings: list[str], rows: list[dict[str, Any]]) -> str:
    """RFC 4180 with \\r\\n; floats with their shortest exact text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(headings)
    for row in rows:
        writer.writerow(["" if row.get(heading) is None else row[heading] for heading in headings])
    return buffer.getvalue()


def parse_cell(text: str) -> Any:
    """A number where the text is one (finite), None where it is empty, else the text."""
    stripped = text.strip()
    if not stripped:
        return None
    try:
        number = float(stripped)
    except ValueError:
        return text
    if not math.isfinite(number) or "_" in stripped or _CODE.match(stripped):
        return text
    return int(stripped) if stripped.lstrip("+-").isdigit() and len(stripped) < 18 else number


def _read_csv(content: bytes, max_rows: int, as_text: bool) -> tuple[list[str], list[dict[str, Any]]]:
    text = _decode(content)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[dict[str, Any]] = []
    try:
        headings = [heading.strip() for heading in next(reader, [])]
        _check_headings(headings)
        for number, cells in enumerate(reader, 2):
            if not cells or all(not cell.strip() for cell in cells):
                continue
            if len(cells) != len(headings):
                raise BadInput(
                    "ROW_LENGTH",
                    zh=f"第 {number} 行有 {len(cells)} 个单元格, 表头有 {len(headings)} 列",
                    en=f"line {number} has {len(cells)} cells; the heading has {len(headings)}",
                    remedy_zh="请检查该行的分隔符与引号",
                    remedy_en="check its separators and quotes",
                    field=f"line {number}",
                )
            rows.append(dict(zip(headings, cells if as_text else map(parse_cell, cells), strict=True)))
            if len(rows) > max_rows or len(rows) * len(headings) > MAX_CELLS:
                raise _too_large(max_rows)
    except csv.Error as error:
        raise _unreadable(str(error)) from error
    if not rows:
        raise _empty()
    return headings, rows


def _decode(content: bytes) -> str:
    if content[:2] in _UTF16_MARKS:  # what Excel calls "Unicode text"
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode("utf-16").replace("\r\n", "\n").replace("\r", "\n")
    for encoding in _ENCODINGS:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" in text:
            break
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise _unreadable("neither UTF-8 nor GBK text")


def _read_parquet(content: bytes, max_rows: int) -> tuple[list[str], list[dict[str, Any]]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:  # a lone serving node goes without
        raise _unreadable("this node reads CSV only, 本节点只读 CSV") from error
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
        metadata = file.metadata
        if metadata.num_rows > max_rows or metadata.num_rows * metadata.num_columns > MAX_CELLS:
            raise _too_large(max_rows)
        rows_at_once = _rows_at_once(metadata, max_rows)
        headings = [str(name) for name in file.schema_arrow.names]
        _check_headings(headings)
        rows: list[dict[str, Any]] = []
        unpacked = 0
        for batch in file.iter_batches(batch_size=rows_at_once):
            columns = [
                column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
                for column in batch.columns
            ]
            unpacked += sum(column.nbytes for column in columns)
            if unpacked > MAX_UNPACKED_BYTES:
                raise _too_large(max_rows)
            rows += batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise _unreadable(str(error)[:200]) from error
    if not rows:
        raise _empty()
    return headings, [{name: _plain(cell) for name, cell in row.items()} for row in rows]


def _rows_at_once(metadata: Any, max_rows: int) -> int:
    """How many rows may be unpacked together: the size of a Parquet file says nothing of what is in it.

    A dictionary holds a long cell once for any number of rows (500 bytes were 20 GB), a run holds a list's element
    once. At worst each value is as large as its whole column is stored; raises `TooLarge` where a single row of nested
    values might be too much.
    """
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    columns = [group.column(place) for group in groups for place in range(group.num_columns)]
    stored = sum(column.total_uncompressed_size for column in columns)
    if stored > MAX_UNPACKED_BYTES or sum(column.num_values for column in columns) > MAX_VALUES:
        raise _too_large(max_rows)
    schema = metadata.schema
    for place in range(metadata.num_columns):
        mine = [group.column(place) for group in groups]
        of_any_length = "BYTE_ARRAY" in schema.column(place).physical_type
        if of_any_length and schema.column(place).max_repetition_level:
            worst = max((each.num_values * each.total_uncompressed_size for each in mine), default=0)
            if worst > MAX_UNPACKED_BYTES:
                raise _too_large(max_rows)
    return int(min(MAX_ROWS, max(1, BATCH_BYTES // max(1, stored))))


def _plain(cell: Any) -> Any:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _check_headings(headings: list[str]) -> None:
    if not headings or all(not heading for heading in headings):
        raise _empty()
    if len(headings) > MAX_COLUMNS:
        raise _too_large(MAX_ROWS)
    seen: set[str] = set()
    for heading in headings:
        if heading in seen or not heading:
            raise BadInput(
                "HEADING_TWICE",
                zh=f"列名“{heading}”为空或重复",
                en=f"the heading {heading!r} is empty or occurs twice",
                remedy_zh="请让每一列有唯一的列名",
                remedy_en="give each column a name of its own",
                field=heading or "heading",
            )
        seen.add(heading)


def _unreadable(why: str) -> BadInput:
    return BadInput(
        "TABLE_UNREADABLE",
        zh=f"无法读取表格: {why}",
        en=f"the table cannot be read: {why}",
        remedy_zh="请上传带表头的 CSV (UTF-8 或 GBK) 或 Parquet",
        remedy_en="upload a CSV with a heading line (UTF-8 or GBK), or Parquet",
        field="file",
    )


def _empty() -> BadInput:
    return BadInput(
        "TABLE_EMPTY",
        zh="表格没有数据",
        en="the table has no data",
        remedy_zh="请上传带表头和至少一行数据的表格",
        remedy_en="upload a table with a heading line and at least one row",
        field="file",
    )


def _too_large(max_rows: int) -> TooLarge:
    return TooLarge(
        "TABLE_TOO_LARGE",
        zh=f"表格超过上限: {max_rows} 行, {MAX_COLUMNS} 列, {MAX_CELLS} 个单元格",
        en=f"the table is over the limit: {max_rows} rows, {MAX_COLUMNS} columns, {MAX_CELLS} cells",
        remedy_zh="请分批上传",
        remedy_en="send it in parts",
        field="file",
    )
