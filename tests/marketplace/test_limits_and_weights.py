"""Limits of a key on its page, and an organisation's weight: who may set them, and what a serving node is told."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlmodel import select

from marketplace.access import SESSION_COOKIE
from marketplace.clock import now_ms
from marketplace.db import reading, transaction
from marketplace.keys.principals import authenticate
from marketplace.keys.service import create_key
from marketplace.keys.tables import ApiKey
from marketplace.market import Market
from marketplace.organisations.members import open_session
from marketplace.organisations.registration import add_member
from marketplace.organisations.tables import AuditEvent
from serving.ports import KeyLimits
from tests.marketplace.shelf import add_organisation


def log_in(client: TestClient, market: Market, kind: str) -> str:
    """Be an owner in an organisation of that kind; its id."""
    with transaction(market.engine) as session:
        organisation = add_organisation(session, f"the-{kind}", kind)
        member = add_member(session, organisation, email=f"{kind}@b.cn", name="王", role="owner")
        member.status = "active"
        client.cookies.set(SESSION_COOKIE, open_session(session, member, now_ms()))
        return organisation.id


def only_key(market: Market) -> ApiKey:
    with reading(market.engine) as session:
        return session.exec(select(ApiKey)).one()


def test_the_fields_of_the_keys_page_are_the_key_s_limits(client: TestClient, market: Market) -> None:
    log_in(client, market, "enterprise")
    form: dict[str, Any] = {"name": "line 1", "scopes": ["use"], "rate_per_s": "20", "burst": "40", "concurrency": ""}
    assert client.post("/do/create-key", data=form).status_code == 200
    key = only_key(market)
    assert (key.rate_per_s, key.burst, key.concurrency) == (20, 40, 0)
    page = client.get("/console/keys?lang=en").text
    assert "per second 20" in page
    assert "(burst 40)" in page
    for field in ("rate_per_s", "burst", "concurrency"):
        assert page.count(f'name="{field}"') == 2  # of the key, and of a new one
    change = {"key_id": key.id, "rate_per_s": "", "burst": "", "concurrency": "3"}
    assert client.post("/do/limit-key", data=change, follow_redirects=False).status_code == 303
    key = only_key(market)
    assert (key.rate_per_s, key.burst, key.concurrency) == (0, 0, 3)
    assert market.feed.since(market.feed.start, 0)[-1].ids == (key.id,)  # type: ignore[index]
    assert "in hand 3" in client.get("/console/keys").text


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"rate_per_s": "-1"}, "LIMIT_INVALID"),
        ({"burst": "many"}, "FORM_INVALID"),
        ({"concurrency": "1000001"}, "LIMIT_INVALID"),
    ],
)
def test_a_limit_that_is_none_is_refused_in_words_and_changes_nothing(
    client: TestClient, market: Market, wrong: dict[str, str], code: str
) -> None:
    log_in(client, market, "enterprise")
    client.post("/do/create-key", data={"name": "line 1", "scopes": ["use"], "rate_per_s": "9"})
    key = only_key(market)
    answer = client.post("/do/limit-key", data={"key_id": key.id, **wrong})
    assert answer.status_code == 400
    assert code in answer.text
    assert only_key(market).rate_per_s == 9


def test_the_operator_sets_an_organisation_s_weight_and_nodes_are_told(client: TestClient, market: Market) -> None:
    with transaction(market.engine) as session:
        factory = add_organisation(session, "works", "enterprise")
        key, secret = create_key(session, factory, name="k", scopes=["use"], actor="t", limits=KeyLimits(5))
        factory_id, key_id = factory.id, key.id
    assert authenticate(market.engine, secret).weight == 1
    log_in(client, market, "operator")
    assert 'name="weight"' in client.get("/city/organisations").text
    form = {"organisation_id": factory_id, "weight": "3"}
    assert client.post("/do/weigh-organisation", data=form, follow_redirects=False).status_code == 303
    assert authenticate(market.engine, secret).weight == 3
    change = market.feed.since(market.feed.start, 0)[-1]  # type: ignore[index]
    assert (change.kind, change.ids) == ("keys", (key_id,))
    with reading(market.engine) as session:
        event = session.exec(select(AuditEvent).where(AuditEvent.action == "organisation.weigh")).one()
    assert event.details == {"before": 1, "weight": 3}
    for weight in (0, 101):
        answer = client.put(f"/api/v1/organisations/{factory_id}/weight", json={"weight": weight})
        assert answer.status_code == 400


def test_nobody_but_the_operator_sets_a_weight(client: TestClient, market: Market) -> None:
    own = log_in(client, market, "enterprise")
    answer = client.put(f"/api/v1/organisations/{own}/weight", json={"weight": 50})
    assert answer.status_code == 403
