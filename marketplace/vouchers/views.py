"""Programmes, applications and vouchers as JSON."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from marketplace.evidence.files import file_view, files_of
from marketplace.organisations.tables import Organisation
from marketplace.vouchers.dropping import why_dropped
from marketplace.vouchers.issuing import left_of, position
from marketplace.vouchers.overrides import overrides_of
from marketplace.vouchers.programme import OPEN_FIELDS
from marketplace.vouchers.revoking import revocation_view
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Application, CheckOverride, Objection, OtherSubsidy, Programme, Voucher
from marketplace.vouchers.wording import describe


def programme_view(row: Programme, *, full: bool = False) -> dict[str, Any]:
    """A programme with its rules in plain words; `full` adds the document itself."""
    rules = rules_of(row)
    words = describe(rules)
    view: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("id", "code", "version", "title_zh", "title_en", "state", "is_demo", "created_at_ms")
    }
    view |= {
        "text_zh": words["zh"],
        "text_en": words["en"],
        "unset": [{"field": name, "zh": OPEN_FIELDS[name][0], "en": OPEN_FIELDS[name][1]} for name in words["unset"]],
        "settlement_mode": rules.settlement_mode,
        "ratio": rules.ratio.model_dump() if rules.ratio else None,
        "pool_fen": rules.pool_fen,
        "cap_fen": rules.cap_fen,
        "cap_period": rules.cap_period,
        "notice_days": rules.notice_days,
        "retention_years": rules.retention_years,
        "evidence_schema": [item.model_dump() for item in rules.evidence_schema or ()],
    }
    return view | ({"document": row.document} if full else {})


def application_view(session: Session, row: Application) -> dict[str, Any]:
    """An application with its files and overrides; `left_fen` of what it asks for stands in no voucher."""
    fields = (
        "id", "programme_id", "organisation_id", "state", "requested_fen", "purpose", "evidence", "checks",
        "decided_by", "note", "created_at_ms", "public_notice_at_ms",
    )  # fmt: skip
    view: dict[str, Any] = {name: getattr(row, name) for name in fields}
    view["left_fen"] = left_of(session, row)
    view["asked"] = [each["code"] for each in row.asked]
    view["files"] = [file_view(file) for file in files_of(session, [row.id])]
    view["overrides"] = [override_view(each) for each in overrides_of(session, row.id)]
    view |= _named(session, row.organisation_id)
    view["programme"] = session.get_one(Programme, row.programme_id).code
    return view


def _named(session: Session, organisation_id: str) -> dict[str, str]:
    organisation = session.get_one(Organisation, organisation_id)
    return {"organisation_zh": organisation.name_zh, "organisation_en": organisation.name_en}


def override_view(row: CheckOverride) -> dict[str, Any]:
    names = ("id", "application_id", "code", "failed_reason", "reason", "state", "proposed_by", "decided_by",
             "created_at_ms")  # fmt: skip
    return {name: getattr(row, name) for name in names}


def objection_view(row: Objection) -> dict[str, Any]:
    """With who objected: for operators only."""
    names = ("id", "application_id", "name", "contact", "reason", "state", "decision", "decided_by", "decided_at_ms",
             "created_at_ms")  # fmt: skip
    return {name: getattr(row, name) for name in names}


def subsidy_view(session: Session, row: OtherSubsidy) -> dict[str, Any]:
    """A declared subsidy, with the files that show it."""
    names = ("id", "subscription_id", "organisation_id", "programme", "authority", "amount_fen", "declared_by",
             "created_at_ms", "withdrawn_by", "withdrawn_at_ms", "withdrawal")  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"files": [file_view(f) for f in files_of(session, [row.id])]}


def voucher_view(session: Session, row: Voucher, *, to_operator: bool) -> dict[str, Any]:
    """A voucher with where its face is now; `remaining_fen` is what is not used and did not go back; by whom and why it
    was declined or withdrawn, if it was; the newest proposal to revoke it (to others than operators, only once it is
    confirmed); and of a closed one how it `ended`."""
    fields = (
        "id", "application_id", "programme_id", "organisation_id", "state", "use_by", "redeem_by", "priority",
        "proposed_by", "approved_by", "created_at_ms", "issued_at_ms",
    )  # fmt: skip
    view: dict[str, Any] = {name: getattr(row, name) for name in fields}
    programme = session.get_one(Programme, row.programme_id)
    view |= {
        "programme": programme.code,
        "title_zh": programme.title_zh,
        "title_en": programme.title_en,
        "is_demo": programme.is_demo,
        "settlement_mode": rules_of(programme).settlement_mode,
        **_named(session, row.organisation_id),
    }
    found = position(session, row)
    remaining = found["available_fen"] + found["reserved_fen"] + found["leased_fen"]
    view["ended"] = row.state_before if row.state == "closed" else ""
    view["revocation"] = revocation_view(session, row, confirmed_only=not to_operator)
    return view | found | {"remaining_fen": remaining} | why_dropped(session, row)
