"""`algomart serve --market URL`: a node elsewhere; keys, prices and leases are the market's, as is the bill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from marketplace.doctor import examine, is_sound
from marketplace.settings import Settings
from tests.e2e.test_serve import RUN
from tests.live import LiveMarket
from tests.marketplace.bundles import linear_onnx, linear_zip
from tests.ports import free_port

MODEL = "dongzhi/plant-load-boosting"
ROW = {"inputs": {"AT": 14.96, "V": 41.76, "AP": 1024.07, "RH": 73.17}}


class MarketNode:
    """The program as it is started on another machine: the base install only, nothing of the market's folder."""

    def __init__(self, market: LiveMarket, folder: Path, name: str, token: str) -> None:
        self.folder, self.name = folder, name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._market, self._token = market, token
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.spawn()
        until(self.is_ready, self)

    def spawn(self) -> None:
        command = [sys.executable, "-c", RUN, "serve", "--market", self._market.url, "--home", str(self.folder)]
        environment = {key: each for key, each in os.environ.items() if not key.startswith("ALGOMART_")}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], env=environment | {"ALGOMART_NODE_TOKEN": self._token},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        try:
            return httpx.get(f"{self.url}/v2/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def said(self) -> str:
        assert self.process is not None
        return self.process.communicate(timeout=60)[0]

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(60)

    def use(self, key: str = "factory", model: str = MODEL) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._market.keys.get(key, key)}"}
        return httpx.post(f"{self.url}/v1/use/{model}", json=ROW, headers=headers, timeout=60, trust_env=False)


def until(holds: Callable[[], bool], what: object = "") -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.1)


