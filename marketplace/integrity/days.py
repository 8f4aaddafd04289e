"""Closing days: a Merkle root over what was posted, chained, so that one number kept elsewhere proves all before it.

Nothing waits for it: there is no lock on the way of a posting. A day is closed an hour after it is over, when no
transaction of it can still be under way; a transfer that appeared in it afterwards, or changed, no longer fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.clock import end_of_day_ms, policy_date, start_of_day_ms
from marketplace.integrity.chain import GENESIS, LAYOUT, SEGMENT_FIELDS, canonical, chain_of, segment_leaf
from marketplace.integrity.merkle import leaf_hash, root_of
from marketplace.integrity.tables import DayRoot, JournalSegment
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer

PATIENCE_MS = 3_600_000
CHUNK = 5_000
SegmentKey = tuple[str, int, str, int]


@dataclass(slots=True)
class Leaves:
    """The leaf hashes of a day in the order of its tree, and whose they are: transfers by id, then segments."""

    transfers: list[int] = field(default_factory=list)
    segments: list[SegmentKey] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)

    def facts(self, day: date, layout: int) -> dict[str, Any]:
        counts = {"transfers": len(self.transfers), "segments": len(self.segments)}
        return {"day": day.isoformat(), "layout": layout, "root": root_of(self.hashes).hex()} | counts


def leaf_of(transfer: LedgerTransfer, entries: list[tuple[str, int]]) -> bytes:
    """A transfer as it is hashed: canonical JSON."""
    return canonical(
        {
            "id": transfer.id,
            "kind": transfer.kind,
            "event": transfer.event_key,
            "occurred_at_ms": transfer.occurred_at_ms,
            "posted_at_ms": transfer.posted_at_ms,
            "entries": [[account, fen] for account, fen in entries],
        }
    )


def leaves_of(session: Session, day: date, layout: int = LAYOUT) -> Leaves:
    """The leaves of a day, read in portions: 32 bytes of each stay in memory."""
    found = Leaves()
    for whose, leaf in each_leaf(session, day, layout):
        if isinstance(whose, int):
            found.transfers.append(whose)
        else:
            found.segments.append(whose)
        found.hashes.append(leaf)
    return found


def each_leaf(session: Session, day: date, layout: int) -> Iterator[tuple[int | SegmentKey, bytes]]:
    """Whose each leaf of a day is, and its hash, in the order of the day's tree."""
    for transfer_id, leaf in _transfers(session, day):
        yield transfer_id, leaf_hash(leaf)
    if layout < 2:
        return
    first, last = start_of_day_ms(day), end_of_day_ms(day)
    query = select(JournalSegment).where(JournalSegment.recorded_at_ms >= first, JournalSegment.recorded_at_ms <= last)
    for row in sorted(session.exec(query), key=key_of):  # not by the database: collations differ
        yield key_of(row), leaf_hash(segment_leaf(facts_of(row)))


def _transfers(session: Session, day: date) -> Iterator[tuple[int, bytes]]:
    within = (LedgerTransfer.posted_at_ms >= start_of_day_ms(day), LedgerTransfer.posted_at_ms <= end_of_day_ms(day))
    after = 0
    while True:
        query = select(LedgerTransfer).where(*within, col(LedgerTransfer.id) > after)
        rows = session.exec(query.order_by(col(LedgerTransfer.id)).limit(CHUNK)).all()
        if not rows:
            return
        between = (LedgerEntry.transfer_id >= (rows[0].id or 0), LedgerEntry.transfer_id <= (rows[-1].id or 0))
        for row, leaf in with_leaves(session, rows, *between):
            yield row.id or 0, leaf
            session.expunge(row)
        after = rows[-1].id or 0


def with_leaves(
    session: Session, rows: Sequence[LedgerTransfer], *entries_of: Any
) -> Iterator[tuple[LedgerTransfer, bytes]]:
    """Each of these transfers with its leaf. `entries_of`: what narrows the entries down to theirs, at least."""
    entries: dict[int, list[tuple[str, int]]] = {}
    lines = select(LedgerEntry.transfer_id, LedgerEntry.account, LedgerEntry.amount_fen).where(*entries_of)
    for transfer_id, account, fen in session.exec(lines.order_by(col(LedgerEntry.transfer_id), col(LedgerEntry.line))):
        entries.setdefault(transfer_id, []).append((account, fen))
    for row in rows:
        yield row, leaf_of(row, entries.get(row.id or 0, []))


def key_of(row: JournalSegment) -> SegmentKey:
    return row.node, row.epoch, row.kind, row.bytes


def facts_of(row: JournalSegment) -> dict[str, Any]:
    return {name: getattr(row, name) for name in SEGMENT_FIELDS}


def is_due(session: Session, at_ms: int) -> bool:
    """Whether some day is over and not closed."""
    day, _ = _next_day(session)
    return day is not None and end_of_day_ms(day) + PATIENCE_MS < at_ms


def close_days(session: Session, at_ms: int) -> list[DayRoot]:
    """Close every day that is over and not closed, from the first posting on. Safe to run as often as one likes."""
    day, chain = _next_day(session)
    closed: list[DayRoot] = []
    while day is not None and end_of_day_ms(day) + PATIENCE_MS < at_ms:
        facts = leaves_of(session, day).facts(day, LAYOUT)
        chain = chain_of(chain, facts)
        row = DayRoot(**facts, chain=chain, closed_at_ms=at_ms)
        session.add(row)
        closed.append(row)
        day += timedelta(days=1)
    session.flush()
    return closed


def _next_day(session: Session) -> tuple[date | None, str]:
    """The first day that is not closed (None before any posting), and the chain up to it."""
    last = session.exec(select(DayRoot).order_by(col(DayRoot.day).desc()).limit(1)).first()
    if last is not None:
        return date.fromisoformat(last.day) + timedelta(days=1), last.chain
    first_ms = session.exec(select(func.min(LedgerTransfer.posted_at_ms))).one()
    return None if first_ms is None else policy_date(first_ms), GENESIS


def list_days(session: Session) -> list[DayRoot]:
    """Oldest first."""
    return list(session.exec(select(DayRoot).order_by(col(DayRoot.day))))


def day_facts(row: DayRoot) -> dict[str, Any]:
    """A closed day as packs and the chain have it."""
    return {name: getattr(row, name) for name in ("day", "layout", "transfers", "segments", "root", "chain")}


def check_days(session: Session) -> list[str]:
    """Every closed day computed again: what does not fit, in words; [] where all do."""
    wrong, chain = [], GENESIS
    for row in list_days(session):
        facts = leaves_of(session, date.fromisoformat(row.day), row.layout).facts(
            date.fromisoformat(row.day), row.layout
        )
        if facts["transfers"] != row.transfers or facts["segments"] != row.segments or facts["root"] != row.root:
            wrong.append(f"{row.day}: the transfers and journal segments of this day are not those it was closed with")
        try:
            chain = chain_of(chain, day_facts(row))
        except ValueError as error:
            wrong.append(str(error))
        if chain != row.chain:
            wrong.append(f"{row.day}: the chain is broken")
            chain = row.chain
    return wrong
