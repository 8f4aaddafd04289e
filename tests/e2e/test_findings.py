"""Findings over HTTP on a real market: real calls of one row, found, read, and decided at the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.e2e.test_market_node import MODEL, ROW, until, usage
from tests.live import LiveMarket
from tests.neighbours import ask

SAME = 120  # the programme's own threshold is 100


def algomart(market: LiveMarket, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "ALGOMART_URL": market.url,
        "ALGOMART_KEY": market.keys["operator"],
        "LC_ALL": "C.UTF-8",
    }
    command = [sys.executable, "-m", "marketplace.cli", "findings", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.fixture
def calls(live_market: LiveMarket) -> set[str]:
    """Paid by the demonstration's voucher, all of one row, and charged."""
    factory, chen = live_market.client("factory"), live_market.client("operator")
    filing = ask(chen.get("/api/v1/filings"))["items"][0]["number"]
    ask(chen.put(f"/api/v1/models/{MODEL}/filing", json={"filing": filing}))
    answered = {ask(factory.post(f"/v1/use/{MODEL}", json=ROW))["usage_id"] for _ in range(SAME)}
    until(lambda: answered <= set(usage(live_market)))
    return answered


def test_one_row_asked_again_and_again_is_found_and_a_person_decides(live_market: LiveMarket, calls: set[str]) -> None:
    factory, chen = live_market.client("factory"), live_market.client("operator")
    assert factory.get("/api/v1/findings").status_code == 403
    assert factory.post("/api/v1/findings/run").status_code == 403
    ran = algomart(live_market, "run", "--json")
    assert json.loads(ran.stdout)["found"] >= 1, ran.stderr
    found = ask(chen.get("/api/v1/findings", params={"code": "IDENTICAL_REQUESTS"}))["items"]
    finding = next(each for each in found if f"{MODEL}@" in each["text_en"])
    whole = ask(chen.get(f"/api/v1/findings/{finding['id']}"))
    assert whole["evidence"]["usage_count"] >= SAME
    for usage_id in whole["evidence"]["usage_ids"][:3]:
        traced = ask(chen.get(f"/api/v1/usage/{usage_id}"))
        assert traced["usage"]["usage_id"] == usage_id
    again = ask(chen.post("/api/v1/findings/run"))
    assert again["new"] == 0

    refused = chen.post(f"/api/v1/findings/{finding['id']}/dispose", json={"state": "dismissed", "reason": "x"})
    assert refused.json()["error"]["code"] == "FINDING_STATE"
    empty = chen.post(f"/api/v1/findings/{finding['id']}/dispose", json={"state": "under_review", "reason": " "})
    assert empty.json()["error"]["code"] == "REASON_REQUIRED"
    for state, is_unsettled in (("under_review", True), ("dismissed", False)):
        done = algomart(live_market, "dispose", finding["id"], state, "--reason", "a test's own calls")
        assert done.returncode == 0, done.stderr
        unsettled = ask(chen.get("/api/v1/findings", params={"state": "unsettled"}))["items"]
        assert (finding["id"] in {each["id"] for each in unsettled}) is is_unsettled
    shown = algomart(live_market, "show", finding["id"])
    assert "IDENTICAL_REQUESTS" in shown.stdout
    assert "a test's own calls" in shown.stdout
    listed = algomart(live_market, "list", "--state", "dismissed")
    assert finding["id"] in listed.stdout
    assert chen.get("/api/v1/findings/fnd_none").json()["error"]["code"] == "FINDING_NOT_FOUND"
