"""Load and unload by order: done in every process behind one port, or refused and taken back in all.

The first process numbers the orders and keeps what stands of each version. A process takes an order by its number, so
that one that comes late, or twice, changes nothing. One that starts asks for what stands before it answers anybody,
and hears of everything from then on; one that ends need not hear. Alone, a process does what is ordered, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from model_store.errors import Refusal
from serving.errors.node import model_in_use, not_everywhere
from serving.ports import ServedVersion
from serving.residency import Residency

LOAD, UNLOAD, NOTHING = "load", "unload", "nothing"
GIVE, TAKE, STANDING = "order", "take", "standing"
ASKS = frozenset((GIVE, TAKE, STANDING))  # what processes ask each other for the sake of orders
FIRST = 0
ORDER_S = 30.0  # within which another process answers; loading waits for room up to 10 s
IDLE_S = 10.0  # for calls in hand to end before a version is unloaded
GIVE_S = 4 * ORDER_S  # the first process's own part, the others', and taking it back
LEAVE_S = 2.0  # between a connection that breaks and the news that its process has ended
AGAIN_S = 1.0
_log = logging.getLogger("algomart.orders")


class Order(msgspec.Struct, frozen=True):
    """What stands of one version from `number` on; NOTHING: as if nobody had ordered anything."""

    number: int
    verb: str
    served: ServedVersion


class Others(Protocol):
    """The processes behind the port, by their numbers."""

    number: int  # this process's own

    async def ask_one(self, number: int, what: str, content: bytes, timeout_s: float) -> bytes:
        """What it answers. Raises the `Refusal` that it answers, and `Unavailable` PROCESS_AWAY."""


class _Version:
    """The orders of one version, as they are known here."""

    __slots__ = ("giving", "standing", "taken", "taking")

    def __init__(self) -> None:
        self.giving, self.taking = asyncio.Lock(), asyncio.Lock()
        self.standing: Order | None = None  # known to the first process alone
        self.taken = 0


class Orders:
    """Every method runs on the event loop, but for `left`."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self.others: Others | None = None
        self._versions: dict[tuple[str, bool], _Version] = {}
        self._members: dict[int, asyncio.Future[None]] = {}  # who has asked what stands; done once it has ended
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def give(self, verb: str, served: ServedVersion) -> None:
        """LOAD or UNLOAD a version in every process. Goes on to its end when the caller leaves.

        Raises what loading raises in this or the first process, `Unavailable` MODEL_IN_USE, NOT_EVERYWHERE (then it is
        taken back in all) and PROCESS_AWAY.
        """
        if self.others is None:
            await self._do(verb, served)
        elif self.others.number != FIRST:
            await self.others.ask_one(FIRST, GIVE, _encoded(Order(0, verb, served)), GIVE_S)
        else:
            await asyncio.shield(self._begin(self._give(verb, served)))

    async def catch_up(self) -> None:
        """Before a process beside the first answers anybody: what stands holds here too, loads as far as there is room.

        Raises `Unavailable` PROCESS_AWAY.
        """
        if self.others is None or self.others.number == FIRST:
            return
        told = await self.others.ask_one(FIRST, STANDING, _encoded(self.others.number), ORDER_S)
        for order in sorted(_decoded(told, list[Order]), key=lambda each: each.number, reverse=True):
            try:
                if order.verb != LOAD or await self._residency.has_room_for(order.served):
                    await self.take(order)
            except Refusal as refusal:
                _log.warning("%s of %s is not done at the start: %s", order.verb, order.served.name, refusal)

    async def told(self, what: str, content: bytes) -> bytes:
        """Answer another process (one of `ASKS`). Raises what `give` and `take` raise."""
        if what == STANDING:
            return self._admit(_decoded(content, int))
        order = _decoded(content, Order)
        await (self.give(order.verb, order.served) if what == GIVE else self.take(order))
        return b"{}"

    async def take(self, order: Order) -> None:
        """Do what stands, unless something newer was done. Raises what loading raises, MODEL_IN_USE."""
        version = self._version_of(order.served)
        async with version.taking:
            if order.number > version.taken:
                await self._do(order.verb, order.served)
                version.taken = order.number

    def left(self, number: int) -> None:
        """That process has ended: nobody waits for it. From any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                self._loop.call_soon_threadsafe(self._forget, number)

    async def close(self) -> None:
        """Drop what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the first process --------------------------------------------------------------------------------------------

    async def _give(self, verb: str, served: ServedVersion) -> None:
        version = self._version_of(served)
        async with version.giving:
            before = NOTHING if version.standing is None else version.standing.verb
            order = self._stand(version, verb, served)
            failed: dict[int, Refusal] = {}
            try:
                await self.take(order)
                failed, asked = await self._tell(list(self._members), order)
                if failed:
                    raise not_everywhere(verb, served.name, 1 + asked - len(failed), 1 + asked, [*failed.values()])
            except Exception:
                await self._take_back(self._stand(version, before, served), failed)
                raise

    async def _take_back(self, order: Order, failed: dict[int, Refusal]) -> None:
        """`order`: what stood before, under a new number. Who does not answer is told until it does, or has ended."""
        with contextlib.suppress(Refusal):
            await self.take(order)
        silent = {number for number, refusal in failed.items() if _is_away(refusal)}
        again, _ = await self._tell([number for number in self._members if number not in silent], order)
        for number in silent | {number for number, refusal in again.items() if _is_away(refusal)}:
            self._begin(self._insist(number, order))

    async def _insist(self, number: int, order: Order) -> None:
        while True:
            refusal = await self._tell_one(number, order)
            if refusal is None or not _is_away(refusal):
                return
            await asyncio.sleep(AGAIN_S)

    async def _tell(self, numbers: list[int], order: Order) -> tuple[dict[int, Refusal], int]:
        """Who has not done it, and why; and how many were asked."""
        answers = await asyncio.gather(*(self._tell_one(number, order) for number in numbers))
        return {number: each for number, each in zip(numbers, answers, strict=True) if each is not None}, len(numbers)

    async def _tell_one(self, number: int, order: Order) -> Refusal | None:
        """None: it has done it, or has ended and will ask what stands when it is started again."""
        left = self._members.get(number)
        if left is None or self.others is None:
            return None
        asking = asyncio.ensure_future(self.others.ask_one(number, TAKE, _encoded(order), ORDER_S))
        try:
            await asyncio.wait((asking, left), return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                await asking
        except Refusal as refusal:
            if _is_away(refusal):
                await asyncio.wait((left,), timeout=LEAVE_S)
            return None if left.done() else refusal
        finally:
            asking.cancel()
        return None

    def _stand(self, version: _Version, verb: str, served: ServedVersion) -> Order:
        version.standing = Order(next(self._numbers), verb, served)
        return version.standing

    def _admit(self, number: int) -> bytes:
        """What stands; from now on that process is told of every order."""
        self._loop = asyncio.get_running_loop()
        self._forget(number)
        self._members[number] = self._loop.create_future()
        return _encoded([each.standing for each in self._versions.values() if each.standing is not None])

    def _forget(self, number: int) -> None:
        left = self._members.pop(number, None)
        if left is not None:
            left.set_result(None)

    # --- here ---------------------------------------------------------------------------------------------------------

    async def _do(self, verb: str, served: ServedVersion) -> None:
        residency = self._residency
        if verb == LOAD:
            residency.release(await residency.acquire(served))
        elif verb == NOTHING:
            residency.forget_unloading(served)
        elif not await residency.evict_when_idle(served, IDLE_S):
            raise model_in_use(served.name)

    def _version_of(self, served: ServedVersion) -> _Version:
        return self._versions.setdefault((served.digest, served.trusted), _Version())

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)  # a bundle's folder is the same for all: they share a disk


def _decoded(content: bytes, kind: Any) -> Any:
    return msgspec.json.decode(content, type=kind, dec_hook=lambda kind, value: kind(value))


def _is_away(refusal: Refusal) -> bool:
    return refusal.code == "PROCESS_AWAY"
