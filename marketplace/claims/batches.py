"""Claim batches: assembled, frozen under a hash (P9), submitted, noticed, approved, paid (P10), reconciled.

Two persons freeze and approve, two enter and confirm a payment. A line may be returned (P11) or finally rejected (P12)
until the approval. A batch that comes back frees all its lines for another.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from marketplace.claims.assembly import Candidate, assemble, usage_digest
from marketplace.claims.backing import back_line, free_line
from marketplace.claims.document import claim_document, keep
from marketplace.claims.refusals import (
    claim_not_found,
    nothing_to_claim,
    payment_day,
    payment_mismatch,
    payment_reference,
    payment_twice,
    period_invalid,
    reason_of,
)
from marketplace.claims.states import BATCH, LINES_OPEN, PAYMENT_STANDS, decide_state
from marketplace.claims.tables import ClaimBatch, ClaimedTransfer, ClaimLine
from marketplace.ids import new_id
from marketplace.ledger import caps, claim_postings
from marketplace.ledger.posting import post_all
from marketplace.organisations import audit, notices
from marketplace.vouchers.applications import decide_notice_over
from marketplace.vouchers.locks import caps_of_voucher, lock_vouchers
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.rollout import get_programme, rules_of
from marketplace.vouchers.tables import Programme
from model_store.blobs import Blobs
from model_store.errors import Conflict


def create(session: Session, programme: str, from_day: str, to_day: str, *, member: str) -> ClaimBatch:
    """A batch to look at: it takes nothing until it is frozen. `Forbidden` PERSON_REQUIRED, `BadInput` CLAIM_PERIOD."""
    person(member)
    try:
        first, last = date.fromisoformat(from_day), date.fromisoformat(to_day)
    except ValueError:
        raise period_invalid() from None
    if first > last:
        raise period_invalid()
    row = ClaimBatch(
        id=new_id("clm"),
        programme_id=get_programme(session, programme).id,
        from_day=first.isoformat(),
        to_day=last.isoformat(),
        created_by=member,
    )
    session.add(row)
    session.flush()
    _record(session, row, "create", member)
    return row


def candidates(session: Session, batch: ClaimBatch, at_ms: int, *, lock: bool = False) -> list[Candidate]:
    """What freezing it now would claim, and what it would leave out and why. `lock`: until the transaction ends."""
    rules = rules_of(session.get_one(Programme, batch.programme_id))
    days = date.fromisoformat(batch.from_day), date.fromisoformat(batch.to_day)
    return assemble(session, batch.programme_id, rules, *days, at_ms, lock=lock)


def freeze(session: Session, batch: ClaimBatch, blobs: Blobs, *, member: str, at_ms: int) -> ClaimBatch:
    """P9: everything claimable of the period moves into the batch, under the hash of its document.

    `Conflict` CLAIM_EMPTY where there is nothing. Two batches that race for one charge: the database's key decides.
    """
    person(member)
    state = decide_state(BATCH, batch.state, "freeze")
    found = candidates(session, batch, at_ms, lock=True)
    taken = [candidate for candidate in found if not candidate.reason]
    if not taken:
        raise nothing_to_claim(len(found))
    lines = []
    for candidate in taken:
        count, digest = usage_digest(session, [charge.transfer_id for charge in candidate.charges])
        line = ClaimLine(
            id=new_id("cln"),
            batch_id=batch.id,
            reservation_id=candidate.reservation.id,
            voucher_id=candidate.voucher.id,
            subscription_id=candidate.reservation.subscription_id,
            organisation_id=candidate.voucher.organisation_id,
            provider_id=candidate.reservation.provider_id,
            gross_fen=candidate.gross_fen,
            subsidy_fen=candidate.subsidy_fen,
            usage_count=count,
            usage_sha256=digest,
        )
        session.add(line)
        session.flush()
        session.add_all(ClaimedTransfer(transfer_id=each.transfer_id, line_id=line.id) for each in candidate.charges)
        back_line(session, line)
        lines.append((line, candidate))
    session.flush()
    subsidy = {line.reservation_id: line.subsidy_fen for line, _ in lines}
    post_all(session, [claim_postings.p9_frozen(batch.id, subsidy, at_ms)])
    batch.frozen_by, batch.frozen_at_ms, batch.state = member, at_ms, state
    batch.total_fen = sum(subsidy.values())
    programme = session.get_one(Programme, batch.programme_id)
    batch.sha256 = keep(blobs, claim_document(session, batch, programme, lines, at_ms))
    _record(session, batch, "freeze", member, sha256=batch.sha256, total_fen=batch.total_fen, lines=len(lines))
    return batch


def advance(
    session: Session, batch: ClaimBatch, decision: str, *, member: str, at_ms: int, note: str = ""
) -> ClaimBatch:
    """submit | review | publish | approve | return | discard | unpay | reconcile."""
    person(member)
    state = decide_state(BATCH, batch.state, decision)
    if decision == "publish":
        batch.notice_at_ms = at_ms
    elif decision == "approve":
        _check_approval(session, batch, member, at_ms)
        batch.approved_by = member
    elif decision == "return":
        _give_lines_back(session, batch, lines_of(session, batch, "in_batch"), note or "batch returned", at_ms)
    elif decision == "unpay":
        batch.payment, batch.payment_by, batch.payment_key = {}, "", None
    batch.state, batch.note = state, note or batch.note
    _record(session, batch, decision, member, note=note)
    return batch


def _check_approval(session: Session, batch: ClaimBatch, member: str, at_ms: int) -> None:
    if member == batch.frozen_by:
        raise forbidden("TWO_PERSONS")
    days = rules_of(session.get_one(Programme, batch.programme_id)).notice_days
    if not decide_notice_over(batch.notice_at_ms, days, at_ms):
        raise Conflict(
            "NOTICE_RUNNING",
            zh=f"公示期为 {days} 天, 尚未结束",
            en=f"the public notice runs for {days} days and is not over",
            remedy_zh="请在公示期满后批准",
            remedy_en="approve when it is over",
        )
    if not batch.total_fen:
        raise nothing_to_claim(0)


def decide_line(
    session: Session, batch: ClaimBatch, line: ClaimLine, decision: str, *, member: str, at_ms: int, reason: str
) -> ClaimLine:
    """return (P11: it may be claimed again) or reject (P12: its entitlement goes back to the pool), before approval."""
    person(member)
    if batch.state not in LINES_OPEN or line.state != "in_batch" or decision not in ("return", "reject"):
        decide_state({}, f"{batch.state}/{line.state}", decision)
    reason = reason_of(reason, "note")
    if decision == "return":
        _give_lines_back(session, batch, [line], reason, at_ms)
    else:
        _reject_line(session, batch, line, reason, at_ms)
    _record(session, batch, f"line.{decision}", member, line=line.id, reason=reason)
    notices.notify(
        session,
        line.organisation_id,
        f"CLAIM_LINE_{line.state.upper()}",
        zh=f"申报明细被{'退回' if decision == 'return' else '驳回'}: {reason}",
        en=f"a line of the claim was {line.state}: {reason}",
        link="/console/vouchers",
    )
    return line


def _give_lines_back(session: Session, batch: ClaimBatch, lines: Sequence[ClaimLine], reason: str, at_ms: int) -> None:
    """P11, all at once: line by line their accounts would be locked in another order than by ingest."""
    for line in lines:
        line.state, line.reason = "returned", reason
        batch.total_fen -= line.subsidy_fen
        free_line(session, line)
        for claimed in session.exec(select(ClaimedTransfer).where(ClaimedTransfer.line_id == line.id)):
            session.delete(claimed)
    session.add_all([*lines, batch])
    post_all(
        session,
        [
            claim_postings.p11_returned(batch.id, line.id, line.reservation_id, line.subsidy_fen, at_ms)
            for line in lines
        ],
    )


def _reject_line(session: Session, batch: ClaimBatch, line: ClaimLine, reason: str, at_ms: int) -> None:
    """The charges stay claimed by the rejected line, so that nobody claims them again. Caps before accounts."""
    (voucher,) = lock_vouchers(session, [line.voucher_id])
    voucher.returned_fen += line.subsidy_fen
    codes = sorted(caps_of_voucher(voucher))
    for cap in [caps.open_cap(session, code, 0) for code in codes]:
        caps.take_back(session, cap, line.subsidy_fen)
        caps.release(session, cap, line.subsidy_fen)
    rules = rules_of(session.get_one(Programme, batch.programme_id))
    mode = rules.settlement_mode or "reimburse"
    move = claim_postings.p12_rejected(
        batch.id, line.id, batch.programme_id, line.organisation_id, line.subsidy_fen, mode, at_ms
    )
    line.state, line.reason = "rejected", reason
    batch.total_fen -= line.subsidy_fen
    post_all(session, [move])
    session.add_all([line, batch, voucher])
    session.flush()


def enter_payment(
    session: Session, batch: ClaimBatch, *, reference: str, paid_on: str, amount_fen: int, member: str, at_ms: int
) -> ClaimBatch:
    """What the government's payment says; another person confirms it. `BadInput` PAYMENT_DAY, PAYMENT_REFERENCE;
    `Conflict` PAYMENT_MISMATCH, PAYMENT_TWICE for a reference that another batch has, of whatever programme: one
    payment pays one batch."""
    person(member)
    state = decide_state(BATCH, batch.state, "pay")
    if amount_fen != batch.total_fen:
        raise payment_mismatch(batch.total_fen, amount_fen)
    try:
        day = date.fromisoformat(paid_on)
    except ValueError:
        raise payment_day() from None
    reference = reference.strip()[:200]
    if not _spelled(reference):
        raise payment_reference()
    _check_paid_once(session, batch.id, reference)
    _take_reference(session, batch, reference)
    batch.payment = {"reference": reference, "paid_on": day.isoformat(), "amount_fen": amount_fen}
    batch.payment_by, batch.state = member, state
    _record(session, batch, "pay", member, **batch.payment)
    return batch


def confirm_payment(session: Session, batch: ClaimBatch, *, member: str, at_ms: int) -> ClaimBatch:
    """P10. `Forbidden` TWO_PERSONS for who entered it, `Conflict` PAYMENT_TWICE."""
    person(member)
    state = decide_state(BATCH, batch.state, "confirm-payment")
    if member == batch.payment_by:
        raise forbidden("TWO_PERSONS")
    _check_paid_once(session, batch.id, batch.payment["reference"])  # two may have it from before migration 0020
    payee = rules_of(session.get_one(Programme, batch.programme_id)).payee or ""  # none is active without
    subsidy: dict[str, int] = defaultdict(int)
    for line in lines_of(session, batch, "in_batch"):
        subsidy[line.provider_id] += line.subsidy_fen
        line.state = "accepted"
        session.add(line)
    post_all(session, [claim_postings.p10_paid(batch.id, batch.programme_id, subsidy, payee, at_ms)])
    batch.state, batch.paid_by, batch.paid_at_ms = state, member, at_ms
    _record(session, batch, "confirm-payment", member, total_fen=batch.total_fen)
    return batch


def _take_reference(session: Session, batch: ClaimBatch, reference: str) -> None:
    """The database's key refuses a second batch whose entry, at the same instant, did not see this one."""
    batch_id = batch.id
    try:
        with session.begin_nested():
            batch.payment_key = _spelled(reference)
            session.add(batch)
            session.flush()
    except IntegrityError:
        _check_paid_once(session, batch_id, reference)
        raise


