"""Sample sets: a factory's own 20–1000 rows or images, kept for a day (or until deleted) and gone with a receipt.

Bytes lie under `$ALGOMART_HOME/samples/<id>/`: `table.parquet` with the factory's own headings, or
`images/<label>/<file>`. They are the factory's: no vendor sees them, models answer to them in the market's own
process, and what choose returns are metrics only.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from marketplace.choosing.tables import SampleSet
from marketplace.clock import instant, now_ms
from marketplace.db import reading, transaction
from marketplace.ids import new_id
from marketplace.organisations import audit
from model_store.errors import BadInput, NotFound, Refusal, TooLarge
from model_store.processing.tables import read_table

MIN_ROWS, MAX_ROWS = 20, 1000
MAX_IMAGE_BYTES = 8 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_TABLE_BYTES = 64 << 20
MAX_COLUMNS = 500
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
UNLABELLED = "_"
LABEL_HEADINGS = frozenset(
    [
        "label",
        "target",
        "class",
        "y",
        "result",
        "fault",
        "failure",
        "defect",
        "category",
        "标签",
        "类别",
        "结果",
        "目标",
        "故障",
        "缺陷",
        "分类",
        "真值",
    ]
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """An upload understood: either `rows` (with `headings`) or `images` [(label or "_", name, bytes)]."""

    kind: str
    headings: list[str]
    rows: list[dict[str, Any]]
    images: list[tuple[str, str, bytes]]

    @property
    def count(self) -> int:
        return len(self.rows) if self.kind == "table" else len(self.images)


def parse_upload(filename: str, content: bytes) -> Parsed:
    """A CSV or Parquet table, or a zip of images in label folders. Raises `BadInput` SAMPLES_*, `TooLarge`."""
    if content[:4] == b"PK\x03\x04":
        parsed = Parsed("images", [], [], _read_images(content))
    elif len(content) > MAX_TABLE_BYTES:
        raise _table_too_large()
    else:
        headings, rows = read_table(content, filename)
        parsed = Parsed("table", list(headings), list(rows), [])
    if not MIN_ROWS <= parsed.count <= MAX_ROWS:
        raise BadInput(
            "SAMPLES_COUNT",
            zh=f"样本有 {parsed.count} 条, 须在 {MIN_ROWS} 至 {MAX_ROWS} 之间",
            en=f"there are {parsed.count} samples; {MIN_ROWS} to {MAX_ROWS} are wanted",
            remedy_zh="样本太少时区间没有意义, 太多时请随机抽取 1000 条",
            remedy_en="too few tell nothing; of more, take a random 1000",
            field="file",
        )
    return parsed


def create_sample_set(
    engine: Engine,
    home: Path,
    organisation_id: str,
    *,
    filename: str,
    content: bytes,
    form: Mapping[str, str],
    ttl_hours: int,
) -> SampleSet:
    """Parse, write the bytes, then the row: a row never names bytes that are not there."""
    parsed = parse_upload(filename, content)
    label = _label_column(parsed, form.get("label_column", ""))
    row = SampleSet(
        id=new_id("smp"),
        organisation_id=organisation_id,
        kind=parsed.kind,
        filename=filename[:200],
        rows=parsed.count,
        columns=describe_columns(parsed),
        label_column=label,
        sha256=hashlib.sha256(content).hexdigest(),
        expires_at_ms=now_ms() + ttl_hours * 3_600_000,
    )
    folder = home / "samples" / row.id
    folder.mkdir(parents=True)
    try:
        _write(parsed, folder)
        with transaction(engine) as session:
            session.add(row)
            audit.record(
                session,
                actor=organisation_id,
                organisation_id=organisation_id,
                action="samples.create",
                subject=row.id,
                rows=row.rows,
                kind=row.kind,
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return row


def delete_sample_set(engine: Engine, home: Path, organisation_id: str, sample_set_id: str) -> dict[str, Any]:
    """Delete the bytes now; the receipt stays. Deleting twice answers the same receipt."""
    with transaction(engine) as session:
        row = own_sample_set(session, organisation_id, sample_set_id, deleted_too=True)
        if row.deleted_at_ms is None:
            _erase(session, home, row, by="organisation")
        return dict(row.receipt)


def purge_expired(engine: Engine, home: Path, at_ms: int) -> int:
    """Delete the bytes of every sample set whose time is over; how many there were."""
    with transaction(engine) as session:
        due = select(SampleSet).where(col(SampleSet.deleted_at_ms).is_(None), SampleSet.expires_at_ms <= at_ms)
        rows = list(session.exec(due))
        for row in rows:
            _erase(session, home, row, by="time_to_live")
    return len(rows)


def own_sample_set(
    session: Session, organisation_id: str, sample_set_id: str, *, deleted_too: bool = False
) -> SampleSet:
    """The organisation's own, living sample set; `NotFound` SAMPLES_NOT_FOUND otherwise."""
    row = session.get(SampleSet, sample_set_id)
    if row is not None and row.organisation_id == organisation_id:
        alive = row.deleted_at_ms is None and row.expires_at_ms > now_ms()
        if alive or deleted_too:
            return row
    raise samples_not_found(sample_set_id)


