"""Issuing vouchers: one operator member proposes, another approves (P2); suspend and resume; the pool's position."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.clock import policy_date
from marketplace.ids import new_id
from marketplace.ledger import accounts, caps, postings
from marketplace.ledger.posting import balance, balances, post_all
from marketplace.organisations import audit, notices
from marketplace.vouchers.checks import cap_code
from marketplace.vouchers.eligibility import Reason
from marketplace.vouchers.refusals import conflict, forbidden
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import (
    DROPPED,
    NEVER_ISSUED,
    Application,
    LeaseRow,
    Programme,
    Reservation,
    Voucher,
)
from marketplace.vouchers.tranches import hold_tranche, waiting
from marketplace.vouchers.versions import RUNS
from model_store.errors import BadInput, Conflict, NotFound

_PARTS = ("available_fen", "reserved_fen", "leased_fen", "used_fen")  # with what is unissued, all that there is
_CLAIMED = ("batched_fen", "paid_fen", "clawed_fen")  # of what was used


def propose(session: Session, application: Application, face_fen: int, *, member: str, at_ms: int) -> Voucher:
    """A proposed voucher of a confirmed application; all its vouchers together are at most what was applied for.

    `Forbidden` PERSON_REQUIRED where no member stands behind the actor.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    programme = session.get_one(Programme, application.programme_id)
    if application.state != "confirmed":
        raise Conflict(
            "APPLICATION_NOT_CONFIRMED",
            zh=f"申请状态为“{application.state}”, 公示确认后才能发券",
            en=f"the application is {application.state}; a voucher follows its confirmation",
            remedy_zh="请先完成审批与公示",
            remedy_en="approve it and let the public notice run first",
        )
    if programme.state != "active":
        raise conflict(Reason.PROGRAMME_CLOSED, state=programme.state)
    left = left_of(session, application)
    if not 0 < face_fen <= left:
        raise BadInput(
            "FACE_INVALID",
            zh=f"票面须大于零且不超过申请余额 {left} 分",
            en=f"the face value is above zero and at most the {left} fen left of the application",
            remedy_zh="请修改票面金额",
            remedy_en="change the face value",
            field="face_fen",
        )
    rules = rules_of(programme)
    voucher = Voucher(
        id=new_id("vch"),
        application_id=application.id,
        programme_id=programme.id,
        organisation_id=application.organisation_id,
        face_fen=face_fen,
        use_by=rules.use_by(policy_date(at_ms)).isoformat(),
        redeem_by="",
        priority=rules.priority,
        proposed_by=member,
    )
    session.add(voucher)
    session.flush()
    record_step(session, voucher, "propose", member, face_fen=face_fen)
    return voucher


def left_of(session: Session, application: Application) -> int:
    """Fen of what was applied for that no voucher stands for: one that was declined or withdrawn does not, and one that
    was revoked stands for what did not go back to the pool."""
    query = select(Voucher.face_fen, Voucher.returned_fen, Voucher.state, Voucher.state_before)
    query = query.where(Voucher.application_id == application.id, col(Voucher.state).not_in(DROPPED))
    stands = sum(
        face_fen - (returned_fen if state == "revoked" or (state, before) == ("closed", "revoked") else 0)
        for face_fen, returned_fen, state, before in session.exec(query)
    )
    return application.requested_fen - stands


