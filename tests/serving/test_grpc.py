"""gRPC as its callers see it: the real `tritonclient.grpc`, sync and aio, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import onnxruntime
import orjson
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from model_store.errors import Conflict
from serving.grpc_server import GrpcServer
from serving.journal import journal_unavailable
from serving.protocols import grpc_call
from serving.slow_readers import SlowReaders
from tests.neighbours import starter
from tests.serving.parts import (
    FACTORY,
    KEY,
    OPERATOR_KEY,
    OTHER_KEY,
    READ_KEY,
    Node,
    double,
    endless,
    every_type,
    gather,
    rows,
    running_node,
    until,
)

PRICE = 370_000
MAX_BODY = 1 << 20


@dataclass
class Served:
    """A node with gRPC on a port of its own, both on the test's event loop."""

    node: Node
    server: GrpcServer

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    def client(self) -> Any:
        return triton_aio.InferenceServerClient(self.url)


@asynccontextmanager
async def serving(folder: Path, drain_s: float = 0, **settings: Any) -> AsyncIterator[Served]:
    bounds = {"run_deadline_ms": 2000, "max_body_bytes": MAX_BODY} | settings
    async with running_node(folder, **bounds) as node:
        node.add("acme/double", double(), micro=PRICE)
        node.add("acme/gather", gather(), micro=1)
        node.add("acme/endless", endless(), micro=1)
        server = GrpcServer(node.app, "127.0.0.1", 0, drain_s)
        await server.start()
        try:
            yield Served(node, server)
        finally:
            await server.stop()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as made:
        yield made


def bearer(key: str = KEY, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **{name.replace("_", "-"): value for name, value in more.items()}}


def tensor(array: Any, name: str = "x", datatype: str = "FP32") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def request_of(array: Any, model: str = "acme--double", **more: Any) -> Any:
    """The message itself, for what the client does not show: trailing metadata and typed contents."""
    message = service_pb2.ModelInferRequest(model_name=model, **more)
    message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    return message


