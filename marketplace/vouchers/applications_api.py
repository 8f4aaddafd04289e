"""Routes of applications: the enterprise's and the operator's steps, and overrides of failed checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from sqlmodel import Session

from marketplace.access import Actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations.tables import Organisation
from marketplace.vouchers import applications, overrides
from marketplace.vouchers.subscriptions_api import within
from marketplace.vouchers.tables import Application
from marketplace.vouchers.views import application_view, override_view

router = APIRouter()
OPERATOR = require("operator", scope="admin")
APPLICANT = require("enterprise", "vendor", scope="manage")
PAGE = 100


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


class Decision(Body):
    note: str = Field(default="", max_length=2_000)
    asked: list[str] = Field(default_factory=list, max_length=50, description="Of a supplement: codes of the schema")


class NewOverride(Body):
    code: str = Field(max_length=60, description="The check that failed")
    reason: str = Field(min_length=1, max_length=2_000)


@router.post("/applications/{application_id}/overrides", status_code=201)
def propose_override(
    application_id: str, body: NewOverride, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Propose to let a failed check pass; another person approves it."""
    with transaction(market.engine) as session:
        row = applications.get_application(session, application_id, None)
        made = overrides.propose_override(session, row, body.code, body.reason, member=actor.member_id)
        return override_view(made)


@router.post("/overrides/{override_id}/{decision}")
def decide_override(
    override_id: str,
    decision: Literal["approve", "decline"],
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """approve (by another person than who proposed it: 403 TWO_PERSONS) or decline."""
    with transaction(market.engine) as session:
        row = overrides.get_override(session, override_id)
        return override_view(overrides.decide_override(session, row, decision, member=actor.member_id))


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
    decision: Literal["check", "approve", "reject", "supplement", "publish", "confirm"],
    body: Decision | None = None,
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The operator's steps: check → approve, reject or supplement (`asked`) → publish (公示) → confirm."""
    steps: dict[str, Callable[[Session, Application], Any]] = {
        "check": lambda s, row: applications.check(s, row, actor=actor.id, at_ms=now_ms()),
        "publish": lambda s, row: applications.publish(s, row, actor=actor.id, at_ms=now_ms()),
        "confirm": lambda s, row: applications.confirm(s, row, actor=actor.id, at_ms=now_ms()),
    }
    note, asked = (body.note, tuple(body.asked)) if body else ("", ())
    with transaction(market.engine) as session:
        row = applications.get_application(session, application_id, None)
        if decision in steps:
            steps[decision](session, row)
        else:
            applications.decide(session, row, decision, actor=actor.id, at_ms=now_ms(), note=note, asked=asked)
        return application_view(session, row)
