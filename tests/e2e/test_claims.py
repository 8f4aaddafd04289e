"""A claim over HTTP on a real market: called, charged, frozen, paid, traced; and what others may not do."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from marketplace.clock import now_ms, policy_date
from tests.e2e.test_market_node import MODEL, ROW, until, usage
from tests.live import LiveMarket
from tests.neighbours import ask


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    """Of its own: a batch takes whatever is charged of a programme."""
    market = LiveMarket(tmp_path_factory.mktemp("claims") / "home", like=demo_home)
    market.start()
    yield market
    market.stop()


def test_what_factories_used_is_claimed_and_paid_by_two_persons(market: LiveMarket, tmp_path: Path) -> None:
    factory, chen, lin = (market.client(name) for name in ("factory", "operator", "operator2"))
    voucher = ask(factory.get("/api/v1/vouchers"))["items"][0]
    filing = ask(chen.get("/api/v1/filings"))["items"][0]["number"]
    ask(chen.put(f"/api/v1/models/{MODEL}/filing", json={"filing": filing}))
    answered = {ask(factory.post(f"/v1/use/{MODEL}", json=ROW))["usage_id"] for _ in range(30)}
    until(lambda: answered <= set(usage(market)))
    day = policy_date(now_ms())
    period = {"from_day": date(day.year, 1, 1).isoformat(), "to_day": day.isoformat()}
    assert factory.post("/api/v1/claims", json=period | {"programme": voucher["programme"]}).status_code == 403
    batch = ask(chen.post("/api/v1/claims", json=period | {"programme": voucher["programme"]}))
    open_fen = sum(each["subsidy_fen"] for each in batch["candidates"] if not each["left_out"])
    assert open_fen > 0
    url = f"/api/v1/claims/{batch['id']}"
    frozen = ask(chen.post(f"{url}/freeze"))
    assert frozen["total_fen"] >= open_fen
    document = chen.get(f"{url}/document").content
    assert hashlib.sha256(document).hexdigest() == frozen["sha256"]
    for decision in ("submit", "review", "publish"):
        ask(chen.post(f"{url}/{decision}"))
    refused = chen.post(f"{url}/approve").json()["error"]
    assert refused["code"] in ("TWO_PERSONS", "NOTICE_RUNNING")
    ask(lin.post(f"{url}/approve"))
    payment = {"reference": "国库 2026-1", "paid_on": day.isoformat(), "amount_fen": frozen["total_fen"]}
    assert chen.post(f"{url}/pay", json=payment | {"amount_fen": 1}).json()["error"]["code"] == "PAYMENT_MISMATCH"
    ask(chen.post(f"{url}/pay", json=payment))
    assert chen.post(f"{url}/confirm-payment").json()["error"]["code"] == "TWO_PERSONS"
    paid = ask(lin.post(f"{url}/confirm-payment"))
    assert {line["state"] for line in paid["lines"]} == {"accepted"}
    assert ask(lin.post(f"{url}/reconcile"))["state"] == "reconciled"
    pool = next(row for row in ask(chen.get("/api/v1/pool"))["items"] if row["programme"] == voucher["programme"])
    assert pool["conserved"]
    assert pool["paid_fen"] >= frozen["total_fen"]
    assert ask(chen.get("/api/v1/ledger/rebuild"))["sound"]
    pack = tmp_path / "claim.zip"
    pack.write_bytes(chen.get(f"{url}/pack").content)
    verify = [sys.executable, "-m", "marketplace.cli", "verify", str(pack), "--json"]
    ran = subprocess.run(verify, check=False, capture_output=True, text=True)
    told = json.loads(ran.stdout)
    assert (ran.returncode, told["wrong"]) == (0, [])
    assert told["facts"]["total_fen"] == frozen["total_fen"]
    assert told["facts"]["usage_records"] == sum(line["usage_count"] for line in paid["lines"]) > 0
    claimed = next(iter(answered))
    taken_back = chen.post("/api/v1/corrections", json={"usage_id": claimed, "reason": "重复"}).json()["error"]
    assert taken_back["code"] == "CORRECTION_CLAIMED"
    (line, *_) = paid["lines"]
    opened = ask(chen.post("/api/v1/clawbacks", json={
        "line_id": line["id"], "amount_fen": line["subsidy_fen"], "reason": "虚假用量"}))  # fmt: skip
    assert chen.post(f"/api/v1/clawbacks/{opened['id']}/confirm").json()["error"]["code"] == "TWO_PERSONS"
    assert ask(lin.post(f"/api/v1/clawbacks/{opened['id']}/confirm"))["state"] == "confirmed"
    assert ask(chen.get("/api/v1/ledger/trial-balance"))["balanced"]
