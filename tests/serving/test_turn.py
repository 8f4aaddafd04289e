"""Small calls that come in one turn of the event loop: joined, journalled with one write, each with its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from serving import journal
from serving.http_protocol import fast_protocol
from serving.protocols.oip_request import decode_request
from tests.serving.parts import KEY, OTHER_KEY, FullDisk, Node, double, gather, model, running_node, until

FLOAT = 1


class Wire(asyncio.Transport):
    """The server's end of a connection; keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None: ...

    def answers(self) -> list[tuple[int, dict[bytes, bytes], bytes]]:
        """Status, headers and body of every answer written so far."""
        found, rest = [], self.written
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            line, *fields = head.split(b"\r\n")
            headers = dict(field.split(b": ", 1) for field in fields)
            length = int(headers[b"content-length"])
            found.append((int(line.split()[1]), headers, rest[:length]))
            rest = rest[length:]
        return found


class Callers:
    """Connections whose requests all arrive in one turn of the loop."""

    def __init__(self, node: Node, count: int) -> None:
        config = uvicorn.Config(node.app, http=fast_protocol(node.app), lifespan="off", access_log=False)
        config.load()
        state = ServerState()
        self.wires = [Wire() for _ in range(count)]
        kind: Any = config.http_protocol_class
        self.protocols = [kind(config=config, server_state=state, app_state={}) for _ in self.wires]
        for protocol, wire in zip(self.protocols, self.wires, strict=True):
            protocol.connection_made(wire)

    async def ask(self, *requests: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
        """Send one request on each connection at once; the newest answer of each."""
        before = [len(wire.answers()) for wire in self.wires]
        for protocol, request in zip(self.protocols, requests, strict=False):
            protocol.data_received(request)
        used = self.wires[: len(requests)]
        await until(lambda: all(len(w.answers()) > n for w, n in zip(used, before, strict=False)))
        return [wire.answers()[-1] for wire in used]


def request(path: str, body: bytes, key: str = KEY, **headers: str) -> bytes:
    fields = {"Host": "n", "Authorization": f"Bearer {key}", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /v2/models/{path}/infer HTTP/1.1\r\n{lines}\r\n".encode() + body


def json_of(name: str, datatype: str, array: np.ndarray, **more: Any) -> bytes:
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor], **more})


def double_of(array: np.ndarray, **more: Any) -> bytes:
    return request("acme--double", json_of("x", "FP32", array, **more))


@asynccontextmanager
async def callers(folder: Path, count: int = 8, **settings: Any) -> AsyncIterator[tuple[Node, Callers]]:
    """A node whose small models are loaded, known to be short and paid for."""
    async with running_node(folder, **settings) as node:
        node.add("acme/double", double(), micro=37, manifest={"batching": {"dynamic": True, "max_rows": 16}})
        node.add("acme/gather", gather(), micro=7, manifest={"batching": {"dynamic": True, "max_rows": 16}})
        node.add("acme/sum", summed(), micro=7, manifest={"batching": {"dynamic": True, "max_rows": 16}})
        made = Callers(node, count)
        for _ in range(5):
            for body in (
                double_of(np.ones((1, 3), np.float32)),
                request("acme--double", json_of("x", "FP32", np.ones((1, 3), np.float32)), OTHER_KEY),
                request("acme--gather", json_of("x", "INT64", np.ones(1, np.int64))),
                request("acme--sum", json_of("x", "FP32", np.ones((1, 3), np.float32))),
            ):
                assert (await made.ask(body))[0][0] == 200
        for resident in node.dataplane.residency.residents():
            resident.cost.classes.update(dict.fromkeys(range(20), 0.01))  # whatever else the machine was doing
        yield node, made


def summed() -> Any:
    """y = the sum over *all* rows: a manifest that promises rows of it is wrong."""
    from onnx import helper

    info = helper.make_tensor_value_info
    return model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        [info("x", FLOAT, ["n", 3])],
        [info("y", FLOAT, ["n", 1])],
    )


def values_of(body: bytes) -> np.ndarray:
    (tensor,) = orjson.loads(body)["outputs"]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


async def test_calls_of_one_turn_share_a_run_and_each_gets_and_pays_its_own(tmp_path: Path) -> None:
    async with callers(tmp_path) as (node, wires):
        statistics = node.dataplane.statistics.of("acme/double", 1)
        runs, billed = statistics.executions, len(node.usage())
        asked = [np.full((1 + n % 3, 3), n, np.float32) for n in range(8)]
        answers = await wires.ask(*map(double_of, asked))
        assert statistics.executions == runs + 1
        for array, (status, _, body) in zip(asked, answers, strict=True):
            assert status == 200
            np.testing.assert_array_equal(values_of(body), array * 2)
        records = node.usage()[billed:]
        assert [record.usage_id.encode() for record in records] == [h[b"x-usage-id"] for _, h, _ in answers]
        assert [record.units["rows"] for record in records] == [len(array) for array in asked]
        assert {record.amount_micro for record in records} == {37}
        assert len({record.request_digest for record in records}) == 8


