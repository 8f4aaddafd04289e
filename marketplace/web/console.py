"""The console of an organisation: spending, contracts, vouchers, keys, members, statements, notices, each call."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

from fastapi import APIRouter, Depends, Query
from sqlmodel import Session, col, func, select
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from ulid import ULID

from marketplace.access import Actor, market_of, require
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading
from marketplace.keys import api as keys
from marketplace.keys.authentication import SCOPES
from marketplace.market import Market
from marketplace.organisations import api as organisations
from marketplace.organisations import members_api
from marketplace.organisations.declaring import lines_of
from marketplace.usage.queries import Filters, list_usage, trace
from marketplace.usage.statements import read_month, statement
from marketplace.usage.tables import Usage
from marketplace.vouchers import api as vouchers
from marketplace.vouchers import applications_api
from marketplace.vouchers import subscriptions_api as contracts
from marketplace.vouchers.tables import DROPPED
from marketplace.web.drawing import stacked_bars
from marketplace.web.rendering import PageRoute, page
from model_store.errors import NotFound

router = APIRouter(route_class=PageRoute, include_in_schema=False)
ANYBODY = require()
DAY_MS, SHANGHAI_MS = 86_400_000, 8 * 3_600_000
SHOWN_DAYS, PAGE_SIZE = 30, 50
EPOCH = date(1970, 1, 1)
JUST_MADE_MS = 60_000


def spending(session: Session, own: Any, at_ms: int) -> dict[str, Any]:
    """What was metered in the last 30 days by Shanghai day and by model, in micro-fen: with a voucher, and paid alone.

    `own` is the condition that picks the usage, such as `Usage.organisation_id == …`.
    """
    today = (at_ms + SHANGHAI_MS) // DAY_MS
    first = today - SHOWN_DAYS + 1
    counted = (own, Usage.occurred_at_ms >= first * DAY_MS - SHANGHAI_MS, Usage.status != "quarantined")
    day = (col(Usage.occurred_at_ms) + SHANGHAI_MS) // DAY_MS
    total = func.sum(Usage.amount_micro)
    daily = session.exec(select(day, Usage.lease_kind, total).where(*counted).group_by(day, Usage.lease_kind))
    by_day = {(int(day_number), kind): int(micro) for day_number, kind, micro in daily}
    by_model = session.exec(
        select(Usage.model, Usage.lease_kind, func.count(), total)
        .where(*counted, Usage.purpose == "use")
        .group_by(Usage.model, Usage.lease_kind)
        .order_by(total.desc())
        .limit(20)
    )
    days = range(first, today + 1)
    with_voucher = [by_day.get((day_number, "subsidised"), 0) for day_number in days]
    alone = [by_day.get((day_number, "self_pay"), 0) for day_number in days]
    labels = [(EPOCH + timedelta(days=day_number)).strftime("%m-%d") for day_number in days]
    return {
        "days": [row for row in zip(labels, with_voucher, alone, strict=True) if row[1] or row[2]],
        "chart": stacked_bars("30 days", labels, [with_voucher, alone]),
        "models": [
            {"model": model, "paid": kind, "calls": calls, "micro": micro} for model, kind, calls, micro in by_model
        ],
    }


@router.get("/console")
def overview(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    """Vouchers, spending and the latest calls at a glance."""
    held = held_vouchers(actor, market) if not actor.is_operator else []
    with reading(market.engine) as session:
        month = policy_date(now_ms()).strftime("%Y-%m")
        return page(
            request,
            "console.html",
            me=organisations.me(actor, market),
            vouchers=held,
            month=month,
            totals=statement(session, actor.organisation_id, read_month(month))["totals"],
            spent=spending(session, Usage.organisation_id == actor.organisation_id, now_ms()),
            usage=list_usage(session, actor, Filters(purpose="use"), limit=8, offset=0)[0],
        )


@router.get("/console/usage")
def usage_log(
    request: Request,
    model: str = Query("", max_length=200),
    status: str = "",
    lease_kind: str = "",
    page_number: int = Query(1, ge=1, le=100_000, alias="page"),
    actor: Actor = Depends(ANYBODY),
    market: Market = Depends(market_of),
) -> Response:
    """Every call, filtered and paged."""
    filters = Filters(model=model.strip(), status=status, lease_kind=lease_kind)
    with reading(market.engine) as session:
        rows, total = list_usage(session, actor, filters, limit=PAGE_SIZE, offset=(page_number - 1) * PAGE_SIZE)
        return page(request, "usage.html", usage=rows, total=total, page_number=page_number,
                    pages=-(-total // PAGE_SIZE), filters=filters)  # fmt: skip


@router.get("/console/usage/{usage_id}")
def usage_trace(
    usage_id: str, request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)
) -> Response:
    """One call, to the price, the voucher line and the transfer; one that has just ended is waited for."""
    try:
        with reading(market.engine) as session:
            return page(request, "trace.html", usage_id=usage_id, parts=trace(session, actor, usage_id))
    except NotFound:
        if not _just_made(usage_id, now_ms()):
            raise
        return page(request, "trace_waits.html", live=True, usage_id=usage_id)


def _just_made(usage_id: str, at_ms: int) -> bool:
    """Whether the id was minted within the last minute: ingest is seconds behind the calls."""
    try:
        return abs(at_ms - ULID.from_str(usage_id).milliseconds) < JUST_MADE_MS
    except ValueError:
        return False


@router.get("/console/subscriptions")
def subscriptions(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    """The contracts, with what is reserved, used and left, and this month's own cost under its cap."""
    found = contracts.list_subscriptions(1, False, actor, market)
    return page(request, "subscriptions.html", contracts=found["items"], total=found["total"])


