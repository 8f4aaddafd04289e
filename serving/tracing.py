"""OpenTelemetry traces, off unless the standard variables name where they go; the library is imported only then.

    OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME …

A request's span is the child of its W3C `traceparent`; below it stand the wait in the queue, the run, and the opening
of a lease. While tracing is on the hot path answers only what its `traceparent` says is not sampled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
TRACEPARENT = b"traceparent"
_NOT_SAMPLED = b"-00"


class Tracing:
    """What records spans. Used on the event loop; they are sent by a thread of the library's own."""

    def __init__(self) -> None:
        """Raises ModuleNotFoundError where the extra `otel` is not installed."""
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "algomart")
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("algomart.serving")
        self._propagator = TraceContextTextMapPropagator()
        self._context, self._trace = context, trace

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Iterator[Any]:
        """The span of one request, current inside; its status code is set with `answered`."""
        given = headers.get(TRACEPARENT)
        carrier = {} if given is None else {"traceparent": given.decode("latin-1")}
        if (state := headers.get(b"tracestate")) is not None:
            carrier["tracestate"] = state.decode("latin-1")
        attributes = {"http.request.method": method, "url.path": path}
        parent = self._propagator.extract(carrier)
        kind = self._trace.SpanKind.SERVER
        with self._tracer.start_as_current_span(method, context=parent, kind=kind, attributes=attributes) as span:
            yield span

    def answered(self, span: Any, status: int) -> None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))

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


def may_be_hot(headers: Mapping[bytes, bytes]) -> bool:
    """While tracing is on: the caller has decided against a trace of this request."""
    return headers.get(TRACEPARENT, b"").endswith(_NOT_SAMPLED)
