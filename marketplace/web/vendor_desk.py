"""The vendor's desk: publish and read the report, hand in for review, set prices, see calls, errors and revenue."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from sqlmodel import col, select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from marketplace.access import Actor, check_same_site, market_of, require
from marketplace.catalogue import api as catalogue
from marketplace.catalogue import publishing_api as publishing
from marketplace.catalogue.listings import find_version, own_listing
from marketplace.catalogue.rollouts_api import rollout_of
from marketplace.catalogue.tables import Listing
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading
from marketplace.market import Market
from marketplace.usage.statements import read_month, statement
from marketplace.usage.tables import Usage
from marketplace.web.console import spending
from marketplace.web.rendering import PageRoute, page
from model_store.errors import Refusal
from model_store.inspection.render import render_text
from model_store.inspection.report import report_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
VENDOR = require("vendor", scope="publish")


def written(report: dict[str, Any]) -> dict[str, str]:
    """An inspection report as text in both languages; empty where there is none."""
    if not report:
        return {"zh": "", "en": ""}
    found = report_of(report)
    return {"zh": render_text(found, "zh"), "en": render_text(found, "en")}


@router.get("/vendor")
def desk(request: Request, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)) -> Response:
    """Own listings, this month's revenue, calls by day and by model."""
    with reading(market.engine) as session:
        mine = Listing.organisation_id == actor.organisation_id
        listings = list(session.exec(select(Listing).where(mine).order_by(col(Listing.name))))
        month = policy_date(now_ms()).strftime("%Y-%m")
        return page(
            request,
            "vendor.html",
            listings=[row.model_dump() for row in listings],
            month=month,
            totals=statement(session, actor.organisation_id, read_month(month), as_provider=True)["totals"],
            sold=spending(session, Usage.provider_id == actor.organisation_id, now_ms()),
            errors=_errors(market, {row.name for row in listings}),
        )


def _errors(market: Market, names: set[str]) -> dict[str, int]:
    """Failed runs since the market started, by model."""
    if market.dataplane is None:
        return {}
    return {name: count for name, count in market.dataplane.joined.statistics_now().failures().items() if name in names}


@router.get("/vendor/publish")
def publish_form(request: Request, actor: Actor = Depends(VENDOR)) -> Response:
    return page(request, "publish.html", refusal=None, outcome=None, report=written({}), name="")


@router.post("/vendor/publish")
async def publish(
    request: Request,
    actor: Actor = Depends(VENDOR),
    upload: publishing.Upload = Depends(publishing.received),
    market: Market = Depends(market_of),
) -> Response:
    """Inspect and publish; a refusal shows the report with what to mend."""
    check_same_site(request)
    facts: dict[str, Any] = {"refusal": None, "outcome": None, "report": written({}), "name": upload.name}
    status = 201
    try:
        facts["outcome"] = await publishing.publish_upload(upload, actor, market)
        facts["report"] = written(facts["outcome"]["report"])
    except Refusal as refusal:
        facts["refusal"], status = refusal.as_dict(""), refusal.status
        facts["report"] = written((refusal.details or {}).get("report", {}))
    return await run_in_threadpool(lambda: page(request, "publish.html", status, **facts))


@router.get("/vendor/models/{vendor}/{name}")
def own_model(
    vendor: str, name: str, request: Request, actor: Actor = Depends(VENDOR), market: Market = Depends(market_of)
) -> Response:
    """One listing as its vendor sees it: versions with reports, review, prices."""
    detail = catalogue.get_model(vendor, name, request, market)
    with reading(market.engine) as session:
        listing = own_listing(session, f"{vendor}/{name}", actor)
        reports = {
            version["version"]: written(find_version(session, listing, version["version"], actor).inspection)
            for version in detail["versions"]
        }
        rollout = rollout_of(session, market, listing)
    return page(request, "vendor_model.html", model=detail, reports=reports, vendor=vendor, name=name, rollout=rollout)
