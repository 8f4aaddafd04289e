"""Limits of a key: calls a second and calls in hand, refused with 429 and when to come back."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_store.errors import TooMany
from serving.key_counts import KeyCounts
from serving.limits import MAX_KEYS, CallLimits, tighter
from serving.ports import KeyLimits, Principal
from tests.serving.parts import FACTORY, OTHER, double, endless, rows, running_node, until


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def with_limits(principal: Principal, **limits: int) -> Principal:
    return dataclasses.replace(principal, limits=KeyLimits(**limits))


def passed(limits: CallLimits, principal: Principal, tries: int) -> int:
    done = 0
    for _ in range(tries):
        try:
            limits.take(principal)
            done += 1
        except TooMany:
            pass
    return done


def test_a_burst_passes_and_then_so_many_a_second() -> None:
    clock = Clock()
    limits = CallLimits(KeyLimits(), clock)
    key = with_limits(FACTORY, rate_per_s=2, burst=5)
    assert passed(limits, key, 9) == 5
    clock.now += 1
    assert passed(limits, key, 9) == 2
    clock.now += 1000
    assert passed(limits, key, 9) == 5


def test_a_rate_without_a_burst_allows_a_seconds_worth_at_once() -> None:
    assert passed(CallLimits(KeyLimits(), Clock()), with_limits(FACTORY, rate_per_s=3), 9) == 3


def test_a_refusal_says_when_to_come_back_and_then_a_call_passes() -> None:
    clock = Clock()
    limits = CallLimits(KeyLimits(), clock)
    key = with_limits(FACTORY, rate_per_s=1, burst=1)
    limits.take(key)
    clock.now += 0.25
    with pytest.raises(TooMany) as refused:
        limits.take(key)
    assert refused.value.code == "RATE_LIMITED"
    assert refused.value.retry_after_s == 1
    clock.now += refused.value.retry_after_s
    limits.take(key)


@settings(deadline=None)  # what other work of the machine takes is not its own
@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.integers(1, 20), st.integers(1, 30))
def test_whenever_calls_come_no_more_pass_than_burst_and_rate_allow(gaps: list[float], rate: int, burst: int) -> None:
    clock = Clock()
    limits = CallLimits(KeyLimits(), clock)
    key = with_limits(FACTORY, rate_per_s=rate, burst=burst)
    started, done = clock.now, 0
    for gap in gaps:
        clock.now += gap
        done += passed(limits, key, 7)
        assert done <= burst + (clock.now - started) * rate + 1e-6
    assert done >= min(burst, 7)


def test_the_tighter_of_the_keys_and_the_nodes_limit_holds() -> None:
    assert [tighter(0, 0), tighter(0, 5), tighter(5, 0), tighter(3, 5)] == [0, 5, 5, 3]
    limits = CallLimits(KeyLimits(rate_per_s=4), Clock())
    assert passed(limits, with_limits(FACTORY, rate_per_s=100), 9) == 4
    assert passed(limits, OTHER, 9) == 4  # each key has its own


def test_a_limit_that_changes_holds_from_the_next_call() -> None:
    limits = CallLimits(KeyLimits(), Clock())
    assert passed(limits, FACTORY, 9) == 9
    key = with_limits(FACTORY, concurrency=1)
    leave = limits.enter(key)
    assert passed(limits, key, 9) == 0
    assert passed(limits, with_limits(FACTORY, concurrency=2), 1) == 1
    leave()
    assert passed(limits, key, 9) == 9


def test_what_is_remembered_of_keys_is_bounded() -> None:
    limits = CallLimits(KeyLimits(rate_per_s=1), Clock())
    limits.enter(FACTORY)
    for index in range(MAX_KEYS + 50):
        limits.take(dataclasses.replace(OTHER, key_id=f"key-{index}"))
    assert len(limits._keys) <= MAX_KEYS
    assert FACTORY.key_id in limits._keys


def test_processes_that_share_their_counts_are_one_to_a_key() -> None:
    memory, clock = KeyCounts.shared_memory(3), Clock()
    node = KeyLimits(concurrency=1024)
    processes = [CallLimits(node, clock, KeyCounts(3, number, memory)) for number in range(3)]
    key = with_limits(FACTORY, rate_per_s=5, burst=9)
    assert sum(passed(each, key, 5) for each in processes) == 9
    clock.now += 1
    assert passed(processes[2], key, 20) == 5
    busy = with_limits(OTHER, concurrency=2)
    leave = [each.enter(busy) for each in processes[:2]]
    for each in processes:
        assert passed(each, busy, 1) == 0
        with pytest.raises(TooMany):
            each.enter(busy)
    leave[0]()
    assert passed(processes[2], busy, 3) == 3  # short ones are never in hand
    processes[2].enter(busy)
    assert passed(processes[0], busy, 1) == 0
    processes[0].counts.clear(2)  # that process has ended
    assert passed(processes[0], busy, 1) == 1


def test_a_rate_holds_among_processes_that_call_at_once() -> None:
    memory, calls, rate, burst = KeyCounts.shared_memory(3), 3_000, 5, 800
    key = with_limits(FACTORY, rate_per_s=rate, burst=burst)
    started, children = time.monotonic(), []
    for number in range(3):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            done = passed(CallLimits(KeyLimits(), counts=KeyCounts(3, number, memory)), key, calls)
            os.write(write, done.to_bytes(4))
            os._exit(0)
        os.close(write)
        children.append((child, read))
    done = [int.from_bytes(os.read(read, 4)) for _, read in children]
    for child, _ in children:
        os.waitpid(child, 0)
    took_s = time.monotonic() - started
    # What waits a millisecond for a process that cannot run goes by uncounted, so not quite to the call.
    assert burst <= sum(done) <= 1.05 * burst + 3 + took_s * rate


def test_a_row_that_says_nothing_any_more_is_another_key_s() -> None:
    clock = Clock()
    limits = CallLimits(KeyLimits(), clock, KeyCounts(rows=1))
    first, second = (
        dataclasses.replace(FACTORY, key_id=name, limits=KeyLimits(rate_per_s=2, burst=2))
        for name in ("first", "second")
    )
    assert passed(limits, first, 5) == 2
    assert passed(limits, second, 5) == 2  # counted by itself: the row is taken
    clock.now += 10
    third = dataclasses.replace(first, key_id="third")
    assert passed(limits, third, 5) == 2
    assert passed(limits, first, 5) == 2
    assert passed(limits, third, 5) == 0


async def test_a_key_over_its_rate_is_refused_hot_and_queued_and_is_not_charged(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        served = node.add("acme/double", double(), 1000)
        key = with_limits(FACTORY, rate_per_s=1, burst=4)
        for _ in range(4):  # the first is queued, the others are short
            await node.dataplane.infer(key, served, {"x": rows(1)})
        spent = [held.lease.lease_id for held in node.dataplane.leases.leases()]
        for _ in range(3):
            with pytest.raises(TooMany) as refused:
                await node.dataplane.infer(key, served, {"x": rows(1)})
            assert refused.value.code == "RATE_LIMITED"
        assert len(node.usage()) == 4
        assert [held.lease.lease_id for held in node.dataplane.leases.leases()] == spent
        await node.dataplane.infer(OTHER, served, {"x": rows(1)})
        await node.dataplane.infer(key, served, {"x": rows(1)}, purpose="trial")


async def test_calls_in_hand_are_bounded_and_room_comes_back(tmp_path: Path) -> None:
    async with running_node(tmp_path, run_deadline_ms=1500) as node:
        served, slow = node.add("acme/double", double()), node.add("acme/endless", endless())
        key = with_limits(FACTORY, concurrency=2)
        await node.dataplane.infer(key, served, {"x": rows(1)})
        held = [asyncio.create_task(node.dataplane.infer(key, slow, {"x": rows(1)})) for _ in range(2)]
        await until(lambda: sum(each.in_hand for each in node.dataplane.limits._keys.values()) == 2)
        for model in (served, slow):
            with pytest.raises(TooMany) as refused:
                await node.dataplane.infer(key, model, {"x": rows(1)})
            assert refused.value.code == "CONCURRENCY_LIMITED"
            assert refused.value.retry_after_s
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
        await until(lambda: not node.dataplane.limits._keys)  # those that ran already are in hand until they end
        await node.dataplane.infer(key, served, {"x": rows(1)})
        assert not any(each.in_hand for each in node.dataplane.limits._keys.values())


async def test_a_call_whose_caller_has_gone_is_in_hand_until_its_run_ends(tmp_path: Path) -> None:
    async with running_node(tmp_path, run_deadline_ms=1500) as node:
        served, slow = node.add("acme/double", double()), node.add("acme/endless", endless())
        key = with_limits(FACTORY, concurrency=1)
        await node.dataplane.infer(key, served, {"x": rows(1)})
        left = asyncio.create_task(node.dataplane.infer(key, slow, {"x": rows(1)}))
        await until(lambda: bool(node.dataplane.queue._running))
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        with pytest.raises(TooMany) as refused:
            await node.dataplane.infer(key, served, {"x": rows(1)})
        assert refused.value.code == "CONCURRENCY_LIMITED"
        await until(lambda: not node.dataplane.queue._running)
        await until(lambda: not node.dataplane.limits._keys)
        await node.dataplane.infer(key, served, {"x": rows(1)})
