"""What may run together: the waiting calls of one lane, and how many of them the next run takes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from serving.fairness import Flow
from serving.resident import Resident
from serving.runs import Job, Outputs, expire


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


def shared_key(resident: Resident, inputs: Outputs, outputs: list[str] | None) -> Hashable:
    """What calls must have in common to run together."""
    shapes = tuple(sorted((name, array.shape[1:], array.dtype.str) for name, array in inputs.items()))
    return (resident.digest, resident.trusted, shapes, tuple(outputs) if outputs is not None else None)
