"""Who runs when: bounded, event-driven queues with deadlines, rows of several calls in one run where the graph allows.

Calls of one lane (same version, same shapes but for the first dimension, same outputs) may share a run. When a slot is
free the next lane runs at once, taking what has gathered meanwhile up to its `max_rows`; nothing polls, and nothing
waits for company. Lanes take turns. A call past its deadline is answered at that moment, even while the model is busy;
one whose caller went away before its run is dropped. Every future ends in a result or an exception.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from model_store.errors import Refusal
from model_store.tensors import Array
from serving.digests import digest_of_arrays
from serving.errors import deadline_exceeded, queue_full, shutting_down
from serving.residency import Resident

Outputs = dict[str, Array]


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


class Job:
    """One queued call. `done` is its future; `started` once its run has begun (from then on it is work done)."""

    __slots__ = (
        "deadline", "deadline_ms", "done", "elements", "inputs", "outputs", "queued_at", "rows", "started", "timer",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Outputs,
        outputs: list[str] | None,
        rows: int,
        deadline_ms: float,
        done: asyncio.Future[Ran],
    ) -> None:
        self.inputs, self.outputs, self.rows = inputs, outputs, rows
        self.elements = sum(array.size for array in inputs.values())
        self.queued_at = time.monotonic()
        self.deadline_ms = deadline_ms
        self.deadline = self.queued_at + deadline_ms / 1000
        self.done = done
        self.started = False
        self.timer: asyncio.TimerHandle | None = None


class Lane:
    """The waiting calls that may run together."""

    __slots__ = ("jobs", "key", "ready", "resident", "running", "shared")

    def __init__(self, key: Hashable, resident: Resident, shared: bool) -> None:
        self.key, self.resident, self.shared = key, resident, shared
        self.jobs: deque[Job] = deque()
        self.running = 0
        self.ready = False

    def take(self) -> list[Job]:
        """The next calls to run together, at most `max_rows` rows of them; those that ended meanwhile are dropped."""
        batch: list[Job] = []
        rows = 0
        limit = 0
        while self.jobs:
            job = self.jobs[0]
            if job.done.done():
                self.jobs.popleft()
                continue
            if not batch and self.shared and self.resident.batchable:
                limit = self.resident.cost.rows_together(job.elements, job.rows, self.resident.max_rows)
            if batch and rows + job.rows > limit:
                break
            batch.append(self.jobs.popleft())
            rows += job.rows
        return batch


class RunQueue:
    """Queues in front of `slots` threads. Every method runs on the event loop."""

    def __init__(
        self,
        executor: Executor,
        slots: int,
        *,
        per_lane: int,
        per_owner: int,
        waiting_per_model: int,
        waiting_in_all: int,
        max_output_bytes: int,
        release: Callable[[Resident], None],
    ) -> None:
        """`release(resident)` gives back the reference that a run holds, which may outlive its callers."""
        self._release = release
        self._executor = executor
        self._free = slots
        self._per_lane, self._per_owner = per_lane, per_owner
        self._waiting_per_model, self._waiting_in_all = waiting_per_model, waiting_in_all
        self._max_output_bytes = max_output_bytes
        self._lanes: dict[Hashable, Lane] = {}
        self._ready: deque[Lane] = deque()
        self._owners: dict[str, int] = {}
        self._waiting: dict[str, int] = {}
        self._running: set[asyncio.Future[list[Ran | BaseException]]] = set()
        self._closing = False
        self.waiting = 0
        self.runs = self.rows_run = 0

    def submit(
        self, resident: Resident, inputs: Outputs, outputs: list[str] | None, rows: int, deadline_ms: float
    ) -> Job:
        """Queue a call. Raises `TooMany` QUEUE_FULL, `DeadlineExceeded`, `Unavailable` SHUTTING_DOWN."""
        if self._closing:
            raise shutting_down()
        if deadline_ms <= 0:
            raise deadline_exceeded(deadline_ms)
        waiting = self._waiting.get(resident.digest, 0)
        if waiting >= self._waiting_per_model or self.waiting >= self._waiting_in_all:
            raise queue_full(resident.name, self._retry_after_s(resident, inputs, rows))
        loop = asyncio.get_running_loop()
        job = Job(inputs, outputs, rows, deadline_ms, loop.create_future())
        job.timer = loop.call_later(deadline_ms / 1000, _expire, job)
        shared = resident.batchable and all(array.ndim and array.shape[0] == rows for array in inputs.values())
        key = _shared_key(resident, inputs, outputs) if shared else (resident.digest, resident.trusted)
        lane = self._lanes.get(key)
        if lane is None or lane.resident is not resident:
            lane = self._lanes[key] = Lane(key, resident, shared)
        lane.jobs.append(job)
        self._waiting[resident.digest] = waiting + 1
        self.waiting += 1
        job.done.add_done_callback(lambda _: self._ended(job, resident))
        self._make_ready(lane)
        self._pump()
        return job

    async def close(self) -> None:
        """Refuse what comes, end what waits, and wait for what runs."""
        self._closing = True
        for lane in self._lanes.values():
            for job in lane.jobs:
                if not job.done.done():
                    job.done.set_exception(shutting_down())
        if self._running:
            await asyncio.wait(self._running)

    # --- scheduling ---------------------------------------------------------------------------------------------------

    def _make_ready(self, lane: Lane) -> None:
        if not lane.ready and lane.jobs and lane.running < self._per_lane:
            lane.ready = True
            self._ready.append(lane)

    def _pump(self) -> None:
        """Start runs while there is a slot and a lane whose owner is within bounds; lanes take turns."""
        passed_over = 0
        while self._free > 0 and passed_over < len(self._ready):
            lane = self._ready.popleft()
            if self._owners.get(lane.resident.owner, 0) >= self._per_owner:
                self._ready.append(lane)
                passed_over += 1
                continue
            passed_over = 0
            lane.ready = False
            batch = lane.take()
            if batch:
                self._start(lane, batch)
            self._make_ready(lane)
            self._forget_if_idle(lane)

    def _start(self, lane: Lane, batch: list[Job]) -> None:
        self._free -= 1
        lane.running += 1
        lane.resident.references += 1
        owner = lane.resident.owner
        self._owners[owner] = self._owners.get(owner, 0) + 1
        for job in batch:
            job.started = True
            self._left(lane.resident)
        loop = asyncio.get_running_loop()
        run = loop.run_in_executor(self._executor, run_batch, lane.resident, batch, self._max_output_bytes)
        self._running.add(run)
        run.add_done_callback(lambda done: self._finish(lane, batch, done))

    def _finish(self, lane: Lane, batch: list[Job], run: asyncio.Future[list[Ran | BaseException]]) -> None:
        self._running.discard(run)
        failure = shutting_down() if run.cancelled() else run.exception()
        results = run.result() if failure is None else [failure] * len(batch)
        self._free += 1
        lane.running -= 1
        owner = lane.resident.owner
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
        self.runs += 1
        self._release(lane.resident)
        if len(batch) > 1 and isinstance(results[0], Ran) and results[0].batch_rows == sum(job.rows for job in batch):
            lane.resident.cost.record(sum(job.elements for job in batch), results[0].batch_cpu_ms)
        for job, result in zip(batch, results, strict=True):
            self.rows_run += job.rows
            if job.done.done():
                continue
            if isinstance(result, Ran):
                job.done.set_result(result)
            else:
                job.done.set_exception(result)
        self._make_ready(lane)
        self._forget_if_idle(lane)
        self._pump()

    def _ended(self, job: Job, resident: Resident) -> None:
        """A future ended, by whatever way: its timer goes, and what never started leaves the count of the waiting."""
        if job.timer is not None:
            job.timer.cancel()
        if not job.started:
            job.started = True  # counted out once
            self._left(resident)

    def _left(self, resident: Resident) -> None:
        self.waiting -= 1
        left = self._waiting[resident.digest] - 1
        if left:
            self._waiting[resident.digest] = left
        else:
            del self._waiting[resident.digest]

    def _forget_if_idle(self, lane: Lane) -> None:
        if not lane.jobs and not lane.running and not lane.ready and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    def _retry_after_s(self, resident: Resident, inputs: Outputs, rows: int) -> int:
        elements = sum(array.size for array in inputs.values())
        one = min(resident.cost.predict_ms(elements, rows), 10_000.0)
        return max(1, round(one * self._waiting.get(resident.digest, 0) / 1000))


def _shared_key(resident: Resident, inputs: Outputs, outputs: list[str] | None) -> Hashable:
    """What calls must have in common to run together."""
    shapes = tuple(sorted((name, array.shape[1:], array.dtype.str) for name, array in inputs.items()))
    return (resident.digest, resident.trusted, shapes, tuple(outputs) if outputs is not None else None)


def _expire(job: Job) -> None:
    if not job.done.done():
        job.done.set_exception(deadline_exceeded(job.deadline_ms))


# --- in a thread ------------------------------------------------------------------------------------------------------


def run_batch(resident: Resident, batch: list[Job], max_output_bytes: int) -> list[Ran | BaseException]:
    """Run calls together and split the rows exactly. A call that spoils a shared run is found by running each alone."""
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
        results[job] = _run_alone(resident, job, max_output_bytes)
    return [results[job] for job in batch]


def _run_alone(resident: Resident, job: Job, max_output_bytes: int) -> Ran | BaseException:
    started = time.monotonic()
    left_ms = (job.deadline - started) * 1000
    if left_ms <= 0:
        return deadline_exceeded(job.deadline_ms)
    cpu = time.thread_time()
    try:
        outputs = resident.runner.run(job.inputs, job.outputs, deadline_ms=left_ms, max_output_bytes=max_output_bytes)
    except Exception as error:  # handed to the call's own future
        return error
    compute_ms = (time.monotonic() - started) * 1000
    cpu_ms = (time.thread_time() - cpu) * 1000
    return Ran(outputs, digest_of_arrays(outputs), (started - job.queued_at) * 1000, compute_ms, job.rows, cpu_ms)


def _run_shared(
    resident: Resident, live: list[Job], max_output_bytes: int, started: float
) -> dict[Job, Ran | BaseException] | None:
    """One run for all of them; None where it failed or its outputs do not follow the rows."""
    total = sum(job.rows for job in live)
    joined = {name: np.concatenate([job.inputs[name] for job in live]) for name in live[0].inputs}
    left_ms = (max(job.deadline for job in live) - started) * 1000
    cpu = time.thread_time()
    try:
        outputs = resident.runner.run(joined, live[0].outputs, deadline_ms=left_ms, max_output_bytes=max_output_bytes)
    except Refusal:
        return None
    if any(not array.ndim or array.shape[0] != total for array in outputs.values()):
        resident.batchable = False  # the manifest promised rows that the graph does not keep
        return None
    compute_ms = (time.monotonic() - started) * 1000
    cpu_ms = (time.thread_time() - cpu) * 1000
    results: dict[Job, Ran | BaseException] = {}
    at = 0
    for job in live:
        own = {name: array[at : at + job.rows] for name, array in outputs.items()}
        at += job.rows
        queue_ms = (started - job.queued_at) * 1000
        results[job] = Ran(own, digest_of_arrays(own), queue_ms, compute_ms * job.rows / total, total, cpu_ms)
    return results
