"""OpenTelemetry traces, off unless the standard variables name where they go; the library is imported only then.

    OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME …

A request's span is the child of its W3C `traceparent`, a header or gRPC's metadata; below it stand the wait in the
queue, the run, and the opening of a lease. The hot path asks the sampler first and answers what it drops; what it takes
goes the ordinary way, under the trace id that it was asked about, so that it takes it there too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TRACEPARENT = b"traceparent"
TRACE_ID = "algomart.trace_id"  # of the scope: that the sampler was asked about, of a request without traceparent


class Tracing:
    """What records spans. Used on the event loop; they are sent by a thread of the library's own."""

    def __init__(self) -> None:
        """Raises ModuleNotFoundError where the extra `otel` is not installed."""
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import Decision
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        class Ids(RandomIdGenerator):
            next_trace_id = 0

            def generate_trace_id(self) -> int:
                given, self.next_trace_id = self.next_trace_id, 0
                return given or super().generate_trace_id()

        self._ids = Ids()
        self._drop = Decision.DROP
        self._nobody = context.Context()
        name = os.environ.get("OTEL_SERVICE_NAME", "algomart")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}), id_generator=self._ids)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("algomart.serving")
        self._propagator = TraceContextTextMapPropagator()
        self._context, self._trace = context, trace

    def is_dropped(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> tuple[bool, int]:
        """Whether the sampler drops a request, and the trace id that it was asked about (0: the caller's)."""
        parent = self._parent_of(headers)
        caller = self._trace.get_current_span(parent).get_span_context()
        trace_id = caller.trace_id if caller.is_valid else self._ids.generate_trace_id()
        asked = self._provider.sampler.should_sample(
            parent, trace_id, method, self._trace.SpanKind.SERVER, _attributes(method, path)
        )
        return asked.decision is self._drop, 0 if caller.is_valid else trace_id

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[bytes, bytes], trace_id: int = 0) -> Iterator[Any]:
        """The span of one request, current inside; its status code is set with `answered`. `trace_id`: by `is_dropped`,
        where that was asked."""
        self._ids.next_trace_id = trace_id
        with self._serving(method, _attributes(method, path), headers) as span:
            yield span

    @contextmanager
    def rpc(self, path: str, metadata: Mapping[bytes, bytes]) -> Iterator[Any]:
        """The span of one gRPC call, or of a whole stream, current inside; its end is set with `ended`. `path`:
        `/service/method`."""
        service, _, method = path[1:].rpartition("/")
        of_rpc = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        with self._serving(path[1:], _attributes("POST", path) | of_rpc, metadata) as span:
            yield span

    @contextmanager
    def _serving(self, name: str, attributes: Mapping[str, str], headers: Mapping[bytes, bytes]) -> Iterator[Any]:
        with self._tracer.start_as_current_span(
            name, context=self._parent_of(headers), kind=self._trace.SpanKind.SERVER, attributes=attributes
        ) as span:
            yield span

    def _parent_of(self, headers: Mapping[bytes, bytes]) -> Any:
        given = headers.get(TRACEPARENT)
        if given is None:
            return self._nobody
        carrier = {"traceparent": given.decode("latin-1")}
        if (state := headers.get(b"tracestate")) is not None:
            carrier["tracestate"] = state.decode("latin-1")
        return self._propagator.extract(carrier, self._nobody)

    def answered(self, span: Any, status: int) -> None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))

    def ended(self, span: Any, status: int, code: int) -> None:
        """`status`: the one that HTTP would have had, as in the access log; `code`: gRPC's own."""
        span.set_attribute("rpc.grpc.status_code", code)
        self.answered(span, status)

    def passed_on(self) -> dict[str, str]:
        """The headers with which another process continues the current span."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return carrier

    def ran(self, model: str, version: int, rows: int, queue_ms: float, compute_ms: float) -> None:
        """A run that has just ended, with its wait before it, below the current span."""
        end = time.time_ns()
        begun = end - int(compute_ms * 1e6)
        attributes: dict[str, Any] = {"algomart.model": model, "algomart.version": version, "algomart.rows": rows}
        if queue_ms > 0:
            span = self._tracer.start_span("queue", start_time=begun - int(queue_ms * 1e6))
            span.end(end_time=begun)
        self._tracer.start_span("run", start_time=begun, attributes=attributes).end(end_time=end)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        with self._tracer.start_as_current_span(name):
            yield

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()


def tracing_wanted() -> bool:
    return any(os.environ.get(name) for name in ENDPOINTS)


def _attributes(method: str, path: str) -> dict[str, str]:
    return {"http.request.method": method, "url.path": path}
