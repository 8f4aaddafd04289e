"""The node as its callers see it: over real sockets, through the hot path and around it, with real clients."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import uvloop

from serving import journal
from serving.app import ServingApp
from serving.ports import KeyLimits, Principal
from serving.server import NodeServer, server_of
from tests.serving.parts import (
    KEY,
    OPERATOR_KEY,
    OTHER_KEY,
    READ_KEY,
    FullDisk,
    Node,
    double,
    endless,
    every_type,
    gather,
    rows,
    running_node,
)

PATH = "/v2/models/acme--double/infer"
ORDINARY = {"Content-Encoding": "identity"}  # more than the hot path does


@dataclass
class Served:
    """A node behind a port, run by its own event loop in a thread."""

    node: Node
    port: int
    loop: asyncio.AbstractEventLoop
    server: NodeServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None = KEY, **headers: str) -> httpx.Client:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def warm(self) -> None:
        """Call until the hot path answers: model loaded, lease open, cost known."""
        with self.client() as client:
            for _ in range(4):
                assert client.post(PATH, json=request_of(rows(1))).status_code == 200


def request_of(x: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}], **more}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(tmp_path_factory.mktemp("node"))


def serve(folder: Path, **settings: Any) -> Iterator[Served]:
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def main() -> None:
        async with running_node(folder, run_deadline_ms=2000, max_body_bytes=1 << 20, **settings) as node:
            node.add("acme/double", double(), micro=370_000)
            node.add("acme/gather", gather(), micro=1)
            node.add("acme/types", every_type(), micro=1)
            node.add("acme/endless", endless(), micro=1)
            node.add("other/secret", double(), owner="org_other", private=True, trusted=False)
            with socket.socket() as listening:
                listening.bind(("127.0.0.1", 0))
                listening.listen(64)
                server = server_of(node.app, "127.0.0.1", 0, log_level="warning", file_descriptor=listening.fileno())
                box.update(node=node, port=listening.getsockname()[1], server=server, loop=asyncio.get_running_loop())
                task = asyncio.create_task(server.serve())
                while not server.started:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                ready.set()
                await task

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the loop it has in production
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield Served(box["node"], box["port"], box["loop"], box["server"])
    box["server"].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def exchange(served: Served, content: bytes, answers: int = 1, key: str = KEY) -> list[tuple[int, bytes]]:
    """Send raw bytes on one connection and read whole answers: (status, body)."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(content)
        return read_answers(connection, answers)


