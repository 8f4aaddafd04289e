"""Routes of versions in traffic."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import Field
from sqlmodel import Session, select

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.catalogue import listings as rows
from marketplace.catalogue import rollouts
from marketplace.catalogue.tables import Listing, ModelVersion, Rollout
from marketplace.db import reading, transaction
from marketplace.market import Market

router = APIRouter(tags=["catalogue"])
VENDOR = require("vendor", "enterprise", "operator", scope="publish")


class NewRollout(Body):
    stable: int = Field(ge=1, description="Takes every call of the bare name that the canary does not take")
    canary: int | None = Field(default=None, ge=1)
    canary_percent: int = Field(default=0, ge=0, le=100)
    shadow: int | None = Field(default=None, ge=1, description="Gets the stable one's inputs, unanswered and unpaid")
    max_failure_percent: int = Field(default=5, ge=1, le=100, description="From here on the canary is taken back")
    max_decisions_changed_percent: int | None = Field(
        default=None, ge=1, le=100, description="With shadow = canary: rows decided otherwise than by the stable one"
    )
    max_difference_percent: int | None = Field(
        default=None, ge=1, le=100, description="With shadow = canary: mean relative difference of the answers"
    )


@router.get("/models/{vendor}/{name}/rollout")
def get_rollout(
    vendor: str, name: str, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """The listing's rollout and what has come of it; `{"rollout": null}` where there is none."""
    with reading(market.engine) as session:
        listing = rows.own_listing(session, f"{vendor}/{name}", actor, or_operator=True)
        return {"name": listing.name, "rollout": rollout_of(session, market, listing)}


@router.put("/models/{vendor}/{name}/rollout")
def put_rollout(
    vendor: str, name: str, body: NewRollout, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Share the calls of the bare name among versions. A canary that breaks too often, or answers otherwise than it
    may, is taken back by itself."""
    with transaction(market.engine) as session:
        listing = rows.own_listing(session, f"{vendor}/{name}", actor)
        query = select(ModelVersion).where(ModelVersion.listing_id == listing.id)
        versions = {version.number: version for version in session.exec(query)}
        rollouts.set_rollout(session, listing, versions, actor=actor.id, **body.model_dump())
    market.catalogue_changed(listing.id)
    with reading(market.engine) as session:
        return {"name": listing.name, "rollout": rollout_of(session, market, session.get_one(Listing, listing.id))}


@router.delete("/models/{vendor}/{name}/rollout")
def delete_rollout(
    vendor: str, name: str, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """End it: the newest listed version takes every call again."""
    with transaction(market.engine) as session:
        listing = rows.own_listing(session, f"{vendor}/{name}", actor)
        rollouts.end_rollout(session, listing, actor=actor.id)
    market.catalogue_changed(listing.id)
    return {"name": listing.name, "rollout": None}


def rollout_of(session: Session, market: Market, listing: Listing) -> dict[str, Any] | None:
    """The view of a listing's rollout; None where there is none."""
    row = session.get(Rollout, listing.id)
    plane = market.dataplane
    if row is None:
        return None
    if plane is None:
        return rollouts.rollout_view(row, {}, None)
    return rollouts.rollout_view(row, market.rollouts.tallies(plane, listing, row), market.comparison_of(listing.name))