@asynccontextmanager
async def stub(served: Served, **options: Any) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(served.url, **options) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def told(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The trailing metadata of a refusal."""
    return dict(error.trailing_metadata() or ())


# --- inferring --------------------------------------------------------------------------------------------------------

SHELF = {
    "tabular": "lingnan/machine-failure-network",
    "trees": "dongzhi/steel-faults-boosting",
    "image": "dongzhi/board-defects-conv",
    "text": "dongzhi/work-order-characters",
    "series": "dongzhi/bearing-conv",
}
OIP = {"f": "FP32", "O": "BYTES", "S": "BYTES", "U": "BYTES", "i": "INT64"}


@pytest.mark.parametrize("kind", SHELF)
async def test_a_starter_answers_the_numbers_of_onnx_runtime_to_both_clients(kind: str, tmp_path: Path) -> None:
    bundle = starter(SHELF[kind], tmp_path / kind)
    with np.load(bundle.path / "golden" / "0" / "inputs.npz") as golden:
        ((name, array),) = golden.items()
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    first = session.get_outputs()[0].name
    (wanted,) = session.run([first], {name: array})
    asked = [triton.InferRequestedOutput(first)]
    async with serving(tmp_path, max_body_bytes=64 << 20) as served:
        served.node.bundles.add(bundle.path)
        model, sent = SHELF[kind].replace("/", "--"), [tensor(array, name, OIP[array.dtype.kind])]
        async with served.client() as client:
            result = await client.infer(model, sent, outputs=asked, headers=bearer())

        def sync() -> Any:
            with triton.InferenceServerClient(served.url) as client:
                return client.infer(SHELF[kind], sent, model_version="1", headers={"x-api-key": KEY})

        for each in (result, await asyncio.to_thread(sync)):
            got = each.as_numpy(first)
            assert got.shape == wanted.shape
            if got.dtype.kind == "f":
                np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
            else:
                assert got.tolist() == [str(item).encode() if got.dtype.kind == "O" else item for item in wanted]


async def test_every_type_goes_there_and_back(served: Served) -> None:
    served.node.add("acme/types", every_type())
    values = {
        "BOOL": np.array([True, False]), "FP16": np.array([0.5, -2], np.float16),
        "BYTES": np.array([b"bearing", "轴承".encode()], dtype=object),
    } | {name: np.array([1, 2], kind) for name, kind in {
        "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64, "INT8": np.int8,
        "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "FP64": np.float64,
    }.items()}  # fmt: skip
    sent = [tensor(array, f"in_{name}", name) for name, array in values.items()]
    async with served.client() as client:
        result = await client.infer("acme--types", sent, headers=bearer())
    for name, array in values.items():
        assert result.as_numpy(f"out_{name}").tolist() == array.tolist()


async def test_typed_contents_are_answered_raw_as_by_triton(served: Served) -> None:
    x = rows(2)
    message = request_of(x, id="a1")
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend(x.ravel().tolist())
    async with stub(served) as server:
        answer = await server.ModelInfer(message, metadata=tuple(bearer().items()))
    assert (answer.id, answer.model_name, answer.model_version) == ("a1", "acme--double", "1")
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32), 2 * x.ravel())


async def test_a_large_tensor_is_decoded_and_encoded_off_the_loop_and_right(served: Served) -> None:
    x = rows(60_000)
    async with served.client() as client:
        result = await client.infer("acme--double", [tensor(x)], headers=bearer())
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)


async def test_a_graph_that_nobody_has_reviewed_runs_in_its_worker(served: Served) -> None:
    """gRPC's threads and the worker's fork get on with each other."""
    served.node.add("acme/private", double(), owner="org_factory", private=True, trusted=False)
    x = rows(3)
    async with served.client() as client:
        for _ in range(3):
            result = await client.infer("acme--private", [tensor(x)], headers=bearer())
            np.testing.assert_array_equal(result.as_numpy("y"), 2 * x)


# --- the bill ---------------------------------------------------------------------------------------------------------


async def test_the_bill_is_the_one_of_http(served: Served) -> None:
    x = rows(3)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(served.node.app), base_url="http://node") as http:
        data = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        over_http = await http.post("/v2/models/acme--double/infer", json={"inputs": [data]}, headers=bearer())
        assert over_http.status_code == 200
    async with stub(served) as server:
        call = server.ModelInfer(request_of(x), metadata=tuple(bearer(x_request_id="line-7").items()))
        answer = await call
        trailing = dict(await call.trailing_metadata())
    first, second = served.node.usage()
    assert trailing["x-usage-id"] == answer.parameters["usage_id"].string_param == second.usage_id
    assert trailing["x-amount-micro"] == over_http.headers["x-amount-micro"] == str(PRICE)
    assert answer.parameters["amount_micro"].int64_param == PRICE
    assert trailing["x-request-id"] == "line-7"
    for field in ("organisation", "model", "amount_micro", "lease_id", "price_version"):
        assert getattr(first, field) == getattr(second, field)
    assert {**first.units, "ms": 0} == {**second.units, "ms": 0}


async def test_a_repeat_with_an_idempotency_key_is_charged_once(served: Served) -> None:
    async with stub(served) as server:
        metadata = tuple(bearer(idempotency_key="shift-1").items())
        first = await server.ModelInfer(request_of(rows(1)), metadata=metadata)
        again = await server.ModelInfer(request_of(rows(1)), metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.ModelInfer(request_of(rows(2)), metadata=metadata)
    assert first.parameters["usage_id"] == again.parameters["usage_id"]
    assert first.raw_output_contents == again.raw_output_contents
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert told(refused.value)["algomart-code"] == "IDEMPOTENCY_CONFLICT"
    assert len(served.node.usage()) == 1


async def test_a_repeat_may_be_serialised_in_another_order(served: Served) -> None:
    """A map has no order on the wire."""
    plain = request_of(rows(1)).SerializeToString()
    fields = [service_pb2.ModelInferRequest(), service_pb2.ModelInferRequest()]
    fields[0].parameters["a"].int64_param = 1
    fields[1].parameters["b"].int64_param = 2
    a, b = (each.SerializeToString() for each in fields)
    metadata = tuple(bearer(idempotency_key="shift-2").items())
    async with grpc.aio.insecure_channel(served.url) as channel:
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        await send(plain + a + b, metadata=metadata)
        await send(plain + b + a, metadata=metadata)
    assert len(served.node.usage()) == 1


# --- about ------------------------------------------------------------------------------------------------------------


def plain(message: Any) -> Any:
    """As JSON has it; 64-bit numbers are text there."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def texted(document: Any) -> Any:
    """REST's document, as `plain` would write it: numbers as text, what is empty left out."""
    if isinstance(document, dict):
        made = {name: texted(value) for name, value in document.items()}
        return {name: value for name, value in made.items() if value not in ("", [], "0") or name == "reason"}
    if isinstance(document, list):
        return [texted(value) for value in document]
    return str(document) if isinstance(document, int) else document


async def test_grpc_says_of_server_and_models_what_rest_says(served: Served) -> None:
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(served.node.app), base_url="http://node") as http,
        served.client() as client,
    ):
        headers = bearer()
        await client.infer("acme--double", [tensor(rows(2))], headers=headers)

        async def rest(path: str, method: str = "GET") -> Any:
            return (await http.request(method, path, headers=headers)).json()

        said = plain(await client.get_server_metadata(headers=headers))
        assert said == await rest("/v2")
        said = plain(await client.get_model_metadata("acme--double", headers=headers))
        assert texted(said) == texted(await rest("/v2/models/acme--double"))
        said = plain(await client.get_model_config("acme--double", "1", headers=headers))["config"]
        assert texted(said) == texted(await rest("/v2/models/acme--double/config"))
        for name in ("acme--double", ""):
            path = f"/v2/models/{name}/stats".replace("//", "/")
            said = plain(await client.get_inference_statistics(name, headers=headers))
            assert texted(said) == texted(await rest(path))
        said = plain(await client.get_model_repository_index(headers=headers))["models"]
        listed = await rest("/v2/repository/index", "POST")
        assert said == [{name: value for name, value in each.items() if value} for each in listed]


