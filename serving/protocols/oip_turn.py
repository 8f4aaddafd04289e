"""The small calls of one turn of the event loop: run together where their graph allows, journalled with one write,
answered in the order they came.

Calls that arrive together wait for the one write of the journal anyway, so joining them delays nobody, and 32 rows in
one run cost what two runs of one row do. Nothing waits for company: a call that comes alone runs alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable
from typing import Any

import msgspec
import numpy as np
import orjson

from model_store.errors import Refusal
from model_store.tensors import Array
from serving.dataplane import DataPlane
from serving.digests import digest_of_arrays, mint_usage_ids
from serving.errors.node import internal_error
from serving.metering import UsageRecord
from serving.protocols.oip_request import InferRequest
from serving.protocols.oip_response import encode_response
from serving.small_calls import SmallCall, run_now
from serving.statistics import VersionStatistics

_log = logging.getLogger("algomart.serving")
_JSON_NUMBERS = "fiub"


class Answer(msgspec.Struct, gc=False):
    """One answer that is due this turn, in its place. `content` is set by the end of it, or `refusal`."""

    respond: Callable[[Answer], None]
    context: Any  # the skin's own: what it needs to write the answer
    call: SmallCall | None = None
    request: InferRequest | None = None
    head: bytes = b""  # opening of the JSON answer
    content: bytes = b""
    json_length: int | None = None  # of the JSON, where binary tensors follow it
    refusal: Refusal | None = None
    request_id: str = ""  # of a refusal whose `context` is not known
    bytes_in: int = 0  # of the request's body


class Turn:
    """What is due at the end of this turn of the event loop. Every method runs on the event loop."""

    def __init__(self, dataplane: DataPlane) -> None:
        self._dataplane = dataplane
        self._answers: list[Answer] = []
        self._groups: dict[Hashable, list[Answer]] = {}

    def take(self, answer: Answer) -> None:
        """Answer this at the end of the turn."""
        answers = self._answers
        if not answers:
            asyncio.get_running_loop().call_soon(self.finish)
        answers.append(answer)
        call = answer.call
        if call is not None:
            call.resident.references += 1  # an adapter unloaded within the turn would be answered by its base
            key = _key_of(call)
            group = self._groups.get(key)
            if group is None:
                self._groups[key] = [answer]
            else:
                group.append(answer)

    def finish(self) -> None:
        """Run, journal, answer. Whoever cannot be journalled is refused; a failing run refuses its own callers only."""
        answers, groups = self._answers, self._groups
        if not answers:
            return
        self._answers, self._groups = [], {}
        records: list[UsageRecord] = []
        for group in groups.values():
            try:
                self._run_group(group, records)
            except Exception:
                _log.exception("unexpected error on the hot path")
                for answer in group:
                    if not answer.content and answer.refusal is None:
                        answer.refusal = internal_error()
                        answer.call.undo()  # type: ignore[union-attr]
        for group in groups.values():
            for answer in group:
                self._dataplane.residency.release(answer.call.resident)  # type: ignore[union-attr]
        failure = self._write(records, answers)
        for answer in answers:
            if failure is not None and answer.call is not None and answer.refusal is None:
                answer.refusal = failure
            answer.respond(answer)

    def _write(self, records: list[UsageRecord], answers: list[Answer]) -> Refusal | None:
        journal = self._dataplane.journal
        try:
            if records:
                journal.usages(records)
        except Refusal as refusal:
            for answer in answers:
                if answer.call is not None and answer.refusal is None:
                    answer.call.undo()
            return refusal
        return None

    # --- running ------------------------------------------------------------------------------------------------------

    def _run_group(self, group: list[Answer], records: list[UsageRecord]) -> None:
        first = group[0].call
        assert first is not None, "only calls are grouped"
        at = 0
        while at < len(group):
            rows = 0
            until = at
            limit = self._rows_at_once(first) if first.resident.runs_on.batchable and len(group) > 1 else 1
            while until < len(group) and (until == at or rows + group[until].call.rows <= limit):  # type: ignore[union-attr]
                rows += group[until].call.rows  # type: ignore[union-attr]
                until += 1
            chunk = group[at:until]
            if len(chunk) == 1 or not self._run_joined(chunk, rows, records):
                for answer in chunk:
                    self._run_alone(answer, records)
            at = until

    def _rows_at_once(self, call: SmallCall) -> int:
        """As many rows as it pays to join, and no more than keep the run short enough for the event loop."""
        cost, each = call.resident.cost, max(1, call.elements // call.rows)
        rows = cost.rows_together(call.elements, call.rows, call.resident.max_rows)
        while rows > call.rows and cost.predict_ms(each * rows, rows) > self._dataplane.settings.inline_limit_ms:
            rows //= 2
        return rows

    def _run_joined(self, chunk: list[Answer], rows: int, records: list[UsageRecord]) -> bool:
        """One run for all; False (nothing done) where it failed or its outputs do not follow the rows: each runs alone,
        and who spoilt it gets the refusal."""
        calls = [answer.call for answer in chunk if answer.call is not None]
        first = calls[0]
        resident = first.resident.runs_on
        called, counts = [call.resident for call in calls], [call.rows for call in calls]
        began = time.perf_counter()
        joined = {name: np.concatenate([call.inputs[name] for call in calls]) for name in first.inputs}
        started = time.perf_counter()
        try:
            results = resident.run_together(called, counts, joined, first.outputs)
        except Refusal:
            return False
        compute_ms = (time.perf_counter() - started) * 1000
        size = 0
        for array in results.values():
            if not array.ndim or array.shape[0] != rows:
                resident.batchable = False  # the manifest promised rows that the graph does not keep
                return False
            size += array.nbytes
        if size > self._dataplane.settings.max_output_bytes:
            return False
        resident.cost.record(sum(call.elements for call in calls), compute_ms)
        _count(calls, rows, compute_ms, (started - began) * 1000)
        self._conclude(chunk, results, compute_ms / rows, records)
        return True

    def _conclude(
        self, chunk: list[Answer], results: dict[str, Array], row_ms: float, records: list[UsageRecord]
    ) -> None:
        """Split a joined run: each call's own rows, its digest, its record, its answer."""
        texts, literals = _texts_of_rows(chunk, results), self._dataplane.settings.triton_compat
        ids = mint_usage_ids(len(chunk), chunk[0].call.at_ms)  # type: ignore[union-attr]
        at = 0
        for index, answer in enumerate(chunk):
            call = answer.call
            assert call is not None
            own = {name: array[at : at + call.rows] for name, array in results.items()}
            at += call.rows
            if texts is not None:
                answer.content = texts[index]
            else:
                assert answer.request is not None
                answer.content, answer.json_length = encode_response(answer.head, answer.request, own, literals)
            call.usage_id = ids[index]
            call.charge(row_ms * call.rows)
            records.append(call.record(digest_of_arrays(own)))
            if call.served.shadow is not None:
                self._dataplane.shadows.offer(
                    call.served, call.inputs, call.outputs, own, call.rows, row_ms * call.rows
                )

    def _run_alone(self, answer: Answer, records: list[UsageRecord]) -> None:
        call = answer.call
        assert call is not None
        assert answer.request is not None
        try:
            started = time.perf_counter()
            results = run_now(call, self._dataplane.settings.max_output_bytes)
            if call.served.shadow is not None:
                own_ms = (time.perf_counter() - started) * 1000
                self._dataplane.shadows.offer(call.served, call.inputs, call.outputs, results, call.rows, own_ms)
            records.append(call.record(digest_of_arrays(results)))
            answer.content, answer.json_length = encode_response(
                answer.head, answer.request, results, self._dataplane.settings.triton_compat
            )
        except Refusal as refusal:
            answer.refusal = refusal


