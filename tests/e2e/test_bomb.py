"""Bomb graphs, published by an engineer and called while another factory's calls to a starter model go on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.live import LiveMarket
from tests.marketplace.bundles import linear_onnx
from tests.model_store.graphs import endless_loop, memory_bomb, save, value
from tests.neighbours import SteadyCaller, ask, neighbour, starter

STARTER = "lingnan/steel-faults-linear"
INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
MIB = 1 << 20
WORKER_MIB = 1024  # settings.worker_memory_bytes
DEADLINE_MS = "1500"
ONE = numpy_helper.from_array(np.ones(1, np.float32), "one")
ALWAYS = numpy_helper.from_array(np.array(True), "always")


def counted_loop(path: Path, body_op: str, *, accumulate: bool = False) -> Path:
    """`Loop` as often as the caller says (`n`): `Add` only spins, `Concat` doubles what it carries every time."""
    sources = ["v", "v"] if body_op == "Concat" else ["v", "one"]
    attributes = {"axis": 0} if body_op == "Concat" else {}
    nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node(body_op, sources, ["v_next"], **attributes),
    ]
    outputs = [value("go_on", BOOL, []), value("v_next", FLOAT, ["k"])]
    if accumulate:
        nodes.append(helper.make_node("Expand", ["v_next", "wide"], ["kept"]))
        outputs.append(value("kept", FLOAT, [MIB]))
    body = helper.make_graph(
        nodes, "body", [value("i", INT64, []), value("go", BOOL, []), value("v", FLOAT, ["k"])], outputs
    )
    made = ["last", "all"] if accumulate else ["last"]
    loop = helper.make_node("Loop", ["n", "always", "one"], made, body=body)
    total = helper.make_node("ReduceSum", [made[-1]], ["y"], keepdims=0)
    constants = [ONE, ALWAYS, numpy_helper.from_array(np.array([MIB]), "wide")]
    return save(path, [loop, total], [value("n", INT64, [1])], [value("y", FLOAT, [])], constants)


def towering_tile(path: Path) -> Path:
    """`Tile` by 2 to the power that the caller says, three times over."""
    nodes = [helper.make_node("Pow", ["two", "n"], ["often"])]
    for step, (source, made) in enumerate([("one", "a"), ("a", "b"), ("b", "c")]):
        nodes.append(helper.make_node("Tile", [source, "often"], [made], name=f"tile{step}"))
    nodes.append(helper.make_node("ReduceSum", ["c"], ["y"], keepdims=0))
    two = numpy_helper.from_array(np.array([2]), "two")
    return save(path, nodes, [value("n", INT64, [1])], [value("y", FLOAT, [])], [ONE, two])


def huge_constant(path: Path) -> Path:
    """`ConstantOfShape` of four tebibytes, whatever it is called with."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "total"], ["y"]),
    ]
    shape = numpy_helper.from_array(np.array([1 << 40]), "shape")
    return save(path, nodes, [value("x", FLOAT, [1])], [value("y", FLOAT, [1])], [shape])


def endless_doubling(path: Path) -> Path:
    """Forty doublings of one number, without any input to ask for them."""
    names = ["x", *(f"t{step}" for step in range(40))]
    nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in itertools.pairwise(names)]
    nodes.append(helper.make_node("ReduceSum", [names[-1]], ["y"], keepdims=0))
    return save(path, nodes, [value("x", FLOAT, [1])], [value("y", FLOAT, [])])


def wide(path: Path) -> Path:
    """As many zeros as the caller says: small in, large out."""
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"])]
    return save(path, nodes, [value("shape", INT64, [1])], [value("y", FLOAT, ["k"])])


def spin(path: Path) -> Path:
    return counted_loop(path, "Add")


def double(path: Path) -> Path:
    return counted_loop(path, "Concat")


def hoard(path: Path) -> Path:
    return counted_loop(path, "Add", accumulate=True)


OUT_OF_MEMORY = {"MODEL_OUT_OF_MEMORY", "WORKER_OUT_OF_MEMORY", "MODEL_RUN_FAILED"}
# graph, its input, what lights it, what it says when lit harmlessly, codes of the refusal
ARMED: list[tuple[str, Callable[[Path], Path], str, list[int], list[int], set[str]]] = [
    ("spin", spin, "n", [1 << 62], [3], {"DEADLINE_EXCEEDED"}),
    ("double", double, "n", [60], [3], OUT_OF_MEMORY | {"DEADLINE_EXCEEDED"}),
    ("hoard", hoard, "n", [1 << 40], [1], OUT_OF_MEMORY | {"DEADLINE_EXCEEDED"}),
    ("constant", memory_bomb, "shape", [1 << 20, 1 << 20], [2, 4], OUT_OF_MEMORY),
    ("tower", towering_tile, "n", [30], [1], OUT_OF_MEMORY),
    ("wide", wide, "shape", [60 * MIB], [3], {"OUTPUT_TOO_LARGE"} | OUT_OF_MEMORY),
]
SEEN: list[tuple[str, Callable[[Path], Path]]] = [
    ("endless", endless_loop),
    ("huge", huge_constant),
    ("doubling", endless_doubling),
]


