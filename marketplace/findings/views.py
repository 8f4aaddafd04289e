"""Findings as JSON."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.claims.tables import ClaimLine
from marketplace.findings.dispositions import contracts_of, history_of, next_states
from marketplace.findings.tables import Finding
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.signals import TITLES, Code
from marketplace.vouchers.tables import Programme

_FIELDS = (
    "id", "code", "severity", "state", "programme_id", "organisation_id", "provider_id", "amount_fen", "text_zh",
    "text_en", "first_seen_ms", "last_seen_ms", "changed_ms",
)  # fmt: skip


def finding_view(session: Session, row: Finding) -> dict[str, Any]:
    """A finding as lists have it."""
    zh, en = TITLES[Code(row.code)]
    programme = session.get(Programme, row.programme_id) if row.programme_id else None
    view: dict[str, Any] = {name: getattr(row, name) for name in _FIELDS}
    view |= {"title_zh": zh, "title_en": en, "programme": programme.code if programme else ""}
    view |= {f"programme_{each}": getattr(programme, f"title_{each}", "") for each in ("zh", "en")}
    for stem, key in (("organisation", row.organisation_id), ("provider", row.provider_id)):
        party = session.get(Organisation, key) if key else None
        view |= {f"{stem}_zh": party.name_zh if party else "", f"{stem}_en": party.name_en if party else ""}
    return view


def whole_view(session: Session, row: Finding) -> dict[str, Any]:
    """With its evidence, its histories, the claim lines of its contracts, and what it may become."""
    decided, seen = history_of(session, row.id)
    contracts = contracts_of(session, row.id)
    lines = session.exec(select(ClaimLine).where(col(ClaimLine.subscription_id).in_(contracts)).order_by(ClaimLine.id))
    latest = decided[-1].at_ms if decided else None
    return finding_view(session, row) | {
        "evidence": row.evidence,
        "contracts": contracts,
        "dispositions": [
            {"at_ms": each.at_ms, "state": each.state, "member_id": each.member_id, "reason": each.reason}
            for each in decided
        ],
        "sightings": [
            {"at_ms": each.at_ms, "amount_fen": each.amount_fen, "changed": bool(each.evidence)} for each in seen
        ],
        "changed_since_decided": latest is not None and row.changed_ms > latest,
        "lines": [
            {"id": line.id, "batch_id": line.batch_id, "state": line.state, "subsidy_fen": line.subsidy_fen}
            for line in lines
        ],
        "next": list(next_states(row.state)),
    }
