"""The pages: both languages, search, a strict content policy, nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from marketplace.access import SESSION_COOKIE
from marketplace.clock import now_ms
from marketplace.db import transaction
from marketplace.market import Market
from marketplace.organisations.members import open_session
from marketplace.organisations.registration import add_member
from marketplace.web.rendering import FOLDER, words
from tests.marketplace.shelf import add_listing, add_organisation, add_version

MANIFEST = {
    "features": [
        {"name": "speed", "kind": "number", "title_zh": "转速", "title_en": "Speed", "unit": "rpm", "example": 3},
    ],
    "metrics": [{"name": "auc", "value": 0.93, "low": 0.9, "high": 0.95, "rows": 200}],
}


@pytest.fixture(autouse=True)
def goods(market: Market) -> None:
    with transaction(market.engine) as session:
        add_organisation(session, "vendor")
        bearing = add_listing(session, "vendor/bearing", title_zh="轴承故障诊断", title_en="Bearing fault diagnosis")
        add_version(session, bearing, manifest=MANIFEST)
        add_listing(session, "vendor/steel", title_zh="钢材消费预测", title_en="Steel demand")
    market.catalogue_changed()


def test_every_message_is_there_in_both_languages() -> None:
    assert all(set(each) == {"zh", "en"} and each["zh"] and each["en"] for each in words().values())
    used = {key for page in FOLDER.glob("templates/*.html") for key in re.findall(r"\bt\('(\w+)'\)", page.read_text())}
    assert used <= words().keys()


# Examples of what to type, units and formats: the same in every language. 算 is the brand's mark.
IN_EVERY_LANGUAGE = {"算", "vendor", "name", "voucher", "approve", "invoice", "发票", "Invoice", "KiB", "CSV"}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("templates/*.html")), ids=lambda path: path.name)
def test_no_text_of_a_page_stands_outside_a_pair_of_languages(path: Path) -> None:
    written = re.sub(r"\{#.*?#\}|\{\{.*?\}\}|\{%.*?%\}", "", path.read_text(encoding="utf-8"), flags=re.S)
    shown = [re.sub(r"<[^>]*>", " ", written), *re.findall(r'(?:placeholder|aria-label|title|alt)="([^"]*)"', written)]
    found = {word for part in shown for word in re.findall(r"[一-鿿]+|[A-Za-z]{3,}", part)}
    assert found <= IN_EVERY_LANGUAGE


@pytest.mark.parametrize("path", sorted(FOLDER.glob("templates/*.html")), ids=lambda path: path.name)
def test_each_pair_has_both_halves(path: Path) -> None:
    for zh, en in re.findall(r"\bw\('([^']*)', '([^']*)'\)", path.read_text(encoding="utf-8")):
        assert re.search("[一-鿿]", zh), (zh, en)
        assert re.search("[A-Za-z]{2}", en), (zh, en)


def test_the_shelf_speaks_chinese_first_and_english_on_request_and_remembers(client: TestClient) -> None:
    assert "轴承故障诊断" in client.get("/").text
    assert "Bearing fault diagnosis" in client.get("/?lang=en").text
    assert 'lang="en"' in client.get("/").text


@pytest.mark.parametrize("query", ["轴承", "bearing", "转速", "speed"])
def test_search_finds_in_both_languages(client: TestClient, query: str) -> None:
    text = client.get("/", params={"q": query}).text
    assert "/models/vendor/bearing" in text
    assert "/models/vendor/steel" not in text


@pytest.mark.parametrize("path", ["/", "/models/vendor/bearing", "/login", "/models/vendor/none"])
def test_a_page_loads_nothing_from_elsewhere_and_runs_no_script(client: TestClient, market: Market, path: str) -> None:
    answer = client.get(path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert all(url.startswith(market.settings.url) for url in re.findall(r"https?://[^\s\"&<]+", answer.text))
    assert not re.search(r'(src|href|action)="(https?:)?//', answer.text)


def test_the_model_page_shows_interval_unit_and_a_way_in(client: TestClient) -> None:
    text = client.get("/models/vendor/bearing?lang=en").text
    assert "0.9 – 0.95" in text
    assert "rpm" in text
    assert "/login?next=/models/vendor/bearing" in text


def test_a_wrong_password_is_said_in_words(client: TestClient) -> None:
    answer = client.post("/login", data={"email": "a@b.cn", "password": "wrong"})
    assert answer.status_code == 401
    assert "LOGIN_REFUSED" in answer.text


def test_the_desks_open_to_their_people_only(client: TestClient, market: Market) -> None:
    assert client.get("/console", follow_redirects=False).headers["location"] == "/login?next=/console"
    for kind, city in (("enterprise", 403), ("operator", 200)):
        with transaction(market.engine) as session:
            organisation = add_organisation(session, f"people-{kind}", kind)
            member = add_member(session, organisation, email=f"{kind}@b.cn", name="王", role="owner")
            member.status = "active"
            client.cookies.set(SESSION_COOKIE, open_session(session, member, now_ms()))
        assert "控制台" in client.get("/console").text
        assert client.get("/city").status_code == city
        assert client.get("/console/usage/none").status_code == 404
        assert 'name="f.speed"' in client.get("/models/vendor/bearing").text
        answer = client.post("/models/vendor/bearing/try", files={"f.speed": (None, "4")})
        assert "DATAPLANE_UNAVAILABLE" in answer.text
        assert 'value="4"' in answer.text


def test_who_meets_another_writer_gets_a_page_that_says_so_and_nothing_was_done(
    client: TestClient, market: Market
) -> None:
    with transaction(market.engine) as session:
        member = add_member(session, add_organisation(session, "busy"), email="b@b.cn", name="王", role="owner")
        member.status = "active"
        client.cookies.set(SESSION_COOKIE, open_session(session, member, now_ms()))

    @event.listens_for(market.engine, "begin", insert=True)
    def _impatient(connection: Any) -> None:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")  # a writer waits half a minute otherwise

    with transaction(market.engine):
        pages = {language: client.post(f"/logout?lang={language}") for language in ("zh", "en")}
    for answer in pages.values():
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["content-type"].startswith("text/html")
        assert "DATABASE_BUSY" in answer.text
    assert "本次更改未生效" in pages["zh"].text
    assert "请稍后重试" in pages["zh"].text
    assert "this one was not made" in pages["en"].text
    assert "send it again" in pages["en"].text
    assert client.get("/console", follow_redirects=False).status_code == 200  # still logged in
    assert client.post("/logout", follow_redirects=False).status_code == 303
    assert client.get("/console", follow_redirects=False).status_code == 303
