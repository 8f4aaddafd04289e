"""What another organisation's call waits while one floods: `python -m tests.bench.kept_slot [--slots 4]`.

The real run queue with runs that only take time (30 ms asleep), so that it is the queue which is measured and not a
core: twelve callers of one organisation without a pause, one of another with pauses. Latencies in runs: 1 is a call
that waited for nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from serving.batching import RunQueue
from serving.resident import Resident
from tests.serving.parts import double, rows
from tests.serving.test_batching import released, resident_of

RUN_S, FLOODING = 0.03, 12


class Asleep:
    """A graph that takes `RUN_S` and no core."""

    def run(self, inputs: dict[str, Any], *arguments: Any) -> dict[str, Any]:
        time.sleep(RUN_S)
        return {"y": inputs["x"]}


async def measure(resident: Resident, slots: int, seconds: float) -> dict[str, float]:
    queue = RunQueue(
        ThreadPoolExecutor(slots), slots, per_lane=slots, per_owner=slots, waiting_per_model=1000, waiting_in_all=1000,
        max_output_bytes=1 << 24, release=released,
    )  # fmt: skip
    until = time.monotonic() + seconds
    flooded = 0

    async def call(tenant: str) -> float:
        started = time.monotonic()
        await queue.submit(resident, {"x": rows(1)}, None, 1, 60_000, tenant).done
        return (time.monotonic() - started) / RUN_S

    async def flood() -> None:
        nonlocal flooded
        while time.monotonic() < until:
            await call("flood")
            flooded += 1

    floods = [asyncio.create_task(flood()) for _ in range(FLOODING)]
    found = []
    while time.monotonic() < until:
        found.append(await call("quiet"))
        await asyncio.sleep(random.random() * 2 * RUN_S)
    await asyncio.gather(*floods)
    found.sort()
    p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
    return {"p50_runs": round(p50, 2), "p99_runs": round(p99, 2), "flood_runs_per_s": round(flooded / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=9.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        resident = resident_of(Path(folder), double(), dynamic=False)
        resident.runner = Asleep()
        print(asyncio.run(measure(resident, options.slots, options.seconds)))


if __name__ == "__main__":
    main()
