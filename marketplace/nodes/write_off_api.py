"""Routes for writing off a lost node's epoch: one operator proposes, another approves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from marketplace.access import Actor, market_of, require
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.usage.ingest import Ingest
from marketplace.vouchers.tables import EpochWriteOff
from marketplace.vouchers.write_offs import decide, get_write_off, list_write_offs, propose

router = APIRouter(tags=["nodes"])
OPERATOR = require("operator", scope="admin")


class WriteOffReason(BaseModel):
    """Why nobody will ever bring this journal."""

    reason: str = Field(max_length=2_000)


@router.get("/write-offs")
def get_write_offs(actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Every write-off of a lost node's epoch, newest first, with both persons and what became of its journal."""
    with reading(market.engine) as session:
        items = [_view(row) for row in list_write_offs(session)]
    return {"items": items, "total": len(items)}


@router.post("/nodes/{name}/epochs/{epoch}/write-off", status_code=201)
def propose_write_off(
    name: str,
    epoch: int,
    body: WriteOffReason,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Propose to give back what a lost node's leases hold, without its journal; another operator member approves it."""
    with transaction(market.engine) as session:
        seen = market.nodes.seen_at_ms.get(name)
        row = propose(session, name, epoch, body.reason, member=actor.member_id, at_ms=now_ms(), seen_at_ms=seen)
        return _view(row)


@router.post("/write-offs/{write_off_id}/{decision}")
def decide_write_off(
    write_off_id: str, decision: str, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """approve (by another person than who proposed it: 403 TWO_PERSONS) or decline. What of the journal is here is
    ingested first; what turns up later is ingested as far as anything covers it, and quarantined else."""
    with reading(market.engine) as session:
        row = get_write_off(session, write_off_id)
    with market.nodes.journal(row.node):  # nothing arrives in between
        if decision == "approve" and row.state == "proposed":
            Ingest(market.engine, market.journals, row.node).drain(row.node, row.epoch)
        with transaction(market.engine) as session:
            row = get_write_off(session, write_off_id)
            seen = market.nodes.seen_at_ms.get(row.node)
            decided = decide(session, row, decision, member=actor.member_id, at_ms=now_ms(), seen_at_ms=seen)
            return _view(decided)


def _view(row: EpochWriteOff) -> dict[str, Any]:
    return row.model_dump(exclude={"leases"}) | {"leases": len(row.leases)}
