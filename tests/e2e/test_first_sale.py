"""The main job over HTTP, on a market in its own process: publish → review → subscribe → call → usage → ledger."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live import LiveMarket
from tests.marketplace.bundles import linear_onnx, linear_zip

PATH = "/v2/models/dongzhi--weighted/infer"
USAGE_ID = "x-usage-id"
CALL = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}


def eventually(look: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `look` answers once it is true. Ingest runs beside the calls."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found


def ok(response: Any, status: int = 200) -> Any:
    assert response.status_code == status, response.text
    return response.json()


@pytest.fixture(scope="module")
def sold(live_market: LiveMarket, tmp_path_factory) -> str:
    """`dongzhi/weighted`, published by the vendor at 0.37 fen a call, reviewed, filed, listed."""
    vendor, operator = live_market.client("vendor"), live_market.client("operator")
    content = linear_zip(tmp_path_factory.mktemp("weighted"), "dongzhi/weighted")
    made = ok(
        vendor.post("/api/v1/publish", files={"file": ("b.zip", content)}, data={"name": "dongzhi/weighted"}), 201
    )
    assert (made["name"], made["state"], made["report"]["passed"]) == ("dongzhi/weighted", "inspected", True)
    ok(vendor.post("/api/v1/models/dongzhi/weighted/prices", json={"fen_per_unit": "0.37"}), 201)
    submitted = ok(vendor.post(f"/api/v1/models/dongzhi/weighted/versions/{made['version']}/submit"), 201)
    refused = vendor.post(f"/api/v1/reviews/{submitted['review_id']}/approve")
    assert refused.status_code == 403
    ok(operator.post(f"/api/v1/reviews/{submitted['review_id']}/approve"))
    filing = ok(operator.get("/api/v1/filings"))["items"][0]["number"]
    ok(operator.put("/api/v1/models/dongzhi/weighted/filing", json={"filing": filing}))
    return "dongzhi/weighted"


@pytest.fixture(scope="module")
def contract(live_market: LiveMarket, sold: str) -> dict[str, Any]:
    """The factory's subscription to it; a call before it was refused."""
    factory = live_market.client("factory")
    refused = factory.post(PATH, json=CALL)
    assert (refused.status_code, refused.json()["code"]) == (402, "SUBSCRIPTION_REQUIRED")
    terms = {"listing": sold, "contract_fen": 100_000, "on_voucher_end": "refuse"}
    return ok(factory.post("/api/v1/subscriptions", json=terms), 201)


def test_subscribed_calls_are_charged_to_the_fen(live_market, sold, contract):
    factory, operator = live_market.client("factory"), live_market.client("operator")
    assert sum(part["amount_fen"] for part in contract["reservations"]) == 33_333
    mine = {"model": sold, "purpose": "use"}

    def usage() -> list[dict[str, Any]]:
        return [row for row in ok(factory.get("/api/v1/usage", params=mine))["items"] if row["model"] == f"{sold}@1"]

    earlier = {row["usage_id"] for row in usage()}
    calls = [factory.post(PATH, json=CALL) for _ in range(30)]
    assert all(ok(answer)["outputs"][0]["data"] == [10.0] for answer in calls)
    made = {answer.headers[USAGE_ID] for answer in calls}
    assert not made & earlier

    rows = eventually(
        lambda: (found := [row for row in usage() if row["usage_id"] in made]) and len(found) == 30 and found
    )
    assert {row["amount_micro"] for row in rows} == {370_000}
    assert {row["lease_kind"] for row in rows} == {"subsidised"}
    trace = ok(factory.get(f"/api/v1/usage/{rows[0]['usage_id']}"))
    assert trace["usage"]["price_version"] == rows[0]["price_version"]
    balance = ok(operator.get("/api/v1/ledger/trial-balance"))
    assert balance["balanced"]


def test_named_features_give_the_same_value(live_market, sold, contract):
    row = {"inputs": {"a": 1, "b": 1, "c": 1, "d": 2}}
    answer = ok(live_market.client("factory").post(f"/v1/use/{sold}", json=row))
    assert "14" in str(answer)


def test_a_private_model_is_its_own_organisation_s_alone_and_callable_at_once(live_market):
    engineer, vendor = live_market.client("engineer"), live_market.client("vendor")
    form = {"name": "demo-factory/secret", "private": "true"}
    ok(engineer.post("/api/v1/publish", files={"file": ("m.onnx", linear_onnx())}, data=form), 201)
    path = "/v2/models/demo-factory--secret/infer"
    assert ok(engineer.post(path, json=CALL))["outputs"][0]["data"] == [10.0]
    assert ok(live_market.client("factory").post(path, json=CALL))["outputs"][0]["data"] == [10.0]
    assert vendor.post(path, json=CALL).status_code == 404
    assert vendor.get("/api/v1/models/demo-factory/secret").status_code == 404


def test_what_is_sold_is_found_in_chinese(live_market, sold):
    found = ok(live_market.client().get("/api/v1/models", params={"q": "加权 测量"}))
    assert sold in [item["name"] for item in found["items"]]


def test_a_revoked_key_stops_at_the_data_plane_at_once(live_market, sold):
    factory = live_market.client("factory")
    made = ok(factory.post("/api/v1/keys", json={"name": "short", "scopes": ["use"]}), 201)
    other = live_market.client()
    other.headers["Authorization"] = f"Bearer {made['key']}"
    assert other.get("/v2/models/dongzhi--weighted").status_code == 200
    ok(factory.delete(f"/api/v1/keys/{made['id']}"))
    assert other.get("/v2/models/dongzhi--weighted").status_code == 401


def test_demo_keys_are_for_their_owner_only(live_market):
    for name in ("demo-keys.json", "demo-logins.json"):
        assert (live_market.home / name).stat().st_mode & 0o777 == 0o600
    assert list(live_market.keys) == ["operator", "operator2", "vendor", "factory", "engineer"]


def test_the_process_behind_the_port_never_loads_torch_or_mlflow(live_market, sold):
    libraries = Path(f"/proc/{live_market.pid}/maps").read_text(encoding="utf-8")
    assert "onnxruntime" in libraries
    assert "/torch/" not in libraries
    walk = (
        "import importlib, pkgutil, sys, marketplace, serving, model_store\n"
        "for package in (marketplace, serving, model_store):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if '.migrations.' not in module.name: importlib.import_module(module.name)\n"
        "print([name for name in ('torch', 'mlflow', 'transformers', 'peft', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", walk], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
