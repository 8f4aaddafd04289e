"""Aliases: a name for a version, kept in the registry (MLflow) and mirrored in the database for the call path."""

from __future__ import annotations

from sqlmodel import Session, select

from marketplace.catalogue.tables import Alias, Listing, ModelVersion
from marketplace.organisations import audit
from model_store.errors import Conflict, NotFound

MAX_ALIASES = 50


def set_alias(session: Session, listing: Listing, alias: str, version: ModelVersion, *, actor: str) -> Alias:
    """Point an alias at a version that can be called. `alias` has passed `check_alias`."""
    if version.state not in ("inspected", "in_review", "listed"):
        raise Conflict(
            "VERSION_NOT_CALLABLE",
            zh=f"版本 {version.number} 处于“{version.state}”状态, 不能设为别名",
            en=f"version {version.number} is {version.state}; an alias needs one that can be called",
            remedy_zh="请选择其他版本",
            remedy_en="choose another version",
            field="version",
        )
    rows = session.exec(select(Alias).where(Alias.listing_id == listing.id)).all()
    row = next((row for row in rows if row.alias == alias), None)
    if row is None and len(rows) >= MAX_ALIASES:
        raise Conflict(
            "ALIASES_TOO_MANY",
            zh=f"一个模型最多 {MAX_ALIASES} 个别名",
            en=f"a model has at most {MAX_ALIASES} aliases",
            remedy_zh="请先删除不用的别名",
            remedy_en="delete one that is not used",
        )
    row = row or Alias(listing_id=listing.id, alias=alias, number=version.number)
    row.number = version.number
    session.add(row)
    _record(session, listing, "alias.set", actor, alias=alias, version=version.number)
    return row


def delete_alias(session: Session, listing: Listing, alias: str, *, actor: str) -> None:
    """Remove an alias; `NotFound` ALIAS_NOT_FOUND."""
    row = session.get(Alias, (listing.id, alias))
    if row is None:
        raise NotFound(
            "ALIAS_NOT_FOUND",
            zh=f"“{listing.name}”没有别名“{alias[:40]}”",
            en=f"{listing.name} has no alias {alias[:40]!r}",
            remedy_zh="请在模型页查看现有别名",
            remedy_en="see the model's page for its aliases",
            field="alias",
        )
    session.delete(row)
    _record(session, listing, "alias.delete", actor, alias=alias)


def _record(session: Session, listing: Listing, action: str, actor: str, **details: str | int) -> None:
    audit.record(
        session, actor=actor, organisation_id=listing.organisation_id, action=action, subject=listing.name, **details
    )
