"""Locks in the one order of every writer, so that PostgreSQL makes writers queue instead of ending one as a deadlock.

    node epoch, subscription → reservations → leases → meters → vouchers → caps → accounts

Within each kind by key. A path that reaches further than it begins (a lapse gives back all that lives under a voucher,
a sealed epoch settles many reservations, one after the other) locks everything it may reach before it posts anything:
once an account is changed, no cap and no row may be waited for. SQLite has one writer, and nothing to order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlmodel import Session, col, or_, select

from marketplace.ledger import accounts, caps
from marketplace.ledger.posting import lock_accounts
from marketplace.vouchers.tables import LIVE, OVER, LeaseRow, Reservation, Voucher


def lock_reservations(session: Session, reservation_ids: Iterable[str]) -> list[Reservation]:
    """Those by id, and with them what lives under vouchers of theirs that are over, as a lapse reaches all of it;
    with their leases. Answers all of them."""
    wanted = sorted(set(reservation_ids))
    lapsed = (
        select(Reservation.voucher_id)
        .join(Voucher, col(Voucher.id) == col(Reservation.voucher_id))
        .where(col(Reservation.id).in_(wanted), col(Voucher.state).in_(OVER))
    )
    query = select(Reservation).where(
        or_(
            col(Reservation.id).in_(wanted),
            col(Reservation.voucher_id).in_(lapsed) & col(Reservation.state).in_(LIVE),
        )
    )
    fresh = {"populate_existing": True}  # what was read before it was locked may have changed since
    rows = list(session.exec(query.order_by(col(Reservation.id)).with_for_update().execution_options(**fresh)))
    leases = select(LeaseRow).where(col(LeaseRow.reservation_id).in_([row.id for row in rows]))
    session.exec(leases.order_by(col(LeaseRow.id)).with_for_update().execution_options(**fresh)).all()
    return rows


def lock_entitlement(session: Session, reservations: Sequence[Reservation], pooled: Iterable[str] = ()) -> None:
    """What their coming back may change beyond them: vouchers, caps, and the accounts that others share. `pooled`:
    vouchers whose pool it reaches now, as it does those that are over anyway."""
    reaching = set(pooled)
    vouchers = lock_vouchers(session, {row.voucher_id for row in reservations} | reaching)
    over = [voucher for voucher in vouchers if voucher.state in OVER or voucher.id in reaching]
    contracts = {accounts.cap_contract(row.subscription_id) for row in reservations}
    caps.lock_caps(session, contracts.union(*map(caps_of_voucher, over)))
    of_vouchers = [accounts.available(voucher.id) for voucher in vouchers]
    lock_accounts(session, [*of_vouchers, *(accounts.unissued(voucher.programme_id) for voucher in over)])


def lock_vouchers(session: Session, voucher_ids: Iterable[str]) -> list[Voucher]:
    """By id, as they stand now. Rows that refer to a voucher may be made meanwhile."""
    query = select(Voucher).where(col(Voucher.id).in_(sorted(set(voucher_ids)))).order_by(col(Voucher.id))
    query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return list(session.exec(query))


def caps_of_voucher(voucher: Voucher) -> tuple[str, str]:
    """The counters that hold its face."""
    return voucher.cap_code, voucher.pool_code
