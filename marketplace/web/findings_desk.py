"""City hall's desk for findings: the list with its filters, each with its evidence, its history and what is next."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from sqlmodel import Session, col, select
from starlette.requests import Request
from starlette.responses import Response

from marketplace.access import Actor, market_of, require
from marketplace.catalogue.tables import Listing
from marketplace.db import reading
from marketplace.findings import api as findings
from marketplace.findings.meaning import MEANINGS
from marketplace.keys.tables import ApiKey
from marketplace.market import Market
from marketplace.organisations.tables import AuditEvent, Organisation
from marketplace.vouchers.signals import TITLES, Code
from marketplace.vouchers.tables import Subscription
from marketplace.web.action import Action
from marketplace.web.claims_desk import names_of
from marketplace.web.rendering import PageRoute, page
from model_store.errors import BadInput

router = APIRouter(route_class=PageRoute, include_in_schema=False)
OPERATOR = require("operator", scope="admin")
STATES = ("unsettled", "open", "under_review", "confirmed", "dismissed")
FINDING_ACTIONS = {
    "run-findings": Action(findings.run, "/city/findings"),
    "dispose-finding": Action(findings.dispose, "/city/findings/{finding_id}"),
}


@router.get("/city/findings")
def all_findings(
    request: Request,
    state: str = Query("unsettled", max_length=20),
    code: str = Query("", max_length=40),
    organisation: str = Query("", max_length=60),
    number: int = Query(1, ge=1, le=100_000, alias="page"),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> Response:
    """Findings by state, code and organisation; without a choice those that nobody has settled."""
    if state not in ("", *STATES) or code not in ("", *Code):
        raise _filter_invalid()
    chosen: Any = state
    found = findings.list_findings(chosen, Code(code) if code else "", organisation, number, actor, market)
    with reading(market.engine) as session:
        last = _last_run(session)
    return page(request, "city_findings.html", found=found, states=STATES, titles=TITLES, last=last, number=number,
                size=findings.PAGE, chosen={"state": state, "code": code, "organisation": organisation})  # fmt: skip


@router.get("/city/findings/{finding_id}")
def one_finding(
    finding_id: str, request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """A finding: what was seen, the evidence with links to the traces, what was decided, and the form to decide."""
    found = findings.get_finding(finding_id, actor, market)
    with reading(market.engine) as session:
        people = names_of(session, *(each["member_id"] for each in found["dispositions"]))
        parties = _parties(session, found["evidence"])
        listings = _listings(session, found)
        key = session.get(ApiKey, found["evidence"].get("key", ""))
    return page(request, "city_finding.html", f=found, people=people, parties=parties, listings=listings,
                key_name=key.name if key else "", meaning=MEANINGS[Code(found["code"])])  # fmt: skip


def _last_run(session: Session) -> AuditEvent | None:
    query = select(AuditEvent).where(AuditEvent.action == "finding.run")
    return session.exec(query.order_by(col(AuditEvent.at_ms).desc(), col(AuditEvent.id).desc()).limit(1)).first()


def _parties(session: Session, evidence: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Names (name_zh, name_en) of who stands in the steps of a relation, by id and by credit code; of a shareholder who
    is no organisation here, the name that it was declared with."""
    named = {step[side] for step in evidence.get("links", ()) for side in ("holder", "held")}
    query = select(Organisation).where(col(Organisation.id).in_(named) | col(Organisation.uscc).in_(named))
    found: dict[str, dict[str, str]] = {}
    declared: dict[str, dict[str, str]] = {}
    for row in session.exec(query):
        names = {"name_zh": row.name_zh, "name_en": row.name_en}
        found |= {row.id: names} | ({row.uscc: names} if row.uscc else {})
        declared |= {s["code"]: {"name_zh": s["name"], "name_en": ""} for s in row.shareholders if s.get("code")}
    return declared | found


def _listings(session: Session, finding: dict[str, Any]) -> dict[str, str]:
    """Contract → name of the model that it is for."""
    query = select(Subscription.id, Listing.name).join(Listing, col(Listing.id) == col(Subscription.listing_id))
    return dict(session.exec(query.where(col(Subscription.id).in_(finding["contracts"]))).all())


def _filter_invalid() -> BadInput:
    return BadInput(
        "REQUEST_INVALID",
        zh="筛选条件有误",
        en="there is no such filter",
        remedy_zh="请从页面上的选项中选择",
        remedy_en="choose from what the page offers",
        field="state",
    )
