"""The public notice (公示) of applications: read by anybody, objected to by anybody; decided by operators."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.client_address import client_address, read_networks, throttled_as
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.vouchers import objections
from marketplace.vouchers.views import objection_view

router = APIRouter()
OPERATOR = require("operator", scope="admin")
PAGE = 100


class NewObjection(Body):
    name: str = Field(max_length=100, description="Who objects; told to operators only")
    contact: str = Field(max_length=200, description="Telephone or e-mail; told to operators only")
    reason: str = Field(max_length=2_000)


class ObjectionDecision(Body):
    reason: str = Field(min_length=1, max_length=2_000, description="Told to the applicant")


@router.get("/public-notices")
def public_notices(page: int = Query(1, ge=1, le=1_000_000), market: Market = Depends(market_of)) -> dict[str, Any]:
    """What stands in public notice (公示) now, until when, and whether objections are taken; anybody may read it."""
    with reading(market.engine) as session:
        items, total = objections.list_notices(session, now_ms(), PAGE, (page - 1) * PAGE)
        return {"items": items, "total": total}


@router.get("/public-notices/{application_id}")
def public_notice(application_id: str, market: Market = Depends(market_of)) -> dict[str, Any]:
    """One of them."""
    with reading(market.engine) as session:
        return objections.get_notice(session, application_id, now_ms())


@router.post("/public-notices/{application_id}/objections", status_code=201)
def object_to(
    application_id: str, body: NewObjection, request: Request, market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Object to what stands on public notice; no key. 429 OBJECTIONS_THROTTLED after ten an hour from one address."""
    peer = request.client.host if request.client else ""
    trusted = read_networks(market.settings.trusted_proxies)
    address = client_address(peer, request.headers.getlist("x-forwarded-for"), trusted)
    objections.THROTTLE.count(throttled_as(address), now_ms())
    with transaction(market.engine) as session:
        row = objections.object_to(session, application_id, **body.model_dump(), at_ms=now_ms())
        return {"id": row.id, "application_id": row.application_id, "received_at_ms": row.created_at_ms}


@router.get("/applications/{application_id}/objections")
def list_objections(
    application_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Every objection to an application, with who objected; for operators."""
    with reading(market.engine) as session:
        items = [objection_view(row) for row in objections.objections_of(session, [application_id])]
        return {"items": items, "total": len(items)}


@router.post("/objections/{objection_id}/{decision}")
def decide_objection(
    objection_id: str,
    decision: Literal["dismiss", "uphold"],
    body: ObjectionDecision,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """dismiss (the notice goes on as the programme says) or uphold (the application is rejected), with the reason."""
    with transaction(market.engine) as session:
        row = objections.get_objection(session, objection_id)
        member, at_ms = actor.member_id, now_ms()
        return objection_view(
            objections.decide_objection(session, row, decision, member=member, reason=body.reason, at_ms=at_ms)
        )
