"""Closing days: a Merkle root over what was posted, chained, so that one number kept elsewhere proves all before it.

Nothing waits for it: there is no lock on the way of a posting. A day is closed an hour after it is over, when no
transaction of it can still be under way; a transfer that appeared in it afterwards, or changed, no longer fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.clock import end_of_day_ms, policy_date, start_of_day_ms
from marketplace.integrity.chain import GENESIS, LAYOUT, SEGMENT_FIELDS, canonical, chain_of, segment_leaf
from marketplace.integrity.merkle import leaf_hash, levels_of, path_in, root_of
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
    for transfer_id, leaf in _transfers(session, day):
        found.transfers.append(transfer_id)
        found.hashes.append(leaf_hash(leaf))
    if layout < 2:
        return found
    first, last = start_of_day_ms(day), end_of_day_ms(day)
    query = select(JournalSegment).where(JournalSegment.recorded_at_ms >= first, JournalSegment.recorded_at_ms <= last)
    for row in sorted(session.exec(query), key=key_of):  # not by the database: collations differ
        found.segments.append(key_of(row))
        found.hashes.append(leaf_hash(segment_leaf(facts_of(row))))
    return found


def _transfers(session: Session, day: date) -> Iterator[tuple[int, bytes]]:
    within = (LedgerTransfer.posted_at_ms >= start_of_day_ms(day), LedgerTransfer.posted_at_ms <= end_of_day_ms(day))
    after = 0
    while True:
        query = select(LedgerTransfer).where(*within, col(LedgerTransfer.id) > after)
        rows = session.exec(query.order_by(col(LedgerTransfer.id)).limit(CHUNK)).all()
        if not rows:
            return
        lines = select(LedgerEntry.transfer_id, LedgerEntry.account, LedgerEntry.amount_fen)
        between = (LedgerEntry.transfer_id >= (rows[0].id or 0), LedgerEntry.transfer_id <= (rows[-1].id or 0))
        entries: dict[int, list[tuple[str, int]]] = {}
        ordered = lines.where(*between).order_by(col(LedgerEntry.transfer_id), col(LedgerEntry.line))
        for transfer_id, account, fen in session.exec(ordered):
            entries.setdefault(transfer_id, []).append((account, fen))
        for row in rows:
            yield row.id or 0, leaf_of(row, entries.get(row.id or 0, []))
            session.expunge(row)
        after = rows[-1].id or 0


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


@dataclass(slots=True)
class _Tree:
    """A closed day's tree, and the places of its leaves."""

    day: str
    levels: list[list[bytes]]
    transfers: dict[int, int]
    segments: dict[SegmentKey, int]

    def proof(self, index: int) -> dict[str, Any]:
        path = [each.hex() for each in path_in(self.levels, index)]
        return {"day": self.day, "index": index, "size": len(self.levels[0]), "path": path}


class Prover:
    """Proofs of transfers and segments; each day's tree is built once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._layouts = {row.day: row.layout for row in list_days(session)}
        self._days: dict[str, _Tree] = {}

    def transfer(self, row: LedgerTransfer) -> dict[str, Any] | None:
        """Day, place and path in that day's tree; None where the day is not closed yet."""
        found = self._day(row.posted_at_ms)
        return None if found is None else found.proof(found.transfers[row.id or 0])

    def segment(self, row: JournalSegment) -> dict[str, Any] | None:
        """As `transfer`."""
        found = self._day(row.recorded_at_ms)
        index = None if found is None else found.segments.get(key_of(row))
        return None if found is None or index is None else found.proof(index)

    def _day(self, at_ms: int) -> _Tree | None:
        day = policy_date(at_ms)
        name = day.isoformat()
        layout = self._layouts.get(name)
        if layout is None:
            return None
        if name not in self._days:
            leaves = leaves_of(self._session, day, layout)
            transfers = {transfer: at for at, transfer in enumerate(leaves.transfers)}
            segments = {key: at for at, key in enumerate(leaves.segments, len(transfers))}
            self._days[name] = _Tree(name, levels_of(leaves.hashes), transfers, segments)
        return self._days[name]