async def test_a_line_of_the_access_log_tells_the_bytes_of_both_bodies(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    body = json_of("x", "FP32", np.ones((1, 3), np.float32))
    async with callers(tmp_path, 1, access_log=str(path)) as (node, wires):
        (answer,) = await wires.ask(request("acme--double", body, **{"X-Request-Id": "right"}))
        (refused,) = await wires.ask(request("acme--double", body[:-2], **{"X-Request-Id": "wrong"}))
        assert (answer[0], refused[0]) == (200, 400)
        assert node.app.access_log is not None
        node.app.access_log.close()
    lines = {line["request_id"]: line for line in map(orjson.loads, path.read_bytes().splitlines())}
    told = [(lines[name]["bytes_in"], lines[name]["bytes_out"]) for name in ("right", "wrong")]
    assert told == [(len(body), len(answer[2])), (len(body) - 2, len(refused[2]))]


async def test_no_run_takes_more_rows_than_the_model_may(tmp_path: Path) -> None:
    async with callers(tmp_path) as (node, wires):
        statistics = node.dataplane.statistics.of("acme/double", 1)
        runs = statistics.executions
        answers = await wires.ask(*(double_of(np.full((5, 3), n, np.float32)) for n in range(8)))  # 40 rows; 16 a run
        assert [status for status, _, _ in answers] == [200] * 8
        assert statistics.executions >= runs + 3


async def test_who_sends_what_the_graph_refuses_is_refused_alone(tmp_path: Path) -> None:
    async with callers(tmp_path) as (node, wires):
        before = len(node.usage())
        index = [0, 3, 99, 7]  # 99 lies beyond the table: the joined run fails, and each is run by itself
        answers = await wires.ask(*(request("acme--gather", json_of("x", "INT64", np.array([i]))) for i in index))
        assert [status for status, _, _ in answers] == [200, 200, 422, 200]
        assert [values_of(body).tolist() for status, _, body in answers if status == 200] == [[0.0], [3.0], [7.0]]
        assert len(node.usage()) == before + 3
        wrong = double_of(np.ones((1, 4), np.float32))  # another shape: not even joined
        answers = await wires.ask(double_of(np.ones((1, 3), np.float32)), wrong, double_of(np.ones((2, 3), np.float32)))
        assert [status for status, _, _ in answers] == [200, 400, 200]


async def test_a_graph_that_mixes_its_rows_is_found_out_and_never_joined_again(tmp_path: Path) -> None:
    async with callers(tmp_path) as (_, wires):
        asked = [np.full((1, 3), n, np.float32) for n in range(4)]
        for _ in range(2):
            answers = await wires.ask(*(request("acme--sum", json_of("x", "FP32", each)) for each in asked))
            assert [values_of(body).item() for _, _, body in answers] == [0, 3, 6, 9]


async def test_organisations_share_a_run_but_not_a_bill(tmp_path: Path) -> None:
    async with callers(tmp_path) as (node, wires):
        before = len(node.usage())
        body = json_of("x", "FP32", np.ones((1, 3), np.float32))
        await wires.ask(request("acme--double", body), request("acme--double", body, OTHER_KEY))
        assert [(r.organisation, r.key_id) for r in node.usage()[before:]] == [
            ("org_factory", "key_1"),
            ("org_other", "key_2"),
        ]


async def test_where_the_journal_cannot_be_written_nobody_is_answered_or_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with callers(tmp_path) as (node, wires):
        leases = node.dataplane.leases.leases()
        before, billed = [each.left() for each in leases], len(node.usage())
        with monkeypatch.context() as patch:
            patch.setattr(journal, "os", FullDisk())
            answers = await wires.ask(*(double_of(np.full((1, 3), n, np.float32)) for n in range(8)))
        assert [status for status, _, _ in answers] == [503] * 8
        assert [each.left() for each in leases] == before
        assert len(node.usage()) == billed


async def test_one_turn_takes_no_more_than_may_hold_the_loop_and_the_rest_comes_after(tmp_path: Path) -> None:
    async with callers(tmp_path) as (node, wires):
        (resident,) = [each for each in node.dataplane.residency.residents() if each.name == "acme/double"]
        resident.cost.classes.update(dict.fromkeys(range(20), 0.9))  # of four milliseconds a turn
        before = [len(wire.answers()) for wire in wires.wires]
        answers = asyncio.create_task(wires.ask(*(double_of(np.full((1, 3), n, np.float32)) for n in range(8))))
        for _ in range(2):
            await asyncio.sleep(0)
        assert [len(w.answers()) - n for w, n in zip(wires.wires, before, strict=True)] == [1] * 4 + [0] * 4
        assert [status for status, _, _ in await answers] == [200] * 8


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_together_is_answered_as_if_it_came_alone(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    number = st.floats(width=32, allow_subnormal=False)
    calls = []
    for _ in range(data.draw(st.integers(1, 8))):
        count = data.draw(st.integers(1, 6))
        values = data.draw(st.lists(number, min_size=3 * count, max_size=3 * count))
        parameters = data.draw(st.sampled_from([{}, {"id": "七"}, {"parameters": {"binary_data_output": True}}]))
        calls.append((np.array(values, np.float32).reshape(count, 3), parameters))

    def sent(array: np.ndarray, more: dict[str, Any]) -> bytes:
        tensor = {"name": "x", "datatype": "FP32", "shape": list(array.shape)}
        head = orjson.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": array.nbytes}}], **more})
        return request("acme--double", head + array.tobytes(), **{"Inference-Header-Content-Length": str(len(head))})

    async def run() -> None:
        async with callers(tmp_path_factory.mktemp("turn"), len(calls)) as (_, wires):
            answers = await wires.ask(*(sent(array, more) for array, more in calls))
            for (array, more), (status, headers, body) in zip(calls, answers, strict=True):
                assert status == 200
                length = headers.get(b"inference-header-content-length")
                assert (length is not None) == ("parameters" in more)
                assert (b'"id":"' in body) == ("id" in more)
                # An answer's tensors have the form of a request's.
                echoed = decode_request(
                    body.replace(b'"outputs"', b'"inputs"', 1), None if length is None else int(length) - 1
                )
                with np.errstate(all="ignore"):
                    np.testing.assert_array_equal(echoed.inputs["y"], array * np.float32(2))

    asyncio.run(run())