def approve(session: Session, voucher: Voucher, *, member: str, at_ms: int) -> Voucher:
    """P2: the voucher becomes active; its face is held in the enterprise's cap and in the tranche.

    `Forbidden` TWO_PERSONS for who proposed it; `Conflict` CAP_REACHED, POOL_EXHAUSTED, or TRANCHE_WAITS where only a
    tranche that is not approved yet has the room.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    if member == voucher.proposed_by:
        raise forbidden("TWO_PERSONS")
    if voucher.state != "proposed":
        raise state_refusal(voucher.state, "approve")
    programme = session.get_one(Programme, voucher.programme_id)
    if programme.state != "active":
        raise conflict(Reason.PROGRAMME_CLOSED, state=programme.state)
    rules = rules_of(programme)
    code = cap_code(programme, rules, voucher.organisation_id, at_ms)
    cap = caps.open_cap(session, code, rules.cap_fen)
    caps.hold(session, caps.set_limit(session, cap, rules.cap_fen), voucher.face_fen)
    voucher.cap_code = code
    voucher.tranche = hold_tranche(session, programme, rules, voucher.face_fen)
    voucher.pool_code = accounts.cap_pool(programme.code, voucher.tranche)
    last = rules.use_by(policy_date(at_ms))
    assert rules.validity is not None, "an active programme has a validity"
    voucher.use_by = last.isoformat()
    voucher.redeem_by = date.fromordinal(last.toordinal() + rules.validity.redeem_days).isoformat()
    voucher.state, voucher.approved_by, voucher.issued_at_ms = "active", member, at_ms
    session.add(voucher)
    session.flush()
    post_all(session, [postings.p2_voucher_issued(programme.id, voucher.id, voucher.face_fen, at_ms)])
    record_step(session, voucher, "issue", member, face_fen=voucher.face_fen, proposed_by=voucher.proposed_by)
    notices.notify(
        session,
        voucher.organisation_id,
        "VOUCHER_ISSUED",
        zh=f"模型券已发放: {voucher.face_fen} 分, 有效期至 {voucher.use_by}",
        en=f"a voucher of {voucher.face_fen} fen was issued, to be used by {voucher.use_by}",
        link=f"/console/vouchers/{voucher.id}",
    )
    return voucher


def suspend(session: Session, voucher: Voucher, *, actor: str, reason: str = "") -> Voucher:
    """No new lease draws on it until it is resumed; leases that nodes hold run out by themselves."""
    if voucher.state not in ("active", "exhausted"):
        raise state_refusal(voucher.state, "suspend")
    voucher.state_before, voucher.state = voucher.state, "suspended"
    record_step(session, voucher, "suspend", actor, reason=reason)
    return voucher


def resume(session: Session, voucher: Voucher, *, actor: str) -> Voucher:
    if voucher.state != "suspended":
        raise state_refusal(voucher.state, "resume")
    voucher.state, voucher.state_before = voucher.state_before, ""
    record_step(session, voucher, "resume", actor)
    return voucher


def get_voucher(session: Session, voucher_id: str, organisation_id: str | None = None, *, lock: bool = True) -> Voucher:
    """Locked; within one organisation, or any (None). `NotFound` VOUCHER_NOT_FOUND."""
    query = select(Voucher).where(Voucher.id == voucher_id)
    row = session.exec(query.with_for_update() if lock else query).first()
    if row is None or organisation_id not in (None, row.organisation_id):
        raise NotFound(
            "VOUCHER_NOT_FOUND",
            zh=f"没有模型券“{voucher_id[:60]}”",
            en=f"there is no voucher {voucher_id[:60]!r}",
            remedy_zh="请查看券列表",
            remedy_en="see the list of vouchers",
        )
    return row


def list_vouchers(
    session: Session, organisation_id: str | None, state: str = "", limit: int = 100, offset: int = 0
) -> tuple[list[Voucher], int]:
    """Newest first; of one organisation, or of all."""
    query = select(Voucher)
    if organisation_id is not None:
        query = query.where(Voucher.organisation_id == organisation_id)
    if state:
        query = query.where(Voucher.state == state)
    total = session.exec(select(func.count()).select_from(query.subquery())).one()
    newest = query.order_by(col(Voucher.created_at_ms).desc(), col(Voucher.id).desc())
    return list(session.exec(newest.limit(limit).offset(offset))), total


def position(session: Session, voucher: Voucher) -> dict[str, int]:
    """Where a voucher's face is now: available, reserved, leased, used; and what went back to the pool.

    `used_fen` is all that was used, claimed or not: `batched_fen`, `paid_fen` and `clawed_fen` are parts of it.
    """
    reservations = list(session.exec(select(Reservation.id).where(Reservation.voucher_id == voucher.id)))
    leases = list(session.exec(select(LeaseRow.id).where(col(LeaseRow.reservation_id).in_(reservations))))
    available = accounts.available(voucher.id)
    found = balances(
        session,
        [
            available,
            *map(accounts.reserved, reservations),
            *map(accounts.used, reservations),
            *map(accounts.leased, leases),
        ],
    )
    claimed = _claimed(session, voucher)
    unclaimed = sum(found[accounts.used(each)] for each in reservations)
    return {
        "face_fen": voucher.face_fen,
        "available_fen": found[available],
        "reserved_fen": sum(found[accounts.reserved(each)] for each in reservations),
        "leased_fen": sum(found[accounts.leased(each)] for each in leases),
        "used_fen": unclaimed + sum(claimed.values()),
        **claimed,
        "returned_fen": voucher.returned_fen,
    }


def _claimed(session: Session, voucher: Voucher) -> dict[str, int]:
    """What of a voucher stands in claim batches, was paid, and was clawed back."""
    query = select(ClaimLine.state, func.sum(ClaimLine.subsidy_fen), func.sum(ClaimLine.clawed_fen))
    sums = {
        state: (int(subsidy), int(clawed))
        for state, subsidy, clawed in session.exec(
            query.where(ClaimLine.voucher_id == voucher.id).group_by(ClaimLine.state)
        )
    }
    accepted, clawed = sums.get("accepted", (0, 0))
    batched, _ = sums.get("in_batch", (0, 0))
    return {"batched_fen": batched, "paid_fen": accepted - clawed, "clawed_fen": clawed}


def pool_position(session: Session, programme: Programme) -> dict[str, Any]:
    """Where a programme's money is: the parts always sum to what its tranches authorised."""
    vouchers = list(session.exec(select(Voucher).where(Voucher.programme_id == programme.id)))
    sums = dict.fromkeys((*_PARTS, *_CLAIMED), 0)
    for voucher in vouchers:
        found = position(session, voucher)
        for name in sums:
            sums[name] += found[name]
    authorised = -balance(session, accounts.auth(programme.id))
    unissued = balance(session, accounts.unissued(programme.id))
    live = [voucher for voucher in vouchers if voucher.state not in NEVER_ISSUED]
    rules = rules_of(programme)
    waits = waiting(session, programme.code, rules) if programme.state in RUNS else []
    return {
        "programme": programme.code,
        "programme_id": programme.id,
        "title_zh": programme.title_zh,
        "title_en": programme.title_en,
        "is_demo": programme.is_demo,
        "state": programme.state,
        "pool_fen": rules.pool_fen,
        "waiting": waits,  # tranches that are not approved yet, and what they are together
        "waiting_fen": sum(each.fen for each in rules.tranches if each.code in waits),
        "authorised_fen": authorised,
        "unissued_fen": unissued,
        **sums,
        "issued_fen": sum(voucher.face_fen for voucher in live),
        "returned_fen": sum(voucher.returned_fen for voucher in live),
        "vouchers": len(live),
        "conserved": authorised == unissued + sum(sums[name] for name in _PARTS)
        and _claim_accounts(session, programme) == {name: sums[name] for name in _CLAIMED},
    }


