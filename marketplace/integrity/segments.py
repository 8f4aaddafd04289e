"""The hashes of journals, recorded once: of a sealed one whole, of one that is still written what is in the ledger."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from marketplace.db import reading, transaction
from marketplace.integrity.tables import JournalSegment
from marketplace.ledger.posting import insert_ignoring
from marketplace.vouchers.tables import NodeEpoch
from serving.journal_format import JournalUnreadable, read_header, segment_path, sha256_of_prefix


def record_segment(session: Session, segment: JournalSegment) -> None:
    """Keep it; the same bytes of the same journal stay as they were recorded first."""
    session.connection().execute(insert_ignoring(session, JournalSegment).values(**segment.model_dump()))


def record_prefixes(engine: Engine, folder: Path, at_ms: int) -> int:
    """Record what the ledger has of every journal that is not sealed yet; answers how many there were.

    A node may run for months, and what it is paid for meanwhile must be provable too. Reads the journals, without a
    transaction open. Each is append-only, so its beginning stays what it was.
    """
    with reading(engine) as session:
        rows = session.exec(select(NodeEpoch).where(NodeEpoch.state != "sealed", NodeEpoch.last_seq > 0)).all()
    found = [segment for row in rows if (segment := _prefix(folder, row, at_ms)) is not None]
    if found:
        with transaction(engine) as session:
            for segment in found:
                record_segment(session, segment)
    return len(found)


def _prefix(folder: Path, row: NodeEpoch, at_ms: int) -> JournalSegment | None:
    path = segment_path(folder, row.node, row.epoch)
    try:
        header, _ = read_header(path)
        if path.stat().st_size < row.offset_bytes:
            return None
        sha256 = sha256_of_prefix(path, row.offset_bytes)
    except (JournalUnreadable, OSError):  # lost with its disk: then there is nothing to prove by
        return None
    return JournalSegment(
        node=row.node,
        epoch=row.epoch,
        kind="prefix",
        bytes=row.offset_bytes,
        first_seq=header.first_seq,
        last_seq=row.last_seq,
        count=row.last_seq - header.first_seq + 1,
        sha256=sha256,
        recorded_at_ms=at_ms,
    )


def segments_of(session: Session, node: str, epoch: int) -> list[JournalSegment]:
    """What is recorded of a journal, shortest first."""
    query = select(JournalSegment).where(JournalSegment.node == node, JournalSegment.epoch == epoch)
    return list(session.exec(query.order_by(col(JournalSegment.bytes), col(JournalSegment.kind))))