async def test_health_needs_no_key_and_a_model_is_ready_where_it_can_be_called(served: Served) -> None:
    async with served.client() as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("acme--double", headers=bearer())
        assert not await client.is_model_ready("acme--nothing", headers=bearer())
        with pytest.raises(InferenceServerException, match="KEY_MISSING"):
            await client.is_model_ready("acme--double")
        served.node.app.ready = lambda: False
        assert not await client.is_server_ready()


async def test_the_owner_loads_and_unloads(served: Served) -> None:
    async with served.client() as client:
        await client.load_model("acme--double", headers=bearer(OPERATOR_KEY))
        assert len(served.node.dataplane.residency.residents()) == 1
        await client.unload_model("acme--double", headers=bearer(OPERATOR_KEY))
        assert len(served.node.dataplane.residency.residents()) == 0
        with pytest.raises(InferenceServerException, match="NOT_OWNER"):
            await client.load_model("acme--double", headers=bearer(OTHER_KEY))
        with pytest.raises(InferenceServerException, match="EXTENSION_NOT_OFFERED"):
            await client.load_model("acme--double", headers=bearer(OPERATOR_KEY), config="{}")


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda client: client.get_system_shared_memory_status(headers=bearer()), "shared memory"),
        (lambda client: client.register_system_shared_memory("a", "/a", 64, headers=bearer()), "shared memory"),
        (lambda client: client.unregister_system_shared_memory(headers=bearer()), "shared memory"),
        (lambda client: client.get_cuda_shared_memory_status(headers=bearer()), "shared memory"),
        (lambda client: client.register_cuda_shared_memory("a", b"aGFuZGxl", 0, 64, headers=bearer()), "shared memory"),
        (lambda client: client.unregister_cuda_shared_memory(headers=bearer()), "shared memory"),
        (lambda client: client.get_trace_settings(headers=bearer()), "trace settings"),
        (lambda client: client.get_log_settings(headers=bearer()), "log settings from afar"),
    ],
)
async def test_what_is_not_offered_is_unimplemented_and_says_so(
    served: Served, call: Callable[[Any], Awaitable[Any]], what: str
) -> None:
    async with served.client() as client:
        with pytest.raises(
            InferenceServerException, match=f"EXTENSION_NOT_OFFERED: this server does not offer {what}.*本服务不提供"
        ) as refused:
            await call(client)
    assert refused.value.status() == "StatusCode.UNIMPLEMENTED"