def read_answers(connection: socket.socket, answers: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    buffer = b""
    while len(found) < answers:
        head, separator, rest = buffer.partition(b"\r\n\r\n")
        if separator:
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            size = int(fields.get(b"content-length", b"0"))
            if len(rest) >= size:
                found.append((int(head.split(b" ", 2)[1]), rest[:size]))
                buffer = rest[size:]
                continue
        part = connection.recv(1 << 16)
        if not part:
            return found
        buffer += part
    return found


def raw(body: bytes, path: str = PATH, key: str = KEY, extra: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n".encode()
    return head + extra + b"\r\n" + body


def numbers(body: bytes) -> list[float]:
    found: list[float] = orjson.loads(body)["outputs"][0]["data"]
    return found


# --- the hot path -----------------------------------------------------------------------------------------------------


def test_the_first_and_the_hundredth_answer_are_the_same(served: Served) -> None:
    x = rows(2)
    with served.client() as client:
        answers = [client.post(PATH, json=request_of(x, id="r1")) for _ in range(100)]
    first = answers[0].json()
    assert all(answer.status_code == 200 and answer.json() == first for answer in answers)
    assert first["id"] == "r1"
    np.testing.assert_allclose(first["outputs"][0]["data"], (2 * x).ravel(), rtol=1e-6)
    ids = [answer.headers["x-usage-id"] for answer in answers]
    assert len(set(ids)) == 100
    journalled = {record.usage_id for record in served.node.usage()}
    assert set(ids) <= journalled
    assert {answer.headers["x-amount-micro"] for answer in answers} == {"370000"}
    assert all(answer.headers["content-type"] == "application/json" for answer in answers)


def test_the_hot_path_answers_without_asgi(served: Served) -> None:
    served.warm()
    calls: list[str] = []
    app = served.node.app
    real = ServingApp._answer

    async def counted(self: ServingApp, *arguments: Any) -> None:
        calls.append("asgi")
        await real(self, *arguments)

    app._answer = counted.__get__(app)  # type: ignore[method-assign]

    def hot_of(client: httpx.Client, headers: dict[str, str]) -> int:
        """How many of 20 calls were answered on the hot path: not all need be, it leaves what came to it late."""
        calls.clear()
        for _ in range(20):
            assert client.post(PATH, json=request_of(rows(1)), headers=headers).status_code == 200
        return 20 - len(calls)

    try:
        with served.client() as client:
            assert hot_of(client, {}) > 0
            assert hot_of(client, {"X-Deadline-Ms": "500"}) > 0
            assert hot_of(client, ORDINARY) == 0
    finally:
        del app._answer  # type: ignore[method-assign]


def test_answers_wait_for_the_journal_and_are_refused_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve(tmp_path)
    served = next(running)
    served.warm()
    (held,) = served.node.dataplane.leases.leases()
    used, written = held.voucher_scaled, len(served.node.usage())
    with monkeypatch.context() as patch:
        patch.setattr(journal, "os", FullDisk())
        many = b"".join(raw(orjson.dumps(request_of(rows(1)))) for _ in range(3))
        answers = exchange(served, many, 3)
    assert [(status, orjson.loads(body)["code"]) for status, body in answers] == [(503, "JOURNAL_UNAVAILABLE")] * 3
    assert (held.voucher_scaled, len(served.node.usage())) == (used, written)
    with served.client() as client:
        assert client.post(PATH, json=request_of(rows(1))).status_code in (200, 503)  # space is looked at once a second
    assert next(running, None) is None


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    served.warm()
    many = b"".join(raw(orjson.dumps(request_of(np.full((1, 3), number, np.float32)))) for number in range(200))
    answers = exchange(served, many, 200)
    assert [numbers(body)[0] for _, body in answers] == [2.0 * number for number in range(200)]


def test_hot_and_ordinary_requests_may_be_pipelined_together(served: Served) -> None:
    served.warm()
    ordinary = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    cold = raw(orjson.dumps({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [3]}]}),
               "/v2/models/acme--gather/infer", extra=b"Content-Encoding: identity\r\n")  # fmt: skip
    hot = raw(orjson.dumps(request_of(np.ones((1, 3), np.float32))))
    answers = exchange(served, (hot + ordinary + hot + cold + hot) * 5, 25)
    assert [status for status, _ in answers] == [200] * 25
    kinds = [numbers(body)[0] if body else None for _, body in answers]
    assert kinds == [2.0, None, 2.0, 3.0, 2.0] * 5


def test_a_request_may_arrive_byte_by_byte(served: Served) -> None:
    served.warm()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in raw(orjson.dumps(request_of(np.ones((1, 3), np.float32)))):
            connection.send(bytes([byte]))
        (answer,) = read_answers(connection, 1)
    assert numbers(answer[1]) == [2, 2, 2]


def test_connection_close_is_kept(served: Served) -> None:
    served.warm()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(raw(orjson.dumps(request_of(rows(1))), extra=b"Connection: close\r\n"))
        assert [status for status, _ in read_answers(connection, 2)] == [200]  # and then the end of the stream


def test_a_client_that_does_not_read_holds_up_nobody(served: Served) -> None:
    served.warm()
    one = raw(orjson.dumps(request_of(rows(300))))
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as deaf:
        deaf.setblocking(False)
        sent = 0
        for _ in range(2000):
            try:
                sent += deaf.send(one)
            except BlockingIOError:
                break
        assert sent < 2000 * len(one), "the server stops reading what it cannot answer"
        with served.client() as client:
            for _ in range(20):
                assert client.post(PATH, json=request_of(rows(1))).status_code == 200


