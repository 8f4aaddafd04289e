"""Routes of members: logging in and out, inviting, shutting out, passwords."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from marketplace.access import SESSION_COOKIE, Actor, check_same_site, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.market import Market
from marketplace.organisations import audit, members, notices
from marketplace.organisations.tables import Organisation
from marketplace.organisations.views import member_view, organisation_view
from model_store.errors import Forbidden

router = APIRouter(tags=["organisations"])


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
