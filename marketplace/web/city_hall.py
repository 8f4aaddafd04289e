"""City hall, for operators: what waits, who is approved, the money of each programme, and what was done by whom."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query
from sqlmodel import Session, col, func, select
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from marketplace.access import Actor, market_of, require
from marketplace.catalogue import api as catalogue
from marketplace.catalogue.coverage import counters
from marketplace.claims.states import BATCH, CLAWBACK
from marketplace.claims.tables import ClaimBatch, Clawback, Correction
from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.findings.dispositions import count_unsettled
from marketplace.ledger import api as ledger
from marketplace.market import Market
from marketplace.nodes import api as nodes_api
from marketplace.nodes import write_off_api as write_offs
from marketplace.organisations import api as organisations
from marketplace.organisations.tables import Organisation
from marketplace.review import api as reviews
from marketplace.vouchers import api as vouchers
from marketplace.vouchers import applications_api, tranches_api
from marketplace.vouchers.tables import Application, Programme, Revocation, TrancheApproval, Voucher
from marketplace.vouchers.versions import RUNS
from marketplace.web.claims_desk import names_of
from marketplace.web.rendering import PageRoute, page
from marketplace.web.vendor_desk import written

router = APIRouter(route_class=PageRoute, include_in_schema=False)
OPERATOR = require("operator", scope="admin")
STEPS: dict[str, tuple[str, ...]] = {  # what an operator may decide in each state, the usual step first
    "submitted": ("check", "reject"),
    "checking": ("approve", "reject", "supplement", "check"),
    "approved": ("publish", "check"),
    "public_notice": ("confirm", "check"),
    "objection": ("check",),
}


@router.get("/city")
def city(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """What waits for a decision, the honest counts, and the pools."""
    queue = reviews.list_reviews("open", 1, actor, market)["items"]
    for row in queue:
        row["report"] = written(row["version"].get("inspection") or {})
    with reading(market.engine) as session:
        waiting = {
            "organisations": _count(session, Organisation, Organisation.status == "pending"),
            "applications": _count(session, Application, col(Application.state).in_(STEPS)),
            "vouchers": _count(session, Voucher, Voucher.state == "proposed")
            + _count(session, Revocation, Revocation.state == "proposed"),
            "tranches": _proposed_tranches(session),
            "claims": _count(session, ClaimBatch, col(ClaimBatch.state).in_({state for state, _ in BATCH})),
            "corrections": _count(session, Correction, Correction.state == "proposed"),
            "clawbacks": _count(session, Clawback, col(Clawback.state).in_({state for state, _ in CLAWBACK})),
            "findings": count_unsettled(session),
        }
        tiers = counters(session, now_ms())
    pools = vouchers.pool(actor, market)["items"]
    return page(request, "city.html", reviews=queue, waiting=waiting, counters=tiers, pools=pools)


def _proposed_tranches(session: Session) -> int:
    """Of versions that run: a proposal for one that was closed meanwhile is nobody's turn."""
    query = select(func.count()).select_from(TrancheApproval).join(Programme)
    return int(session.exec(query.where(TrancheApproval.state == "proposed", col(Programme.state).in_(RUNS))).one())


def _count(session: Session, table: Any, condition: Any) -> int:
    return int(session.exec(select(func.count()).select_from(table).where(condition)).one())


@router.get("/city/organisations")
def all_organisations(
    request: Request, status: str = "", actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    found = organisations.list_organisations("", status, 1, actor, market)
    return page(request, "city_organisations.html", found=found, chosen=status)


@router.get("/city/programmes")
def programmes(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """Every programme with its rules in plain words; drafts with what activation has to name; tranches that wait for
    their own approval, with what waits for the second person."""
    found = vouchers.list_programmes(1, market)["items"]
    pools = {row["programme_id"]: row for row in vouchers.pool(actor, market)["items"]}
    running = [row["id"] for row in found if row["state"] in RUNS]
    own = {key: tranches_api.get_tranches(key, actor, market)["items"] for key in running}
    asked = {key: [row for row in rows if row["own_approval"]] for key, rows in own.items()}
    given = [row["approval"] for rows in asked.values() for row in rows if row["approval"]]
    with reading(market.engine) as session:
        people = names_of(session, *(each[name] for each in given for name in ("proposed_by", "decided_by")))
    return page(request, "city_programmes.html", programmes=found, pools=pools, tranches=asked, people=people,
                own=actor.member_id)  # fmt: skip


@router.get("/city/applications")
def applications(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    found = applications_api.list_applications("", 1, actor, market)["items"]
    programmes = {row["id"]: row for row in vouchers.list_programmes(1, market)["items"]}
    rows = []
    for row in found:
        programme = programmes.get(row["programme_id"], {})
        pieces = {item["code"]: item for item in programme.get("evidence_schema", ())}
        rows.append(row | {"next": STEPS.get(row["state"], ()), "of": programme, "pieces": pieces})
    return page(request, "city_applications.html", applications=rows)


@router.get("/city/vouchers")
def all_vouchers(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """Vouchers; what may be proposed, and how much of it; what waits for the second person."""
    programmes = {row["id"]: row for row in vouchers.list_programmes(1, market)["items"]}
    confirmed: list[dict[str, Any]] = applications_api.list_applications("confirmed", 1, actor, market)["items"]
    found = vouchers.list_vouchers("", 1, actor, market)["items"]
    with reading(market.engine) as session:
        people = names_of(
            session,
            *(row[name] for row in found for name in ("proposed_by", "approved_by", "dropped_by")),
            *(each[name] for row in found if (each := row["revocation"]) for name in ("proposed_by", "decided_by")),
        )
    return page(request, "city_vouchers.html", vouchers=found, ready=[row for row in confirmed if row["left_fen"]],
                people=people, own=actor.member_id, titles=programmes)  # fmt: skip


@router.get("/city/filings")
def filings(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    return page(request, "city_filings.html", filings=catalogue.list_filings(market)["items"])


@router.get("/city/ledger")
def trial_balance(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """The trial balance: both ledgers sum to nothing; and the nightly checks."""
    checks = ledger.list_ledger_checks(actor, market)["items"]
    return page(request, "city_ledger.html", balance=ledger.get_trial_balance(actor, market), checks=checks)


@router.get("/city/nodes")
def serving_nodes(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """Nodes elsewhere, what their unsealed epochs hold, and the register of write-offs."""
    found = write_offs.get_write_offs(actor, market)["items"]
    with reading(market.engine) as session:
        people = names_of(session, *(row[name] for row in found for name in ("proposed_by", "decided_by")))
    nodes = nodes_api.get_nodes(actor, market)["items"]
    return page(request, "city_nodes.html", nodes=nodes, write_offs=found, people=people, own=actor.member_id)


@router.get("/city/audit")
def audit_log(
    request: Request,
    action: str = "",
    page_number: int = Query(1, ge=1, le=100_000, alias="page"),
    actor: Actor = Depends(OPERATOR),
    market: Market = Depends(market_of),
) -> Response:
    found = organisations.get_audit(action, "", page_number, actor, market)
    return page(request, "city_audit.html", found=found, action=action, page_number=page_number)


@router.get("/city/reviews")
def review_queue() -> Response:
    return RedirectResponse("/city#queue", 303)


@router.get("/city/{section}/{row_id}")
def noticed(section: str, row_id: str) -> Response:
    """Where a notice leads: the section, at the row it is about."""
    return RedirectResponse(f"/city/{section}#{row_id}", 303)
