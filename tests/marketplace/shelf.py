"""Rows for tests of the catalogue: organisations, listings and versions, straight into the tables."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session

from marketplace.access import Actor
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.keys.authentication import scopes_of_kind
from marketplace.organisations.tables import Organisation


def add_organisation(session: Session, slug: str, kind: str = "vendor", **facts: Any) -> Organisation:
    row = Organisation(
        **({"id": f"org_{slug}", "kind": kind, "name_zh": slug, "slug": slug, "status": "approved"} | facts)
    )
    session.add(row)
    session.flush()
    return row


def add_listing(session: Session, name: str, status: str = "listed", **facts: Any) -> Listing:
    vendor = name.partition("/")[0]
    row = Listing(**({"id": f"lst_{name}", "organisation_id": f"org_{vendor}", "name": name, "status": status} | facts))
    session.add(row)
    session.flush()
    return row


def add_version(
    session: Session, listing: Listing, number: int = 1, state: str = "listed", **facts: Any
) -> ModelVersion:
    tensor = {"dtype": "FP32", "shape": [-1, 1]}
    manifest = {
        field: getattr(listing, field)
        for field in ("name", "title_zh", "title_en", "summary_zh", "summary_en", "tier", "task", "modality", "family")
    }
    given = {
        "id": f"ver_{listing.name}_{number}",
        "listing_id": listing.id,
        "number": number,
        "digest": f"digest-{listing.name}-{number}",
        "state": state,
        "inspection": {"passed": True},
        "manifest": manifest | {"inputs": [tensor | {"name": "x"}], "outputs": [tensor | {"name": "y"}]},
    }
    row = ModelVersion(**(given | facts))
    session.add(row)
    session.flush()
    return row


def actor_of(organisation: Organisation, member_id: str = "") -> Actor:
    return Actor(
        organisation_id=organisation.id,
        kind=organisation.kind,
        member_id=member_id or f"mem_{organisation.slug}",
        key_id="",
        scopes=scopes_of_kind(organisation.kind),
        name=organisation.name_zh,
        role="owner",
        slug=organisation.slug or "",
    )