@pytest.mark.parametrize(
    "garbage", [b"NONSENSE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"POST / HTTP/9.9\r\n\r\n", b"\r\n\r\n\0\0\0"]
)
def test_garbage_gets_400_or_the_door(served: Served, garbage: bytes) -> None:
    answers = exchange(served, garbage)
    assert all(status == 400 for status, _ in answers)


def test_many_connections_at_once(served: Served) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> bool:
        x = np.full((1, 3), number, np.float32)
        answer = await client.post(PATH, json=request_of(x))
        return bool(answer.json()["outputs"][0]["data"] == [2.0 * number] * 3)

    async def all_of_them() -> list[bool]:
        limits = httpx.Limits(max_connections=32)
        headers = {"X-API-Key": KEY}
        async with httpx.AsyncClient(base_url=served.url, headers=headers, limits=limits, timeout=60) as client:
            return await asyncio.gather(*(one(client, number) for number in range(300)))

    assert all(asyncio.run(all_of_them()))


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "path", "status", "code"),
    [
        (None, PATH, 401, "KEY_MISSING"),
        ("wrong", PATH, 401, "KEY_INVALID"),
        (READ_KEY, PATH, 403, "SCOPE_MISSING"),
        (KEY, "/v2/models/acme--none/infer", 404, "MODEL_NOT_FOUND"),
        (KEY, "/v2/models/acme--double/versions/9/infer", 404, "MODEL_NOT_FOUND"),
        (KEY, "/v2/models/other--secret/infer", 404, "MODEL_NOT_FOUND"),
        (KEY, "/v2/models/acme--double/nonsense", 404, "NO_SUCH_PATH"),
        (KEY, "/v2/nonsense", 404, "NO_SUCH_PATH"),
    ],
)
def test_who_may_not_is_told_why(served: Served, key: str | None, path: str, status: int, code: str) -> None:
    with served.client(key) as client:
        answer = client.post(path, json=request_of(rows(1)), headers={"X-Request-Id": "req-7"})
    assert answer.status_code == status
    found = answer.json()
    assert isinstance(found["error"], str)
    assert found["error"].startswith(f"{code}: ")
    assert (found["code"], found["request_id"]) == (code, "req-7")
    assert found["message_zh"]
    assert answer.headers["x-request-id"] == "req-7"
    assert ("www-authenticate" in answer.headers) == (status == 401)


def test_a_private_model_is_there_for_its_owner_only(served: Served) -> None:
    with served.client(OTHER_KEY) as client:
        for _ in range(5):  # on a busy machine its worker may take longer to start than a call may take
            answer = client.post("/v2/models/other--secret/infer", json=request_of(rows(1)))
            if answer.status_code != 504:
                break
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready"])
def test_health_needs_no_key(served: Served, path: str) -> None:
    with served.client(None) as client:
        assert client.get(path).status_code == 200
        assert client.post(path).status_code == 404


def test_metrics_are_for_this_machine(served: Served) -> None:
    served.warm()
    with served.client(None) as client:
        text = client.get("/metrics").text
        assert 'algomart_inferences_total{model="acme/double",version="1",outcome="ok"}' in text
        assert "algomart_journal_records_total" in text
        assert client.get("/metrics", headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 404


def test_readiness_says_what_the_market_adds_to_it(served: Served) -> None:
    app = served.node.app
    app.standing = lambda: {"ingest": {"lag_ms": 3}}
    app.gauges = lambda: {"algomart_ingest_lag_ms": 3}
    try:
        with served.client(None) as client:
            assert client.get("/v2/health/ready").json() == {"ready": True, "ingest": {"lag_ms": 3}}
            assert "\nalgomart_ingest_lag_ms 3\n" in client.get("/metrics").text
    finally:
        app.standing = app.gauges = dict


def test_metrics_tell_how_late_the_event_loop_was(served: Served) -> None:
    lag = served.node.dataplane.loop_lag
    seen = lag.count
    held = threading.Event()
    served.loop.call_soon_threadsafe(lambda: (time.sleep(0.2), held.set()))
    assert held.wait(30)
    while lag.count < seen + 2:
        time.sleep(0.01)
    assert lag.max_ms > 100  # the timer came due within 50 ms, and the loop was held for 200
    with served.client(None) as client:
        text = client.get("/metrics").text
    assert "# TYPE algomart_event_loop_lag_ms histogram" in text
    counted = int(text.partition('algomart_event_loop_lag_ms_bucket{le="+Inf"} ')[2].partition("\n")[0])
    assert seen < counted <= sum(lag.buckets)


def test_an_unknown_path_is_a_404_in_the_shape_of_the_market(served: Served) -> None:
    with served.client() as client:
        answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "NO_SUCH_PATH"


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
def test_compressed_requests_are_understood(served: Served, encoding: str) -> None:
    content = orjson.dumps(request_of(rows(2)))
    packed = {"gzip": gzip.compress(content, mtime=0), "deflate": zlib.compress(content), "identity": content}[encoding]
    with served.client() as client:
        answer = client.post(PATH, content=packed, headers={"Content-Encoding": encoding})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("content", "encoding", "status", "code"),
    [
        (gzip.compress(bytes(50 << 20), mtime=0), "gzip", 413, "BODY_TOO_LARGE"),
        (bytes((1 << 20) + 1), "identity", 413, "BODY_TOO_LARGE"),
        (b"not gzip", "gzip", 400, "BODY_ENCODING"),
        (gzip.compress(b"{}" * 1000, mtime=0)[:-10], "gzip", 400, "BODY_ENCODING"),
        (b"{}", "br", 400, "BODY_ENCODING"),
        (b"{", "identity", 400, "REQUEST_JSON"),
        (b"", "identity", 400, "REQUEST_JSON"),
    ],
)
def test_bodies_that_cannot_be_taken_are_refused(
    served: Served, content: bytes, encoding: str, status: int, code: str
) -> None:
    with served.client() as client:
        answer = client.post(PATH, content=content, headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert client.post(PATH, json=request_of(rows(1))).status_code == 200


def test_a_body_without_a_declared_length_is_bounded_too(served: Served) -> None:
    with served.client() as client:
        answer = client.post(PATH, content=(bytes(1 << 16) for _ in range(40)))
        assert answer.status_code == 413


def test_a_large_request_takes_the_ordinary_way(served: Served) -> None:
    x = rows(9_000)
    with served.client() as client:
        answer = client.post(PATH, json=request_of(x))
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], (2 * x).ravel(), rtol=1e-6)


