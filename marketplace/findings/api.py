"""Routes of findings, for operators: look for them, list them, say what was made of them."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.findings import dispositions, recording, views
from marketplace.market import Market
from marketplace.vouchers.signals import Code

router = APIRouter(tags=["findings"])
OPERATOR = require("operator", scope="admin")
PAGE = 100
State = Literal["open", "under_review", "confirmed", "dismissed"]


class Disposition(Body):
    state: Literal["under_review", "confirmed", "dismissed"]
    reason: str = Field(max_length=dispositions.MAX_REASON, description="Kept with who gave it")


@router.get("/findings")
def list_findings(
    state: State | Literal["", "unsettled"] = "",
    code: Code | Literal[""] = "",
    organisation: str = Query("", max_length=60),
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Findings, newest first; `unsettled` are those that are open or under review."""
    states = dispositions.UNSETTLED if state == "unsettled" else (state,) if state else ()
    with reading(market.engine) as session:
        rows, total = dispositions.list_findings(
            session, states=states, code=str(code), organisation=organisation, offset=(page - 1) * PAGE, limit=PAGE
        )
        return {"items": [views.finding_view(session, row) for row in rows], "total": total}


@router.post("/findings/run")
def run(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, int]:
    """Look for everything now, as the market does every night: how many were found, are new, have other evidence."""
    return recording.run(market.engine, now_ms(), actor=actor.id)


@router.get("/findings/{finding_id}")
def get_finding(
    finding_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """A finding with its evidence, when it was seen, and what persons decided."""
    with reading(market.engine) as session:
        return views.whole_view(session, dispositions.get_finding(session, finding_id))


@router.post("/findings/{finding_id}/dispose")
def dispose(
    finding_id: str, body: Disposition, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """open → under_review → confirmed or dismissed, and back under review; each with a reason. Nothing else follows."""
    with transaction(market.engine) as session:
        row = dispositions.get_finding(session, finding_id)
        dispositions.dispose(session, row, body.state, body.reason, member=actor.member_id, at_ms=now_ms())
        return views.whole_view(session, row)