class Watch(threading.Thread):
    """The most memory that the market's own process and any one of its children held, in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="watch")
        self._process = psutil.Process(pid)
        self._stop_asked = threading.Event()
        self.own_mib = self.child_mib = 0

    def run(self) -> None:
        while not self._stop_asked.wait(0.05):
            self.own_mib = max(self.own_mib, self._process.memory_info().rss // MIB)
            for child in self._process.children(recursive=True):
                try:
                    self.child_mib = max(self.child_mib, child.memory_info().rss // MIB)
                except psutil.NoSuchProcess:
                    continue

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


@pytest.fixture(scope="module")
def other(live_market: LiveMarket) -> httpx.Client:
    """Another factory, that has taken a starter at its own cost."""
    return neighbour(live_market, 71, STARTER)


@pytest.fixture
def calls_go_on(live_market: LiveMarket, other: httpx.Client, tmp_path: Path) -> Iterator[SteadyCaller]:
    """The other factory calls while the test runs; afterwards every one of its calls was answered, and rightly."""
    caller = SteadyCaller(other, starter(STARTER, tmp_path / "starter"), 1)
    caller.start()
    yield caller
    before = caller.answered
    time.sleep(0.2)
    caller.stop()
    assert caller.failures == []
    assert caller.answered > before
    assert live_market.is_ready()


def publish(client: httpx.Client, folder: Path, name: str, make: Callable[[Path], Path]) -> httpx.Response:
    content = make(folder / f"{name}.onnx").read_bytes()
    form = {"name": f"demo-factory/{name}", "private": "true"}
    return client.post("/api/v1/publish", files={"file": ("m.onnx", content)}, data=form)


def light(
    client: httpx.Client, name: str, tensor: str, numbers: list[int], deadline_ms: str | None = None
) -> httpx.Response:
    """Call it; without `deadline_ms` the market's own deadline holds, so that a slow machine meets the other limits."""
    body = {"inputs": [{"name": tensor, "datatype": "INT64", "shape": [len(numbers)], "data": numbers}]}
    headers = {} if deadline_ms is None else {"X-Deadline-Ms": deadline_ms}
    return client.post(f"/v2/models/demo-factory--{name}/infer", json=body, headers=headers)


def assert_clear(error: dict[str, Any], codes: set[str]) -> None:
    """A stable code, and both languages with a remedy."""
    assert error["code"] in codes, error
    assert all(error[part] for part in ("message", "message_zh", "remedy", "remedy_zh")), error


@pytest.mark.parametrize(("name", "make"), SEEN, ids=[name for name, _ in SEEN])
def test_a_bomb_that_inspection_can_see_is_not_published(live_market, calls_go_on, tmp_path, name, make):
    engineer = live_market.client("engineer")
    answer = publish(engineer, tmp_path, name, make)
    assert answer.status_code == 422
    assert_clear(answer.json()["error"], {"INSPECTION_FAILED"})
    assert engineer.get(f"/api/v1/models/demo-factory/{name}").status_code == 404


@pytest.mark.parametrize(("name", "make", "tensor", "lit", "harmless", "codes"), ARMED, ids=[row[0] for row in ARMED])
def test_a_bomb_that_its_caller_lights_hurts_nobody_else(
    live_market, calls_go_on, tmp_path, name, make, tensor, lit, harmless, codes
):
    engineer = live_market.client("engineer")
    ask(publish(engineer, tmp_path, name, make))
    watch = Watch(live_market.pid)
    watch.start()
    before = psutil.Process(live_market.pid).memory_info().rss // MIB
    deadline_ms = DEADLINE_MS if "DEADLINE_EXCEEDED" in codes else None
    answers = [light(engineer, name, tensor, lit, deadline_ms) for _ in range(2)]
    watch.stop()
    for answer in answers:
        assert_clear(answer.json(), codes)
        assert "x-usage-id" not in answer.headers
    assert watch.own_mib < before + 256
    assert watch.child_mib < WORKER_MIB + 256
    assert light(engineer, name, tensor, harmless).status_code == 200
    assert_only_good_calls_are_recorded(engineer, name, 1)


def test_bombs_lit_side_by_side_leave_room_for_the_others(live_market, other, calls_go_on, tmp_path):
    """Also for what another factory has published for itself, which runs beside the bombs in a limited process."""
    engineer, theirs = live_market.client("engineer"), {"name": "neighbour-71/own", "private": "true"}
    ask(other.post("/api/v1/publish", files={"file": ("m.onnx", linear_onnx())}, data=theirs))
    for row in ARMED:
        ask(publish(engineer, tmp_path, f"{row[0]}-2", row[1]))
    watch = Watch(live_market.pid)
    watch.start()
    answers: list[tuple[httpx.Response, set[str]]] = []

    def call(row: Any) -> None:
        client = live_market.client("engineer")
        answers.append((light(client, f"{row[0]}-2", row[2], row[3], DEADLINE_MS), row[5]))

    threads = [threading.Thread(target=call, args=(row,)) for row in (*ARMED, *ARMED)]
    for thread in threads:
        thread.start()
    row = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    own = [other.post("/v2/models/neighbour-71--own/infer", json=row) for _ in range(10)]
    for thread in threads:
        thread.join()
    watch.stop()
    assert [ask(answer)["outputs"][0]["data"] for answer in own] == [[30.0]] * 10
    assert len(answers) == 2 * len(ARMED)
    for answer, codes in answers:
        assert_clear(answer.json(), codes | {"DEADLINE_EXCEEDED"})  # their own bombs may also make them wait too long
    assert watch.child_mib < WORKER_MIB + 256
    for row in ARMED:
        assert_only_good_calls_are_recorded(engineer, f"{row[0]}-2", 0)


def assert_only_good_calls_are_recorded(client: httpx.Client, name: str, calls: int) -> None:
    """Refused calls leave no usage behind, so that nothing can be charged for them."""
    deadline = time.monotonic() + 30
    while True:
        rows = ask(client.get("/api/v1/usage", params={"model": f"demo-factory/{name}"}))["items"]
        if len(rows) >= calls or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert [row["status"] for row in rows] == ["ok"] * calls
