"""City hall's desk for claims: batches with their next steps and who may take them, corrections, clawbacks, days."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Depends
from sqlmodel import Session, col, select
from starlette.requests import Request
from starlette.responses import Response

from marketplace.access import Actor, market_of, require
from marketplace.claims import api as claims
from marketplace.claims.batches import get_batch, get_line
from marketplace.claims.states import BATCH, LINES_OPEN
from marketplace.claims.tables import ClaimBatch, ClaimLine
from marketplace.claims.tracing import line_trace
from marketplace.clock import now_ms, policy_date
from marketplace.db import reading
from marketplace.findings.dispositions import findings_about
from marketplace.findings.views import finding_view
from marketplace.ledger import api as ledger
from marketplace.market import Market
from marketplace.organisations.tables import AuditEvent, Member
from marketplace.vouchers import api as vouchers
from marketplace.vouchers.rollout import rules_of
from marketplace.vouchers.tables import Programme
from marketplace.web.rendering import PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)
OPERATOR = require("operator", scope="admin")
WAY = ("freeze", "submit", "review", "publish", "approve", "pay", "confirm-payment", "reconcile")
SECOND = {"approve": "frozen_by", "confirm-payment": "payment_by"}  # step → who may not take it


@router.get("/city/claims")
def all_claims(request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)) -> Response:
    """Every batch, and the form for a new one."""
    found = claims.list_claims("", actor, market)["items"]
    for row in found:
        row["step"] = next((step for step in WAY if step in row["next"]), "")
    programmes = [row for row in vouchers.list_programmes(1, market)["items"] if row["state"] != "draft"]
    today = policy_date(now_ms())
    return page(request, "city_claims.html", batches=found, programmes=programmes,
                first=today.replace(day=1).isoformat(), last=today.isoformat())  # fmt: skip


@router.get("/city/claims/{claim_id}")
def one_claim(
    claim_id: str, request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """A batch: what it claims or would claim, its way so far with the persons of each step, and what comes next."""
    batch = claims.get_claim(claim_id, actor, market)
    rows = batch["lines"] or batch.get("candidates", [])
    contracts = {row["subscription_id"]: row for row in rows}
    invoices = [row for row in claims.list_invoices(actor, market)["items"] if row["subscription_id"] in contracts]
    with reading(market.engine) as session:
        history = history_of(session, claim_id)
        notice_ends = _notice_ends(session, session.get_one(ClaimBatch, claim_id))
        people = names_of(session, *(event["actor"] for event in history), actor.member_id)
        about = findings_about(session, contracts, batch["programme_id"])
        findings = [
            finding_view(session, row) for row in {row.id: row for held in about.values() for row in held}.values()
        ]
    return page(
        request,
        "city_claim.html",
        batch=batch,
        way=way_of(batch, history),
        steps=buttons_of(batch),
        history=history,
        people=people,
        barred={step: batch[who] == actor.member_id for step, who in SECOND.items()},
        own=actor.member_id,
        notice_ends=notice_ends,
        notice_runs=bool(notice_ends) and policy_date(now_ms()).isoformat() < notice_ends,
        lines_open=batch["state"] in LINES_OPEN,
        contracts=contracts,
        invoices=invoices,
        findings=findings,
        today=policy_date(now_ms()).isoformat(),
    )


@router.get("/city/claims/{claim_id}/{line_id}")
def one_line(
    claim_id: str, line_id: str, request: Request, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """What a claimed amount rests on, down to the usage records."""
    with reading(market.engine) as session:
        batch = get_batch(session, claim_id)
        traced = line_trace(session, batch, get_line(session, batch, line_id))
    return page(request, "city_claim_line.html", traced=traced)


@router.get("/city/corrections")
def all_corrections(
    request: Request, usage_id: str = "", actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """The register of corrections; what waits for the second person."""
    found = claims.list_corrections(actor, market)["items"]
    with reading(market.engine) as session:
        people = names_of(session, *(row[name] for row in found for name in ("proposed_by", "decided_by")))
    return page(request, "city_corrections.html", corrections=found, people=people, own=actor.member_id,
                usage_id=usage_id)  # fmt: skip


@router.get("/city/clawbacks")
def all_clawbacks(
    request: Request, line_id: str = "", actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """The register of clawbacks, with the batch that each line was paid in; what waits for the second person."""
    found = claims.list_clawbacks(actor, market)["items"]
    acted = ("opened_by", "confirmed_by", "write_off_by", "ended_by")
    with reading(market.engine) as session:
        people = names_of(session, *(row[name] for row in found for name in acted))
        lines = session.exec(select(ClaimLine).where(col(ClaimLine.id).in_([row["line_id"] for row in found])))
        batch_of = {line.id: line.batch_id for line in lines}
    return page(request, "city_clawbacks.html", clawbacks=found, people=people, batch_of=batch_of, own=actor.member_id,
                line_id=line_id)  # fmt: skip


@router.get("/city/days")
def all_days(
    request: Request, check: bool = False, actor: Actor = Depends(OPERATOR), market: Market = Depends(market_of)
) -> Response:
    """The root of each closed day and the chain, newest first; `check` computes all of them again."""
    found = ledger.get_days(check, actor, market)
    return page(request, "city_days.html", days=found["items"][::-1], checked=check, wrong=found.get("wrong", []))


def history_of(session: Session, claim_id: str) -> list[dict[str, Any]]:
    """Who did what to a batch and when, oldest first, from the audit log."""
    query = select(AuditEvent).where(AuditEvent.subject == claim_id, col(AuditEvent.action).startswith("claim."))
    rows = session.exec(query.order_by(col(AuditEvent.at_ms), col(AuditEvent.id)))
    return [
        {"step": row.action.partition(".")[2], "actor": row.actor, "at_ms": row.at_ms, "details": row.details}
        for row in rows
    ]


def way_of(batch: dict[str, Any], history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The usual steps of a batch: who took each and when; `now` where it can be taken."""
    taken = {event["step"]: event for event in history}
    states = [state for state, _ in BATCH]
    reached = states.index(batch["state"]) if batch["state"] in states else len(states)
    way = []
    for step in WAY:
        before = next(states.index(state) for state, decision in BATCH if decision == step)
        event = taken.get(step) if before < reached else None  # a payment that was taken back counts no more
        way.append({"step": step, "event": event, "now": step in batch["next"]})
    return way


def buttons_of(batch: dict[str, Any]) -> list[str]:
    """What may be done now, the usual step first; a payment has a form of its own, and nothing is frozen empty."""
    idle = batch["state"] == "assembling" and all(row["left_out"] for row in batch["candidates"])
    usable = [step for step in batch["next"] if step != "pay" and not (step == "freeze" and idle)]
    return sorted(usable, key=lambda step: step not in WAY)


def names_of(session: Session, *members: str) -> dict[str, str]:
    """Names by member id; an id that is nobody's (any longer) stands for itself."""
    wanted = {member for member in members if member}
    found = {row.id: row.name for row in session.exec(select(Member).where(col(Member.id).in_(wanted)))}
    return {member: found.get(member, member) for member in {*wanted, ""}}


def _notice_ends(session: Session, batch: ClaimBatch) -> str:
    """The first day on which the batch may be approved (ISO, Asia/Shanghai); "" before the public notice."""
    if batch.notice_at_ms is None:
        return ""
    days = rules_of(session.get_one(Programme, batch.programme_id)).notice_days or 0
    return (policy_date(batch.notice_at_ms) + timedelta(days=days)).isoformat()
