"""Clawbacks: what was paid without right. One person opens, another confirms (P14); then demanded, and recovered or
written off, which takes two persons again."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.claims.batches import person
from marketplace.claims.refusals import amount_beyond, claim_not_found, reason_of
from marketplace.claims.states import CLAWBACK, decide_state
from marketplace.claims.tables import ClaimBatch, ClaimLine, Clawback
from marketplace.ids import new_id
from marketplace.ledger import claim_postings
from marketplace.ledger.posting import post_all
from marketplace.organisations import audit, notices
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Programme


def open_clawback(session: Session, line_id: str, amount_fen: int, reason: str, *, member: str) -> Clawback:
    """`BadInput` CLAWBACK_AMOUNT: at most what is left of the line; all of it where the programme says `full`."""
    person(member)
    reason = reason_of(reason)
    line = session.exec(select(ClaimLine).where(ClaimLine.id == line_id).with_for_update()).first()
    if line is None or line.state != "accepted":
        raise claim_not_found("已支付的申报明细", "paid line", line_id)
    batch = session.get_one(ClaimBatch, line.batch_id)
    opened = select(func.sum(Clawback.amount_fen)).where(Clawback.line_id == line.id, Clawback.state == "opened")
    left = line.subsidy_fen - line.clawed_fen - int(session.exec(opened).one() or 0)
    rules = rules_of(session.get_one(Programme, batch.programme_id))
    if not 0 < amount_fen <= left or (rules.clawback_policy == "full" and amount_fen != left):
        raise amount_beyond(left)
    row = Clawback(
        id=new_id("clb"),
        line_id=line.id,
        organisation_id=line.organisation_id,
        amount_fen=amount_fen,
        reason=reason,
        opened_by=member,
    )
    session.add(row)
    session.flush()
    _record(session, row, "open", member, line=line.id, amount_fen=amount_fen, reason=row.reason)
    return row


def decide(session: Session, row: Clawback, decision: str, *, member: str, at_ms: int, note: str = "") -> Clawback:
    """confirm (P14) | drop | demand | recover | write-off. Confirming and writing off take another person."""
    person(member)
    state = decide_state(CLAWBACK, row.state, decision)
    line = session.exec(select(ClaimLine).where(ClaimLine.id == row.line_id).with_for_update()).one()
    batch = session.get_one(ClaimBatch, line.batch_id)
    if decision == "confirm":
        if member == row.opened_by:
            raise forbidden("TWO_PERSONS")
        move = claim_postings.p14_clawed_back(
            row.id, batch.id, batch.programme_id, row.organisation_id, row.amount_fen, at_ms
        )
        post_all(session, [move])
        line.clawed_fen += row.amount_fen
        row.confirmed_by = member
        session.add(line)
        _tell(session, row)
    elif decision in ("recover", "write-off"):
        if decision == "write-off" and row.write_off_by in ("", member):
            row.write_off_by = member  # the first proposes; it is written off when another one says so too
            _record(session, row, "propose-write-off", member, note=note)
            return row
        move = claim_postings.p14_ended(row.id, batch.programme_id, row.organisation_id, row.amount_fen, at_ms)
        post_all(session, [move])
        row.ended_by = member
    row.state = state
    _record(session, row, decision, member, note=note)
    return row


def _tell(session: Session, row: Clawback) -> None:
    notices.notify(
        session,
        row.organisation_id,
        "CLAWBACK_CONFIRMED",
        zh=f"须退回补贴 {row.amount_fen} 分: {row.reason}",
        en=f"{row.amount_fen} fen of subsidy are to be paid back: {row.reason}",
        link="/console/vouchers",
    )


def get_clawback(session: Session, row_id: str) -> Clawback:
    """Locked. `NotFound` CLAIM_NOT_FOUND."""
    row = session.exec(select(Clawback).where(Clawback.id == row_id).with_for_update()).first()
    if row is None:
        raise claim_not_found("追回", "clawback", row_id)
    return row


def list_clawbacks(session: Session) -> list[Clawback]:
    """Newest first."""
    return list(session.exec(select(Clawback).order_by(col(Clawback.created_at_ms).desc())))


def _record(session: Session, row: Clawback, action: str, member: str, **details: Any) -> None:
    session.add(row)
    audit.record(
        session,
        actor=member,
        organisation_id=row.organisation_id,
        action=f"clawback.{action}",
        subject=row.id,
        **details,
    )
