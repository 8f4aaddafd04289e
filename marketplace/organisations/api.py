"""Routes of organisations, members, sessions, notices and the audit log."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from marketplace.access import SESSION_COOKIE, Actor, check_same_site, current_actor, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys.service import list_keys
from marketplace.market import Market
from marketplace.organisations import audit, declaring, members, notices, registration
from marketplace.organisations.tables import Member, Organisation
from model_store.errors import Forbidden

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


class Login(Body):
    email: str = Field(max_length=256)
    password: str = Field(max_length=1000)


class Invitation(Body):
    email: str
    name: str
    role: Literal["owner", "member"] = "member"


class Redeem(Body):
    token: str = Field(max_length=256)
    password: str = Field(max_length=1000)


class Forgot(Body):
    email: str = Field(max_length=256)


class ReadNotices(Body):
    ids: list[str] | None = Field(default=None, max_length=500, description="None: all")


def organisation_view(row: Organisation) -> dict[str, Any]:
    """An organisation as its own members and the operator see it."""
    fields = (
        "id", "kind", "name_zh", "name_en", "slug", "uscc", "status", "legal_person", "controllers", "shareholders",
        "address", "phone", "town", "run_weight", "is_demo", "created_at_ms",
    )  # fmt: skip
    return {name: getattr(row, name) for name in fields}


def member_view(row: Member) -> dict[str, Any]:
    return {
        name: getattr(row, name)
        for name in ("id", "organisation_id", "email", "name", "role", "status", "created_at_ms")
    }


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


@router.post("/login")
def login(body: Login, request: Request, response: Response, market: Market = Depends(market_of)) -> dict[str, Any]:
    """Log in a browser: sets the session cookie."""
    check_same_site(request)
    with reading(market.engine) as session:
        member = members.check_login(session, body.email, body.password, now_ms())
        view = {
            "member": member_view(member),
            "organisation": organisation_view(session.get_one(Organisation, member.organisation_id)),
        }
    with transaction(market.engine) as session:
        token = members.open_session(session, member, now_ms())
    set_session_cookie(response, token, secure=market.settings.url.startswith("https"))
    return view


def set_session_cookie(response: Response, token: str, *, secure: bool) -> None:
    """HttpOnly, SameSite=Lax, twelve hours; Secure where the market is reached by https."""
    response.set_cookie(
        SESSION_COOKIE, token, max_age=members.SESSION_LIFE_MS // 1000, httponly=True, samesite="lax", secure=secure
    )


@router.post("/logout", status_code=204)
def logout(request: Request, market: Market = Depends(market_of)) -> Response:
    check_same_site(request)
    if token := request.cookies.get(SESSION_COOKIE):
        with transaction(market.engine) as session:
            members.logout(session, token)
    response = Response(status_code=204)
    response.delete_cookie(SESSION_COOKIE)
    return response


@router.get("/members")
def list_members(actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """The members of the caller's organisation."""
    with reading(market.engine) as session:
        rows = members.list_members(session, actor.organisation_id)
        return {"items": [member_view(row) for row in rows], "total": len(rows)}


@router.post("/members", status_code=201)
def invite(body: Invitation, actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Invite a colleague (owners only). The answer holds the one-time token once; pass it on.

    The operator's people are invited on the machine: `algomart operator invite`.
    """
    check_owner(actor)
    if actor.is_operator:
        raise operators_by_host()
    with transaction(market.engine) as session:
        member, token = members.invite_member(
            session, organisation_id=actor.organisation_id, actor=actor.id, at_ms=now_ms(), **body.model_dump()
        )
        path = members.password_path("invitation", token)
        return {"member": member_view(member), "token": token, "accept_path": path}


@router.post("/members/accept")
def accept(body: Redeem, market: Market = Depends(market_of)) -> dict[str, Any]:
    """Accept an invitation: set a password."""
    with transaction(market.engine) as session:
        return {"member": member_view(members.redeem_token(session, body.token, "invitation", body.password, now_ms()))}


@router.post("/members/{member_id}/disable")
def disable(member_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Shut a colleague out (owners only): sessions end and their keys stop within a second."""
    check_owner(actor)
    with transaction(market.engine) as session:
        member = members.get_member(session, member_id, actor.organisation_id)
        view = member_view(members.disable_member(session, member, actor=actor.id))
    market.keys_changed()
    return view


@router.post("/members/{member_id}/reset")
def issue_reset(
    member_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Make a password-reset link for a colleague (owners), or for anybody but operators (operators); shown once, good
    for an hour. An operator's is made on the machine: `algomart operator reset`.
    """
    check_owner(actor)
    with transaction(market.engine) as session:
        within = None if actor.is_operator and "admin" in actor.scopes else actor.organisation_id
        member = members.get_member(session, member_id, within)
        if session.get_one(Organisation, member.organisation_id).kind == "operator":
            raise operators_by_host()
        token = members.issue_token(session, member, "reset", now_ms())
        audit.record(
            session,
            actor=actor.id,
            organisation_id=member.organisation_id,
            action="member.reset_link",
            subject=member.id,
        )
        if actor.is_operator:
            notices.notify(
                session,
                member.organisation_id,
                "PASSWORD_RESET_MADE",
                zh=f"运营方为 {member.name}({member.email})生成了密码重置链接; 若非贵单位要求, 请立即联系平台",
                en=f"the operator made a password-reset link for {member.name} ({member.email}); "
                "if nobody of yours asked for it, speak up at once",
                link="/console/members",
            )
        return {"token": token, "reset_path": members.password_path("reset", token)}


@router.post("/password/forgot", status_code=202)
def forgot(body: Forgot, market: Market = Depends(market_of)) -> dict[str, Any]:
    """Ask for a reset; the organisation's owners are told. Answers the same whether or not the account exists."""
    with transaction(market.engine) as session:
        members.forgot_password(session, body.email, now_ms())
    return {"status": "accepted"}


@router.post("/password/reset")
def reset(body: Redeem, market: Market = Depends(market_of)) -> dict[str, Any]:
    """Set a new password with a reset token; every session of the member ends."""
    with transaction(market.engine) as session:
        return {"member": member_view(members.redeem_token(session, body.token, "reset", body.password, now_ms()))}


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


def check_owner(actor: Actor) -> None:
    """`Forbidden` OWNER_ONLY unless the actor is an owner of its organisation, logged in (or with an admin key).

    A plain key may not manage people: an invited member could then do more than the key that invited them.
    """
    if actor.role != "owner" or (actor.key_id and "admin" not in actor.scopes):
        raise Forbidden(
            "OWNER_ONLY",
            zh="此操作仅限本单位管理员",
            en="only an owner of the organisation may do this",
            remedy_zh="请以管理员身份登录控制台操作",
            remedy_en="log in at the console as an owner",
        )


def operators_by_host() -> Forbidden:
    """One operator must not come to hold another's account: vouchers are issued by two persons."""
    return Forbidden(
        "OPERATORS_BY_HOST",
        zh="运营人员的邀请与密码重置只能在服务器上进行, 以保证发券确由两人完成",
        en="operators are invited and reset on the machine only, so that two persons who issue a voucher are two",
        remedy_zh="请服务器管理员运行 algomart operator invite 或 algomart operator reset",
        remedy_en="whoever runs the machine uses algomart operator invite, or algomart operator reset",
    )
