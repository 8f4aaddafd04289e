"""The bound on uploads that are worked on at once, per organisation and in all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from marketplace.catalogue.publishing_gate import PublishingGate
from model_store.errors import TooMany


async def enter(gate: PublishingGate, organisation: str, left: asyncio.Event, seen: list[str]) -> None:
    async with gate.turn(organisation):
        seen.append(organisation)
        await left.wait()


async def test_an_organisation_waits_behind_its_own_uploads_and_nobody_else_does() -> None:
    gate, leave, seen = PublishingGate(at_once=1, waiting=2, in_all=8), asyncio.Event(), []
    tasks = [asyncio.create_task(enter(gate, "bomber", leave, seen)) for _ in range(3)]
    await asyncio.sleep(0)
    assert seen == ["bomber"]
    with pytest.raises(TooMany, match="PUBLISHING_BUSY") as refused:
        await enter(gate, "bomber", leave, seen)
    assert refused.value.retry_after_s
    assert refused.value.remedy_zh
    other = asyncio.create_task(enter(gate, "honest", leave, seen))
    await asyncio.sleep(0)
    assert seen == ["bomber", "honest"]
    leave.set()
    await asyncio.gather(*tasks, other)
    assert sorted(seen) == ["bomber", "bomber", "bomber", "honest"]
    async with gate.turn("bomber"):
        pass


async def test_many_organisations_together_leave_threads_to_the_rest_of_the_market() -> None:
    gate = PublishingGate(at_once=2, waiting=2, in_all=3)
    async with AsyncExitStack() as stack:
        for organisation in ("a", "b", "c"):
            await stack.enter_async_context(gate.turn(organisation))
        with pytest.raises(TooMany, match="PUBLISHING_BUSY"):
            await stack.enter_async_context(gate.turn("d"))
    async with gate.turn("d"):
        pass


async def test_who_hangs_up_while_waiting_leaves_the_queue() -> None:
    gate, leave, seen = PublishingGate(at_once=1, waiting=1, in_all=8), asyncio.Event(), []
    first = asyncio.create_task(enter(gate, "a", leave, seen))
    gone = asyncio.create_task(enter(gate, "a", leave, seen))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    again = asyncio.create_task(enter(gate, "a", leave, seen))
    await asyncio.sleep(0)
    assert seen == ["a"]
    leave.set()
    await asyncio.gather(first, again)
    assert seen == ["a", "a"]
