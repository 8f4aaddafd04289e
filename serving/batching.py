"""Who runs when: bounded, fair, event-driven queues with deadlines, several calls in one run where the graph allows.

Calls of one lane (same version, or adapters of one base that takes an index; same shapes but for the first dimension,
same outputs) may share a run, whosever they are. When a slot is free the organisation that has had the least run time
goes next (`serving.fairness`), with the lane of its turn, and what has gathered there meanwhile fills the run up to its
`max_rows`; nothing polls, and nothing waits for company. Who fills the queue is refused; others are not. A call past
its deadline is answered at that moment, even while the model is busy; one whose caller went away before its run is
dropped. One that would not run before its deadline is refused when it comes, or as soon as that shows. Time in which
the node stood still is nobody's. Every future ends in a result or an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Executor

from model_store.errors import Refusal
from serving.errors.node import deadline_exceeded, queue_full, shutting_down, wait_too_long
from serving.fairness import LEAST_COST_MS, WEIGHTS, FairOrder, Flow
from serving.lanes import Lane, shared_key
from serving.resident import Resident
from serving.runs import Job, Outputs, Ran, expire, postpone, run_batch
from serving.waiting import LastCallers, OnTheirWay, WaitingRoom, count_down, waits_too_long

UNKNOWN_COST_MS = 100.0  # what a run is charged at most before it has shown what it takes
MAX_RETRY_AFTER_S = 60
# Of a call's time, how much the expected wait may take. What is over would be met by one call in so many that are run
# too late, or dropped at the head of the queue: under overload everybody is admitted at this very limit.
PROMISED = 0.8


SLOTS_PER_KEPT_FREE = 4  # of so many slots one is kept from whoever has all the others
KEPT_FREE_FOR_S = 1.0  # after another organisation's call


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
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`waiting_per_model`: calls of one organisation. `release(resident)` gives back the reference that a run
        holds, which may outlive its callers. `look` calls `stood_still` where the node did so just now."""
        self._look = look
        self._stood_s = 0.0
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
        self._coming = OnTheirWay()
        self._jobs: set[Job] = set()  # whose futures have not ended
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
        patient: bool = False,
    ) -> Job:
        """Queue a call. `tenant`: the organisation that calls; `priority` high, normal or low, among its own calls;
        `weight`: the organisation's among others, from now on (0: as it was, at first 1); `patient`: the deadline is
        the node's own, and moves when the node stands still.

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
        key = shared_key(runs_on, inputs, outputs) if shared else (runs_on.digest, runs_on.trusted)
        lane = self._lanes.get(key)
        if lane is None or lane.resident is not runs_on:
            lane = self._lanes[key] = Lane(key, runs_on, shared)
        flow = lane.flow_of(tenant, priority)
        loop = asyncio.get_running_loop()
        job = Job(resident, inputs, outputs, rows, deadline_ms, loop.create_future(), flow, patient)
        job.timer = loop.call_later(deadline_ms / 1000, expire, job)
        self._callers.called(tenant)
        self._coming.arrived(tenant, resident.digest)
        self._jobs.add(job)
        flow.jobs.append(job)
        self._room.enter(job)
        job.done.add_done_callback(lambda _: self._ended(job, lane))
        self._order.add(flow, weight)
        self._pump()
        return job

    def stood_still(self, seconds: float) -> None:
        """Nobody was served for so long, and no call may be ended for that but by its caller's own deadline."""
        self._stood_s += seconds
        for job in self._jobs:
            postpone(job, seconds)

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

    def check_room(
        self, resident: Resident, tenant: str, priority: str, deadline_ms: float, *, comes_again: bool = False
    ) -> None:
        """Raises `TooMany`: QUEUE_FULL where this organisation's calls of the model fill their room, WAIT_TOO_LONG
        where those before it would take so long that it could not end in time: to wait would only tell it later.

        `comes_again`: it is not here to be submitted yet. Those that passed so and are on their way take room too."""
        room = self._room
        if not room.calls:
            return
        coming = self._coming.of(tenant, resident.digest) if comes_again else 0
        if room.of_model(tenant, resident.digest) + coming >= self._waiting_per_model:
            raise self._full(resident, tenant)
        wait_ms = room.expected_wait_ms(tenant, priority, self._order.others(tenant), self._slots)
        wait_ms += coming * resident.runs_on.cost.queued_ms / self._slots
        if wait_ms > PROMISED * deadline_ms:
            raise wait_too_long(resident.name, wait_ms, deadline_ms, _retry_after_s(wait_ms - PROMISED * deadline_ms))
        if comes_again:
            self._coming.passed(tenant, resident.digest)

    def check_full(self, resident: Resident, tenant: str) -> None:
        """As `check_room` raises QUEUE_FULL, for a call of which nothing but its head has been read."""
        if self._room.of_model(tenant, resident.digest) >= self._waiting_per_model:
            raise self._full(resident, tenant)

    def _shed(self, tenant: str) -> None:
        """Refuse those of an organisation's waiting calls that will not run in time after all."""
        flows = self._order.flows_of(tenant) if self._room.of(tenant) else ()
        for job, wait_ms in waits_too_long(flows, self._order.others(tenant), self._slots, time.monotonic()):
            if not job.done.done():
                after_s = _retry_after_s(wait_ms)
                job.done.set_exception(wait_too_long(job.resident.name, wait_ms, job.deadline_ms, after_s))

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
        self._jobs.discard(job)
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
        self._look()
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
        started = time.monotonic() - self._stood_s
        run = loop.run_in_executor(self._executor, run_batch, lane.resident, batch, self._max_output_bytes)
        self._running.add(run)
        run.add_done_callback(lambda done: self._finish(lane, batch, started, done))

    def _finish(
        self, lane: Lane, batch: list[Job], started: float, run: asyncio.Future[list[Ran | BaseException]]
    ) -> None:
        """`started`: by the clock less what the node had stood still, which nobody is charged for."""
        self._look()
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
        took_ms = (time.monotonic() - self._stood_s - started) * 1000
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
        for tenant in {job.flow.tenant for job in batch}:
            self._shed(tenant)
        self._pump()


def _read_by(lane: Lane, batch: list[Job]) -> set[Resident]:
    """What a run reads: the lane's graph, and the adapters of its calls."""
    return {lane.resident, *(job.resident for job in batch)}


def _retry_after_s(wait_ms: float) -> int:
    return max(1, min(MAX_RETRY_AFTER_S, round(wait_ms / 1000)))


def _newest(flow: Flow[Job]) -> tuple[float, float]:
    """For choosing who gives way: of the least priority, what came last."""
    return -WEIGHTS[flow.priority], flow.jobs[-1].queued_at if flow.jobs else 0.0
