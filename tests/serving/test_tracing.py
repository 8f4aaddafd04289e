"""Traces of a node, as a collector receives them: which calls have one, and what stands in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.observed import Observed
from serving.tracing import TRACE_ID
from tests.otlp import Collector
from tests.serving.parts import rows
from tests.serving.test_http import PATH, Served, request_of, serve

CALLS = 60


@contextmanager
def traced(folder: Path, patch: pytest.MonkeyPatch, **settings: str) -> Iterator[tuple[Served, Collector]]:
    """A node that sends its spans to a collector, which has them all when the block is left."""
    collector = Collector()
    patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    for name, value in settings.items():
        patch.setenv(f"OTEL_TRACES_{name}", value)
    try:
        for served in serve(folder):
            yield served, collector
    finally:
        collector.server.shutdown()


def call(served: Served, times: int = 1, **headers: str) -> None:
    with served.client() as client:
        for _ in range(times):
            assert client.post(PATH, json=request_of(rows(1)), headers=headers).status_code == 200


def ordinary_calls(patch: pytest.MonkeyPatch) -> list[int]:
    """Of the requests that take the ordinary way from now on: the trace ids that the sampler was asked about; 0: it was
    not."""
    seen: list[int] = []
    whole = Observed.__call__

    async def counted(self: Observed, scope: Any, *rest: Any) -> None:
        seen.append(scope.get(TRACE_ID, 0))
        await whole(self, scope, *rest)

    patch.setattr(Observed, "__call__", counted)
    return seen


def test_what_the_sampler_drops_stays_on_the_hot_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(tmp_path, monkeypatch, SAMPLER="always_off") as (served, collector):
        served.warm()
        ordinary = ordinary_calls(monkeypatch)
        call(served, CALLS)
    assert len(ordinary) < CALLS  # none, but on a machine so busy that the graph seems long
    assert collector.spans == []


def test_what_it_takes_is_recorded_under_the_trace_id_that_it_was_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(tmp_path, monkeypatch, SAMPLER="parentbased_traceidratio", SAMPLER_ARG="0.5") as (served, collector):
        served.warm()
        ordinary = ordinary_calls(monkeypatch)
        began = time.time_ns()
        call(served, CALLS)
    mine = [span for span in collector.spans if span.name == "POST" and span.start_time_unix_nano >= began]
    recorded = [int.from_bytes(span.trace_id) for span in mine]
    assert 0 < len(mine) < CALLS  # but for one chance in 2 to the 59
    assert len(ordinary) < CALLS
    asked = [trace_id for trace_id in ordinary if trace_id]
    assert asked
    # The sampler takes the lower half of the trace ids, by their last 64 bits: asked again about others, it would have
    # taken half of what it had taken.
    assert {each for each in asked if each & ((1 << 64) - 1) < 1 << 63} <= set(recorded)
    assert len(set(recorded)) == len(mine)


def test_a_sampler_that_takes_what_its_caller_did_not_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with traced(tmp_path, monkeypatch, SAMPLER="always_on") as (served, collector):
        served.warm()
        call(served, traceparent=f"00-{'7' * 32}-{'7' * 16}-00")
    assert [span for span in collector.spans if span.trace_id.hex() == "7" * 32 and span.name == "POST"]


def test_the_opening_of_a_lease_and_the_wait_in_the_queue_stand_below_their_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with traced(tmp_path, monkeypatch) as (served, collector):
        call(served, traceparent=f"00-{'a' * 32}-{'7' * 16}-01")  # opens the lease, and loads the model
        call(served, traceparent=f"00-{'b' * 32}-{'7' * 16}-01", **{"Idempotency-Key": "queued"})
    for trace in ("a" * 32, "b" * 32):
        spans = {span.name: span for span in collector.spans if span.trace_id.hex() == trace}
        assert sorted(spans) == ["POST", "lease", "queue", "run"]
        request, lease, queue, run = (spans[name] for name in ("POST", "lease", "queue", "run"))
        assert {each.parent_span_id for each in (lease, queue, run)} == {request.span_id}
        assert request.parent_span_id.hex() == "7" * 16
        assert request.start_time_unix_nano <= lease.start_time_unix_nano
        assert lease.end_time_unix_nano <= queue.end_time_unix_nano == run.start_time_unix_nano
        assert queue.start_time_unix_nano <= queue.end_time_unix_nano
        assert run.end_time_unix_nano <= request.end_time_unix_nano