async def test_what_is_not_offered_takes_a_key_like_anything_else(served: Served) -> None:
    async with served.client() as client:
        with pytest.raises(InferenceServerException, match="KEY_MISSING"):
            await client.get_log_settings()


# --- refusals ---------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[grpc.StatusCode, str, dict[str, Any]]] = {
    "KEY_MISSING": (grpc.StatusCode.UNAUTHENTICATED, "acme--double", {"key": ""}),
    "KEY_INVALID": (grpc.StatusCode.UNAUTHENTICATED, "acme--double", {"key": "am_nobody"}),
    "SCOPE_MISSING": (grpc.StatusCode.PERMISSION_DENIED, "acme--double", {"key": READ_KEY}),
    "MODEL_NOT_FOUND": (grpc.StatusCode.NOT_FOUND, "acme--nothing", {}),
    "TENSOR_SHAPE": (grpc.StatusCode.INVALID_ARGUMENT, "acme--double", {"array": rows(1, 4)}),
    "TENSOR_UNKNOWN": (grpc.StatusCode.INVALID_ARGUMENT, "acme--double", {"more": "z"}),
    "VOUCHER_EXHAUSTED": (grpc.StatusCode.FAILED_PRECONDITION, "acme--dear", {}),
    "DEADLINE_EXCEEDED": (grpc.StatusCode.DEADLINE_EXCEEDED, "acme--endless", {"x_deadline_ms": "150"}),
    "REQUEST_FIELD": (grpc.StatusCode.INVALID_ARGUMENT, "acme--double", {"x_deadline_ms": "soon"}),
    "JOURNAL_UNAVAILABLE": (grpc.StatusCode.UNAVAILABLE, "acme--double", {}),
}


