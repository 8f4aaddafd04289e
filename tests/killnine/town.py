"""What stands in the market before the first kill: a model under the voucher, one at own cost, a free private one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from tests.killnine.clients import Work
from tests.live import LiveMarket
from tests.marketplace.bundles import WEIGHTS, linear_onnx, linear_zip

PAID = "dongzhi/weighted"  # 0.37 fen a call, a third of it from the voucher
OWN_COST = "lingnan/plant-load-linear"  # a starter without filing: 0.06 fen a row, the factory's own
PRIVATE = "demo-factory/secret"  # free, and run in a limited worker process
CONTRACT_FEN = 900_000
LINEAR = tuple(float(weight) for weight in WEIGHTS[:, 0])


def ok(response: httpx.Response) -> Any:
    assert response.is_success, response.text
    return response.json()


def prepare(market: LiveMarket, folder: Path, clients: int) -> list[Work]:
    """Publish, price, review, subscribe; and one key per client, so that each client's usage can be told apart."""
    vendor, operator = market.client("vendor"), market.client("operator")
    factory, engineer = market.client("factory"), market.client("engineer")
    content = linear_zip(folder / "weighted", PAID)
    made = ok(vendor.post("/api/v1/publish", files={"file": ("b.zip", content)}, data={"name": PAID}))
    ok(vendor.post(f"/api/v1/models/{PAID}/prices", json={"fen_per_unit": "0.37"}))
    review = ok(vendor.post(f"/api/v1/models/{PAID}/versions/{made['version']}/submit"))
    ok(operator.post(f"/api/v1/reviews/{review['review_id']}/approve"))
    filing = ok(operator.get("/api/v1/filings"))["items"][0]["number"]
    ok(operator.put(f"/api/v1/models/{PAID}/filing", json={"filing": filing}))
    terms = {"listing": PAID, "contract_fen": CONTRACT_FEN, "on_voucher_end": "refuse"}
    ok(factory.post("/api/v1/subscriptions", json=terms))
    form = {"name": PRIVATE, "private": "true"}
    ok(engineer.post("/api/v1/publish", files={"file": ("m.onnx", linear_onnx())}, data=form))
    return [_work(factory, number) for number in range(clients)]


def _work(factory: httpx.Client, number: int) -> Work:
    """Of eight clients five call the paid model (two of them with idempotency keys), two at own cost, one the private
    one."""
    name = f"client-{number}"
    key = ok(factory.post("/api/v1/keys", json={"name": name, "scopes": ["use"]}))
    model, tensor, weights = {5: (OWN_COST, "features", None), 6: (OWN_COST, "features", None),
                              7: (PRIVATE, "x", LINEAR)}.get(number % 8, (PAID, "x", LINEAR))  # fmt: skip
    return Work(number, name, key["key"], key["id"], model, tensor, weights, 4, repeats=number % 8 in (3, 4, 6))


def wait_until(look: Any, seconds: float, what: str) -> None:
    """Poll until `look()` is true; `AssertionError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
