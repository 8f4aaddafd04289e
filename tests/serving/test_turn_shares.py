"""While another organisation is calling, one has a few calls of each turn of the event loop, and the rest later."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from serving import turn_shares
from serving.errors.node import queue_full
from serving.http_protocol import MAX_HELD_BYTES
from serving.settings import ServingSettings
from serving.turn_shares import CALLS_A_TURN
from tests.serving.parts import FACTORY, OTHER_KEY, Node, double, endless, running_node, until
from tests.serving.test_turn import Callers, Wire, callers, double_of, json_of, request, values_of

COUNT = 3 * CALLS_A_TURN


def call(number: float, **headers: str) -> bytes:
    return request("acme--double", json_of("x", "FP32", np.full((1, 3), number, np.float32)), **headers)


def another() -> bytes:
    return request("acme--double", json_of("x", "FP32", np.ones((1, 3), np.float32)), OTHER_KEY)


@asynccontextmanager
async def beside_another(folder: Path, **headers: str) -> AsyncIterator[tuple[Node, Callers]]:
    """Connections that have all called before, the last one with another organisation's key."""
    async with callers(folder, COUNT + 1) as (node, made):
        for turn in range(2):
            await made.ask(*[call(turn, **headers) for _ in range(COUNT)], another())
        yield node, made


def organisations(node: Node, since: int) -> list[str]:
    return [each.organisation for each in node.usage()[since:]]


async def test_anothers_call_is_not_behind_all_that_a_crowd_has_sent(tmp_path: Path) -> None:
    async with beside_another(tmp_path) as (node, made):
        before = len(node.usage())
        answers = await made.ask(*[call(number) for number in range(COUNT)], another())
        assert [status for status, _, _ in answers] == [200] * (COUNT + 1)
        for number, (_, _, body) in enumerate(answers[:-1]):
            assert values_of(body).ravel()[0] == 2.0 * number
        order = organisations(node, before)
        assert order.index("org_other") <= CALLS_A_TURN
        assert order.count("org_factory") == COUNT


async def test_refusals_take_of_a_turn_as_answers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with beside_another(tmp_path) as (node, made):
        told: list[str] = []

        def full(principal: object, *_: object) -> None:
            told.append(principal.organisation)  # type: ignore[attr-defined]
            if principal is FACTORY:
                raise queue_full("acme/double", 1)

        monkeypatch.setattr(node.dataplane, "check_full", full)
        answers = await made.ask(*[call(number) for number in range(COUNT)], another())
        assert [status for status, _, _ in answers] == [429] * COUNT + [200]
        assert told.index("org_other") == CALLS_A_TURN


async def test_who_calls_alone_has_the_whole_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_shares, "ANOTHER_FOR_S", 0)
    async with beside_another(tmp_path) as (node, made):
        written: list[int] = []
        usages = node.journal.usages
        monkeypatch.setattr(node.journal, "usages", lambda records: (written.append(len(records)), usages(records)))
        await made.ask(*[call(number) for number in range(COUNT)])
        assert written == [COUNT]


async def test_what_is_held_comes_before_what_its_organisation_sends_later(tmp_path: Path) -> None:
    async with beside_another(tmp_path) as (node, made):
        early, late = range(2 * CALLS_A_TURN), range(2 * CALLS_A_TURN, COUNT)
        before = [len(wire.answers()) for wire in made.wires]
        first = len(node.usage())
        made.protocols[-1].data_received(another())
        for index in early:
            made.protocols[index].data_received(call(index))
        for index in late:
            made.protocols[index].data_received(call(index))
        await until(lambda: all(len(w.answers()) > n for w, n in zip(made.wires, before, strict=True)))
        came = {wire.answers()[-1][1][b"x-usage-id"].decode(): index for index, wire in enumerate(made.wires)}
        order = [came[each.usage_id] for each in node.usage()[first:] if each.organisation == "org_factory"]
        assert order == list(range(COUNT))


async def test_a_held_call_past_its_deadline_is_told_so(tmp_path: Path) -> None:
    async with beside_another(tmp_path, **{"X-Deadline-Ms": "20"}) as (node, made):
        before = [len(wire.answers()) for wire in made.wires]
        sent = len(node.usage())
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        made.protocols[-1].data_received(another())
        for index in range(CALLS_A_TURN + 2):
            made.protocols[index].data_received(call(index, **{"X-Deadline-Ms": "20"}))
        wires = made.wires[: CALLS_A_TURN + 2]
        await until(lambda: all(len(wire.answers()) > n for wire, n in zip(wires, before, strict=False)))
        statuses = [wire.answers()[-1][0] for wire in wires]
        assert sorted(statuses) == [200] * CALLS_A_TURN + [504] * 2
        assert organisations(node, sent).count("org_factory") == CALLS_A_TURN


class PausedWire(Wire):
    is_paused = False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


async def test_a_connection_is_not_read_on_for_ever_while_its_call_is_held(tmp_path: Path) -> None:
    async with beside_another(tmp_path) as (_, made):
        wire, protocol = PausedWire(), made.protocols[0]
        protocol.transport = wire
        protocol.flow._transport = wire
        made.protocols[-1].data_received(another())
        for index in range(1, CALLS_A_TURN + 1):
            made.protocols[index].data_received(call(index))
        protocol.data_received(call(7))
        sent = 1
        padded = call(7) + b"\r\n" * 10_000
        while not wire.is_paused:
            protocol.data_received(padded)
            sent += 1
        assert sent * len(padded) < 2 * MAX_HELD_BYTES
        await until(lambda: len(wire.answers()) == sent)
        assert not wire.is_paused
        assert {status for status, _, _ in wire.answers()} == {200}


async def test_a_body_is_not_read_for_a_queue_that_is_full(tmp_path: Path) -> None:
    async with running_node(tmp_path, threads=1, run_deadline_ms=1500, queue_requests=1) as node:
        slow = node.add("acme/endless", endless(), micro=10, manifest={"batching": {"dynamic": False}})
        node.add("acme/double", double(), micro=1)
        made = Callers(node, 2)
        await made.ask(double_of(np.ones((1, 3), np.float32)))  # the key is known
        waiting = [
            asyncio.create_task(node.dataplane.infer(FACTORY, slow, {"x": np.ones((1, 3), np.float32)}))
            for _ in range(2)
        ]
        await until(lambda: node.dataplane.queue.waiting == 1)
        ((status, headers, body),) = await made.ask(request("acme--endless", b"no JSON at all"))
        assert (status, b"QUEUE_FULL" in body) == (429, True)
        assert int(headers[b"retry-after"]) >= 1
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_threads_for_runs_give_way_to_the_event_loop(tmp_path: Path) -> None:
    async with running_node(tmp_path, threads=1, run_niceness=3) as node:
        pool: ThreadPoolExecutor = node.dataplane._run_pool
        own = niceness()
        assert await asyncio.get_running_loop().run_in_executor(pool, niceness) == own + 3
        assert niceness() == own


@pytest.mark.parametrize(("cores", "given", "comes_to"), [(1, -1, 5), (4, -1, 0), (1, 0, 0), (4, 19, 19)])
def test_how_much_they_give_way(monkeypatch: pytest.MonkeyPatch, cores: int, given: int, comes_to: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert ServingSettings(run_niceness=given).niceness_of_runs == comes_to


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
