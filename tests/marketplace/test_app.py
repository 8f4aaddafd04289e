"""The JSON API as a whole: one shape for every refusal, an id for every request, nothing from a CDN."""

import pytest


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/api/v1/nothing-here", None, 404, "NO_SUCH_PATH"),
        ("DELETE", "/api/v1/models", None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/models/nobody/nothing", None, 404, "MODEL_NOT_FOUND"),
        ("GET", "/api/v1/models/UPPER/nothing", None, 400, "NAME_INVALID"),
        ("GET", "/api/v1/models?page=0", None, 400, "REQUEST_INVALID"),
        ("GET", "/api/v1/models?sort=luck", None, 400, "REQUEST_INVALID"),
        ("POST", "/api/v1/login", {"email": "x@example.com"}, 400, "REQUEST_INVALID"),
        ("POST", "/api/v1/login", {"email": "x@example.com", "password": "wrong one here"}, 401, "LOGIN_REFUSED"),
        ("POST", "/api/v1/organisations", {"kind": "city"}, 400, "REQUEST_INVALID"),
    ],
)
def test_every_refusal_has_the_one_bilingual_shape(client, method, path, body, status, code):
    answer = client.request(method, path, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) >= {"code", "message", "message_zh", "remedy", "remedy_zh", "request_id"}
    assert error["remedy_zh"]
    assert answer.headers["X-Request-Id"] == error["request_id"]


def test_a_body_that_is_not_json_is_refused_by_rule(client):
    answer = client.post("/api/v1/login", content=b"{not json", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"]["errors"][0]["rule"] == "json_invalid"


def test_a_missing_field_is_named_in_both_languages(client):
    error = client.post("/api/v1/login", json={"email": "x@example.com"}).json()["error"]
    assert error["field"] == "password"
    assert "必填" in error["message_zh"]


def test_a_request_keeps_the_id_that_its_client_gave_it(client):
    assert client.get("/api/v1/coverage", headers={"X-Request-Id": "line-7.42"}).headers["X-Request-Id"] == "line-7.42"
    forged = client.get("/api/v1/coverage", headers={"X-Request-Id": "a b\tc"}).headers["X-Request-Id"]
    assert forged.startswith("req_")


def test_the_api_describes_itself_and_offers_no_page_from_a_cdn(client):
    document = client.get("/openapi.json").json()
    for path in ("/api/v1/models", "/api/v1/keys", "/api/v1/organisations", "/api/v1/reviews", "/api/v1/coverage"):
        assert path in document["paths"]
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404


def test_an_empty_shelf_answers_every_axis(client):
    found = client.get("/api/v1/models", params={"q": "轴承", "tier": ["small", "app"]}).json()
    assert (found["items"], found["total"]) == ([], 0)
    assert set(found["facets"]) >= {"tier", "task", "link", "chain", "scenario", "price"}
    coverage = client.get("/api/v1/coverage").json()
    assert {tier: row["target"] for tier, row in coverage["counters"].items()} == {
        "base": 3,
        "vertical": 15,
        "small_or_app": 200,
    }


def test_a_factory_registers_waits_and_is_approved(client):
    body = {
        "kind": "enterprise",
        "name_zh": "东莞某厂",
        "slug": "some-works",
        "uscc": "914403001922038216",
        "email": "boss@example.com",
        "member_name": "王",
        "password": "a long sentence",
    }
    made = client.post("/api/v1/organisations", json=body)
    assert made.status_code == 201
    assert made.json()["organisation"]["status"] == "pending"
    taken = client.post("/api/v1/organisations", json=body)
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "SLUG_TAKEN")
    login = client.post("/api/v1/login", json={"email": body["email"], "password": body["password"]})
    assert login.status_code == 200
    assert client.post("/api/v1/keys", json={"name": "k"}).json()["error"]["code"] == "ORGANISATION_NOT_APPROVED"
