"""Residency: loaded once, within the budget, never taken away from a call in hand."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (  # fmt: skip
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from model_store.errors import Refusal, Unavailable
from model_store.manifest import Manifest
from serving import residency as module
from serving.cost import CostEstimate, runs_in_bounded_time
from serving.ports import ServedVersion
from serving.residency import Residency
from serving.resident import Resident
from serving.settings import ServingSettings
from tests.serving.parts import bundle, double, endless, gather, until

SIZE = 100


class Runner:
    closed = False

    def close(self) -> None:
        self.closed = True


def version(name: str, folder: Path = Path("/nowhere")) -> ServedVersion:
    return ServedVersion(name, name, name, 1, folder, name, True, "org")


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model takes SIZE bytes; nothing is read from disk."""
    monkeypatch.setattr(module, "_estimate", lambda served, settings: SIZE)


def load(served: ServedVersion, _: ServingSettings) -> Resident:
    if "broken" in served.name:
        raise Refusal("BROKEN", zh="坏", en="broken")
    manifest = Manifest.model_validate({"name": "a/b", "inputs": [], "outputs": []})
    return Resident(served, manifest, Runner(), False)


def residency_of(models: int, loader: Any = load) -> Residency:
    return Residency(ServingSettings(memory_budget_bytes=models * SIZE), loader)


@pytest.mark.usefixtures("sized")
async def test_many_callers_load_once() -> None:
    started, gate = [], threading.Event()

    def slow(served: ServedVersion, settings: ServingSettings) -> Resident:
        started.append(served.name)
        assert gate.wait(20)
        return load(served, settings)

    residency = residency_of(2, slow)
    calls = [asyncio.create_task(residency.acquire(version("a"))) for _ in range(20)]
    await until(lambda: started)
    calls[3].cancel()
    gate.set()
    residents = [call for call in await asyncio.gather(*calls, return_exceptions=True) if isinstance(call, Resident)]
    assert (started, len(residents), len(set(map(id, residents)))) == (["a"], 19, 1)
    assert residents[0].references == 19
    await residency.close()


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("name", ["a", "broken"])
async def test_what_is_being_loaded_is_unloaded_once_it_is_there_and_its_calls_have_ended(name: str) -> None:
    """Else the order would be done before, and the model stay in memory after it."""
    started, gate = threading.Event(), threading.Event()

    def slow(served: ServedVersion, settings: ServingSettings) -> Resident:
        started.set()
        assert gate.wait(20)
        return load(served, settings)

    residency = residency_of(2, slow)
    call = asyncio.create_task(residency.acquire(version(name)))
    await until(started.is_set)
    order = asyncio.create_task(residency.evict_when_idle(version(name), 20))
    done, _ = await asyncio.wait((order,), timeout=0.02)
    assert not done
    assert not residency.was_unloaded(version(name))
    gate.set()
    if name == "a":
        resident = await call
        assert not order.done()
        residency.release(resident)
    else:
        with pytest.raises(Refusal):
            await call
    assert await order
    assert residency.residents() == []
    assert residency.was_unloaded(version(name))
    await residency.close()


@pytest.mark.usefixtures("sized")
async def test_the_longest_unused_leaves_first_and_a_scan_before_what_is_used_again() -> None:
    residency = residency_of(3)
    for name in ("often", "often", "scan1", "scan2", "scan3", "scan4"):
        residency.release(await residency.acquire(version(name)))
    assert {resident.name for resident in residency.residents()} == {"often", "scan3", "scan4"}
    assert residency.evictions == 2
    await residency.close()


@pytest.mark.usefixtures("sized")
async def test_what_is_in_use_or_pinned_stays() -> None:
    residency = residency_of(2)
    used, pinned = await residency.acquire(version("used")), await residency.acquire(version("pinned"))
    residency.set_pinned(version("pinned"), True)
    residency.release(pinned)
    waiting = asyncio.create_task(residency.acquire(version("new")))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert not residency.evict(version("used"))
    residency.release(used)
    assert (await waiting).name == "new"
    assert {resident.name for resident in residency.residents()} == {"pinned", "new"}
    assert used.runner is None
    await residency.close()


@pytest.mark.usefixtures("sized")
async def test_what_the_settings_pin_stays_once_it_is_loaded() -> None:
    settings = ServingSettings(memory_budget_bytes=2 * SIZE, pinned_models="acme--gauge, acme/press,")
    residency = Residency(settings, load)
    for name in ("acme/gauge", "often", "often", "once", "acme/other"):
        residency.release(await residency.acquire(version(name)))
    assert {resident.name for resident in residency.residents()} == {"acme/gauge", "acme/other"}
    assert residency.evict(version("acme/gauge"))  # by order it goes all the same
    await residency.close()


