"""P5 for one batch of usage: what each reservation and each self-paid contract has to post now, and what it carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, select

from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import Posting, balances, insert_ignoring, post_all
from marketplace.usage.rounding import Charge, Meter, accumulate, decide_draws
from marketplace.usage.tables import SelfPayMeter, Usage
from marketplace.vouchers.locks import caps_of_voucher, lock_vouchers
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import LeaseRow, Programme, Reservation, Subscription, Voucher
from marketplace.vouchers.warnings import warn_of_voucher
from serving.metering import MICRO_PER_FEN

SELF_PAY_TERMS = postings.Terms()  # outside a programme nothing is cut from gross
_USAGE: sa.Table = Usage.__table__  # type: ignore[attr-defined]


@dataclass(slots=True)
class Sum:
    """What one batch adds to one reservation or subscription."""

    gross_micro: int = 0
    eligible_micro: int = 0
    last_ms: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class Due:
    """Whole fen that a reservation ("": a self-paid subscription) has to post now. `before`: its meter until then."""

    reservation_id: str
    subscription_id: str
    part: Sum
    before: Meter
    charge: Charge


def meter(session: Session, sums: dict[tuple[str, str], Sum]) -> list[Due]:
    """Count the sums on the meters of reservations and self-paid subscriptions; answers what is due of it."""
    found = []
    for (reservation_id, subscription_id), part in sorted(sums.items()):
        if reservation_id:
            before, charge = _meter_reservation(session, reservation_id, part)
        else:
            before, charge = _meter_self_pay(session, subscription_id, part)
        if charge.gross_fen:
            found.append(Due(reservation_id, subscription_id, part, before, charge))
    return found


def charge(session: Session, dues: Sequence[Due], event: str) -> int:
    """P5 for each; answers how many. Vouchers and caps of all of them are locked before anything is posted: one after
    the other, two batches would wait for each other (`vouchers.locks`)."""
    subsidised = [
        session.get_one(Reservation, due.reservation_id)
        for due in dues
        if due.reservation_id and due.charge.subsidy_fen
    ]
    if subsidised:
        vouchers = lock_vouchers(session, {row.voucher_id for row in subsidised})
        contracts = {accounts.cap_contract(row.subscription_id) for row in subsidised}
        caps.lock_caps(session, contracts.union(*map(caps_of_voucher, vouchers)))
    transfers = post_all(session, [_posting(session, due, event) for due in dues])
    for transfer, due in zip(transfers, dues, strict=True):
        for row in due.part.rows:
            row["transfer_id"] = transfer.id
        if _had_waiting(due.before):
            session.connection().execute(
                _USAGE.update()
                .where(
                    _USAGE.c.subscription_id == due.subscription_id,
                    _USAGE.c.reservation_id == due.reservation_id,
                    _USAGE.c.transfer_id.is_(None),
                    _USAGE.c.status != "quarantined",
                )
                .values(transfer_id=transfer.id)
            )
    return len(dues)


def _meter_reservation(session: Session, reservation_id: str, part: Sum) -> tuple[Meter, Charge]:
    reservation = session.get_one(Reservation, reservation_id)
    before = Meter(
        reservation.cum_gross_micro,
        reservation.cum_eligible_micro,
        reservation.posted_gross_fen,
        reservation.posted_subsidy_fen,
    )
    charge = accumulate(before, part.gross_micro, part.eligible_micro, reservation.ratio_num, reservation.ratio_den)
    _keep(session, reservation, charge)
    return before, charge


def _meter_self_pay(session: Session, subscription_id: str, part: Sum) -> tuple[Meter, Charge]:
    meter = meter_of(session, subscription_id, "")
    before = Meter(gross_micro=meter.cum_gross_micro, posted_gross_fen=meter.posted_gross_fen)
    charge = accumulate(before, part.gross_micro, 0)
    meter.cum_gross_micro, meter.posted_gross_fen = charge.meter.gross_micro, charge.meter.posted_gross_fen
    session.add(meter)
    return before, charge


def _posting(session: Session, due: Due, event: str) -> Posting:
    """P5, with the voucher's part counted on its caps."""
    facts: dict[str, Any] = {
        "gross_fen": due.charge.gross_fen,
        "posted_gross_fen": due.before.posted_gross_fen,
        "occurred_at_ms": due.part.last_ms,
    }
    if not due.reservation_id:
        subscription = session.get_one(Subscription, due.subscription_id)
        facts |= {"enterprise": subscription.organisation_id, "provider": subscription.provider_id}
        return postings.p5_used(event=f"{subscription.id}:{event}", terms=SELF_PAY_TERMS, **facts)
    reservation = session.get_one(Reservation, due.reservation_id)
    voucher = session.get_one(Voucher, reservation.voucher_id)
    rules = rules_of(session.get_one(Programme, voucher.programme_id))
    facts |= {"enterprise": voucher.organisation_id, "provider": reservation.provider_id}
    return postings.p5_used(
        event=f"{reservation.id}:{event}",
        terms=rules.terms(),
        programme=voucher.programme_id,
        reservation=reservation.id,
        mode=rules.settlement_mode or "reimburse",
        draws=_draw(session, reservation, voucher, due.charge.subsidy_fen),
        **facts,
    )


def _draw(session: Session, reservation: Reservation, voucher: Voucher, subsidy_fen: int) -> dict[str, int]:
    """Lease → fen that the voucher's part is taken from; counted on the caps, with the voucher's warnings."""
    if not subsidy_fen:
        return {}
    for code in sorted((accounts.cap_contract(reservation.subscription_id), *caps_of_voucher(voucher))):
        caps.use(session, caps.open_cap(session, code, 0), subsidy_fen)
    warn_of_voucher(session, voucher)
    return decide_draws(_drawable(session, reservation.id), subsidy_fen)


def _had_waiting(before: Meter) -> bool:
    """Whether usage of earlier batches may still wait for the transfer that carries it."""
    return before.gross_micro > before.posted_gross_fen * MICRO_PER_FEN


def _keep(session: Session, reservation: Reservation, charge: Charge) -> None:
    meter = charge.meter
    reservation.cum_gross_micro, reservation.cum_eligible_micro = meter.gross_micro, meter.eligible_micro
    reservation.posted_gross_fen, reservation.posted_subsidy_fen = meter.posted_gross_fen, meter.posted_subsidy_fen
    session.add(reservation)


def _drawable(session: Session, reservation_id: str) -> list[tuple[str, int]]:
    """What the reservation's leases hold: sealed ones first (they only wait for this), then the oldest."""
    query = select(LeaseRow.id, LeaseRow.state).where(
        LeaseRow.reservation_id == reservation_id, LeaseRow.state != "settled"
    )
    leases = sorted(session.exec(query), key=lambda each: (each[1] != "sealed", each[0]))
    held = balances(session, [accounts.leased(lease) for lease, _ in leases])
    return [(lease, held[accounts.leased(lease)]) for lease, _ in leases]


def meter_of(session: Session, subscription_id: str, month: str) -> SelfPayMeter:
    """The running total of a contract for a month, or of its whole life (month ""), locked."""
    key = {"subscription_id": subscription_id, "month": month}
    zero = {"cum_gross_micro": 0, "posted_gross_fen": 0}
    session.connection().execute(insert_ignoring(session, SelfPayMeter).values(**key, **zero))
    return session.get_one(SelfPayMeter, (subscription_id, month), with_for_update=True)
