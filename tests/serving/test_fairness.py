"""Whose turn it is: run time is shared among organisations, by weight among priorities, and nobody starves."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.fairness import IDLE_TENANTS_KEPT, WEIGHTS, FairOrder, Flow


class Simulation:
    """One slot: each choice runs one job, `jobs` being costs in ms."""

    def __init__(self) -> None:
        self.order: FairOrder[float] = FairOrder()
        self.flows: dict[tuple[str, str, str], Flow[float]] = {}
        self.ran: list[tuple[str, str, str]] = []
        self.spent: Counter[str] = Counter()

    def send(
        self, tenant: str, cost_ms: float, priority: str = "normal", lane: str = "lane", weight: float = 0.0
    ) -> None:
        flow = self.flows.setdefault((tenant, priority, lane), Flow(tenant, priority, lane))
        flow.jobs.append(cost_ms)
        self.order.add(flow, weight)

    def run(self, may_run: Any = lambda flow: True) -> Flow[float] | None:
        flow = self.order.choose(may_run)
        if flow is None:
            return None
        cost_ms = flow.jobs.popleft()
        self.order.charge(flow.tenant, flow.priority, cost_ms)
        self.spent[flow.tenant] += cost_ms
        self.ran.append((flow.tenant, flow.priority, flow.lane))
        if not flow.jobs:
            self.order.remove(flow)
        return flow


def test_run_time_and_not_calls_is_shared() -> None:
    simulation = Simulation()
    for _ in range(100):
        simulation.send("long", 10)
        simulation.send("short", 1)
        simulation.send("short", 1)
    for _ in range(110):
        simulation.run()
    assert abs(simulation.spent["long"] - simulation.spent["short"]) <= 10


def test_run_time_is_shared_by_weight() -> None:
    simulation = Simulation()
    for _ in range(200):
        simulation.send("heavy", 2, weight=3)
        simulation.send("light", 5)
    while simulation.spent.total() < 400:
        simulation.run()
    assert abs(simulation.spent["heavy"] - 3 * simulation.spent["light"]) <= 15
    simulation.send("heavy", 2, weight=1)  # from now on alike
    before = simulation.spent.copy()
    while simulation.spent.total() < 500:
        simulation.run()
    gained = simulation.spent - before
    assert abs(gained["heavy"] - gained["light"]) <= 15


def test_more_lanes_give_no_more_turns() -> None:
    simulation = Simulation()
    for index in range(50):
        simulation.send("many", 1, lane=f"lane-{index}")
        simulation.send("one", 1)
    for _ in range(20):
        simulation.run()
    assert simulation.spent == {"many": 10, "one": 10}


def test_a_tenants_lanes_take_turns() -> None:
    simulation = Simulation()
    for _ in range(3):
        for lane in "abc":
            simulation.send("t", 1, lane=lane)
    assert [flow.lane for _ in range(9) if (flow := simulation.run())] == list("abcabcabc")


def test_nobody_saves_up_turns_while_idle() -> None:
    simulation = Simulation()
    simulation.send("early", 1)
    for _ in range(1000):
        simulation.send("busy", 1)
    for _ in range(500):
        simulation.run()
    for _ in range(100):
        simulation.send("early", 1)
    simulation.ran.clear()
    for _ in range(20):
        simulation.run()
    assert abs(Counter(tenant for tenant, _, _ in simulation.ran)["early"] - 10) <= 1


def test_priorities_share_by_weight_within_a_tenant_and_do_not_reach_beyond_it() -> None:
    simulation = Simulation()
    for priority in WEIGHTS:
        for _ in range(500):
            simulation.send("t", 1, priority)
    for _ in range(500):
        simulation.send("other", 1, "low")
    for _ in range(420):
        simulation.run()
    shares = Counter((tenant, priority) for tenant, priority, _ in simulation.ran)
    assert abs(shares["other", "low"] - 210) <= 1
    assert abs(shares["t", "high"] - 160) <= 2
    assert abs(shares["t", "normal"] - 40) <= 2
    assert abs(shares["t", "low"] - 10) <= 2


def test_who_may_not_run_now_is_passed_over_and_keeps_its_turn() -> None:
    simulation = Simulation()
    simulation.send("blocked", 1)
    for _ in range(5):
        simulation.send("free", 1)
    for _ in range(3):
        flow = simulation.run(lambda flow: flow.tenant == "free")
        assert flow is not None
    simulation.run()
    assert simulation.ran[-1][0] == "blocked"
    assert simulation.order.choose(lambda flow: False) is None


def test_what_is_remembered_of_idle_tenants_is_bounded() -> None:
    simulation = Simulation()
    for index in range(20 * IDLE_TENANTS_KEPT):
        simulation.send(f"t{index}", 1)
        simulation.run()
    assert len(simulation.order._tenants) <= IDLE_TENANTS_KEPT + 2


steps = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from("ABCD"), st.sampled_from(sorted(WEIGHTS)), st.sampled_from("xyz"), st.floats(0.1, 50)
        ),
        st.none(),
    ),
    max_size=150,
)


@given(steps)
def test_whatever_comes_everything_runs_in_its_order_and_no_backlog_waits_beyond_its_share(
    script: list[tuple[str, str, str, float] | None],
) -> None:
    """The bound of start-time fair queueing: of two tenants that wait all the while, neither gets more than two of the
    longest runs ahead of the other."""
    simulation = Simulation()
    sent: Counter[tuple[str, str, str]] = Counter()
    longest = 0.0
    both_since: dict[frozenset[str], tuple[float, float]] = {}
    for step in [*script, *[None] * len(script)]:
        if step is None:
            simulation.run()
        else:
            tenant, priority, lane, cost_ms = step
            simulation.send(tenant, cost_ms, priority, lane)
            sent[tenant, priority, lane] += 1
            longest = max(longest, cost_ms)
        waiting = {tenant for (tenant, _, _), flow in simulation.flows.items() if flow.jobs}
        for one in "ABCD":
            for other in "ABCD":
                if one < other:
                    pair = frozenset((one, other))
                    if not pair <= waiting:
                        both_since.pop(pair, None)
                        continue
                    then = both_since.setdefault(pair, (simulation.spent[one], simulation.spent[other]))
                    gained = (simulation.spent[one] - then[0]) - (simulation.spent[other] - then[1])
                    assert abs(gained) <= 2 * longest + 1e-6
    assert Counter(simulation.ran) == sent
    assert simulation.run() is None


def test_what_others_are_given_beside_one_goes_by_the_weights_of_those_who_wait() -> None:
    simulation = Simulation()
    assert simulation.order.others("heavy") == 0
    simulation.send("heavy", 5, weight=4)
    assert simulation.order.others("heavy") == 0
    simulation.send("one", 5)
    simulation.send("two", 5)
    assert simulation.order.others("heavy") == 0.5
    assert simulation.order.others("one") == 5
    for _ in range(3):
        simulation.run()
    assert simulation.order.others("heavy") == 0  # nobody waits any more
