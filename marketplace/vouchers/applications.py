"""Applications: an enterprise asks, the operator checks, decides, gives public notice and confirms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.catalogue.tables import Filing
from marketplace.clock import policy_date
from marketplace.ids import new_id
from marketplace.ledger import accounts
from marketplace.ledger.posting import balance
from marketplace.ledger.tables import CapCounter
from marketplace.organisations import audit, notices
from marketplace.organisations.tables import Organisation
from marketplace.vouchers import eligibility as rules_of_eligibility
from marketplace.vouchers.eligibility import Decision, Reason
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.refusals import conflict, words
from marketplace.vouchers.rollout import get_programme, rules_of
from marketplace.vouchers.sale import filing_fact, party_of
from marketplace.vouchers.tables import Application, Programme
from model_store.errors import BadInput, Conflict, NotFound

DAY_MS = 86_400_000
MAX_EVIDENCE = 50
MAX_TEXT = 2_000
_TRANSITIONS = {
    ("draft", "submit"): "submitted",
    ("supplement", "submit"): "submitted",
    ("submitted", "check"): "checking",
    ("checking", "check"): "checking",
    ("checking", "supplement"): "supplement",
    ("checking", "approve"): "approved",
    ("submitted", "reject"): "rejected",
    ("checking", "reject"): "rejected",
    ("approved", "publish"): "public_notice",
    ("public_notice", "object"): "objection",
    ("objection", "publish"): "public_notice",
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
    programme = get_programme(session, programme_id)
    if programme.state != "active":
        raise conflict(Reason.PROGRAMME_CLOSED, state=programme.state)
    row = Application(
        id=new_id("app"),
        programme_id=programme.id,
        organisation_id=organisation.id,
        requested_fen=_amount(requested_fen),
        purpose=_text(purpose, "purpose"),
        evidence=_evidence(evidence or []),
    )
    session.add(row)
    session.flush()
    _record(session, row, "create", actor, requested_fen=requested_fen)
    return row


def supplement(
    session: Session, row: Application, *, requested_fen: int | None, purpose: str | None,
    evidence: list[dict[str, Any]] | None, actor: str,
) -> Application:  # fmt: skip
    """Change a draft, or one that was sent back."""
    if row.state not in ("draft", "supplement"):
        decide_application_state(row.state, "submit")
    if requested_fen is not None:
        row.requested_fen = _amount(requested_fen)
    if purpose is not None:
        row.purpose = _text(purpose, "purpose")
    if evidence is not None:
        row.evidence = _evidence(evidence)
    _record(session, row, "supplement", actor)
    return row


def submit(session: Session, row: Application, *, actor: str) -> Application:
    row.state, row.submitted_by = decide_application_state(row.state, "submit"), actor
    _record(session, row, "submit", actor)
    notices.notify_operators(
        session,
        "APPLICATION_SUBMITTED",
        zh=f"新的用券申请, 金额 {row.requested_fen} 分",
        en=f"an application for a voucher of {row.requested_fen} fen",
        link=f"/city/applications/{row.id}",
    )
    return row


def check(session: Session, row: Application, *, actor: str, at_ms: int) -> Application:
    """Run the programme's checks now and keep each result with its reason and its age limit."""
    state = decide_application_state(row.state, "check")
    programme = session.get_one(Programme, row.programme_id)
    row.checks = run_checks(session, row, programme, at_ms)
    row.state = state
    _record(session, row, "check", actor, failed=[c["code"] for c in row.checks if not c["passed"]])
    return row


def run_checks(session: Session, row: Application, programme: Programme, at_ms: int) -> list[dict[str, Any]]:
    """Every check of the programme: [{code, passed, reason, zh, en, at_ms, good_until_ms}]."""
    rules, organisation = rules_of(programme), session.get_one(Organisation, row.organisation_id)
    decide = _deciders(session, row, programme, rules, organisation, at_ms)
    results = []
    for wanted in rules.checks:
        decision = decide[wanted.code]()
        zh, en = words(str(decision.reason)) if decision.reason else ("通过", "passed")
        results.append(
            {
                "code": wanted.code,
                "passed": decision.passed,
                "reason": str(decision.reason or ""),
                "zh": zh,
                "en": en,
                "at_ms": at_ms,
                "good_until_ms": at_ms + wanted.valid_days * DAY_MS,
            }
        )
    return results


def _deciders(
    session: Session,
    row: Application,
    programme: Programme,
    rules: ProgrammeFile,
    organisation: Organisation,
    at_ms: int,
) -> dict[str, Callable[[], Decision]]:
    day, party = policy_date(at_ms), party_of(organisation)
    e = rules_of_eligibility

    def filing() -> Decision:
        return e.decide_filed_model_exists(rules, map(filing_fact, session.exec(select(Filing))), day)

    def cap() -> Decision:
        return e.decide_cap(rules, row.requested_fen, cap_room(session, programme, rules, organisation.id, at_ms))

    return {
        "standing": lambda: e.decide_standing(rules, party),
        "uscc": lambda: e.decide_uscc(party),
        "filing": filing,
        "cap": cap,
        "pool": lambda: e.decide_pool(row.requested_fen, balance(session, accounts.unissued(programme.id))),
        "evidence": lambda: e.decide_evidence(rules, [str(item["code"]) for item in row.evidence]),
    }


