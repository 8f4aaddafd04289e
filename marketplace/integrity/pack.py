"""The pack of a claim batch: all that an auditor needs to judge each fen of it without this market (`verify`).

It is written as it is read: rows come from the database in pages, are sorted on disk and go into files, the files into
the zip. Memory grows with the batch's lines, with days and their journal segments, never with transfers or usage.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from marketplace.catalogue.tables import PriceVersion
from marketplace.claims.tables import ClaimBatch, ClaimedTransfer, ClaimLine, Correction
from marketplace.clock import now_ms
from marketplace.integrity.chain import canonical, segment_leaf
from marketplace.integrity.days import day_facts, facts_of, list_days, with_leaves
from marketplace.integrity.opened import COLUMNS
from marketplace.integrity.payment import payment_of
from marketplace.integrity.prover import Prover
from marketplace.integrity.records import Records
from marketplace.integrity.segments import segments_of
from marketplace.integrity.spool import spool
from marketplace.integrity.verify import FORMAT
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.usage.tables import Usage
from model_store.blobs import Blobs

PAGE = 1_000  # rows of one read
CHUNK = 1 << 20  # bytes
STANDING = ("in_batch", "accepted")  # states of lines that are claimed
_EPOCH = (1980, 1, 1, 0, 0, 0)  # in the archive: the same pack has the same bytes
_ID = 8  # bytes
_TABLES = (
    "CREATE TABLE proof (transfer TEXT PRIMARY KEY, proof BLOB NOT NULL)",
    "CREATE TABLE usage (usage_id TEXT PRIMARY KEY, line TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE place (node TEXT, epoch INTEGER, seq INTEGER, PRIMARY KEY (node, epoch, seq)) WITHOUT ROWID",
)


def write_pack(session: Session, batch: ClaimBatch, blobs: Blobs, target: Path) -> Path:
    """A zip of the frozen document, its transfers, their usage, the journal segments that this was written down in,
    the proofs of both, the chain of days, the payment or that there is none, and a manifest: at `target`, whole or not
    at all. Answers `target`.

    A line that came back since is not in it: its transfers may stand in another batch by now. `session` must see one
    state throughout (`db.snapshot`). What is under way lies in a folder beside `target`; of a killed process it stays.
    """
    with tempfile.TemporaryDirectory(prefix="pack-", dir=target.parent) as scratch:
        members, zipped = Path(scratch, "members"), Path(scratch, "pack.zip")
        members.mkdir()
        with blobs.path(batch.sha256).open("rb") as source, (members / "claim.json").open("wb") as copy:
            shutil.copyfileobj(source, copy, CHUNK)
        _write_members(session, batch, members, Path(scratch))
        files = sorted(members.iterdir())
        manifest = _manifest(session, batch) | {"files": {path.name: _sha256(path) for path in files}}
        _zip(zipped, canonical(manifest), files)
        os.replace(zipped, target)
    return target


def _write_members(session: Session, batch: ClaimBatch, members: Path, scratch: Path) -> None:
    with spool(scratch, *_TABLES) as sorted_rows, Prover(session, scratch) as prover:
        with (members / "transfers.jsonl").open("wb") as out:
            for page in _claimed(session, batch, scratch):
                _take_transfers(session, page, prover, sorted_rows, out.write)
                _take_usage(session, page, sorted_rows)
        proofs = sorted_rows.execute("SELECT transfer, proof FROM proof ORDER BY transfer")
        _write_json(members / "proofs.json", (b'"%s":%s' % (key.encode(), proof) for key, proof in proofs), b"{}")
        with (members / "usage.csv").open("w", encoding="utf-8", newline="") as table:
            table.write(_csv_line(COLUMNS))
            for (line,) in sorted_rows.execute("SELECT line FROM usage ORDER BY usage_id"):
                table.write(line)
        segments = (canonical(each) for each in _segments(session, prover, sorted_rows))
        _write_json(members / "segments.json", segments, b"[]")
        (members / "payment.json").write_bytes(canonical(payment_of(session, batch, prover)))
    _write_json(members / "days.json", (canonical(day_facts(row)) for row in list_days(session)), b"[]")


def _manifest(session: Session, batch: ClaimBatch) -> dict[str, Any]:
    lines = select(ClaimLine.id).where(ClaimLine.batch_id == batch.id, col(ClaimLine.state).in_(STANDING))
    return {
        "format": FORMAT,
        "batch": batch.id,
        "claim_sha256": batch.sha256,
        "state": batch.state,
        "total_fen": batch.total_fen,
        "lines": list(session.exec(lines.order_by(col(ClaimLine.id)))),
        "made_at_ms": now_ms(),
    }


def _claimed(session: Session, batch: ClaimBatch, scratch: Path) -> Iterator[list[int]]:
    """The transfers of the lines that stand, in order, a page at a time.

    Read once and kept on disk: with a limit and a place to go on from, the database would go through the batch again
    for each page.
    """
    query = (
        sa.select(col(ClaimedTransfer.transfer_id))
        .join(ClaimLine, col(ClaimLine.id) == col(ClaimedTransfer.line_id))
        .where(col(ClaimLine.batch_id) == batch.id, col(ClaimLine.state).in_(STANDING))
        .order_by(col(ClaimedTransfer.transfer_id))
    )
    ids = Records(scratch, _ID)
    try:
        for (transfer,) in _rows(session, query):
            ids.append(transfer.to_bytes(_ID))
        for start in range(0, len(ids), PAGE):
            yield [int.from_bytes(each) for each in ids.between(start, min(start + PAGE, len(ids)))]
    finally:
        ids.close()


def _rows(session: Session, query: Any) -> Any:
    """Its rows as they come, `PAGE` of them in memory."""
    return session.connection().execute(query, execution_options={"yield_per": PAGE})


def _take_transfers(
    session: Session, page: list[int], prover: Prover, sorted_rows: sqlite3.Connection, write: Any
) -> None:
    """Their leaves are written, their proofs kept to be sorted as JSON sorts its keys: as text."""
    found = select(LedgerTransfer).where(col(LedgerTransfer.id).in_(page)).order_by(col(LedgerTransfer.id))
    rows = session.exec(found).all()
    if len(rows) != len(page):
        raise LookupError(f"of {len(page)} claimed transfers from {page[0]} on, the ledger has {len(rows)}")
    for row, leaf in with_leaves(session, rows, col(LedgerEntry.transfer_id).in_(page)):
        write(leaf + b"\n")
        transfer = row.id or 0
        proof = canonical(prover.transfer(transfer, row.posted_at_ms))
        sorted_rows.execute("INSERT INTO proof VALUES (?, ?)", (str(transfer), proof))


def _take_usage(session: Session, page: list[int], sorted_rows: sqlite3.Connection) -> None:
    """The usage that these transfers carry, with the price it was rated by and what took it back."""
    usage = [column for column in sa.inspect(Usage).columns if column.name in _USAGE]
    query = (
        sa.select(
            *usage,
            col(PriceVersion.unit),
            col(PriceVersion.micro_per_unit),
            col(PriceVersion.kind),  # for nobody: CPython 3.11 keeps freed tuples of just 20 until it collects
            col(Correction.id).label("correction"),
            col(Correction.transfer_id).label("taken_by"),
        )
        .join(PriceVersion, col(PriceVersion.id) == col(Usage.price_version), isouter=True)
        .join(
            Correction,
            sa.and_(col(Correction.usage_id) == col(Usage.usage_id), col(Correction.state) == "posted"),
            isouter=True,
        )
        .where(col(Usage.transfer_id).in_(page))
    )
    for row in _rows(session, query):
        told = row._asdict()
        unit, micro = (row.unit, row.micro_per_unit) if row.unit is not None else ("calls", 0)
        told |= {"unit": unit, "units": row.units.get(unit, 0), "micro_per_unit": micro}
        # taken back before it was charged: what that posted has nothing to do with this charge
        taken_by = row.taken_by if row.taken_by and row.taken_by > row.transfer_id else ""
        told |= {"correction": row.correction or "", "correction_transfer": taken_by}
        line = _csv_line([told[name] for name in COLUMNS])
        sorted_rows.execute("INSERT INTO usage VALUES (?, ?)", (row.usage_id, line))
        sorted_rows.execute("INSERT OR IGNORE INTO place VALUES (?, ?, ?)", (row.node, row.epoch, row.seq))


class _Echo:
    """A file for `csv.writer` that hands each line back."""

    def write(self, line: str) -> str:
        return line


_USAGE = frozenset(COLUMNS)
_csv_line = csv.writer(_Echo(), lineterminator="\n").writerow


def _segments(session: Session, prover: Prover, sorted_rows: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """The shortest recorded segment that has each record, a proved one where there is one: leaf and proof."""
    for node, epoch in sorted_rows.execute("SELECT DISTINCT node, epoch FROM place ORDER BY node, epoch"):
        known = [(each, prover.segment(each)) for each in segments_of(session, node, epoch)]
        # stable: among the proved ones, and among the others, the shortest stays first
        known.sort(key=lambda each: each[1] is None)
        covered: list[tuple[int, int]] = []
        for segment, proof in known:
            span = (segment.first_seq, segment.last_seq)
            if any(_has_record(sorted_rows, node, epoch, *part) for part in _outside(span, covered)):
                covered.append(span)
                yield {"leaf": segment_leaf(facts_of(segment)).decode(), "proof": proof}


def _outside(span: tuple[int, int], covered: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of a span that none of the others covers; both ends of each are counted."""
    left = [span]
    for first, last in covered:
        left = [
            part
            for start, end in left
            for part in ((start, min(end, first - 1)), (max(start, last + 1), end))
            if part[0] <= part[1]
        ]
    return left


def _has_record(sorted_rows: sqlite3.Connection, node: str, epoch: int, first: int, last: int) -> bool:
    query = "SELECT 1 FROM place WHERE node = ? AND epoch = ? AND seq BETWEEN ? AND ? LIMIT 1"
    return sorted_rows.execute(query, (node, epoch, first, last)).fetchone() is not None


def _write_json(path: Path, items: Iterable[bytes], brackets: bytes) -> None:
    """An array or an object, item by item, in the one spelling (`canonical`)."""
    with path.open("wb") as out:
        out.write(brackets[:1])
        for at, item in enumerate(items):
            out.write(b"," + item if at else item)
        out.write(brackets[1:])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _zip(target: Path, manifest: bytes, files: list[Path]) -> None:
    with target.open("wb") as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("manifest.json", _EPOCH), manifest, zipfile.ZIP_DEFLATED)
            for path in files:
                entry = zipfile.ZipInfo(path.name, _EPOCH)
                entry.compress_type, entry.file_size = zipfile.ZIP_DEFLATED, path.stat().st_size
                with path.open("rb") as source, archive.open(entry, "w") as member:
                    shutil.copyfileobj(source, member, CHUNK)
        out.flush()
        os.fsync(out.fileno())  # before it gets its name
