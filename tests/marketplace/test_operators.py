"""Two persons are two: no operator comes to hold another's account or key; what a key without `manage` may not do."""

import json
import re
from pathlib import Path

import pytest
from alembic import command as alembic
from typer.testing import CliRunner

from marketplace.cli import app as command_line
from marketplace.db import open_database, transaction
from marketplace.keys.service import create_key
from marketplace.migrations.upgrade import _config, upgrade
from marketplace.operators import disable_operator, invite_first_operator, invite_operator, list_operators
from marketplace.organisations.passwords import hash_password
from marketplace.organisations.tables import Member
from model_store.errors import Refusal
from tests.marketplace.shelf import add_organisation

PASSWORD = "a long sentence"


@pytest.fixture
def people(market) -> dict[str, str]:
    """Two operators and a factory's owner, who can log in; answers {name: a key of theirs}."""
    keys = {}
    with transaction(market.engine) as session:
        city, works = add_organisation(session, "city", "operator"), add_organisation(session, "works", "enterprise")
        for name, organisation in (("chen", city), ("lin", city), ("wang", works)):
            session.add(Member(id=f"mem_{name}", organisation_id=organisation.id, email=f"{name}@example.com",
                               name=name, role="owner", password_hash=hash_password(PASSWORD)))  # fmt: skip
            session.flush()
            _, keys[name] = create_key(
                session,
                organisation,
                name="k",
                scopes=["use", "manage", *(["admin"] if organisation is city else [])],
                actor="t",
                member_id=f"mem_{name}",
            )
    return keys


def login(client, name):
    assert client.post("/api/v1/login", json={"email": f"{name}@example.com", "password": PASSWORD}).status_code == 200


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("by", ["session", "admin key"])
def test_an_operator_cannot_make_or_take_over_another_operator(client, people, by):
    headers = bearer(people["chen"]) if by == "admin key" else {}
    if not headers:
        login(client, "chen")
    invited = client.post("/api/v1/members", json={"email": "new@example.com", "name": "新"}, headers=headers)
    reset = client.post("/api/v1/members/mem_lin/reset", headers=headers)
    own = client.post("/api/v1/members/mem_chen/reset", headers=headers)
    for answer in (invited, reset, own):
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "OPERATORS_BY_HOST")


def test_an_operator_cannot_come_by_a_colleague_s_key_but_can_stop_it(client, people):
    rows = client.get("/api/v1/keys", headers=bearer(people["chen"])).json()["items"]
    [other] = [row["id"] for row in rows if row["member_id"] == "mem_lin"]
    rotated = client.post(f"/api/v1/keys/{other}/rotate", headers=bearer(people["chen"]))
    assert (rotated.status_code, rotated.json()["error"]["code"]) == (404, "KEY_NOT_FOUND")
    assert client.delete(f"/api/v1/keys/{other}", headers=bearer(people["chen"])).json()["state"] == "revoked"
    assert client.get("/api/v1/me", headers=bearer(people["lin"])).status_code == 401


def test_a_factory_whose_owner_is_reset_by_the_operator_is_told(client, people):
    login(client, "chen")
    path = client.post("/api/v1/members/mem_wang/reset").json()["reset_path"]
    assert client.get(path).status_code == 200  # the page where the new password is set
    notices = client.get("/api/v1/notices", headers=bearer(people["wang"])).json()["items"]
    assert [notice["code"] for notice in notices] == ["PASSWORD_RESET_MADE"]


@pytest.fixture
def home(market, monkeypatch) -> Path:
    """The market's home, as `algomart operator` on the same machine finds it."""
    monkeypatch.setenv("ALGOMART_HOME", str(market.settings.home))
    monkeypatch.setenv("ALGOMART_DATABASE_URL", str(market.engine.url))
    return market.settings.home


def command(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command_line, ["operator", *words])
    return done.exit_code, done.output