def _check_paid_once(session: Session, batch_id: str, reference: str) -> None:
    query = select(ClaimBatch).where(ClaimBatch.id != batch_id, col(ClaimBatch.state).in_(PAYMENT_STANDS))
    for other in session.exec(query.order_by(col(ClaimBatch.id))):
        if _spelled(other.payment.get("reference", "")) == _spelled(reference):
            raise payment_twice(reference, other.id)


def _spelled(reference: str) -> str:
    """A reference as it is compared: two spellings of one payment differ in spaces, width or case."""
    return "".join(unicodedata.normalize("NFKC", reference).split()).casefold()


def get_batch(session: Session, batch_id: str) -> ClaimBatch:
    """Locked. `NotFound` CLAIM_NOT_FOUND."""
    row = session.exec(select(ClaimBatch).where(ClaimBatch.id == batch_id).with_for_update()).first()
    if row is None:
        raise claim_not_found("申报批次", "claim batch", batch_id)
    return row


def get_line(session: Session, batch: ClaimBatch, line_id: str) -> ClaimLine:
    """Locked. `NotFound` CLAIM_NOT_FOUND."""
    query = select(ClaimLine).where(ClaimLine.id == line_id, ClaimLine.batch_id == batch.id)
    row = session.exec(query.with_for_update()).first()
    if row is None:
        raise claim_not_found("申报明细", "line", line_id)
    return row


def lines_of(session: Session, batch: ClaimBatch, state: str = "") -> list[ClaimLine]:
    query = select(ClaimLine).where(ClaimLine.batch_id == batch.id)
    if state:
        query = query.where(ClaimLine.state == state)
    return list(session.exec(query.order_by(col(ClaimLine.id))))


def list_batches(session: Session, programme_id: str = "") -> list[ClaimBatch]:
    """Newest first."""
    query = select(ClaimBatch)
    if programme_id:
        query = query.where(ClaimBatch.programme_id == programme_id)
    return list(session.exec(query.order_by(col(ClaimBatch.created_at_ms).desc(), col(ClaimBatch.id).desc())))


def person(member: str) -> None:
    """`Forbidden` PERSON_REQUIRED where no member stands behind the actor."""
    if not member:
        raise forbidden("PERSON_REQUIRED")


def _record(session: Session, batch: ClaimBatch, action: str, member: str, **details: Any) -> None:
    session.add(batch)
    audit.record(session, actor=member, action=f"claim.{action}", subject=batch.id, **details)
