"""A failed check let pass: one operator member proposes with the reason, another approves."""

from __future__ import annotations

from sqlmodel import Session, col, select

from marketplace.claims.refusals import reason_of
from marketplace.ids import new_id
from marketplace.vouchers.applications import decide_application_state, get_application, record
from marketplace.vouchers.evidence_given import bounded_text
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Application, CheckOverride, Programme
from model_store.errors import Conflict, NotFound

OPEN = ("checking", "approved", "public_notice", "objection")


def propose_override(session: Session, row: Application, code: str, reason: str, *, member: str) -> CheckOverride:
    """`Forbidden` PERSON_REQUIRED; `Conflict` OVERRIDE_REFUSED where that check did not fail or is never let pass."""
    if not member:
        raise forbidden("PERSON_REQUIRED")
    if row.state not in OPEN:
        decide_application_state(row.state, "override")
    reason = bounded_text(reason_of(reason), "reason")
    failed = next((check for check in row.checks if check["code"] == code and not check["passed"]), None)
    if failed is None or not _may(rules_of(session.get_one(Programme, row.programme_id)), code):
        raise Conflict(
            "OVERRIDE_REFUSED",
            zh=f"核查“{code[:60]}”未失败, 或不允许放行",
            en=f"the check {code[:60]!r} did not fail, or is never let pass",
            remedy_zh="主体资格、上限与资金池不能放行; 其余按项目规定",
            remedy_en="standing, cap and pool are never let pass; for the others see the programme",
            field="code",
        )
    made = CheckOverride(
        id=new_id("ovr"),
        application_id=row.id,
        code=code,
        failed_reason=failed["reason"],
        reason=reason,
        proposed_by=member,
    )
    session.add(made)
    session.flush()
    record(session, row, "override-propose", member, check=code, note=reason, override=made.id)
    return made


def decide_override(session: Session, override: CheckOverride, decision: str, *, member: str) -> CheckOverride:
    """approve (another person than who proposed it: `Forbidden` TWO_PERSONS) | decline."""
    if not member:
        raise forbidden("PERSON_REQUIRED")
    row = get_application(session, override.application_id, None)
    if override.state != "proposed":
        decide_application_state(f"override/{override.state}", decision)
    if decision == "approve" and member == override.proposed_by:
        raise forbidden("TWO_PERSONS")
    override.state, override.decided_by = {"approve": "approved", "decline": "declined"}[decision], member
    session.add(override)
    note = f"{override.reason} ({override.proposed_by})"
    record(session, row, f"override-{decision}", member, check=override.code, note=note, override=override.id)
    return override


def get_override(session: Session, override_id: str) -> CheckOverride:
    """Locked. `NotFound` OVERRIDE_NOT_FOUND."""
    row = session.exec(select(CheckOverride).where(CheckOverride.id == override_id).with_for_update()).first()
    if row is None:
        raise NotFound(
            "OVERRIDE_NOT_FOUND",
            zh=f"没有放行“{override_id[:60]}”",
            en=f"there is no override {override_id[:60]!r}",
            remedy_zh="请查看申请页",
            remedy_en="see the application's page",
        )
    return row


def overrides_of(session: Session, application_id: str) -> list[CheckOverride]:
    query = select(CheckOverride).where(CheckOverride.application_id == application_id)
    return list(session.exec(query.order_by(col(CheckOverride.created_at_ms), col(CheckOverride.id))))


def _may(rules: ProgrammeFile, code: str) -> bool:
    return any(check.code == code and check.may_be_overridden for check in rules.checks)
