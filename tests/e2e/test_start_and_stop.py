"""A market starts, stops, is killed, and starts again with everything it had."""

from __future__ import annotations

import json

import httpx
import pytest

from marketplace.doctor import examine, is_sound
from marketplace.settings import Settings
from tests.live import LiveMarket
from tests.marketplace.bundles import linear_onnx

CALL = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}


@pytest.fixture(scope="module")
def production(tmp_path_factory):
    """A market without demonstration."""
    market = LiveMarket(tmp_path_factory.mktemp("production") / "home", demo=False)
    market.start()
    yield market
    market.stop()


def publish(market: LiveMarket) -> None:
    form = {"name": "demo-factory/kept", "private": "true"}
    answer = market.client("factory").post("/api/v1/publish", files={"file": ("m.onnx", linear_onnx())}, data=form)
    assert answer.status_code == 201, answer.text


def call(market: LiveMarket) -> int:
    return market.client("factory").post("/v2/models/demo-factory--kept/infer", json=CALL).status_code


def test_a_market_keeps_its_keys_and_models_over_a_stop_and_over_a_kill(tmp_path, demo_home):
    market = LiveMarket(tmp_path / "home", like=demo_home)
    market.start()
    keys = dict(market.keys)
    publish(market)
    assert call(market) == 200
    assert market.stop() == 0
    assert is_sound(examine(Settings(home=market.home)))
    market.start()
    assert market.keys == keys
    assert call(market) == 200
    market.kill()
    market.start()
    assert market.keys == keys
    assert call(market) == 200
    usage = market.client("factory").get("/api/v1/usage").json()["items"]
    assert (
        len([row for row in usage if row["model"] == "demo-factory/kept@1"]) >= 2
    )  # those before the stop and the kill
    second = LiveMarket(market.home)
    with pytest.raises(AssertionError, match="HOME_IN_USE"):
        second.start()
    taken = LiveMarket(tmp_path / "other", ALGOMART_PORT=str(market.port))
    with pytest.raises(AssertionError, match="PORT_IN_USE"):
        taken.start()
    market.stop()


def test_a_setting_that_cannot_be_meant_is_refused_before_anything_is_made(tmp_path):
    wrong = LiveMarket(tmp_path / "home", ALGOMART_TRUSTED_PROXIES="*")
    with pytest.raises(AssertionError, match=r"(?s)TRUSTED_PROXIES_INVALID.*ALGOMART_TRUSTED_PROXIES"):
        wrong.start()
    assert not (wrong.home / "market.db").exists()


def test_a_production_market_has_no_demonstration_and_invites_its_first_operator(production):
    assert not (production.home / "demo-keys.json").exists()
    assert production.client().get("/api/v1/models").json()["total"] == 0
    path = production.home / "operator-invitation.json"
    assert path.stat().st_mode & 0o777 == 0o600
    invitation = json.loads(path.read_text(encoding="utf-8"))
    body = {"token": invitation["token"], "password": "the first operator"}
    client = production.client()
    assert client.post("/api/v1/members/accept", json=body).status_code == 200
    login = {"email": invitation["email"], "password": "the first operator"}
    assert client.post("/api/v1/login", json=login).json()["organisation"]["kind"] == "operator"
    programmes = client.get("/api/v1/programmes").json()["items"]
    assert {(row["state"], row["is_demo"]) for row in programmes} == {("draft", False)}


def test_a_production_market_lets_a_factory_register_and_an_operator_approve(production):
    visitor = httpx.Client(base_url=production.url, trust_env=False)
    body = {"kind": "vendor", "name_zh": "某供应商", "slug": "some-vendor", "email": "v@example.com",
            "member_name": "周", "password": "a long sentence"}  # fmt: skip
    assert visitor.post("/api/v1/organisations", json=body).json()["organisation"]["status"] == "pending"
    visitor.close()