@pytest.mark.parametrize(
    ("tensor", "code"),
    [
        ({"name": "z", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}, "TENSOR_UNKNOWN"),
        ({"name": "x", "datatype": "FP64", "shape": [1, 3], "data": [1, 2, 3]}, "TENSOR_DTYPE"),
        ({"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}, "TENSOR_SHAPE"),
        ({"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2]}, "TENSOR_DATA"),
    ],
)
def test_a_wrong_tensor_is_the_same_400_hot_and_cold(served: Served, tensor: dict[str, Any], code: str) -> None:
    served.warm()
    before = len(served.node.usage())
    with served.client() as client:
        for headers in ({}, ORDINARY):
            answer = client.post(PATH, json={"inputs": [tensor]}, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert len(served.node.usage()) == before


@pytest.mark.parametrize("value", ["soon", "-5", "0", "nan", "1_000"])
def test_a_deadline_that_is_none_is_refused_hot_and_cold(served: Served, value: str) -> None:
    served.warm()
    with served.client() as client:
        for more in ({}, ORDINARY):
            answer = client.post(PATH, json=request_of(rows(1)), headers={"X-Deadline-Ms": value, **more})
            assert (answer.status_code, answer.json()["code"]) == (400, "REQUEST_FIELD")


def test_an_endless_run_ends_at_its_deadline(served: Served) -> None:
    with served.client() as client:
        answer = client.post(
            "/v2/models/acme--endless/infer", json=request_of(rows(1)), headers={"X-Deadline-Ms": "150"}
        )
        assert (answer.status_code, answer.json()["code"]) == (504, "DEADLINE_EXCEEDED")
        timeout = client.post(
            "/v2/models/acme--endless/infer", json=request_of(rows(1), parameters={"timeout": 100_000})
        )
        assert timeout.status_code == 504


def test_an_idempotent_repeat_over_http(served: Served) -> None:
    with served.client(**{"Idempotency-Key": "order-77"}) as client:
        first = client.post(PATH, json=request_of(np.ones((1, 3))))
        again = client.post(PATH, json=request_of(np.ones((1, 3))))
        other = client.post(PATH, json=request_of(np.zeros((1, 3))))
    assert first.headers["x-usage-id"] == again.headers["x-usage-id"]
    assert (other.status_code, other.json()["code"]) == (409, "IDEMPOTENCY_CONFLICT")
    ids = [record.usage_id for record in served.node.usage()]
    assert ids.count(first.headers["x-usage-id"]) == 1


def test_a_revoked_key_is_refused_at_once(served: Served) -> None:
    served.warm()
    keys = served.node.admission.keys
    keys["key-soon-gone"] = keys[OTHER_KEY]
    with served.client("key-soon-gone") as client:
        for _ in range(3):
            assert client.post(PATH, json=request_of(rows(1))).status_code == 200
        del keys["key-soon-gone"]
        served.node.dataplane.forget_keys("key_2")
        assert client.post(PATH, json=request_of(rows(1))).status_code == 401


# --- the rest of the protocol -----------------------------------------------------------------------------------------


def test_a_model_says_what_it_is(served: Served) -> None:
    with served.client() as client:
        assert client.get("/v2").json()["name"] == "algomart"
        about = client.get("/v2/models/acme--double").json()
        assert about == client.get("/v2/models/acme/double").json() == client.get("/v2/models/acme%2Fdouble").json()
        assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
        assert about["versions"] == ["1"]
        assert client.get("/v2/models/acme--double/versions/1/ready").status_code == 200
        config = client.get("/v2/models/acme--double/config").json()
        assert (config["max_batch_size"], config["input"][0]["dims"]) == (256, [3])
        assert config["input"][0]["data_type"] == "TYPE_FP32"
        assert client.get(PATH).status_code == 405


def test_the_index_shows_what_the_caller_may_see(served: Served) -> None:
    with served.client() as mine, served.client(OTHER_KEY) as theirs:
        names = {entry["name"] for entry in mine.post("/v2/repository/index").json()}
        assert "acme--double" in names
        assert "other--secret" not in names
        assert "other--secret" in {
            entry["name"] for entry in theirs.post("/v2/repository/index", json={"ready": True}).json()
        }


def test_loading_is_for_owner_and_operator(served: Served) -> None:
    with served.client() as factory, served.client(OPERATOR_KEY) as operator:
        path = "/v2/repository/models/acme--gather"
        assert factory.post(f"{path}/load").json()["code"] == "NOT_OWNER"
        assert operator.post(f"{path}/load", json={}).status_code == 200
        assert operator.post(f"{path}/unload", json={}).status_code == 200


def test_what_is_not_finite_is_answered_as_words_that_can_be_sent_again(served: Served) -> None:
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,3],"data":[NaN,Infinity,0.1,-Infinity,1,2]}]}'
    with served.client() as client:
        data = orjson.loads(client.post(PATH, content=body).content)["outputs"][0]["data"]  # strict: no literals
        assert data == ["NaN", "Infinity", 0.2, "-Infinity", 2, 4]
        again = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], "data": data}]}
        assert client.post(PATH, json=again).json()["outputs"][0]["data"] == ["NaN", "Infinity", 0.4, "-Infinity", 4, 8]