@pytest.mark.usefixtures("sized")
async def test_without_room_a_load_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_FOR_ROOM_S", 0.02)
    residency = residency_of(1)
    held = await residency.acquire(version("held"))
    with pytest.raises(Unavailable) as refused:
        await residency.acquire(version("new"))
    assert refused.value.code == "MEMORY_FULL"
    residency.release(held)
    residency.release(await residency.acquire(version("new")))
    too_small = Residency(ServingSettings(memory_budget_bytes=SIZE - 1), load)
    with pytest.raises(Unavailable):
        await too_small.acquire(version("any"))
    await too_small.close()
    await residency.close()


@pytest.mark.usefixtures("sized")
async def test_a_load_that_fails_tells_everyone_and_leaves_nothing_behind() -> None:
    residency = residency_of(2)
    ended = await asyncio.gather(*(residency.acquire(version("broken")) for _ in range(3)), return_exceptions=True)
    assert [each.code for each in ended if isinstance(each, Refusal)] == ["BROKEN"] * 3
    assert residency.held_bytes == 0
    assert residency.residents() == []
    await residency.close()


@pytest.mark.usefixtures("sized")
async def test_what_leaves_is_gone_without_the_garbage_collector() -> None:
    residency = residency_of(1)
    gc.collect()
    before = sum(isinstance(each, Resident) for each in gc.get_objects())
    gc.disable()
    try:
        for name in "abcdef":
            residency.release(await residency.acquire(version(name)))
        await residency.close()
        assert sum(isinstance(each, Resident) for each in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.usefixtures("sized")
async def test_what_leaves_is_closed() -> None:
    residency = residency_of(1)
    resident = await residency.acquire(version("a"))
    runner = resident.runner
    residency.release(resident)
    residency.release(await residency.acquire(version("b")))
    await until(lambda: runner.closed)
    await residency.close()
    assert residency.held_bytes == 0


class Machine(RuleBasedStateMachine):
    """Any order of acquiring, releasing, evicting and pinning keeps the budget and every reference."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.residency = residency_of(3)
        self.references: dict[str, int] = {}

    @rule(target=held, name=st.sampled_from("abcdefgh"))
    def acquire(self, name: str) -> Any:
        try:
            resident = self.loop.run_until_complete(self.residency.acquire(version(name)))
        except Unavailable:
            assert all(resident.references or resident.pinned for resident in self.residency.residents())
            return multiple()
        self.references[name] = self.references.get(name, 0) + 1
        return resident

    @rule(resident=consumes(held))
    def release(self, resident: Resident) -> None:
        self.residency.release(resident)
        self.references[resident.name] -= 1

    @rule(name=st.sampled_from("abcdefgh"))
    def evict(self, name: str) -> None:
        async def evict() -> bool:
            return self.residency.evict(version(name))

        assert not (self.loop.run_until_complete(evict()) and self.references.get(name))

    @rule(name=st.sampled_from("abcdefgh"), pinned=st.booleans())
    def pin(self, name: str, pinned: bool) -> None:
        self.residency.set_pinned(version(name), pinned)

    @invariant()
    def the_budget_holds(self) -> None:
        residents = self.residency.residents()
        assert self.residency.held_bytes == len(residents) * SIZE <= 3 * SIZE

    @invariant()
    def nothing_in_use_is_gone(self) -> None:
        loaded = {resident.name: resident.references for resident in self.residency.residents()}
        for name, count in self.references.items():
            assert loaded.get(name, 0) == count

    def teardown(self) -> None:
        self.loop.run_until_complete(self.residency.close())
        self.loop.close()


@pytest.mark.usefixtures("sized")
def test_any_order_of_events_keeps_budget_and_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_FOR_ROOM_S", 0.001)
    run_state_machine_as_test(Machine, settings=settings(max_examples=30, stateful_step_count=25, deadline=None))


def test_only_graphs_bounded_by_their_inputs_may_run_on_the_loop(tmp_path: Path) -> None:
    assert runs_in_bounded_time(bundle(tmp_path / "a", "a/double", double()).model_path)
    assert runs_in_bounded_time(bundle(tmp_path / "b", "a/gather", gather()).model_path)
    assert not runs_in_bounded_time(bundle(tmp_path / "c", "a/endless", endless()).model_path)


def test_one_slow_run_does_not_move_a_model_off_the_loop_but_several_do() -> None:
    cost = CostEstimate(None, inline_allowed=True)
    assert cost.predict_ms(16, 1) == float("inf")
    cost.record(16, 0.05)
    cost.record(16, 50.0)
    assert cost.predict_ms(16, 1) < 0.1
    for _ in range(20):
        cost.record(16, 50.0)
    assert cost.predict_ms(16, 1) > 1
    assert cost.predict_ms(16 * 2, 2) > cost.predict_ms(16, 1)


def test_a_run_shared_with_others_says_at_most_how_long_one_alone_takes() -> None:
    cost = CostEstimate(None, inline_allowed=True)
    cost.record(16, 0.5)
    cost.record(16, 3.0, shared=True)
    assert cost.predict_ms(16, 1) == 0.5
    cost.record(16, 0.1, shared=True)
    assert cost.predict_ms(16, 1) < 0.5
