"""Applications: an enterprise asks, the operator checks, decides, gives public notice and confirms."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.claims.refusals import reason_of
from marketplace.clock import policy_date
from marketplace.evidence.files import live_files
from marketplace.ids import new_id
from marketplace.organisations import audit, notices
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.checks import decide_fresh_and_passed, let_pass, run_checks
from marketplace.vouchers.eligibility import Reason
from marketplace.vouchers.evidence_given import ask_for, bounded_text, decide_supplemented, read_given
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.refusals import conflict
from marketplace.vouchers.rollout import get_programme, rules_of
from marketplace.vouchers.tables import Application, CheckOverride, Objection, Programme
from model_store.errors import BadInput, Conflict, NotFound

_TRANSITIONS = {
    ("draft", "submit"): "submitted",
    ("supplement", "submit"): "submitted",
    ("submitted", "check"): "checking",
    ("checking", "check"): "checking",
    ("checking", "supplement"): "supplement",
    ("approved", "check"): "approved",  # what has lapsed meanwhile is checked again
    ("public_notice", "check"): "public_notice",
    ("objection", "check"): "objection",
    ("checking", "approve"): "approved",
    ("submitted", "reject"): "rejected",
    ("checking", "reject"): "rejected",
    ("approved", "publish"): "public_notice",
    ("public_notice", "object"): "objection",
    ("objection", "dismiss"): "public_notice",
    ("objection", "uphold"): "rejected",
    ("objection", "publish"): "public_notice",  # without an objection in words: entered before there were such
    ("objection", "reject"): "rejected",
    ("public_notice", "confirm"): "confirmed",
}


def decide_application_state(state: str, decision: str) -> str:
    """The state after a decision; `Conflict` APPLICATION_STATE where it does not apply."""
    after = _TRANSITIONS.get((state, decision))
    if after is None:
        raise Conflict(
            "APPLICATION_STATE",
            zh=f"状态为“{state}”的申请不能执行“{decision}”",
            en=f"an application that is {state} cannot {decision}",
            remedy_zh="请刷新后查看当前状态",
            remedy_en="look at its present state",
            details={"state": state},
        )
    return after


def decide_notice_over(began_ms: int | None, notice_days: int, at_ms: int) -> bool:
    """Whether the public notice has run its calendar days in Asia/Shanghai, the day it began not counted."""
    return began_ms is not None and (policy_date(at_ms) - policy_date(began_ms)).days >= notice_days


def notice_ends(row: Application, rules: ProgrammeFile, at_ms: int) -> date:
    """The first day on which the application may be confirmed, if nothing else comes: its notice is over then.

    An objection under way stops the days where the programme says `extend`.
    """
    days = rules.notice_days + row.notice_paused_days
    if row.state == "objection" and row.objected_at_ms is not None and rules.notice_on_objection == "extend":
        days += (policy_date(at_ms) - policy_date(row.objected_at_ms)).days
    return policy_date(row.public_notice_at_ms or at_ms) + timedelta(days=days)


def create_application(
    session: Session,
    organisation: Organisation,
    programme_id: str,
    *,
    requested_fen: int,
    purpose: str = "",
    evidence: list[dict[str, Any]] | None = None,
    actor: str,
) -> Application:
    """A draft. `evidence`: [{"code", "value"}]; codes as the programme's schema names them, and `founded-on`."""
    programme = get_programme(session, programme_id, running=True)
    if programme.state != "active":
        raise conflict(Reason.PROGRAMME_CLOSED, state=programme.state)
    row = Application(
        id=new_id("app"),
        programme_id=programme.id,
        organisation_id=organisation.id,
        requested_fen=_amount(requested_fen),
        purpose=bounded_text(purpose, "purpose"),
        evidence=read_given(rules_of(programme), evidence or []),
    )
    session.add(row)
    session.flush()
    record(session, row, "create", actor, requested_fen=requested_fen)
    return row


