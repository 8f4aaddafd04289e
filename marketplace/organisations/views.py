"""What the API and the pages show of an organisation and its people."""

from __future__ import annotations

from typing import Any

from marketplace.organisations.tables import Member, Organisation


def organisation_view(row: Organisation) -> dict[str, Any]:
    """An organisation as its own members and the operator see it."""
    fields = (
        "id", "kind", "name_zh", "name_en", "slug", "uscc", "status", "legal_person", "controllers", "shareholders",
        "address", "phone", "town", "run_weight", "is_demo", "created_at_ms",
    )  # fmt: skip
    return {name: getattr(row, name) for name in fields}


def member_view(row: Member) -> dict[str, Any]:
    return {
        name: getattr(row, name)
        for name in ("id", "organisation_id", "email", "name", "role", "status", "created_at_ms")
    }
