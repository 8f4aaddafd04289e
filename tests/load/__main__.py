"""Load on a node, measured: `python -m tests.load overload|neighbour|soak [--seconds N] [--json FILE]`.

Ratios within one run.

overload   ten times what the node can do: how much of its capacity, measured just before, it still gets done
neighbour  one organisation's latency alone, and while another floods the same model, another one, and a model run at
           once over many connections
soak       mixed traffic for long: flat memory and no error, or it ends with 1; a line a minute on the error output
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.load.callers import Outcome, call_at_rate, call_in_turn
from tests.load.node import FACTORY_KEY as FACTORY
from tests.load.node import FAST, SLOW
from tests.load.node import FLOOD_KEY as FLOOD
from tests.load.servers import LoadNode, load_node
from tests.load.soak import soak, tell_progress

WARM_S = 3.0
ROUNDS = 5
INLINE_CONNECTIONS = 32  # of who floods with calls that are run at once: each sends the next when it has its answer


async def overload(node: LoadNode, seconds: float) -> dict[str, Any]:
    """Goodput at ten times the capacity, with and without deadlines that most calls cannot meet."""
    await call_in_turn(node.port, FACTORY, SLOW, WARM_S, connections=4)
    found: dict[str, Any] = {}
    for name, headers in (("no deadline", None), ("deadline 500 ms", {"X-Deadline-Ms": "500"})):
        alone = await call_in_turn(node.port, FACTORY, SLOW, seconds, connections=4)
        capacity = alone.right / seconds
        process = psutil.Process(node.pid)
        before, started = process.cpu_times(), time.perf_counter()
        flood = await call_at_rate(node.port, FACTORY, SLOW, seconds, 10 * capacity, headers=headers)
        after = process.cpu_times()
        used_s = after.user + after.system - before.user - before.system
        in_time = sum(at <= started + seconds for at in flood.ended)
        found[name] = {
            "capacity_per_s": round(capacity, 1),
            "offered_per_s": round(flood.sent / seconds, 1),
            "goodput_of_capacity": round(in_time / seconds / capacity, 3),
            "p99_ms": round(flood.percentile_ms(0.99), 1),
            "cpu_of_a_core": round(used_s / seconds, 2),
            **_said(flood),
        }
    return found


async def neighbour(node: LoadNode, seconds: float) -> dict[str, Any]:
    """p50 and p99 of one organisation's calls, one at a time, alone and beside a flood of another's.

    In turns, and medians over the rounds. The flood comes from a process of its own, which gives way to the caller that
    is measured: else one would measure how the flood's own event loop delays it.
    """
    found: dict[str, Any] = {}
    for model in (SLOW, FAST):
        await call_in_turn(node.port, FACTORY, model, WARM_S)
    capacity = (await call_in_turn(node.port, FLOOD, SLOW, WARM_S, connections=4)).right / WARM_S
    slow, inline = ["--rate", str(10 * capacity)], ["--connections", str(INLINE_CONNECTIONS)]
    for name, model, of_flood in (("queued", SLOW, slow), ("another", FAST, slow), ("run at once", FAST, inline)):
        rounds = []
        for _ in range(ROUNDS):
            alone = await call_in_turn(node.port, FACTORY, model, seconds / 2, pause_s=0.002)
            flood = await _flood_elsewhere(node, seconds / 2 + 1, of_flood)
            await asyncio.sleep(1)  # it is under way
            beside = await call_in_turn(node.port, FACTORY, model, seconds / 2, pause_s=0.002)
            said, _ = await flood.communicate()
            rounds.append((alone, beside, json.loads(said)))
        found[name] = {
            f"{when}_p{int(share * 100)}_ms": round(
                statistics.median(each[which].percentile_ms(share) for each in rounds), 2
            )
            for which, when in enumerate(("alone", "beside"))
            for share in (0.5, 0.99)
        }
        ratios = sorted(beside.percentile_ms(0.99) / alone.percentile_ms(0.99) for alone, beside, _ in rounds)
        found[name] |= {
            "p99_ratio": round(statistics.median(ratios), 2),
            "p99_ratios": [round(each, 2) for each in ratios],
            "refused": sum(beside.refused for _, beside, _ in rounds),
            "flood": rounds[-1][2],
        }
    return found


async def _flood_elsewhere(node: LoadNode, seconds: float, kind: list[str]) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "tests.load", "flood", "--port", str(node.port)]
    given = ["--seconds", str(seconds), *kind]
    return await asyncio.create_subprocess_exec("chrt", "--idle", "0", *command, *given, stdout=asyncio.subprocess.PIPE)


def _said(outcome: Outcome) -> dict[str, Any]:
    return {"right": outcome.right, "refused_429": outcome.refused, "other": dict(outcome.other)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("overload", "neighbour", "soak", "flood"))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--port", type=int, default=0, help="of flood: the node that is flooded")
    parser.add_argument("--rate", type=float, default=0.0, help="of flood: calls a second of the slow model")
    parser.add_argument("--connections", type=int, default=0, help="of flood: callers in turn of the fast model")
    parser.add_argument("--niceness", type=int, help="of the node's runs, other than the default")
    parser.add_argument("--pin", action="store_true", help="the node has one core, who calls it the others")
    parser.add_argument("--json", type=Path, help="a file for what was found, beside the output")
    options = parser.parse_args()
    if options.what == "flood":
        flood = (
            call_in_turn(options.port, FLOOD, FAST, options.seconds, options.connections)
            if options.connections
            else call_at_rate(options.port, FLOOD, SLOW, options.seconds, options.rate)
        )
        print(json.dumps(_said(asyncio.run(flood))))
        return 0
    works: dict[str, Callable[[LoadNode, float], Coroutine[Any, Any, dict[str, Any]]]] = {
        "overload": overload,
        "neighbour": neighbour,
        "soak": partial(soak, tell=tell_progress),
    }
    core = min(os.sched_getaffinity(0)) if options.pin else None
    given = {"niceness": options.niceness, "core": core}
    with tempfile.TemporaryDirectory() as folder, load_node(Path(folder), **given) as node:
        if core is not None:
            os.sched_setaffinity(0, os.sched_getaffinity(0) - {core} or {core})
        found = asyncio.run(works[options.what](node, options.seconds))
    text = json.dumps(found, indent=2, ensure_ascii=False)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if found.get("passed", True) else 1


if __name__ == "__main__":
    sys.exit(main())