def supplement(
    session: Session, row: Application, *, requested_fen: int | None, purpose: str | None,
    evidence: list[dict[str, Any]] | None, actor: str,
) -> Application:  # fmt: skip
    """Change a draft, or one that was sent back."""
    check_open(row)
    if requested_fen is not None:
        row.requested_fen = _amount(requested_fen)
    if purpose is not None:
        row.purpose = bounded_text(purpose, "purpose")
    if evidence is not None:
        row.evidence = read_given(rules_of(session.get_one(Programme, row.programme_id)), evidence)
    record(session, row, "supplement", actor)
    return row


def check_open(row: Application) -> None:
    """`Conflict` APPLICATION_STATE unless its enterprise may still change it: a draft, or one that was sent back."""
    if row.state not in ("draft", "supplement"):
        decide_application_state(row.state, "change")


def submit(session: Session, row: Application, *, actor: str) -> Application:
    """Hand in; `Conflict` SUPPLEMENT_MISSING while something that was asked for has not come."""
    state = decide_application_state(row.state, "submit")
    files = [(file.code, file.created_at_ms) for file in live_files(session, [row.id])]
    decide_supplemented(row.asked, row.evidence, files)
    row.state, row.submitted_by, row.asked = state, actor, []
    record(session, row, "submit", actor)
    notices.notify_operators(
        session,
        "APPLICATION_SUBMITTED",
        zh=f"新的用券申请, 金额 {row.requested_fen} 分",
        en=f"an application for a voucher of {row.requested_fen} fen",
        link=f"/city/applications/{row.id}",
    )
    return row


def check(session: Session, row: Application, *, actor: str, at_ms: int) -> Application:
    """Run the programme's checks now and keep each result with its reason and how long it holds."""
    state = decide_application_state(row.state, "check")
    programme = session.get_one(Programme, row.programme_id)
    row.checks = run_checks(session, row, programme, at_ms)
    row.state = state
    told = [{name: c[name] for name in ("code", "passed", "reason", "at_ms", "good_until_ms")} for c in row.checks]
    record(session, row, "check", actor, failed=[c["code"] for c in row.checks if not c["passed"]], checks=told)
    return row


def decide(
    session: Session,
    row: Application,
    decision: str,
    *,
    actor: str,
    at_ms: int,
    note: str = "",
    asked: tuple[str, ...] = (),
) -> Application:
    """approve | reject | supplement. An approval needs every check passed and still fresh.

    A supplement says what it asks for: codes of the schema (`asked`), or a note.
    """
    state = decide_application_state(row.state, decision)
    if decision == "approve":
        check_fresh(session, row, at_ms)
    elif decision == "supplement":
        row.asked = ask_for(rules_of(session.get_one(Programme, row.programme_id)), asked, row.evidence, at_ms)
        note = note if asked else reason_of(note, "note")
    elif row.state == "objection":
        _check_no_objection_is_open(session, row)
    row.state, row.decided_by, row.note = state, actor, bounded_text(note, "note")
    record(session, row, decision, actor, note=note, **({"asked": list(asked)} if asked else {}))
    zh = {"approve": "已批准", "reject": "未获批准", "supplement": "需补充材料"}[decision]
    en = {"approve": "is approved", "reject": "is rejected", "supplement": "needs more"}[decision]
    more = f" {'、'.join(asked)}" if asked else ""
    tell(
        session,
        row,
        f"APPLICATION_{state.upper()}",
        f"用券申请{zh}{more} {note}".strip(),
        f"your application {en}{more} {note}",
    )
    return row


def check_fresh(session: Session, row: Application, at_ms: int) -> None:
    """Every check passed (or was let pass by two persons) and still holds; `Conflict` else."""
    overrides = session.exec(select(CheckOverride).where(CheckOverride.application_id == row.id))
    decide_fresh_and_passed(row.checks, let_pass(overrides), at_ms)


