"""P5 for one batch of usage: what each reservation and each self-paid contract has to post now, and what it carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, select

from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import Posting, balances, insert_ignoring, post_all
from marketplace.usage.rounding import Charge, Meter, accumulate, decide_draws
from marketplace.usage.tables import SelfPayMeter, Usage
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


def charge(session: Session, sums: dict[tuple[str, str], Sum], event: str) -> int:
    """P5 for each reservation and self-paid subscription that has whole fen to post; answers how many."""
    planned: list[tuple[Posting, Sum, str, str]] = []
    for (reservation_id, subscription_id), part in sorted(sums.items()):
        if reservation_id:
            posting, had_waiting = _charge_reservation(session, reservation_id, part, event)
        else:
            posting, had_waiting = _charge_self_pay(session, subscription_id, part, event)
        if posting is not None:
            planned.append((posting, part, subscription_id if had_waiting else "", reservation_id))
    transfers = post_all(session, [posting for posting, *_ in planned])
    for transfer, (_, part, waiting, reservation_id) in zip(transfers, planned, strict=True):
        for row in part.rows:
            row["transfer_id"] = transfer.id
        if waiting:
            session.connection().execute(
                _USAGE.update()
                .where(
                    _USAGE.c.subscription_id == waiting,
                    _USAGE.c.reservation_id == reservation_id,
                    _USAGE.c.transfer_id.is_(None),
                    _USAGE.c.status != "quarantined",
                )
                .values(transfer_id=transfer.id)
            )
    return len(planned)


def _charge_reservation(session: Session, reservation_id: str, part: Sum, event: str) -> tuple[Posting | None, bool]:
    reservation = session.get_one(Reservation, reservation_id)
    voucher = session.get_one(Voucher, reservation.voucher_id)
    rules = rules_of(session.get_one(Programme, voucher.programme_id))
    before = Meter(
        reservation.cum_gross_micro,
        reservation.cum_eligible_micro,
        reservation.posted_gross_fen,
        reservation.posted_subsidy_fen,
    )
    charge = accumulate(before, part.gross_micro, part.eligible_micro, reservation.ratio_num, reservation.ratio_den)
    _keep(session, reservation, charge)
    if not charge.gross_fen:
        return None, False
    draws: dict[str, int] = {}
    if charge.subsidy_fen:
        draws = decide_draws(_drawable(session, reservation_id), charge.subsidy_fen)
        contract = accounts.cap_contract(reservation.subscription_id)
        for code in sorted((contract, voucher.pool_code, voucher.cap_code)):
            caps.use(session, caps.open_cap(session, code, 0), charge.subsidy_fen)
        warn_of_voucher(session, voucher)
    posting = postings.p5_used(
        event=f"{reservation_id}:{event}",
        enterprise=voucher.organisation_id,
        provider=reservation.provider_id,
        gross_fen=charge.gross_fen,
        posted_gross_fen=before.posted_gross_fen,
        terms=rules.terms(),
        occurred_at_ms=part.last_ms,
        programme=voucher.programme_id,
        reservation=reservation_id,
        mode=rules.settlement_mode or "reimburse",
        draws=draws,
    )
    return posting, _had_waiting(before)


def _charge_self_pay(session: Session, subscription_id: str, part: Sum, event: str) -> tuple[Posting | None, bool]:
    subscription = session.get_one(Subscription, subscription_id)
    meter = meter_of(session, subscription_id, "")
    before = Meter(gross_micro=meter.cum_gross_micro, posted_gross_fen=meter.posted_gross_fen)
    charge = accumulate(before, part.gross_micro, 0)
    meter.cum_gross_micro, meter.posted_gross_fen = charge.meter.gross_micro, charge.meter.posted_gross_fen
    session.add(meter)
    if not charge.gross_fen:
        return None, False
    posting = postings.p5_used(
        event=f"{subscription_id}:{event}",
        enterprise=subscription.organisation_id,
        provider=subscription.provider_id,
        gross_fen=charge.gross_fen,
        posted_gross_fen=before.posted_gross_fen,
        terms=SELF_PAY_TERMS,
        occurred_at_ms=part.last_ms,
    )
    return posting, _had_waiting(before)


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
