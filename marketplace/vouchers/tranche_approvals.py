"""Approving a tranche that waits (P1): one operator member proposes it, another approves or declines."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.claims.refusals import reason_of
from marketplace.ids import new_id
from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import post_all
from marketplace.organisations import audit
from marketplace.vouchers.evidence_given import bounded_text
from marketplace.vouchers.programme import Tranche
from marketplace.vouchers.rollout import get_programme, rules_of
from marketplace.vouchers.tables import Programme, TrancheApproval
from marketplace.vouchers.tranches import taken_of, waiting
from marketplace.vouchers.two_persons import check_another, check_person, check_proposer, settle
from marketplace.vouchers.versions import RUNS, lock_versions, withdrawals
from model_store.errors import Conflict, NotFound


def propose(session: Session, programme_id: str, tranche: str, *, member: str) -> TrancheApproval:
    """One person's proposal; nothing is authorised until another one approves it.

    `Forbidden` PERSON_REQUIRED; `NotFound` PROGRAMME_NOT_FOUND, TRANCHE_NOT_FOUND; `Conflict` TRANCHE_STATE.
    """
    check_person(member)
    programme, part = _waiting_part(session, programme_id, tranche)
    if proposed(session, programme.id, tranche) is not None:
        raise _refused("该批次已有待复核的批准提议", "its approval is proposed already",
                       "请由另一人批准或不予批准", "another person approves or declines it")  # fmt: skip
    row = TrancheApproval(
        id=new_id("tra"), programme_id=programme.id, tranche=part.code, fen=part.fen, proposed_by=member
    )
    session.add(row)
    session.flush()
    _record(session, programme, row, "propose_tranche", member)
    return row


def approve(session: Session, programme_id: str, tranche: str, *, member: str, at_ms: int) -> TrancheApproval:
    """P1, by another person than who proposed it: the tranche less what all versions have committed in it.

    What came back to closed versions meanwhile is withdrawn first, as a new version does (`versions.take_over`): the
    room that it left in the counters is what is authorised here, and must not stand in two versions.
    `Forbidden` PERSON_REQUIRED, TWO_PERSONS; `NotFound` as `propose`; `Conflict` TRANCHE_STATE.
    """
    check_person(member)
    programme, part = _waiting_part(session, programme_id, tranche)
    row = _proposal(session, programme, tranche)
    check_another(row, member)
    settle(session, row, "approved", member, "", at_ms)
    counters = caps.opened(session, accounts.caps_of_pool(programme.code))
    fresh = part.fen - taken_of(programme.code, counters).get(part.code, 0)
    others = [each for each in lock_versions(session, programme.code) if each.id != programme.id]
    moves = withdrawals(session, others, f"{programme.id}:{part.code}", at_ms)
    if fresh > 0:
        moves.append(postings.p1_tranche_approved(programme.id, part.code, fresh, at_ms))
    post_all(session, moves)
    _record(session, programme, row, "approve_tranche", member, proposed_by=row.proposed_by, authorised_fen=fresh)
    return row


def decline(
    session: Session, programme_id: str, tranche: str, reason: str, *, member: str, at_ms: int
) -> TrancheApproval:
    """Another person says no, with a reason; the tranche waits on and may be proposed again.

    `Forbidden` PERSON_REQUIRED, TWO_PERSONS; `BadInput` REASON_REQUIRED; `Conflict` TRANCHE_STATE.
    """
    check_person(member)
    programme = _locked(session, programme_id)
    row = _proposal(session, programme, tranche)
    check_another(row, member)
    settle(session, row, "declined", member, bounded_text(reason_of(reason, "note"), "note"), at_ms)
    _record(session, programme, row, "decline_tranche", member, note=row.note, proposed_by=row.proposed_by)
    return row


def withdraw(
    session: Session, programme_id: str, tranche: str, reason: str, *, member: str, at_ms: int
) -> TrancheApproval:
    """Who proposed it takes it back.

    `Forbidden` PERSON_REQUIRED, PROPOSER_ONLY; `Conflict` TRANCHE_STATE.
    """
    check_person(member)
    programme = _locked(session, programme_id)
    row = _proposal(session, programme, tranche)
    check_proposer(row, member)
    settle(session, row, "withdrawn", member, bounded_text(reason, "note"), at_ms)
    _record(session, programme, row, "withdraw_tranche", member, note=row.note)
    return row


def proposed(session: Session, programme_id: str, tranche: str) -> TrancheApproval | None:
    """The proposal that waits for the second person."""
    query = select(TrancheApproval).where(TrancheApproval.programme_id == programme_id)
    return session.exec(query.where(TrancheApproval.tranche == tranche, TrancheApproval.state == "proposed")).first()


def tranche_views(session: Session, programme: Programme) -> list[dict[str, Any]]:
    """Each tranche with its state: approved (with the programme or by itself), waits, or draft before the programme is
    in force; and the newest proposal of this version, None where there was none."""
    rules = rules_of(programme)
    waits = waiting(session, programme.code, rules)
    query = select(TrancheApproval).where(TrancheApproval.programme_id == programme.id)
    newest = {row.tranche: row for row in session.exec(query.order_by(col(TrancheApproval.created_at_ms),
                                                                     col(TrancheApproval.id)))}  # fmt: skip
    names = ("state", "fen", "proposed_by", "decided_by", "note", "created_at_ms", "decided_at_ms")
    return [
        {
            "tranche": each.code,
            "fen": each.fen,
            "own_approval": each.own_approval,
            "state": "draft" if programme.state == "draft" else "waits" if each.code in waits else "approved",
            "approval": {name: getattr(newest[each.code], name) for name in names} if each.code in newest else None,
        }
        for each in rules.tranches
    ]


def _locked(session: Session, programme_id: str) -> Programme:
    """The version that is meant, with all others of its code locked as an activation locks them."""
    row = get_programme(session, programme_id, running=True)
    return next(each for each in lock_versions(session, row.code) if each.id == row.id)


def _waiting_part(session: Session, programme_id: str, tranche: str) -> tuple[Programme, Tranche]:
    """A tranche that waits, of a programme that runs."""
    programme = _locked(session, programme_id)
    rules = rules_of(programme)
    part = next((each for each in rules.tranches if each.code == tranche), None)
    if part is None:
        raise NotFound(
            "TRANCHE_NOT_FOUND",
            zh=f"项目“{programme.code}”没有批次“{tranche[:60]}”",
            en=f"{programme.code} has no tranche {tranche[:60]!r}",
            remedy_zh="请查看项目的批次",
            remedy_en="see the programme's tranches",
            field="tranche",
        )
    if programme.state not in RUNS:
        raise _refused(f"项目状态为“{programme.state}”, 批次只能在执行中批准",
                       f"the programme is {programme.state}; a tranche is approved while it runs",
                       "请先启用该版本", "activate this version first")  # fmt: skip
    if part.code not in waiting(session, programme.code, rules):
        raise _refused("该批次无需批准或已获批准", "the tranche is approved already, or with the programme",
                       "可直接从该批次发券", "vouchers may be issued from it")  # fmt: skip
    return programme, part


def _proposal(session: Session, programme: Programme, tranche: str) -> TrancheApproval:
    row = proposed(session, programme.id, tranche)
    if row is None:
        raise _refused("该批次没有待复核的批准提议", "no approval of the tranche is proposed",
                       "请先提出批准", "propose it first")  # fmt: skip
    return row


def _record(
    session: Session, programme: Programme, row: TrancheApproval, action: str, actor: str, **details: Any
) -> None:
    facts = {"code": programme.code, "tranche": row.tranche, "fen": row.fen, **details}
    audit.record(session, actor=actor, action=f"programme.{action}", subject=programme.id, **facts)


def _refused(zh: str, en: str, remedy_zh: str, remedy_en: str) -> Conflict:
    return Conflict("TRANCHE_STATE", zh=zh, en=en, remedy_zh=remedy_zh, remedy_en=remedy_en, field="tranche")
