"""Routes of programmes, applications, vouchers, subscriptions and the pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sqlmodel import Session, select

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations.tables import Organisation
from marketplace.vouchers import applications, issuing, rollout, subscriptions_api
from marketplace.vouchers.programme import read_programme
from marketplace.vouchers.subscriptions_api import leases_changed, within
from marketplace.vouchers.tables import Application, Programme
from marketplace.vouchers.views import application_view, programme_view, voucher_view

router = APIRouter(tags=["vouchers"])
router.include_router(subscriptions_api.router)
OPERATOR = require("operator", scope="admin")
APPLICANT = require("enterprise", "vendor", scope="manage")
PAGE = 100


class NewProgramme(Body):
    document: dict[str, Any] = Field(description="A programme file, as marketplace/vouchers/programmes has them")


class Activation(Body):
    values: dict[str, Any] = Field(default_factory=dict, description="Values for what the file leaves open")


class Evidence(Body):
    code: str = Field(max_length=60)
    value: str = Field(default="", max_length=2_000)


class NewApplication(Body):
    programme: str = Field(description="Id or code")
    requested_fen: int
    purpose: str = ""
    evidence: list[Evidence] = Field(default_factory=list, max_length=50)


class ApplicationChanges(Body):
    requested_fen: int | None = None
    purpose: str | None = None
    evidence: list[Evidence] | None = Field(default=None, max_length=50)


class Note(Body):
    note: str = Field(default="", max_length=2_000)


class NewVoucher(Body):
    application_id: str
    face_fen: int | None = Field(default=None, description="None: all that was applied for")


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
    """Where each active programme's money is: unissued, available, reserved, leased, used."""
    with reading(market.engine) as session:
        rows = session.exec(select(Programme).where(Programme.state != "draft").order_by(Programme.code))
        items = [issuing.pool_position(session, row) for row in rows]
        return {"items": items, "total": len(items)}


# --- applications -----------------------------------------------------------------------------------------------------


@router.get("/applications")
def list_applications(
    state: str = "",
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """One's own; all of them for an operator."""
    with reading(market.engine) as session:
        rows, total = applications.list_applications(session, within(actor), state, PAGE, (page - 1) * PAGE)
        return {"items": [application_view(session, row) for row in rows], "total": total}


@router.get("/public-notices")
def public_notices(market: Market = Depends(market_of)) -> dict[str, Any]:
    """What stands in public notice (公示) now; anybody may read it."""
    with reading(market.engine) as session:
        rows, total = applications.list_applications(session, None, "public_notice", PAGE)
        kept = ("id", "programme", "organisation_zh", "requested_fen", "public_notice_at_ms")
        views = [application_view(session, row) for row in rows]
        return {"items": [{name: view[name] for name in kept} for view in views], "total": total}


@router.get("/applications/{application_id}")
def get_application(
    application_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    with reading(market.engine) as session:
        return application_view(session, applications.get_application(session, application_id, within(actor)))


@router.post("/applications", status_code=201)
def apply(
    body: NewApplication,
    actor: Actor = Depends(APPLICANT),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """A draft; `POST /applications/{id}/submit` hands it in."""
    with transaction(market.engine) as session:
        row = applications.create_application(
            session,
            session.get_one(Organisation, actor.organisation_id),
            body.programme,
            requested_fen=body.requested_fen,
            purpose=body.purpose,
            evidence=[item.model_dump() for item in body.evidence],
            actor=actor.id,
        )
        return application_view(session, row)


@router.patch("/applications/{application_id}")
def supplement(
    application_id: str,
    body: ApplicationChanges,
    actor: Actor = Depends(APPLICANT),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Change a draft, or one that was sent back."""
    evidence = None if body.evidence is None else [item.model_dump() for item in body.evidence]
    with transaction(market.engine) as session:
        row = applications.get_application(session, application_id, actor.organisation_id)
        applications.supplement(
            session, row, requested_fen=body.requested_fen, purpose=body.purpose, evidence=evidence, actor=actor.id
        )
        return application_view(session, row)


@router.post("/applications/{application_id}/submit")
def submit(
    application_id: str,
    actor: Actor = Depends(APPLICANT),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    with transaction(market.engine) as session:
        row = applications.get_application(session, application_id, actor.organisation_id)
        return application_view(session, applications.submit(session, row, actor=actor.id))


@router.post("/applications/{application_id}/{decision}")
def decide(
    application_id: str,
    decision: Literal["check", "approve", "reject", "supplement", "publish", "object", "confirm"],
    body: Note | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The operator's steps: check → approve or reject → publish (公示) → confirm."""
    steps: dict[str, Callable[[Session, Application], Any]] = {
        "check": lambda s, row: applications.check(s, row, actor=actor.id, at_ms=now_ms()),
        "publish": lambda s, row: applications.publish(s, row, actor=actor.id, at_ms=now_ms()),
        "confirm": lambda s, row: applications.confirm(s, row, actor=actor.id, at_ms=now_ms()),
    }
    note = body.note if body else ""
    with transaction(market.engine) as session:
        row = applications.get_application(session, application_id, None)
        if decision in steps:
            steps[decision](session, row)
        else:
            applications.decide(session, row, decision, actor=actor.id, at_ms=now_ms(), note=note)
        return application_view(session, row)


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
        return {"items": [voucher_view(session, row) for row in rows], "total": total}


@router.get("/vouchers/{voucher_id}")
def get_voucher(
    voucher_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    with reading(market.engine) as session:
        return voucher_view(session, issuing.get_voucher(session, voucher_id, within(actor)))


@router.post("/vouchers", status_code=201)
def propose(body: NewVoucher, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Propose a voucher for a confirmed application; another operator member approves it."""
    with transaction(market.engine) as session:
        row = applications.get_application(session, body.application_id, None)
        face = body.face_fen if body.face_fen is not None else row.requested_fen
        voucher = issuing.propose(session, row, face, member=actor.member_id, at_ms=now_ms())
        return voucher_view(session, voucher)


@router.post("/vouchers/{voucher_id}/{decision}")
def decide_voucher(
    voucher_id: str,
    decision: Literal["approve", "suspend", "resume"],
    body: Note | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """approve (by another person than who proposed it: 403 TWO_PERSONS), suspend, resume."""
    with transaction(market.engine) as session:
        voucher = issuing.get_voucher(session, voucher_id)
        if decision == "approve":
            issuing.approve(session, voucher, member=actor.member_id, at_ms=now_ms())
        elif decision == "suspend":
            issuing.suspend(session, voucher, actor=actor.id, reason=body.note if body else "")
        else:
            issuing.resume(session, voucher, actor=actor.id)
        view = voucher_view(session, voucher)
    leases_changed(market, voucher.organisation_id)
    return view
