"""Who may do what over HTTP: keys, cookies, scopes, standing, and writes that another site starts."""

import pytest

from marketplace.access import SESSION_COOKIE
from marketplace.db import transaction
from marketplace.keys.service import create_key
from marketplace.organisations.passwords import hash_password
from marketplace.organisations.tables import Member, Organisation
from tests.marketplace.shelf import add_organisation

PASSWORD = "a long sentence"


@pytest.fixture
def keys(market) -> dict[str, str]:
    """A key of an operator, a vendor and a factory, each with a member who can log in."""
    made = {}
    with transaction(market.engine) as session:
        for slug, kind in (("city", "operator"), ("acme", "vendor"), ("factory", "enterprise")):
            organisation = add_organisation(session, slug, kind)
            session.add(Member(id=f"mem_{slug}", organisation_id=organisation.id, email=f"{slug}@example.com",
                               name="王", role="owner", password_hash=hash_password(PASSWORD)))  # fmt: skip
            scopes = ["use", "choose", "adapt", "publish", "manage"] + (["admin"] if kind == "operator" else [])
            _, made[slug] = create_key(
                session, organisation, name="test", scopes=scopes, actor="test", member_id=f"mem_{slug}", at_ms=1
            )
    return made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def login(client, slug: str):
    return client.post("/api/v1/login", json={"email": f"{slug}@example.com", "password": PASSWORD})


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_key_is_taken_from_either_header(client, keys, header):
    value = f"Bearer {keys['acme']}" if header == "Authorization" else keys["acme"]
    answer = client.get("/api/v1/me", headers={header: value})
    assert answer.status_code == 200
    assert answer.json()["organisation"]["slug"] == "acme"


@pytest.mark.parametrize(("headers", "code"), [({}, "KEY_MISSING"), (bearer("am_nope"), "KEY_INVALID")])
def test_no_key_or_a_wrong_key_is_401_with_the_remedy(client, keys, headers, code):
    answer = client.get("/api/v1/me", headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (401, code)
    assert "Bearer" in answer.headers["WWW-Authenticate"]
    assert error["message_zh"]
    assert error["remedy"]
    assert error["request_id"] == answer.headers["X-Request-Id"]


def test_a_factory_may_not_do_what_the_operator_does(client, keys):
    answer = client.get("/api/v1/reviews", headers=bearer(keys["factory"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "ROLE_NOT_ALLOWED")
    assert client.get("/api/v1/reviews", headers=bearer(keys["city"])).status_code == 200


def test_a_key_without_the_scope_is_refused(client, keys):
    made = client.post("/api/v1/keys", json={"name": "narrow", "scopes": ["use"]}, headers=bearer(keys["acme"]))
    assert made.status_code == 201
    narrow = bearer(made.json()["key"])
    price = {"micro_per_unit": 1}
    answer = client.post("/api/v1/models/acme/steel/prices", json=price, headers=narrow)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "SCOPE_MISSING")


def test_a_pending_organisation_sees_itself_and_may_do_nothing(client, keys, market):
    with transaction(market.engine) as session:
        session.get_one(Organisation, "org_acme").status = "pending"
    assert client.get("/api/v1/me", headers=bearer(keys["acme"])).status_code == 200
    answer = client.get("/api/v1/keys", headers=bearer(keys["acme"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "ORGANISATION_NOT_APPROVED")


def test_a_revoked_key_stops_at_once(client, keys):
    made = client.post("/api/v1/keys", json={"name": "short"}, headers=bearer(keys["acme"])).json()
    assert client.get("/api/v1/me", headers=bearer(made["key"])).status_code == 200
    assert client.delete(f"/api/v1/keys/{made['id']}", headers=bearer(keys["acme"])).json()["state"] == "revoked"
    answer = client.get("/api/v1/me", headers=bearer(made["key"]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "KEY_REVOKED")


def test_a_key_of_another_organisation_is_not_found(client, keys):
    made = client.post("/api/v1/keys", json={"name": "mine"}, headers=bearer(keys["acme"])).json()
    assert client.delete(f"/api/v1/keys/{made['id']}", headers=bearer(keys["factory"])).status_code == 404


def test_a_login_sets_a_cookie_that_scripts_cannot_read_and_logout_ends_it(client, keys):
    answer = login(client, "factory")
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert client.get("/api/v1/me").json()["member"]["email"] == "factory@example.com"
    stale = client.cookies[SESSION_COOKIE]
    assert client.post("/api/v1/logout").status_code == 204
    assert client.get("/api/v1/me", headers={"Cookie": f"{SESSION_COOKIE}={stale}"}).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://testserver"}, 201),
        ({}, 201),
    ],
)
def test_a_write_with_a_cookie_must_come_from_our_own_pages(client, keys, headers, status):
    login(client, "factory")
    answer = client.post("/api/v1/keys", json={"name": "k"}, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "CROSS_SITE"


def test_a_write_with_a_key_needs_no_origin(client, keys):
    headers = bearer(keys["factory"]) | {"Origin": "http://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert client.post("/api/v1/keys", json={"name": "k"}, headers=headers).status_code == 201


def test_people_are_managed_by_an_owner_who_is_logged_in(client, keys):
    person = {"email": "new@example.com", "name": "新人"}
    assert client.post("/api/v1/members", json=person, headers=bearer(keys["factory"])).status_code == 403
    login(client, "factory")
    invited = client.post("/api/v1/members", json=person)
    assert invited.status_code == 201
    accepted = client.post(
        "/api/v1/members/accept", json={"token": invited.json()["token"], "password": "yet another one"}
    )
    assert accepted.json()["member"]["status"] == "active"
    again = client.post(
        "/api/v1/members/accept", json={"token": invited.json()["token"], "password": "yet another one"}
    )
    assert again.json()["error"]["code"] == "TOKEN_INVALID"


def test_suspending_an_organisation_stops_its_keys(client, keys):
    organisation = client.get("/api/v1/me", headers=bearer(keys["acme"])).json()["organisation"]["id"]
    path = f"/api/v1/organisations/{organisation}"
    assert client.post(f"{path}/suspend", headers=bearer(keys["factory"])).status_code == 403
    assert client.post(f"{path}/suspend", headers=bearer(keys["city"])).json()["status"] == "suspended"
    assert client.get("/api/v1/keys", headers=bearer(keys["acme"])).status_code == 403
    assert client.post(f"{path}/approve", headers=bearer(keys["city"])).json()["status"] == "approved"
    assert client.get("/api/v1/keys", headers=bearer(keys["acme"])).status_code == 200


def test_limits_of_a_key_are_set_when_it_is_made_and_later(client, keys):
    body = {"name": "line", "rate_per_s": 5, "burst": 10}
    made = client.post("/api/v1/keys", json=body, headers=bearer(keys["factory"])).json()
    assert (made["rate_per_s"], made["burst"], made["concurrency"]) == (5, 10, 0)
    path = f"/api/v1/keys/{made['id']}/limits"
    changed = client.put(path, json={"concurrency": 2}, headers=bearer(keys["factory"]))
    assert changed.status_code == 200
    listed = client.get("/api/v1/keys", headers=bearer(keys["factory"])).json()["items"]
    now = next(key for key in listed if key["id"] == made["id"])
    assert (now["rate_per_s"], now["burst"], now["concurrency"]) == (0, 0, 2)
    assert client.put(path, json={"rate_per_s": -1}, headers=bearer(keys["factory"])).status_code == 400
    assert client.put(path, json={"rate_per_s": 1}, headers=bearer(keys["acme"])).status_code == 404
    assert client.put(path, json={"rate_per_s": 1}, headers=bearer(made["key"])).status_code == 403
