"""The audit log: who did what to what, appended in the transaction that did it."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, func, select

from marketplace.ids import new_id
from marketplace.organisations.tables import AuditEvent


def record(
    session: Session, *, actor: str, action: str, subject: str, organisation_id: str = "", **details: Any
) -> AuditEvent:
    """Append one event. `actor` is a member id, key id or "system"; `details` must be JSON-able and hold no secret."""
    event = AuditEvent(
        id=new_id("aud"),
        actor=actor or "system",
        organisation_id=organisation_id,
        action=action,
        subject=subject,
        details=details,
    )
    session.add(event)
    return event


def list_events(
    session: Session,
    *,
    organisation_id: str | None = None,
    action: str = "",
    subject: str = "",
    limit: int = 100,
    offset: int = 0,
) -> tuple[list[AuditEvent], int]:
    """Newest first. `organisation_id` None: of the whole market. `action` matches as a prefix."""
    query = select(AuditEvent)
    if organisation_id is not None:
        query = query.where(AuditEvent.organisation_id == organisation_id)
    if action:
        query = query.where(col(AuditEvent.action).startswith(action, autoescape=True))
    if subject:
        query = query.where(AuditEvent.subject == subject)
    total = session.exec(select(func.count()).select_from(query.subquery())).one()
    newest_first = query.order_by(col(AuditEvent.at_ms).desc(), col(AuditEvent.id).desc())
    return list(session.exec(newest_first.limit(limit).offset(offset))), total