def load_sample_set(engine: Engine, home: Path, organisation_id: str, sample_set_id: str) -> tuple[SampleSet, Parsed]:
    """The row and its samples again."""
    with reading(engine) as session:
        row = own_sample_set(session, organisation_id, sample_set_id)
    folder = home / "samples" / row.id
    if row.kind == "table":
        headings, rows = read_table((folder / "table.parquet").read_bytes(), "table.parquet")
        return row, Parsed("table", list(headings), list(rows), [])
    images = [
        (path.parent.name, path.name, path.read_bytes())
        for path in sorted((folder / "images").glob("*/*"))
        if path.is_file()
    ]
    return row, Parsed("images", [], [], images)


def sample_set_view(row: SampleSet) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "filename": row.filename,
        "rows": row.rows,
        "columns": row.columns,
        "label_column": row.label_column,
        "sha256": row.sha256,
        "created_at_ms": row.created_at_ms,
        "expires_at_ms": row.expires_at_ms,
        "deleted_at_ms": row.deleted_at_ms,
    }


def samples_not_found(sample_set_id: str) -> Refusal:
    return NotFound(
        "SAMPLES_NOT_FOUND",
        zh=f"没有样本集 {sample_set_id[:60]}, 或已过期、已删除",
        en=f"there is no sample set {sample_set_id[:60]!r}; it may have expired or been deleted",
        remedy_zh="请重新上传样本",
        remedy_en="upload the samples again",
        field="sample_set_id",
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def describe_columns(parsed: Parsed) -> list[dict[str, Any]]:
    """`[{"name", "kind": number|text|label, "missing", "distinct"}]`; for images the labels with their counts."""
    if parsed.kind == "images":
        counts: dict[str, int] = {}
        for label, _, _ in parsed.images:
            counts[label] = counts.get(label, 0) + 1
        return [{"name": name, "kind": "label", "count": count} for name, count in sorted(counts.items())]
    described = []
    for heading in parsed.headings[:MAX_COLUMNS]:
        cells = [row.get(heading) for row in parsed.rows]
        present = [cell for cell in cells if cell is not None and cell != ""]
        numeric = all(_is_number(cell) for cell in present) and bool(present)
        described.append(
            {
                "name": heading,
                "kind": "number" if numeric else "text",
                "missing": len(cells) - len(present),
                "distinct": len({str(cell) for cell in present}),
            }
        )
    return described


def _is_number(cell: Any) -> bool:
    if isinstance(cell, (int, float)):
        return True
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _label_column(parsed: Parsed, wanted: str) -> str | None:
    """The column that holds the truth: as said, else one whose heading says so; images carry it in their folders."""
    if parsed.kind == "images":
        return "folder" if any(label != UNLABELLED for label, _, _ in parsed.images) else None
    if wanted:
        if wanted not in parsed.headings:
            raise BadInput(
                "COLUMN_MISSING",
                zh=f"表中没有标签列“{wanted[:80]}”",
                en=f"the table has no label column {wanted[:80]!r}",
                remedy_zh=f"现有列: {', '.join(parsed.headings[:20])}",
                remedy_en=f"its columns are: {', '.join(parsed.headings[:20])}",
                field="label_column",
            )
        return wanted
    return next((heading for heading in parsed.headings if heading.strip().lower() in LABEL_HEADINGS), None)


def _read_images(content: bytes) -> list[tuple[str, str, bytes]]:
    """(label, name, bytes) of each picture; the last folder of its path is its label, none is unlabelled."""
    found: list[tuple[str, str, bytes]] = []
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for entry in archive.infolist():
                path = PurePosixPath(entry.filename)
                if entry.is_dir() or path.suffix.lower() not in IMAGE_SUFFIXES or "__MACOSX" in path.parts:
                    continue
                total += entry.file_size
                if entry.file_size > MAX_IMAGE_BYTES or total > MAX_TOTAL_BYTES or len(found) >= MAX_ROWS + 1:
                    raise _too_large(path.name)
                with archive.open(entry) as stream:
                    body = stream.read(MAX_IMAGE_BYTES + 1)
                if len(body) > MAX_IMAGE_BYTES:
                    raise _too_large(path.name)
                label = path.parent.name or UNLABELLED
                found.append((_safe(label), f"{len(found):04d}{path.suffix.lower()}", body))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise BadInput(
            "SAMPLES_UNREADABLE",
            zh="上传的压缩包无法读取",
            en="the uploaded zip cannot be read",
            remedy_zh="请重新打包: 每个标签一个文件夹, 内为 png/jpg/bmp 图片, 不要加密",
            remedy_en="pack it again: a folder for each label with png/jpg/bmp pictures, not encrypted",
            field="file",
        ) from error
    return found


def _safe(label: str) -> str:
    """A label as a folder name: no separators, no leading dot, bounded."""
    cleaned = "".join("_" if character in "/\\:\0" else character for character in label).strip().lstrip(".")
    return cleaned[:60] or UNLABELLED


def _too_large(name: str) -> TooLarge:
    return TooLarge(
        "SAMPLES_TOO_LARGE",
        zh=f"样本超过上限 (在 {name[:80]}): 单张 8 MB, 合计 256 MB, 最多 {MAX_ROWS} 张",
        en=f"the samples are over the limit (at {name[:80]}): 8 MB a picture, 256 MB in all, {MAX_ROWS} pictures",
        remedy_zh="请缩小图片或减少数量",
        remedy_en="make the pictures smaller, or send fewer",
        field="file",
    )


def _table_too_large() -> TooLarge:
    return TooLarge(
        "SAMPLES_TOO_LARGE",
        zh=f"样本表格超过上限 {MAX_TABLE_BYTES >> 20} MB",
        en=f"the table of samples is over {MAX_TABLE_BYTES >> 20} MB",
        remedy_zh=f"请只保留所需的列, 随机抽取至多 {MAX_ROWS} 行",
        remedy_en=f"keep the columns that matter and at most {MAX_ROWS} rows, taken at random",
        field="file",
    )


def _write(parsed: Parsed, folder: Path) -> None:
    if parsed.kind == "images":
        for label, name, body in parsed.images:
            target = folder / "images" / label
            target.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(body)
        return
    import pyarrow as pa
    import pyarrow.parquet as parquet

    columns = {}
    for heading in parsed.headings:
        cells = [row.get(heading) for row in parsed.rows]
        try:
            columns[heading] = pa.array(cells)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns[heading] = pa.array([None if cell is None else str(cell) for cell in cells])
    parquet.write_table(pa.table(columns), folder / "table.parquet")


def _erase(session: Session, home: Path, row: SampleSet, *, by: str) -> None:
    shutil.rmtree(home / "samples" / row.id, ignore_errors=True)
    row.deleted_at_ms = now_ms()
    row.receipt = {
        "sample_set_id": row.id,
        "sha256": row.sha256,
        "rows": row.rows,
        "deleted_at": instant(row.deleted_at_ms).isoformat(timespec="seconds"),
        "deleted_by": by,
        "statement_zh": "样本文件已从市场的磁盘删除, 仅保留本回执",
        "statement_en": "the samples were deleted from the market's disk; only this receipt is kept",
    }
    session.add(row)
    audit.record(
        session, actor="system" if by != "organisation" else row.organisation_id, organisation_id=row.organisation_id,
        action="samples.delete", subject=row.id, by=by,
    )  # fmt: skip
