"""Routes of organisations, notices and the audit log; those of members stand in `members_api`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from marketplace.access import Actor, current_actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys.service import list_keys
from marketplace.market import Market
from marketplace.organisations import audit, declaring, notices, registration
from marketplace.organisations.members_api import check_owner
from marketplace.organisations.tables import Member, Organisation
from marketplace.organisations.views import member_view, organisation_view

router = APIRouter(tags=["organisations"])


class Shareholder(Body):
    name: str = Field(min_length=1, max_length=120)
    code: str = Field(default="", max_length=120, description="USCC, or an id of the person")
    share_bp: int = Field(ge=0, le=10_000, description="Basis points: 10,000 are all of it")


class Declaration(Body):
    legal_person: str = Field(default="", max_length=120)
    controllers: list[str] = Field(default_factory=list, max_length=50)
    shareholders: list[Shareholder] = Field(default_factory=list, max_length=50)
    address: str = Field(default="", max_length=120)
    phone: str = Field(default="", max_length=120)


class Registration(Body):
    kind: Literal["enterprise", "vendor"]
    name_zh: str
    name_en: str = ""
    slug: str = Field(description="Lower-case name; the vendor part of model names")
    uscc: str | None = Field(default=None, description="统一社会信用代码; required for an enterprise")
    legal_person: str = ""
    controllers: list[str] = Field(default_factory=list, max_length=50)
    shareholders: list[Shareholder] = Field(default_factory=list, max_length=50)
    address: str = ""
    phone: str = ""
    town: str = ""
    email: str
    member_name: str
    password: str


class Decision(Body):
    reason: str = Field(default="", max_length=500)


class ReadNotices(Body):
    ids: list[str] | None = Field(default=None, max_length=500, description="None: all")


@router.post("/organisations", status_code=201)
def register(body: Registration, market: Market = Depends(market_of)) -> dict[str, Any]:
    """Register an enterprise or a vendor with its first member; it may act once an operator has approved it."""
    # Before the transaction: hashing takes tens of milliseconds, and anybody may register.
    hashed = registration.hashed_password(body.password)
    with transaction(market.engine) as session:
        organisation, member = registration.register_organisation(session, **body.model_dump(), hashed=hashed)
        return {"organisation": organisation_view(organisation), "member": member_view(member)}


@router.get("/organisations")
def list_organisations(
    kind: str = "",
    status: str = "",
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """All organisations for an operator; for others their own."""
    with reading(market.engine) as session:
        if not actor.is_operator:
            return {"items": [organisation_view(session.get_one(Organisation, actor.organisation_id))], "total": 1}
        rows, total = registration.list_organisations(session, kind=kind, status=status, offset=(page - 1) * 200)
        return {"items": [organisation_view(row) for row in rows], "total": total}


@router.put("/organisations/{organisation_id}/declaration")
def put_declaration(
    organisation_id: str, body: Declaration, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Declare anew who represents and holds one's organisation and where it is reached (owners; an operator for any).

    It replaces the declaration before, which stays in the audit log; the operators are told.
    """
    check_owner(actor)
    own = organisation_id == actor.organisation_id
    if not own and not (actor.is_operator and "admin" in actor.scopes):
        raise registration.organisation_not_found(organisation_id)
    with transaction(market.engine) as session:
        row = registration.get_organisation(session, organisation_id)
        return organisation_view(declaring.declare(session, row, body.model_dump(), actor=actor.id))


def _decide(market: Market, actor: Actor, organisation_id: str, decision: str, reason: str) -> dict[str, Any]:
    with transaction(market.engine) as session:
        row = registration.decide_organisation(session, organisation_id, decision, actor=actor.id, reason=reason)
        view = organisation_view(row)
    market.keys_changed()
    market.catalogue_changed()
    return view


@router.post("/organisations/{organisation_id}/approve")
def approve(
    organisation_id: str,
    body: Decision | None = None,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Approve a registration, or reinstate a suspended organisation."""
    return _decide(market, actor, organisation_id, "approve", body.reason if body else "")


@router.post("/organisations/{organisation_id}/reject")
def reject(
    organisation_id: str,
    body: Decision | None = None,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    return _decide(market, actor, organisation_id, "reject", body.reason if body else "")


class Weight(Body):
    weight: int = Field(ge=1, le=100, description="Of run time where calls wait: 3 gets three times what 1 gets")


@router.put("/organisations/{organisation_id}/weight")
def weigh(
    organisation_id: str,
    body: Weight,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Set an organisation's weight where calls wait for their turn, at nodes elsewhere too; within a second."""
    with transaction(market.engine) as session:
        row = registration.weigh_organisation(session, organisation_id, body.weight, actor=actor.id)
        view = organisation_view(row)
        keys = [key.id for key in list_keys(session, row.id)]
    market.keys_changed(*keys)
    return view


@router.post("/organisations/{organisation_id}/suspend")
def suspend(
    organisation_id: str,
    body: Decision | None = None,
    actor: Actor = Depends(require("operator", scope="admin")),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Suspend: its keys stop within a second and its listings leave the shelf; nothing is deleted."""
    return _decide(market, actor, organisation_id, "suspend", body.reason if body else "")


@router.get("/me")
def me(actor: Actor = Depends(current_actor), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Who the caller is: organisation, member, scopes, unread notices."""
    with reading(market.engine) as session:
        organisation = session.get_one(Organisation, actor.organisation_id)
        member = session.get(Member, actor.member_id) if actor.member_id else None
        _, unread = notices.list_notices(session, actor.organisation_id, limit=1)
        return {
            "organisation": organisation_view(organisation),
            "member": member_view(member) if member else None,
            "key_id": actor.key_id or None,
            "scopes": sorted(actor.scopes),
            "unread_notices": unread,
        }


@router.get("/notices")
def get_notices(actor: Actor = Depends(current_actor), market: Market = Depends(market_of)) -> dict[str, Any]:
    with reading(market.engine) as session:
        rows, unread = notices.list_notices(session, actor.organisation_id)
        fields = ("id", "code", "text_zh", "text_en", "link", "created_at_ms", "read_at_ms")
        items = [{name: getattr(row, name) for name in fields} for row in rows]
        return {"items": items, "total": len(items), "unread": unread}


@router.post("/notices/read")
def read_notices(
    body: ReadNotices, actor: Actor = Depends(current_actor), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Mark notices read."""
    with transaction(market.engine) as session:
        return {"read": notices.mark_read(session, actor.organisation_id, now_ms(), body.ids)}


@router.get("/audit")
def get_audit(
    action: str = "",
    subject: str = "",
    page: int = Query(1, ge=1, le=1_000_000),
    actor: Actor = Depends(require()),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """The audit log: of the whole market for an operator, of the own organisation for others."""
    with reading(market.engine) as session:
        rows, total = audit.list_events(
            session,
            organisation_id=None if actor.is_operator else actor.organisation_id,
            action=action,
            subject=subject,
            offset=(page - 1) * 100,
        )
        fields = ("id", "at_ms", "actor", "organisation_id", "action", "subject", "details")
        return {"items": [{name: getattr(row, name) for name in fields} for row in rows], "total": total}
