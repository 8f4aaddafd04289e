"""Loading and unloading by order where several processes answer on one port: all have done it, or none has."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton

from tests.e2e.test_market_node import MODEL, until
from tests.e2e.test_workers import metrics, use, workers
from tests.live import LiveMarket
from tests.ports import free_port

PROCESSES = 3
PATH = MODEL.replace("/", "--")
OTHER = "dongzhi--board-defects-conv"


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    """In Triton's words, where what was unloaded by order is said to be so."""
    market = LiveMarket(
        tmp_path_factory.mktemp("orders") / "home",
        like=demo_home,
        ALGOMART_WORKERS=str(PROCESSES),
        ALGOMART_TRITON_COMPAT="true",
        ALGOMART_GRPC_PORT=str(free_port()),
    )
    market.start()
    until(lambda: len(metrics(market)) == PROCESSES, "all processes are up")
    yield market
    market.stop()


def bearer(market: LiveMarket, key: str = "operator") -> dict[str, str]:
    return {"authorization": f"Bearer {market.keys[key]}"}


def order(market: LiveMarket, verb: str, model: str = PATH) -> httpx.Response:
    """On a connection of its own, so that the kernel deals it anew."""
    url = f"{market.url}/v2/repository/models/{model}/{verb}"
    return httpx.post(url, headers=bearer(market), timeout=120, trust_env=False)


def order_by_grpc(market: LiveMarket, verb: str) -> None:
    with grpc_client(market) as client:
        (client.load_model if verb == "load" else client.unload_model)(PATH, headers=bearer(market))


def grpc_client(market: LiveMarket) -> Any:
    arguments = [("grpc.use_local_subchannel_pool", 1)]
    return triton.InferenceServerClient(f"127.0.0.1:{market.grpc_port}", channel_args=arguments)


def residents(market: LiveMarket) -> dict[str, float]:
    return metrics(market, "algomart_resident_models")


def told(client: httpx.Client, model: str) -> tuple[str, int]:
    """What the index says of a model, and the status of its readiness."""
    index = client.post("/v2/repository/index").json()
    (state,) = {each["state"] for each in index if each["name"] == model.partition("--")[2]}
    return state, client.get(f"/v2/models/{model}/ready").status_code


def told_everywhere(market: LiveMarket, model: str = PATH) -> set[tuple[str, int]]:
    """What several connections are told, of which each process surely has one."""
    found = set()
    for _ in range(16):
        with httpx.Client(base_url=market.url, headers=bearer(market), timeout=60, trust_env=False) as client:
            found.add(told(client, model))
    return found


READY, UNLOADED = {("READY", 200)}, {("UNAVAILABLE", 404)}


def test_load_and_unload_reach_every_process_whichever_is_asked(market: LiveMarket) -> None:
    before = residents(market)
    assert set(before) == {"local", "local-2", "local-3"}
    for number in range(8):
        for verb, more in (("load", 1), ("unload", 0)):
            if number % 2:
                order_by_grpc(market, verb)
            else:
                answer = order(market, verb)
                assert answer.status_code == 200, answer.text
            assert residents(market) == {node: count + more for node, count in before.items()}


def test_what_is_unloaded_is_not_ready_on_any_connection_until_it_is_called_on_one(market: LiveMarket) -> None:
    assert order(market, "load").status_code == 200
    assert told_everywhere(market) == READY
    assert order(market, "unload").status_code == 200
    assert told_everywhere(market) == UNLOADED
    for _ in range(6):
        with grpc_client(market) as client:
            assert not client.is_model_ready(PATH, headers=bearer(market))
    assert use(market).status_code == 200  # one process loads it
    assert told_everywhere(market) == READY
    with grpc_client(market) as client:
        index = client.get_model_repository_index(headers=bearer(market), as_json=True)["models"]
        assert {each["state"] for each in index} == {"READY"}


def test_a_process_that_is_started_again_agrees_with_the_others(market: LiveMarket) -> None:
    assert order(market, "unload").status_code == 200
    assert order(market, "load", OTHER).status_code == 200
    victim = workers(market)[0].pid
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in {each.pid for each in workers(market)} and len(metrics(market)) == PROCESSES)
    assert min(residents(market).values()) >= 1, "what was loaded by order is loaded there too, before any call"
    assert told_everywhere(market) == UNLOADED
    assert told_everywhere(market, OTHER) == READY
    assert order(market, "unload", OTHER).status_code == 200


def test_what_one_process_does_not_do_is_refused_and_taken_back_in_all(market: LiveMarket) -> None:
    assert order(market, "unload").status_code == 200
    before, victim = residents(market), workers(market)[0].pid
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(httpx.Client(base_url=market.url, headers=bearer(market), timeout=3, trust_env=False))
            for _ in range(12)
        ]
        assert all(client.get("/v2/health/live").status_code == 200 for client in clients)
        os.kill(victim, signal.SIGSTOP)
        try:
            client = next(each for each in clients if is_answered(each))
            answer = client.post(f"/v2/repository/models/{PATH}/load", timeout=120)
            assert (answer.status_code, answer.json()["code"]) == (503, "NOT_EVERYWHERE"), answer.text
            details = answer.json()["details"]
            assert (details["done"], details["processes"], details["reasons"]) == (2, 3, ["PROCESS_AWAY"])
            assert "2 of 3" in answer.json()["error"]
            assert {told(client, PATH)} == UNLOADED
        finally:
            os.kill(victim, signal.SIGCONT)
    until(lambda: metrics(market).keys() == before.keys(), "it answers again")
    deadline = time.monotonic() + 5  # in which it would have done what it had been told before it stood still
    while time.monotonic() < deadline:
        assert told_everywhere(market) == UNLOADED
    until(lambda: residents(market) == before, "the one that stood still has taken it back, too")
    assert order(market, "load").status_code == 200
    assert told_everywhere(market) == READY
    assert residents(market) == {node: count + 1 for node, count in before.items()}


def is_answered(client: httpx.Client) -> bool:
    try:
        return client.get("/v2/health/live").status_code == 200
    except httpx.TimeoutException:
        return False
