"""Every entry of the ledger, summed again in portions: the memory it takes grows with the accounts, not the entries.

The sums are the database's, a range of transfers at a time, so that ten million entries are a few thousand rows here,
and the interpreter is free while they are read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from marketplace.ledger.tables import LedgerEntry, LedgerTransfer

PORTION = 50_000  # transfers
SHOWN = 50
CHARGES = ("P5", "P13")  # what puts into Q.used, and what takes a charge back


@dataclass(slots=True)
class Replayed:
    """`balances`: account → fen; `charged`: Q.used account → fen of charges less corrections, whatever became of them
    since. `lopsided`: the first transfers that do not sum to zero in some ledger; `lopsided_count` counts all."""

    balances: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    charged: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    entries: int = 0
    transfers: int = 0
    last_transfer: int = 0
    lopsided: list[int] = field(default_factory=list)
    lopsided_count: int = 0


def replay(session: Session, portion: int = PORTION) -> Replayed:
    """Sum everything. On PostgreSQL the session must read one snapshot (`db.snapshot`), or what is posted meanwhile
    is in one figure and not in another."""
    found = Replayed()
    first, last = session.exec(select(func.min(LedgerTransfer.id), func.max(LedgerTransfer.id))).one()
    if first is None or last is None:
        return found
    found.last_transfer = last
    found.transfers = session.exec(select(func.count()).select_from(LedgerTransfer)).one()
    for start in range(first, last + 1, portion):
        _take(session, found, start, start + portion)
    return found


def _take(session: Session, found: Replayed, start: int, end: int) -> None:
    within = (col(LedgerEntry.transfer_id) >= start, col(LedgerEntry.transfer_id) < end)
    is_charge = sa.case((col(LedgerTransfer.kind).in_(CHARGES), 1), else_=0).label("is_charge")
    amount = func.sum(LedgerEntry.amount_fen)
    sums = (
        sa.select(col(LedgerEntry.account), is_charge, amount, func.count())
        .join(LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
        .where(*within)
        .group_by(col(LedgerEntry.account), is_charge)
    )
    for account, charge, fen, count in session.connection().execute(sums):
        found.balances[account] += int(fen)
        found.entries += count
        if charge and account.startswith("Q.used["):
            found.charged[account] += int(fen)
    ledger = func.substr(LedgerEntry.account, 1, 1)
    unequal = (
        sa.select(col(LedgerEntry.transfer_id))
        .where(*within)
        .group_by(col(LedgerEntry.transfer_id), ledger)
        .having(amount != 0)
        .order_by(col(LedgerEntry.transfer_id))
    )
    wrong = sorted(set(session.connection().execute(unequal).scalars()))
    found.lopsided_count += len(wrong)
    found.lopsided += wrong[: max(0, SHOWN - len(found.lopsided))]
