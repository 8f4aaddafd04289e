"""Routes of programmes, vouchers and the pool; applications and subscriptions have files of their own."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sqlmodel import Session, select

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.vouchers import (
    applications,
    applications_api,
    dropping,
    evidence_api,
    issuing,
    notices_api,
    revoking,
    rollout,
    subscriptions_api,
    subsidies_api,
    tranches_api,
)
from marketplace.vouchers.programme import read_programme
from marketplace.vouchers.subscriptions_api import leases_changed, within
from marketplace.vouchers.tables import Programme, Voucher
from marketplace.vouchers.views import programme_view, voucher_view

router = APIRouter(tags=["vouchers"])
router.include_router(subscriptions_api.router)
router.include_router(subsidies_api.router)
router.include_router(notices_api.router)
router.include_router(evidence_api.router)
router.include_router(applications_api.router)
router.include_router(tranches_api.router)
OPERATOR = require("operator", scope="admin")
PAGE = 100


class NewProgramme(Body):
    document: dict[str, Any] = Field(description="A programme file, as marketplace/vouchers/programmes has them")


class Activation(Body):
    values: dict[str, Any] = Field(default_factory=dict, description="Values for what the file leaves open")


class Note(Body):
    note: str = Field(default="", max_length=2_000)


class NewVoucher(Body):
    application_id: str
    face_fen: int | None = Field(default=None, description="None: all that is left of what was applied for")


# --- programmes -------------------------------------------------------------------------------------------------------


@router.get("/programmes")
def list_programmes(page: int = Query(1, ge=1, le=1_000_000), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Every programme with its rules in plain words; anybody may read them."""
    with reading(market.engine) as session:
        rows, total = rollout.list_programmes(session, PAGE, (page - 1) * PAGE)
        return {"items": [programme_view(row) for row in rows], "total": total}


@router.get("/programmes/{programme_id}")
def get_programme(programme_id: str, market: Market = Depends(market_of)) -> dict[str, Any]:
    with reading(market.engine) as session:
        return programme_view(rollout.get_programme(session, programme_id), full=True)


@router.post("/programmes", status_code=201)
def load_programme(
    body: NewProgramme, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Load a programme file as a draft."""
    file = read_programme(body.document)
    with transaction(market.engine) as session:
        return programme_view(rollout.load_programme(session, file, actor=actor.id), full=True)


@router.post("/programmes/{programme_id}/activate")
def activate(
    programme_id: str,
    body: Activation | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Name what the file leaves open and put the programme in force; 409 PROGRAMME_UNSET lists what is still open."""
    with transaction(market.engine) as session:
        values = body.values if body else {}
        row = rollout.activate(session, programme_id, values, actor=actor.id, at_ms=now_ms())
        return programme_view(row, full=True)


@router.post("/programmes/{programme_id}/{decision}")
def programme_state(
    programme_id: str,
    decision: Literal["freeze", "unfreeze", "close", "audit"],
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    with transaction(market.engine) as session:
        view = programme_view(rollout.set_programme_state(session, programme_id, decision, actor=actor.id))
    leases_changed(market, None)
    return view


@router.get("/pool")
def pool(actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Where each active programme's money is: unissued, available, reserved, leased, used; and the tranches that wait
    for their approval."""
    with reading(market.engine) as session:
        rows = session.exec(select(Programme).where(Programme.state != "draft").order_by(Programme.code))
        items = [issuing.pool_position(session, row) for row in rows]
        return {"items": items, "total": len(items)}


# --- vouchers ---------------------------------------------------------------------------------------------------------


@router.get("/vouchers")
def list_vouchers(
    state: str = "",
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """One's own; all of them for an operator."""
    with reading(market.engine) as session:
        rows, total = issuing.list_vouchers(session, within(actor), state, PAGE, (page - 1) * PAGE)
        return {"items": [voucher_view(session, row, to_operator=actor.is_operator) for row in rows], "total": total}


@router.get("/vouchers/{voucher_id}")
def get_voucher(
    voucher_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    with reading(market.engine) as session:
        row = issuing.get_voucher(session, voucher_id, within(actor))
        return voucher_view(session, row, to_operator=actor.is_operator)


@router.post("/vouchers", status_code=201)
def propose(body: NewVoucher, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Propose a voucher for a confirmed application, over what is left of it; another operator member approves or
    declines it."""
    with transaction(market.engine) as session:
        row = applications.get_application(session, body.application_id, None)
        face = body.face_fen if body.face_fen is not None else issuing.left_of(session, row)
        voucher = issuing.propose(session, row, face, member=actor.member_id, at_ms=now_ms())
        return voucher_view(session, voucher, to_operator=True)


@router.post("/vouchers/{voucher_id}/{decision}")
def decide_voucher(
    voucher_id: str,
    decision: Literal[
        "approve",
        "decline",
        "withdraw",
        "suspend",
        "resume",
        "revoke",
        "confirm-revocation",
        "decline-revocation",
        "withdraw-revocation",
    ],
    body: Note | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """approve, or decline with a reason (`note`), by another person than who proposed it (403 TWO_PERSONS); withdraw,
    by who did (403 PROPOSER_ONLY); suspend, resume; revoke: propose, with a reason, to take it away, which another
    person confirms or declines (confirm-revocation, decline-revocation); withdraw-revocation, by who proposed it.
    """
    note = body.note if body else ""
    with transaction(market.engine) as session:
        decide = _decide_revocation if decision in _REVOCATION else _decide_voucher
        voucher = decide(session, voucher_id, decision, note, actor)
        view = voucher_view(session, voucher, to_operator=True)
    leases_changed(market, voucher.organisation_id)
    return view


_REVOCATION = ("revoke", "confirm-revocation", "decline-revocation", "withdraw-revocation")


def _decide_voucher(session: Session, voucher_id: str, decision: str, note: str, actor: Actor) -> Voucher:
    voucher = issuing.get_voucher(session, voucher_id)
    if decision == "approve":
        return issuing.approve(session, voucher, member=actor.member_id, at_ms=now_ms())
    if decision == "decline":
        return dropping.decline(session, voucher, member=actor.member_id, reason=note)
    if decision == "withdraw":
        return dropping.withdraw(session, voucher, member=actor.member_id, reason=note)
    if decision == "suspend":
        return issuing.suspend(session, voucher, actor=actor.id, reason=note)
    return issuing.resume(session, voucher, actor=actor.id)


def _decide_revocation(session: Session, voucher_id: str, decision: str, note: str, actor: Actor) -> Voucher:
    if decision == "revoke":
        return revoking.propose(session, voucher_id, note, member=actor.member_id)
    if decision == "confirm-revocation":
        return revoking.confirm(session, voucher_id, member=actor.member_id, at_ms=now_ms())
    decide = revoking.decline if decision == "decline-revocation" else revoking.withdraw
    return decide(session, voucher_id, note, member=actor.member_id, at_ms=now_ms())
