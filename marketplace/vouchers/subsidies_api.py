"""Routes of other declared subsidies on contracts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import Field
from sqlmodel import Session

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.evidence import files, intake
from marketplace.evidence.intake import FORM, Upload
from marketplace.market import Market
from marketplace.vouchers import subsidies
from marketplace.vouchers.subscriptions import get_subscription
from marketplace.vouchers.subscriptions_api import leases_changed, within
from marketplace.vouchers.views import subsidy_view

router = APIRouter()
OPERATOR = require("operator", scope="admin")
BUYER = require("enterprise", "vendor", scope="manage")


class NewSubsidy(Body):
    subscription_id: str = Field(max_length=60, description="The contract")
    programme: str = Field(max_length=200, description="Which subsidy")
    authority: str = Field(max_length=200, description="Who pays it")
    amount_fen: int


class Withdrawal(Body):
    reason: str = Field(min_length=1, max_length=2_000)


async def received(
    request: Request, actor: Actor = Depends(BUYER), market: Market = Depends(market_of)
) -> AsyncIterator[Upload]:
    """A form with a `file`, read once its sender is known to be allowed to declare."""
    async with intake.received(request, market) as upload:
        yield upload


@router.get("/subsidies")
def list_subsidies(
    subscription_id: str = "", actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Other subsidies declared on one's contracts; all of them for an operator."""
    with reading(market.engine) as session:
        rows = subsidies.list_subsidies(session, within(actor), subscription_id)
        return {"items": [subsidy_view(session, row) for row in rows], "total": len(rows)}


@router.post("/subsidies", status_code=201)
def declare_subsidy(
    body: NewSubsidy, actor: Actor = Depends(BUYER), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Declare other public money on one's contract. What a voucher may pay of it is lowered, or it pays nothing."""
    with transaction(market.engine) as session:
        contract = get_subscription(session, body.subscription_id, actor.organisation_id)
        given = body.model_dump(exclude={"subscription_id"})
        view = subsidy_view(session, subsidies.declare(session, contract, **given, actor=actor.id, at_ms=now_ms()))
    leases_changed(market, actor.organisation_id)
    return view


@router.post("/subsidies/{subsidy_id}/evidence", status_code=201, openapi_extra=FORM)
async def attach_subsidy_evidence(
    subsidy_id: str,
    upload: Upload = Depends(received),
    actor: Actor = Depends(BUYER),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """A file that shows it: the notice of the grant, say."""

    def judge(session: Session) -> tuple[files.Subject, tuple[str, ...]]:
        row = subsidies.get_subsidy(session, subsidy_id, actor.organisation_id)
        years = subsidies.retention_years(session, row.subscription_id)
        return files.Subject("subsidy", row.id, row.organisation_id, "subsidy", years), ()

    return await anyio.to_thread.run_sync(lambda: intake.take(market, upload, judge, actor=actor.id, at_ms=now_ms()))


@router.post("/subsidies/{subsidy_id}/withdraw")
def withdraw_subsidy(
    subsidy_id: str, body: Withdrawal, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Take back a declaration that was made in error, with the reason; by an operator only."""
    with transaction(market.engine) as session:
        row = subsidies.get_subsidy(session, subsidy_id, None)
        subsidies.withdraw(session, row, body.reason, actor=actor.id, at_ms=now_ms())
        view = subsidy_view(session, row)
    leases_changed(market, row.organisation_id)
    return view