def admitted(market: LiveMarket, *arguments: str) -> str:
    """What `algomart node add` prints, on the market's machine."""
    command = [sys.executable, "-m", "marketplace.cli", "node", "add", *arguments, "--home", str(market.home), "--json"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return str(json.loads(ran.stdout)["token"])


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    market = LiveMarket(tmp_path_factory.mktemp("market") / "home", like=demo_home)
    market.start()
    yield market
    if market.is_ready():
        market.stop()


@pytest.fixture
def node(market: LiveMarket, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MarketNode]:
    name = "edge-" + request.node.name[-30:].replace("_", "-").strip("-")
    node = MarketNode(market, tmp_path / "node", name, admitted(market, name))
    node.start()
    yield node
    node.stop()


def usage(market: LiveMarket, key: str = "factory") -> dict[str, Any]:
    items = market.client(key).get("/api/v1/usage", params={"page_size": 200}).json()["items"]
    return {row["usage_id"]: row for row in items}


def ledger_is_sound(market: LiveMarket) -> bool:
    operator = market.client("operator")
    rebuilt = operator.get("/api/v1/ledger/rebuild").json()
    return bool(rebuilt["sound"] and operator.get("/api/v1/ledger/trial-balance").json()["balanced"])


def epochs_of(market: LiveMarket, node: MarketNode) -> list[Any]:
    items = market.client("operator").get("/api/v1/nodes").json()["items"]
    return next(list(row["epochs"]) for row in items if row["name"] == node.name)


def test_a_call_at_a_node_elsewhere_is_charged_at_the_market_as_one_at_the_market_is(market, node) -> None:
    here = market.client("factory").post(f"/v1/use/{MODEL}", json=ROW).json()
    there = node.use().json()
    assert there["result"] == here["result"]
    assert there["charge"] == here["charge"]
    until(lambda: {here["usage_id"], there["usage_id"]} <= set(usage(market)))
    rows = usage(market)
    same = ("amount_micro", "lease_kind", "model", "status")
    assert [rows[there["usage_id"]][each] for each in same] == [rows[here["usage_id"]][each] for each in same]
    assert ledger_is_sound(market)
    assert not (node.folder / "market.db").exists()


def test_a_node_has_no_pages_and_says_where_choosing_is(market, node) -> None:
    headers = {"Authorization": f"Bearer {market.keys['factory']}"}
    with httpx.Client(base_url=node.url, headers=headers, trust_env=False) as client:
        assert client.get("/api/v1/models").status_code == 404
        refused = client.post("/v1/choose", json={})
        assert refused.status_code == 501
        assert market.url in refused.text
        assert {row["name"].replace("--", "/", 1) for row in client.post("/v2/repository/index").json()} >= {MODEL}


def test_a_revoked_key_and_a_new_price_hold_at_the_node_too(market, node) -> None:
    factory = market.client("factory")
    made = factory.post("/api/v1/keys", json={"name": "to be revoked", "scopes": ["use"]}).json()
    before = node.use(made["key"])
    assert before.status_code == 200, before.text
    assert factory.delete(f"/api/v1/keys/{made['id']}").status_code == 200
    until(lambda: node.use(made["key"]).status_code == 401)
    price = {"kind": "use", "unit": "calls", "micro_per_unit": 990_000}
    vendor = market.client("vendor")
    answer = vendor.post(f"/api/v1/models/{MODEL}/prices", json=price)
    assert answer.status_code in (200, 201), answer.text
    until(lambda: node.use().json()["charge"]["amount_micro"] == 990_000)


def test_what_a_killed_node_had_answered_is_posted_once_after_its_restart(market, node) -> None:
    answered = {node.use().json()["usage_id"] for _ in range(30)}
    node.stop(signal.SIGKILL)
    assert len(epochs_of(market, node)) == 1
    node.start()
    answered.add(node.use().json()["usage_id"])
    node.stop()
    until(lambda: answered <= set(usage(market)))
    assert epochs_of(market, node) == []
    assert ledger_is_sound(market)


def test_while_the_market_is_away_calls_go_on_within_their_leases_and_are_posted_afterwards(market, node) -> None:
    answered = {node.use().json()["usage_id"]}
    market.stop()
    answered |= {node.use().json()["usage_id"] for _ in range(3)}
    refused = node.use("am_" + "x" * 43)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "MARKET_UNREACHABLE"
    market.start()
    until(lambda: answered <= set(usage(market)))
    node.stop()
    market.stop()
    assert is_sound(examine(Settings(home=market.home)))
    market.start()


def test_a_node_of_one_organisation_answers_no_other_and_sees_no_foreign_private_model(market, tmp_path) -> None:
    form = {"name": "demo-factory/secret", "private": "true"}
    files = {"file": ("m.onnx", linear_onnx())}
    assert market.client("factory").post("/api/v1/publish", files=files, data=form).status_code == 201
    slug = market.client("vendor").get("/api/v1/me").json()["organisation"]["slug"]
    node = MarketNode(market, tmp_path / "node", "theirs", admitted(market, "theirs", "--organisation", slug))
    node.start()
    try:
        refused = node.use()
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "NODE_OTHER_ORGANISATION"
        headers = {"Authorization": f"Bearer {node._token}"}
        with httpx.Client(base_url=market.url, headers=headers, trust_env=False) as client:
            told = client.get("/api/v1/node/catalogue").json()["entries"]
            assert MODEL in {entry["name"] for entry in told}
            assert "demo-factory/secret" not in {entry["name"] for entry in told}
            (secret,) = market.client("factory").get("/api/v1/models/demo-factory/secret").json()["versions"]
            assert client.get(f"/api/v1/node/bundles/{secret['digest']}").status_code == 404
            lease = {"key_id": "", "organisation": "org_of_another", "listing_id": "x", "epoch": 1, "need_micro": 0}
            answer = client.post("/api/v1/node/leases", json=lease | {"purpose": "use", "held": {}})
            assert answer.json()["error"]["code"] == "NODE_OTHER_ORGANISATION"
    finally:
        node.stop()


def test_a_factory_s_node_gets_no_version_that_is_not_listed(market, tmp_path) -> None:
    files = {"file": ("b.zip", linear_zip(tmp_path / "draft", "dongzhi/not-yet-listed"))}
    form = {"name": "dongzhi/not-yet-listed"}
    published = market.client("vendor").post("/api/v1/publish", files=files, data=form)
    assert published.status_code == 201, published.text
    slug = market.client("factory").get("/api/v1/me").json()["organisation"]["slug"]
    for name, organisation, sees in (("factory-s", ["--organisation", slug], False), ("city-s", [], True)):
        headers = {"Authorization": f"Bearer {admitted(market, name, *organisation)}"}
        with httpx.Client(base_url=market.url, headers=headers, trust_env=False) as client:
            entries = client.get("/api/v1/node/catalogue").json()["entries"]
            assert MODEL in {entry["name"] for entry in entries}
            assert ("dongzhi/not-yet-listed" in {entry["name"] for entry in entries}) is sees


def test_a_second_process_under_one_token_and_a_wrong_token_are_refused(market, node, tmp_path) -> None:
    double = MarketNode(market, tmp_path / "other", node.name, node._token)
    double.spawn()
    assert "EPOCH_OPEN" in double.said()
    stranger = MarketNode(market, tmp_path / "third", "stranger", "amn_" + "x" * 43)
    stranger.spawn()
    assert "NODE_TOKEN_INVALID" in stranger.said()
    key_instead = MarketNode(market, tmp_path / "fourth", "key", market.keys["operator"])
    key_instead.spawn()
    assert "NODE_TOKEN_INVALID" in key_instead.said()
