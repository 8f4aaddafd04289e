"""The access log and OpenTelemetry of a real market: what is written, what never is, and that neither is on unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_market_node import MODEL, ROW, until
from tests.live import LiveMarket
from tests.neighbours import ask
from tests.otlp import Collector

HOT = "lingnan--steel-faults-linear"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()


@pytest.fixture(scope="module")
def log_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "access.log"


@pytest.fixture(scope="module")
def market(tmp_path_factory, demo_home: Path, collector: Collector, log_path: Path) -> Iterator[LiveMarket]:
    home = tmp_path_factory.mktemp("observed") / "home"
    settings = {"ALGOMART_ACCESS_LOG": str(log_path), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    market = LiveMarket(home, like=demo_home, **settings, OTEL_BSP_SCHEDULE_DELAY="200")
    market.start()
    yield market
    market.stop()


def infer(market: LiveMarket, **headers: str) -> Any:
    factory = market.client("factory")
    (tensor,) = ask(factory.get(f"/v2/models/{HOT}"))["inputs"]
    shape = [1 if size < 0 else size for size in tensor["shape"]]
    tensor |= {"shape": shape, "data": [0.5] * shape[-1]}
    return factory.post(f"/v2/models/{HOT}/infer", json={"inputs": [tensor]}, headers=headers)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def line_of(path: Path, request_id: str) -> dict[str, Any]:
    until(lambda: any(line.get("request_id") == request_id for line in lines(path)), request_id)
    return next(line for line in lines(path) if line.get("request_id") == request_id)


def test_each_request_has_a_line_with_its_usage_id_and_nothing_secret(market: LiveMarket, log_path: Path) -> None:
    unsampled = f"00-{TRACE}-{CALLER}-00"
    for _ in range(3):  # loaded, leased and known by now: the next one takes the hot path
        infer(market, traceparent=unsampled)
    answer = infer(market, **{"X-Request-Id": "hot-2", "traceparent": unsampled})
    hot = line_of(log_path, "hot-2")
    assert (hot["status"], hot["rows"], hot["model"]) == (200, 1, HOT.replace("--", "/", 1) + "@1")
    assert (hot["path"], hot["organisation"][:4], hot["key_id"][:4]) == (f"/v2/models/{HOT}/infer", "org_", "key_")
    assert hot["usage_id"] == answer.headers["x-usage-id"]
    assert hot["compute_ms"] > 0
    assert (hot["bytes_in"], hot["bytes_out"]) == (len(answer.request.content), len(answer.content))
    factory = market.client("factory")
    used = factory.post(f"/v1/use/{MODEL}?secret=query", json=ROW, headers={"X-Request-Id": "use-1"})
    line = line_of(log_path, "use-1")
    assert line["usage_id"] == used.json()["usage_id"]
    assert line["bytes_out"] == len(used.content)
    assert line["bytes_in"] > 0
    assert (line["model"].rpartition("@")[0], line["rows"]) == (MODEL, 1)
    assert line["total_ms"] > line["compute_ms"] > 0
    factory.post(f"/v1/use/{MODEL}", json={"inputs": {}}, headers={"X-Request-Id": "refused-1"})
    assert (line_of(log_path, "refused-1")["status"], line_of(log_path, "refused-1")["code"]) == (
        400,
        "FEATURE_MISSING",
    )
    market.client().get("/v2", headers={"X-Request-Id": "nobody-1"})
    assert line_of(log_path, "nobody-1")["status"] == 401
    factory.get("/api/v1/models", headers={"X-Request-Id": "page-1"})
    assert line_of(log_path, "page-1")["path"] == "/api/v1/models"
    text = log_path.read_text(encoding="utf-8")
    assert "secret" not in text
    assert "14.96" not in text
    assert not [key for key in market.keys.values() if key in text]
    assert "algomart_access_log_dropped_total 0\n" in market.client().get("/metrics").text


def test_a_log_that_was_moved_away_is_begun_anew(market: LiveMarket, log_path: Path) -> None:
    infer(market, **{"X-Request-Id": "before-1"})
    line_of(log_path, "before-1")
    moved = log_path.rename(log_path.with_suffix(".1"))
    infer(market, **{"X-Request-Id": "after-1"})
    assert line_of(log_path, "after-1")["status"] == 200
    assert "after-1" not in moved.read_text(encoding="utf-8")


def test_a_traced_call_is_a_child_of_its_caller_with_its_run_below(market: LiveMarket, collector: Collector) -> None:
    infer(market)
    before = len(collector.spans)
    infer(market, traceparent=f"00-{TRACE}-{CALLER}-01")
    until(lambda: any(span.trace_id.hex() == TRACE and span.name == "run" for span in collector.spans), "the run")
    mine = {span.name: span for span in collector.spans[before:] if span.trace_id.hex() == TRACE}
    request, run = mine["POST"], mine["run"]
    assert request.parent_span_id.hex() == CALLER
    assert run.parent_span_id == request.span_id
    assert request.start_time_unix_nano <= run.start_time_unix_nano <= run.end_time_unix_nano
    told = {each.key: each.value for each in run.attributes}
    assert told["algomart.model"].string_value == HOT.replace("--", "/", 1)
    assert told["algomart.rows"].int_value == 1
    status = {each.key: each.value for each in request.attributes}["http.response.status_code"]
    assert status.int_value == 200


def test_what_the_caller_does_not_sample_is_not_sent(market: LiveMarket, collector: Collector) -> None:
    other = "1" * 32
    assert infer(market, traceparent=f"00-{other}-{CALLER}-00").status_code == 200
    infer(market, traceparent=f"00-{'2' * 32}-{CALLER}-01")
    until(lambda: any(span.trace_id.hex() == "2" * 32 for span in collector.spans))
    assert not [span for span in collector.spans if span.trace_id.hex() == other]


def test_nothing_of_it_is_imported_where_it_is_off() -> None:
    look = "import sys, serving.app, serving.http_protocol; print([n for n in sys.modules if 'opentel' in n])"
    ran = subprocess.run([sys.executable, "-c", look], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"
