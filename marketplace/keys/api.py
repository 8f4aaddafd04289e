"""Routes of API keys."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import Field

from marketplace.access import Actor, check_may, market_of, require
from marketplace.body import Body
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys import service
from marketplace.keys.authentication import decide_key_state
from marketplace.keys.tables import ApiKey
from marketplace.market import Market
from marketplace.organisations.tables import Organisation
from model_store.errors import NotFound
from serving.ports import KeyLimits

router = APIRouter(tags=["keys"])
MANAGER = require(scope="manage")


class Limits(Body):
    rate_per_s: int = Field(default=0, description="Calls a second; 0: no limit but the node's")
    burst: int = Field(default=0, description="Of those, how many may come at once; 0: what a second allows")
    concurrency: int = Field(default=0, description="Calls in hand; 0: no limit but the node's")

    def limits(self) -> KeyLimits:
        return KeyLimits(self.rate_per_s, self.burst, self.concurrency)


class NewKey(Limits):
    name: str
    scopes: list[str] = Field(default_factory=lambda: ["use", "choose"], max_length=10)
    expires_at_ms: int | None = None


class Rotation(Body):
    overlap_ms: int = Field(default=86_400_000, description="How long the old key still works; 0 to 30 days")


def key_view(row: ApiKey, at_ms: int) -> dict[str, Any]:
    """A key as a list shows it: never its text."""
    fields = (
        "id",
        "name",
        "prefix",
        "scopes",
        "member_id",
        "created_at_ms",
        "expires_at_ms",
        "revoked_at_ms",
        "replaced_by",
        "rate_per_s",
        "burst",
        "concurrency",
    )
    return {name: getattr(row, name) for name in fields} | {"state": decide_key_state(row, at_ms)}


@router.get("/keys")
def list_keys(actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """The organisation's keys; a plain member sees their own."""
    with reading(market.engine) as session:
        only = None if actor.role == "owner" else actor.member_id
        rows = service.list_keys(session, actor.organisation_id, member_id=only)
        return {"items": [key_view(row, now_ms()) for row in rows], "total": len(rows)}


@router.post("/keys", status_code=201)
def create_key(body: NewKey, actor: Actor = Depends(MANAGER), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Create a key. Its text is in this answer and nowhere else, ever."""
    with transaction(market.engine) as session:
        row, secret = service.create_key(
            session,
            session.get_one(Organisation, actor.organisation_id),
            name=body.name,
            scopes=body.scopes,
            actor=actor.id,
            member_id=actor.member_id,
            expires_at_ms=body.expires_at_ms,
            at_ms=now_ms(),
            within=actor.scopes,
            limits=body.limits(),
        )
        return key_view(row, now_ms()) | {"key": secret}


@router.post("/keys/{key_id}/rotate", status_code=201)
def rotate_key(
    key_id: str,
    body: Rotation | None = None,
    actor: Actor = Depends(MANAGER),
    market: Market = Depends(market_of),
) -> dict[str, Any]:
    """Create a successor of one's own key, or of one that is nobody's; the old key works until the overlap is over."""
    with transaction(market.engine) as session:
        old = service.get_key(session, key_id, actor.organisation_id)
        check_holder(old, actor)
        overlap_ms = (body or Rotation()).overlap_ms
        row, secret = service.rotate_key(
            session, old, overlap_ms=overlap_ms, actor=actor.id, at_ms=now_ms(), within=actor.scopes
        )
        answer = key_view(row, now_ms()) | {"key": secret, "old": key_view(old, now_ms())}
    market.keys_changed(key_id)
    return answer


@router.put("/keys/{key_id}/limits")
def limit_key(
    key_id: str, body: Limits, actor: Actor = Depends(MANAGER), market: Market = Depends(market_of)
) -> dict[str, Any]:
    """Set what a key may call, within a second: one's own key, or an owner any of the organisation's."""
    with transaction(market.engine) as session:
        row = service.get_key(session, key_id, actor.organisation_id)
        if actor.role != "owner":
            check_holder(row, actor)
        answer = key_view(service.limit_key(session, row, body.limits(), actor=actor.id), now_ms())
    market.keys_changed(key_id)
    return answer


@router.delete("/keys/{key_id}")
def revoke_key(key_id: str, actor: Actor = Depends(require()), market: Market = Depends(market_of)) -> dict[str, Any]:
    """Revoke a key: it stops at once. An owner may revoke each key of the organisation, and any key itself."""
    if actor.key_id != key_id:
        check_may(actor, scope="manage")
    with transaction(market.engine) as session:
        row = service.get_key(session, key_id, actor.organisation_id)
        if actor.role != "owner":
            check_holder(row, actor)
        answer = key_view(service.revoke_key(session, row, actor=actor.id, at_ms=now_ms()), now_ms())
    market.keys_changed(key_id)
    return answer


def check_holder(key: ApiKey, actor: Actor) -> None:
    """`NotFound` KEY_NOT_FOUND for a colleague's key: its successor would act, and be audited, as the colleague."""
    if key.member_id != actor.member_id and (key.member_id or actor.role != "owner"):
        raise NotFound(
            "KEY_NOT_FOUND",
            zh=f"您没有编号为 {key.id[:60]} 的密钥",
            en=f"you have no key {key.id[:60]}",
            remedy_zh="同事的密钥由其本人更换; 管理员可以吊销",
            remedy_en="a colleague rotates their own keys; an owner may revoke them",
        )
