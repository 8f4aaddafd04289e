"""Routes of the review queue."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.catalogue.listings import version_view
from marketplace.catalogue.tables import Listing, ModelVersion
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.review import service
from marketplace.review.tables import Review

router = APIRouter(tags=["review"])


class Approval(Body):
    note: str = Field(default="", max_length=2000)


class Return(Body):
    note: str = Field(min_length=1, max_length=2000, description="What the vendor has to mend")


def review_view(review: Review, version: ModelVersion, listing: Listing, at_ms: int) -> dict[str, Any]:
    fields = ("id", "state", "submitted_by", "decided_by", "note", "created_at_ms", "decided_at_ms")
    return {name: getattr(review, name) for name in fields} | {
        "age_ms": at_ms - review.created_at_ms,
        "name": listing.name,
        "title_zh": listing.title_zh,
        "title_en": listing.title_en,
        "tier": listing.tier,
        "task": listing.task,
        "version": version_view(version, full=True),
    }


@router.get("/reviews")
def list_reviews(
    state: str = "open",
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(require("operator")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The review queue, oldest first; `state` open | approved | returned, or empty for all."""
    with reading(market.engine) as session:
        rows, total = service.list_reviews(session, state=state, offset=(page - 1) * 200)
        return {"items": [review_view(*row, now_ms()) for row in rows], "total": total}


@router.post("/reviews/{review_id}/approve")
def approve(
    review_id: str,
    body: Approval | None = None,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """List the version: everybody approved may call it from now on."""
    with transaction(market.engine) as session:
        note = body.note if body else ""
        listing = service.approve_review(session, review_id, actor=actor.id, at_ms=now_ms(), note=note)
    market.catalogue_changed(listing.id)
    return {"name": listing.name, "status": listing.status, "state": "listed"}


@router.post("/reviews/{review_id}/return")
def return_(
    review_id: str,
    body: Return,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Send the version back to its vendor with what to mend."""
    with transaction(market.engine) as session:
        listing = service.return_review(session, review_id, actor=actor.id, at_ms=now_ms(), note=body.note)
    market.catalogue_changed(listing.id)
    return {"name": listing.name, "status": listing.status, "state": "returned"}