# --- the real client --------------------------------------------------------------------------------------------------


def triton_inputs(binary: bool) -> tuple[list[triton.InferInput], dict[str, np.ndarray[Any, Any]]]:
    values: dict[str, np.ndarray[Any, Any]] = {
        "BOOL": np.array([True, False]),
        "BYTES": np.array([b"ab", "钢".encode()], dtype=np.object_),
        "FP16": np.array([1.5, -2], np.float16),
        "FP32": np.array([1.5, -2], np.float32),
        "FP64": np.array([1.5, -2], np.float64),
    }
    for bits in (8, 16, 32, 64):
        values[f"INT{bits}"] = np.array([-3, 4], f"int{bits}")
        values[f"UINT{bits}"] = np.array([3, 4], f"uint{bits}")
    inputs = []
    for name, value in values.items():
        tensor = triton.InferInput(f"in_{name}", [2], name)
        tensor.set_data_from_numpy(value, binary_data=binary or name == "FP16")
        inputs.append(tensor)
    return inputs, values


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_the_triton_client_infers_every_type(served: Served, binary: bool, compression: str | None) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}", network_timeout=30) as client:
        inputs, values = triton_inputs(binary)
        outputs = None
        if not binary:
            outputs = [triton.InferRequestedOutput(f"out_{name}", binary_data=False) for name in values]
        result = client.infer(
            "acme--types", inputs, outputs=outputs, headers=headers, request_compression_algorithm=compression
        )
        for name, value in values.items():
            found = result.as_numpy(f"out_{name}")
            if name == "BYTES" and not binary:
                found = np.array([str(item).encode() for item in found], dtype=np.object_)
            np.testing.assert_array_equal(found, value)


