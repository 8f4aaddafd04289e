"""Orders to load and unload among processes: what is refused by one stands in none, late ones change nothing.

The processes are real ones in tests/e2e/test_workers_orders.py; here they are event-loop tasks of one process, so that
each can be made to refuse, to be silent, or to end at a chosen moment.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from model_store.errors import Refusal, Unavailable
from serving import orders as module
from serving import residency as residency_module
from serving.errors.node import process_away
from serving.orders import LOAD, TAKE, UNLOAD, Order, Orders
from serving.ports import ServedVersion
from serving.residency import Residency
from serving.resident import Resident
from serving.settings import ServingSettings
from tests.serving.parts import until
from tests.serving.test_residency import SIZE, load, version


class Process:
    """One of several; `wire` connects them. `refuses`: names that it cannot load; `silent`: it answers nobody."""

    def __init__(self, wire: dict[int, Process], number: int, room: int = 9) -> None:
        self.wire, self.number = wire, number
        self.refuses: set[str] = set()
        self.silent = asyncio.Event()
        self.heard = asyncio.Event()
        self.residency = Residency(ServingSettings(memory_budget_bytes=room * SIZE), self._load)
        self.orders = Orders(self.residency)
        self.orders.others = self
        wire[number] = self

    def _load(self, served: ServedVersion, settings: ServingSettings) -> Resident:
        if served.name in self.refuses:
            raise Refusal("BUNDLE_UNREADABLE", zh="坏", en="broken")
        return load(served, settings)

    async def ask_one(self, number: int, what: str, content: bytes, timeout_s: float) -> bytes:
        asked = self.wire[number]
        if what == TAKE:
            asked.heard.set()
        if asked.silent.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await asyncio.Future()
            except TimeoutError:
                raise process_away() from None
        return await asked.orders.told(what, content)

    @property
    def holds(self) -> set[str]:
        return {each.name for each in self.residency.residents()}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency_module, "_estimate", lambda served, settings: SIZE)
    for name in ("ORDER_S", "IDLE_S", "LEAVE_S", "AGAIN_S"):
        monkeypatch.setattr(module, name, 0.05)


async def started(count: int = 3, **options: Any) -> list[Process]:
    wire: dict[int, Process] = {}
    processes = [Process(wire, number, **options) for number in range(count)]
    for process in processes:
        await process.orders.catch_up()
    return processes


async def close(processes: list[Process]) -> None:
    for process in processes:
        await process.orders.close()
        await process.residency.close()


async def test_whichever_is_asked_all_have_done_it() -> None:
    processes = await started()
    for asked in processes:
        await asked.orders.give(LOAD, version("m"))
        assert [each.holds for each in processes] == [{"m"}] * 3
        await asked.orders.give(UNLOAD, version("m"))
        assert [each.holds for each in processes] == [set()] * 3
        assert all(each.residency.was_unloaded(version("m")) for each in processes)
    await close(processes)


@pytest.mark.parametrize("asked", [0, 1])
async def test_a_load_that_one_refuses_leaves_what_stood_before(asked: int) -> None:
    processes = await started()
    await processes[0].orders.give(UNLOAD, version("m"))
    processes[2].refuses = {"m"}
    with pytest.raises(Unavailable) as refused:
        await processes[asked].orders.give(LOAD, version("m"))
    assert refused.value.code == "NOT_EVERYWHERE"
    assert refused.value.details == {"done": 2, "processes": 3, "reasons": ["BUNDLE_UNREADABLE"]}
    assert [each.holds for each in processes] == [set()] * 3
    assert all(each.residency.was_unloaded(version("m")) for each in processes)
    await close(processes)


async def test_what_the_first_cannot_load_is_refused_by_its_own_name() -> None:
    processes = await started()
    processes[0].refuses = {"m"}
    with pytest.raises(Refusal) as refused:
        await processes[1].orders.give(LOAD, version("m"))
    assert refused.value.code == "BUNDLE_UNREADABLE"
    assert [each.holds for each in processes] == [set()] * 3
    await close(processes)


async def test_a_version_in_use_in_one_process_is_unloaded_in_none() -> None:
    processes = await started()
    await processes[0].orders.give(LOAD, version("m"))
    held = await processes[1].residency.acquire(version("m"))
    with pytest.raises(Unavailable) as refused:
        await processes[0].orders.give(UNLOAD, version("m"))
    assert refused.value.details["reasons"] == ["MODEL_IN_USE"]
    assert [each.holds for each in processes] == [{"m"}] * 3  # it had been loaded by order
    assert not any(each.residency.was_unloaded(version("m")) for each in processes)
    unloading = asyncio.create_task(processes[0].orders.give(UNLOAD, version("m")))
    await asyncio.sleep(0.01)
    processes[1].residency.release(held)  # while it is waited for
    await unloading
    assert [each.holds for each in processes] == [set()] * 3
    await close(processes)


async def test_who_was_silent_agrees_once_it_answers_again() -> None:
    processes = await started()
    await processes[0].orders.give(UNLOAD, version("m"))
    processes[1].silent.set()
    with pytest.raises(Unavailable) as refused:
        await processes[0].orders.give(LOAD, version("m"))
    assert refused.value.details == {"done": 2, "processes": 3, "reasons": ["PROCESS_AWAY"]}
    late = Order(2, LOAD, version("m"))
    await processes[1].orders.take(late)  # it had been delivered, and is done only now
    assert processes[1].holds == {"m"}
    processes[1].silent.clear()
    await until(lambda: not processes[1].holds)
    await processes[1].orders.take(late)
    assert [each.holds for each in processes] == [set()] * 3
    assert all(each.residency.was_unloaded(version("m")) for each in processes)
    await close(processes)


async def test_nobody_waits_for_a_process_that_has_ended_and_it_begins_with_what_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ORDER_S", 60.0)
    processes = await started()
    await processes[0].orders.give(UNLOAD, version("gone"))
    processes[2].silent.set()
    loading = asyncio.create_task(processes[1].orders.give(LOAD, version("m")))
    await processes[2].heard.wait()
    assert not loading.done()
    processes[0].orders.left(2)
    await loading
    again = Process(processes[0].wire, 2)
    await again.orders.catch_up()
    assert again.holds == {"m"}
    assert again.residency.was_unloaded(version("gone"))
    await processes[0].orders.give(UNLOAD, version("m"))
    assert again.holds == set()
    await close([*processes, again])


async def test_a_process_that_starts_loads_what_was_ordered_last_as_far_as_there_is_room() -> None:
    processes = await started(2, room=2)
    for name in "abcd":
        await processes[0].orders.give(LOAD, version(name))
    again = Process(processes[0].wire, 1, room=2)
    await again.orders.catch_up()
    assert again.holds == {"c", "d"}
    assert again.residency.evictions == 0
    await close([*processes, again])


async def test_an_order_is_carried_out_also_when_its_caller_leaves() -> None:
    processes = await started()
    processes[1].silent.set()
    giving = asyncio.create_task(processes[0].orders.give(LOAD, version("m")))
    await processes[1].heard.wait()
    giving.cancel()
    await asyncio.gather(giving, return_exceptions=True)
    processes[1].silent.clear()  # too late: it was asked when it was silent
    await until(lambda: not processes[0].orders._tasks)
    assert not any(each.residency.was_unloaded(version("m")) for each in processes)
    await processes[0].orders.give(LOAD, version("m"))
    assert [each.holds for each in processes] == [{"m"}] * 3
    await close(processes)
