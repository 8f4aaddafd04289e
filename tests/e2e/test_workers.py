"""`algomart up --workers N`: several processes behind one port, which a caller cannot tell from one."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from marketplace.doctor import examine
from marketplace.settings import Settings
from tests.e2e.test_market_node import MODEL, ROW, until, usage
from tests.live import LiveMarket
from tests.marketplace.bundles import WEIGHTS, linear_onnx
from tests.ports import free_port

PROCESSES = 3


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    environment = {"ALGOMART_WORKERS": str(PROCESSES), "ALGOMART_GRPC_PORT": str(free_port())}
    market = LiveMarket(tmp_path_factory.mktemp("workers") / "home", like=demo_home, **environment)
    market.start()
    until(lambda: len(workers(market)) == PROCESSES - 1 and len(metrics(market)) == PROCESSES, "all workers are up")
    yield market
    market.stop()


def workers(market: LiveMarket) -> list[psutil.Process]:
    children = psutil.Process(market.pid).children()
    return [each for each in children if "serving.remote.worker" in " ".join(command(each))]


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # it has ended, and its parent has not looked yet
        return []


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


def over_grpc(market: LiveMarket, key: str = "", stream: bool = False) -> Any:
    """The answer's parameters, or the refusal's status, of a call on a connection of its own."""
    tensor = triton.InferInput("features", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[14.96, 41.76, 1024.07, 73.17]], np.float32))
    headers = {"authorization": f"Bearer {market.keys['factory']}"} | ({"idempotency-key": key} if key else {})
    arguments = [("grpc.use_local_subchannel_pool", 1)]
    with triton.InferenceServerClient(f"127.0.0.1:{market.grpc_port}", channel_args=arguments) as client:
        try:
            if not stream:
                return client.infer(MODEL, [tensor], headers=headers).get_response().parameters
            answers: list[Any] = []
            client.start_stream(lambda result, error: answers.append(error or result), headers=headers)
            client.async_stream_infer(MODEL, [tensor])
            client.stop_stream()
            return answers[0].get_response().parameters
        except triton.InferenceServerException as error:
            return error.status()


def test_grpc_is_answered_by_every_process_on_one_port(market: LiveMarket) -> None:
    before = metrics(market, "algomart_journal_records_total")
    answered: set[str] = set()
    deadline = time.monotonic() + 60
    while len(more := {node for node, count in metrics(market, "algomart_journal_records_total").items()
                       if count > before[node]}) < PROCESSES:  # fmt: skip
        assert time.monotonic() < deadline, f"only {more} got calls"
        answered |= {over_grpc(market)["usage_id"].string_param for _ in range(10)}
    until(lambda: answered <= set(usage(market)))


def test_an_idempotency_key_is_one_charge_over_grpc_and_is_known_over_http(market: LiveMarket) -> None:
    for number in range(4):
        key = f"rpc-{number}"
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(lambda stream, key=key: over_grpc(market, key, stream), [False] * 4 + [True]))
        assert len({answer["usage_id"].string_param for answer in answers}) == 1, answers
        told = use(market, **{"Idempotency-Key": key}).json()
        assert told["error"]["code"] == "IDEMPOTENCY_CONFLICT"  # not the same bytes
    with triton.InferenceServerClient(f"127.0.0.1:{market.grpc_port}") as client:  # refused by the key's own process
        tensor = triton.InferInput("features", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        for number in range(4):
            headers = {"authorization": f"Bearer {market.keys['factory']}", "idempotency-key": f"rpc-{number}"}
            with pytest.raises(triton.InferenceServerException, match="IDEMPOTENCY_CONFLICT") as refused:
                client.infer(MODEL, [tensor], headers=headers)
            assert refused.value.status() == "StatusCode.ALREADY_EXISTS"


def test_a_key_s_rate_is_the_same_however_many_processes_answer(market: LiveMarket) -> None:
    limits = {"name": "line 3", "scopes": ["use"], "rate_per_s": 1, "burst": 6}
    key = market.client("factory").post("/api/v1/keys", json=limits).json()["key"]
    started = time.monotonic()
    codes = [
        httpx.post(f"{market.url}/v1/use/{MODEL}", json=ROW, headers={"X-API-Key": key}, trust_env=False).status_code
        for _ in range(40)
    ]
    assert set(codes) == {200, 429}
    assert 6 <= codes.count(200) <= 7 + time.monotonic() - started


def everywhere(market: LiveMarket, path: str) -> list[Any]:
    """What several connections, dealt anew, are told."""
    headers = {"Authorization": f"Bearer {market.keys['factory']}"}
    return [httpx.get(f"{market.url}{path}", headers=headers, trust_env=False).json() for _ in range(8)]


def test_statistics_and_drift_are_those_of_all_processes_whichever_is_asked(market: LiveMarket) -> None:
    def rows(told: Any) -> int:
        return sum(each["inference_count"] for each in told["model_stats"])

    ours = f"/v2/models/{MODEL.replace('/', '--')}/stats"
    before, drifted = rows(everywhere(market, ours)[0]), everywhere(market, f"/v1/drift/{MODEL}")[0]
    for _ in range(30):
        assert use(market).status_code == 200
    assert {rows(told) for told in everywhere(market, ours)} == {before + 30}
    in_all = everywhere(market, "/v2/models/stats")
    assert len({rows(told) for told in in_all}) == 1
    assert any(entry["inference_count"] >= before + 30 for entry in in_all[0]["model_stats"])
    seen = [told["features"]["ambient_temperature"]["rows"] for told in everywhere(market, f"/v1/drift/{MODEL}")]
    assert set(seen) == {drifted["features"]["ambient_temperature"]["rows"] + 30}
    with triton.InferenceServerClient(f"127.0.0.1:{market.grpc_port}") as client:
        headers = {"authorization": f"Bearer {market.keys['factory']}"}
        told = client.get_inference_statistics(MODEL, headers=headers, as_json=True)
        assert int(told["model_stats"][0]["inference_count"]) == before + 30


def published(market: LiveMarket, name: str, factor: float) -> None:
    files = {"file": ("m.onnx", linear_onnx(WEIGHTS * np.float32(factor)))}
    answer = market.client("factory").post("/api/v1/publish", files=files, data={"name": name, "private": "true"})
    assert answer.status_code == 201, answer.text


def infer(market: LiveMarket, path: str) -> tuple[int, float]:
    """Status and value."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 1, 1, 1]}
    headers = {"Authorization": f"Bearer {market.keys['factory']}"}
    answer = httpx.post(f"{market.url}{path}", json={"inputs": [tensor]}, headers=headers, timeout=60, trust_env=False)
    return answer.status_code, answer.json()["outputs"][0]["data"][0] if answer.status_code == 200 else 0.0