def _check_no_objection_is_open(session: Session, row: Application) -> None:
    query = select(func.count()).where(Objection.application_id == row.id, Objection.state == "open")
    if session.exec(query.select_from(Objection)).one():
        raise Conflict(
            "OBJECTION_OPEN",
            zh="有异议尚未处理",
            en="an objection waits for its decision",
            remedy_zh="请先对每项异议作出决定",
            remedy_en="decide each objection first",
        )


def publish(session: Session, row: Application, *, actor: str, at_ms: int) -> Application:
    """Begin the public notice (公示)."""
    state = decide_application_state(row.state, "publish")
    if row.state == "objection":
        _check_no_objection_is_open(session, row)
    row.state, row.public_notice_at_ms, row.notice_paused_days, row.objected_at_ms = state, at_ms, 0, None
    record(session, row, "publish", actor)
    return row


def confirm(session: Session, row: Application, *, actor: str, at_ms: int) -> Application:
    """End the public notice; `Conflict` NOTICE_RUNNING before its days are over, CHECKS_STALE where a check lapsed."""
    state = decide_application_state(row.state, "confirm")
    days = rules_of(session.get_one(Programme, row.programme_id)).notice_days + row.notice_paused_days
    if not decide_notice_over(row.public_notice_at_ms, days, at_ms):
        raise Conflict(
            "NOTICE_RUNNING",
            zh=f"公示期为 {days} 天, 尚未结束",
            en=f"the public notice runs for {days} days and is not over",
            remedy_zh="请在公示期满后确认",
            remedy_en="confirm when it is over",
        )
    check_fresh(session, row, at_ms)
    row.state = state
    record(session, row, "confirm", actor)
    tell(session, row, "APPLICATION_CONFIRMED", "用券申请公示完成", "the public notice of your application is over")
    return row


def get_application(session: Session, application_id: str, organisation_id: str | None) -> Application:
    """Locked; within one organisation, or any (None). `NotFound` APPLICATION_NOT_FOUND."""
    query = select(Application).where(Application.id == application_id).with_for_update()
    row = session.exec(query).first()
    if row is None or organisation_id not in (None, row.organisation_id):
        raise application_not_found(application_id)
    return row


def application_not_found(application_id: str) -> NotFound:
    return NotFound(
        "APPLICATION_NOT_FOUND",
        zh=f"没有申请“{application_id[:60]}”",
        en=f"there is no application {application_id[:60]!r}",
        remedy_zh="请查看申请列表",
        remedy_en="see the list of applications",
    )


def list_applications(
    session: Session, organisation_id: str | None, state: str = "", limit: int = 100, offset: int = 0
) -> tuple[list[Application], int]:
    """Newest first; of one organisation, or of all."""
    query = select(Application)
    if organisation_id is not None:
        query = query.where(Application.organisation_id == organisation_id)
    if state:
        query = query.where(Application.state == state)
    total = session.exec(select(func.count()).select_from(query.subquery())).one()
    newest = query.order_by(col(Application.created_at_ms).desc(), col(Application.id).desc())
    return list(session.exec(newest.limit(limit).offset(offset))), total


def record(session: Session, row: Application, action: str, actor: str, **details: Any) -> None:
    """One step of an application in the audit log, which is its dossier."""
    session.add(row)
    audit.record(
        session,
        actor=actor,
        organisation_id=row.organisation_id,
        action=f"application.{action}",
        subject=row.id,
        **details,
    )


def tell(session: Session, row: Application, code: str, zh: str, en: str) -> None:
    """A notice to the applicant."""
    notices.notify(session, row.organisation_id, code, zh=zh, en=en.strip(), link=f"/console/applications/{row.id}")


def _amount(fen: int) -> int:
    if not 0 < fen <= 10**13:
        raise BadInput(
            "AMOUNT_INVALID",
            zh="金额须大于零",
            en="the amount is above zero",
            remedy_zh="请填写以分为单位的金额",
            remedy_en="give the amount in fen",
            field="requested_fen",
        )
    return fen
