"""Corrections: one usage record taken back (P13), proposed by one person and posted by another.

What stands in a batch is not corrected under it: return the line first, or claw back what was paid. The voucher's part
goes back to the lease it was used under, whose node may still count on it; what it does not need follows by P6.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.claims.batches import person
from marketplace.claims.refusals import claim_not_found, correction_refused, reason_of
from marketplace.claims.states import CORRECTION, Reversal, decide_reversal, decide_state
from marketplace.claims.tables import ClaimedTransfer, Correction
from marketplace.ids import new_id
from marketplace.ledger import accounts, caps, claim_postings, postings
from marketplace.ledger.posting import Posting, balance, post_all
from marketplace.organisations import audit, notices
from marketplace.usage.charges import SELF_PAY_TERMS, meter_of
from marketplace.usage.rounding import Meter
from marketplace.usage.tables import Usage
from marketplace.vouchers.closing import release_idle, return_remainders
from marketplace.vouchers.lease_rows import month_of
from marketplace.vouchers.locks import caps_of_voucher, lock_entitlement, lock_reservations
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import LIVE, OVER, LeaseRow, Programme, Reservation, Voucher


def propose(session: Session, usage_id: str, reason: str, *, member: str) -> Correction:
    """`NotFound` CLAIM_NOT_FOUND; `Conflict` CORRECTION_NOTHING, CORRECTION_TWICE, CORRECTION_CLAIMED (the
    record's own charge stands in a batch), CORRECTION_CARRIED (the fen that it would take back do)."""
    person(member)
    reason = reason_of(reason)
    usage = session.get(Usage, usage_id)
    if usage is None:
        raise claim_not_found("用量记录", "usage record", usage_id)
    _check(session, usage)
    if session.exec(select(Correction.id).where(Correction.usage_id == usage_id)).first() is not None:
        raise correction_refused(
            "CORRECTION_TWICE",
            "该用量记录已有更正",
            "there is a correction of this record already",
            "请查看更正台账",
            "see the register of corrections",
        )
    if usage.reservation_id:
        _reversal(session, usage, session.get_one(Reservation, usage.reservation_id))
    row = Correction(
        id=new_id("cor"),
        usage_id=usage_id,
        organisation_id=usage.organisation_id,
        reason=reason,
        proposed_by=member,
    )
    session.add(row)
    session.flush()
    _record(session, row, "propose", member, usage=usage_id, reason=row.reason)
    return row


def decide(session: Session, row: Correction, decision: str, *, member: str, at_ms: int) -> Correction:
    """post (P13, by another person than who proposed it: `Forbidden` TWO_PERSONS) or decline."""
    person(member)
    state = decide_state(CORRECTION, row.state, decision)
    row.decided_by = member
    if decision == "decline":
        row.state = state
        _record(session, row, "decline", member)
        return row
    if member == row.proposed_by:
        raise forbidden("TWO_PERSONS")
    usage = session.get_one(Usage, row.usage_id)
    _lock(session, usage)
    _check(session, usage)
    posting = (
        _of_reservation(session, row, usage, at_ms) if usage.reservation_id else _of_own(session, row, usage, at_ms)
    )
    if posting is not None:
        row.transfer_id = post_all(session, [posting])[0].id
    if usage.reservation_id:
        _pass_on(session, session.get_one(Reservation, usage.reservation_id), at_ms)
    row.state = state
    _record(session, row, "post", member, gross_fen=row.gross_fen, subsidy_fen=row.subsidy_fen)
    notices.notify(
        session,
        row.organisation_id,
        "USAGE_CORRECTED",
        zh=f"用量 {row.usage_id} 已更正, 退回 {row.gross_fen} 分",
        en=f"usage {row.usage_id} was corrected; {row.gross_fen} fen were taken back",
        link=f"/console/usage/{row.usage_id}",
    )
    return row


def _lock(session: Session, usage: Usage) -> None:
    """Before the record is judged: a freeze holds the same lock, so its charge is not claimed whole in between."""
    if usage.reservation_id:
        query = select(Reservation.id).where(Reservation.id == usage.reservation_id)
        session.exec(query.with_for_update()).all()
        session.refresh(usage)


def _check(session: Session, usage: Usage) -> None:
    if usage.status == "quarantined" or not usage.amount_micro or not usage.subscription_id:
        raise correction_refused(
            "CORRECTION_NOTHING",
            "该记录没有扣费, 无需更正",
            "nothing was charged for this record",
            "请核对编号",
            "check the id",
        )
    if usage.transfer_id is not None and session.get(ClaimedTransfer, usage.transfer_id) is not None:
        raise correction_refused(
            "CORRECTION_CLAIMED",
            "该记录的扣费已列入申报批次",
            "the charge of this record stands in a claim batch",
            "请先退回该行; 已支付的请发起追回",
            "return the line first, or claw back what was paid",
        )


def _of_reservation(session: Session, row: Correction, usage: Usage, at_ms: int) -> Posting | None:
    reservations = lock_reservations(session, [usage.reservation_id])
    meter_of(session, usage.subscription_id, month_of(usage.occurred_at_ms))  # locked: meters come before caps
    reservation = session.get_one(Reservation, usage.reservation_id)
    lock_entitlement(session, reservations, [reservation.voucher_id])
    voucher = session.get_one(Voucher, reservation.voucher_id)
    rules = rules_of(session.get_one(Programme, voucher.programme_id))
    before, eligible, taken = _reversal(session, usage, reservation)
    after = taken.meter
    reservation.cum_gross_micro, reservation.cum_eligible_micro = after.gross_micro, after.eligible_micro
    reservation.posted_gross_fen, reservation.posted_subsidy_fen = after.posted_gross_fen, after.posted_subsidy_fen
    session.add(reservation)
    lease = session.get_one(LeaseRow, usage.lease_id)
    lease.eligible_micro -= eligible
    session.add(lease)
    if taken.subsidy_fen:
        for code in _caps_of(reservation, voucher):
            caps.take_back(session, caps.open_cap(session, code, 0), taken.subsidy_fen)
    _lower_month(session, usage, eligible * reservation.ratio_num // reservation.ratio_den)
    return _posting(
        row,
        usage,
        taken,
        before,
        at_ms,
        terms=rules.terms(),
        programme=voucher.programme_id,
        reservation=reservation.id,
        lease=lease.id,
        mode=rules.settlement_mode or "reimburse",
    )


def _reversal(session: Session, usage: Usage, reservation: Reservation) -> tuple[Meter, int, Reversal]:
    """The reservation's meter, what of the record the voucher paid its share of, and what taking it back comes to.

    A fen of subsidy waits for the gross fen that carries it, so a later charge may have carried this record's: where
    that stands in a batch, nothing is left to take back from. `Conflict` CORRECTION_CARRIED.
    """
    before = Meter(
        reservation.cum_gross_micro,
        reservation.cum_eligible_micro,
        reservation.posted_gross_fen,
        reservation.posted_subsidy_fen,
    )
    eligible = usage.amount_micro if usage.lease_kind == "subsidised" else 0
    taken = decide_reversal(before, usage.amount_micro, eligible, reservation.ratio_num, reservation.ratio_den)
    unclaimed = balance(session, accounts.used(reservation.id)) if taken.subsidy_fen else 0
    if taken.subsidy_fen > unclaimed:
        raise correction_refused(
            "CORRECTION_CARRIED",
            "该记录的补贴随后一笔扣费入账, 该笔扣费已列入申报批次",
            "this record's subsidy was posted with a later charge, and that one stands in a claim batch",
            "请先退回含该合同后续扣费的行; 已支付的请发起追回",
            "return the line that has the contract's later charges, or claw back what was paid",
        )
    return before, eligible, taken


def _of_own(session: Session, row: Correction, usage: Usage, at_ms: int) -> Posting | None:
    meter = meter_of(session, usage.subscription_id, "")
    before = Meter(gross_micro=meter.cum_gross_micro, posted_gross_fen=meter.posted_gross_fen)
    taken = decide_reversal(before, usage.amount_micro, 0)
    meter.cum_gross_micro, meter.posted_gross_fen = taken.meter.gross_micro, taken.meter.posted_gross_fen
    session.add(meter)
    _lower_month(session, usage, 0)
    return _posting(row, usage, taken, before, at_ms, terms=SELF_PAY_TERMS)


def _lower_month(session: Session, usage: Usage, voucher_micro: int) -> None:
    """The enterprise's own cost of that month, for its cap."""
    month = meter_of(session, usage.subscription_id, month_of(usage.occurred_at_ms))
    month.cum_gross_micro = max(0, month.cum_gross_micro - usage.amount_micro + voucher_micro)
    session.add(month)


def _posting(row: Correction, usage: Usage, taken: Reversal, before: Meter, at_ms: int, **facts: Any) -> Posting | None:
    row.gross_fen, row.subsidy_fen = taken.gross_fen, taken.subsidy_fen
    if not taken.gross_fen and not taken.subsidy_fen:
        return None  # less than a fen: what is not posted yet is less by it
    return claim_postings.p13_corrected(
        correction=row.id,
        enterprise=usage.organisation_id,
        provider=usage.provider_id,
        gross_fen=taken.gross_fen,
        subsidy_fen=taken.subsidy_fen,
        posted_gross_fen=before.posted_gross_fen,
        at_ms=at_ms,
        **facts,
    )


def _pass_on(session: Session, reservation: Reservation, at_ms: int) -> None:
    """What came back to a lease that is sealed goes on to its reservation, as far as nothing used may still need it;
    from a reservation that is over it goes where the remainder went: to the voucher, or to the pool."""
    return_remainders(session, reservation, at_ms)
    fen = balance(session, accounts.reserved(reservation.id), lock=True)
    if not fen or reservation.state in LIVE:
        return
    voucher = session.get_one(Voucher, reservation.voucher_id)
    if voucher.state not in OVER:
        release_idle(session, reservation, at_ms)
        return
    voucher.returned_fen += fen
    reservation.released_fen += fen
    move = postings.p8_lapsed(voucher.programme_id, voucher.id, 0, {reservation.id: fen}, voucher.returned_fen, at_ms)
    for code in _caps_of(reservation, voucher):
        caps.release(session, caps.open_cap(session, code, 0), fen)
    post_all(session, [move])
    session.add_all([voucher, reservation])


def _caps_of(reservation: Reservation, voucher: Voucher) -> list[str]:
    """The counters that a charge uses, in the order that every writer locks them."""
    return sorted((accounts.cap_contract(reservation.subscription_id), *caps_of_voucher(voucher)))


def get_correction(session: Session, row_id: str) -> Correction:
    """Locked. `NotFound` CLAIM_NOT_FOUND."""
    row = session.exec(select(Correction).where(Correction.id == row_id).with_for_update()).first()
    if row is None:
        raise claim_not_found("更正", "correction", row_id)
    return row


def list_corrections(session: Session) -> list[Correction]:
    """Newest first."""
    return list(session.exec(select(Correction).order_by(col(Correction.created_at_ms).desc())))


def _record(session: Session, row: Correction, action: str, member: str, **details: Any) -> None:
    session.add(row)
    audit.record(
        session,
        actor=member,
        organisation_id=row.organisation_id,
        action=f"correction.{action}",
        subject=row.id,
        **details,
    )
