"""Keeping what was found: a run reads, then writes; the same finding found again is the same row, seen once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlmodel import Session, SQLModel, func, select

from marketplace.clock import now_ms, policy_date
from marketplace.db import reading, transaction
from marketplace.findings.found import Found
from marketplace.findings.scanning import find_all
from marketplace.findings.tables import Finding, FindingContract, FindingSighting
from marketplace.ledger.posting import insert_ignoring
from marketplace.organisations import audit, notices
from marketplace.organisations.tables import AuditEvent

CHUNK = 500


def run(engine: Engine, at_ms: int, *, actor: str = "system") -> dict[str, int]:
    """Look for everything as it is at `at_ms` and keep it: `{found, new, changed}`.

    It is read outside the writing transaction, and stamped in it: a report's `as_of` must not come in between.
    """
    with reading(engine) as session:
        found = find_all(session, at_ms)
    with transaction(engine) as session:
        return record(session, found, now_ms(), actor=actor)


def is_due(session: Session, at_ms: int) -> bool:
    """Whether nobody has looked on this day in Asia/Shanghai."""
    last = select(func.max(AuditEvent.at_ms)).where(AuditEvent.action == "finding.run")
    at = session.exec(last).one()
    return at is None or policy_date(at) < policy_date(at_ms)


def record(session: Session, found: Sequence[Found], at_ms: int, *, actor: str) -> dict[str, int]:
    """Write a run's findings; operators are told of new ones. A dismissed finding stays dismissed: that its evidence
    has changed since is shown beside it."""
    new = changed = 0
    for each in found:
        made, other = _keep(session, each, at_ms)
        new, changed = new + made, changed + (other and not made)
    counts: dict[str, int] = {"found": len(found), "new": new, "changed": changed}
    audit.record(session, actor=actor, action="finding.run", subject="findings", **dict[str, Any](counts))
    if new:
        notices.notify_operators(
            session,
            "FINDINGS_NEW",
            zh=f"发现 {new} 条新线索, 请核查",
            en=f"{new} new findings are to be looked at",
            link="/city/findings",
        )
    return counts


def _keep(session: Session, found: Found, at_ms: int) -> tuple[bool, bool]:
    """Whether it is new, and whether its evidence is another one than before."""
    facts: dict[str, Any] = {
        "severity": found.severity,
        "amount_fen": found.amount_fen,
        "text_zh": found.zh,
        "text_en": found.en,
        "evidence": found.evidence,
    }
    times = dict.fromkeys(("first_seen_ms", "last_seen_ms", "changed_ms"), at_ms)
    first = {
        "id": found.id,
        "code": str(found.code),
        "state": "open",
        "programme_id": found.programme,
        "organisation_id": found.organisation,
        "provider_id": found.provider,
    }
    made = _insert(session, Finding, [first | facts | times]) == 1
    row = session.exec(select(Finding).where(Finding.id == found.id).with_for_update()).one()
    other = any(getattr(row, name) != value for name, value in facts.items())
    if made or other or policy_date(row.last_seen_ms) != policy_date(at_ms):
        same = facts | ({} if made or other else {"evidence": {}})
        session.add(FindingSighting(finding_id=row.id, at_ms=at_ms, **same))
    if other:
        for name, value in facts.items():
            setattr(row, name, value)
        row.changed_ms = at_ms
    row.last_seen_ms = max(row.last_seen_ms, at_ms)
    session.add(row)
    session.flush()
    if found.contracts:
        about = {"finding_id": row.id, "at_ms": at_ms}
        _insert(session, FindingContract, [about | {"subscription_id": each} for each in found.contracts])
    return made, other


def _insert(session: Session, table: type[SQLModel], rows: list[dict[str, Any]]) -> int:
    """Rows that are not there yet; answers how many were written."""
    written, key = 0, sa.inspect(table).primary_key[0]
    for start in range(0, len(rows), CHUNK):
        insert = insert_ignoring(session, table).values(rows[start : start + CHUNK]).returning(key)
        written += len(session.connection().execute(insert).all())
    return written
