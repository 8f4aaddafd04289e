"""Closing days: a Merkle root over what was posted, chained, so that one number kept elsewhere proves all before it.

Nothing waits for it: there is no lock on the way of a posting. A day is closed an hour after it is over, when no
transaction of it can still be under way; a transfer that appeared in it afterwards, or changed, no longer fits.
"""

from __future__ import annotations

import hashlib
import json
from datetime import date, timedelta
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.clock import end_of_day_ms, policy_date, start_of_day_ms
from marketplace.integrity.merkle import leaf_hash, proof_of, root_of
from marketplace.integrity.tables import DayRoot
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer

PATIENCE_MS = 3_600_000
GENESIS = "0" * 64


def leaf_of(transfer: LedgerTransfer, entries: list[tuple[str, int]]) -> bytes:
    """A transfer as it is hashed: canonical JSON."""
    document = {
        "id": transfer.id,
        "kind": transfer.kind,
        "event": transfer.event_key,
        "occurred_at_ms": transfer.occurred_at_ms,
        "posted_at_ms": transfer.posted_at_ms,
        "entries": [[account, fen] for account, fen in entries],
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def chain_of(previous: str, day: str, transfers: int, root: str) -> str:
    """SHA-256 (hex) over the chain so far and this day's facts, one line each."""
    return hashlib.sha256(f"{previous}\n{day}\n{transfers}\n{root}\n".encode()).hexdigest()


def leaves_of(session: Session, day: date) -> dict[int, bytes]:
    """The leaves of a day's transfers, by id and in its order."""
    first, last = start_of_day_ms(day), end_of_day_ms(day)
    within = (LedgerTransfer.posted_at_ms >= first, LedgerTransfer.posted_at_ms <= last)
    entries: dict[int, list[tuple[str, int]]] = {}
    query = select(LedgerEntry).join(LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
    ordered = query.where(*within).order_by(col(LedgerEntry.transfer_id), col(LedgerEntry.line))
    for entry in session.exec(ordered):
        entries.setdefault(entry.transfer_id, []).append((entry.account, entry.amount_fen))
    rows = session.exec(select(LedgerTransfer).where(*within).order_by(col(LedgerTransfer.id)))
    return {row.id or 0: leaf_of(row, entries.get(row.id or 0, [])) for row in rows}


def close_days(session: Session, at_ms: int) -> list[DayRoot]:
    """Close every day that is over and not closed, from the first posting on. Safe to run as often as one likes."""
    last = session.exec(select(DayRoot).order_by(col(DayRoot.day).desc()).limit(1)).first()
    if last is not None:
        day, chain = date.fromisoformat(last.day) + timedelta(days=1), last.chain
    else:
        first_ms = session.exec(select(func.min(LedgerTransfer.posted_at_ms))).one()
        if first_ms is None:
            return []
        day, chain = policy_date(first_ms), GENESIS
    closed = []
    while end_of_day_ms(day) + PATIENCE_MS < at_ms:
        leaves = [leaf_hash(leaf) for leaf in leaves_of(session, day).values()]
        root = root_of(leaves).hex()
        chain = chain_of(chain, day.isoformat(), len(leaves), root)
        row = DayRoot(day=day.isoformat(), transfers=len(leaves), root=root, chain=chain, closed_at_ms=at_ms)
        session.add(row)
        closed.append(row)
        day += timedelta(days=1)
    session.flush()
    return closed


def list_days(session: Session) -> list[DayRoot]:
    """Oldest first."""
    return list(session.exec(select(DayRoot).order_by(col(DayRoot.day))))


def check_days(session: Session) -> list[str]:
    """Every closed day computed again: what does not fit, in words; [] where all do."""
    wrong, chain = [], GENESIS
    for row in list_days(session):
        leaves = [leaf_hash(leaf) for leaf in leaves_of(session, date.fromisoformat(row.day)).values()]
        root = root_of(leaves).hex()
        if (len(leaves), root) != (row.transfers, row.root):
            wrong.append(f"{row.day}: the transfers of this day are not those it was closed with")
        chain = chain_of(chain, row.day, row.transfers, row.root)
        if chain != row.chain:
            wrong.append(f"{row.day}: the chain is broken")
            chain = row.chain
    return wrong


def proofs_of(session: Session, transfer_ids: list[int]) -> dict[int, dict[str, Any] | None]:
    """For each transfer its day, place and path in that day's tree; None where the day is not closed yet."""
    rows: dict[int, LedgerTransfer] = {}
    for start in range(0, len(transfer_ids), 1_000):
        query = select(LedgerTransfer).where(col(LedgerTransfer.id).in_(transfer_ids[start : start + 1_000]))
        rows |= {row.id or 0: row for row in session.exec(query)}
    closed = {row.day for row in list_days(session)}
    days = {policy_date(row.posted_at_ms) for row in rows.values()}
    trees = {day: leaves_of(session, day) for day in days if day.isoformat() in closed}
    hashed = {day: [leaf_hash(leaf) for leaf in leaves.values()] for day, leaves in trees.items()}
    places = {day: {transfer: at for at, transfer in enumerate(leaves)} for day, leaves in trees.items()}
    found: dict[int, dict[str, Any] | None] = {}
    for transfer_id in transfer_ids:
        day = policy_date(rows[transfer_id].posted_at_ms)
        if day not in trees:
            found[transfer_id] = None
            continue
        index = places[day][transfer_id]
        path = [each.hex() for each in proof_of(hashed[day], index)]
        found[transfer_id] = {"day": day.isoformat(), "index": index, "size": len(hashed[day]), "path": path}
    return found
