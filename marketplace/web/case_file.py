"""The case file of an application: its enterprise's page with evidence and what is asked for, and the operator's."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import Actor, check_same_site, market_of, require
from marketplace.claims import api as claims_api
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading
from marketplace.evidence.intake import Upload
from marketplace.market import Market
from marketplace.vouchers import api as vouchers
from marketplace.vouchers import applications_api, evidence_api, notices_api, subscriptions_api, subsidies_api
from marketplace.vouchers.applications import get_application, notice_ends
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Programme
from marketplace.web.city_hall import STEPS
from marketplace.web.claims_desk import names_of
from marketplace.web.rendering import PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)
ANYBODY = require()
OPERATOR = require("operator", scope="admin")
OPEN = ("draft", "supplement")


@router.get("/console/applications")
def own_applications() -> Response:
    return RedirectResponse("/console/vouchers", 303)


@router.get("/console/applications/{application_id}")
def own_application(
    application_id: str, request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)
) -> Response:
    """One's own application: what it asks for, the evidence that is there and missing, the checks, the way so far."""
    row = applications_api.get_application(application_id, actor, market)
    return page(request, "application.html", **_facts(row, market), may_change=row["state"] in OPEN)


@router.post("/console/applications/{application_id}/evidence")
async def attach(
    application_id: str,
    request: Request,
    upload: Upload = Depends(evidence_api.received),
    actor: Actor = Depends(evidence_api.APPLICANT),
    market: Market = Depends(market_of),
) -> Response:
    """One file, from the form of the page."""
    check_same_site(request)
    await evidence_api.attach_evidence(application_id, upload, actor, market)
    return await run_in_threadpool(RedirectResponse, f"/console/applications/{application_id}#evidence", 303)


@router.get("/city/applications/{application_id}")
def case_file(
    application_id: str, request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """The operator's view: evidence with hashes, checks and how long they hold, overrides, objections, next steps."""
    row = applications_api.get_application(application_id, actor, market)
    found = notices_api.list_objections(application_id, actor, market)["items"]
    acted = [each["proposed_by"] for each in row["overrides"]] + [each["decided_by"] for each in row["overrides"]]
    acted += [each["decided_by"] for each in found] + [actor.member_id]
    with reading(market.engine) as session:
        people = names_of(session, *acted)
    facts = _facts(row, market)
    open_ones = {each["code"] for each in row["overrides"] if each["state"] in ("proposed", "approved")}
    may_pass = [c["code"] for c in row["checks"] if not c["passed"] and c["code"] in facts["overridable"] - open_ones]
    return page(
        request,
        "city_application.html",
        **facts,
        next=STEPS.get(row["state"], ()),
        objections=found,
        people=people,
        own=actor.member_id,
        may_pass=may_pass,
    )


@router.get("/console/subsidies")
def own_subsidies(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    """Other subsidies declared on one's contracts, and the form to declare one."""
    contracts = subscriptions_api.list_subscriptions(1, False, actor, market)["items"]
    found = subsidies_api.list_subsidies("", actor, market)["items"]
    names = {row["id"]: row["listing"] for row in contracts}
    return page(request, "subsidies.html", subsidies=found, contracts=contracts, names=names, operator=False)


@router.post("/console/subsidies/{subsidy_id}/evidence")
async def attach_to_subsidy(
    subsidy_id: str,
    request: Request,
    upload: Upload = Depends(subsidies_api.received),
    actor: Actor = Depends(subsidies_api.BUYER),
    market: Market = Depends(market_of),
) -> Response:
    check_same_site(request)
    await subsidies_api.attach_subsidy_evidence(subsidy_id, upload, actor, market)
    return await run_in_threadpool(RedirectResponse, "/console/subsidies", 303)


@router.get("/city/subsidies")
def all_subsidies(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """Every declared subsidy; one made in error is withdrawn here."""
    found = subsidies_api.list_subsidies("", actor, market)["items"]
    return page(request, "subsidies.html", subsidies=found, contracts=[], names={}, operator=True)


@router.get("/console/invoices")
def own_invoices(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    """Invoices of one's contracts: what each backs, what is left of it, and the original."""
    contracts = subscriptions_api.list_subscriptions(1, False, actor, market)["items"]
    found = claims_api.list_invoices(actor, market)["items"]
    names = {row["id"]: row["listing"] for row in contracts}
    return page(request, "invoices.html", invoices=found, contracts=contracts, names=names,
                may_enter=actor.kind == "enterprise")  # fmt: skip


@router.post("/console/invoices/{invoice_id}/file")
async def attach_to_invoice(
    invoice_id: str,
    request: Request,
    upload: Upload = Depends(claims_api.received),
    actor: Actor = Depends(claims_api.BUYER),
    market: Market = Depends(market_of),
) -> Response:
    check_same_site(request)
    await claims_api.attach_invoice(invoice_id, upload, actor, market)
    return await run_in_threadpool(RedirectResponse, "/console/invoices", 303)


@router.get("/notices/vouchers")
def public_notices(request: Request, market: Market = Depends(market_of)) -> Response:
    """What stands on public notice, for anybody."""
    return page(request, "public_notices.html", found=notices_api.public_notices(1, market))


@router.get("/notices/vouchers/{application_id}")
def public_notice(
    application_id: str, request: Request, done: bool = False, market: Market = Depends(market_of)
) -> Response:
    """One notice, and the form to object to it."""
    return page(request, "public_notice.html", n=notices_api.public_notice(application_id, market), done=done)


def _facts(row: dict[str, Any], market: Market) -> dict[str, Any]:
    """An application with its programme, what of the evidence is missing, and when its notice ends."""
    programme = vouchers.get_programme(row["programme_id"], market)
    at_ms = now_ms()
    with reading(market.engine) as session:
        rules = rules_of(session.get_one(Programme, row["programme_id"]))
        application = get_application(session, row["id"], None)
        ends = notice_ends(application, rules, at_ms) if row["public_notice_at_ms"] else None
    given = {item["code"]: item["value"] for item in row["evidence"]}
    files = [file for file in row["files"] if file["state"] == "kept"]
    there = {code for code, value in given.items() if value} | {file["code"] for file in files}
    return {
        "a": row,
        "p": programme,
        "given": given,
        "there": there,
        "schema": programme["evidence_schema"],
        "pieces": {item["code"]: item for item in programme["evidence_schema"]},
        "ends_on": ends.isoformat() if ends else "",
        "last_day": (ends - timedelta(days=1)).isoformat() if ends else "",
        "notice_over": ends is not None and policy_date(at_ms) >= ends,
        "now": at_ms,
        "overridable": {check.code for check in rules.checks if check.may_be_overridden},
    }
