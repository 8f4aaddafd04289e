"""What contracts and vouchers really paid, from the ledger: the postings of use (P5) and their corrections (P13)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from marketplace.clock import policy_date, start_of_day_ms
from marketplace.findings.found import SHOWN, Contract, Drawn
from marketplace.ledger import accounts
from marketplace.ledger.tables import LedgerEntry, LedgerTransfer
from marketplace.vouchers.signals import Signals
from marketplace.vouchers.tables import Reservation, Voucher

CHUNK = 500


def spent(
    session: Session, programme: str, contracts: Sequence[Contract]
) -> Iterator[tuple[Contract, dict[str, Any]]]:  # fmt: skip
    """Each contract with `spent_fen` (gross settled under the programme) and `last_use_day`."""
    query = (
        select(Reservation)
        .join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
        .where(Voucher.programme_id == programme)
    )
    of: dict[str, list[Reservation]] = defaultdict(list)
    for row in session.exec(query):
        of[row.subscription_id].append(row)
    last = _last_use(session, [row.id for held in of.values() for row in held])
    for contract in contracts:
        held = of[contract.id]
        at = max((last.get(row.id, 0) for row in held), default=0)
        day = policy_date(at).isoformat() if at else ""
        yield contract, {"spent_fen": sum(row.posted_gross_fen for row in held), "last_use_day": day}


def _last_use(session: Session, reservations: list[str]) -> dict[str, int]:
    """By reservation, when the last use in its charges was."""
    found: dict[str, int] = {}
    for start in range(0, len(reservations), CHUNK):
        codes = {accounts.used(each): each for each in reservations[start : start + CHUNK]}
        query = (
            sa.select(col(LedgerEntry.account), sa.func.max(col(LedgerTransfer.occurred_at_ms)))
            .join(LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
            .where(col(LedgerEntry.account).in_(codes), col(LedgerTransfer.kind) == "P5")
            .group_by(col(LedgerEntry.account))
        )
        found |= {codes[account]: int(at) for account, at in session.connection().execute(query)}
    return found


def drawn(session: Session, programme: str, signals: Signals) -> Iterator[Drawn]:
    """Each voucher of the programme, with what it paid in all and in its last days."""
    query = select(Voucher).where(Voucher.programme_id == programme, col(Voucher.issued_at_ms).is_not(None))
    for voucher in session.exec(query.order_by(col(Voucher.id))):
        held = list(session.exec(select(Reservation).where(Reservation.voucher_id == voucher.id)))
        if held:
            yield _drawn(session, voucher, held, signals)


def _drawn(session: Session, voucher: Voucher, held: list[Reservation], signals: Signals) -> Drawn:
    use_by, issued = date.fromisoformat(voucher.use_by), policy_date(voucher.issued_at_ms or 0)
    late_from = use_by - timedelta(days=signals.burst_days - 1)
    since, amount, at = start_of_day_ms(late_from), col(LedgerEntry.amount_fen), col(LedgerTransfer.occurred_at_ms)
    of_voucher = (
        col(LedgerEntry.account).in_([accounts.used(row.id) for row in held]),
        col(LedgerTransfer.kind).in_(("P5", "P13")),
    )
    joined = sa.join(LedgerEntry, LedgerTransfer, col(LedgerTransfer.id) == col(LedgerEntry.transfer_id))
    zero = (
        sa.func.coalesce(sa.func.sum(amount), 0),
        sa.func.coalesce(sa.func.sum(sa.case((at >= since, amount), else_=0)), 0),
    )
    late = sa.func.coalesce(sa.func.sum(sa.case((at >= since, 1), else_=0)), 0)
    run = session.connection().execute
    paid, last, count = run(sa.select(*zero, late).select_from(joined).where(*of_voucher)).one()
    ids = sa.select(col(LedgerTransfer.id)).select_from(joined).where(*of_voucher, at >= since).distinct()
    charges = run(ids.order_by(col(LedgerTransfer.id)).limit(SHOWN)).scalars().all()
    return Drawn(
        voucher=voucher.id,
        organisation=voucher.organisation_id,
        contracts=tuple(sorted({row.subscription_id for row in held})),
        issued_day=issued.isoformat(),
        use_by=voucher.use_by,
        late_from=late_from.isoformat(),
        valid_days=(use_by - issued).days + 1,
        paid_fen=int(paid),
        late_fen=int(last),
        charges=tuple(each for each in charges if each is not None),
        charge_count=int(count),
    )
