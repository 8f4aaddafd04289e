"""Routes of subscriptions: an enterprise's contracts on listings."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sqlmodel import Session

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.catalogue.listings import find_listing
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.vouchers import closing, subscriptions
from marketplace.vouchers.eligibility import Reason
from marketplace.vouchers.tables import Subscription

router = APIRouter()
PAGE = 100


class NewSubscription(Body):
    listing: str = Field(description="vendor/name")
    contract_fen: int = 0
    on_voucher_end: Literal["refuse", "self_pay"] = "refuse"
    monthly_cap_fen: int | None = None


class SubscriptionChanges(Body):
    contract_fen: int | None = None
    on_voucher_end: Literal["refuse", "self_pay"] | None = None
    monthly_cap_fen: int | None = None


@router.get("/subscriptions")
def list_subscriptions(
    page: int = Query(1, ge=1, le=1_000_000),
    provided: bool = Query(False, description="Those on one's own listings instead"),
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    own = actor.organisation_id
    scope: dict[str, Any] = {"provider_id": own} if provided else {"organisation_id": within(actor)}
    with reading(market.engine) as session:
        rows, total = subscriptions.list_subscriptions(session, **scope, limit=PAGE, offset=(page - 1) * PAGE)
        return {"items": [_subscription(session, row) for row in rows], "total": total}


@router.post("/subscriptions", status_code=201)
def subscribe(
    body: NewSubscription,
    actor: Actor = Depends(require("enterprise", "vendor", scope="manage")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Take a listing. `not_reserved` tells why a voucher does not pay its share, where one does not."""
    with transaction(market.engine) as session:
        row, reasons = subscriptions.subscribe(
            session,
            actor.organisation_id,
            find_listing(session, body.listing, actor),
            contract_fen=body.contract_fen,
            on_voucher_end=body.on_voucher_end,
            monthly_cap_fen=body.monthly_cap_fen,
            actor=actor.id,
            at_ms=now_ms(),
        )
        view = _subscription(session, row, reasons)
    leases_changed(market, actor.organisation_id)
    return view


@router.patch("/subscriptions/{subscription_id}")
def change_subscription(
    subscription_id: str,
    body: SubscriptionChanges,
    actor: Actor = Depends(require(scope="manage")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Change what is given; `monthly_cap_fen: null` takes the cap away."""
    with transaction(market.engine) as session:
        row = subscriptions.get_subscription(session, subscription_id, actor.organisation_id)
        changes = body.model_dump(exclude_unset=True)
        given = {n: v for n, v in changes.items() if v is not None or n == "monthly_cap_fen"}
        view = _subscription(session, subscriptions.change(session, row, given, actor=actor.id))
    leases_changed(market, row.organisation_id)
    return view


@router.post("/subscriptions/{subscription_id}/end")
def end_subscription(
    subscription_id: str, actor: Actor = Depends(require(scope="manage")), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """End the contract: what is not in use goes back to the voucher at once, the rest when its leases are settled."""
    with transaction(market.engine) as session:
        row = subscriptions.get_subscription(session, subscription_id, actor.organisation_id)
        view = _subscription(session, closing.end_contract(session, row, actor=actor.id, at_ms=now_ms()))
    leases_changed(market, row.organisation_id)
    return view


def _subscription(session: Session, row: Subscription, reasons: list[Reason] | None = None) -> dict[str, Any]:
    return subscriptions.subscription_view(session, row, now_ms(), reasons or [])


def within(actor: Actor) -> str | None:
    """The organisation an actor is confined to; an operator to none."""
    return None if actor.is_operator else actor.organisation_id


def leases_changed(market: Market, organisation_id: str | None) -> None:
    """After the commit: nodes ask for their leases again from the next call on."""
    if market.dataplane is not None:
        market.dataplane.expire_leases(organisation_id)
