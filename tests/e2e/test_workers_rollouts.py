"""`--workers 2`: a canary is judged by what both processes have seen, and taken back in both; a shadow likewise."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from marketplace.catalogue.rollouts import FEWEST_CALLS
from tests.e2e.test_market_node import until
from tests.e2e.test_workers import metrics, workers
from tests.live import LiveMarket
from tests.marketplace.bundles import WEIGHTS, linear_onnx

SOUND, BREAKS = [1.0, 1.0, 1.0, 1.0], [100.0, 0.0, 0.0, 0.0]  # what the canary answers, and what it cannot


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, demo_home: Path) -> Iterator[LiveMarket]:
    market = LiveMarket(tmp_path_factory.mktemp("rollouts") / "home", like=demo_home, ALGOMART_WORKERS="2")
    market.start()
    until(lambda: len(metrics(market)) == 2, "both processes are up")
    yield market
    market.stop()


def fragile_onnx() -> bytes:
    """As `linear_onnx` of twice the weights where the first number is below 8; beyond that every run breaks."""
    value = helper.make_tensor_value_info
    constants = {
        "w": 2 * WEIGHTS,
        "table": np.zeros(8, np.float32),
        "zero": np.array(0, np.int64),
        "last": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["first"], axis=1),
        helper.make_node("Cast", ["first"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "place"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "last"], ["column"]),
        helper.make_node("MatMul", ["x", "w"], ["sum"]),
        helper.make_node("Add", ["sum", "column"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fragile",
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def published(market: LiveMarket, name: str) -> None:
    """1 is sound, 2 breaks on `BREAKS`; both are private, and inspected."""
    for graph in (linear_onnx(), fragile_onnx()):
        answer = market.client("factory").post(
            "/api/v1/publish", files={"file": ("m.onnx", graph)}, data={"name": name, "private": "true"}
        )
        assert answer.status_code == 201, answer.text


def call(market: LiveMarket, name: str, row: list[float]) -> int:
    """The version that answered, on a connection of its own; 0: it broke."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}
    answer = httpx.post(
        f"{market.url}/v2/models/{name.replace('/', '--')}/infer",
        json={"inputs": [tensor]}, headers={"Authorization": f"Bearer {market.keys['factory']}"},
        timeout=60, trust_env=False,
    )  # fmt: skip
    if answer.status_code == 200:
        return int(answer.json()["model_version"])
    assert answer.json()["code"] == "MODEL_RUN_FAILED", answer.text
    return 0


def broken_by_process(market: LiveMarket, name: str) -> dict[str, int]:
    """How often version 2 broke, by the process that ran it."""
    text = httpx.get(f"{market.url}/metrics", trust_env=False).text
    wanted = (f'model="{name}"', 'version="2"', 'outcome="failed"')
    lines = [line for line in text.splitlines() if all(each in line for each in wanted)]
    return {line.split('node="')[1].split('"')[0]: int(line.rpartition(" ")[2]) for line in lines}


def rollout(market: LiveMarket, name: str, **body: Any) -> Any:
    """As it stands; with a body, begun."""
    path, client = f"/api/v1/models/{name}/rollout", market.client("factory")
    answer = client.put(path, json=body) if body else client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()["rollout"]


def test_a_canary_that_breaks_in_all_processes_together_is_taken_back_in_each(market: LiveMarket) -> None:
    name = "demo-factory/fragile"
    published(market, name)
    rollout(market, name, stable=1, canary=2, canary_percent=50)
    sound: Counter[int] = Counter()
    while not sound[2]:
        sound[call(market, name, SOUND)] += 1
    broken: Counter[int] = Counter()
    while sound[2] + broken[0] < FEWEST_CALLS:  # the sum is enough to judge by, no single process's is
        broken[call(market, name, BREAKS)] += 1
    seen = broken_by_process(market, name)
    assert set(seen) == {"local", "local-2"}
    assert sum(seen.values()) == broken[0]
    assert min(seen.values()) > 0, "both processes have run it"
    until(lambda: rollout(market, name)["state"] == "rolled_back", "the market looks every half minute")
    answered = rollout(market, name)["calls"]
    assert answered["2"] == {"answered": sound[2], "broken": broken[0], "broken_share": pytest.approx(
        broken[0] / (broken[0] + sound[2]), abs=1e-3)}  # fmt: skip
    assert (answered["1"]["answered"], answered["1"]["broken"]) == (sound[1] + broken[1], 0)
    until(lambda: {call(market, name, BREAKS) for _ in range(16)} == {1})
    assert {call(market, name, BREAKS) for _ in range(60)} == {1}, "nobody routes to it any more"
    notices = market.client("factory").get("/api/v1/notices").json()["items"]
    assert [each["code"] for each in notices].count("CANARY_ROLLED_BACK") == 1
    victim = workers(market)[0].pid
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in {each.pid for each in workers(market)} and len(metrics(market)) == 2)
    assert {call(market, name, BREAKS) for _ in range(40)} == {1}, "one that starts later agrees"
    assert rollout(market, name)["calls"]["2"]["broken"] == broken[0], "what the killed one had counted is not lost"


def test_a_shadow_that_breaks_is_stopped_in_every_process_and_told_of_as_one(market: LiveMarket) -> None:
    name = "demo-factory/shadowed"
    published(market, name)
    rollout(market, name, stable=1, shadow=2)
    until(lambda: {call(market, name, SOUND) for _ in range(16)} == {1})
    until(lambda: (rollout(market, name)["comparison"] or {"runs": 0})["runs"] > 0)

    def compared() -> Any:
        return rollout(market, name)["comparison"]

    calls = 0
    deadline = time.monotonic() + 60
    before: Any = None
    while before is None or compared()["failed"] != before["failed"]:  # until neither runs it any more
        assert time.monotonic() < deadline
        before = compared()
        for _ in range(40):
            assert call(market, name, BREAKS) == 1
            calls += 1
        time.sleep(0.5)  # it runs behind the answers
    told = compared()
    assert told["stopped"]
    assert told["last_failure"] == "MODEL_RUN_FAILED"
    assert 2 * 20 * 0.2 <= told["failed"] < calls
    assert (told["rows_moved_share"], told["decisions_changed_share"]) == (1, 0)  # of those that ran: twice the value
