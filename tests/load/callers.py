"""Callers of a node: as many connections as are asked for, each checking every answer that it gets."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

HANGS_S = 30.0
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: [1-9]\d*\r\n", re.IGNORECASE)
_number = itertools.count(1)


@dataclass
class Outcome:
    """What became of the calls. `right`: answered with the right numbers; `refused`: 429 with Retry-After; `other`: the
    rest, by what happened. Latencies of right answers, in seconds; `ended` their instants."""

    sent: int = 0
    right: int = 0
    refused: int = 0
    other: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else float("nan")


class Caller:
    """One keep-alive connection."""

    def __init__(self, port: int, key: str, model: str, outcome: Outcome, headers: dict[str, str]) -> None:
        self._port, self._outcome = port, outcome
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = f"/v2/models/{model.replace('/', '--')}/infer"
        self._head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{more}"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self) -> None:
        """One call, with numbers of its own, so that another's answer is seen to be wrong."""
        outcome = self._outcome
        outcome.sent += 1
        number = next(_number) % 100_000
        x = [float(number), float(-number), 1.0]
        started = time.perf_counter()
        try:
            async with asyncio.timeout(HANGS_S):
                status, head, body = await self._exchange(x)
        except TimeoutError:
            outcome.other["hung"] += 1
            self.close()
            return
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome.other[type(error).__name__] += 1
            self.close()
            return
        if status == 200 and json.loads(body)["outputs"][0]["data"] == [2 * each for each in x]:
            now = time.perf_counter()
            outcome.right += 1
            outcome.latencies_s.append(now - started)
            outcome.ended.append(now)
        elif status == 429 and _RETRY.search(head):
            outcome.refused += 1
        else:
            outcome.other[f"{status} {body[:60]!r}"] += 1

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, x: list[float]) -> tuple[int, bytes, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        document: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": x}]}
        body = json.dumps(document).encode()
        writer.write(f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return int(head.split(b" ", 2)[1]), head, await reader.readexactly(int(length[1]) if length else 0)


async def call_in_turn(
    port: int, key: str, model: str, seconds: float, connections: int = 1, pause_s: float = 0.0, **headers: str
) -> Outcome:
    """Each connection sends its next call when it has its answer, `pause_s` later."""
    outcome = Outcome()
    until = time.perf_counter() + seconds

    async def one() -> None:
        caller = Caller(port, key, model, outcome, headers)
        while time.perf_counter() < until:
            await caller.call()
            if pause_s:
                await asyncio.sleep(pause_s)
        caller.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return outcome


async def call_at_rate(port: int, key: str, model: str, seconds: float, rate_per_s: float, **headers: str) -> Outcome:
    """So many calls a second whatever becomes of them, each on a connection that is free, or a new one."""
    outcome = Outcome()
    free: list[Caller] = []
    running: set[asyncio.Task[None]] = set()
    started = time.perf_counter()

    async def one() -> None:
        caller = free.pop() if free else Caller(port, key, model, outcome, headers)
        await caller.call()
        free.append(caller)

    due = 0
    while (now := time.perf_counter() - started) < seconds:
        while due < now * rate_per_s:
            due += 1
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(0.002)
    if running:
        await asyncio.wait(running)
    for caller in free:
        caller.close()
    return outcome
