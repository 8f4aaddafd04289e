"""Who waits for a run, for which model, and how much run time that is; and who called last."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Iterable
from typing import TypeVar

from serving.fairness import WEIGHTS, Flow
from serving.runs import Job

KEPT = 0.8  # of what is left of its time, how much the wait of a call that is in the queue may be expected to take
KNOWN_AFTER = 5  # runs: nobody is refused for what the first ones took, on a graph that has just been loaded
FORGOTTEN_AFTER_S = 0.05
K = TypeVar("K", bound=Hashable)


class WaitingRoom:
    """Counts of the calls that wait, and the milliseconds that they are expected to keep a thread."""

    __slots__ = ("_of", "_of_model", "_work_in_all_ms", "_work_ms", "calls")

    def __init__(self) -> None:
        self.calls = 0
        self._of: Counter[str] = Counter()  # by organisation; no zeros
        self._of_model: Counter[tuple[str, str]] = Counter()  # by organisation and digest; no zeros
        self._work_ms: dict[str, dict[str, float]] = {}  # by organisation and priority; of those who wait
        self._work_in_all_ms = 0.0

    def enter(self, job: Job) -> None:
        tenant, priority = job.flow.tenant, job.flow.priority
        self.calls += 1
        self._of[tenant] += 1
        self._of_model[tenant, job.resident.digest] += 1
        work = self._work_ms.setdefault(tenant, dict.fromkeys(WEIGHTS, 0.0))
        work[priority] += job.expected_ms
        self._work_in_all_ms += job.expected_ms

    def leave(self, job: Job) -> None:
        tenant = job.flow.tenant
        self.calls -= 1
        count_down(self._of, tenant)
        count_down(self._of_model, (tenant, job.resident.digest))
        self._work_in_all_ms -= job.expected_ms
        self._work_ms[tenant][job.flow.priority] -= job.expected_ms
        if tenant not in self._of:
            del self._work_ms[tenant]  # and with it what rounding has left
        if not self.calls:
            self._work_in_all_ms = 0.0

    def of(self, tenant: str) -> int:
        """Calls of one organisation."""
        return self._of[tenant]

    def of_model(self, tenant: str, digest: str) -> int:
        """Calls of one organisation for one model."""
        return self._of_model[tenant, digest]

    def largest(self) -> tuple[str, int]:
        """The organisation with the most calls, and how many; ("", 0) where nobody waits."""
        return max(self._of.items(), key=lambda each: each[1], default=("", 0))

    def expected_wait_ms(self, tenant: str, priority: str, others: float, slots: int) -> float:
        """When a call that comes now may expect its turn: after what its organisation has waiting of this priority or a
        higher one, while the others who wait are given `others` times as much (`FairOrder.others`); at most after all
        there is.

        Rather too short than too long: what runs now and the turns of lower priorities are left out.
        """
        work = self._work_ms.get(tenant)
        if work is None:
            return 0.0
        own_ms = sum(ms for each, ms in work.items() if WEIGHTS[each] >= WEIGHTS[priority])
        return max(0.0, min(own_ms * (1 + others), self._work_in_all_ms)) / slots


def waits_too_long(flows: Iterable[Flow[Job]], others: float, slots: int, now: float) -> list[tuple[Job, float]]:
    """Of an organisation's waiting calls those that will not run in time as they stand, and how many milliseconds they
    would wait: the machine has become slower since they were admitted, and they are told so before their time is up.
    What goes makes room for what comes after it. `others`: how much the others who wait are given for each millisecond
    of its own.
    """
    found: list[tuple[Job, float]] = []
    before_ms = 0.0
    for flow in sorted(flows, key=lambda each: -WEIGHTS[each.priority]):
        cost = flow.lane.resident.cost
        if cost.queued_runs < KNOWN_AFTER:
            continue
        for job in flow.jobs:
            left_ms = (job.deadline - now) * 1000
            if left_ms <= 0:
                continue  # its timer tells it
            wait_ms = before_ms * (1 + others) / slots
            if wait_ms + cost.queued_ms > left_ms * KEPT:
                found.append((job, wait_ms))
            else:
                before_ms += cost.queued_ms
    return found


class LastCallers:
    """The two organisations that called last, and when."""

    __slots__ = ("_at", "_before", "_before_at", "_tenant")

    def __init__(self) -> None:
        self._tenant = self._before = ""
        self._at = self._before_at = float("-inf")

    def called(self, tenant: str) -> None:
        if tenant != self._tenant:
            self._before, self._before_at = self._tenant, self._at
            self._tenant = tenant
        self._at = time.monotonic()

    def another_since(self, tenant: str, seconds: float) -> bool:
        """Whether another organisation than this one called within the last so many seconds."""
        at = self._before_at if tenant == self._tenant else self._at
        return time.monotonic() - at < seconds


class OnTheirWay:
    """Calls that have found room before anything was read of them but have not reached the queue: counted, so that of
    the hundred that come while one place is free one passes, and not all, to be refused when they have cost the most.

    Some never arrive (their lease or their body is refused), so that it is forgotten now and then.
    """

    __slots__ = ("_calls",)

    def __init__(self) -> None:
        self._calls: Counter[tuple[str, str]] = Counter()  # by organisation and digest; no zeros

    def of(self, tenant: str, digest: str) -> int:
        return self._calls[tenant, digest]

    def passed(self, tenant: str, digest: str) -> None:
        if not self._calls:
            asyncio.get_running_loop().call_later(FORGOTTEN_AFTER_S, self._calls.clear)
        self._calls[tenant, digest] += 1

    def arrived(self, tenant: str, digest: str) -> None:
        if (tenant, digest) in self._calls:
            count_down(self._calls, (tenant, digest))


def count_down(counter: Counter[K], key: K) -> None:
    """One less; no zero is kept."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
