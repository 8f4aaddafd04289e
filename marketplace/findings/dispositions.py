"""What persons make of findings, each step with who, when and why; and what a finding holds back.

    open → under_review → confirmed | dismissed;   confirmed, dismissed → under_review (looked at again)

Nothing follows by itself. A programme may keep lines out of a claim while they have findings of some codes that nobody
has dismissed (`signals.hold_claims_on`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.findings.tables import Finding, FindingContract, FindingDisposition, FindingSighting
from marketplace.organisations import audit
from marketplace.vouchers.refusals import forbidden
from model_store.errors import BadInput, Conflict, NotFound

STATES = ("open", "under_review", "confirmed", "dismissed")
UNSETTLED = ("open", "under_review")
MAX_REASON = 2_000
_NEXT: dict[str, tuple[str, ...]] = {
    "open": ("under_review",),
    "under_review": ("confirmed", "dismissed"),
    "confirmed": ("under_review",),
    "dismissed": ("under_review",),
}


def next_states(state: str) -> tuple[str, ...]:
    return _NEXT[state]


def decide_disposition(before: str, after: str) -> str:
    """`after` where it may follow `before`; `Conflict` FINDING_STATE."""
    possible = _NEXT[before]
    if after not in possible:
        raise Conflict(
            "FINDING_STATE",
            zh=f"状态为“{before}”的线索不能改为“{after}”",
            en=f"a finding that is {before} does not become {after}",
            remedy_zh=f"当前可改为: {'、'.join(possible)}",
            remedy_en=f"what it may become now: {', '.join(possible)}",
            field="state",
            details={"state": before, "possible": list(possible)},
        )
    return after


def dispose(session: Session, row: Finding, state: str, reason: str, *, member: str, at_ms: int) -> Finding:
    """Append a person's decision. `Forbidden` PERSON_REQUIRED, `BadInput` REASON_REQUIRED, `Conflict` FINDING_STATE."""
    if not member:
        raise forbidden("PERSON_REQUIRED")
    row.state = decide_disposition(row.state, state)
    reason = reason.strip()[:MAX_REASON]
    if not reason:
        raise BadInput(
            "REASON_REQUIRED",
            zh="请写明原因",
            en="this takes a reason",
            remedy_zh="原因与办理人一并留存",
            remedy_en="it is kept with who gave it",
            field="reason",
        )
    session.add(row)
    session.add(FindingDisposition(finding_id=row.id, at_ms=at_ms, state=state, member_id=member, reason=reason))
    audit.record(
        session,
        actor=member,
        organisation_id=row.organisation_id,
        action=f"finding.{state}",
        subject=row.id,
        code=row.code,
        reason=reason,
    )
    return row


def get_finding(session: Session, finding_id: str) -> Finding:
    """Locked. `NotFound` FINDING_NOT_FOUND."""
    row = session.exec(select(Finding).where(Finding.id == finding_id).with_for_update()).first()
    if row is None:
        raise NotFound(
            "FINDING_NOT_FOUND",
            zh=f"没有线索“{finding_id[:60]}”",
            en=f"there is no finding {finding_id[:60]!r}",
            remedy_zh="请查看线索列表",
            remedy_en="see the list of findings",
        )
    return row


def list_findings(
    session: Session, *, states: Iterable[str] = (), code: str = "", organisation: str = "", offset: int = 0,
    limit: int = 100,
) -> tuple[list[Finding], int]:  # fmt: skip
    """Newest first; of an organisation, as enterprise or provider."""
    query = select(Finding)
    if wanted := tuple(states):
        query = query.where(col(Finding.state).in_(wanted))
    if code:
        query = query.where(Finding.code == code)
    if organisation:
        query = query.where((Finding.organisation_id == organisation) | (Finding.provider_id == organisation))
    total = session.exec(select(func.count()).select_from(query.subquery())).one()
    newest = query.order_by(col(Finding.first_seen_ms).desc(), col(Finding.id)).offset(offset).limit(limit)
    return list(session.exec(newest)), total


def count_unsettled(session: Session) -> int:
    return int(session.exec(select(func.count()).where(col(Finding.state).in_(UNSETTLED))).one())


def contracts_of(session: Session, finding_id: str) -> list[str]:
    query = select(FindingContract.subscription_id).where(FindingContract.finding_id == finding_id)
    return list(session.exec(query.order_by(FindingContract.subscription_id)))


def history_of(session: Session, finding_id: str) -> tuple[list[FindingDisposition], list[FindingSighting]]:
    """Dispositions and sightings, oldest first."""
    decided = select(FindingDisposition).where(FindingDisposition.finding_id == finding_id)
    seen = select(FindingSighting).where(FindingSighting.finding_id == finding_id)
    return (
        list(session.exec(decided.order_by(col(FindingDisposition.id)))),
        list(session.exec(seen.order_by(col(FindingSighting.id)))),
    )


def findings_about(session: Session, contracts: Iterable[str], programme_id: str) -> dict[str, list[Finding]]:
    """By contract, the findings about it that nobody has dismissed: the programme's own and those of every one."""
    wanted, found = sorted(set(contracts)), dict[str, list[Finding]]()
    for start in range(0, len(wanted), 500):
        query: Any = (
            select(FindingContract.subscription_id, Finding)
            .join(Finding, col(Finding.id) == col(FindingContract.finding_id))
            .where(
                col(FindingContract.subscription_id).in_(wanted[start : start + 500]),
                col(Finding.programme_id).in_(("", programme_id)),
                col(Finding.state) != "dismissed",
            )
            .order_by(col(Finding.first_seen_ms), col(Finding.id))
        )
        for contract, row in session.exec(query):
            found.setdefault(contract, []).append(row)
    return found
