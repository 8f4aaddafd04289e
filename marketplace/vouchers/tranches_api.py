"""Routes of a programme's tranches: what each one's state is, and the approval of one that waits."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import Field

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.vouchers import tranche_approvals
from marketplace.vouchers.rollout import get_programme

router = APIRouter()
OPERATOR = require("operator", scope="admin")


class TrancheNote(Body):
    note: str = Field(default="", max_length=2_000)


@router.get("/programmes/{programme_id}/tranches")
def get_tranches(
    programme_id: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Each tranche with its state (approved, waits; draft before activation) and the newest proposal to approve it."""
    with reading(market.engine) as session:
        items = tranche_approvals.tranche_views(session, get_programme(session, programme_id, running=True))
        return {"items": items, "total": len(items)}


@router.post("/programmes/{programme_id}/tranches/{tranche}/{decision}")
def decide_tranche(
    programme_id: str,
    tranche: str,
    decision: Literal["propose", "approve", "decline", "withdraw"],
    body: TrancheNote | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """A tranche that waits for its own approval: propose it; approve, or decline with a reason (`note`), by another
    person than who proposed it (403 TWO_PERSONS); withdraw, by who did (403 PROPOSER_ONLY)."""
    note = body.note if body else ""
    which = (programme_id, tranche)
    with transaction(market.engine) as session:
        if decision == "propose":
            row = tranche_approvals.propose(session, *which, member=actor.member_id)
        elif decision == "approve":
            row = tranche_approvals.approve(session, *which, member=actor.member_id, at_ms=now_ms())
        elif decision == "decline":
            row = tranche_approvals.decline(session, *which, note, member=actor.member_id, at_ms=now_ms())
        else:
            row = tranche_approvals.withdraw(session, *which, note, member=actor.member_id, at_ms=now_ms())
        programme = get_programme(session, row.programme_id)
        views = tranche_approvals.tranche_views(session, programme)
        return next(view for view in views if view["tranche"] == tranche)