def test_no_call_fails_while_a_version_is_published_and_an_alias_moves(market: LiveMarket) -> None:
    name, factory = "demo-factory/hot", market.client("factory")
    published(market, name, 1)
    alias = f"/api/v1/models/{name}/aliases/production"
    assert factory.put(alias, json={"version": 1}).status_code == 200
    path = f"/v2/models/{name.replace('/', '--')}"
    by_alias, by_name = f"{path}/versions/production/infer", f"{path}/infer"
    until(lambda: {infer(market, by_alias) for _ in range(8)} == {(200, 10.0)})
    answers: list[tuple[int, float]] = []
    moved = threading.Event()

    def call_on(path: str) -> None:
        while not moved.is_set():
            answers.append(infer(market, path))

    callers = [threading.Thread(target=call_on, args=(each,)) for each in (by_alias, by_name)]
    for caller in callers:
        caller.start()
    published(market, name, 2)
    assert factory.put(alias, json={"version": 2}).status_code == 200
    until(lambda: answers[-12:] == [(200, 20.0)] * 12, "every process answers with the new version")
    assert factory.put(alias, json={"version": 1}).status_code == 200  # and back
    until(lambda: {infer(market, by_alias) for _ in range(8)} == {(200, 10.0)})
    moved.set()
    for caller in callers:
        caller.join()
    assert set(answers) == {(200, 10.0), (200, 20.0)}


def test_a_rollout_s_calls_are_counted_over_all_processes(market: LiveMarket) -> None:
    name, factory = "demo-factory/rolled", market.client("factory")
    published(market, name, 1)
    published(market, name, 2)
    rollout = f"/api/v1/models/{name}/rollout"
    body = {"stable": 1, "canary": 2, "canary_percent": 50}
    assert factory.put(rollout, json=body).status_code == 200
    path = f"/v2/models/{name.replace('/', '--')}/infer"
    until(lambda: {infer(market, path)[1] for _ in range(12)} == {10.0, 20.0})

    def counted() -> int:
        calls = factory.get(rollout).json()["rollout"]["calls"].values()
        return sum(each["answered"] for each in calls)

    before = counted()
    assert before >= 12
    for _ in range(20):
        assert infer(market, path)[0] == 200
    assert counted() == before + 20
    assert factory.delete(rollout).status_code == 200


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
        forged["x-algomart-ask"] = "x"
        for path in ("/siblings/statistics", "/x/../siblings/statistics", "/x/../metrics"):
            connection = http.client.HTTPConnection("127.0.0.1", market.port)  # which sends a path as it is
            connection.request("POST", path, body='{"name": null}', headers=forged)
            assert connection.getresponse().status in (404, 405)
            connection.close()


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
    assert [found.en for found in examine(Settings(home=market.home)) if found.severity == "error"] == []
    market._environment["ALGOMART_WORKERS"] = str(PROCESSES)
    market.start()
    assert use(market).status_code == 200
