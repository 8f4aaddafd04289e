"""From a market key to the data plane's `Principal`: what a serving node asks on a cache miss."""

from __future__ import annotations

from sqlalchemy import Engine

from marketplace.clock import now_ms
from marketplace.db import reading
from marketplace.keys.authentication import check_standing, find_key
from marketplace.keys.service import limits_of
from serving.ports import Principal


def authenticate(engine: Engine, token: str) -> Principal:
    """The principal of a key that holds now; `Unauthenticated` or `Forbidden` otherwise. One indexed read."""
    with reading(engine) as session:
        credential = find_key(session, token, now_ms())
    organisation, key = credential.organisation, credential.key
    check_standing(organisation)
    assert key is not None, "find_key answers a key"
    return Principal(
        key_id=key.id,
        organisation=organisation.id,
        role=organisation.kind,
        scopes=credential.scopes,
        member=key.member_id,
        expires_at_ms=key.expires_at_ms or 0,
        limits=limits_of(key),
        weight=organisation.run_weight,
    )
