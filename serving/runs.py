"""A run: what a queued call is, and how calls that may run together do so in a thread, each getting its rows back."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from model_store.errors import Refusal
from model_store.tensors import Array
from serving.digests import digest_of_arrays
from serving.errors.node import deadline_exceeded
from serving.fairness import Flow
from serving.resident import Resident

Outputs = dict[str, Array]
MARGIN = 2.0  # half the runs take longer than expected, and under overload every call is at its last moment
WAITED_MS = 5.0  # longer than the event loop may be held


@dataclass(frozen=True, slots=True)
class Execution:
    """One run as the statistics of a version have it: its own rows, and its share of the milliseconds of the graph, of
    joining rows before, of splitting them after."""

    rows: int
    compute_ms: float
    input_ms: float = 0.0
    output_ms: float = 0.0


@dataclass(slots=True)
class Ran:
    """What one call got of a run: its own rows. Times in milliseconds; `compute_ms` is its share of the run.

    `batch_cpu_ms` is what the whole run took of its thread, without the waits for the interpreter and for a core that a
    busy node adds: by it a model is judged to be short or long.
    """

    outputs: Outputs
    digest: str
    queue_ms: float
    compute_ms: float
    batch_rows: int
    batch_cpu_ms: float
    execution: Execution | None = None  # with one of the calls of each version in a run, so that it is counted once


class Job:
    """One queued call. `done` is its future; `started` once its run has begun (from then on it is work done)."""

    __slots__ = (
        "charged_ms", "deadline", "deadline_ms", "done", "elements", "expected_ms", "flow", "inputs", "outputs",
        "patient", "queued_at", "resident", "rows", "started", "timer",
    )  # fmt: skip

    def __init__(
        self,
        resident: Resident,
        inputs: Outputs,
        outputs: list[str] | None,
        rows: int,
        deadline_ms: float,
        done: asyncio.Future[Ran],
        flow: Flow[Job],
        patient: bool = False,
    ) -> None:
        """`patient`: the deadline is the node's own, not the caller's."""
        self.resident, self.inputs, self.outputs, self.rows = resident, inputs, outputs, rows
        self.elements = sum(array.size for array in inputs.values())
        self.queued_at = time.monotonic()
        self.deadline_ms = deadline_ms
        self.deadline = self.queued_at + deadline_ms / 1000
        self.done = done
        self.flow = flow
        self.expected_ms = resident.runs_on.cost.queued_ms
        self.patient = patient
        self.charged_ms = 0.0
        self.started = False
        self.timer: asyncio.TimerHandle | None = None

    def is_too_late(self, now: float, expected_ms: float) -> bool:
        """It has waited, and a run of so long would end past its deadline. What has not waited is run all the same: an
        expectation that is wrong must not keep a model from being measured again."""
        waited_ms = (now - self.queued_at) * 1000
        return waited_ms > WAITED_MS and (self.deadline - now) * 1000 < MARGIN * expected_ms < math.inf


def postpone(job: Job, seconds: float) -> None:
    """The node stood still for so long: where the deadline is its own, the call must not pay for that."""
    if not job.patient or job.done.done() or job.timer is None:
        return
    job.timer.cancel()
    job.deadline += seconds
    job.timer = asyncio.get_running_loop().call_later(max(0.0, job.deadline - time.monotonic()), expire, job)


def expire(job: Job) -> None:
    """Answer a call that is past its deadline, or bound to be."""
    if not job.done.done():
        job.done.set_exception(deadline_exceeded(job.deadline_ms))


def give_way(by: int) -> None:
    """The calling thread gives way to the others of its process, and to other programs, by so much niceness.

    Where the event loop and a run share a core as equals, the kernel takes the core from the loop in the middle of a
    turn and gives it to the run until the next tick (4 ms): everybody whose call the loop would have answered waits.
    """
    if by and sys.platform == "linux":  # elsewhere niceness is the whole process's
        os.nice(by)


def run_batch(resident: Resident, batch: list[Job], max_output_bytes: int) -> list[Ran | BaseException]:
    """Run calls on the graph of `resident` together and split the rows exactly. A call that spoils a shared run is
    found by running each alone."""
    started = time.monotonic()
    live = [job for job in batch if not job.done.done() and job.deadline > started]
    results: dict[Job, Ran | BaseException] = {
        job: deadline_exceeded(job.deadline_ms) for job in batch if job not in live
    }
    if len(live) > 1:
        shared = _run_shared(resident, live, max_output_bytes * len(live), started)
        if shared is not None:
            results.update(shared)
            return [results[job] for job in batch]
    for job in live:
        results[job] = _run_alone(job, max_output_bytes)
    return [results[job] for job in batch]


def _run_alone(job: Job, max_output_bytes: int) -> Ran | BaseException:
    started = time.monotonic()
    left_ms = (job.deadline - started) * 1000
    if left_ms <= 0:
        return deadline_exceeded(job.deadline_ms)
    cpu = time.thread_time()
    try:
        outputs = job.resident.runner.run(job.inputs, job.outputs, left_ms, max_output_bytes)
    except Refusal as refusal:
        refusal.forget_frames()
        return refusal
    except Exception as error:  # handed to the call's own future
        return error
    compute_ms = (time.monotonic() - started) * 1000
    cpu_ms = (time.thread_time() - cpu) * 1000
    queue_ms = (started - job.queued_at) * 1000
    alone = Execution(job.rows, compute_ms)
    return Ran(outputs, digest_of_arrays(outputs), queue_ms, compute_ms, job.rows, cpu_ms, alone)


def _run_shared(
    resident: Resident, live: list[Job], max_output_bytes: int, started: float
) -> dict[Job, Ran | BaseException] | None:
    """One run for all of them; None where it failed or its outputs do not follow the rows."""
    total = sum(job.rows for job in live)
    joined = {name: np.concatenate([job.inputs[name] for job in live]) for name in live[0].inputs}
    input_ms = (time.monotonic() - started) * 1000
    left_ms = (max(job.deadline for job in live) - started) * 1000
    cpu = time.thread_time()
    try:
        called, rows = [job.resident for job in live], [job.rows for job in live]
        outputs = resident.run_together(called, rows, joined, live[0].outputs, left_ms, max_output_bytes)
    except Refusal:
        return None
    if any(not array.ndim or array.shape[0] != total for array in outputs.values()):
        resident.batchable = False  # the manifest promised rows that the graph does not keep
        return None
    compute_ms = (time.monotonic() - started) * 1000
    cpu_ms = (time.thread_time() - cpu) * 1000
    parts: list[Outputs] = []
    at = 0
    for job in live:
        parts.append({name: array[at : at + job.rows] for name, array in outputs.items()})
        at += job.rows
    output_ms = (time.monotonic() - started) * 1000 - compute_ms
    rows_of: Counter[Resident] = Counter()  # several where the rows are of several adapters
    for job in live:
        rows_of[job.resident] += job.rows
    results: dict[Job, Ran | BaseException] = {}
    for job, own in zip(live, parts, strict=True):
        queue_ms, own_ms = (started - job.queued_at) * 1000, compute_ms * job.rows / total
        execution = None
        if version_rows := rows_of.pop(job.resident, 0):
            share = version_rows / total
            execution = Execution(version_rows, (compute_ms - input_ms) * share, input_ms * share, output_ms * share)
        results[job] = Ran(own, digest_of_arrays(own), queue_ms, own_ms, total, cpu_ms, execution)
    return results