def held_vouchers(actor: Actor, market: Market) -> list[dict[str, Any]]:
    """An organisation's vouchers, without proposals that came to nothing."""
    found = vouchers.list_vouchers("", 1, actor, market)["items"]
    return [row for row in found if row["state"] not in DROPPED]


@router.get("/console/vouchers")
def own_vouchers(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    """Vouchers held, applications under way, programmes to apply to."""
    programmes = vouchers.list_programmes(1, market)["items"]
    return page(
        request,
        "vouchers.html",
        vouchers=held_vouchers(actor, market),
        applications=applications_api.list_applications("", 1, actor, market)["items"],
        programmes=[row for row in programmes if row["state"] == "active"],
        titles={row["code"]: row for row in programmes},
    )


@router.get("/console/keys")
def own_keys(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    held = members_api.list_members(actor, market)["items"]
    return page(
        request,
        "keys.html",
        keys=keys.list_keys(actor, market)["items"],
        scopes=[scope for scope in SCOPES if scope in actor.scopes],
        names={row["id"]: row["name"] for row in held},
    )


@router.get("/console/members")
def members(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    """People, and what the organisation declares of itself."""
    held = members_api.list_members(actor, market)["items"]
    mine = None if actor.is_operator else organisations.list_organisations("", "", 1, actor, market)["items"][0]
    return page(request, "members.html", members=held, declared=mine,
                shareholders=lines_of(mine["shareholders"]) if mine else "")  # fmt: skip


@router.get("/console/notices")
def notices(request: Request, actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)) -> Response:
    return page(request, "notices.html", found=organisations.get_notices(actor, market))


@router.get("/console/statements")
def statements(
    request: Request, month: str = "", actor: Actor = Depends(ANYBODY), market: Market = Depends(market_of)
) -> Response:
    """One month, to read and to download."""
    wanted = month or policy_date(now_ms()).strftime("%Y-%m")
    with reading(market.engine) as session:
        as_provider = actor.kind == "vendor"
        found = statement(session, actor.organisation_id, read_month(wanted), as_provider=as_provider)
    return page(request, "statement.html", found=found, month=wanted)


@router.get("/console/{section}/{row_id}")
def noticed(section: str, row_id: str) -> Response:
    """Where a notice leads: the section, at the row it is about."""
    return RedirectResponse(f"/console/{section}#{row_id}", 303)
