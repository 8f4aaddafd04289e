"""The soak: hot, queued, flooding and impatient callers of one node together, some that send in pieces and some that
leave in the middle of a request, for long. It passes without an error and with flat memory."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from tests.load.callers import Outcome, call_at_rate, call_in_turn, watched
from tests.load.node import FACTORY_KEY, FAST, FLOOD_KEY, SLOW
from tests.load.servers import LoadNode

SETTLED = 0.25  # of a soak, after which memory must stay where it is
GROWTH = 1.05
TELL_S = 60.0


@dataclass(frozen=True)
class Caller:
    """One kind of caller in the mix; `run(port, seconds, outcome)` calls for so long."""

    name: str
    run: Callable[[int, float, Outcome], Any]


def _in_turn(key: str, model: str, **given: Any) -> Callable[[int, float, Outcome], Any]:
    return lambda port, seconds, outcome: call_in_turn(port, key, model, seconds, outcome=outcome, **given)


CALLERS = (
    Caller("hot", _in_turn(FACTORY_KEY, FAST, connections=4, pause_s=0.001)),
    Caller("queued", _in_turn(FACTORY_KEY, SLOW, connections=2, idempotent=True)),
    Caller(
        "flood",
        lambda port, seconds, outcome: call_at_rate(
            port, FLOOD_KEY, SLOW, seconds, 200, idempotent=True, outcome=outcome
        ),
    ),
    Caller("impatient", _in_turn(FACTORY_KEY, SLOW, pause_s=0.05, idempotent=True, headers={"X-Priority": "high"})),
    Caller("in pieces", _in_turn(FACTORY_KEY, FAST, connections=2, pause_s=0.005, pieces=4)),
    Caller("leaving", _in_turn(FACTORY_KEY, FAST, pause_s=0.01, leaves_every=2, pieces=3)),
)


async def soak(node: LoadNode, seconds: float, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """What became of it; `passed` where nothing was answered wrongly and memory stayed within `GROWTH`.

    Memory is looked at once a second. `tell` gets a line a minute.
    """
    process = psutil.Process(node.pid)
    memory: list[int] = []
    outcomes = {caller.name: Outcome(keeps=False) for caller in CALLERS}
    started = time.perf_counter()

    async def watch() -> None:
        told = started
        while (now := time.perf_counter()) < started + seconds:
            await asyncio.sleep(min(1.0, seconds / 20))
            memory.append(process.memory_info().rss)
            if now - told >= TELL_S:
                told = now
                tell(_line(now - started, outcomes, memory[-1]))

    with watched() as stood:
        runs = (caller.run(node.port, seconds, outcomes[caller.name]) for caller in CALLERS)
        await asyncio.gather(*runs, watch())
    return _found(node, seconds, outcomes, memory) | {"callers_stood_still_s": round(stood.stood_still_s, 1)}


def _found(node: LoadNode, seconds: float, outcomes: dict[str, Outcome], memory: list[int]) -> dict[str, Any]:
    settled = memory[int(len(memory) * SETTLED) :]
    half = len(settled) // 2
    before, after = max(settled[:half]), max(settled[half:])
    errors = _sum(outcomes, "errors")
    return {
        "seconds": seconds,
        **{
            name: _sum(outcomes, name)
            for name in ("right", "refused", "errors", "left", "retried", "reopened", "not_sent")
        },
        "callers": {name: _said(outcome) for name, outcome in outcomes.items()},
        "node_stood_still_ms": _lag_max_ms(node),
        "rss_mib": [round(each / (1 << 20), 1) for each in (memory[0], before, after)],
        "rss_each_minute_mib": [round(each / (1 << 20), 1) for each in memory[59::60]],
        "growth": round(after / before - 1, 4),
        "passed": not errors and after <= before * GROWTH,
    }


def _sum(outcomes: dict[str, Outcome], name: str) -> int:
    return sum(getattr(each, name) for each in outcomes.values())


def _said(outcome: Outcome) -> dict[str, Any]:
    said: dict[str, Any] = {"right": outcome.right, "refused": outcome.refused}
    if outcome.other:
        first = {what: time.strftime("%H:%M:%S", time.gmtime(at)) for what, at in outcome.first.items()}
        said |= {"errors": dict(outcome.other), "first_at": first}
    return said


def _line(passed_s: float, outcomes: dict[str, Outcome], rss: int) -> str:
    counts = " ".join(f"{name} {_sum(outcomes, name)}" for name in ("right", "refused", "errors", "retried"))
    return f"{passed_s:6.0f} s  {counts}  rss {rss / (1 << 20):.1f} MiB"


def _lag_max_ms(node: LoadNode) -> float:
    """The longest that the node's event loop was held, or the node was stopped."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = [line.split()[1] for line in text.splitlines() if line.startswith("algomart_event_loop_lag_ms_max ")]
    return float(found[0])


def tell_progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