def test_the_triton_client_asks_everything_else(served: Served) -> None:
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}"}
    with triton.InferenceServerClient(f"127.0.0.1:{served.port}", network_timeout=30) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("acme--double", headers=headers)
        assert not client.is_model_ready("acme--none", headers=headers)
        assert client.get_server_metadata(headers=headers)["name"] == "algomart"
        assert client.get_model_metadata("acme--double", headers=headers)["platform"] == "onnxruntime_onnx"
        assert client.get_model_config("acme--double", headers=headers)["backend"] == "onnxruntime"
        assert "acme--double" in {each["name"] for each in client.get_model_repository_index(headers=headers)}
        client.load_model("acme--double", headers=headers)
        statistics = client.get_inference_statistics("acme--double", headers=headers)["model_stats"]
        assert statistics[0]["inference_stats"]["success"]["count"] >= 0
        client.get_inference_statistics(headers=headers)
        client.unload_model("acme--double", headers=headers)
        with pytest.raises(triton.InferenceServerException) as refused:
            client.infer("acme--none", triton_inputs(True)[0], headers=headers)
        assert "MODEL_NOT_FOUND" in refused.value.message()


async def test_the_asynchronous_triton_client_infers(served: Served) -> None:
    client = triton_aio.InferenceServerClient(f"127.0.0.1:{served.port}")
    try:
        x = rows(5)
        tensor = triton.InferInput("x", [5, 3], "FP32")
        tensor.set_data_from_numpy(x)
        headers = {"Authorization": f"Bearer {KEY}"}
        results = await asyncio.gather(*(client.infer("acme--double", [tensor], headers=headers) for _ in range(20)))
        for result in results:
            np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)
    finally:
        await client.close()


# --- going away -------------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_while_it_waits_is_dropped(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
        connection.sendall(raw(orjson.dumps(request_of(rows(1))), "/v2/models/acme--endless/infer"))
        time.sleep(0.05)
    with served.client() as client:
        assert client.post(PATH, json=request_of(rows(1))).status_code == 200


def test_a_node_that_stops_seals_its_journal(tmp_path: Path) -> None:
    from serving.journal import verify

    running = serve(tmp_path)
    node = next(running)
    with node.client() as client:
        for _ in range(5):
            client.post(PATH, json=request_of(rows(1)))
    path = node.node.journal.path
    assert next(running, None) is None
    assert verify(path) == []


def test_a_key_over_its_rate_is_told_when_to_come_back_on_both_ways(served: Served) -> None:
    limits = KeyLimits(rate_per_s=1, burst=3)
    served.node.admission.keys["key-limited"] = Principal(
        "key_9", "org_factory", "enterprise", frozenset({"use"}), limits=limits
    )
    served.warm()
    ordinary = ORDINARY
    with served.client("key-limited") as client:
        client.get("/v2")  # the key is known
        body = request_of(rows(1))
        assert [client.post(PATH, json=body, headers=each).status_code for each in ({}, ordinary, {})] == [200] * 3
        for each in ({}, ordinary):
            answer = client.post(PATH, json=body, headers=each)
            assert (answer.status_code, answer.json()["code"]) == (429, "RATE_LIMITED")
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.headers["RateLimit-Limit"] == "3"
            assert answer.headers["RateLimit-Remaining"] == "0"
            assert answer.headers["RateLimit-Reset"] == answer.headers["Retry-After"]


@pytest.mark.parametrize("priority", ["high", "normal", "low", "Low"])
def test_a_priority_is_understood(served: Served, priority: str) -> None:
    with served.client() as client:
        assert client.post(PATH, json=request_of(rows(1)), headers={"X-Priority": priority}).status_code == 200
        for number in (0, 1, 3, 99):
            body = request_of(rows(1), parameters={"priority": number})
            assert client.post(PATH, json=body).status_code == 200


@pytest.mark.parametrize("more", [{}, ORDINARY])
def test_a_priority_that_is_none_is_refused_hot_and_cold(served: Served, more: dict[str, str]) -> None:
    served.warm()
    with served.client() as client:
        answers = [client.post(PATH, json=request_of(rows(1)), headers={"X-Priority": "urgent", **more})]
        for wrong in ("urgent", -1, 1.5, True, [1]):
            body = request_of(rows(1), parameters={"priority": wrong})
            answers.append(client.post(PATH, json=body, headers=more))
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (400, "REQUEST_FIELD")
