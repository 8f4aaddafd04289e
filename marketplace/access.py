"""Who calls the market: an `Actor`, and the FastAPI dependencies that require one.

    @router.post("/things")
    def make(actor: Actor = Depends(require("vendor", scope="publish")), market: Market = Depends(market_of)): ...

A key comes as `Authorization: Bearer am_…` or `X-API-Key`; a browser comes with the cookie `algomart_session`. A write
that a browser sends with its cookie must come from our own pages: judged by `Sec-Fetch-Site`, or by `Origin` where that
is not sent (plain http on an intranet). A client that sends neither is no browser, and no cookie rides along unasked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.requests import Request

from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.keys.authentication import Credential, find_key, find_session, key_refused, standing_refused
from model_store.errors import Forbidden, Refusal

if TYPE_CHECKING:
    from marketplace.market import Market

SESSION_COOKIE = "algomart_session"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. `kind` is the organisation's: enterprise | vendor | operator; `role` the member's: owner | member.

    `key_id` is "" for a browser session; `member_id` is "" for a key that belongs to no person.
    `organisation_status` is the organisation's standing; `require` refuses all but approved.
    """

    organisation_id: str
    kind: str
    member_id: str
    key_id: str
    scopes: frozenset[str]
    name: str
    role: str
    slug: str = ""
    organisation_status: str = "approved"

    @property
    def id(self) -> str:
        """What audit rows name: the person where there is one, else the key."""
        return self.member_id or self.key_id

    @property
    def is_operator(self) -> bool:
        return self.kind == "operator"


def market_of(request: Request) -> Market:
    """The running market, as a dependency."""
    market: Market = request.app.state.market
    return market


def token_of(request: Request) -> str:
    """The key that a request carries in its headers, or "" ."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return request.headers.get("x-api-key", "").strip()


def actor_of(credential: Credential) -> Actor:
    """The actor behind a credential."""
    organisation, member, key = credential.organisation, credential.member, credential.key
    return Actor(
        organisation_id=organisation.id,
        kind=organisation.kind,
        member_id=member.id if member else "",
        key_id=key.id if key else "",
        scopes=credential.scopes,
        name=member.name if member else organisation.name_zh,
        role=member.role if member else "owner",
        slug=organisation.slug or "",
        organisation_status=organisation.status,
    )


def optional_actor(request: Request) -> Actor | None:
    """The caller, or None for a visitor. A key that does not hold is refused, a stale cookie is just a visitor."""
    cached: Actor | None = getattr(request.state, "actor", None)
    if cached is not None:
        return cached
    market, token = market_of(request), token_of(request)
    credential: Credential | None = None
    with reading(market.engine) as session:
        if token:
            credential = find_key(session, token, now_ms())
        elif cookie := request.cookies.get(SESSION_COOKIE):
            credential = find_session(session, cookie, now_ms())
            if credential is not None:
                check_same_site(request)
    if credential is None:
        return None
    request.state.actor = actor_of(credential)
    return actor_of(credential)


def current_actor(request: Request) -> Actor:
    """The caller; `Unauthenticated` KEY_MISSING for a visitor."""
    actor = optional_actor(request)
    if actor is None:
        raise key_refused("KEY_MISSING")
    return actor


def require(*kinds: str, scope: str | None = None) -> Callable[[Request], Actor]:
    """A dependency: an actor of an approved organisation of one of `kinds` (any, if none is named) with `scope`."""

    def dependency(request: Request) -> Actor:
        actor = current_actor(request)
        check_may(actor, *kinds, scope=scope)
        return actor

    return dependency


def check_may(actor: Actor, *kinds: str, scope: str | None = None) -> None:
    """`Forbidden` unless the actor's organisation stands approved, is of one of `kinds`, and the key has `scope`."""
    if actor.organisation_status != "approved":
        raise standing_refused(actor.organisation_status)
    if kinds and actor.kind not in kinds:
        raise _role_refused(kinds)
    if scope is not None and scope not in actor.scopes:
        raise scope_refused(scope)


def check_same_site(request: Request) -> None:
    """Refuse a cookie-authenticated write that another site started."""
    if request.method in _SAFE_METHODS:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        ours = site in ("same-origin", "none")
    elif origin is not None:
        ours = urlsplit(origin).netloc == request.headers.get("host", "")
    else:
        ours = True
    if not ours:
        raise Forbidden(
            "CROSS_SITE",
            zh="请求来自其他网站, 已拒绝",
            en="the request comes from another site and was refused",
            remedy_zh="请在本平台页面上操作, 或使用 API 密钥",
            remedy_en="use this market's own pages, or an API key",
        )


def scope_refused(scope: str) -> Refusal:
    """The refusal for a key that lacks a scope."""
    return Forbidden(
        "SCOPE_MISSING",
        zh=f"该密钥没有“{scope}”权限",
        en=f"the key lacks the scope {scope!r}",
        remedy_zh=f"请创建带有 {scope} 权限的密钥",
        remedy_en=f"create a key with the scope {scope}",
        details={"scope": scope},
    )


def _role_refused(kinds: tuple[str, ...]) -> Refusal:
    names: dict[str, Any] = {"enterprise": "企业", "vendor": "供应商", "operator": "运营方"}
    return Forbidden(
        "ROLE_NOT_ALLOWED",
        zh=f"此操作仅限{'、'.join(names.get(k, k) for k in kinds)}",
        en=f"only {' or '.join(kinds)} may do this",
        remedy_zh="请使用相应单位的账号或密钥",
        remedy_en="use an account or key of such an organisation",
    )
