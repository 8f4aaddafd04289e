"""A proposed voucher that comes to nothing: the second person declines it, or who proposed it withdraws it.

Nothing was held or posted for it, so nothing goes back; its application may be proposed for again. Why, and by whom,
is in the audit log (`voucher.decline`, `voucher.withdraw`), which is never changed.
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from marketplace.claims.refusals import reason_of
from marketplace.organisations import notices
from marketplace.organisations.tables import AuditEvent
from marketplace.vouchers.evidence_given import bounded_text
from marketplace.vouchers.issuing import record_step, state_refusal
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.tables import DROPPED, Voucher

_ACTIONS = ("voucher.decline", "voucher.withdraw")


def decline(session: Session, voucher: Voucher, *, member: str, reason: str) -> Voucher:
    """Another person than who proposed it says no; the enterprise and the operators are told why.

    `Forbidden` PERSON_REQUIRED, TWO_PERSONS; `BadInput` REASON_REQUIRED; `Conflict` VOUCHER_STATE unless proposed.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    if member == voucher.proposed_by:
        raise forbidden("TWO_PERSONS")
    if voucher.state != "proposed":
        raise state_refusal(voucher.state, "decline")
    reason = bounded_text(reason_of(reason, "note"), "note")
    voucher.state = "declined"
    record_step(session, voucher, "decline", member, note=reason, proposed_by=voucher.proposed_by)
    zh = f"拟发放的模型券 {voucher.face_fen} 分未获批准: {reason} (申请仍有效, 可再次提出)"
    en = f"a proposed voucher of {voucher.face_fen} fen was declined: {reason} (the application stands)"
    notices.notify(session, voucher.organisation_id, "VOUCHER_DECLINED", zh=zh, en=en, link="/console/vouchers")
    notices.notify_operators(session, "VOUCHER_DECLINED", zh=zh, en=en, link=f"/city/vouchers/{voucher.id}")
    return voucher


def withdraw(session: Session, voucher: Voucher, *, member: str, reason: str = "") -> Voucher:
    """Who proposed it takes it back.

    `Forbidden` PERSON_REQUIRED, PROPOSER_ONLY; `Conflict` VOUCHER_STATE unless proposed.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    if member != voucher.proposed_by:
        raise forbidden("PROPOSER_ONLY")
    if voucher.state != "proposed":
        raise state_refusal(voucher.state, "withdraw")
    voucher.state = "withdrawn"
    record_step(session, voucher, "withdraw", member, note=bounded_text(reason, "note"))
    return voucher


def why_dropped(session: Session, voucher: Voucher) -> dict[str, str]:
    """`{dropped_by, reason}` of a voucher that was declined or withdrawn, both empty for any other."""
    event = None
    if voucher.state in DROPPED:
        query = select(AuditEvent).where(AuditEvent.subject == voucher.id, col(AuditEvent.action).in_(_ACTIONS))
        event = session.exec(query).first()
    return {"dropped_by": event.actor if event else "", "reason": event.details["note"] if event else ""}