@pytest.mark.parametrize("code", REFUSED)
async def test_a_refusal_is_a_status_in_both_languages_with_code_and_remedy(
    served: Served, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, model, how = REFUSED[code]
    served.node.add("acme/dear", double(), micro=10**12)
    message = request_of(how.get("array", rows(1)), model)
    if "more" in how:
        message.inputs.add(name=how["more"], datatype="FP32", shape=[1])
        message.raw_input_contents.append(bytes(4))
    if code == "JOURNAL_UNAVAILABLE":

        def broken() -> None:
            raise journal_unavailable("the disk is full")

        monkeypatch.setattr(served.node.journal, "check_ready", broken)
    headers = bearer(how.get("key", KEY)) if how.get("key", KEY) else {}
    if "x_deadline_ms" in how:
        headers["x-deadline-ms"] = how["x_deadline_ms"]
    async with stub(served) as server:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.ModelInfer(message, metadata=tuple(headers.items()))
    error = refused.value
    trailing = told(error)
    assert (error.code(), trailing["algomart-code"]) == (status, code)
    body = orjson.loads(trailing["algomart-refusal-bin"])
    assert body["code"] == code
    assert body["request_id"] == trailing["x-request-id"]
    assert body["message"] in error.details()
    assert body["message_zh"] in error.details()
    assert body["remedy"] == trailing["algomart-remedy"] != ""
    if status is grpc.StatusCode.UNAVAILABLE:
        assert int(trailing["retry-after"]) >= 1
    assert served.node.usage() == []
    assert served.node.dataplane.statistics.refusals == {code: 1}


async def test_a_message_over_the_limit_is_refused_by_grpc_itself(served: Served) -> None:
    async with served.client() as client:
        with pytest.raises(InferenceServerException, match=r"RESOURCE_EXHAUSTED.*larger than max"):
            await client.infer("acme--double", [tensor(rows(MAX_BODY // 12 + 100))], headers=bearer())
        result = await client.infer("acme--double", [tensor(rows(1))], headers=bearer())
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * rows(1))
    assert len(served.node.usage()) == 1


BOMB = """
import sys, grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    send = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    try:
        send(bytes(200 << 20), compression=grpc.Compression.Gzip)
    except grpc.RpcError as error:
        print(error.code().name)
"""


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory this process has held since the peak was last forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


async def test_what_a_compressed_message_unpacks_to_is_bounded_too(served: Served) -> None:
    """200 KB that would be 200 MB: refused, and never held."""
    async with served.client() as client:
        result = await client.infer("acme--double", [tensor(rows(9))], headers=bearer(), compression_algorithm="gzip")
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * rows(9))
    forget_peak()
    before = peak_bytes()
    sent = await asyncio.create_subprocess_exec(sys.executable, "-c", BOMB, served.url, stdout=subprocess.PIPE)
    said, _ = await sent.communicate()
    assert said.strip() == b"RESOURCE_EXHAUSTED"
    assert peak_bytes() - before < 50 << 20


# --- calls that end early, bounds, the end of the server --------------------------------------------------------------


def running(served: Served) -> int:
    """Runs in hand in the run threads."""
    return len(served.node.dataplane.queue._running)


@asynccontextmanager
async def occupied(served: Served) -> AsyncIterator[list[Any]]:
    """Every run thread holds an endless call."""
    threads = served.node.dataplane.settings.run_threads
    async with stub(served) as server:
        calls = [
            server.ModelInfer(request_of(rows(1), "acme--endless"), metadata=tuple(bearer().items()))
            for _ in range(threads)
        ]
        await until(lambda: running(served) == threads)
        try:
            yield calls
        finally:
            for call in calls:
                call.cancel()


async def test_a_cancelled_call_is_dropped_before_it_runs(served: Served) -> None:
    queue_ = served.node.dataplane.queue
    async with occupied(served), stub(served) as server:
        waiting = server.ModelInfer(request_of(rows(1), "acme--endless"), metadata=tuple(bearer().items()))
        await until(lambda: queue_.waiting == 1)
        waiting.cancel()
        await until(lambda: queue_.waiting == 0)
    await until(lambda: running(served) == 0)
    assert served.node.usage() == []
    assert queue_.runs == served.node.dataplane.settings.run_threads  # the endless ones, and no other


async def test_the_caller_s_own_grpc_deadline_is_the_call_s(served: Served) -> None:
    async with served.client() as client:
        with pytest.raises(InferenceServerException, match=r"DEADLINE_EXCEEDED"):
            await client.infer("acme--endless", [tensor(rows(1))], headers=bearer(), client_timeout=0.3)
    await until(lambda: running(served) == 0)
    assert served.node.usage() == []


async def test_calls_and_streams_in_hand_are_bounded(tmp_path: Path) -> None:
    # Held calls outlast a slow machine's test, and leave threads: with one a core the other organisation's call would
    # wait until they end, and have what it came later to run in.
    bounds = {"grpc_calls": 4, "grpc_streams": 4, "run_deadline_ms": 5_000, "threads": 4}
    async with serving(tmp_path, **bounds) as served, stub(served) as server:
        metadata = tuple(bearer().items())
        held = [server.ModelInfer(request_of(rows(1), "acme--endless"), metadata=metadata) for _ in range(2)]
        await until(lambda: running(served) + served.node.dataplane.queue.waiting == 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.ModelInfer(request_of(rows(1)), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert told(refused.value)["algomart-code"] == "RPCS_FULL"  # half of the calls are this organisation's
        assert (await server.ModelInfer(request_of(rows(1)), metadata=tuple(bearer(OTHER_KEY).items()))).outputs
        stream = server.ModelStreamInfer(metadata=metadata)
        await stream.write(request_of(rows(1)))
        assert (await stream.read()).error_message == ""
        second = server.ModelStreamInfer(metadata=metadata)  # a quarter of the streams is this organisation's
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await second.read()
        assert told(refused.value)["algomart-code"] == "RPCS_FULL"
        others = server.ModelStreamInfer(metadata=tuple(bearer(OTHER_KEY).items()))
        await others.write(request_of(rows(1)))
        assert (await others.read()).error_message == ""
        for call in held:
            call.cancel()
        await until(lambda: running(served) == 0)
        assert (await server.ModelInfer(request_of(rows(1)), metadata=metadata)).outputs


async def test_the_limits_of_a_key_hold_over_grpc_too(tmp_path: Path) -> None:
    async with serving(tmp_path, key_rate_per_s=1, key_burst=2) as served, stub(served) as server:
        metadata = tuple(bearer().items())
        calls = [server.ModelInfer(request_of(rows(1)), metadata=metadata) for _ in range(9)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.gather(*calls)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = told(refused.value)
    assert trailing["algomart-code"] == "RATE_LIMITED"
    assert int(trailing["retry-after"]) >= 1
    assert any(name.startswith("ratelimit-") for name in trailing)


async def test_a_caller_who_does_not_send_loses_its_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_call, "READ_S", 0.1)
    async with grpc.aio.insecure_channel(served.url) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")(metadata=tuple(bearer().items()))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert told(refused.value)["algomart-code"] == "DEADLINE_EXCEEDED"


async def test_a_caller_who_never_reads_loses_its_place_and_its_connection(tmp_path: Path) -> None:
    async with serving(tmp_path, send_timeout_s=0.5, grpc_streams=4) as served:
        metadata = tuple(bearer().items())
        asked = request_of(rows(16_000))  # answers that no window of HTTP/2 holds
        async with stub(served) as server:
            stream = server.ModelStreamInfer(metadata=metadata)  # all that a quarter of the streams is
            asking = asyncio.create_task(_ask_on(stream, asked))
            await until(lambda: served.server._streams._held)
            await until(lambda: not served.server._streams._held)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await _read_all(stream)
            assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
            await asking
            assert served.server.readers.closed == 1
            again = server.ModelStreamInfer(metadata=metadata)  # a new connection
            for _ in range(8):
                await again.write(asked)
                assert (await again.read()).error_message == ""
        await until(lambda: not served.server.readers._sending)


async def _ask_on(stream: Any, asked: Any) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while True:
            await stream.write(asked)


async def _read_all(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_a_caller_is_not_blamed_for_what_the_server_stood_still(tmp_path: Path) -> None:
    async with serving(tmp_path, send_timeout_s=2.5) as served, stub(served) as server:
        now = [0.0]
        served.server.readers = readers = SlowReaders(2.5, lambda: served.server.port, lambda: now[0])
        stream = server.ModelStreamInfer(metadata=tuple(bearer().items()))
        asking = asyncio.create_task(_ask_on(stream, request_of(rows(16_000))))
        held = 0
        while not (marks := set(readers._sending)) or held < 50:  # the same message, for a while
            await asyncio.sleep(0.01)
            held = held + 1 if set(readers._sending) == marks else 0
        now[0] += 3600
        readers.look()  # one step of that hour counts
        assert not readers.closed
        for _ in range(12):
            now[0] += 1
            readers.look()
        assert readers.closed
        asking.cancel()


async def test_a_priority_is_understood_and_a_wrong_one_refused(served: Served) -> None:
    async with served.client() as client:
        for priority in ("high", "normal", "low"):
            await client.infer("acme--double", [tensor(rows(1))], headers=bearer(x_priority=priority))
        await client.infer("acme--double", [tensor(rows(1))], headers=bearer(), priority=1)
        with pytest.raises(InferenceServerException, match="REQUEST_FIELD"):
            await client.infer("acme--double", [tensor(rows(1))], headers=bearer(x_priority="urgent"))
    assert len(served.node.usage()) == 4


async def test_a_stranger_s_message_is_not_read(served: Served) -> None:
    """The caller is known before its message is taken: a refusal comes while it is still to be sent."""
    async with grpc.aio.insecure_channel(served.url) as channel:
        call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    assert told(refused.value)["algomart-code"] == "KEY_MISSING"


async def test_the_server_finishes_what_runs_and_takes_no_more(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, stub(served) as server:
        metadata = tuple(bearer().items())
        call = server.ModelInfer(
            request_of(rows(1), "acme--endless"), metadata=tuple(bearer(x_deadline_ms="1000").items())
        )
        idle = server.ModelStreamInfer(metadata=metadata)
        await idle.write(request_of(rows(1)))
        await idle.read()
        await until(lambda: running(served) == 1)
        await served.server.stop()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert told(refused.value)["algomart-code"] == "DEADLINE_EXCEEDED"  # its own end, not the server's
        assert await idle.read() is grpc.aio.EOF
        assert await idle.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.ModelInfer(request_of(rows(1)), metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_call_that_comes_while_the_server_stops_is_refused_with_a_code(tmp_path: Path) -> None:
    async with serving(tmp_path, drain_s=5) as served, stub(served) as server, served.client() as client:
        assert await client.is_server_ready()
        stopping = asyncio.create_task(served.server.stop())
        await asyncio.sleep(0)
        assert not await client.is_server_ready()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await server.ModelInfer(request_of(rows(1)), metadata=tuple(bearer().items()))
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert told(refused.value)["algomart-code"] == "SHUTTING_DOWN"
        stopping.cancel()  # no need to wait for more
        await asyncio.wait((stopping,))


async def test_a_port_that_is_taken_is_said(served: Served) -> None:
    with pytest.raises(Conflict) as refused:
        await GrpcServer(served.node.app, "127.0.0.1", served.server.port).start()
    assert refused.value.code == "PORT_IN_USE"
    assert "ALGOMART_GRPC_PORT" in refused.value.remedy_en


def test_nothing_of_grpc_is_imported_where_it_is_off() -> None:
    script = (
        "import sys, serving.node, serving.server, marketplace.start; print([m for m in sys.modules if 'grpc' in m])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- streams ----------------------------------------------------------------------------------------------------------


async def test_a_stream_answers_in_order_and_outlives_a_refusal(served: Served) -> None:
    arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
    models = ["acme--double", "acme--nothing", "acme--double"]

    def talk() -> list[tuple[Any, Any]]:
        with triton.InferenceServerClient(served.url) as client:
            client.start_stream(lambda result, error: arrived.put((result, error)), headers=bearer())
            for number, model in enumerate(models):
                client.async_stream_infer(model, [tensor(rows(1, seed=number))], request_id=str(number))
            answers = [arrived.get(timeout=20) for _ in models]
            client.stop_stream()
        return answers

    first, refused, third = await asyncio.to_thread(talk)
    for number, (result, error) in ((0, first), (2, third)):
        assert error is None
        assert result.get_response().id == str(number)
        assert result.get_response().parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * rows(1, seed=number))
    assert "MODEL_NOT_FOUND" in str(refused[1])
    assert "没有名为" in str(refused[1])
    assert [usage.amount_micro for usage in served.node.usage()] == [PRICE, PRICE]
    ids = [result.get_response().parameters["usage_id"].string_param for result, _ in (first, third)]
    assert ids == [usage.usage_id for usage in served.node.usage()]


async def test_a_refused_request_of_a_stream_is_named(served: Served) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "acme--nothing", "inputs": [tensor(rows(1))], "request_id": "r7"}

    async with served.client() as client:
        async for result, error in client.stream_infer(requests(), headers=bearer()):
            assert "MODEL_NOT_FOUND" in str(error)
            assert result is None
    async with stub(served) as server:
        stream = server.ModelStreamInfer(metadata=tuple(bearer().items()))
        await stream.write(request_of(rows(1), "acme--nothing", id="r7"))
        answer = await stream.read()
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    assert answer.infer_response.id == "r7"
    assert answer.infer_response.parameters["algomart_code"].string_param == "MODEL_NOT_FOUND"


async def test_a_revoked_key_ends_its_stream(served: Served) -> None:
    async with stub(served) as server:
        stream = server.ModelStreamInfer(metadata=tuple(bearer().items()))
        await stream.write(request_of(rows(1)))
        assert (await stream.read()).error_message == ""
        del served.node.admission.keys[KEY]
        served.node.dataplane.forget_keys(FACTORY.key_id)
        await stream.write(request_of(rows(1)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert len(served.node.usage()) == 1


# --- grpc.health.v1 ---------------------------------------------------------------------------------------------------


async def test_health_is_checked_and_watched(served: Served) -> None:
    serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    async with grpc.aio.insecure_channel(served.url) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "inference.GRPCInferenceService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == serving_
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        watched = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watched.read()).status == serving_
        served.node.app.ready = lambda: False
        assert (await watched.read()).status == not_serving
        served.node.app.ready = lambda: True
        assert (await watched.read()).status == serving_
        await served.server.stop()
        assert (await watched.read()).status == not_serving
        assert await watched.read() is grpc.aio.EOF


# --- nonsense over the wire -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Served]]:
    """One node for many examples, on a loop of its own."""
    with asyncio.Runner() as runner:
        made = serving(tmp_path_factory.mktemp("fuzzed"))
        served = runner.run(made.__aenter__())
        yield runner, served
        runner.run(made.__aexit__(None, None, None))


METHODS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
METADATA = st.dictionaries(
    st.sampled_from(["x-deadline-ms", "idempotency-key", "x-request-id", "authorization", "x-api-key", "noise-bin"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12).map(str.strip),
    max_size=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(METHODS), st.one_of(st.binary(max_size=60), st.just(b"")), METADATA, st.booleans())
def test_no_bytes_and_no_metadata_break_the_server(
    fuzzed: tuple[asyncio.Runner, Served], method: str, content: bytes, noise: dict[str, str], known: bool
) -> None:
    runner, served = fuzzed
    metadata = {name: value.encode() if name.endswith("-bin") else value for name, value in noise.items()}
    if known:
        metadata["authorization"] = f"Bearer {KEY}"
    message = request_of(rows(1)).SerializeToString() + content if method.startswith("Model") else content

    async def call() -> grpc.StatusCode:
        async with grpc.aio.insecure_channel(served.url) as channel:
            made = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(
                message, metadata=tuple(metadata.items()), timeout=20
            )
            return await made.code()

    code = runner.run(call())
    assert code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED)


# --- the access log ---------------------------------------------------------------------------------------------------


async def test_a_call_a_refusal_and_a_stream_have_a_line_each(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with serving(tmp_path, access_log=str(path)) as served:
        async with served.client() as client:
            array = rows(3)
            await client.infer("acme--double", [tensor(array)], headers=bearer(x_request_id="one"))
            with pytest.raises(Exception, match="MODEL_NOT_FOUND"):
                await client.infer("acme--nothing", [tensor(array)], headers=bearer(x_request_id="two"))
            asked = [request_of(rows(2)), request_of(rows(4))]
        async with stub(served) as made:
            metadata = tuple(bearer(x_request_id="three").items())
            answers = [each async for each in made.ModelStreamInfer(iter(asked), metadata=metadata)]
            assert len(answers) == 2
        log = served.node.app.access_log
        assert log is not None
    log.close()
    lines = {each["request_id"]: each for each in map(json.loads, path.read_text().splitlines())}
    one, two, three = lines["one"], lines["two"], lines["three"]
    assert (one["method"], one["path"], one["status"]) == ("gRPC", "/inference.GRPCInferenceService/ModelInfer", 200)
    assert (one["model"], one["rows"], one["organisation"]) == ("acme/double@1", 3, "org_factory")
    assert one["compute_ms"] > 0
    assert one["bytes_in"] > array.nbytes
    assert one["bytes_out"] > array.nbytes
    assert two["status"] == 404
    assert two["code"]
    assert (three["status"], three["rows"], three["model"]) == (200, 6, "acme/double@1")
    assert KEY not in path.read_text()
