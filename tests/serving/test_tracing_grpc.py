"""Traces of gRPC calls, as a collector receives them: the same as HTTP's, under the caller's `traceparent`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.server import server_of
from serving.siblings import ProcessGroup
from tests.otlp import Collector
from tests.serving.parts import rows, until
from tests.serving.test_grpc import Served, bearer, request_of, running, serving, stub, tensor

SERVICE = "inference.GRPCInferenceService"
CALLER = "7" * 16


@asynccontextmanager
async def traced(folder: Path, patch: pytest.MonkeyPatch, **settings: str) -> AsyncIterator[tuple[Served, Collector]]:
    """A node with gRPC that sends its spans to a collector, which has them all when the block is left."""
    collector = Collector()
    patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    for name, value in settings.items():
        patch.setenv(f"OTEL_TRACES_{name}", value)
    try:
        async with serving(folder) as served:
            yield served, collector
            tracing = served.node.app.dataplane.tracing
            assert tracing is not None
            await served.server.stop()
            await asyncio.to_thread(tracing.close)
    finally:
        await asyncio.to_thread(collector.server.shutdown)


def parent(trace: str, sampled: bool = True) -> dict[str, str]:
    return bearer(traceparent=f"00-{trace * 32}-{CALLER}-{'01' if sampled else '00'}")


def of_trace(collector: Collector, trace: str) -> list[Any]:
    return [span for span in collector.spans if span.trace_id.hex() == trace * 32]


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_a_call_is_a_child_of_its_caller_with_lease_queue_and_run_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(tmp_path, monkeypatch) as (served, collector), served.client() as client:
        await client.infer("acme--double", [tensor(rows(3))], headers=parent("a"))
    spans = {span.name: span for span in of_trace(collector, "a")}
    call = spans.pop(f"{SERVICE}/ModelInfer")
    assert set(spans) == {"lease", "queue", "run"}
    assert {span.parent_span_id for span in spans.values()} == {call.span_id}
    assert call.parent_span_id.hex() == CALLER
    assert call.kind == call.SPAN_KIND_SERVER
    assert attributes(call) == {
        "http.request.method": "POST",
        "url.path": f"/{SERVICE}/ModelInfer",
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "http.response.status_code": 200,
    }
    assert attributes(spans["run"]) == {"algomart.model": "acme/double", "algomart.version": 1, "algomart.rows": 3}


async def test_a_stream_is_one_span_with_each_run_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(tmp_path, monkeypatch) as (served, collector), stub(served) as made:
        asked = [request_of(rows(2)), request_of(rows(4))]
        answers = [each async for each in made.ModelStreamInfer(iter(asked), metadata=tuple(parent("b").items()))]
        assert len(answers) == 2
    found = of_trace(collector, "b")
    (stream,) = [span for span in found if span.name == f"{SERVICE}/ModelStreamInfer"]
    runs = [span for span in found if span.name == "run"]
    assert [attributes(run)["algomart.rows"] for run in runs] == [2, 4]
    assert {run.parent_span_id for run in runs} == {stream.span_id}


async def test_how_a_call_ended_stands_in_its_span(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(tmp_path, monkeypatch) as (served, collector), served.client() as client:
        with pytest.raises(Exception, match="MODEL_NOT_FOUND"):
            await client.infer("acme--nothing", [tensor(rows(1))], headers=parent("c"))
        async with stub(served) as made:
            slow = made.ModelInfer(request_of(rows(1), "acme--endless"), metadata=tuple(parent("d").items()))
            await until(lambda: running(served))
            slow.cancel()
            late = made.ModelInfer(
                request_of(rows(1), "acme--endless"), metadata=tuple((parent("e") | {"x-deadline-ms": "30"}).items())
            )
            with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE"):
                await late
    by_trace = {trace: {span.name: span for span in of_trace(collector, trace)} for trace in "cde"}
    missing, gone, late = (by_trace[trace][f"{SERVICE}/ModelInfer"] for trace in "cde")
    shown = [
        (attributes(span)["rpc.grpc.status_code"], attributes(span)["http.response.status_code"], span.status.code)
        for span in (missing, gone, late)
    ]
    error = missing.status.STATUS_CODE_ERROR
    assert shown == [(5, 404, 0), (1, 0, 0), (4, 504, error)]


async def test_what_the_caller_does_not_sample_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(tmp_path, monkeypatch) as (served, collector), served.client() as client:
        await client.infer("acme--double", [tensor(rows(1))], headers=parent("a", sampled=False))
        await client.infer("acme--double", [tensor(rows(1))], headers=parent("b"))
    assert not of_trace(collector, "a")
    assert of_trace(collector, "b")


async def test_a_call_without_a_parent_begins_a_trace_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with traced(tmp_path, monkeypatch) as (served, collector):
        async with grpc.aio.insecure_channel(served.url) as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        async with served.client() as client:
            await client.infer("acme--double", [tensor(rows(1))], headers=bearer(traceparent="nonsense"))
    own = {span.name: span for span in collector.spans if not span.parent_span_id}
    assert set(own) == {"grpc.health.v1.Health/Check", f"{SERVICE}/ModelInfer"}
    assert len({span.trace_id for span in own.values()}) == 2


async def test_the_sampler_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with traced(tmp_path, monkeypatch, SAMPLER="always_off") as (served, collector), served.client() as client:
        await client.infer("acme--double", [tensor(rows(1))], headers=parent("a"))
    assert collector.spans == []


@asynccontextmanager
async def over_http(served: Served) -> AsyncIterator[str]:
    """Where the node answers HTTP, too."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = server_of(served.node.app, "127.0.0.1", 0, log_level="warning", file_descriptor=listening.fileno())
        serves = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        served.node.app.companion = served.server  # only now: it has been started
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serves


def joined(first: Served, second: Served, urls: list[str]) -> str:
    """Two processes of one market; an Idempotency-Key that the second answers for."""
    for number, served in enumerate((first, second)):
        ProcessGroup(number, urls, ["first", "second"], "secret").join(served.node.app)
    siblings = first.node.app.siblings
    assert siblings is not None
    return next(str(number) for number in range(99) if siblings.is_elsewhere(str(number).encode()))


async def test_a_call_that_another_process_answers_is_one_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        traced(tmp_path / "a", monkeypatch) as (first, collector),
        traced(tmp_path / "b", monkeypatch) as (second, of_second),
        over_http(first) as one,
        over_http(second) as two,
    ):
        key = joined(first, second, [one, two])
        async with first.client() as client:
            await client.infer("acme--double", [tensor(rows(1))], headers=parent("a") | {"idempotency-key": key})
    (call,) = of_trace(collector, "a")
    spans = {span.name: span for span in of_trace(of_second, "a")}
    assert spans["POST"].parent_span_id == call.span_id
    assert spans["run"].parent_span_id == spans["POST"].span_id


async def test_a_call_that_another_process_answers_may_have_less_than_a_millisecond_left(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as first, serving(tmp_path / "b") as second, over_http(second) as url:
        key = joined(first, second, [url, url])
        async with first.client() as client:
            headers = bearer(idempotency_key=key, x_deadline_ms="0.5")
            with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
                await client.infer("acme--double", [tensor(rows(1))], headers=headers)
