"""Whose turn it is: start-time fair queueing, over organisations by run time and the weight that the operator gave each
(1 where none), and within one over priorities by weight.

Each share carries a virtual time: the run time that it was given, divided by its weight. The smallest goes next. A
share that comes back from being idle starts at the present, so that nobody saves up turns, and one that never stops is
ahead of everybody else's start. (Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

J = TypeVar("J")
WEIGHTS = {"high": 16.0, "normal": 4.0, "low": 1.0}
LEAST_COST_MS = 1e-3  # so that a turn is never free
IDLE_TENANTS_KEPT = 64


class Flow(Generic[J]):
    """The waiting calls of one tenant and priority that may run together, oldest first. Equal to itself only."""

    __slots__ = ("jobs", "lane", "priority", "tenant")

    def __init__(self, tenant: str, priority: str, lane: Any) -> None:
        """`lane`: whatever the queue needs to know of them."""
        self.tenant, self.priority, self.lane = tenant, priority, lane
        self.jobs: deque[J] = deque()


class _Class(Generic[J]):
    __slots__ = ("flows", "time", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.time = 0.0
        self.flows: dict[Flow[J], None] = {}  # in turn: the first is next


class _Tenant(Generic[J]):
    __slots__ = ("classes", "now", "time", "weight")

    def __init__(self) -> None:
        self.time = self.now = 0.0
        self.weight = 1.0
        self.classes: dict[str, _Class[J]] = {}

    def is_idle(self) -> bool:
        return not any(each.flows for each in self.classes.values())


class FairOrder(Generic[J]):
    """The flows that wait, and whose turn it is. Costs in milliseconds of run time."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant[J]] = {}
        self._now = 0.0

    def add(self, flow: Flow[J], weight: float = 0.0) -> None:
        """This flow waits now. Nothing changes where it did already, but its tenant's weight (0: as it was)."""
        tenant = self._tenants.get(flow.tenant)
        if tenant is None:
            tenant = self._tenants[flow.tenant] = _Tenant()
        tenant.weight = weight or tenant.weight
        own = tenant.classes.get(flow.priority)
        if own is None:
            own = tenant.classes[flow.priority] = _Class(WEIGHTS[flow.priority])
        if tenant.is_idle():
            tenant.time = max(tenant.time, self._now)
        if not own.flows:
            own.time = max(own.time, tenant.now)
        own.flows[flow] = None

    def others(self, tenant: str) -> float:
        """For one millisecond of this tenant's, how many the others who wait are given together, by their weights."""
        own = self._tenants.get(tenant)
        if own is None:
            return 0.0
        weights = sum(each.weight for each in self._tenants.values() if each is not own and not each.is_idle())
        return weights / own.weight

    def remove(self, flow: Flow[J]) -> None:
        """This flow waits no longer. Nothing changes where it did not."""
        tenant = self._tenants.get(flow.tenant)
        if tenant is None or flow.priority not in tenant.classes:
            return
        tenant.classes[flow.priority].flows.pop(flow, None)
        if tenant.is_idle() and len(self._tenants) > IDLE_TENANTS_KEPT:
            self._forget_idle()

    def choose(self, may_run: Callable[[Flow[J]], bool]) -> Flow[J] | None:
        """The flow whose turn it is among those that may run; its class's other flows come before it from then on."""
        waiting = [tenant for tenant in self._tenants.values() if not tenant.is_idle()]
        for tenant in sorted(waiting, key=lambda each: each.time):
            for own in sorted((each for each in tenant.classes.values() if each.flows), key=lambda each: each.time):
                flow = next((flow for flow in own.flows if may_run(flow)), None)
                if flow is not None:
                    del own.flows[flow]
                    own.flows[flow] = None
                    self._now = max(self._now, tenant.time)
                    tenant.now = max(tenant.now, own.time)
                    return flow
        return None

    def in_turn(self, flows: Iterable[Flow[J]]) -> list[Flow[J]]:
        """These flows, whose turn is nearest first."""

        def time_of(flow: Flow[J]) -> tuple[float, float]:
            tenant = self._tenants[flow.tenant]
            return tenant.time, tenant.classes[flow.priority].time

        return sorted(flows, key=time_of)

    def charge(self, tenant: str, priority: str, cost_ms: float) -> None:
        """A call was given a run of this share, or (negative) less of one than it had been charged for."""
        known = self._tenants.get(tenant)
        if known is None:
            return
        known.time += cost_ms / known.weight
        own = known.classes.get(priority)
        if own is not None:
            own.time += cost_ms / own.weight

    def flows_of(self, tenant: str) -> Iterator[Flow[J]]:
        """A tenant's waiting flows, the least of its priorities first."""
        known = self._tenants.get(tenant)
        if known is not None:
            for priority in sorted(known.classes, key=WEIGHTS.__getitem__):
                yield from known.classes[priority].flows

    def _forget_idle(self) -> None:
        """Whoever is behind the present would start at the present again anyway; where nobody waits, all start anew."""
        if all(each.is_idle() for each in self._tenants.values()):
            self._now = max(each.time for each in self._tenants.values())
        gone = [name for name, each in self._tenants.items() if each.time <= self._now and each.is_idle()]
        for name in gone:
            del self._tenants[name]
