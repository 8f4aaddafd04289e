"""Objections (异议) while an application stands on public notice: from anybody, decided by the operator, one by one.

Who objects, how to reach them and what they say is for operators only. The applicant is told that there is one, and
what came of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.claims.refusals import reason_of
from marketplace.clock import policy_date
from marketplace.ids import new_id
from marketplace.organisations import notices
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.applications import (
    application_not_found,
    decide_application_state,
    decide_notice_over,
    get_application,
    notice_ends,
    record,
    tell,
)
from marketplace.vouchers.evidence_given import bounded_text
from marketplace.vouchers.programme import ProgrammeFile
from marketplace.vouchers.refusals import forbidden
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Application, Objection, Programme
from model_store.errors import BadInput, Conflict, NotFound, TooMany

ON_NOTICE = ("public_notice", "objection")
MOST_OPEN = 100  # of one application
MOST_AN_ADDRESS, WINDOW_MS, MOST_ADDRESSES = 10, 3_600_000, 10_000
BOUNDS = {"name": 100, "contact": 200, "reason": 2_000}


class AddressThrottle:
    """How many objections an address sent lately, in memory; a restart forgives. Bounded, oldest forgotten first."""

    def __init__(self) -> None:
        self._times: OrderedDict[str, list[int]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, address: str, at_ms: int) -> None:
        """`TooMany` OBJECTIONS_THROTTLED after ten within an hour."""
        with self._lock:
            recent = [t for t in self._times.pop(address, []) if t > at_ms - WINDOW_MS]
            self._times[address] = [*recent, at_ms][-MOST_AN_ADDRESS:]
            while len(self._times) > MOST_ADDRESSES:
                self._times.popitem(last=False)
        if len(recent) >= MOST_AN_ADDRESS:
            raise TooMany(
                "OBJECTIONS_THROTTLED",
                zh="该地址一小时内提交的异议过多",
                en="too many objections from this address within an hour",
                remedy_zh="请稍后再提交, 或直接联系平台运营方",
                remedy_en="try again later, or write to the operator",
                retry_after_s=max(1, (recent[0] + WINDOW_MS - at_ms) // 1000),
            )


THROTTLE = AddressThrottle()


def decide_days_stopped(rules: ProgrammeFile, objected_on: int, dismissed_on: int) -> int:
    """Calendar days that a dismissed objection adds to the notice (days as ordinals): none unless it is extended."""
    return dismissed_on - objected_on if rules.notice_on_objection == "extend" else 0


def object_to(session: Session, application_id: str, *, name: str, contact: str, reason: str, at_ms: int) -> Objection:
    """`NotFound` APPLICATION_NOT_FOUND, `Conflict` NOTICE_OVER or OBJECTIONS_FULL, `BadInput` TEXT_INVALID by field."""
    row = get_application(session, application_id, None)
    given = {"name": name, "contact": contact, "reason": reason}
    texts: dict[str, Any] = {field: _required(text, field) for field, text in given.items()}
    rules = rules_of(session.get_one(Programme, row.programme_id))
    if row.state not in ON_NOTICE or policy_date(at_ms) >= notice_ends(row, rules, at_ms):
        raise Conflict(
            "NOTICE_OVER",
            zh="该申请不在公示期内",
            en="the application is not on public notice",
            remedy_zh="请查看正在公示的名单",
            remedy_en="see what is on public notice now",
        )
    open_ones = len(objections_of(session, [row.id], "open"))
    if open_ones >= MOST_OPEN:
        raise Conflict(
            "OBJECTIONS_FULL",
            zh="该申请的异议已很多, 暂不再接收",
            en="there are very many objections to this application already; no more are taken",
            remedy_zh="运营方将统一处理",
            remedy_en="the operator decides those that there are",
        )
    objection = Objection(id=new_id("obj"), application_id=row.id, created_at_ms=at_ms, **texts)
    session.add(objection)
    if row.state == "public_notice":
        row.state, row.objected_at_ms = decide_application_state(row.state, "object"), at_ms
        tell(session, row, "APPLICATION_OBJECTION", "用券申请在公示期间收到异议, 待处理",
             "your application was objected to during its public notice; the objection will be decided")  # fmt: skip
    record(session, row, "object", "public", objection=objection.id)
    notices.notify_operators(
        session,
        "OBJECTION_RECEIVED",
        zh="公示期间收到异议, 待处理",
        en="an objection came in during a public notice and waits for a decision",
        link=f"/city/applications/{row.id}",
    )
    return objection


def decide_objection(
    session: Session, objection: Objection, decision: str, *, member: str, reason: str, at_ms: int
) -> Objection:
    """dismiss | uphold, with the reason. The last dismissal lets the notice go on; one upheld rejects the application.

    `Forbidden` PERSON_REQUIRED; `Conflict` APPLICATION_STATE where it was decided already.
    """
    if not member:
        raise forbidden("PERSON_REQUIRED")
    row = get_application(session, objection.application_id, None)
    if objection.state != "open":
        decide_application_state(f"objection/{objection.state}", decision)
    after = decide_application_state(row.state, decision)
    objection.state = {"dismiss": "dismissed", "uphold": "upheld"}[decision]
    objection.decision, objection.decided_by = bounded_text(reason_of(reason), "reason"), member
    objection.decided_at_ms = at_ms
    session.add(objection)
    session.flush()
    record(session, row, decision, member, objection=objection.id, note=objection.decision)
    if decision == "uphold":
        _rejected(session, row, objection, after, member, at_ms)
    elif not objections_of(session, [row.id], "open"):
        _resumed(session, row, after, at_ms)
    return objection


def _rejected(session: Session, row: Application, objection: Objection, after: str, member: str, at_ms: int) -> None:
    row.state, row.decided_by, row.note = after, member, objection.decision
    for other in objections_of(session, [row.id], "open"):
        other.state, other.decided_at_ms = "closed", at_ms
        session.add(other)
    tell(session, row, "APPLICATION_REJECTED", f"公示期间的异议成立, 用券申请未获批准: {objection.decision}",
         f"an objection was upheld and your application is rejected: {objection.decision}")  # fmt: skip


def _resumed(session: Session, row: Application, after: str, at_ms: int) -> None:
    rules = rules_of(session.get_one(Programme, row.programme_id))
    today, began = policy_date(at_ms).toordinal(), policy_date(row.objected_at_ms or at_ms).toordinal()
    row.notice_paused_days += decide_days_stopped(rules, began, today)
    if rules.notice_on_objection == "restart":
        row.public_notice_at_ms, row.notice_paused_days = at_ms, 0
    row.state, row.objected_at_ms = after, None
    session.add(row)
    tell(session, row, "APPLICATION_PUBLIC_NOTICE", f"异议不成立, 公示继续, {notice_ends(row, rules, at_ms)} 起可确认",
         f"the objection was dismissed; the public notice ends on {notice_ends(row, rules, at_ms)}")  # fmt: skip


def get_objection(session: Session, objection_id: str) -> Objection:
    """Locked. `NotFound` OBJECTION_NOT_FOUND."""
    row = session.exec(select(Objection).where(Objection.id == objection_id).with_for_update()).first()
    if row is None:
        raise NotFound(
            "OBJECTION_NOT_FOUND",
            zh=f"没有异议“{objection_id[:60]}”",
            en=f"there is no objection {objection_id[:60]!r}",
            remedy_zh="请查看申请页",
            remedy_en="see the application's page",
        )
    return row


def objections_of(session: Session, application_ids: list[str], state: str = "") -> list[Objection]:
    """Oldest first."""
    query = select(Objection).where(col(Objection.application_id).in_(application_ids))
    if state:
        query = query.where(Objection.state == state)
    return list(session.exec(query.order_by(col(Objection.created_at_ms), col(Objection.id))))


def list_notices(session: Session, at_ms: int, limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
    """What stands on public notice now, newest first; nothing of who objected or why."""
    query = select(Application).where(col(Application.state).in_(ON_NOTICE))
    total = int(session.exec(select(func.count()).select_from(query.subquery())).one())
    newest = query.order_by(col(Application.public_notice_at_ms).desc(), col(Application.id).desc())
    return [_notice(session, row, at_ms) for row in session.exec(newest.limit(limit).offset(offset))], total


def get_notice(session: Session, application_id: str, at_ms: int) -> dict[str, Any]:
    """One of them; `NotFound` APPLICATION_NOT_FOUND for what does not stand on notice."""
    row = get_application(session, application_id, None)
    if row.state not in ON_NOTICE:
        raise application_not_found(application_id)
    return _notice(session, row, at_ms)


def _notice(session: Session, row: Application, at_ms: int) -> dict[str, Any]:
    programme = session.get_one(Programme, row.programme_id)
    organisation = session.get_one(Organisation, row.organisation_id)
    rules = rules_of(programme)
    ends, began = notice_ends(row, rules, at_ms), row.public_notice_at_ms or at_ms
    return {
        "id": row.id,
        "programme": programme.code,
        "title_zh": programme.title_zh,
        "title_en": programme.title_en,
        "is_demo": programme.is_demo,
        "organisation_zh": organisation.name_zh,
        "organisation_en": organisation.name_en,
        "requested_fen": row.requested_fen,
        "public_notice_at_ms": began,
        "notice_days": rules.notice_days,
        "ends_on": ends.isoformat(),
        "open": not decide_notice_over(began, (ends - policy_date(began)).days, at_ms),
    }


def _required(text: str, field: str) -> str:
    found = bounded_text(text, field, BOUNDS[field])
    if not found or any(ord(c) < 32 and c not in "\n\r\t" for c in found):
        raise BadInput(
            "TEXT_INVALID",
            zh=f"“{field}”须填写, 且不含控制字符",
            en=f"{field} is required and has no control characters",
            remedy_zh="姓名、联系方式与理由都须填写",
            remedy_en="an objection has a name, a contact and a reason",
            field=field,
        )
    return found
