"""The console of an organisation and the operators' city hall."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Depends
from sqlmodel import select
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import Actor, market_of, require
from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys import service as keys
from marketplace.keys.api import key_view
from marketplace.market import Market
from marketplace.organisations import audit
from marketplace.review import service as review
from marketplace.review.api import review_view
from marketplace.usage.queries import Filters, list_usage, trace
from marketplace.vouchers import issuing, subscriptions
from marketplace.vouchers.tables import Programme
from marketplace.vouchers.views import voucher_view
from marketplace.web.rendering import PageRoute, page
from model_store.errors import BadInput

router = APIRouter(route_class=PageRoute, include_in_schema=False)
OPERATOR = require("operator", scope="admin")
SHOWN = 50


@router.get("/console")
def console(request: Request, actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> Response:
    """Keys, vouchers, contracts and the latest usage of the member's organisation."""
    own = actor.organisation_id
    with reading(market.engine) as session:
        only = None if actor.role == "owner" else actor.member_id
        contracts, _ = subscriptions.list_subscriptions(session, organisation_id=own, limit=SHOWN)
        return page(
            request,
            "console.html",
            keys=[key_view(row, now_ms()) for row in keys.list_keys(session, own, member_id=only)],
            vouchers=[voucher_view(session, row) for row in issuing.list_vouchers(session, own, "", SHOWN, 0)[0]],
            contracts=[
                row.model_dump() | {"listing": session.get_one(Listing, row.listing_id).name} for row in contracts
            ],
            usage=list_usage(session, actor, Filters(), limit=SHOWN, offset=0)[0],
        )


@router.get("/console/usage/{usage_id}")
def usage_trace(
    usage_id: str, request: Request, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> Response:
    """One call, to the price, the voucher line and the transfer."""
    with reading(market.engine) as session:
        return page(request, "trace.html", usage_id=usage_id, parts=trace(session, actor, usage_id))


@router.get("/city")
def city(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """Review queue, pool, vouchers and audit log."""
    with reading(market.engine) as session:
        programmes = session.exec(select(Programme).where(Programme.state != "draft").order_by(Programme.code))
        return page(
            request,
            "city.html",
            reviews=[review_view(*row, now_ms()) for row in review.list_reviews(session, state="open", offset=0)[0]],
            pools=[issuing.pool_position(session, row) for row in programmes],
            vouchers=[voucher_view(session, row) for row in issuing.list_vouchers(session, None, "", SHOWN, 0)[0]],
            events=audit.list_events(session, organisation_id=None, action="", subject="", offset=0)[0][:SHOWN],
        )


@router.post("/city/reviews/{review_id}/approve")
def approve(review_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """List the version under review."""
    with transaction(market.engine) as session:
        listing = review.approve_review(session, review_id, actor=actor.id, at_ms=now_ms(), note="")
    market.catalogue_changed(listing.id)
    return RedirectResponse("/city", 303)


async def _note(request: Request) -> str:
    return parse_qs((await request.body()).decode("utf-8", "replace")).get("note", [""])[-1].strip()[:2000]


@router.post("/city/reviews/{review_id}/return")
def return_(
    review_id: str,
    note: str = Depends(_note),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> Response:
    """Send the version back with what to mend."""
    if not note:
        raise BadInput(
            "NOTE_MISSING",
            zh="退回须写明原因",
            en="say what the vendor has to mend",
            remedy_zh="请填写退回原因",
            remedy_en="fill in the note",
            field="note",
        )
    with transaction(market.engine) as session:
        listing = review.return_review(session, review_id, actor=actor.id, at_ms=now_ms(), note=note)
    market.catalogue_changed(listing.id)
    return RedirectResponse("/city", 303)
