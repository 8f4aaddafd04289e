"""Listings: who may see and change one, and what its page shows."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.access import Actor
from marketplace.catalogue.prices import list_prices, price_view
from marketplace.catalogue.tables import Alias, Filing, Listing, ModelVersion
from marketplace.organisations.tables import Organisation
from model_store.errors import Forbidden, NotFound
from model_store.names import canonical
from serving.errors.access import model_not_found

_MANIFEST_SHOWN = (
    "inputs", "outputs", "features", "target", "labels", "metrics", "cost", "data", "method", "variation", "adaptable",
    "batching", "recipe", "reference", "family", "keywords",
)  # fmt: skip


def may_see(listing: Listing, actor: Actor | None) -> bool:
    """Listed public ones are everybody's to see; the rest their organisation's; public drafts the operator's too."""
    if actor is not None and actor.organisation_id == listing.organisation_id:
        return True
    if listing.visibility == "private":
        return False
    return listing.status in ("listed", "retired") or (actor is not None and actor.is_operator)


def find_listing(session: Session, name: str, actor: Actor | None) -> Listing:
    """The listing by either spelling of its name; `NotFound` MODEL_NOT_FOUND also where the actor may not see it."""
    listing = session.exec(select(Listing).where(Listing.name == canonical(name, field="model"))).first()
    if listing is None or not may_see(listing, actor):
        raise model_not_found(name)
    return listing


def own_listing(session: Session, name: str, actor: Actor, *, or_operator: bool = False) -> Listing:
    """The listing, if the actor's organisation owns it; `Forbidden` NOT_YOUR_MODEL otherwise."""
    listing = find_listing(session, name, actor)
    if listing.organisation_id == actor.organisation_id or (or_operator and actor.is_operator):
        return listing
    raise Forbidden(
        "NOT_YOUR_MODEL",
        zh=f"“{listing.name}”不属于贵单位",
        en=f"{listing.name} does not belong to your organisation",
        remedy_zh="请使用模型所属单位的账号或密钥",
        remedy_en="use an account or key of the organisation that publishes it",
        field="model",
    )


def find_version(session: Session, listing: Listing, number: int, actor: Actor | None) -> ModelVersion:
    """A version by number; strangers see listed and retired ones only."""
    version = session.exec(
        select(ModelVersion).where(ModelVersion.listing_id == listing.id, ModelVersion.number == number)
    ).first()
    if version is None or not _version_seen(version, listing, actor):
        raise NotFound(
            "VERSION_NOT_FOUND",
            zh=f"“{listing.name}”没有版本 {number}",
            en=f"{listing.name} has no version {number}",
            remedy_zh="请在模型页查看现有版本",
            remedy_en="see the model's page for the versions there are",
            field="version",
        )
    return version


def _version_seen(version: ModelVersion, listing: Listing, actor: Actor | None) -> bool:
    if actor is not None and (actor.organisation_id == listing.organisation_id or actor.is_operator):
        return True
    return version.state in ("listed", "retired")


def versions_seen(session: Session, listing: Listing, actor: Actor | None) -> list[ModelVersion]:
    """The versions that the actor may see, newest first."""
    query = select(ModelVersion).where(ModelVersion.listing_id == listing.id)
    rows = session.exec(query.order_by(col(ModelVersion.number).desc()))
    return [row for row in rows if _version_seen(row, listing, actor)]


def version_view(version: ModelVersion, *, full: bool = False) -> dict[str, Any]:
    """A version as JSON; `full` adds manifest, inspection report and scorecard."""
    view = {
        "version_id": version.id,
        "version": version.number,
        "state": version.state,
        "digest": version.digest,
        "size_bytes": version.size_bytes,
        "relation": version.relation,
        "parent_version_id": version.parent_version_id,
        "variation": version.manifest.get("variation", "fp32"),
        "method": version.manifest.get("method", ""),
        "inspection_passed": bool(version.inspection.get("passed", False)),
        "created_at_ms": version.created_at_ms,
    }
    if full:
        view |= {"manifest": version.manifest, "inspection": version.inspection, "scorecard": version.scorecard}
    return view


def listing_detail(
    session: Session, listing: Listing, actor: Actor | None, card: dict[str, Any] | None
) -> dict[str, Any]:
    """Everything the model page shows but the graph itself: card, tensors and features, versions, aliases, prices."""
    versions = versions_seen(session, listing, actor)
    shown = next((v for v in versions if v.state == "listed"), versions[0] if versions else None)
    owner = session.get_one(Organisation, listing.organisation_id)
    filing = session.get(Filing, listing.filing_id) if listing.filing_id else None
    aliases = session.exec(select(Alias).where(Alias.listing_id == listing.id).order_by(Alias.alias))
    manifest = shown.manifest if shown else {}
    return (card or {}) | {
        "listing_id": listing.id,
        "name": listing.name,
        "status": listing.status,
        "visibility": listing.visibility,
        "vendor": {"slug": owner.slug, "name_zh": owner.name_zh, "name_en": owner.name_en, "is_demo": owner.is_demo},
        "relation": listing.relation,
        "genai_service": listing.genai_service,
        "filing": filing_view(filing) if filing else None,
        "model": {key: manifest.get(key) for key in _MANIFEST_SHOWN},
        "scorecard": shown.scorecard if shown else {},
        "current": version_view(shown) if shown else None,
        "versions": [version_view(version) for version in versions],
        "aliases": {row.alias: row.number for row in aliases},
        "prices": [price_view(price) for price in list_prices(session, listing.id)],
        "mine": actor is not None and actor.organisation_id == listing.organisation_id,
    }


def filing_view(filing: Filing) -> dict[str, Any]:
    """An entry of the register of filed models. A demonstration entry says so."""
    fields = ("id", "number", "kind", "model_name", "holder", "valid_from", "valid_until", "is_demo")
    return {name: getattr(filing, name) for name in fields}