def _claim_accounts(session: Session, programme: Programme) -> dict[str, int]:
    """The same three by their accounts."""
    ids = list(session.exec(select(ClaimBatch.id).where(ClaimBatch.programme_id == programme.id)))
    found = balances(session, [*map(accounts.batched, ids), *map(accounts.clawed_back, ids)])
    return {
        "batched_fen": sum(found[accounts.batched(each)] for each in ids),
        "paid_fen": balance(session, accounts.paid(programme.id)),
        "clawed_fen": sum(found[accounts.clawed_back(each)] for each in ids),
    }


def record_step(session: Session, voucher: Voucher, action: str, actor: str, **details: Any) -> None:
    """One step of a voucher in the audit log, which is its history."""
    session.add(voucher)
    audit.record(
        session,
        actor=actor,
        organisation_id=voucher.organisation_id,
        action=f"voucher.{action}",
        subject=voucher.id,
        **details,
    )


def state_refusal(state: str, decision: str) -> Conflict:
    """VOUCHER_STATE: a decision that does not apply in this state."""
    return Conflict(
        "VOUCHER_STATE",
        zh=f"状态为“{state}”的券不能执行“{decision}”",
        en=f"a voucher that is {state} cannot {decision}",
        remedy_zh="请刷新后查看当前状态",
        remedy_en="look at its present state",
        details={"state": state},
    )
