"""Lineage walked both ways: what a version was made from, and what was made from it."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, col, select

from marketplace.access import Actor
from marketplace.catalogue.listings import may_see
from marketplace.catalogue.tables import Listing, ModelVersion
from model_store.manifest import WEIGHT_REUSING_RELATIONS

MAX_DEPTH = 20
MAX_NODES = 500


def lineage(session: Session, version: ModelVersion, actor: Actor | None) -> dict[str, Any]:
    """`{version, ancestors: [nearest first], descendants: [{…, depth}], hidden_descendants}`.

    A private derivative of somebody else is counted, never named.
    """
    ancestors: list[dict[str, Any]] = []
    current, seen = version, {version.id}
    while current.parent_version_id and current.parent_version_id not in seen and len(ancestors) < MAX_DEPTH:
        parent = session.get(ModelVersion, current.parent_version_id)
        if parent is None:
            break
        seen.add(parent.id)
        listing = session.get_one(Listing, parent.listing_id)
        ancestors.append(_node(parent, listing, len(ancestors) + 1, actor, relation=current.relation))
        current = parent
    descendants, hidden = _descendants(session, version, actor)
    own = session.get_one(Listing, version.listing_id)
    return {
        "version": _node(version, own, 0, actor, relation=version.relation),
        "ancestors": ancestors,
        "descendants": descendants,
        "hidden_descendants": hidden,
    }


def _descendants(session: Session, version: ModelVersion, actor: Actor | None) -> tuple[list[dict[str, Any]], int]:
    found: list[dict[str, Any]] = []
    hidden, seen, layer = 0, {version.id}, [version.id]
    for depth in range(1, MAX_DEPTH + 1):
        query = (
            select(ModelVersion, Listing)
            .join(Listing, col(Listing.id) == col(ModelVersion.listing_id))
            .where(col(ModelVersion.parent_version_id).in_(layer))
            .order_by(Listing.name, col(ModelVersion.number))
            .limit(MAX_NODES)
        )
        layer = []
        for child, listing in session.exec(query):
            if child.id in seen or len(found) >= MAX_NODES:
                continue
            seen.add(child.id)
            layer.append(child.id)
            if may_see(listing, actor):
                found.append(_node(child, listing, depth, actor, relation=child.relation))
            else:
                hidden += 1
        if not layer:
            break
    return found, hidden


def _node(
    version: ModelVersion, listing: Listing, depth: int, actor: Actor | None, *, relation: str | None
) -> dict[str, Any]:
    seen = may_see(listing, actor)
    return {
        "version_id": version.id if seen else None,
        "name": listing.name if seen else None,
        "version": version.number if seen else None,
        "state": version.state if seen else None,
        "title_zh": listing.title_zh if seen else "",
        "title_en": listing.title_en if seen else "",
        "relation": relation,
        "reuses_weights": relation in WEIGHT_REUSING_RELATIONS if relation else None,
        "depth": depth,
    }
