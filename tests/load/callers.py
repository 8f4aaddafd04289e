"""Callers of a node: as many connections as are asked for, each checking every answer that it gets.

They are reasonable HTTP/1.1 clients: a connection that lay idle for long, or that the server has closed meanwhile, is
not used again; a call that carries an Idempotency-Key is sent once more where a used connection closed before a byte of
the answer came. Both are counted. Time in which the callers' own process stood still is nobody's delay.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

HANGS_S = 30.0
IDLE_S = 5.0  # as httpx: shorter than any server keeps a connection
LATE_S = 1.0  # what a caller at a rate catches up with at most; the rest was never due
LOOK_S = 0.5
PADDING = b" " * 30_000  # of a body that is sent in pieces: more than one packet
BETWEEN_PIECES_S = 0.001
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after: [1-9]\d*\r\n", re.IGNORECASE)
_CLOSE = b"\r\nconnection: close\r\n"
_number = itertools.count(1)


@dataclass
class Outcome:
    """What became of the calls. `right`: answered with the right numbers; `refused`: 429 with Retry-After; `other`: the
    rest, by what happened, and `first` the instant of the first of each kind. Latencies of right answers, in seconds;
    `ended` their instants; neither where `keeps` is False.

    `left`: connections that were closed in the middle of a request, on purpose.
    `reopened`: connections that had been closed or idle; `retried`: calls that were sent again; `not_sent`: calls that
    came due while the caller itself stood still.
    """

    keeps: bool = True
    sent: int = 0
    right: int = 0
    refused: int = 0
    left: int = 0
    reopened: int = 0
    retried: int = 0
    not_sent: int = 0
    other: Counter[str] = field(default_factory=Counter)
    first: dict[str, float] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @property
    def errors(self) -> int:
        return self.other.total()

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else float("nan")

    def wrong(self, what: str) -> None:
        self.other[what] += 1
        self.first.setdefault(what, time.time())


class Hangs:
    """Ends calls that take longer than `HANGS_S`, by a clock that stands still when this process does."""

    def __init__(self) -> None:
        self.stood_still_s = 0.0
        self._now, self._looked_at = 0.0, time.perf_counter()
        self._calling: dict[Caller, float] = {}

    def begin(self, caller: Caller) -> None:
        self._calling[caller] = self._now

    def end(self, caller: Caller) -> None:
        self._calling.pop(caller, None)

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.perf_counter()
            passed, self._looked_at = now - self._looked_at, now
            awake = min(passed, 2 * LOOK_S)
            self.stood_still_s += passed - awake
            self._now += awake
            for caller in [each for each, since in self._calling.items() if self._now - since > HANGS_S]:
                caller.give_up()


@contextmanager
def watched() -> Iterator[Hangs]:
    hangs = Hangs()
    task = asyncio.ensure_future(hangs.watch())
    try:
        yield hangs
    finally:
        task.cancel()


class Caller:
    """One keep-alive connection. `idempotent`: each call carries an Idempotency-Key of its own. `pieces`: in how many
    it is sent."""

    def __init__(
        self,
        port: int,
        key: str,
        model: str,
        outcome: Outcome,
        headers: Mapping[str, str] | None,
        hangs: Hangs,
        idempotent: bool = False,
        pieces: int = 1,
    ) -> None:
        self._port, self._outcome, self._hangs, self._idempotent = port, outcome, hangs, idempotent
        self._pieces = pieces
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        path = f"/v2/models/{model.replace('/', '--')}/infer"
        self._head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n{more}"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used_at = 0.0
        self._given_up = False

    async def call(self) -> None:
        """One call, with numbers of its own, so that another's answer is seen to be wrong."""
        outcome = self._outcome
        outcome.sent += 1
        number = next(_number)
        x = [float(number % 100_000), -float(number % 100_000), 1.0]
        started = time.perf_counter()
        self._hangs.begin(self)
        try:
            status, head, body = await self._exchange(self._content(x, number))
        except (OSError, asyncio.IncompleteReadError) as error:
            outcome.wrong("hung" if self._given_up else f"{type(error).__name__}: {error}"[:80])
            self._given_up = False
            self.close()
            return
        finally:
            self._hangs.end(self)
        now = self._used_at = time.perf_counter()
        if status == 200 and json.loads(body)["outputs"][0]["data"] == [2 * each for each in x]:
            outcome.right += 1
            if outcome.keeps:
                outcome.latencies_s.append(now - started)
                outcome.ended.append(now)
        elif status == 429 and _RETRY.search(head):
            outcome.refused += 1
        else:
            outcome.wrong(f"{status} {body[:60]!r}")

    async def leave(self) -> None:
        """A part of a call, and gone."""
        content = self._content([0.0, 0.0, 0.0], next(_number))
        try:
            _, writer, _ = await self._connection()
            await self._send(writer, content[: random.randrange(1, len(content))])
        except OSError as error:
            self._outcome.wrong(f"{type(error).__name__}: {error}"[:80])
        else:
            self._outcome.left += 1
        self.close()

    def give_up(self) -> None:
        self._given_up = True
        if self._streams is not None:
            self._streams[1].transport.abort()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    def _content(self, x: list[float], number: int) -> bytes:
        document: dict[str, Any] = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": x}]}
        body = json.dumps(document).encode() + (PADDING if self._pieces > 1 else b"")
        key = f"Idempotency-Key: call-{number}\r\n" if self._idempotent else ""
        return f"{self._head}{key}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def _exchange(self, content: bytes) -> tuple[int, bytes, bytes]:
        reader, writer, is_used = await self._connection()
        try:
            head = await self._ask(reader, writer, content)
        except (OSError, asyncio.IncompleteReadError) as error:
            begun = isinstance(error, asyncio.IncompleteReadError) and bool(error.partial)
            if begun or not is_used or not self._idempotent or self._given_up:
                raise
            self._outcome.retried += 1
            self.close()
            reader, writer, _ = await self._connection()
            head = await self._ask(reader, writer, content)
        length = _LENGTH.search(head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if _CLOSE in head.lower():
            self.close()
        return int(head.split(b" ", 2)[1]), head, body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bool]:
        """And whether it has been used before."""
        if self._streams is not None:
            reader, writer = self._streams
            gone = reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()
            if not gone and time.perf_counter() - self._used_at < IDLE_S:
                return reader, writer, True
            self._outcome.reopened += 1
            self.close()
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return *self._streams, False

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> bytes:
        await self._send(writer, content)
        return await reader.readuntil(b"\r\n\r\n")

    async def _send(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        cuts = sorted(random.randrange(len(content)) for _ in range(self._pieces - 1))
        for start, end in itertools.pairwise([0, *cuts, len(content)]):
            writer.write(content[start:end])
            if self._pieces > 1:
                await asyncio.sleep(BETWEEN_PIECES_S)


async def call_in_turn(
    port: int,
    key: str,
    model: str,
    seconds: float,
    connections: int = 1,
    pause_s: float = 0.0,
    *,
    idempotent: bool = False,
    pieces: int = 1,
    leaves_every: int = 0,
    outcome: Outcome | None = None,
    headers: Mapping[str, str] | None = None,
) -> Outcome:
    """Each connection sends its next call when it has its answer, `pause_s` later. `outcome`: to look at meanwhile.

    `leaves_every`: of so many calls one is broken off in the middle, and its connection with it; 0: none.
    """
    outcome = Outcome() if outcome is None else outcome
    until = time.perf_counter() + seconds

    with watched() as hangs:

        async def one() -> None:
            caller = Caller(port, key, model, outcome, headers, hangs, idempotent, pieces)
            for number in itertools.count(1):
                if time.perf_counter() >= until:
                    break
                await (caller.leave() if leaves_every and number % leaves_every == 0 else caller.call())
                if pause_s:
                    await asyncio.sleep(pause_s)
            caller.close()

        await asyncio.gather(*(one() for _ in range(connections)))
    return outcome


async def call_at_rate(
    port: int,
    key: str,
    model: str,
    seconds: float,
    rate_per_s: float,
    *,
    idempotent: bool = False,
    outcome: Outcome | None = None,
    headers: Mapping[str, str] | None = None,
) -> Outcome:
    """So many calls a second whatever becomes of them, each on a connection that is free, or a new one.

    Calls that came due while this process stood still would come all at once from clients that there never were: of
    those, no more than `LATE_S` worth is made up for.
    """
    outcome = Outcome() if outcome is None else outcome
    free: list[Caller] = []
    running: set[asyncio.Task[None]] = set()
    started = time.perf_counter()

    with watched() as hangs:

        async def one() -> None:
            caller = free.pop() if free else Caller(port, key, model, outcome, headers, hangs, idempotent)
            await caller.call()
            free.append(caller)

        due = 0
        while (now := time.perf_counter() - started) < seconds:
            missed = int((now - LATE_S) * rate_per_s) - due
            if missed > 0:
                outcome.not_sent += missed
                due += missed
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
