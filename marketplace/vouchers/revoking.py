"""Taking a voucher away (撤销): one operator member proposes it with a reason, another confirms or declines.

From the confirmation on nothing new is set aside or leased on it, and what it still has goes back to the pool at once
(P8), as at a lapse; what nodes hold in leases follows when their journals are sealed. What was used before stays used:
it may be claimed until its redeem-by day, and clawed back where it should not have been paid.
"""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.claims.refusals import reason_of
from marketplace.ids import new_id
from marketplace.organisations import audit, notices
from marketplace.vouchers.closing import end_voucher, lock_whole
from marketplace.vouchers.evidence_given import bounded_text
from marketplace.vouchers.issuing import get_voucher, record_step, state_refusal
from marketplace.vouchers.tables import Revocation, Voucher
from marketplace.vouchers.two_persons import check_another, check_person, check_proposer, settle
from model_store.errors import Conflict

REVOCABLE = ("active", "exhausted", "suspended")


def propose(session: Session, voucher_id: str, reason: str, *, member: str) -> Voucher:
    """One person's proposal; the voucher goes on until another one confirms it.

    `Forbidden` PERSON_REQUIRED; `BadInput` REASON_REQUIRED; `Conflict` VOUCHER_STATE, REVOCATION_STATE.
    """
    check_person(member)
    voucher = get_voucher(session, voucher_id)
    if voucher.state not in REVOCABLE:
        raise state_refusal(voucher.state, "revoke")
    reason = bounded_text(reason_of(reason, "note"), "note")
    if proposed(session, voucher) is not None:
        raise _refused("已有待确认的撤销", "its revocation is proposed already",
                       "请由另一人确认或不予确认", "another person confirms or declines that one")  # fmt: skip
    row = Revocation(id=new_id("rvk"), voucher_id=voucher.id, reason=reason, proposed_by=member)
    session.add(row)
    session.flush()
    _record(session, voucher, "propose_revocation", member, note=reason)
    return voucher


def confirm(session: Session, voucher_id: str, *, member: str, at_ms: int) -> Voucher:
    """P8, by another person than who proposed it; the enterprise is told why.

    `Forbidden` PERSON_REQUIRED, TWO_PERSONS; `NotFound` VOUCHER_NOT_FOUND; `Conflict` REVOCATION_STATE, VOUCHER_STATE.
    """
    check_person(member)
    lock_whole(session, [voucher_id])  # what lives under the voucher first, as `vouchers.locks` says
    voucher = get_voucher(session, voucher_id, lock=False)
    row = _proposal(session, voucher)
    check_another(row, member)
    if voucher.state not in REVOCABLE:
        raise state_refusal(voucher.state, "revoke")
    settle(session, row, "confirmed", member, "", at_ms)
    fen = end_voucher(session, voucher, "revoked", at_ms)
    facts = {"note": row.reason, "proposed_by": row.proposed_by, "returned_fen": fen}
    record_step(session, voucher, "revoke", member, **facts)
    notices.notify(
        session,
        voucher.organisation_id,
        "VOUCHER_REVOKED",
        zh=f"模型券已被撤销: {row.reason}; 未用的 {fen} 分已退回资金池, 此前已用部分仍可在 {voucher.redeem_by} 前申报",
        en=f"a voucher was revoked: {row.reason}; {fen} unused fen went back to the pool, and what was used before may "
        f"be claimed until {voucher.redeem_by}",
        link=f"/console/vouchers/{voucher.id}",
    )
    return voucher


def decline(session: Session, voucher_id: str, reason: str, *, member: str, at_ms: int) -> Voucher:
    """Another person says no; the voucher goes on as it was.

    `Forbidden` PERSON_REQUIRED, TWO_PERSONS; `BadInput` REASON_REQUIRED; `Conflict` REVOCATION_STATE.
    """
    check_person(member)
    voucher = get_voucher(session, voucher_id)
    row = _proposal(session, voucher)
    check_another(row, member)
    note = bounded_text(reason_of(reason, "note"), "note")
    settle(session, row, "declined", member, note, at_ms)
    _record(session, voucher, "decline_revocation", member, note=note, proposed_by=row.proposed_by)
    return voucher


def withdraw(session: Session, voucher_id: str, reason: str, *, member: str, at_ms: int) -> Voucher:
    """Who proposed it takes it back.

    `Forbidden` PERSON_REQUIRED, PROPOSER_ONLY; `Conflict` REVOCATION_STATE.
    """
    check_person(member)
    voucher = get_voucher(session, voucher_id)
    row = _proposal(session, voucher)
    check_proposer(row, member)
    note = bounded_text(reason, "note")
    settle(session, row, "withdrawn", member, note, at_ms)
    _record(session, voucher, "withdraw_revocation", member, note=note)
    return voucher


def proposed(session: Session, voucher: Voucher) -> Revocation | None:
    """The proposal that waits for the second person."""
    query = select(Revocation).where(Revocation.voucher_id == voucher.id, Revocation.state == "proposed")
    return session.exec(query).first()


def revocation_view(session: Session, voucher: Voucher, *, confirmed_only: bool) -> dict[str, Any] | None:
    """The newest proposal to revoke a voucher and what came of it; None where there was none. `confirmed_only`: as its
    enterprise is told of it. Who knew of a proposal could use the voucher up before another person confirms it."""
    query = select(Revocation).where(Revocation.voucher_id == voucher.id)
    if confirmed_only:
        query = query.where(Revocation.state == "confirmed")
    row = session.exec(query.order_by(col(Revocation.created_at_ms).desc(), col(Revocation.id).desc())).first()
    names = ("state", "reason", "proposed_by", "decided_by", "note", "created_at_ms", "decided_at_ms")
    return None if row is None else {name: getattr(row, name) for name in names}


def _proposal(session: Session, voucher: Voucher) -> Revocation:
    row = proposed(session, voucher)
    if row is None:
        raise _refused("没有待确认的撤销", "no revocation of it is proposed",
                       "请先提出撤销并写明原因", "propose it first, with a reason")  # fmt: skip
    return row


def _record(session: Session, voucher: Voucher, action: str, member: str, **details: Any) -> None:
    """A step that is the operator's alone: in the voucher's history, and in no audit log of its enterprise."""
    audit.record(session, actor=member, action=f"voucher.{action}", subject=voucher.id, **details)


def _refused(zh: str, en: str, remedy_zh: str, remedy_en: str) -> Conflict:
    return Conflict("REVOCATION_STATE", zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en)
