"""Who runs when: bounded, fair, event-driven queues with deadlines, several calls in one run where the graph allows.

Calls of one lane (same version, or adapters of one base that takes an index; same shapes but for the first dimension,
same outputs) may share a run, whosever they
are. When a slot is free the organisation that has had the least run time goes next (`serving.fairness`), with the lane
of its turn, and what has gathered there meanwhile fills the run up to its `max_rows`; nothing polls, and nothing waits
for company. Who fills the queue is refused; others are not. A call past its deadline is answered at that moment, even
while the model is busy; one whose caller went away before its run is dropped. Every future ends in a result or an
exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor

from model_store.errors import Refusal
from serving.errors import deadline_exceeded, queue_full, shutting_down, wait_too_long
from serving.fairness import LEAST_COST_MS, WEIGHTS, FairOrder, Flow
from serving.resident import Resident
from serving.runs import Job, Outputs, Ran, expire, run_batch
from serving.waiting import LastCallers, WaitingRoom, count_down

UNKNOWN_COST_MS = 100.0  # what a run is charged at most before it has shown what it takes
MAX_RETRY_AFTER_S = 60
# Of a call's time, how much the expected wait may take. What is over would be met by one call in so many that are run
# too late, or dropped at the head of the queue: under overload everybody is admitted at this very limit.
PROMISED = 0.8


SLOTS_PER_KEPT_FREE = 4  # of so many slots one is kept from whoever has all the others
KEPT_FREE_FOR_S = 1.0  # after another organisation's call


class Lane:
    """The waiting calls that may run together, in one flow for each organisation and priority."""

    __slots__ = ("flows", "key", "resident", "running", "shared")

    def __init__(self, key: Hashable, resident: Resident, shared: bool) -> None:
        self.key, self.resident, self.shared = key, resident, shared
        self.flows: dict[tuple[str, str], Flow[Job]] = {}
        self.running = 0

    def flow_of(self, tenant: str, priority: str) -> Flow[Job]:
        flow = self.flows.get((tenant, priority))
        if flow is None:
            flow = self.flows[tenant, priority] = Flow(tenant, priority, self)
        return flow

    def take(self, flows: Iterable[Flow[Job]], now: float) -> list[Job]:
        """The next calls to run together: the first flow's, then what fits of the others'. At most `max_rows` rows, and
        no more than is expected to end before the earliest deadline among them. Those that ended meanwhile are dropped,
        and those that have waited until their time would not suffice: running them would take it from the next."""
        batch: list[Job] = []
        rows = elements = limit = 0
        until = math.inf
        predict_ms = self.resident.cost.predict_ms
        for flow in flows:
            jobs = flow.jobs
            while jobs:
                job = jobs[0]
                alone_ms = predict_ms(job.elements, job.rows)
                if not job.done.done() and job.is_too_late(now, alone_ms):
                    expire(job)
                if job.done.done():
                    jobs.popleft()
                    continue
                if not batch and self.shared and self.resident.batchable:
                    limit = self.resident.cost.rows_together(job.elements, job.rows, self.resident.max_rows)
                earliest = min(until, job.deadline)
                if batch:
                    together_ms = predict_ms(elements + job.elements, rows + job.rows)
                    if rows + job.rows > limit or earliest < now + together_ms / 1000 < math.inf:
                        break
                batch.append(jobs.popleft())
                until, rows, elements = earliest, rows + job.rows, elements + job.elements
            if not batch or rows >= limit:
                break
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
        """`waiting_per_model`: calls of one organisation. `release(resident)` gives back the reference that a run
        holds, which may outlive its callers."""
        self._release = release
        self._executor = executor
        self._slots = self._free = slots
        self._per_lane, self._per_owner = per_lane, per_owner
        self._waiting_per_model, self._waiting_in_all = waiting_per_model, waiting_in_all
        self._max_output_bytes = max_output_bytes
        self._lanes: dict[Hashable, Lane] = {}
        self._order: FairOrder[Job] = FairOrder()
        self._owners: dict[str, int] = {}
        self._room = WaitingRoom()
        self._kept_free = slots // SLOTS_PER_KEPT_FREE
        self._running_of: Counter[str] = Counter()  # runs, by the organisation whose turn it was; no zeros
        self._callers = LastCallers()
        self._running: set[asyncio.Future[list[Ran | BaseException]]] = set()
        self._closing = False
        self.runs = self.rows_run = 0

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return self._room.calls

    def submit(
        self,
        resident: Resident,
        inputs: Outputs,
        outputs: list[str] | None,
        rows: int,
        deadline_ms: float,
        tenant: str,
        priority: str = "normal",
        weight: float = 0.0,
    ) -> Job:
        """Queue a call. `tenant`: the organisation that calls; `priority` high, normal or low, among its own calls;
        `weight`: the organisation's among others, from now on (0: as it was, at first 1).

        Raises `TooMany` QUEUE_FULL, WAIT_TOO_LONG, `DeadlineExceeded`, `Unavailable` SHUTTING_DOWN.
        """
        if self._closing:
            raise shutting_down()
        if deadline_ms <= 0:
            raise deadline_exceeded(deadline_ms)
        self.check_room(resident, tenant, priority, deadline_ms)
        if not self._find_room(tenant):
            raise self._full(resident, tenant)
        runs_on = resident.runs_on
        shared = runs_on.batchable and all(array.ndim and array.shape[0] == rows for array in inputs.values())
        key = _shared_key(runs_on, inputs, outputs) if shared else (runs_on.digest, runs_on.trusted)
        lane = self._lanes.get(key)
        if lane is None or lane.resident is not runs_on:
            lane = self._lanes[key] = Lane(key, runs_on, shared)
        flow = lane.flow_of(tenant, priority)
        loop = asyncio.get_running_loop()
        job = Job(resident, inputs, outputs, rows, deadline_ms, loop.create_future(), flow)
        job.timer = loop.call_later(deadline_ms / 1000, expire, job)
        self._callers.called(tenant, job.queued_at)
        flow.jobs.append(job)
        self._room.enter(job)
        job.done.add_done_callback(lambda _: self._ended(job, lane))
        self._order.add(flow, weight)
        self._pump()
        return job

    async def close(self) -> None:
        """Refuse what comes, end what waits, and wait for what runs."""
        self._closing = True
        for lane in self._lanes.values():
            for flow in lane.flows.values():
                for job in flow.jobs:
                    if not job.done.done():
                        job.done.set_exception(shutting_down())
        if self._running:
            await asyncio.wait(self._running)

    # --- room ---------------------------------------------------------------------------------------------------------

    def check_room(self, resident: Resident, tenant: str, priority: str, deadline_ms: float) -> None:
        """Raises `TooMany`: QUEUE_FULL where this organisation's calls of the model fill their room, WAIT_TOO_LONG
        where those before it would take so long that it could not end in time: to wait would only tell it later."""
        room = self._room
        if not room.calls:
            return
        if room.of_model(tenant, resident.digest) >= self._waiting_per_model:
            raise self._full(resident, tenant)
        wait_ms = room.expected_wait_ms(tenant, priority, self._slots)
        if wait_ms > PROMISED * deadline_ms:
            raise wait_too_long(resident.name, wait_ms, deadline_ms, _retry_after_s(wait_ms - PROMISED * deadline_ms))

    def _find_room(self, tenant: str) -> bool:
        """Whether one more call of this organisation may wait: where all room is taken, at the cost of whoever has
        taken most of it."""
        if self.waiting < self._waiting_in_all:
            return True
        crowd, most = self._room.largest()
        if most <= self._room.of(tenant) + 1:
            return False
        flow = max(self._order.flows_of(crowd), key=_newest, default=None)
        if flow is None or not flow.jobs:
            return False
        job = flow.jobs[-1]
        if not job.done.done():
            job.done.set_exception(self._full(job.resident, crowd))
        self._ended(job, flow.lane)
        return True

    def _full(self, resident: Resident, tenant: str) -> Refusal:
        """`Retry-After`: when what waits there now will have run, by what the last run took."""
        waiting_ms = resident.cost.last_ms * self._room.of_model(tenant, resident.digest)
        return queue_full(resident.name, _retry_after_s(waiting_ms))

    def _ended(self, job: Job, lane: Lane) -> None:
        """A future ended, by whatever way: its timer goes, and what never started leaves the queue."""
        if job.timer is not None:
            job.timer.cancel()
        if job.started:
            return
        job.started = True  # counted out once
        with contextlib.suppress(ValueError):  # passed over by `take` already
            job.flow.jobs.remove(job)
        self._room.leave(job)
        self._forget_if_empty(lane, job.flow)

    def _forget_if_empty(self, lane: Lane, flow: Flow[Job]) -> None:
        if not flow.jobs:
            self._order.remove(flow)
            if lane.flows.get((flow.tenant, flow.priority)) is flow:
                del lane.flows[flow.tenant, flow.priority]
        if not lane.flows and not lane.running and self._lanes.get(lane.key) is lane:
            del self._lanes[lane.key]

    # --- scheduling ---------------------------------------------------------------------------------------------------

    def _may_run(self, flow: Flow[Job]) -> bool:
        lane: Lane = flow.lane
        if lane.running >= self._per_lane or self._owners.get(lane.resident.owner, 0) >= self._per_owner:
            return False
        # Runs are not interrupted: where one organisation's take every slot, another's next call waits for one to end.
        if self._running_of[flow.tenant] < self._slots - self._kept_free:
            return True
        return not self._callers.another_since(flow.tenant, KEPT_FREE_FOR_S)

    def _pump(self) -> None:
        """Start runs while there is a slot and somebody whose turn it is."""
        while self._free > 0:
            flow = self._order.choose(self._may_run)
            if flow is None:
                return
            lane: Lane = flow.lane
            others = self._order.in_turn(each for each in lane.flows.values() if each is not flow)
            batch = lane.take((flow, *others), time.monotonic())
            if batch:
                self._start(lane, batch)
            for each in (flow, *others):
                self._forget_if_empty(lane, each)

    def _start(self, lane: Lane, batch: list[Job]) -> None:
        self._free -= 1
        lane.running += 1
        self._running_of[batch[0].flow.tenant] += 1
        for resident in _read_by(lane, batch):
            resident.references += 1
        owner = lane.resident.owner
        self._owners[owner] = self._owners.get(owner, 0) + 1
        rows = sum(job.rows for job in batch)
        predicted_ms = min(lane.resident.cost.predict_ms(sum(job.elements for job in batch), rows), UNKNOWN_COST_MS)
        for job in batch:
            job.started = True
            self._room.leave(job)
            job.charged_ms = max(predicted_ms * job.rows / rows, LEAST_COST_MS)
            self._order.charge(job.flow.tenant, job.flow.priority, job.charged_ms)
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        run = loop.run_in_executor(self._executor, run_batch, lane.resident, batch, self._max_output_bytes)
        self._running.add(run)
        run.add_done_callback(lambda done: self._finish(lane, batch, started, done))

    def _finish(
        self, lane: Lane, batch: list[Job], started: float, run: asyncio.Future[list[Ran | BaseException]]
    ) -> None:
        self._running.discard(run)
        failure = shutting_down() if run.cancelled() else run.exception()
        results = run.result() if failure is None else [failure] * len(batch)
        self._free += 1
        lane.running -= 1
        count_down(self._running_of, batch[0].flow.tenant)
        owner = lane.resident.owner
        self._owners[owner] -= 1
        if not self._owners[owner]:
            del self._owners[owner]
        self.runs += 1
        for resident in _read_by(lane, batch):
            self._release(resident)
        rows = sum(job.rows for job in batch)
        took_ms = (time.monotonic() - started) * 1000
        lane.resident.cost.record_queued(took_ms / len(batch))
        for job in batch:
            self._order.charge(job.flow.tenant, job.flow.priority, took_ms * job.rows / rows - job.charged_ms)
        if len(batch) > 1 and isinstance(results[0], Ran) and results[0].batch_rows == rows:
            lane.resident.cost.record(sum(job.elements for job in batch), results[0].batch_cpu_ms)
        for job, result in zip(batch, results, strict=True):
            self.rows_run += job.rows
            if job.done.done():
                continue
            if isinstance(result, Ran):
                job.done.set_result(result)
            else:
                job.done.set_exception(result)
        self._forget_if_empty(lane, batch[0].flow)
        self._pump()


def _read_by(lane: Lane, batch: list[Job]) -> set[Resident]:
    """What a run reads: the lane's graph, and the adapters of its calls."""
    return {lane.resident, *(job.resident for job in batch)}


def _shared_key(resident: Resident, inputs: Outputs, outputs: list[str] | None) -> Hashable:
    """What calls must have in common to run together."""
    shapes = tuple(sorted((name, array.shape[1:], array.dtype.str) for name, array in inputs.items()))
    return (resident.digest, resident.trusted, shapes, tuple(outputs) if outputs is not None else None)


def _retry_after_s(wait_ms: float) -> int:
    return max(1, min(MAX_RETRY_AFTER_S, round(wait_ms / 1000)))


def _newest(flow: Flow[Job]) -> tuple[float, float]:
    """For choosing who gives way: of the least priority, what came last."""
    return -WEIGHTS[flow.priority], flow.jobs[-1].queued_at if flow.jobs else 0.0
