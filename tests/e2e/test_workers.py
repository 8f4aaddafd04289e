"""`algomart up --workers N`: several processes behind one port, which a caller cannot tell from one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from marketplace.doctor import examine, is_sound
from marketplace.settings import Settings
from tests.e2e.test_market_node import MODEL, ROW, until, usage
from tests.live import LiveMarket

PROCESSES = 3


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveMarket]:
    market = LiveMarket(tmp_path_factory.mktemp("workers") / "home", ALGOMART_WORKERS=str(PROCESSES))
    market.start()
    until(lambda: len(workers(market)) == PROCESSES - 1 and len(metrics(market)) == PROCESSES, "all workers are up")
    yield market
    market.stop()


def workers(market: LiveMarket) -> list[psutil.Process]:
    children = psutil.Process(market.pid).children()
    return [each for each in children if "serving.remote.worker" in " ".join(each.cmdline())]


def metrics(market: LiveMarket, name: str = "algomart_up_seconds") -> dict[str, float]:
    """A metric by node."""
    text = httpx.get(f"{market.url}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith(name + "{")]
    return {line.split('node="')[1].split('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def use(market: LiveMarket, **headers: str) -> httpx.Response:
    """On a connection of its own, so that the kernel deals it anew."""
    headers |= {"Authorization": f"Bearer {market.keys['factory']}"}
    return httpx.post(f"{market.url}/v1/use/{MODEL}", json=ROW, headers=headers, timeout=60, trust_env=False)


def test_calls_are_dealt_out_and_all_are_charged(market: LiveMarket) -> None:
    answers = [use(market) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["result"]["value"] for answer in answers}) == 1
    until(lambda: {answer.json()["usage_id"] for answer in answers} <= set(usage(market)))
    journalled = metrics(market, "algomart_journal_records_total")
    assert set(journalled) == {"local", "local-2", "local-3"}
    assert sum(count > 0 for count in journalled.values()) > 1
    assert sum(journalled.values()) >= 40


def test_one_idempotency_key_is_one_charge_whichever_process_is_asked(market: LiveMarket) -> None:
    for number in range(6):
        key = {"Idempotency-Key": f"shift-{number}"}
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda headers: use(market, **headers), [key] * 6))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["usage_id"] for answer in answers}) == 1
    other = {"inputs": {**ROW["inputs"], "AT": 1.0}}
    for _ in range(6):
        headers = {"Authorization": f"Bearer {market.keys['factory']}", "Idempotency-Key": "shift-0"}
        answer = httpx.post(f"{market.url}/v1/use/{MODEL}", json=other, headers=headers, trust_env=False)
        assert answer.json()["error"]["code"] == "IDEMPOTENCY_CONFLICT"


def test_pages_the_api_uploads_and_choosing_answer_on_every_connection(market: LiveMarket) -> None:
    rows = "环境温度,排汽真空,大气压,相对湿度,负荷\n" + "14.96,41.76,1024.07,73.17,463.26\n" * 30
    for _ in range(6):
        with httpx.Client(base_url=market.url, trust_env=False, follow_redirects=False) as visitor:
            assert visitor.get("/").status_code == 200
            assert visitor.get("/api/v1/models").json()["total"] > 0
            assert visitor.get("/nowhere").status_code == 404
            assert "ingest" in visitor.get("/v2/health/ready").json()
            visitor.headers["Authorization"] = f"Bearer {market.keys['factory']}"
            form = {"files": {"file": ("rows.csv", rows)}, "data": {"label_column": "负荷"}}
            made = visitor.post("/v1/sample-sets", **form)
            assert made.status_code == 201, made.text
            assert visitor.delete(f"/v1/sample-sets/{made.json()['id']}").status_code == 200


def test_no_outsider_is_taken_for_a_sibling(market: LiveMarket) -> None:
    for _ in range(6):
        forged = {"x-algomart-hop": "x", "x-algomart-client": "10.0.0.1", "x-forwarded-for": "10.0.0.1"}
        assert httpx.get(f"{market.url}/metrics", headers=forged, trust_env=False).status_code == 404


def test_a_killed_worker_is_started_again_and_what_it_had_answered_is_charged(market: LiveMarket) -> None:
    answered = {use(market).json()["usage_id"] for _ in range(20)}
    victim = workers(market)[0].pid
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(answered) < 40 and time.monotonic() < deadline:
        try:
            answered.add(use(market).json()["usage_id"])
        except httpx.TransportError:  # the connection that was dealt to the one that is gone
            continue
    assert len(answered) == 40, "the others go on answering"
    until(lambda: len(workers(market)) == PROCESSES - 1 and victim not in {each.pid for each in workers(market)})
    until(lambda: len(metrics(market)) == PROCESSES)
    until(lambda: answered <= set(usage(market)))


def test_nothing_is_lost_when_the_market_is_killed_and_started_with_fewer(market: LiveMarket) -> None:
    answered = {use(market).json()["usage_id"] for _ in range(20)}
    old = [each.pid for each in workers(market)]
    market.kill()
    until(lambda: not any(psutil.pid_exists(pid) for pid in old), "workers end with their market")
    market._environment["ALGOMART_WORKERS"] = "1"
    market.start()
    until(lambda: answered <= set(usage(market)))
    assert market.stop() == 0
    assert is_sound(examine(Settings(home=market.home)))
    market._environment["ALGOMART_WORKERS"] = str(PROCESSES)
    market.start()
    assert use(market).status_code == 200