def test_whoever_runs_the_machine_invites_resets_and_disables_operators(client, people, home):
    status, printed = command("invite", "zhao@example.com", "--name", "赵", "--json")
    assert status == 0
    token = json.loads(printed)["token"]
    accepted = client.post("/api/v1/members/accept", json={"token": token, "password": PASSWORD})
    assert accepted.json()["member"]["status"] == "active"
    login(client, "zhao")
    link = command("reset", "zhao@example.com")[1]
    assert client.get("/api/v1/me").status_code == 200  # a link alone ends nothing
    new = re.search(r"token=([\w-]+)", link).group(1)
    assert client.post("/api/v1/password/reset", json={"token": new, "password": "yet another one"}).status_code == 200
    assert client.get("/api/v1/me").status_code == 401
    assert command("disable", "zhao@example.com")[0] == 0
    listed = json.loads(command("list", "--json")[1])["items"]
    assert {row["email"]: row["status"] for row in listed}["zhao@example.com"] == "disabled"
    events = client.get("/api/v1/audit", headers=bearer(people["chen"])).json()["items"]
    made = {(row["action"], row["actor"]) for row in events}
    assert {("member.invite", "host"), ("member.reset_link", "host"), ("member.disable", "host")} <= made


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("reset", "wang@example.com"), "OPERATOR_NOT_FOUND"),  # a factory's; its own owners see to it
        (("invite", "no address", "--name", "x"), "EMAIL_INVALID"),
        (("invite", "lin@example.com", "--name", "x"), "EMAIL_TAKEN"),
    ],
)
def test_a_refusal_at_the_machine_names_the_remedy(people, home, words, code):
    status, printed = command(*words, "--json")
    assert (status, json.loads(printed)["error"]["code"]) == (1, code)
    status, printed = command(*words)
    assert status == 1
    assert code in printed


def test_a_folder_without_a_market_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("ALGOMART_DATABASE_URL", raising=False)
    status, printed = command("list", "--home", str(tmp_path))
    assert status == 1
    assert "NO_MARKET" in printed
    assert not list(tmp_path.iterdir())


def test_the_last_operator_cannot_be_disabled(engine, tmp_path):
    with pytest.raises(Refusal, match="never been started"):
        invite_operator(engine, "chen@example.com", "陈")
    assert invite_first_operator(engine, tmp_path)
    [first] = list_operators(engine)
    with transaction(engine) as session:
        session.get_one(Member, first.id).status = "active"
    with pytest.raises(Refusal) as caught:
        disable_operator(engine, first.email)
    assert caught.value.code == "LAST_OWNER"


# What a key with the scope `use` alone may change: its own answers to notices, its own life, what needs no account.
OPEN_TO_USE = {
    "POST /api/v1/notices/read",
    "DELETE /api/v1/keys/{key_id}",  # itself only
    "POST /api/v1/login",
    "POST /api/v1/logout",
    "POST /api/v1/organisations",
    "POST /api/v1/members/accept",
    "POST /api/v1/password/forgot",
    "POST /api/v1/password/reset",
    "POST /api/v1/public-notices/{application_id}/objections",  # anybody may object
}


@pytest.mark.parametrize("kind", ["enterprise", "vendor", "operator"])
def test_a_key_that_may_only_call_models_changes_nothing_else(client, market, kind):
    with transaction(market.engine) as session:
        organisation = add_organisation(session, "narrow", kind)
        row, key = create_key(session, organisation, name="line 3", scopes=["use"], actor="t")
        key_id = row.id
    paths = client.get("/openapi.json").json()["paths"]
    writes = [(method.upper(), path) for path in paths for method in paths[path] if method != "get"]
    assert len(writes) > 30
    allowed = set()
    for method, path in writes:
        body = {"email": "a@example.com", "name": "a"} if path == "/api/v1/members" else {}
        answer = client.request(method, re.sub(r"{[^}]*}", "x", path), headers=bearer(key), json=body)
        if path.startswith("/api/v1/node/"):  # no key at all is a node's token
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "NODE_TOKEN_INVALID"), path
        elif answer.status_code != 403:
            allowed.add(f"{method} {path}")
    assert allowed <= OPEN_TO_USE
    revoked = client.delete(f"/api/v1/keys/{key_id}", headers=bearer(key))
    assert revoked.json()["state"] == "revoked"


def test_keys_made_before_the_scope_keep_what_they_could_if_they_were_whole(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path / 'old.db'}")
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        alembic.upgrade(_config(connection), "0001")
        connection.exec_driver_sql(
            "INSERT INTO organisation (id, kind, name_zh, name_en, status, legal_person, controllers, town, is_demo, "
            "created_at_ms) VALUES ('org', 'enterprise', '厂', '', 'approved', '', '[]', '', 0, 1)"
        )
        for name, scopes in (("whole", '["use", "choose", "adapt", "publish"]'), ("narrow", '["use", "choose"]')):
            connection.exec_driver_sql(
                "INSERT INTO api_key (id, organisation_id, member_id, name, prefix, sha256, scopes, created_at_ms) "
                "VALUES (?, 'org', '', ?, 'am_', ?, ?, 1)",
                (name, name, name, scopes),
            )
    upgrade(engine)
    with engine.connect() as connection:
        found = dict(connection.exec_driver_sql("SELECT name, scopes FROM api_key").fetchall())
    assert {name: json.loads(scopes) for name, scopes in found.items()} == {
        "whole": ["use", "choose", "adapt", "publish", "manage"],
        "narrow": ["use", "choose"],
    }