def cap_code(programme: Programme, rules: ProgrammeFile, organisation_id: str, at_ms: int) -> str:
    """The C.ent counter of the period that an instant falls in."""
    period = str(policy_date(at_ms).year) if rules.cap_period == "calendar_year" else "all"
    return accounts.cap_enterprise(programme.id, organisation_id, period)


def cap_room(session: Session, programme: Programme, rules: ProgrammeFile, organisation_id: str, at_ms: int) -> int:
    counter = session.get(CapCounter, cap_code(programme, rules, organisation_id, at_ms))
    return rules.cap_fen if counter is None else counter.limit_fen - counter.used_fen - counter.held_fen


def decide(session: Session, row: Application, decision: str, *, actor: str, at_ms: int, note: str = "") -> Application:
    """approve | reject | supplement | object. An approval needs every check passed and still fresh."""
    state = decide_application_state(row.state, decision)
    if decision == "approve":
        failed = [c for c in row.checks if not c["passed"]]
        if failed:
            raise conflict(Reason(failed[0]["reason"]), failed=[c["code"] for c in failed])
        stale = [c["code"] for c in row.checks if c["good_until_ms"] < at_ms]
        if stale or not row.checks:
            raise Conflict(
                "CHECKS_STALE",
                zh="资格核查已过有效期, 须重新核查",
                en="the checks are too old and must be run again",
                remedy_zh="请重新执行核查",
                remedy_en="run the checks again",
                details={"checks": stale},
            )
    row.state, row.decided_by, row.note = state, actor, _text(note, "note")
    _record(session, row, decision, actor, note=note)
    zh = {"approve": "已批准", "reject": "未获批准", "supplement": "需补充材料", "object": "公示期间收到异议"}[decision]
    en = {"approve": "is approved", "reject": "is rejected", "supplement": "needs more", "object": "is objected to"}[
        decision
    ]
    _tell(session, row, f"APPLICATION_{state.upper()}", f"用券申请{zh} {note}".strip(), f"your application {en} {note}")
    return row


def publish(session: Session, row: Application, *, actor: str, at_ms: int) -> Application:
    """Begin the public notice (公示)."""
    row.state = decide_application_state(row.state, "publish")
    row.public_notice_at_ms = at_ms
    _record(session, row, "publish", actor)
    return row


def confirm(session: Session, row: Application, *, actor: str, at_ms: int) -> Application:
    """End the public notice; `Conflict` NOTICE_RUNNING before its days are over."""
    state = decide_application_state(row.state, "confirm")
    days = rules_of(session.get_one(Programme, row.programme_id)).notice_days
    if not decide_notice_over(row.public_notice_at_ms, days, at_ms):
        raise Conflict(
            "NOTICE_RUNNING",
            zh=f"公示期为 {days} 天, 尚未结束",
            en=f"the public notice runs for {days} days and is not over",
            remedy_zh="请在公示期满后确认",
            remedy_en="confirm when it is over",
        )
    row.state = state
    _record(session, row, "confirm", actor)
    _tell(session, row, "APPLICATION_CONFIRMED", "用券申请公示完成", "the public notice of your application is over")
    return row


def get_application(session: Session, application_id: str, organisation_id: str | None) -> Application:
    """Locked; within one organisation, or any (None). `NotFound` APPLICATION_NOT_FOUND."""
    query = select(Application).where(Application.id == application_id).with_for_update()
    row = session.exec(query).first()
    if row is None or organisation_id not in (None, row.organisation_id):
        raise NotFound(
            "APPLICATION_NOT_FOUND",
            zh=f"没有申请“{application_id[:60]}”",
            en=f"there is no application {application_id[:60]!r}",
            remedy_zh="请查看申请列表",
            remedy_en="see the list of applications",
        )
    return row


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


def _record(session: Session, row: Application, action: str, actor: str, **details: Any) -> None:
    session.add(row)
    audit.record(
        session,
        actor=actor,
        organisation_id=row.organisation_id,
        action=f"application.{action}",
        subject=row.id,
        **details,
    )


def _tell(session: Session, row: Application, code: str, zh: str, en: str) -> None:
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


def _text(text: str, field: str) -> str:
    if len(text) > MAX_TEXT:
        raise BadInput(
            "TEXT_TOO_LONG",
            zh=f"最多 {MAX_TEXT} 个字符",
            en=f"at most {MAX_TEXT} characters",
            remedy_zh="请缩短",
            remedy_en="shorten it",
            field=field,
        )
    return text.strip()


def _evidence(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(items) > MAX_EVIDENCE or any(not str(item.get("code", "")).strip() for item in items):
        raise BadInput(
            "EVIDENCE_INVALID",
            zh=f"材料须写明 code, 最多 {MAX_EVIDENCE} 项",
            en=f"each piece of evidence has a code, and there are at most {MAX_EVIDENCE}",
            remedy_zh="请按项目的材料清单填写",
            remedy_en="follow the programme's evidence_schema",
            field="evidence",
        )
    return [
        {"code": str(item["code"]).strip()[:60], "value": _text(str(item.get("value", "")), "evidence")}
        for item in items
    ]