def _count(calls: list[SmallCall], rows: int, compute_ms: float, input_ms: float) -> None:
    """A shared run in the statistics: of one version, or of several adapters, each by its own rows."""
    first = calls[0]
    if all(call.statistics is first.statistics for call in calls):
        first.statistics.joined(len(calls), rows, compute_ms, input_ms, first.at_ms)
        return
    versions: dict[VersionStatistics, list[SmallCall]] = {}
    for call in calls:
        versions.setdefault(call.statistics, []).append(call)
    for statistics, own in versions.items():
        own_rows = sum(call.rows for call in own)
        share = own_rows / rows
        statistics.joined(len(own), own_rows, compute_ms * share, input_ms * share, first.at_ms)


def _key_of(call: SmallCall) -> Hashable:
    """What calls must have in common to run together; calls that cannot be joined have a key of their own."""
    runs_on = call.resident.runs_on
    if not runs_on.batchable:
        return id(call)
    outputs = None if call.outputs is None else tuple(call.outputs)
    inputs = call.inputs
    if len(inputs) == 1:
        for name, array in inputs.items():
            shape = array.shape
            if not shape or shape[0] != call.rows:
                return id(call)
            return (id(runs_on), name, array.dtype.char, shape[1:], outputs)
    if not all(array.ndim and array.shape[0] == call.rows for array in inputs.values()):
        return id(call)
    shapes = tuple(sorted((name, array.dtype.char, array.shape[1:]) for name, array in inputs.items()))
    return (id(runs_on), shapes, outputs)


def _texts_of_rows(chunk: list[Answer], results: dict[str, Array]) -> list[bytes] | None:
    """The JSON answers of calls of one row each and one table of numbers, made from one serialisation of the table;
    None where anything differs from this usual case."""
    if len(results) != 1:
        return None
    ((name, array),) = results.items()
    if array.ndim != 2 or array.dtype.kind not in _JSON_NUMBERS or array.shape[0] != len(chunk):
        return None
    for answer in chunk:
        request = answer.request
        if request is None or request.id or request.binary or request.binary_default:
            return None
    text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # NaN and infinities
        return None
    request = chunk[0].request
    assert request is not None
    opening, _ = encode_response(b"", request, {name: array[:1]})
    start = opening.index(b'"data":[') + 8
    opening, closing = opening[:start], b"]}]}"
    return [
        b"".join((answer.head, opening, row, closing))
        for answer, row in zip(chunk, text[2:-2].split(b"],["), strict=True)
    ]
